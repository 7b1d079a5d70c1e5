"""Opens that race one another: a stranger's with the host's, and a client's with its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from p2pnode.chain.dev.devchain import dev_account
from p2pnode.chain.evm.ledger import EvmLedger
from p2pnode.chain.ledger import Call, Open, Outcome
from p2pnode.client.client import Client
from p2pnode.ids import PeerId
from p2pnode.net.network import Network
from p2pnode.net.stream import Stream
from p2pnode.node.driver import MessageChannel
from p2pnode.protocols.crypto import sign_digest
from p2pnode.protocols.inference.messages import CODEC, PROTOCOL, Refuse
from p2pnode.protocols.inference.messages import Open as OpenMessage
from tests.crash.checks import (
    check_receipts,
    check_settled,
    wait_settled,
)
from tests.crash.mortal import quick
from tests.crash.parties import (
    RICH,
    TOKENS,
    Party,
)
from tests.crash.support import (
    CrashWorld,
    crash_world,
    joined,
    until,
)


@pytest.mark.long
async def test_a_stranger_that_relays_the_open_first_saves_the_host_its_gas_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with crash_world(tmp_path) as w, trio.open_nursery() as nursery:
        host, client, who = await w.host(), await w.client(), dev_account(5)
        stranger = await EvmLedger.of_profile(
            w.chain.profile(), account=who.address, sign=lambda digest: sign_digest(who.secret, digest)
        )
        await nursery.start(stranger.run)
        transact = EvmLedger.transact

        async def front_run(ledger: EvmLedger, call: Call, *, fee_max_wei: int | None = None) -> Outcome:
            if isinstance(call, Open) and ledger is not stranger:
                await transact(stranger, call)
            return await transact(ledger, call, fee_max_wei=fee_max_wei)

        monkeypatch.setattr(EvmLedger, "transact", front_run)
        async with joined(host) as peer:
            asked = await w.ask(client, peer)
            assert (asked.error, len(asked.ids)) == (None, TOKENS)
            (record,) = host.hosted()
            await wait_settled(w, host, record.session)
        (best,) = host.hosted()
        loss = await check_settled(w, host, client, best, len(asked.ids))
        assert (loss.host, loss.unpaid_signature) == (0, 0)
        check_receipts(w, host, best)
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await stranger.aclose()


@asynccontextmanager
async def signed_open(client: Party, peer: str) -> AsyncIterator[tuple[Network, OpenMessage]]:
    """What a client would send first, and the network to send it on."""
    async with Client(client.node_config, limits=quick(), remember=False, discovery=False) as made:
        advert = await made.advert_of([peer])
        assert advert is not None
        assert made.runtime.payer is not None
        (offer,) = advert.offers
        bought = await made.runtime.payer.buy(
            made.runtime.tasks, advert, offer, tokens_in=100, tokens_out=TOKENS
        )
        payment = bought.payment
        yield (
            made.node.network,
            OpenMessage(
                model=offer.model,
                salt=bytes(32),
                holder=bytes(16),
                terms=payment.terms,
                authorisation=payment.authorisation,
                valid_before=payment.valid_before,
            ),
        )


async def send(network: Network, peer: str, message: OpenMessage) -> Stream:
    """On a stream of its own, which stays open."""
    stream = await network.open_stream(PeerId(peer.rpartition("/")[2]), PROTOCOL)
    await MessageChannel(stream, CODEC).send([message])
    return stream


async def test_a_client_that_resends_its_open_while_the_first_is_looked_at_does_not_stop_the_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with crash_world(tmp_path) as w:
        host, client, other = await w.host(), await w.client(), await w.client("other")
        looking, gate, check = trio.Event(), trio.Event(), EvmLedger.check

        async def slow(ledger: EvmLedger, call: Call, sender: bytes | None = None) -> None:
            if isinstance(call, Open):
                looking.set()
                await gate.wait()
            await check(ledger, call, sender)

        monkeypatch.setattr(EvmLedger, "check", slow)
        async with joined(host) as peer:
            async with signed_open(client, peer) as (network, message):
                first = await send(network, peer, message)
                await looking.wait()
                await first.reset()
                for _ in range(5):
                    again = await send(network, peer, message)
                    with trio.move_on_after(0.2):
                        answer = await MessageChannel(again, CODEC).receive()
                        assert isinstance(answer, Refuse)
                        assert "opened before" in answer.detail
                    await again.reset()
                gate.set()
            asked = await w.ask(other, peer)
            assert (asked.error, len(asked.ids)) == (None, TOKENS)
            await until(lambda: spared(w, client), "the client that left keeps its deposit")
            assert len(host.hosted()) == 1


async def spared(w: CrashWorld, client: Party) -> bool:
    """Nothing was taken from it, or all came back."""
    return await w.usdc(client) == RICH
