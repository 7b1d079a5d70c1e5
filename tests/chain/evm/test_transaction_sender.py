"""The sender against a chain that lets transactions wait, loses them, and reorganises; on a mock clock."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from random import Random
from typing import Any

import httpx
import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from p2pnode.chain.addresses import shown_address
from p2pnode.chain.evm.fees import GWEI, Fees, offer, raised
from p2pnode.chain.evm.ledger import EvmLedger, EvmLimits
from p2pnode.chain.evm.order_book import sign_transaction
from p2pnode.chain.evm.transaction_sender import SenderLimits
from p2pnode.chain.ledger import (
    GasTooDearError,
    Outcome,
    RevertedError,
    Transfer,
    UnavailableError,
    UnseenError,
)
from p2pnode.errors import ChainError
from p2pnode.protocols.crypto import keccak256, key_address, sign_digest
from tests.chain.contracts.support import ADDRESS, BALANCE, sign
from tests.chain.evm_world import OTHER_URL, URL, Body, LocalChain, LocalRpc
from tests.chain.ledger_conformance import Scene

PAYER = ADDRESS["payer"]
TO = ADDRESS["stranger"]
GIFT = Transfer(TO, 7)
Clock = trio.testing.MockClock


def limits(**changes: Any) -> EvmLimits:
    return EvmLimits(sender=SenderLimits(**changes))


@asynccontextmanager
async def running(rpc: LocalRpc, name: str = "payer", **options: Any) -> AsyncIterator[EvmLedger]:
    ledger = await rpc.connect(name, **({"limits": limits()} | options))
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(ledger.run)
            yield ledger
            nursery.cancel_scope.cancel()
    finally:
        await ledger.aclose()


class Waiting:
    """A task that waits for a transaction, and its result."""

    def __init__(self, nursery: trio.Nursery, ledger: EvmLedger, call: Any = GIFT) -> None:
        self.outcome: Outcome | None = None
        self.error: ChainError | None = None
        self.scope = trio.CancelScope()
        nursery.start_soon(self._wait, ledger, call)

    async def _wait(self, ledger: EvmLedger, call: Any) -> None:
        with self.scope:
            try:
                self.outcome = await ledger.transact(call)
            except ChainError as error:
                self.error = error

    @property
    def over(self) -> bool:
        return self.outcome is not None or self.error is not None


@asynccontextmanager
async def sending(rpc: LocalRpc, **options: Any) -> AsyncIterator[Waiting]:
    """A gift is on its way from a ledger that runs: the task that waits for it."""
    async with running(rpc, **options) as ledger, trio.open_nursery() as nursery:
        yield Waiting(nursery, ledger)


def received(local: LocalChain) -> int:
    return int(local.made.usdc.read("balanceOf", TO))


def raw_of(body: bytes) -> bytes:
    return bytes.fromhex(json.loads(body)["params"][0][2:])


def decoded(local: LocalChain, raw: bytes) -> Any:
    return local.chain.evm.get_transaction_builder().decode(raw)


def ok(body: bytes, result: Any) -> httpx.Response:
    return answer_to(body, result=result)


def failed(body: bytes, message: str) -> httpx.Response:
    return answer_to(body, error={"code": -32000, "message": message})


def answer_to(body: bytes, **outcome: Any) -> httpx.Response:
    answer = {"jsonrpc": "2.0", "id": json.loads(body)["id"], **outcome}
    return httpx.Response(200, stream=Body(json.dumps(answer).encode()))


async def unreachable(_method: str, _body: bytes) -> httpx.Response:
    """An endpoint that is away."""
    raise httpx.ConnectError("refused")


def on_send(rpc: LocalRpc, act: Callable[[bytes], Awaitable[httpx.Response]]) -> list[bytes]:
    """``act`` answers raw transactions; everything else is answered rightly. Returns the transactions
    seen."""
    seen: list[bytes] = []

    async def fault(method: str, body: bytes) -> httpx.Response:
        if method != "eth_sendRawTransaction":
            return rpc.answer(body)
        seen.append(raw_of(body))
        return await act(body)

    rpc.faults["one"] = fault
    return seen


def watched(rpc: LocalRpc) -> list[bytes]:
    """All is answered rightly. Returns the transactions seen."""

    async def act(body: bytes) -> httpx.Response:
        return rpc.answer(body)

    return on_send(rpc, act)


def losing_answers(rpc: LocalRpc) -> list[bytes]:
    """Transactions are mined, and who sent them hears garbage."""

    async def act(body: bytes) -> httpx.Response:
        rpc.answer(body)
        return httpx.Response(502)

    return on_send(rpc, act)


def slow_to_estimate(rpc: LocalRpc) -> None:
    """An estimate takes five seconds."""

    async def fault(method: str, body: bytes) -> httpx.Response:
        if method == "eth_estimateGas":
            await trio.sleep(5)
        return rpc.answer(body)

    rpc.faults["one"] = fault


def reorganise(local: LocalChain, before: Any) -> None:
    """The blocks since ``before`` are gone, and so are the transactions that were in them."""
    local.chain.revert(before)
    local.pool.clear()


def swallowing(rpc: LocalRpc, times: int) -> list[bytes]:
    """So many raw transactions are accepted and then lost."""
    swallowed = 0

    async def act(body: bytes) -> httpx.Response:
        nonlocal swallowed
        if swallowed < times:
            swallowed += 1
            return ok(body, "0x" + keccak256(raw_of(body)).hex())
        return rpc.answer(body)

    return on_send(rpc, act)


def by_hand(local: LocalChain, nonce: int, *, most: int = 10**10, name: str = "payer") -> bytes:
    """A raw transaction with the same key, as another program sends it."""
    return sign_transaction(
        chain_id=local.chain.chain_id, account=ADDRESS[name], sign=lambda digest: sign(name, digest),
        nonce=nonce, to=ADDRESS["treasury"], data=b"", gas=21_000, fees=Fees(most=most, tip=1),
    ).raw  # fmt: skip


# ---- confirmations


async def test_an_outcome_is_reported_when_it_is_as_deep_as_the_profile_says(
    rpc: LocalRpc, local: LocalChain, autojump_clock: Clock
) -> None:
    async with sending(rpc, confirmations=3) as waiting:
        await trio.sleep(10)
        assert received(local) == 7
        local.mine()
        await trio.sleep(10)
        assert not waiting.over
        local.mine()
        await trio.sleep(10)
        assert waiting.outcome is not None
        assert waiting.outcome.block == local.chain.height - 2


async def test_polls_slow_down_while_nothing_happens(
    rpc: LocalRpc, local: LocalChain, autojump_clock: Clock
) -> None:
    local.pool.automine = False
    async with running(rpc, limits=limits(replace_after_s=1e6)) as ledger, trio.open_nursery() as nursery:
        Waiting(nursery, ledger)
        await trio.sleep(600)
        assert 250 <= rpc.count("eth_blockNumber") <= 320
        nursery.cancel_scope.cancel()


async def test_nothing_is_asked_while_nothing_is_on_its_way(
    rpc: LocalRpc, local: LocalChain, autojump_clock: Clock
) -> None:
    async with running(rpc, limits=limits(final_s=60.0)) as ledger:
        await ledger.transact(GIFT)
        await trio.sleep(70)
        asked = len(rpc.asked)
        await trio.sleep(1_000)
        assert len(rpc.asked) == asked


# ---- stuck


async def test_a_swallowed_transaction_is_replaced_with_the_same_nonce_and_an_eighth_more(
    rpc: LocalRpc, local: LocalChain, autojump_clock: Clock
) -> None:
    seen = swallowing(rpc, 1)
    async with running(rpc) as ledger:
        outcome = await ledger.transact(GIFT)
    assert 30 <= trio.current_time() <= 45
    first, second = (decoded(local, raw) for raw in seen)
    assert first.nonce == second.nonce
    for field in ("max_fee_per_gas", "max_priority_fee_per_gas"):
        assert getattr(second, field) * 1000 >= getattr(first, field) * 1125
    assert outcome.transaction == keccak256(seen[1])
    assert received(local) == 7


async def test_a_transaction_that_waits_pays_more_and_more_up_to_the_cap_and_then_waits(
    rpc: LocalRpc, local: LocalChain, autojump_clock: Clock
) -> None:
    local.pool.automine = False
    base = local.chain.base_fee
    cap = 4 * base
    seen = watched(rpc)
    async with running(rpc, limits=limits(gas_price_max_wei=cap)) as ledger, trio.open_nursery() as nursery:
        with capture_logs() as logs:
            waiting = Waiting(nursery, ledger)
            await trio.sleep(1_000)
        offers = [decoded(local, raw).max_fee_per_gas for raw in seen]
        assert 2 * base <= offers[0]
        assert max(offers) <= cap
        rises = [later / sooner for sooner, later in pairwise(offers)]
        risen = [rise for rise in rises if rise != 1]
        assert len(risen) >= 4
        assert all(rise >= 1.125 for rise in risen)
        assert seen[-1] == seen[-2]  # at the cap: the same bytes once more
        assert "chain.stuck_at_fee_limit" in [log["event"] for log in logs]
        assert not waiting.over
        local.mine()
        await trio.sleep(5)
        assert waiting.outcome is not None
        assert waiting.outcome.transaction == keccak256(seen[-1])


async def test_a_cap_on_the_whole_transaction_counts_too(
    rpc: LocalRpc, local: LocalChain, autojump_clock: Clock
) -> None:
    local.pool.automine = False
    seen = watched(rpc)
    most = 45_000 * 5 * local.chain.base_fee
    async with (
        running(rpc, limits=limits(transaction_fee_max_wei=most)) as ledger,
        trio.open_nursery() as nursery,
    ):
        Waiting(nursery, ledger)
        await trio.sleep(500)
        nursery.cancel_scope.cancel()
    sent = [decoded(local, raw) for raw in seen]
    assert len({one.max_fee_per_gas for one in sent}) > 2
    assert all(one.gas * one.max_fee_per_gas <= most for one in sent)


async def test_the_version_that_is_mined_may_be_the_first_one(
    rpc: LocalRpc, local: LocalChain, autojump_clock: Clock
) -> None:
    held: list[bytes] = []

    async def act(body: bytes) -> httpx.Response:
        held.append(raw_of(body))
        return ok(body, "0x" + keccak256(raw_of(body)).hex())

    seen = on_send(rpc, act)
    async with sending(rpc) as waiting:
        await trio.sleep(100)
        assert len(seen) >= 3
        local.pool.submit(held[0])
        await trio.sleep(5)
        assert waiting.outcome is not None
        assert waiting.outcome.transaction == keccak256(held[0])
    assert received(local) == 7


async def test_only_the_lowest_nonce_is_replaced_and_the_rest_follow(
    rpc: LocalRpc, local: LocalChain, autojump_clock: Clock
) -> None:
    seen = swallowing(rpc, 1)
    async with running(rpc) as ledger, trio.open_nursery() as nursery:
        both = [Waiting(nursery, ledger), Waiting(nursery, ledger, Transfer(TO, 100))]
        await trio.sleep(20)
        assert not any(waiting.over for waiting in both)
        await trio.sleep(30)
        assert all(waiting.outcome is not None for waiting in both)
    first, *others = (int(decoded(local, raw).nonce) for raw in seen)
    assert others == [first + 1, first]
    assert received(local) == 107


# ---- nonces


async def test_someone_else_using_the_key_costs_another_nonce_and_nothing_else(
    rpc: LocalRpc, local: LocalChain, autojump_clock: Clock
) -> None:
    nonce = local.chain.nonce(PAYER)

    async def act(body: bytes) -> httpx.Response:
        if local.chain.nonce(PAYER) == nonce:
            local.pool.submit(by_hand(local, nonce))
        return rpc.answer(body)

    seen = on_send(rpc, act)
    async with running(rpc) as ledger:
        await ledger.transact(GIFT)
    assert [decoded(local, raw).nonce for raw in seen] == [nonce, nonce + 1]
    assert received(local) == 7


async def test_a_transaction_pushed_out_by_another_program_takes_a_new_nonce(
    rpc: LocalRpc, local: LocalChain, autojump_clock: Clock
) -> None:
    nonce = local.chain.nonce(PAYER)
    seen = swallowing(rpc, 1)
    async with sending(rpc) as waiting:
        await trio.sleep(1)
        local.pool.submit(by_hand(local, nonce))
        await trio.sleep(20)
        assert waiting.outcome is not None
    assert [decoded(local, raw).nonce for raw in seen] == [nonce, nonce + 1]
    assert received(local) == 7


async def test_a_nonce_that_another_program_holds_in_the_pool_is_left_to_it(
    rpc: LocalRpc, local: LocalChain, autojump_clock: Clock
) -> None:
    nonce = local.chain.nonce(PAYER)
    local.pool.automine = False
    local.pool.submit(by_hand(local, nonce, most=10**12))

    async def fault(method: str, body: bytes) -> httpx.Response:
        lagging = method == "eth_getTransactionCount" and rpc.count("eth_sendRawTransaction") == 0
        return ok(body, hex(nonce)) if lagging else rpc.answer(body)

    rpc.faults["one"] = fault
    async with sending(rpc) as waiting:
        await trio.sleep(2)
        local.mine(2)
        await trio.sleep(5)
        assert waiting.outcome is not None
    assert local.chain.nonce(PAYER) == nonce + 2
    assert received(local) == 7


async def test_a_lost_answer_never_sends_money_twice(
    rpc: LocalRpc, local: LocalChain, autojump_clock: Clock
) -> None:
    """The first endpoint mines it and answers garbage; the second says that the nonce is used."""

    seen = losing_answers(rpc)
    async with running(rpc, rpc_urls=[URL, OTHER_URL]) as ledger:
        outcome = await ledger.transact(GIFT)
    assert outcome.transaction == keccak256(seen[0])
    assert local.chain.nonce(PAYER) == decoded(local, seen[0]).nonce + 1
    assert received(local) == 7


async def test_a_refusal_after_a_lost_answer_is_not_believed(
    rpc: LocalRpc, local: LocalChain, autojump_clock: Clock
) -> None:
    """The first endpoint mines it and answers garbage; the second says that the wallet is empty."""

    async def poor(method: str, body: bytes) -> httpx.Response:
        if method != "eth_sendRawTransaction":
            return rpc.answer(body)
        return failed(body, "insufficient funds for gas * price + value")

    seen = losing_answers(rpc)
    rpc.faults["two"] = poor
    async with running(rpc, rpc_urls=[URL, OTHER_URL]) as ledger:
        outcome = await ledger.transact(GIFT)
    assert outcome.transaction == keccak256(seen[0])
    assert received(local) == 7


async def test_a_nonce_taken_in_a_block_that_may_yet_go_away_is_not_given_up(
    rpc: LocalRpc, local: LocalChain, autojump_clock: Clock
) -> None:
    nonce = local.chain.nonce(PAYER)
    seen = swallowing(rpc, 1)
    async with sending(rpc, confirmations=3) as waiting:
        await trio.sleep(1)
        local.pool.submit(by_hand(local, nonce))
        await trio.sleep(60)
        assert len(seen) == 1
        local.mine(2)
        await trio.sleep(10)
        local.mine(2)
        await trio.sleep(10)
        assert waiting.outcome is not None
    assert len(seen) == 2
    assert received(local) == 7


async def test_a_node_that_is_slow_with_its_receipts_is_no_reason_to_send_again(
    rpc: LocalRpc, local: LocalChain, autojump_clock: Clock
) -> None:
    withholding(rpc, lambda: trio.current_time() < 12, "eth_getTransactionReceipt", "eth_getLogs")
    async with running(rpc) as ledger:
        await ledger.transact(GIFT)
    assert trio.current_time() >= 12
    assert rpc.count("eth_sendRawTransaction") == 1
    assert received(local) == 7


def withholding(rpc: LocalRpc, when: Callable[[], bool], *methods: str) -> None:
    """These methods give null while ``when`` holds, as at nodes whose indexes are behind their blocks."""

    async def fault(method: str, body: bytes) -> httpx.Response:
        return ok(body, None) if method in methods and when() else rpc.answer(body)

    rpc.faults["one"] = fault


HIDDEN = ("eth_getTransactionReceipt", "eth_getTransactionByHash")


async def test_without_any_receipt_an_order_is_found_by_the_block_it_is_in_and_what_it_did(
    rpc: LocalRpc, local: LocalChain, autojump_clock: Clock
) -> None:
    withholding(rpc, lambda: True, *HIDDEN)
    local.mine(40)
    async with running(rpc) as ledger:
        outcome = await ledger.transact(GIFT)
    assert (outcome.gas_used, outcome.fee_wei) == (None, None)  # nobody said
    assert outcome.block == local.chain.height
    assert rpc.count("eth_sendRawTransaction") == 1
    assert received(local) == 7


async def test_a_used_nonce_that_nobody_explains_is_never_an_order_to_send_anew(
    rpc: LocalRpc, local: LocalChain, autojump_clock: Clock
) -> None:
    withholding(rpc, lambda: trio.current_time() < 200, *HIDDEN, "eth_getLogs")
    async with running(rpc) as ledger:
        with pytest.raises(
            UnseenError, match=r"sent, not seen yet: 0x[0-9a-f]{64} \(send 0\.000007 USDC"
        ) as caught:
            await ledger.transact(GIFT)
        assert trio.current_time() < 150
        assert (rpc.count("eth_sendRawTransaction"), received(local)) == (1, 7)
        # The same once more waits for the one that is on its way.
        outcome = await ledger.transact(GIFT)
        assert outcome.transaction == caught.value.transaction
        assert trio.current_time() >= 200
        assert (rpc.count("eth_sendRawTransaction"), received(local)) == (1, 7)
        await ledger.transact(GIFT)  # that one has ended: this is another
    assert received(local) == 14


async def test_a_service_that_sends_twice_and_tells_of_the_second_time_costs_nothing(
    rpc: LocalRpc, local: LocalChain, autojump_clock: Clock
) -> None:
    """A balancer that repeats a request at another node: "nonce too low" is about our own transaction."""

    async def act(body: bytes) -> httpx.Response:
        rpc.answer(body)
        return failed(body, "nonce too low")

    seen = on_send(rpc, act)
    async with running(rpc) as ledger:
        outcome = await ledger.transact(GIFT)
    assert [keccak256(raw) for raw in seen] == [outcome.transaction]
    assert received(local) == 7


async def test_an_order_given_up_by_who_waited_is_joined_by_the_same_order(
    rpc: LocalRpc, local: LocalChain, autojump_clock: Clock
) -> None:
    local.pool.automine = False
    async with running(rpc) as ledger, trio.open_nursery() as nursery:
        first = Waiting(nursery, ledger)
        await trio.sleep(2)
        first.scope.cancel()
        again, other = Waiting(nursery, ledger), Waiting(nursery, ledger, Transfer(TO, 8))
        await trio.sleep(2)
        local.mine(2)
        await trio.sleep(5)
        assert again.outcome is not None
        assert other.outcome is not None
    assert received(local) == 15


async def test_a_gap_left_by_an_earlier_life_is_filled(
    rpc: LocalRpc, local: LocalChain, autojump_clock: Clock
) -> None:
    nonce = local.chain.nonce(PAYER)
    local.pool.submit(by_hand(local, nonce, most=1))  # below the base fee: it waits for ever
    assert local.chain.nonce(PAYER) == nonce
    async with running(rpc) as ledger, trio.open_nursery() as nursery:
        with capture_logs() as logs:
            waiting = Waiting(nursery, ledger)
            await trio.sleep(20)
            assert not waiting.over
            await trio.sleep(30)
        assert waiting.outcome is not None
        assert "chain.gap_filled" in [log["event"] for log in logs]
    assert local.chain.nonce(PAYER) == nonce + 2
    assert received(local) == 7


async def test_what_an_earlier_life_sent_is_not_sent_over(
    rpc: LocalRpc, local: LocalChain, autojump_clock: Clock
) -> None:
    nonce = local.chain.nonce(PAYER)
    local.pool.automine = False
    local.pool.submit(by_hand(local, nonce))
    async with sending(rpc) as waiting:
        await trio.sleep(2)
        local.mine()
        await trio.sleep(5)
        assert waiting.outcome is not None
        assert waiting.outcome.block == local.chain.height
    assert local.chain.nonce(PAYER) == nonce + 2


# ---- reorganisations


async def test_a_reorganisation_after_the_report_has_the_same_bytes_sent_again(
    rpc: LocalRpc, local: LocalChain, autojump_clock: Clock
) -> None:
    before = local.chain.snapshot()
    seen = watched(rpc)
    async with running(rpc) as ledger:
        outcome = await ledger.transact(GIFT)
        reorganise(local, before)
        assert received(local) == 0
        with capture_logs() as logs:
            await trio.sleep(10)
    assert received(local) == 7
    assert [keccak256(raw) for raw in seen] == [outcome.transaction] * 2
    assert {"event": "chain.reorged", "dropped": True}.items() <= logs[0].items()


async def test_a_reorganisation_before_the_report_only_delays_it(
    rpc: LocalRpc, local: LocalChain, autojump_clock: Clock
) -> None:
    before = local.chain.snapshot()
    async with sending(rpc, confirmations=3) as waiting:
        await trio.sleep(5)
        local.mine()
        await trio.sleep(5)
        reorganise(local, before)
        await trio.sleep(5)
        assert not waiting.over
        local.mine(2)
        await trio.sleep(5)
        assert waiting.outcome is not None
        assert waiting.outcome.block == local.chain.height - 2
    assert received(local) == 7


async def test_what_is_final_is_no_longer_watched(
    rpc: LocalRpc, local: LocalChain, autojump_clock: Clock
) -> None:
    before = local.chain.snapshot()
    async with running(rpc) as ledger:
        await ledger.transact(GIFT)
        local.mine(30)
        await trio.sleep(10)
        reorganise(local, before)
        await trio.sleep(1_000)
    assert received(local) == 0


async def test_an_order_sent_after_a_reorganisation_waits_for_the_nonces_before_it(
    rpc: LocalRpc, local: LocalChain, autojump_clock: Clock
) -> None:
    before = local.chain.snapshot()
    async with running(rpc) as ledger:
        await ledger.transact(GIFT)
        reorganise(local, before)
        await ledger.transact(Transfer(TO, 100))
    assert received(local) == 107


# ---- refusals


async def test_a_transaction_that_fails_in_its_block_is_reported_with_the_contracts_reason(
    rpc: LocalRpc, local: LocalChain, autojump_clock: Clock
) -> None:
    """Two relayers, one open: both estimates hold, and one of them loses."""
    reader = await rpc.connect()
    scene = Scene(None, reader)  # type: ignore[arg-type]
    terms = await scene.terms()
    call = await scene.open_call(terms)
    local.pool.automine = False
    async with (
        running(rpc, "host") as host,
        running(rpc, "rival") as rival,
        trio.open_nursery() as nursery,
    ):
        first = Waiting(nursery, host, call)
        await trio.sleep(1)
        second = Waiting(nursery, rival, call)
        await trio.sleep(1)
        local.mine()
        await trio.sleep(5)
        assert first.outcome is not None
        assert isinstance(second.error, RevertedError)
        assert second.error.reason == "JobMarketplace: exists"
        assert second.error.gas_used > 21_000
    await reader.aclose()


async def test_what_would_fail_is_refused_unsent(rpc: LocalRpc, autojump_clock: Clock) -> None:
    async with running(rpc) as ledger:
        with pytest.raises(RevertedError) as refused:
            await ledger.transact(Transfer(TO, BALANCE + 1))
    assert (refused.value.reason, refused.value.gas_used) == ("ERC20: transfer amount exceeds balance", 0)
    assert rpc.count("eth_sendRawTransaction") == 0


async def test_a_call_that_burns_gas_is_refused_unsent(
    rpc: LocalRpc, local: LocalChain, autojump_clock: Clock
) -> None:
    async def fault(method: str, body: bytes) -> httpx.Response:
        return ok(body, hex(1_000_000)) if method == "eth_estimateGas" else rpc.answer(body)

    rpc.faults["one"] = fault
    async with running(rpc) as ledger:
        with pytest.raises(ChainError, match="1000000 gas, more than the 300000"):
            await ledger.transact(GIFT)
    assert rpc.count("eth_sendRawTransaction") == 0


async def test_gas_that_costs_more_than_the_limit_is_not_bought(
    rpc: LocalRpc, local: LocalChain, autojump_clock: Clock
) -> None:
    base = local.chain.base_fee
    async with running(rpc, limits=limits(gas_price_max_wei=base)) as ledger:
        with pytest.raises(ChainError, match="gas_price_max_wei"):
            await ledger.transact(GIFT)
    assert rpc.count("eth_sendRawTransaction") == 0
    async with running(rpc, limits=limits(gas_price_max_wei=base + 10**7)) as ledger:
        await ledger.transact(GIFT)


async def test_a_wallet_without_ether_is_told_how_much_and_where(
    rpc: LocalRpc, local: LocalChain, autojump_clock: Clock
) -> None:
    secret = keccak256(b"a poor host")
    poor = key_address(secret)
    options: dict[str, Any] = {"account": poor, "sign": lambda digest: sign_digest(secret, digest)}
    async with running(rpc, **options) as ledger:
        with pytest.raises(ChainError, match=rf"0\.0\d+ ether .* send it to {shown_address(poor)}") as caught:
            await ledger.transact(Transfer(TO, 0))
        missing = int(str(caught.value).split("at least 0.")[1].split(" ")[0].ljust(18, "0"))
        local.chain.send(ADDRESS["deployer"], poor, b"", value=missing)
        await ledger.transact(Transfer(TO, 0))


async def test_a_replacement_that_cant_be_afforded_leaves_the_first_version_standing(
    rpc: LocalRpc, local: LocalChain, autojump_clock: Clock
) -> None:
    secret = keccak256(b"a host with little")
    poor = key_address(secret)
    seen = watched(rpc)
    options: dict[str, Any] = {"account": poor, "sign": lambda digest: sign_digest(secret, digest)}
    async with running(rpc, **options) as ledger, trio.open_nursery() as nursery:
        with pytest.raises(ChainError, match="lacks at least"):
            await ledger.transact(Transfer(TO, 0))
        price = decoded(local, seen[0])
        enough = price.gas * price.max_fee_per_gas * 105 // 100
        local.chain.send(ADDRESS["deployer"], poor, b"", value=enough)
        local.pool.automine = False
        with capture_logs() as logs:
            waiting = Waiting(nursery, ledger, Transfer(TO, 0))
            await trio.sleep(200)
        assert "chain.not_replaced" in [log["event"] for log in logs]
        offers = [decoded(local, raw).max_fee_per_gas for raw in seen]
        assert len(offers) >= 6
        assert len(set(offers[-3:])) == 1  # none builds on what was refused
        local.mine()
        await trio.sleep(5)
        assert waiting.outcome is not None
        mined = next(raw for raw in seen if keccak256(raw) == waiting.outcome.transaction)
        assert decoded(local, mined).max_fee_per_gas < offers[-1]


async def test_a_signer_of_another_account_sends_nothing(rpc: LocalRpc, autojump_clock: Clock) -> None:
    async with running(rpc, sign=lambda digest: sign("rival", digest)) as ledger:
        with pytest.raises(ChainError, match=f"did not sign as {shown_address(PAYER)}"):
            await ledger.transact(GIFT)
    assert rpc.count("eth_sendRawTransaction") == 0


# ---- the RPC goes away


async def test_an_endpoint_that_is_away_for_a_minute_after_sending_only_delays(
    rpc: LocalRpc, local: LocalChain, autojump_clock: Clock
) -> None:
    gone = False

    async def fault(method: str, body: bytes) -> httpx.Response:
        nonlocal gone
        if gone:
            raise httpx.ConnectError("refused")
        answer = rpc.answer(body)
        gone = method == "eth_sendRawTransaction"
        return answer

    rpc.faults["one"] = fault
    async with running(rpc) as ledger, trio.open_nursery() as nursery:
        with capture_logs() as logs:
            waiting = Waiting(nursery, ledger)
            await trio.sleep(60)
            assert not waiting.over
            gone = False
            rpc.faults.clear()
            await trio.sleep(60)
        assert waiting.outcome is not None
        events = [log["event"] for log in logs]
        assert events.count("chain.unavailable") == 1
    assert received(local) == 7


async def test_an_endpoint_that_dies_while_sending_gets_the_same_bytes_again(
    rpc: LocalRpc, local: LocalChain, autojump_clock: Clock
) -> None:
    async def act(body: bytes) -> httpx.Response:
        if trio.current_time() < 60:
            raise httpx.ReadError("reset")
        return rpc.answer(body)

    seen = on_send(rpc, act)
    async with running(rpc) as ledger:
        outcome = await ledger.transact(GIFT)
    assert len(seen) > 1
    assert {keccak256(raw) for raw in seen} == {outcome.transaction}
    assert received(local) == 7


async def test_while_no_endpoint_answers_a_new_order_is_refused_and_not_kept(
    rpc: LocalRpc, local: LocalChain, autojump_clock: Clock
) -> None:
    async with running(rpc) as ledger:
        rpc.faults["one"] = unreachable
        with pytest.raises(UnavailableError, match="can't be reached"):
            await ledger.transact(GIFT)
        rpc.faults.clear()
        await trio.sleep(1_000)
        assert received(local) == 0
        await ledger.transact(GIFT)
    assert received(local) == 7


async def test_with_one_of_two_endpoints_dead_everything_works(
    rpc: LocalRpc, local: LocalChain, autojump_clock: Clock
) -> None:
    rpc.faults["one"] = unreachable
    async with running(rpc, rpc_urls=[URL, OTHER_URL]) as ledger:
        await ledger.transact(GIFT)
        assert [status.last_error for status in ledger.status()] == ["can't be reached", None]


async def test_a_chain_id_that_changes_stops_all_sending(
    rpc: LocalRpc, local: LocalChain, autojump_clock: Clock
) -> None:
    async with running(rpc) as ledger:
        await ledger.transact(GIFT)

        async def fault(method: str, body: bytes) -> httpx.Response:
            return ok(body, "0x1") if method == "eth_chainId" else rpc.answer(body)

        rpc.faults["one"] = fault
        await trio.sleep(61)
        with pytest.raises(ChainError, match="serves chain 1"):
            await ledger.transact(GIFT)
    assert received(local) == 7


# ---- who waits


async def test_cancelled_before_it_was_signed_an_order_is_not_sent(
    rpc: LocalRpc, local: LocalChain, autojump_clock: Clock
) -> None:
    slow_to_estimate(rpc)
    async with running(rpc) as ledger:
        with trio.move_on_after(1):
            await ledger.transact(GIFT)
        await trio.sleep(100)
        assert received(local) == 0
        await ledger.transact(Transfer(TO, 100))
    assert received(local) == 100


async def test_cancelled_after_it_was_sent_a_transaction_is_followed_to_its_end(
    rpc: LocalRpc, local: LocalChain, autojump_clock: Clock
) -> None:
    seen = swallowing(rpc, 1)
    async with running(rpc) as ledger:
        with trio.move_on_after(5) as scope:
            await ledger.transact(GIFT)
        assert scope.cancelled_caught
        assert ledger.unmined == 1
        await trio.sleep(60)
        assert ledger.unmined == 0
    assert len(seen) == 2
    assert received(local) == 7


async def test_no_more_are_on_their_way_than_allowed_and_the_rest_wait(
    rpc: LocalRpc, local: LocalChain, autojump_clock: Clock
) -> None:
    local.pool.automine = False
    async with (
        running(rpc, limits=limits(inflight_max=2, queue=1)) as ledger,
        trio.open_nursery() as nursery,
    ):
        waiting = [Waiting(nursery, ledger, Transfer(TO, 1)) for _ in range(6)]
        await trio.sleep(5)
        assert ledger.unmined == 2
        assert rpc.count("eth_sendRawTransaction") == 2
        for _ in range(3):
            local.mine(2)
            await trio.sleep(5)
        assert all(one.outcome is not None for one in waiting)
    assert received(local) == 6


async def test_when_the_ledger_closes_nobody_waits_for_ever(
    rpc: LocalRpc, local: LocalChain, autojump_clock: Clock
) -> None:
    local.pool.automine = False
    ledger = await rpc.connect("payer", limits=limits(inflight_max=1, queue=1))
    with trio.fail_after(100):
        async with trio.open_nursery() as nursery, trio.open_nursery() as inner:
            await inner.start(ledger.run)
            waiting = [Waiting(nursery, ledger, Transfer(TO, 1)) for _ in range(4)]
            await trio.sleep(5)
            inner.cancel_scope.cancel()
        answers = sorted(str(one.error).split(":")[0] for one in waiting)
    await ledger.aclose()
    assert answers[:3] == ["nothing was sent"] * 3
    assert answers[3].startswith("the ledger closed before transaction 0x")


async def test_an_order_whose_estimate_runs_when_the_ledger_closes_fails(
    rpc: LocalRpc, autojump_clock: Clock
) -> None:
    slow_to_estimate(rpc)
    ledger = await rpc.connect("payer")
    async with trio.open_nursery() as nursery, trio.open_nursery() as inner:
        await inner.start(ledger.run)
        waiting = Waiting(nursery, ledger)
        await trio.sleep(1)
        inner.cancel_scope.cancel()
    await ledger.aclose()
    assert str(waiting.error) == "nothing was sent: the ledger is closing"


async def test_a_ledger_whose_task_does_not_run_says_so(rpc: LocalRpc, autojump_clock: Clock) -> None:
    ledger = await rpc.connect("payer")
    with pytest.raises(ChainError, match="task is not running"):
        await ledger.transact(GIFT)
    await ledger.aclose()


# ---- fees


@pytest.mark.parametrize(
    ("old", "now", "most", "new"),
    [
        ((1_000, 80), (500, 10), 10_000, (1_125, 90)),
        ((1_000, 80), (5_000, 400), 10_000, (5_000, 400)),
        ((1_000, 80), (50_000, 400), 10_000, (10_000, 400)),
        ((1_001, 81), (0, 0), 10_000, (1_127, 92)),
        ((1, 0), (0, 0), 10_000, (2, 1)),
        ((8_889, 80), (0, 0), 10_000, None),
        ((8_888, 80), (0, 0), 10_000, (9_999, 90)),
    ],
)
def test_a_raise_is_an_eighth_at_least_and_never_above_the_cap(
    old: tuple[int, int], now: tuple[int, int], most: int, new: tuple[int, int] | None
) -> None:
    found = raised(Fees(most=old[0], tip=old[1]), Fees(most=now[0], tip=now[1]), most)
    assert (None if found is None else (found.most, found.tip)) == new


@pytest.mark.parametrize(
    ("base", "tips", "most", "tip"),
    [
        (100, [3, 1, 2], 202, 2),
        (100, [], 201, 1),
        (0, [0, 0, 0], 1, 1),
        (7, [5], 19, 5),
        (7, [25 * GWEI], 14 + GWEI // 10, GWEI // 10),  # true or not: it is not ours to burn
        (5 * GWEI, [25 * GWEI], 15 * GWEI, 5 * GWEI),
    ],
)
def test_an_offer_covers_twice_the_base_fee_and_the_median_tip(
    base: int, tips: list[int], most: int, tip: int
) -> None:
    assert offer(base, tips) == Fees(most=most, tip=tip)


def telling_tips(rpc: LocalRpc, endpoint: str, tip: int) -> None:
    """An endpoint that reports this tip for each of the last blocks."""

    async def fault(method: str, body: bytes) -> httpx.Response:
        if method != "eth_feeHistory":
            return rpc.answer(body)
        count = int(json.loads(body)["params"][0], 16)
        assert count == 20
        base = hex(rpc.local.chain.base_fee)
        return ok(body, {"baseFeePerGas": [base] * (count + 1), "reward": [[hex(tip)]] * count})

    rpc.faults[endpoint] = fault


@pytest.mark.parametrize("answers", [(9, 4), (4, 9), (25 * GWEI, 5)])
async def test_of_two_endpoints_that_differ_the_lower_tip_is_paid(
    rpc: LocalRpc, local: LocalChain, answers: tuple[int, int], autojump_clock: Clock
) -> None:
    for endpoint, tip in zip(("one", "two"), answers, strict=True):
        telling_tips(rpc, endpoint, tip)
    async with running(rpc, rpc_urls=[URL, OTHER_URL]) as ledger:
        outcome = await ledger.transact(GIFT)
    raw = local.eth.methods()["eth_getTransactionByHash"]("0x" + outcome.transaction.hex())
    assert int(raw["maxPriorityFeePerGas"], 16) == min(answers)


async def test_an_order_costs_no_more_than_its_caller_allows(
    rpc: LocalRpc, local: LocalChain, autojump_clock: Clock
) -> None:
    seen = watched(rpc)
    local.pool.automine = False
    most = 60_000 * 3 * local.chain.base_fee
    async with running(rpc) as ledger:
        with pytest.raises(GasTooDearError, match="more than it is worth yet"):
            await ledger.transact(GIFT, fee_max_wei=most // 100)
        assert seen == []
        with trio.move_on_after(500):
            await ledger.transact(GIFT, fee_max_wei=most)
        offered = [decoded(local, raw) for raw in seen]
        assert all(each.gas * each.max_fee_per_gas <= most for each in offered)
        count = len(seen)
        with trio.move_on_after(100):  # the same later, when it may cost more: it joins, and pays more
            await ledger.transact(GIFT, fee_max_wei=4 * most)
    (nonce,) = {decoded(local, raw).nonce for raw in seen}
    assert nonce == local.chain.nonce(PAYER)
    assert max(decoded(local, raw).max_fee_per_gas for raw in seen[count:]) * 60_000 > most


# ---- everything at once


@pytest.mark.parametrize("seed", range(2))
async def test_whatever_endpoints_do_each_order_is_carried_out_once_or_refused(
    seed: int, rpc: LocalRpc, local: LocalChain, autojump_clock: Clock
) -> None:
    """Lost questions, lost answers, garbage, swallowed transactions, a second program with the same key.

    Each gift is another power of two: what was received says which orders were carried out, and how often.
    """
    chance = Random(seed)

    async def fault(method: str, body: bytes) -> httpx.Response:
        await trio.sleep(chance.uniform(0, 0.5))
        dice = chance.random()
        if dice < 0.08:
            raise httpx.ConnectError("refused")
        if dice < 0.12:
            return httpx.Response(503)
        if dice < 0.16:
            await trio.sleep(60)
        if dice < 0.22:
            rpc.answer(body)  # done, and the answer is lost
            return httpx.Response(200, stream=Body(b"<html>"))
        if method == "eth_sendRawTransaction":
            if dice < 0.32:
                return ok(body, "0x" + keccak256(raw_of(body)).hex())  # and never heard of again
            if dice < 0.42:
                local.pool.submit(by_hand(local, local.chain.nonce(PAYER)))
        return rpc.answer(body)

    gifts = [1 << number for number in range(12)]
    done: dict[int, Outcome | ChainError] = {}
    async with running(rpc, rpc_urls=[URL, OTHER_URL]) as ledger:
        rpc.faults |= {"one": fault, "two": fault}

        async def give(amount: int) -> None:
            await trio.sleep(chance.uniform(0, 120))
            try:
                done[amount] = await ledger.transact(Transfer(TO, amount))
            except ChainError as error:
                done[amount] = error

        with trio.fail_after(3_600):
            async with trio.open_nursery() as nursery:
                for amount in gifts:
                    nursery.start_soon(give, amount)
        await trio.sleep(300)
        assert ledger.unmined == 0
    carried_out = sum(amount for amount, end in done.items() if isinstance(end, Outcome))
    assert received(local) == carried_out
    assert len(done) == len(gifts)
    assert sum(isinstance(end, Outcome) for end in done.values()) >= 9
