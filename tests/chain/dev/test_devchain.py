"""The development chain, asked over HTTP as a wallet would ask it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from p2pnode.chain.abi import artifact
from p2pnode.chain.deployment_plan import DeploymentPlan, plan_deployment
from p2pnode.chain.dev import devchain
from p2pnode.chain.dev.devchain import DevAccount, DevChain, dev_account, open_dev_chain
from p2pnode.chain.dev.jsonrpc import BATCH_MAX
from p2pnode.chain.dev.jsonrpc_http import BODY_MAX
from p2pnode.chain.evm.fees import Fees
from p2pnode.chain.evm.ledger import EvmLedger, EvmLimits
from p2pnode.chain.evm.order_book import SignedTransaction, sign_transaction
from p2pnode.chain.evm.rpc import RpcLimits
from p2pnode.chain.ledger import ChainMadeAnewError
from p2pnode.chain.profile import verify
from p2pnode.errors import ConfigError
from p2pnode.ids import SessionId
from p2pnode.protocols.crypto import key_address, sign_digest

GWEI = 10**9
DEADLINE_S = 20.0
SOMEONE = b"\x07" * 20


class Wire:
    """One HTTP connection, written byte by byte, so that a test can send what a browser would."""

    def __init__(self, chain: DevChain, stream: trio.SocketStream) -> None:
        self.chain, self._stream, self._read = chain, stream, b""
        self.port = int(chain.url.rpartition(":")[2])

    async def post(self, body: bytes, **changes: str | None) -> tuple[int, bytes]:
        headers: dict[str, str | None] = {
            "Host": f"127.0.0.1:{self.port}", "Content-Type": "application/json",
            "Content-Length": str(len(body)),
        }  # fmt: skip
        headers |= {name.replace("_", "-"): value for name, value in changes.items() if name != "method"}
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items() if value is not None)
        await self._stream.send_all(
            f"{changes.get('method', 'POST')} / HTTP/1.1\r\n{head}\r\n".encode() + body
        )
        return await self.answer()

    async def answer(self) -> tuple[int, bytes]:
        with trio.fail_after(DEADLINE_S):
            while b"\r\n\r\n" not in self._read:
                self._read += await self._more()
            head, _, rest = self._read.partition(b"\r\n\r\n")
            lines = head.decode().lower().split("\r\n")
            size = next(int(line.split(":")[1]) for line in lines if line.startswith("content-length"))
            while len(rest) < size:
                rest += await self._more()
        self._read = rest[size:]
        return int(lines[0].split()[1]), rest[:size]

    async def _more(self) -> bytes:
        data = await self._stream.receive_some()
        assert data, "the connection was closed"
        return bytes(data)

    async def rpc(self, method: str, *params: Any) -> Any:
        """The result; an error's message and code is raised."""
        status, body = await self.post(
            json.dumps({"jsonrpc": "2.0", "id": 5, "method": method, "params": params}).encode()
        )
        answer = json.loads(body)
        assert (status, answer["id"], answer["jsonrpc"]) == (200, 5, "2.0")
        if "error" in answer:
            raise Refused(**answer["error"])
        return answer["result"]

    async def number(self, method: str, *params: Any) -> int:
        return int(await self.rpc(method, *params), 16)

    async def request(self, method: str, params: Any, /) -> Any:
        return await self.rpc(method, *params)

    async def block(self, tag: str = "latest") -> Any:
        return await self.rpc("eth_getBlockByNumber", tag, False)


class Refused(Exception):  # noqa: N818 - an answer
    def __init__(self, code: int, message: str, data: str | None = None) -> None:
        super().__init__(message)
        self.code, self.data = code, data


@pytest.fixture
async def chain() -> AsyncIterator[DevChain]:
    async with open_dev_chain() as chain:
        yield chain


@pytest.fixture
async def wire(chain: DevChain) -> AsyncIterator[Wire]:
    stream = await trio.open_tcp_stream("127.0.0.1", int(chain.url.rpartition(":")[2]))
    async with stream:
        yield Wire(chain, stream)


def hexed(data: bytes) -> str:
    return "0x" + data.hex()


def signed(chain: DevChain, who: DevAccount, nonce: int, **changes: Any) -> SignedTransaction:
    fields: dict[str, Any] = {
        "chain_id": chain.chain_id, "account": who.address, "nonce": nonce, "to": SOMEONE, "data": b"",
        "gas": 30_000, "fees": Fees(most=2 * GWEI, tip=1),
        "sign": lambda digest: sign_digest(who.secret, digest),
    }  # fmt: skip
    return sign_transaction(**(fields | changes))


def usdc_call(chain: DevChain, name: str, *arguments: Any, sender: bytes = SOMEONE) -> dict[str, str]:
    data = artifact("USDC").function(name, len(arguments)).encode(arguments)
    return {"from": hexed(sender), "to": hexed(chain.addresses.usdc), "data": hexed(data)}


async def refused(call: Awaitable[Any], code: int, match: str) -> Refused:
    with pytest.raises(Refused, match=match) as error:
        await call
    assert error.value.code == code
    return error.value


# ---- what is there


async def test_everything_is_deployed_and_the_profile_verifies(wire: Wire) -> None:
    profile = wire.chain.profile()
    assert profile.rpc_urls == (wire.chain.url,)
    await verify(profile, wire)
    assert await wire.rpc("net_version") == str(profile.chain_id)
    assert "p2pnode" in await wire.rpc("web3_clientVersion")
    assert await wire.rpc("eth_accounts") == [hexed(account.address) for account in wire.chain.accounts]


async def test_the_faucet_gives_usdc_and_ether_and_only_so_much(wire: Wire) -> None:
    await wire.chain.fund(SOMEONE, usdc=1_500_000, ether_wei=7)
    assert await wire.rpc("dev_fund", hexed(SOMEONE), hex(500_000)) is True
    found = await wire.rpc("eth_call", usdc_call(wire.chain, "balanceOf", SOMEONE), "latest")
    assert int(found, 16) == 2_000_000
    assert await wire.number("eth_getBalance", hexed(SOMEONE), "latest") == 7
    for _ in range(2):  # whose answer was lost asks again, with the same number
        assert await wire.rpc("dev_fund", hexed(SOMEONE), hex(500_000), "0x0", hexed(bytes(16))) is True
    found = await wire.rpc("eth_call", usdc_call(wire.chain, "balanceOf", SOMEONE), "latest")
    assert int(found, 16) == 2_500_000
    await refused(wire.rpc("dev_fund", hexed(SOMEONE), "0x1", "0x0", "0x07"), -32602, "16 bytes")
    await refused(wire.rpc("dev_fund", hexed(SOMEONE), hex(10**19)), -32000, "at most")
    await refused(wire.rpc("dev_fund", "0x07"), -32602, "20 bytes")
    await refused(wire.rpc("dev_fund", hexed(bytes(20)), "0x1"), -32000, "mint to the zero address")


def test_accounts_are_the_same_on_every_development_chain_and_keep_their_secrets_off_the_screen() -> None:
    assert len({dev_account(number).address for number in range(10)}) == 10
    assert dev_account(3) == dev_account(3)
    assert dev_account(3).secret.hex() not in repr(dev_account(3))


# ---- transactions


async def test_a_signed_transaction_is_mined_at_once_in_a_block_of_its_own(wire: Wire) -> None:
    who = wire.chain.accounts[4]
    before = await wire.number("eth_blockNumber")
    sent = signed(wire.chain, who, 0)
    assert await wire.rpc("eth_sendRawTransaction", hexed(sent.raw)) == hexed(sent.hash)
    receipt = await wire.rpc("eth_getTransactionReceipt", hexed(sent.hash))
    assert (receipt["status"], int(receipt["gasUsed"], 16)) == ("0x1", 21_000)
    assert int(receipt["blockNumber"], 16) > before
    block = await wire.rpc("eth_getBlockByHash", receipt["blockHash"], True)
    assert [each["hash"] for each in block["transactions"]] == [hexed(sent.hash)]
    assert await wire.rpc("eth_getTransactionByHash", hexed(sent.hash)) == block["transactions"][0]
    assert await wire.number("eth_getTransactionCount", hexed(who.address), "latest") == 1
    assert await wire.rpc("eth_getTransactionReceipt", hexed(bytes(32))) is None


async def test_transactions_are_refused_in_geths_words(wire: Wire) -> None:
    chain, who = wire.chain, wire.chain.accounts[4]

    async def tried(account: DevAccount, nonce: int, **changes: Any) -> Any:
        return await wire.rpc("eth_sendRawTransaction", hexed(signed(chain, account, nonce, **changes).raw))

    await tried(who, 0)
    await refused(tried(who, 0), -32000, "nonce too low: next nonce 1, tx nonce 0")
    await refused(tried(who, 1, chain_id=1), -32000, "invalid chain id")
    await refused(tried(who, 1, gas=20_999), -32000, "intrinsic gas too low")
    await refused(tried(who, 1, gas=10**9), -32000, "exceeds block gas limit")
    await refused(tried(who, 1, fees=Fees(most=1, tip=2)), -32000, "max priority fee per gas higher")
    poor = DevAccount(key_address(b"\x05" * 32), b"\x05" * 32)
    await refused(tried(poor, 0), -32000, "insufficient funds for gas")
    await refused(wire.rpc("eth_sendRawTransaction", "0x02c0"), -32000, "invalid transaction")
    await refused(wire.rpc("eth_sendRawTransaction", "0x0"), -32602, "hex data")
    assert await wire.number("eth_getTransactionCount", hexed(who.address), "pending") == 1


async def test_a_transaction_ahead_of_its_turn_waits_for_the_one_before(wire: Wire) -> None:
    who = wire.chain.accounts[4]
    second, first = signed(wire.chain, who, 1), signed(wire.chain, who, 0)
    await wire.rpc("eth_sendRawTransaction", hexed(second.raw))
    assert (await wire.rpc("eth_getTransactionByHash", hexed(second.hash)))["blockNumber"] is None
    await refused(wire.rpc("eth_sendRawTransaction", hexed(second.raw)), -32000, "already known")
    await wire.rpc("eth_sendRawTransaction", hexed(first.raw))
    for each in (first, second):
        assert (await wire.rpc("eth_getTransactionReceipt", hexed(each.hash)))["status"] == "0x1"


async def test_a_stuck_transaction_can_be_replaced_by_one_that_pays_a_tenth_more(wire: Wire) -> None:
    who = wire.chain.accounts[4]
    await wire.rpc("evm_setAutomine", False)
    stuck = signed(wire.chain, who, 0, fees=Fees(most=GWEI, tip=100))
    await wire.rpc("eth_sendRawTransaction", hexed(stuck.raw))
    assert await wire.number("eth_getTransactionCount", hexed(who.address), "pending") == 1
    assert await wire.number("eth_getTransactionCount", hexed(who.address), "latest") == 0
    meagre = signed(wire.chain, who, 0, fees=Fees(most=2 * GWEI, tip=109))
    await refused(
        wire.rpc("eth_sendRawTransaction", hexed(meagre.raw)), -32000, "replacement transaction underpriced"
    )
    better = signed(wire.chain, who, 0, fees=Fees(most=2 * GWEI, tip=110))
    await wire.rpc("eth_sendRawTransaction", hexed(better.raw))
    await wire.rpc("evm_mine")
    assert (await wire.rpc("eth_getTransactionReceipt", hexed(better.hash)))["status"] == "0x1"
    assert await wire.rpc("eth_getTransactionByHash", hexed(stuck.hash)) is None


async def test_a_transaction_that_fails_is_mined_and_says_so(wire: Wire) -> None:
    who = wire.chain.accounts[4]
    call = usdc_call(wire.chain, "transfer", SOMEONE, 10**9)
    sent = signed(
        wire.chain, who, 0, to=wire.chain.addresses.usdc, data=bytes.fromhex(call["data"][2:]), gas=100_000
    )
    await wire.rpc("eth_sendRawTransaction", hexed(sent.raw))
    receipt = await wire.rpc("eth_getTransactionReceipt", hexed(sent.hash))
    assert (receipt["status"], receipt["logs"]) == ("0x0", [])


# ---- calls


async def test_a_revert_is_error_3_with_its_data_and_reason(wire: Wire) -> None:
    call = usdc_call(wire.chain, "transfer", SOMEONE, 1)
    for asked in (("eth_call", call, "latest"), ("eth_estimateGas", call)):
        error = await refused(wire.rpc(*asked), 3, "^execution reverted: ERC20: transfer amount exceeds")
        assert error.data is not None
        assert error.data.startswith("0x08c379a0")
    nothing = {"to": hexed(wire.chain.addresses.usdc), "data": "0xdeadbeef"}
    assert (await refused(wire.rpc("eth_call", nothing), 3, "^execution reverted$")).data == "0x"


async def test_an_account_without_ether_may_ask(wire: Wire) -> None:
    await wire.chain.fund(SOMEONE, usdc=5)
    call = usdc_call(wire.chain, "transfer", b"\x08" * 20, 5)
    assert int(await wire.rpc("eth_call", call, "latest"), 16) == 1
    estimate = await wire.number("eth_estimateGas", call)
    assert 30_000 < estimate < 80_000
    exact = call | {"gas": hex(estimate)}
    assert int(await wire.rpc("eth_call", exact, "latest"), 16) == 1
    too_little = call | {"gas": hex(estimate * 98 // 100)}
    await refused(wire.rpc("eth_call", too_little, "latest"), -32000, "out of gas")
    await refused(wire.rpc("eth_call", call | {"value": "0x1"}), -32000, "insufficient funds")
    await refused(wire.rpc("eth_call", call | {"gas": "0x10"}), -32000, "intrinsic gas too low")


async def test_the_past_can_be_asked_about(wire: Wire) -> None:
    before = await wire.number("eth_blockNumber")
    await wire.chain.fund(SOMEONE, usdc=5, ether_wei=9)
    call = usdc_call(wire.chain, "balanceOf", SOMEONE)
    assert int(await wire.rpc("eth_call", call, hex(before)), 16) == 0
    assert await wire.number("eth_getBalance", hexed(SOMEONE), hex(before)) == 0
    named = {"blockHash": (await wire.block())["hash"]}
    assert int(await wire.rpc("eth_call", call, named), 16) == 5
    await refused(wire.rpc("eth_call", call, hex(10**6)), -32000, "header not found")
    assert await wire.block(hex(10**6)) is None
    slot = await wire.rpc("eth_getStorageAt", hexed(wire.chain.addresses.usdc), "0x0", "latest")
    assert len(slot) == 66


# ---- logs


async def test_logs_are_found_by_range_contract_and_topic(wire: Wire) -> None:
    first = await wire.number("eth_blockNumber") + 1
    for number in (1, 2, 3):
        await wire.chain.fund(bytes([number]) + bytes(19), usdc=number)
    usdc = hexed(wire.chain.addresses.usdc)
    topic = "0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef"
    everything = await wire.rpc("eth_getLogs", {"fromBlock": hex(first), "address": usdc, "topics": [topic]})
    assert [int(log["data"], 16) for log in everything] == [1, 2, 3]
    assert [log["logIndex"] for log in everything] == ["0x1"] * 3
    to_second = "0x" + "00" * 12 + "02" + "00" * 19
    for topics in ([topic, None, to_second], [[topic], [], [to_second, "0x" + "11" * 32]]):
        found = await wire.rpc("eth_getLogs", {"fromBlock": hex(first), "topics": topics})
        assert found == everything[1:2]
    narrow = {"fromBlock": everything[0]["blockNumber"], "toBlock": everything[0]["blockNumber"]}
    assert everything[0] in await wire.rpc("eth_getLogs", narrow)
    assert everything[1] not in await wire.rpc("eth_getLogs", narrow)
    assert len(await wire.rpc("eth_getLogs", {"blockHash": everything[2]["blockHash"]})) == 2
    assert await wire.rpc("eth_getLogs", {"fromBlock": hex(10**6)}) == []
    backwards = {"fromBlock": hex(first), "toBlock": hex(first - 1)}
    await refused(wire.rpc("eth_getLogs", backwards), -32602, "invalid block range")


# ---- time


async def test_time_is_the_walls_and_an_idle_chains_head_is_never_old() -> None:
    now = [1_800_000_000.9]
    async with open_dev_chain(wall=lambda: now[0]) as chain:
        port = int(chain.url.rpartition(":")[2])
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            wire = Wire(chain, stream)
            # All contracts went into one second: blocks may share a timestamp.
            head = await wire.block()
            assert (int(head["number"], 16), int(head["timestamp"], 16)) == (6, 1_800_000_000)
            now[0] += 1
            assert await wire.block() == head
            assert int((await wire.block("pending"))["timestamp"], 16) == 1_800_000_001
            now[0] += 3600
            fresh = await wire.block()
            assert int(fresh["timestamp"], 16) == 1_800_003_601
            assert fresh["parentHash"] == head["hash"]
            now[0] -= 7200
            await chain.mine()
            assert int((await wire.block())["timestamp"], 16) == 1_800_003_601


async def test_travel_moves_expiries_and_challenges(wire: Wire) -> None:
    before = int((await wire.block())["timestamp"], 16)
    await wire.rpc("evm_increaseTime", 86_400)
    await wire.rpc("evm_mine")
    assert int((await wire.block())["timestamp"], 16) - before >= 86_400
    await wire.rpc("evm_setNextBlockTimestamp", hex(before + 500_000))
    await wire.rpc("evm_mine", 2)
    assert 0 <= int((await wire.block())["timestamp"], 16) - (before + 500_000) < 60
    await refused(wire.rpc("evm_setNextBlockTimestamp", hex(before)), -32000, "before the last block")


async def test_a_snapshot_brings_back_state_time_and_the_right_logs(wire: Wire) -> None:
    usdc = hexed(wire.chain.addresses.usdc)
    every = {"fromBlock": "0x0", "address": usdc}
    before = await wire.rpc("eth_getLogs", every)
    name = await wire.rpc("evm_snapshot")
    await wire.chain.fund(SOMEONE, usdc=5)
    await wire.chain.travel(10**6)
    lost = (await wire.rpc("eth_getLogs", every))[-1]
    assert await wire.rpc("evm_revert", name) is True
    assert await wire.rpc("eth_getLogs", every) == before
    assert await wire.rpc("eth_getTransactionReceipt", lost["transactionHash"]) is None
    assert await wire.rpc("eth_getBlockByHash", lost["blockHash"], False) is None
    await wire.chain.fund(SOMEONE, usdc=6)
    again = await wire.rpc("eth_getLogs", every)
    assert (len(again), int(again[-1]["data"], 16)) == (len(before) + 2, 6)
    assert await wire.rpc("evm_revert", name) is False


async def test_with_a_block_time_blocks_come_without_anybody_looking(autojump_clock: MockClock) -> None:
    for block_time_s, grown in ((60, True), (None, False)):
        async with open_dev_chain(block_time_s=block_time_s) as chain:
            first = await chain.use(lambda embedded: embedded.height)
            await trio.sleep(61)
            assert (await chain.use(lambda embedded: embedded.height) > first) is grown


# ---- fees


async def test_fee_history_ends_with_the_next_blocks_base_fee(wire: Wire) -> None:
    await wire.rpc("eth_sendRawTransaction", hexed(signed(wire.chain, wire.chain.accounts[4], 0).raw))
    history = await wire.rpc("eth_feeHistory", "0x3", "latest", [25, 75])
    assert len(history["baseFeePerGas"]) == 4
    assert history["reward"][-1] == ["0x1", "0x1"]
    price, tip = await wire.number("eth_gasPrice"), await wire.number("eth_maxPriorityFeePerGas")
    assert price - tip == int(history["baseFeePerGas"][-1], 16)
    assert len((await wire.rpc("eth_feeHistory", "0xfffff", "0x2", None))["gasUsedRatio"]) == 3


# ---- the envelope


async def test_unknown_methods_and_wrong_parameters_have_their_codes(wire: Wire) -> None:
    await refused(wire.rpc("eth_mining"), -32601, "the method eth_mining does not exist")
    await refused(wire.rpc("eth_getBalance"), -32602, "missing a required argument")
    await refused(wire.rpc("eth_chainId", 1), -32602, "too many")
    await refused(wire.rpc("eth_getBalance", "0x12", "latest"), -32602, "20 bytes")
    await refused(wire.rpc("eth_getBlockByNumber", "newest", False), -32602, "hex quantity")
    await refused(wire.rpc("eth_call", [], "latest"), -32602, "must be an object")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", -32700),
        (b"[" * 5000, -32700),
        (b"7", -32600),
        (b'{"method": 7}', -32600),
        (b"[]", -32600),
        (json.dumps([{}] * (BATCH_MAX + 1)).encode(), -32600),
        (b'{"method": "eth_chainId", "params": {}}', -32600),
    ],
)
async def test_what_is_no_request_gets_an_error_and_the_connection_lives(
    wire: Wire, body: bytes, code: int
) -> None:
    status, answer = await wire.post(body)
    assert (status, json.loads(answer)["error"]["code"]) == (200, code)
    assert await wire.rpc("eth_syncing") is False


async def test_a_batch_is_answered_in_order(wire: Wire) -> None:
    batch = [
        {"id": number, "method": name} for number, name in enumerate(("eth_chainId", "nope", "net_version"))
    ]
    _, body = await wire.post(json.dumps(batch).encode())
    answers = json.loads(body)
    assert [answer["id"] for answer in answers] == [0, 1, 2]
    assert answers[1]["error"]["code"] == -32601
    assert answers[2]["result"] == str(wire.chain.chain_id)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example:80"}, 403),
        ({"Host": ""}, 403),
        ({"Origin": "http://127.0.0.1"}, 403),
        ({"Origin": "null"}, 403),
        ({"Content_Type": "text/plain"}, 415),
        ({"Content_Type": None}, 415),
        ({"method": "GET"}, 405),
        ({"method": "OPTIONS"}, 405),
    ],
)
async def test_a_web_page_cant_drive_it(wire: Wire, headers: dict[str, Any], status: int) -> None:
    fund = json.dumps({"id": 1, "method": "dev_fund", "params": [hexed(SOMEONE), "0x1"]}).encode()
    assert (await wire.post(fund, **headers))[0] == status
    found = await wire.chain.use(lambda _: wire.chain.deployment.usdc.read("balanceOf", SOMEONE))
    assert found == 0


@pytest.mark.parametrize("host", ["localhost", "localhost:99", "[::1]:80", "127.0.0.1", "127.9.9.9:1"])
async def test_programs_on_this_machine_can(wire: Wire, host: str) -> None:
    status, body = await wire.post(b'{"id":1,"method":"eth_syncing"}', Host=host)
    assert (status, json.loads(body)["result"]) == (200, False)


async def test_a_request_too_large_is_cut_off(wire: Wire) -> None:
    assert (await wire.post(b" " * (BODY_MAX + 1)))[0] == 413


async def test_it_listens_on_loopback_only() -> None:
    with pytest.raises(ExceptionGroup) as refusal:
        async with open_dev_chain(host="0.0.0.0"):
            pass
    assert refusal.group_contains(ConfigError, match="loopback only")


async def test_a_taken_port_is_named(chain: DevChain) -> None:
    with pytest.raises(ExceptionGroup) as refusal:
        async with open_dev_chain(port=int(chain.url.rpartition(":")[2])):
            pass
    assert refusal.group_contains(ConfigError, match="choose another with --port")


# ---- as if


async def test_a_call_runs_as_if_a_word_of_storage_were_another(chain: DevChain, wire: Wire) -> None:
    fab = hexed(chain.deployment.fab.address)
    asked = {"to": fab, "data": hexed(artifact("FAB").function("totalSupply", 0).encode(()))}
    changed = {fab: {"stateDiff": {"0x2": "0x7"}}}
    assert await wire.number("eth_call", asked, "latest", changed) == 7
    assert await wire.number("eth_call", asked, "latest") == 10**27
    assert await wire.number("eth_estimateGas", asked, "latest", changed) > 21_000
    with pytest.raises(Refused, match="only stateDiff"):
        await wire.rpc("eth_call", asked, "latest", {fab: {"balance": "0x7"}})


# ---- its state


async def test_it_goes_on_where_it_was_left(tmp_path: Path) -> None:
    kept = tmp_path / "chain.sqlite"
    async with open_dev_chain(state=kept) as chain:
        assert not chain.went_on
        await chain.fund(SOMEONE, usdc=5, ether_wei=7)
        await chain.travel(10**6)
        first, height = chain.profile(), await chain.use(lambda embedded: embedded.height)
        time = await chain.use(lambda embedded: embedded.now)
    async with open_dev_chain(state=kept) as chain:
        assert chain.went_on
        assert (chain.addresses, chain.profile().genesis) == (first.addresses, first.genesis)
        assert await chain.use(lambda embedded: embedded.height) == height
        await chain.fund(SOMEONE, usdc=1)
        assert await chain.use(lambda _: chain.deployment.usdc.read("balanceOf", SOMEONE)) == 6
        assert await chain.use(lambda embedded: embedded.ether(SOMEONE)) == 7
        assert await chain.use(lambda embedded: embedded.now) >= time


async def test_a_file_is_one_chains_at_a_time(tmp_path: Path) -> None:
    async with open_dev_chain(state=tmp_path / "chain.sqlite"):
        with pytest.raises(ExceptionGroup) as refusal:
            async with open_dev_chain(state=tmp_path / "chain.sqlite"):
                pass
    assert refusal.group_contains(ConfigError, match="runs on .* already")


async def test_two_chains_have_no_first_block_and_no_address_in_common(chain: DevChain) -> None:
    async with open_dev_chain() as other:
        assert other.profile().genesis != chain.profile().genesis
        assert not set(asdict(other.addresses).values()) & set(asdict(chain.addresses).values())


async def test_a_file_of_another_program_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "chain.sqlite").write_bytes(b"my own data, and no database at all")
    with pytest.raises(ExceptionGroup) as refusal:
        async with open_dev_chain(state=tmp_path / "chain.sqlite"):
            pass
    assert refusal.group_contains(ConfigError, match="move it away")
    assert (tmp_path / "chain.sqlite").read_bytes().startswith(b"my own data")


async def test_a_ledger_names_a_chain_that_was_made_anew_and_goes_on_when_the_old_one_is_back(
    tmp_path: Path,
) -> None:
    kept, limits = tmp_path / "chain.sqlite", EvmLimits(rpc=RpcLimits(genesis_recheck_s=0.0))
    async with open_dev_chain(state=kept) as chain:
        await chain.fund(SOMEONE, usdc=5)
        profile, port = chain.profile(), int(chain.url.rpartition(":")[2])
        ledger = await EvmLedger.of_profile(profile, limits=limits)
        assert (await ledger.balances(SOMEONE)).usdc == 5
    try:
        async with open_dev_chain(port=port):
            with trio.fail_after(DEADLINE_S):
                session = SessionId(b"s" * 32)
                for question in (ledger.head(), ledger.balances(SOMEONE), ledger.session(session)):
                    with pytest.raises(ChainMadeAnewError, match="was made anew since this profile"):
                        await question
                with pytest.raises(ChainMadeAnewError):
                    await EvmLedger.of_profile(profile)
        async with open_dev_chain(port=port, state=kept):
            assert (await ledger.balances(SOMEONE)).usdc == 5
    finally:
        await ledger.aclose()


def _other_code(monkeypatch: pytest.MonkeyPatch, contract: str) -> None:
    """From now on this package has another version of a contract."""

    def plan(**options: Any) -> DeploymentPlan:
        made = plan_deployment(**options)
        steps = [
            replace(step, initcode=step.initcode + b"\0" * (step.contract == contract)) for step in made.steps
        ]
        return replace(made, steps=tuple(steps))

    monkeypatch.setattr(devchain, "plan_deployment", plan)


async def test_a_chain_with_earlier_registries_goes_on_for_its_sessions_must_not_be_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "chain.sqlite"
    async with open_dev_chain(state=kept) as chain:
        await chain.fund(SOMEONE, usdc=3)
    _other_code(monkeypatch, "ModelRegistry")
    async with open_dev_chain(state=kept) as chain:
        assert chain.went_on
        assert await chain.use(lambda _: chain.deployment.usdc.read("balanceOf", SOMEONE)) == 3


@pytest.mark.parametrize(
    "contract", ["JobMarketplace", *(pytest.param(each, marks=pytest.mark.long) for each in ("USDC", "FAB"))]
)
async def test_a_chain_with_an_earlier_market_or_token_does_not_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, contract: str
) -> None:
    kept = tmp_path / "chain.sqlite"
    async with open_dev_chain(state=kept):
        pass
    _other_code(monkeypatch, contract)
    with pytest.raises(ExceptionGroup) as refusal:
        async with open_dev_chain(state=kept):
            pass
    assert refusal.group_contains(ConfigError, match="contracts of another version")
