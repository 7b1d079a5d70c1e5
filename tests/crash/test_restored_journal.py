"""A host that starts on yesterday's journal: it settles what it knows, and contradicts nothing it said."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from p2pnode.chain.ledger import Refund, RequestClose
from p2pnode.client.client import Client
from p2pnode.net.multiaddrs import split_peer
from p2pnode.node.driver import MessageChannel
from p2pnode.payments.books import books_of
from p2pnode.payments.journal.journal import HostedSession
from p2pnode.protocols.inference.messages import CODEC, PROTOCOL, Accept, Open, Refuse, Resume
from tests.crash.checks import (
    check_receipts,
    wait_settled,
)
from tests.crash.mortal import quick
from tests.crash.parties import (
    ETHER,
    FEE,
    RICH,
    TOKENS,
    Party,
    copy_journal,
)
from tests.crash.processes import (
    Forge,
)
from tests.crash.support import (
    Asked,
    CrashWorld,
    asking,
    crash_world,
    joined,
    until,
)
from tests.crash.test_client_crashes import accounts

TURN = FEE + 8 + 3 * TOKENS
"""A session's first turn: eight tokens in, all of them billed."""


async def vouchered(host: Party, sessions: int) -> bool:
    """Whether its journal has vouchers for at least a turn, in so many sessions."""
    amounts = [each.voucher.amount for each in host.hosted() if each.voucher is not None]
    return len(amounts) == sessions and min(amounts) >= TURN


async def say(client: Party, peer: str, message: Any) -> Any:
    """One message on a stream of its own, and the answer."""
    address, peer_id = split_peer(peer)
    async with Client(client.node_config, limits=quick(), remember=False, discovery=False) as made:
        await made.node.network.connect_peer(peer_id, (), trusted=(address,))
        channel = MessageChannel(await made.node.network.open_stream(peer_id, PROTOCOL), CODEC)
        await channel.send([message])
        answer = await channel.receive()
        await channel.stream.aclose()
        return answer


def the_open_of(record: HostedSession) -> Open:
    """As its client sent it."""
    terms = record.terms
    return Open(
        model=terms.model,
        salt=record.salt,
        holder=bytes(16),
        terms=terms,
        authorisation=record.authorisation,
        valid_before=record.valid_before,
    )


async def close_by_hand(w: CrashWorld, client: Party) -> int:
    """The payer ends its session with its last voucher, waits a day and brings its refund; what it paid."""
    await w.fund(client.wallet, ether=ETHER)
    (bought,) = client.purchases()
    async with books_of(client.node_config, sends=True) as books:
        await books.ledger.transact(RequestClose(bought.terms, bought.voucher))
        await w.rpc("evm_increaseTime", 86_401)
        await w.rpc("evm_mine")
        await books.ledger.transact(Refund(bought.terms))
    (closed,) = await w.closed(bought.session)
    return closed.amount


@pytest.mark.long
async def test_a_host_restored_from_yesterdays_journal_settles_what_it_knows_and_signs_nothing_twice(
    tmp_path: Path, forge: Forge
) -> None:
    async with crash_world(tmp_path) as w:
        host, known, honest, sly = await w.host(), *[await w.client(name) for name in ("a", "b", "c")]
        yesterday = tmp_path / "yesterday"
        yesterday.mkdir()
        async with forge.process("host", host.config, None) as process:
            peer = (await process.event("ready"))["multiaddrs"][0]
            async with asking(known) as chat, asking(honest) as chat_honest, asking(sly) as chat_sly:
                await chat(Asked(), peer, TOKENS)
                await until(partial(vouchered, host, 1), "the host has the last voucher of the turn")
                copy_journal(host.data.root, yesterday)
                await chat(Asked(), peer, TOKENS)
                await chat_honest(Asked(), peer, TOKENS)
                await chat_sly(Asked(), peer, TOKENS)
                await until(partial(vouchered, host, 3), "it has those of the others too")
                await process.kill()
        lived = {each.terms.payer: each for each in host.hosted()}
        copy_journal(yesterday, host.data.root)

        (best,) = host.hosted()
        assert best.voucher is not None
        held = host.receipts(best.session)
        async with joined(host) as peer:
            await wait_settled(w, host, best.session)
            replayed = the_open_of(lived[known.wallet.address])
            resumed = Resume(holder=bytes(16), session=best.session, received=0, turn=1, proof=bytes(65))
            assert isinstance(await say(known, peer, replayed), Refuse)
            assert isinstance(await say(known, peer, resumed), Refuse)
            # One that it forgot, and that is in escrow: whatever it signs now is of another epoch.
            forgotten = lived[sly.wallet.address]
            accept = await say(sly, peer, the_open_of(forgotten))
            assert isinstance(accept, Accept)
            assert accept.epoch > forgotten.epoch == best.epoch
            await wait_settled(w, host, forgotten.session)

        (closed,) = await w.closed(best.session)
        assert closed.amount == best.voucher.amount == TURN
        assert host.receipts(best.session) == held
        check_receipts(w, host, best)
        # What was vouchered since is lost, and no more: a turn that was mostly in the cache, and a whole one.
        latest = lived[known.wallet.address].voucher
        assert latest is not None
        assert 3 * TOKENS < latest.amount - closed.amount <= TURN - FEE
        assert RICH - await w.usdc(sly) == FEE

        # An honest payer has its voucher still, and ends the session by itself.
        found, _ = await accounts(honest)
        (stuck,) = found.stuck
        (bought,) = honest.purchases()
        assert (stuck.session, found.wallet) == (bought.session, RICH - bought.terms.deposit)
        assert await close_by_hand(w, honest) == TURN == RICH - await w.usdc(honest)
