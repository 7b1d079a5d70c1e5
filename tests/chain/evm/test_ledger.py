"""What only the EVM ledger has: connecting, domains, paging under a node's limits; once over real sockets."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import httpx
import pytest
import trio
import trio.testing

from p2pnode.chain.abi import artifact
from p2pnode.chain.dev.devchain import open_dev_chain
from p2pnode.chain.evm.calls import market_events, market_topics, proposal_event, proposal_topic
from p2pnode.chain.evm.ledger import EvmLedger, EvmLimits
from p2pnode.chain.evm.node import Log
from p2pnode.chain.evm.rpc import RpcLimits
from p2pnode.chain.evm.rpc_answers import RpcError
from p2pnode.chain.ledger import (
    Approve,
    Attest,
    Close,
    EscrowState,
    LedgerEvent,
    Outcome,
    Register,
    RevertedError,
    Transfer,
    UnavailableError,
    UnseenError,
)
from p2pnode.chain.profile import profile_of
from p2pnode.errors import ChainError
from p2pnode.ids import ModelId, SessionId
from p2pnode.protocols.crypto import abi_encode, keccak256, key_address, sign_digest
from p2pnode.tasks import background_task
from tests.chain.contracts.support import ADDRESS, BALANCE
from tests.chain.evm_world import OTHER_URL, URL, Body, LocalChain, LocalRpc
from tests.chain.ledger_conformance import Scene, follow

Clock = trio.testing.MockClock
MARKET = b"\x0a" * 20


def altering(rpc: LocalRpc, method: str, alter: Callable[[Any, Any], Any]) -> None:
    """``alter(params, result)`` replaces a result; an ``RpcError`` that it gives is the answer."""

    async def fault(asked: str, body: bytes) -> httpx.Response:
        if asked != method:
            return rpc.answer(body)
        request, answer = json.loads(body), json.loads(rpc.local.rpc.answer(body))
        try:
            altered = alter(request["params"], answer.get("result"))
        except RpcError as refused:
            answer = {**answer, "error": {"code": refused.code, "message": refused.said}}
        else:
            if altered is not None:
                result = None if isinstance(altered, Null) else altered
                answer = {"jsonrpc": "2.0", "id": request["id"], "result": result}
        return httpx.Response(200, stream=Body(json.dumps(answer).encode()))

    rpc.faults["one"] = fault


def selector(contract: str, name: str, arguments: int = 0) -> str:
    return "0x" + artifact(contract).function(name, arguments).selector.hex()


def answering(selected: str, answer: bytes) -> Callable[[Any, Any], Any]:
    """Calls of one function get this answer."""

    def alter(params: Any, result: Any) -> Any:
        return "0x" + answer.hex() if params[0]["data"].startswith(selected) else result

    return alter


class Null:
    """An answer of null, where None stands for an answer left as it is."""


def saying(fields: dict[str, str]) -> Callable[[Any, Any], Any]:
    """Receipts with these fields replaced."""

    def alter(params: Any, result: Any) -> Any:
        return None if result is None else result | fields

    return alter


def abi_text(*texts: str) -> bytes:
    from eth_abi.abi import encode

    return bytes(encode(["string"] * len(texts), texts))


# ---- connecting


async def test_the_domains_are_read_from_token_and_market(rpc: LocalRpc, local: LocalChain) -> None:
    ledger = await rpc.connect()
    found = ledger.domains
    assert (found.token.name, found.token.version) == ("USD Coin", "2")
    assert found.token.contract == local.made.usdc.address
    assert found.market.contract == local.made.market.address
    assert found.chain_id == local.chain.chain_id
    assert found.treasury == ADDRESS["treasury"]
    assert found.node_registry == local.made.nodes.address
    await ledger.aclose()


async def test_a_token_whose_name_is_not_what_it_signs_for_is_refused(rpc: LocalRpc) -> None:
    altering(rpc, "eth_call", answering(selector("USDC", "name"), abi_text("USDC")))
    with pytest.raises(ChainError, match=r'says it is "USDC" version "2".*DOMAIN_SEPARATOR.*Correct usdc'):
        await rpc.connect()


async def test_a_token_with_eip_5267_is_asked_there(rpc: LocalRpc, local: LocalChain) -> None:
    from eth_abi.abi import encode

    kinds = ["bytes1", "string", "string", "uint256", "address", "bytes32", "uint256[]"]
    token = "0x" + local.made.usdc.address.hex()
    fields = encode(kinds, [b"\x0f", "USD Coin", "2", local.chain.chain_id, token, bytes(32), []])
    asked = "0x" + keccak256(b"eip712Domain()")[:4].hex()
    altering(rpc, "eth_call", answering(asked, bytes(fields)))
    ledger = await rpc.connect()
    assert ledger.domains.token.name == "USD Coin"
    await ledger.aclose()
    fields = encode(kinds, [b"\x0f", "Fool's Coin", "2", local.chain.chain_id, token, bytes(32), []])
    altering(rpc, "eth_call", answering(asked, bytes(fields)))
    with pytest.raises(ChainError, match="Fool's Coin"):
        await rpc.connect()


async def test_a_market_that_numbers_sessions_otherwise_is_refused(rpc: LocalRpc) -> None:
    altering(rpc, "eth_call", answering(selector("JobMarketplace", "session_id", 1), bytes(32)))
    with pytest.raises(ChainError, match=r"job_marketplace 0x.* numbers sessions in another way"):
        await rpc.connect()


async def test_a_market_paid_in_another_token_is_refused(rpc: LocalRpc) -> None:
    altering(rpc, "eth_call", answering(selector("JobMarketplace", "usdc"), abi_encode(b"\x07" * 20)))
    with pytest.raises(ChainError, match="paid in another token: correct usdc"):
        await rpc.connect()


@pytest.mark.parametrize(("field", "kind"), [("usdc", "no USDC"), ("job_marketplace", "no JobMarketplace")])
async def test_an_address_where_nothing_stands_is_named(rpc: LocalRpc, field: str, kind: str) -> None:
    options: dict[str, Any] = {field: b"\x09" * 20}
    with pytest.raises(ChainError, match=f"0x{'09' * 20} is {kind}"):
        await rpc.connect(**options)


async def test_a_market_given_as_the_token_is_found_out(rpc: LocalRpc, local: LocalChain) -> None:
    with pytest.raises(ChainError, match="is no USDC"):
        await rpc.connect(usdc=local.made.market.address)


async def test_another_chain_is_named_with_both_ids(rpc: LocalRpc, local: LocalChain) -> None:
    with pytest.raises(ChainError, match=f"serves chain {local.chain.chain_id}, not 1: correct chain_id"):
        await rpc.connect(chain_id=1)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"account": bytes(20)}, "both or neither"),
        ({"sign": lambda digest: digest}, "both or neither"),
        ({"confirmations": 0}, "at least 1"),
        ({"rpc_urls": []}, "rpc_urls"),
    ],
)
async def test_half_a_configuration_is_an_error(rpc: LocalRpc, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ChainError, match=says):
        await rpc.connect(**options)


async def test_when_nobody_answers_connecting_says_who_said_what(
    rpc: LocalRpc, autojump_clock: Clock
) -> None:
    async def down(method: str, body: bytes) -> httpx.Response:
        raise httpx.ConnectError("refused")

    async def busy(method: str, body: bytes) -> httpx.Response:
        return httpx.Response(429)

    rpc.faults |= {"one": down, "two": busy}
    with pytest.raises(UnavailableError) as caught:
        await rpc.connect(rpc_urls=[URL, OTHER_URL])
    assert "http://one.invalid/… can't be reached; http://two.invalid answered HTTP 429" in str(caught.value)
    assert "secret-key" not in str(caught.value)


async def test_an_endpoint_that_was_left_meanwhile_is_no_witness_of_its_own_word(
    rpc: LocalRpc, autojump_clock: Clock
) -> None:
    selector = keccak256(b"session(bytes32)")[:4].hex()
    closed = b"".join(number.to_bytes(32, "big") for number in (2, 0, 5_000))
    up = True

    async def lying(method: str, body: bytes) -> httpx.Response:
        if not up:
            raise httpx.ConnectError("refused")
        asked = json.loads(body)
        if method == "eth_call" and asked["params"][0]["data"].startswith(f"0x{selector}"):
            said = {"jsonrpc": "2.0", "id": asked["id"], "result": "0x" + closed.hex()}
            return httpx.Response(200, stream=Body(json.dumps(said).encode()))
        return rpc.answer(body)

    rpc.faults["one"] = lying
    ledger = await rpc.connect(rpc_urls=[URL, OTHER_URL])
    session = SessionId(bytes(32))
    state = await ledger.session(session)
    assert (state.status, state.recorded) == ("closed", 5_000)
    up = False
    await ledger.head()  # the other one is the first to be asked from now on
    up = True
    await trio.sleep(60)
    assert not await ledger.confirmed(session, state)
    rpc.faults["two"] = lying
    assert await ledger.confirmed(session, state)  # two that say so are believed
    await ledger.aclose()


async def test_a_ledger_that_only_reads_has_nothing_to_run(rpc: LocalRpc) -> None:
    ledger = await rpc.connect()
    async with trio.open_nursery() as nursery:
        await nursery.start(ledger.run)
    assert ledger.unmined == 0
    await ledger.aclose()


# ---- events


async def some_events(local: LocalChain, rpc: LocalRpc) -> list[LedgerEvent]:
    """Two sessions, opened and closed, some blocks apart."""
    done: list[LedgerEvent] = []
    async with trio.open_nursery() as nursery:
        host = await rpc.connect("host")
        await nursery.start(host.run)
        scene = Scene(None, host)  # type: ignore[arg-type]
        for _ in range(2):
            terms = await scene.terms()
            done += (await host.transact(await scene.open_call(terms))).events
            local.mine(20)
            done += (await host.transact(Close(terms, scene.voucher(terms)))).events
            local.mine(20)
        nursery.cancel_scope.cancel()
    await host.aclose()
    return done


async def test_a_node_that_refuses_wide_ranges_is_asked_for_narrower_ones(
    rpc: LocalRpc, local: LocalChain
) -> None:
    start = local.chain.height + 1
    done = await some_events(local, rpc)
    widths: list[int] = []

    def alter(params: Any, result: Any) -> Any:
        (asked,) = params
        width = int(asked["toBlock"], 16) - int(asked["fromBlock"], 16) + 1
        widths.append(width)
        if width > 10:
            raise RpcError(-32005, "query exceeds max block range 10", None)
        return result

    altering(rpc, "eth_getLogs", alter)
    ledger = await rpc.connect()
    seen, cursors = await follow(ledger, start)
    assert seen == done
    assert cursors[-1] == local.chain.height + 1
    assert min(widths) > 1
    assert sum(width > 10 for width in widths) <= len(widths) / 2 + 5
    await ledger.aclose()


async def test_pages_widen_again_when_a_node_lets_them(rpc: LocalRpc, local: LocalChain) -> None:
    start = local.chain.height + 1
    done = await some_events(local, rpc)
    widths: list[int] = []

    def alter(params: Any, result: Any) -> Any:
        (asked,) = params
        widths.append(int(asked["toBlock"], 16) - int(asked["fromBlock"], 16) + 1)
        if len(widths) <= 5:
            raise RpcError(-32000, "too busy for so many blocks", None)
        return result

    altering(rpc, "eth_getLogs", alter)
    ledger = await rpc.connect()
    assert (await follow(ledger, start))[0] == done
    narrow = widths[5]
    assert narrow < 5
    assert widths[6:8] == [2 * narrow, 4 * narrow]
    await ledger.aclose()


async def test_a_page_too_large_for_us_is_asked_for_in_smaller_parts(
    rpc: LocalRpc, local: LocalChain
) -> None:
    start = local.chain.height + 1
    done = await some_events(local, rpc)
    ledger = await rpc.connect(limits=EvmLimits(rpc=RpcLimits(response_bytes_max=2_200)))
    assert (await follow(ledger, start))[0] == done
    assert ledger.status()[0].last_error == "answered with more than 2200 bytes"
    await ledger.aclose()


async def test_a_node_that_gives_no_events_at_all_is_an_error(rpc: LocalRpc, local: LocalChain) -> None:
    def alter(params: Any, result: Any) -> Any:
        raise RpcError(-32000, "logs are disabled", None)

    altering(rpc, "eth_getLogs", alter)
    ledger = await rpc.connect()
    with pytest.raises(RpcError, match="logs are disabled"):
        await ledger.events(1)
    await ledger.aclose()


async def test_events_are_shown_when_they_are_deep_enough(rpc: LocalRpc, local: LocalChain) -> None:
    start = local.chain.height + 1
    await some_events(local, rpc)
    deep = await rpc.connect(confirmations=21)
    seen, cursors = await follow(deep, start)
    assert len(seen) == 4
    assert cursors[-1] == local.chain.height - 19
    deeper = await rpc.connect(confirmations=22)
    assert len((await follow(deeper, start))[0]) == 3
    await deep.aclose()
    await deeper.aclose()


async def test_logs_that_were_not_asked_for_are_left_out(rpc: LocalRpc, local: LocalChain) -> None:
    start = local.chain.height + 1
    done = await some_events(local, rpc)

    def alter(params: Any, result: Any) -> Any:
        foreign = [entry | {"address": "0x" + "77" * 20} for entry in result]
        late = [entry | {"blockNumber": hex(int(entry["blockNumber"], 16) + 10_000)} for entry in result]
        gone = [entry | {"removed": True} for entry in result]
        return foreign + gone + list(reversed(result)) + late

    altering(rpc, "eth_getLogs", alter)
    ledger = await rpc.connect()
    assert (await follow(ledger, start))[0] == done
    await ledger.aclose()


# ---- fees and what transactions cost


async def test_a_node_without_fee_history_is_asked_for_its_gas_price(
    rpc: LocalRpc, local: LocalChain
) -> None:
    def alter(params: Any, result: Any) -> Any:
        raise RpcError(-32601, "the method eth_feeHistory does not exist", None)

    altering(rpc, "eth_feeHistory", alter)
    async with trio.open_nursery() as nursery:
        ledger = await rpc.connect("payer")
        await nursery.start(ledger.run)
        assert (await ledger.transact(Transfer(ADDRESS["stranger"], 1))).gas_used
        nursery.cancel_scope.cancel()
    await ledger.aclose()


async def test_what_a_rollup_takes_for_the_chain_below_is_part_of_the_fee(
    rpc: LocalRpc, local: LocalChain
) -> None:
    fees = []
    for below in ({}, {"l1Fee": hex(10**15)}):
        altering(rpc, "eth_getTransactionReceipt", saying(below))
        async with trio.open_nursery() as nursery:
            ledger = await rpc.connect("payer")
            await nursery.start(ledger.run)
            outcome = await ledger.transact(Transfer(ADDRESS["stranger"], 1))
            fees.append(outcome.fee_wei or 0)
            nursery.cancel_scope.cancel()
        await ledger.aclose()
    assert 0 < fees[0] < 10**15 < fees[1] < 2 * 10**15


async def test_another_transactions_receipt_is_not_taken_for_ours(
    rpc: LocalRpc, local: LocalChain, autojump_clock: Clock
) -> None:
    altering(rpc, "eth_getTransactionReceipt", saying({"transactionHash": "0x" + "00" * 32}))
    async with trio.open_nursery() as nursery:
        ledger = await rpc.connect("payer")
        await nursery.start(ledger.run)
        with pytest.raises(UnseenError, match="another transaction's receipt"), trio.fail_after(300):
            await ledger.transact(Transfer(ADDRESS["stranger"], 1))
        nursery.cancel_scope.cancel()
    await ledger.aclose()


# ---- what chains leave out


def without(*names: str, null: bool) -> Callable[[Any, Any], Any]:
    """Records without these fields, or with null in them."""

    def alter(params: Any, result: Any) -> Any:
        if result is None:
            return None
        rest = {name: value for name, value in result.items() if name not in names}
        return rest | dict.fromkeys(names) if null else rest

    return alter


async def transferred(rpc: LocalRpc) -> Outcome:
    ledger = await rpc.connect("payer")
    try:
        async with background_task(ledger.run):
            with trio.fail_after(600):
                return await ledger.transact(Transfer(ADDRESS["stranger"], 1))
    finally:
        await ledger.aclose()


@pytest.mark.parametrize("null", [True, False])
@pytest.mark.parametrize(
    "field",
    [
        "blockHash", "contractAddress", "cumulativeGasUsed", "effectiveGasPrice", "from", "gasUsed",
        "logsBloom", "status", "to", "transactionHash", "transactionIndex", "type",
    ],
)  # fmt: skip
async def test_a_receipt_may_lack_what_is_not_needed(
    rpc: LocalRpc, field: str, *, null: bool, autojump_clock: Clock
) -> None:
    altering(rpc, "eth_getTransactionReceipt", without(field, null=null))
    outcome = await transferred(rpc)
    assert trio.current_time() < 1
    assert (outcome.gas_used is None) == (field == "gasUsed")
    assert (outcome.fee_wei is None) == (field in {"gasUsed", "effectiveGasPrice"})


async def test_a_receipt_of_a_chain_that_tells_nothing_but_block_and_events_is_enough(
    rpc: LocalRpc, autojump_clock: Clock
) -> None:
    def alter(params: Any, result: Any) -> Any:
        return None if result is None else {"blockNumber": result["blockNumber"], "logs": result["logs"]}

    altering(rpc, "eth_getTransactionReceipt", alter)
    assert (await transferred(rpc)).gas_used is None


@pytest.mark.parametrize(
    ("missing", "null"), [(("blockNumber",), True), (("blockNumber",), False), (("logs",), False)]
)
async def test_what_a_receipt_must_say_is_named_where_it_is_missing(
    rpc: LocalRpc, missing: tuple[str, ...], *, null: bool, autojump_clock: Clock
) -> None:
    altering(rpc, "eth_getTransactionReceipt", without(*missing, null=null))
    with pytest.raises(
        UnseenError, match=rf"not seen yet: 0x.* eth_getTransactionReceipt: {missing[0]} is missing"
    ):
        await transferred(rpc)
    assert rpc.count("eth_sendRawTransaction") == 1


async def test_a_failed_transaction_of_a_chain_without_a_status_is_not_taken_for_done(
    rpc: LocalRpc, autojump_clock: Clock
) -> None:
    """No events and no status: nobody can know."""

    def alter(params: Any, result: Any) -> Any:
        return None if result is None else result | {"status": None, "logs": None}

    altering(rpc, "eth_getTransactionReceipt", alter)
    with pytest.raises(UnseenError, match="eth_getTransactionReceipt: status is missing"):
        await transferred(rpc)


@pytest.mark.parametrize(
    "odd",
    [
        {}, {"baseFeePerGas": None}, {"baseFeePerGas": []}, {"baseFeePerGas": ["what"]},
        {"baseFeePerGas": "0x1"}, {"baseFeePerGas": ["0x3b9aca00"], "reward": None},
        {"baseFeePerGas": ["0x3b9aca00"], "reward": [None, []]},
        {"baseFeePerGas": ["0x3b9aca00"], "reward": [["0x1"], [None], ["0x7"]]},
        {"baseFeePerGas": [10**9], "reward": [[5]]},
    ],
)  # fmt: skip
async def test_a_history_of_fees_is_used_as_far_as_it_goes(
    rpc: LocalRpc, odd: dict[str, Any], autojump_clock: Clock
) -> None:
    altering(rpc, "eth_feeHistory", lambda *_: odd)
    await transferred(rpc)
    assert trio.current_time() < 1


@pytest.mark.parametrize("null", [True, False])
@pytest.mark.parametrize("field", ["baseFeePerGas", "hash", "gasUsed", "miner", "mixHash", "transactions"])
async def test_a_block_may_lack_what_is_not_needed(rpc: LocalRpc, field: str, *, null: bool) -> None:
    altering(rpc, "eth_getBlockByNumber", without(field, null=null))
    ledger = await rpc.connect()
    assert (await ledger.head()).timestamp == rpc.local.chain.now
    await ledger.aclose()


@pytest.mark.parametrize("field", ["number", "timestamp"])
async def test_what_a_block_must_say_is_named_where_it_is_missing(
    rpc: LocalRpc, field: str, autojump_clock: Clock
) -> None:
    altering(rpc, "eth_getBlockByNumber", without(field, null=True))
    ledger = await rpc.connect()
    with pytest.raises(UnavailableError, match=f"eth_getBlockByNumber: {field} is missing"):
        await ledger.head()
    await ledger.aclose()


async def test_events_may_lack_what_is_not_needed_and_null_is_none_of_them(
    rpc: LocalRpc, local: LocalChain
) -> None:
    async with trio.open_nursery() as nursery:
        host = await rpc.connect("host")
        await nursery.start(host.run)
        scene = Scene(None, host)  # type: ignore[arg-type]
        done = await host.transact(await scene.open_call(await scene.terms()))
        nursery.cancel_scope.cancel()
    await host.aclose()
    bare = {"address", "topics", "data", "blockNumber"}

    def alter(params: Any, result: Any) -> Any:
        return [{name: value for name, value in log.items() if name in bare} for log in result]

    altering(rpc, "eth_getLogs", alter)
    ledger = await rpc.connect()
    page = await ledger.events(done.block)
    assert page.events == done.events
    altering(rpc, "eth_getLogs", lambda *_: Null())
    assert (await ledger.events(done.block)).events == ()
    await ledger.aclose()


async def test_a_node_need_not_repeat_the_hash_of_what_it_was_sent(
    rpc: LocalRpc, autojump_clock: Clock
) -> None:
    altering(rpc, "eth_sendRawTransaction", lambda *_: Null())
    await transferred(rpc)
    assert rpc.count("eth_sendRawTransaction") == 1


# ---- what it costs to import, and once over sockets


@pytest.mark.parametrize("data", [b"", b"\xff" * 31, b"\xff" * 320, bytes(32 * 40)])
@pytest.mark.parametrize("topics", [1, 4, 5])
def test_a_malformed_log_is_the_endpoints_error_and_no_other(data: bytes, topics: int) -> None:
    for kind in market_topics():
        rest = [b"\xff" * 32] * (topics - 1)
        log = Log(contract=MARKET, topics=(kind, *rest), data=data, block=7, index=0)
        with suppress(ChainError):  # and nothing else
            assert all(each.block == 7 for each in market_events(MARKET, [log]))


@pytest.mark.parametrize("word", [1 << 254, (1 << 256) - 1, 1 << 63, 1 << 40])
def test_a_log_that_points_beyond_memory_is_the_endpoints_error(word: int) -> None:
    """Where its manifest begins, or how long that is."""
    for words in ((word, 1), (32, word)):
        data = b"".join(each.to_bytes(32, "big") for each in words) + bytes(64)
        topics = (proposal_topic(), *[bytes(32)] * 3)
        log = Log(contract=MARKET, topics=topics, data=data, block=7, index=0)
        with pytest.raises(ChainError, match="no event of the registry of models"):
            proposal_event(log)


def test_a_log_without_its_data_is_named() -> None:
    log = Log(contract=MARKET, topics=(market_topics()[0], bytes(32)), data=b"", block=7, index=0)
    with pytest.raises(ChainError, match="no event of the market"):
        market_events(MARKET, [log])


def test_importing_the_chains_modules_imports_no_web3() -> None:
    modules = ("ledger", "wallet.wallet", "evm.rpc", "evm.transaction_sender", "evm.ledger", "evm.calls")
    heavy = ("web3", "eth_account", "eth_abi", "eth_tester", "eth", "httpx")
    imports = ", ".join(f"p2pnode.chain.{module}" for module in modules)
    code = f"import sys, {imports}; print([each for each in {heavy} if each in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


async def test_over_real_sockets_a_session_is_opened_and_closed_on_the_development_chain() -> None:
    secret = keccak256(b"a payer without ether")
    payer = key_address(secret)
    async with open_dev_chain() as chain, trio.open_nursery() as nursery:
        host = chain.accounts[2]
        await chain.fund(payer, usdc=BALANCE)
        profile = profile_of(
            chain.addresses, chain_id=chain.chain_id, rpc_urls=("http://127.0.0.1:9", chain.url)
        )
        with trio.fail_after(30):
            ledger = await EvmLedger.of_profile(
                profile, account=host.address, sign=lambda digest: sign_digest(host.secret, digest)
            )
            await nursery.start(ledger.run)
            scene = Scene(None, ledger)  # type: ignore[arg-type]
            terms = await scene.terms(payer=payer, host=host.address)
            call = await scene.open_call(terms)
            unsigned = replace(call, authorisation=bytes(64) + b"\x1b")
            with pytest.raises(RevertedError):
                await ledger.transact(unsigned)
            signed = replace(call, authorisation=resigned(scene, terms, call.valid_before, secret))
            opened = await ledger.transact(signed)
            voucher = scene.voucher(terms)
            closed = await ledger.transact(Close(terms, voucher))
            assert (await ledger.events(0)).events == opened.events + closed.events
            assert (await ledger.balances(payer)).usdc == BALANCE - voucher.amount
            assert await scene.state(terms) == EscrowState(status="closed", recorded=voucher.amount)
            down, up = ledger.status()
            assert (down.last_error, up.last_error) == ("can't be reached", None)
        nursery.cancel_scope.cancel()
    await ledger.aclose()


def resigned(scene: Scene, terms: Any, until: int, secret: bytes) -> bytes:
    from p2pnode.protocols.typed_data import authorisation_digest

    digest = authorisation_digest(
        scene.domains.token, payer=terms.payer, to=scene.domains.market.contract, amount=terms.deposit,
        valid_before=until, nonce=scene.id_of(terms),
    )  # fmt: skip
    return sign_digest(secret, digest)


# ---- the registries


def _registered(local: LocalChain, name: str, peer_key: bytes) -> None:
    made, host, amount = local.made, ADDRESS[name], 1_000 * 10**18
    made.fab.send(ADDRESS["deployer"], "transfer", host, amount)
    made.fab.send(host, "approve", made.nodes.address, amount)
    made.nodes.send(host, "register", peer_key, ADDRESS["receipt key"], amount)


async def test_an_endpoint_that_tries_nothing_as_if_says_nothing_of_it(
    rpc: LocalRpc, local: LocalChain
) -> None:
    def alter(params: Any, result: Any) -> Any:
        if len(params) > 2:
            raise RpcError(-32602, "too many arguments, want at most 2", None)
        return result

    altering(rpc, "eth_estimateGas", alter)
    ledger = await rpc.connect()
    call = Register(b"\1" * 32, ADDRESS["receipt key"], 10**21)
    allowed = Approve(ledger.domains.node_registry, 10**21)
    assert await ledger.estimate(call, ADDRESS["host"], allowed=allowed) is None
    assert await ledger.estimate(allowed, ADDRESS["host"])
    await ledger.aclose()


async def test_who_registered_a_peer_is_found_in_ranges_that_the_node_takes(
    rpc: LocalRpc, local: LocalChain
) -> None:
    for name, key in (("host", b"\1" * 32), ("rival", b"\2" * 32)):
        _registered(local, name, key)
    local.made.nodes.send(ADDRESS["rival"], "register", b"\1" * 32, ADDRESS["receipt key"], 0)

    def alter(params: Any, result: Any) -> Any:
        (asked,) = params
        if int(asked["toBlock"], 16) - int(asked["fromBlock"], 16) + 1 > 3:
            raise RpcError(-32005, "query exceeds max block range 3", None)
        return result

    altering(rpc, "eth_getLogs", alter)
    ledger = await rpc.connect()
    assert await ledger.registrants(b"\1" * 32) == (ADDRESS["rival"], ADDRESS["host"])
    assert await ledger.registrants(b"\2" * 32) == (), "it has another peer now"
    assert await ledger.registrants(b"\3" * 32) == ()
    await ledger.aclose()


async def test_a_manifest_that_no_endpoint_has_any_more_is_missed_by_nobody(
    rpc: LocalRpc, local: LocalChain
) -> None:
    made, host = local.made, ADDRESS["host"]
    made.fab.send(ADDRESS["deployer"], "transfer", host, 10**21)
    made.fab.send(host, "approve", made.models.address, 10**21)
    made.models.send(host, "propose", b"{}")
    local.mine(5)
    ledger = await rpc.connect()
    found = await ledger.proposal(1)
    assert found is not None
    assert await ledger.manifest(found) == b"{}"

    def alter(params: Any, result: Any) -> Any:
        raise RpcError(-32000, "pruned", None)

    altering(rpc, "eth_getLogs", alter)
    assert await ledger.manifest(found) is None
    await ledger.aclose()


async def test_a_ledger_without_the_registries_says_what_it_lacks(rpc: LocalRpc) -> None:
    ledger = await rpc.connect(fab=bytes(20), model_registry=bytes(20))
    for call in (Approve(b"\1" * 20, 1), Attest(ModelId(b"\1" * 32), b"\2" * 32)):
        with pytest.raises(ChainError, match="does not know where"):
            await ledger.estimate(call, ADDRESS["host"])
    await ledger.aclose()
