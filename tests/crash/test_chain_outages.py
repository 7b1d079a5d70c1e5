"""A host whose RPC endpoint goes away, answers garbage, or answers too late, in the middle of its business.

What is open goes on to its end; what is new gets a clear refusal; nothing is lost when it is back.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio

from p2pnode.chain.evm import ledger as evm
from p2pnode.chain.evm.ledger import EvmLimits
from p2pnode.chain.evm.rpc import RpcLimits
from p2pnode.chain.evm.transaction_sender import SenderLimits
from p2pnode.chain.profile import load_profile, write_profile
from p2pnode.errors import RefusedError
from p2pnode.host.host import Host
from p2pnode.host.model_pool import HostedModel
from p2pnode.ids import ModelId
from p2pnode.models.manifest import SCRIPTED, model_id_text, scripted_model_id
from p2pnode.models.scripted import ScriptedConfig, ScriptedEngine
from p2pnode.node.identity import BoundChain, load_or_create_identity
from p2pnode.node.node import Node, NodeSetup
from p2pnode.payments.escrow import open_host_money
from tests.crash.checks import (
    check_receipts,
    check_settled,
    wait_settled,
)
from tests.crash.mortal import quick
from tests.crash.parties import (
    FEE,
    LISTEN,
    PRICE_IN,
    PRICE_OUT,
    RICH,
    TOKENS,
    Party,
)
from tests.crash.rpc_proxy import Fault, RpcProxy, html, nonsense, refusing, rpc_proxy, slow, swallow_sent
from tests.crash.support import (
    Asked,
    CrashWorld,
    asking,
    crash_world,
    until,
)

FREE = ModelId(bytes(31) + b"\1")
# Deadlines are shorter than the answers that come too late, and long enough for a chain that shares a busy
# machine with this: with 0.3 s a healthy one was taken for one that is away, at a load of four.
IMPATIENT = quick(
    chain_deadline_s=4.0, escrow_deadline_s=8.0, settle_retry_s=0.2, settle_retry_max_s=0.3, linger_s=0.3
)
PROMPT = EvmLimits(
    rpc=RpcLimits(request_deadline_s=1.5, deadline_s=2.0, rest_first_s=0.05, rest_max_s=0.1),
    sender=SenderLimits(poll_first_s=0.05, poll_max_s=0.2, reorg_poll_s=0.2, replace_after_s=2.0),
)
FAULTS: dict[str, Fault | None] = {
    "gone": None, "html": html, "nonsense": nonsense, "refusing": refusing, "slow": slow,
}  # fmt: skip

IN_CI = {"refusing"}


@pytest.fixture(autouse=True)
def _prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds for minutes: what waits for the chain waits as it always does, but not as long."""
    monkeypatch.setattr(evm, "EvmLimits", lambda: PROMPT)


@asynccontextmanager
async def serving(party: Party, profile: Path, tokens_per_s: float | None = None) -> AsyncIterator[str]:
    """A host of a paid and of a free model, paid through ``profile``; its multiaddr."""
    chain = load_profile(profile)
    bound = BoundChain(chain.chain_id, chain.node_registry)
    identity = load_or_create_identity(party.data, time.time, bound)
    paid = HostedModel(
        model=scripted_model_id(), name=SCRIPTED, price_in=PRICE_IN, price_out=PRICE_OUT, session_fee=FEE,
        new_engine=lambda: ScriptedEngine(ScriptedConfig(tokens_per_s=tokens_per_s)),
    )  # fmt: skip
    free = HostedModel(model=FREE, name="free", new_engine=ScriptedEngine)
    async with open_host_money(party.data, chain) as money, trio.open_nursery() as nursery:
        node = Node(NodeSetup(key=identity.key, listen=(LISTEN,), limits=IMPATIENT))
        await nursery.start(node.run)
        await Host(node, identity, [paid, free], money).start()
        yield node.multiaddrs[0]
        node.stop()


@asynccontextmanager
async def outage_world(folder: Path) -> AsyncIterator[tuple[CrashWorld, RpcProxy, Path]]:
    """A chain, an endpoint in front of it, and the profile of that."""
    async with crash_world(folder) as w, rpc_proxy(w.chain.url) as proxy:
        path = folder / "proxied.toml"
        write_profile(path, replace(w.chain.profile(), rpc_urls=(proxy.url,)))
        yield w, proxy, path


async def is_over(host: Party) -> bool:
    """Whether its one session waits to be settled."""
    return [each.state for each in host.hosted()] == ["over"]


def fail(proxy: RpcProxy, fault: Fault | None) -> None:
    if fault is None:
        proxy.down()
    else:
        proxy.fault = fault


def _faults() -> list[object]:
    return [
        pytest.param(fault, id=name, marks=() if name in IN_CI else pytest.mark.long)
        for name, fault in FAULTS.items()
    ]


@pytest.mark.parametrize("fault", _faults())
async def test_while_the_chain_is_away_sessions_go_on_and_new_ones_are_refused(
    tmp_path: Path, fault: Fault | None
) -> None:
    async with outage_world(tmp_path) as (w, proxy, profile):
        host, client, late = await w.host(), await w.client(), await w.client("late")
        first, second = Asked(), Asked()
        async with serving(host, profile, tokens_per_s=200) as peer:
            async with asking(client) as chat:
                await chat(first, peer, 10)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(chat, second, peer, 200)
                    await second.streams.wait()
                    fail(proxy, fault)
                # Three windows, each paid for, and another turn: no chain was needed.
                assert (second.error, len(second.ids)) == (None, 200)
                assert await w.opened(host.hosted()[0].session) == 1

                refused = await w.ask(late, peer)
                assert isinstance(refused.error, RefusedError)
                assert (refused.error.code, refused.error.retry_after_s) == ("capacity", 30)
                assert "can't reach its chain" in str(refused.error)
                free = Asked()
                async with asking(late) as chat_late:
                    await chat_late(free, peer, TOKENS, model_id_text(FREE))
                assert (free.error, len(free.ids)) == (None, TOKENS)
            await until(partial(is_over, host), "the session is over and due, with the chain still away")
            (best,) = host.hosted()
            proxy.up()
            await wait_settled(w, host, best.session)

            async def is_served() -> bool:
                return (await w.ask(late, peer)).error is None

            await until(is_served, "the host takes new sessions, once it has looked at its chain again")
            # There may be one that was refused, whose deposit landed all the same: it is settled, too.
            others = [
                each
                for each in host.hosted()
                if each.session != best.session and each.state not in ("relaying", "lost")
            ]
            for each in others:
                await wait_settled(w, host, each.session)
        late_paid = sum(each.amount or 0 for each in host.hosted() if each.session != best.session)
        assert others
        assert best.voucher is not None
        assert RICH - await w.usdc(client) == best.voucher.amount
        assert RICH - await w.usdc(late) == late_paid
        check_receipts(w, host, best)


@pytest.mark.long
async def test_a_deposit_that_lands_while_nobody_answers_comes_back_but_for_the_fee(tmp_path: Path) -> None:
    async with outage_world(tmp_path) as (w, proxy, profile):
        host, client = await w.host(), await w.client()
        async with serving(host, profile) as peer:
            proxy.fault = swallow_sent
            asked = await w.ask(client, peer)
            assert isinstance(asked.error, RefusedError)
            assert asked.error.code == "capacity"
            (bought,) = client.purchases()
            assert await w.opened(bought.session) == 1  # it was taken all the same
            proxy.up()
            await wait_settled(w, host, bought.session)
        (best,) = host.hosted()
        loss = await check_settled(w, host, client, best, 0)
        assert (loss.amount, loss.fee_only) == (FEE, FEE)


@pytest.mark.long
async def test_a_close_request_made_while_the_chain_was_away_is_answered_when_it_is_back(
    tmp_path: Path,
) -> None:
    async with outage_world(tmp_path) as (w, proxy, profile):
        host, client = await w.host(), await w.client()
        asked = Asked()
        async with serving(host, profile) as peer, asking(client) as chat:
            await chat(asked, peer, TOKENS)
            proxy.down()
            await w.request_close(client)  # with no voucher at all
            proxy.up()
            (bought,) = client.purchases()
            await wait_settled(w, host, bought.session)
        (best,) = host.hosted()
        loss = await check_settled(w, host, client, best, TOKENS)
        assert (loss.host, loss.unpaid_signature) == (0, 0)
