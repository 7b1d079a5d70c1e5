"""Endpoints that fail in every way, on a mock clock; then on real sockets."""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import pairwise
from typing import Any

import httpx
import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from p2pnode.chain.evm.rpc import RpcEndpoints, RpcLimits
from p2pnode.chain.evm.rpc_answers import RpcError, endpoint_name, refusal_of, revert_reason
from p2pnode.chain.ledger import NO_REASON, UnavailableError
from p2pnode.errors import ChainError
from tests.chain.evm_world import Body

CHAIN = 84_532
KEY = "0123456789abcdef"
ONE = f"https://user:{KEY}@one.invalid/v2/{KEY}?key={KEY}"
TWO = "https://two.invalid:8545"
REVERT = {"code": 3, "message": "execution reverted: JobMarketplace: exists", "data": "0x"}

Handler = Callable[[str, int], Awaitable[httpx.Response]]


def said(number: int, **fields: Any) -> httpx.Response:
    return httpx.Response(200, stream=Body(json.dumps({"jsonrpc": "2.0", "id": number, **fields}).encode()))


def plain(status: int, body: bytes = b"", **headers: str) -> httpx.Response:
    return httpx.Response(status, stream=Body(body), headers=headers)


async def healthy(method: str, number: int) -> httpx.Response:
    return said(number, result=hex(CHAIN) if method == "eth_chainId" else "0x2a")


def answers(respond: Callable[[int], httpx.Response]) -> Handler:
    """An endpoint that names its chain rightly, and then answers with this."""

    async def handler(method: str, number: int) -> httpx.Response:
        return await healthy(method, number) if method == "eth_chainId" else respond(number)

    return handler


def fails(error: Exception) -> Handler:
    async def handler(method: str, number: int) -> httpx.Response:
        raise error

    return handler


def serves_chain(chain: int) -> Handler:
    async def handler(method: str, number: int) -> httpx.Response:
        return said(number, result=hex(chain) if method == "eth_chainId" else "0x63")

    return handler


async def never(method: str, number: int) -> httpx.Response:
    await trio.sleep_forever()
    raise AssertionError


class Servers(httpx.AsyncBaseTransport):
    def __init__(self, **handlers: Handler) -> None:
        self.handlers = handlers
        self.asked: list[tuple[str, str, float]] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await trio.lowlevel.checkpoint()
        asked = json.loads(await request.aread())
        name = request.url.host.partition(".")[0]
        self.asked.append((name, asked["method"], trio.current_time()))
        return await self.handlers[name](asked["method"], asked["id"])

    def endpoints(self, *urls: str, chain_id: int | None = CHAIN, **limits: Any) -> RpcEndpoints:
        return RpcEndpoints(
            urls or (ONE,), chain_id=chain_id, jitter=lambda: 0.5, limits=RpcLimits(**limits), transport=self
        )

    def tries(self, name: str) -> int:
        return sum(asked[0] == name for asked in self.asked)


def garbage(body: bytes) -> Callable[[int], httpx.Response]:
    return lambda _: plain(200, body)


def error_of(code: int, message: str) -> Callable[[int], httpx.Response]:
    return lambda number: said(number, error={"code": code, "message": message})


FAULTS: dict[str, tuple[Callable[[int], httpx.Response], str]] = {
    "an HTML page": (garbage(b"<html>maintenance</html>"), "no JSON"),
    "nothing": (garbage(b""), "no JSON"),
    "half an answer": (garbage(b'{"jsonrpc": "2.0", "id": 2, "result": "0x'), "no JSON"),
    "a list": (garbage(b"[]"), "no JSON-RPC"),
    "a string": (garbage(b'"0x2a"'), "no JSON-RPC"),
    "brackets without end": (garbage(b"[" * 9_000), "no JSON"),
    "not UTF-8": (garbage(b'{"result": "\xff\xfe"}'), "no JSON"),
    "an endless number": (garbage(b'{"id": ' + b"9" * 9_000 + b"}"), "no JSON"),
    "another id": (lambda number: said(number + 1, result="0x2a"), "another question"),
    "no id": (garbage(b'{"jsonrpc": "2.0", "result": "0x2a"}'), "another question"),
    "a boolean id": (garbage(b'{"jsonrpc": "2.0", "id": true, "result": "0x2a"}'), "another question"),
    "no result": (said, "another question"),
    "an error without a code": (lambda number: said(number, error="oops"), "no JSON-RPC"),
    "HTTP 429": (lambda _: plain(429, b"slow down"), "HTTP 429"),
    "HTTP 500": (lambda _: plain(500), "HTTP 500"),
    "HTTP 503": (lambda _: plain(503), "HTTP 503"),
    "a redirect": (lambda _: plain(302, location="https://two.invalid/"), "HTTP 302"),
    "compressed": (lambda _: plain(200, b"\x1f\x8b", **{"content-encoding": "gzip"}), "compressed"),
    "a huge answer": (garbage(b'"' + b"x" * 20_000 + b'"'), "more than 10000 bytes"),
    "a rate limit": (error_of(-32005, "daily request count exceeded"), "daily request count"),
    "a rate limit of its own": (error_of(-32000, "Too Many Requests"), "Too Many Requests"),
    "a lagging node": (error_of(-32000, "header not found"), "header not found"),
    "an internal error": (error_of(-32603, "Internal error"), "Internal error"),
    "a result of another form": (lambda number: said(number, result={"number": "0x2a"}), "no usable answer"),
}


@pytest.fixture(params=FAULTS)
def fault(request: pytest.FixtureRequest) -> tuple[Callable[[int], httpx.Response], str]:
    return FAULTS[request.param]


async def ask(endpoints: RpcEndpoints, method: str = "eth_blockNumber") -> Any:
    return await endpoints.request(method, [], lambda result: "" if isinstance(result, str) else "a text")


async def test_a_fault_of_one_endpoint_is_mended_by_the_next(
    fault: tuple[Callable[[int], httpx.Response], str], autojump_clock: trio.testing.MockClock
) -> None:
    servers = Servers(one=answers(fault[0]), two=healthy)
    endpoints = servers.endpoints(ONE, TWO, response_bytes_max=10_000)
    assert await ask(endpoints) == "0x2a"
    first, second = endpoints.status()
    assert first.last_error is not None
    assert fault[1] in first.last_error
    assert first.resting
    assert (second.resting, second.last_error, second.last_success_age_s) == (False, None, 0)
    await endpoints.aclose()


async def test_a_fault_of_the_only_endpoint_is_named_without_its_secrets(
    fault: tuple[Callable[[int], httpx.Response], str], autojump_clock: trio.testing.MockClock
) -> None:
    servers = Servers(one=answers(fault[0]))
    endpoints = servers.endpoints(ONE, response_bytes_max=10_000)
    with capture_logs() as logs, pytest.raises(ChainError) as caught:
        await ask(endpoints)
    assert fault[1] in str(caught.value)
    assert "https://one.invalid/…" in str(caught.value)
    shown = f"{caught.value}{endpoints.status()}{logs}"
    assert KEY not in shown
    assert "user" not in shown
    assert [log["event"] for log in logs] == ["chain.rpc_failed"]
    await endpoints.aclose()


async def test_a_healthy_endpoint_is_asked_once_and_shows_no_error(
    autojump_clock: trio.testing.MockClock,
) -> None:
    servers = Servers(one=healthy)
    endpoints = servers.endpoints()
    assert await ask(endpoints) == "0x2a"
    assert await ask(endpoints) == "0x2a"
    assert [method for _, method, _ in servers.asked] == ["eth_chainId", "eth_blockNumber", "eth_blockNumber"]
    (status,) = endpoints.status()
    assert (status.endpoint, status.resting, status.last_error) == ("https://one.invalid/…", False, None)
    await endpoints.aclose()


async def test_an_endpoint_away_for_a_minute_is_asked_seldom_and_used_again_when_it_is_back(
    autojump_clock: trio.testing.MockClock,
) -> None:
    down = fails(httpx.ConnectError("refused"))
    servers = Servers(one=down)
    endpoints = servers.endpoints(chain_id=None)
    while trio.current_time() < 60:
        with pytest.raises(UnavailableError, match="can't be reached"):
            await ask(endpoints)
        await trio.sleep(1)
    assert 5 <= servers.tries("one") <= 10
    servers.handlers["one"] = healthy
    with trio.fail_after(31):
        while True:
            try:
                assert await ask(endpoints) == "0x2a"
                break
            except UnavailableError:
                await trio.sleep(1)
    status = endpoints.status()[0]
    assert not status.resting
    assert status.last_error == "can't be reached"
    assert status.last_success_age_s == 0
    await endpoints.aclose()


async def test_a_short_hiccup_of_the_only_endpoint_is_not_noticed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    servers = Servers(one=fails(httpx.ReadError("reset")))
    endpoints = servers.endpoints()

    async def mend() -> None:
        await trio.sleep(3)
        servers.handlers["one"] = healthy

    async with trio.open_nursery() as nursery:
        nursery.start_soon(mend)
        assert await ask(endpoints) == "0x2a"
    assert 3 <= trio.current_time() < 10
    await endpoints.aclose()


async def test_a_slow_endpoint_costs_one_deadline_and_then_rests(
    autojump_clock: trio.testing.MockClock,
) -> None:
    servers = Servers(one=never, two=healthy)
    endpoints = servers.endpoints(ONE, TWO)
    assert await ask(endpoints) == "0x2a"
    assert trio.current_time() == 10
    assert await ask(endpoints) == "0x2a"
    assert trio.current_time() == 10
    assert endpoints.status()[0].last_error == "did not answer within 10 s"
    await endpoints.aclose()


async def test_an_endpoint_that_trickles_is_cut_off(autojump_clock: trio.testing.MockClock) -> None:
    class Drops(httpx.AsyncByteStream):
        async def __aiter__(self) -> Any:
            while True:
                yield b" "
                await trio.sleep(1)

    servers = Servers(one=answers(lambda _: httpx.Response(200, stream=Drops())))
    endpoints = servers.endpoints()
    with pytest.raises(UnavailableError, match="did not answer within"):
        await ask(endpoints)
    assert trio.current_time() == 20
    await endpoints.aclose()


async def test_the_callers_own_deadline_comes_first(autojump_clock: trio.testing.MockClock) -> None:
    endpoints = Servers(one=never).endpoints()
    with trio.move_on_after(2) as scope:
        await ask(endpoints)
    assert scope.cancelled_caught
    assert trio.current_time() == 2
    await endpoints.aclose()


@pytest.mark.parametrize(
    ("method", "error"),
    [
        ("eth_call", REVERT),
        ("eth_call", {"code": -32603, "message": "execution reverted"}),
        ("eth_sendRawTransaction", {"code": -32000, "message": "nonce too low"}),
        ("eth_sendRawTransaction", {"code": -32000, "message": "already known"}),
        ("eth_sendRawTransaction", {"code": -32003, "message": "insufficient funds for gas"}),
        ("eth_getLogs", {"code": -32005, "message": "query returned more than 10000 results"}),
        ("eth_feeHistory", {"code": -32601, "message": "the method does not exist"}),
    ],
)
async def test_an_error_about_the_question_is_an_answer_and_no_fault(
    method: str, error: dict[str, Any], autojump_clock: trio.testing.MockClock
) -> None:
    servers = Servers(one=answers(lambda number: said(number, error=error)), two=healthy)
    endpoints = servers.endpoints(ONE, TWO)
    with pytest.raises(RpcError) as answered:
        await ask(endpoints, method)
    assert (answered.value.code, answered.value.said) == (error["code"], error["message"])
    assert not answered.value.doubt
    assert servers.tries("two") == 0
    assert endpoints.status()[0].last_error is None
    await endpoints.aclose()


async def test_an_answer_after_a_lost_one_is_in_doubt(autojump_clock: trio.testing.MockClock) -> None:
    refusal = answers(lambda number: said(number, error={"code": -32000, "message": "nonce too low"}))
    lost = answers(lambda _: plain(502))
    for first, doubt in ((lost, True), (fails(httpx.ConnectError("refused")), False)):
        endpoints = Servers(one=first, two=refusal).endpoints(ONE, TWO)
        with pytest.raises(RpcError) as answered:
            await ask(endpoints, "eth_sendRawTransaction")
        assert answered.value.doubt is doubt
        await endpoints.aclose()


# ---- chains


async def test_an_endpoint_of_another_chain_is_never_believed(autojump_clock: trio.testing.MockClock) -> None:
    servers = Servers(one=serves_chain(1), two=healthy)
    endpoints = servers.endpoints(ONE, TWO)
    assert await ask(endpoints) == "0x2a"
    assert endpoints.status()[0].last_error == f"serves chain 1, not {CHAIN}"
    await endpoints.aclose()


async def test_when_all_endpoints_serve_another_chain_the_field_to_correct_is_named_at_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    endpoints = Servers(one=serves_chain(1)).endpoints()
    with pytest.raises(
        ChainError, match=rf"serves chain 1, not {CHAIN}: correct chain_id or rpc_urls"
    ) as caught:
        await ask(endpoints)
    assert not isinstance(caught.value, UnavailableError)
    assert trio.current_time() == 0
    await endpoints.aclose()


async def test_a_chain_that_changes_under_an_endpoint_is_found_out(
    autojump_clock: trio.testing.MockClock,
) -> None:
    servers = Servers(one=healthy, two=healthy)
    endpoints = servers.endpoints(ONE, TWO)
    await ask(endpoints)
    servers.handlers["one"] = serves_chain(1)
    await trio.sleep(60)
    assert await ask(endpoints) == "0x2a"
    assert endpoints.status()[0].last_error == f"serves chain 1, not {CHAIN}"
    await endpoints.aclose()


async def test_an_endpoint_that_was_away_must_name_its_chain_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    servers = Servers(one=healthy)
    endpoints = servers.endpoints()
    await ask(endpoints)
    servers.handlers["one"] = fails(httpx.ConnectError("refused"))
    with pytest.raises(UnavailableError):
        await ask(endpoints)
    servers.handlers["one"] = serves_chain(1)
    await trio.sleep(30)
    with pytest.raises(ChainError, match="serves chain 1"):
        await ask(endpoints)
    await endpoints.aclose()


# ---- order and rests


async def test_the_endpoint_that_answered_is_kept_until_it_fails(
    autojump_clock: trio.testing.MockClock,
) -> None:
    servers = Servers(one=fails(httpx.ConnectError("refused")), two=healthy)
    endpoints = servers.endpoints(ONE, TWO)
    await ask(endpoints)
    servers.handlers["one"] = healthy
    await trio.sleep(60)
    servers.asked.clear()
    await ask(endpoints)
    assert {name for name, _, _ in servers.asked} == {"two"}
    servers.handlers["two"] = fails(httpx.ConnectError("refused"))
    assert await ask(endpoints) == "0x2a"
    await endpoints.aclose()


async def test_rests_grow_to_a_bound_and_are_shaken_by_the_injected_randomness(
    autojump_clock: trio.testing.MockClock,
) -> None:
    pauses = []
    for shake in (0.0, 0.999):
        servers = Servers(one=fails(httpx.ConnectError("refused")))
        endpoints = RpcEndpoints(
            [ONE], chain_id=None, jitter=partial(float, shake), transport=servers,
            limits=RpcLimits(deadline_s=300.0),
        )  # fmt: skip
        with pytest.raises(UnavailableError):
            await ask(endpoints)
        times = [at for _, _, at in servers.asked]
        pauses.append([later - sooner for sooner, later in pairwise(times)])
        await endpoints.aclose()
    short, long = pauses
    assert short[:4] == pytest.approx([0.125, 0.25, 0.5, 1.0])
    assert max(short) == pytest.approx(15.0)
    assert 29 < max(long) < 30
    assert all(a < b for a, b in zip(short, long, strict=False))


async def test_many_requests_failing_at_once_are_one_failure(autojump_clock: trio.testing.MockClock) -> None:
    servers = Servers(one=answers(lambda _: plain(500)))
    endpoints = servers.endpoints(rest_first_s=1.0, deadline_s=0.5)
    async with trio.open_nursery() as nursery:

        async def refused() -> None:
            with pytest.raises(UnavailableError):
                await ask(endpoints)

        for _ in range(20):
            nursery.start_soon(refused)
    await trio.sleep(1.0)
    servers.handlers["one"] = healthy
    assert await ask(endpoints) == "0x2a"
    await endpoints.aclose()


async def test_answers_too_large_everywhere_are_an_answer_for_who_can_ask_for_less(
    autojump_clock: trio.testing.MockClock,
) -> None:
    large = answers(lambda _: plain(200, b"x" * 2_000))
    endpoints = Servers(one=large, two=large).endpoints(ONE, TWO, response_bytes_max=1_000)
    with pytest.raises(RpcError, match="more than 1000 bytes"):
        await ask(endpoints, "eth_getLogs")
    assert trio.current_time() == 0
    await endpoints.aclose()


async def test_no_endpoint_at_all_is_an_error_that_names_the_field() -> None:
    with pytest.raises(ChainError, match="rpc_urls"):
        RpcEndpoints([], chain_id=CHAIN, jitter=lambda: 0.5)


async def test_httpx_writes_no_url_to_its_log(
    caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
) -> None:
    endpoints = Servers(one=healthy).endpoints()
    with caplog.at_level(logging.INFO):
        await ask(endpoints)
    assert KEY not in caplog.text
    await endpoints.aclose()


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (ONE, "https://one.invalid/…"),
        (TWO, "https://two.invalid:8545"),
        ("http://127.0.0.1:8545/", "http://127.0.0.1:8545"),
        (f"https://h.invalid?apikey={KEY}", "https://h.invalid/…"),
        (f"http://[{KEY}", "?"),
        (f"https://h.invalid:{KEY}/", "?"),
    ],
)
def test_an_endpoint_is_shown_without_what_may_be_a_secret(url: str, shown: str) -> None:
    assert endpoint_name(url) == shown
    assert KEY not in endpoint_name(url)


@pytest.mark.parametrize("code", [-32000, -32005])
async def test_a_server_that_repeats_our_key_does_not_get_it_shown(
    code: int, autojump_clock: trio.testing.MockClock
) -> None:
    rude = answers(error_of(code, f"quota of {KEY} \x1b[31m is fine"))
    polite = answers(error_of(code, f"unknown key {KEY}\x1b[31m"))
    for handler in (rude, polite):
        endpoints = Servers(one=handler).endpoints()
        with pytest.raises(ChainError) as caught:
            await ask(endpoints)
        shown = f"{caught.value}{caught.value!r}{endpoints.status()}"
        assert KEY not in shown
        assert "\x1b" not in str(caught.value)
        await endpoints.aclose()


# ---- words


@pytest.mark.parametrize(
    ("message", "data", "reason"),
    [
        ("execution reverted: JobMarketplace: exists", None, "JobMarketplace: exists"),
        ("execution reverted", None, NO_REASON),
        ("execution reverted", "0x", NO_REASON),
        (
            "execution reverted",
            "0x08c379a0" + "20".rjust(64, "0") + "05".rjust(64, "0") + b"hello".hex().ljust(64, "0"),
            "hello",
        ),
        (
            "VM execution error.",
            "Reverted 0x08c379a0" + "20".rjust(64, "0") + "05".rjust(64, "0") + b"hello".hex().ljust(64, "0"),
            "hello",
        ),
        ("execution reverted: \x1b[2Jcleared", None, "\N{REPLACEMENT CHARACTER}[2Jcleared"),
        ("execution reverted", "0x08c379a0", NO_REASON),
        ("execution reverted", "0x08c379a0" + "20".rjust(64, "0") + "f" * 64 + b"cut".hex(), "cut"),
        ("execution reverted", "0x4e487b71" + "11".rjust(64, "0"), "panic 0x11"),
        ("execution reverted: custom error 0x1234", "0x12345678", NO_REASON),
        ("nonce too low", None, None),
        ("insufficient funds for gas * price + value", None, None),
    ],
)
def test_a_reverts_reason_is_read_in_every_dialect(
    message: str, data: str | None, reason: str | None
) -> None:
    assert revert_reason(RpcError(3, message, data)) == reason


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("already known", "known"),
        ("transaction already imported", "known"),
        ("nonce too low: next nonce 5, tx nonce 4", "nonce_used"),
        ("nonce is too low", "nonce_used"),
        ("replacement transaction underpriced", "nonce_taken"),
        ("transaction underpriced", "fee_too_low"),
        ("max fee per gas less than block base fee", "fee_too_low"),
        ("insufficient funds for gas * price + value: address 0x1 have 1 want 2", "no_ether"),
        ("Insufficient funds for gas * price + value", "no_ether"),
        ("exceeds block gas limit", "other"),
        ("invalid chain id for signer: have 1 want 2", "other"),
    ],
)
def test_a_refused_transaction_is_understood_in_every_dialect(message: str, kind: str) -> None:
    assert refusal_of(RpcError(-32000, message, None)) == kind


# ---- real sockets


async def serve(handler: Callable[[trio.SocketStream], Awaitable[None]], *, task_status: Any) -> None:
    async def connection(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some(1 << 16)
            await handler(stream)

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    task_status.started(f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}")
    await trio.serve_listeners(connection, listeners)


async def cut_off(stream: trio.SocketStream) -> None:
    await stream.send_all(b'HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{"jsonrpc": "2.0"')


async def no_http(stream: trio.SocketStream) -> None:
    await stream.send_all(b"220 smtp.invalid ESMTP ready\r\n")


async def hang_up(stream: trio.SocketStream) -> None:
    await stream.aclose()


async def silent(stream: trio.SocketStream) -> None:
    await trio.sleep_forever()


async def flood(stream: trio.SocketStream) -> None:
    await stream.send_all(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        try:
            await stream.send_all(b"x" * 65_536)
        except trio.BrokenResourceError:
            return


@pytest.mark.parametrize(
    ("handler", "says"),
    [
        (cut_off, "broke the connection"),
        (no_http, "broke the connection"),
        (hang_up, "broke the connection"),
        (silent, "did not answer within"),
        (flood, "more than 4194304 bytes"),
    ],
)
async def test_a_broken_server_is_a_failed_endpoint(
    handler: Callable[[trio.SocketStream], Awaitable[None]], says: str
) -> None:
    limits = RpcLimits(
        request_deadline_s=0.2 if handler is silent else 5.0, deadline_s=5.0, rest_first_s=60.0
    )
    async with trio.open_nursery() as nursery:
        url = await nursery.start(lambda task_status: serve(handler, task_status=task_status))
        endpoints = RpcEndpoints([url], chain_id=None, jitter=lambda: 0.5, limits=limits)
        with pytest.raises(ChainError, match=says):
            await ask(endpoints)
        await endpoints.aclose()
        nursery.cancel_scope.cancel()


async def test_a_port_where_nobody_listens_is_a_failed_endpoint() -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    await listeners[0].aclose()
    endpoints = RpcEndpoints(
        [f"http://127.0.0.1:{port}/{KEY}"], chain_id=CHAIN, jitter=lambda: 0.5,
        limits=RpcLimits(rest_first_s=60.0),
    )  # fmt: skip
    with pytest.raises(UnavailableError, match="can't be reached") as caught:
        await ask(endpoints)
    assert KEY not in str(caught.value)
    await endpoints.aclose()
