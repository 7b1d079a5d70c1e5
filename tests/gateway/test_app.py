"""The gateway against HTTP that is wrong, hostile or gone: each request is answered, and no slot is lost."""

from __future__ import annotations

import json
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from p2pnode.client.client import Client
from p2pnode.config import NodeConfig
from p2pnode.gateway.access import SingleKey
from p2pnode.gateway.app import AppOptions
from p2pnode.gateway.faults import FaultError
from p2pnode.gateway.gateway import Gateway
from p2pnode.models.model_list import list_blob
from p2pnode.models.subscriptions import Subscriptions
from tests.client.failing import engine_of
from tests.gateway.support import LIMITS, Stage, stage, until
from tests.models.lists import entry, head, pointer
from tests.node.world import world

PATH = "/v1/chat/completions"
ASK: dict[str, Any] = {
    "model": "scripted",
    "messages": [{"role": "user", "content": "hello"}],
    "max_tokens": 400,
    "temperature": 0,
}


def busy(s: Stage) -> bool:
    """Whether an engine of any host has work."""
    return any(engine_of(each).statistics().active for each in s.members)


async def slots_are_free(s: Stage, within_s: float = 0.5) -> None:
    """Wait until no engine has work: this is what a client that left must lead to, soon."""
    await until(lambda: not busy(s), within_s)


async def noted(s: Stage) -> None:
    """Wait for the record of the first request: it is made when all is sent."""
    await until(lambda: bool(s.records), 5)


async def test_each_wrong_request_has_its_status() -> None:
    limits = replace(LIMITS, gateway_body_bytes_max=10_000)
    ring = SingleKey("p2p-key", where="FILE")
    async with stage(1, limits=limits, ring=ring) as s, s.http() as http:
        key = {"authorization": "Bearer p2p-key"}
        json_type = {"content-type": "application/json"}
        cases: list[tuple[int, str, str, dict[str, str], bytes]] = [
            (401, "POST", PATH, json_type, b"{}"),
            (401, "GET", "/v1/models", {}, b""),
            (415, "POST", PATH, key | {"content-type": "text/plain"}, b"{}"),
            (413, "POST", PATH, key | json_type, b" " * 10_001),
            (400, "POST", PATH, key | json_type, b"{"),
            (404, "POST", PATH, key | json_type, json.dumps({**ASK, "model": "/etc/passwd"}).encode()),
            (404, "GET", "/v1/models/none", key, b""),
            (404, "GET", "/v1/models/a%0A/b", key, b""),
            (404, "GET", "/nothing", {}, b""),
            (405, "GET", PATH, {}, b""),
            (403, "GET", "/health", {"host": "rebound.example"}, b""),
            (403, "GET", "/health", {"origin": "https://page.example"}, b""),
            (200, "GET", "/health", {}, b""),
            (200, "HEAD", "/", {}, b""),
        ]
        for status, method, path, headers, body in cases:
            answer = await http.request(method, path, headers=headers, content=body)
            assert answer.status_code == status, (method, path, headers, answer.text)
            if status >= 400:
                assert answer.json()["error"]["message"]
            assert answer.headers["x-content-type-options"] == "nosniff"
        assert (await http.post(PATH, headers=json_type, content=b"{}")).headers["www-authenticate"]
        assert [each.status for each in s.records if each.face == "models"] == [401, 404, 404]


@pytest.mark.long
async def test_a_page_whose_origin_was_named_may_ask() -> None:
    async with stage(1, options=AppOptions(origins=["https://page.example"])) as s, s.http() as http:
        answer = await http.get("/health", headers={"origin": "https://page.example"})
        assert answer.status_code == 200


@pytest.mark.long
async def test_a_body_without_a_length_is_bounded_too() -> None:
    limits = replace(LIMITS, gateway_body_bytes_max=10_000)

    async def pieces() -> Any:
        for _ in range(40):
            yield b" " * 1000

    async with stage(1, limits=limits) as s, s.http() as http:
        answer = await http.post(PATH, headers={"content-type": "application/json"}, content=pieces())
        assert answer.status_code == 413


@pytest.mark.long
async def test_a_body_that_does_not_come_ends_its_request() -> None:
    limits = replace(LIMITS, gateway_stall_s=0.2)
    async with stage(1, limits=limits) as s:
        stream = await trio.open_tcp_stream("127.0.0.1", s.server.port)
        head = f"POST {PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        await stream.send_all(f"{head}Content-Length: 500\r\n\r\n{{".encode())
        with trio.fail_after(5):
            assert b" 408 " in await stream.receive_some()
        await stream.aclose()


@pytest.mark.long
@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_in_prefill_frees_the_slot(stream: bool) -> None:
    async with stage(1, prefill_tokens_per_s=20.0) as s:
        await leave(s, {**ASK, "stream": stream}, after=None)
        assert [each.outcome for each in s.records] == ["left"]


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_in_the_answer_frees_the_slot(stream: bool) -> None:
    async with stage(1, tokens_per_s=50.0) as s:
        await leave(s, {**ASK, "stream": stream, "n": 2}, after=5 if stream else None)
        assert [each.outcome for each in s.records] == ["left"]
        assert s.gateway.under_way == 0


async def leave(s: Stage, asked: dict[str, Any], *, after: int | None) -> None:
    """Ask, and close the connection while the engine works: after so many chunks, or soon."""
    connection = await trio.open_tcp_stream("127.0.0.1", s.server.port)
    body = json.dumps(asked).encode()
    head = f"POST {PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    await connection.send_all(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    with trio.fail_after(10):
        await until(lambda: busy(s), 10)
        got = b""
        while after is not None and got.count(b"data:") < after:
            got += await connection.receive_some()
    await connection.aclose()
    await slots_are_free(s)
    await noted(s)


@pytest.mark.long
async def test_a_silence_is_filled_and_an_error_after_it_is_an_event() -> None:
    limits = replace(LIMITS, gateway_idle_s=0.05)
    async with stage(1, limits=limits, prefill_tokens_per_s=20.0) as s:
        lines: list[str] = []
        async with s.http() as http, http.stream("POST", PATH, json={**ASK, "stream": True}) as answer:
            assert answer.status_code == 200
            async for line in answer.aiter_lines():
                lines.append(line)
                if line == ": waiting" and lines.count(line) == 3:
                    s.world.crash(s.members[0])
        assert lines.count(": waiting") >= 3
        told = [json.loads(each[6:]) for each in lines if each.startswith("data: {")]
        assert told[0]["choices"][0]["delta"]["role"] == "assistant"
        assert told[-1]["error"]["code"] in {"no_host", "host_failed"}
        assert [each for each in lines if each][-1] == "data: [DONE]"
        await noted(s)
        assert s.records[0].outcome == told[-1]["error"]["code"]


@pytest.mark.long
async def test_a_client_that_reads_nothing_holds_no_slot_and_no_end() -> None:
    async with stage(1) as s:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        sock.connect(("127.0.0.1", s.server.port))
        connection = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        body = json.dumps({**ASK, "max_tokens": 2000, "n": 4, "stream": True, "logprobs": True}).encode()
        head = f"POST {PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        await connection.send_all(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        await until(lambda: s.gateway.under_way > 0, 10)
        async with s.http() as http:  # others are served meanwhile
            assert (await http.post(PATH, json={**ASK, "max_tokens": 5})).status_code == 200
        s.server.stop()
        await until(lambda: not s.server.connections, 5)
        await connection.aclose()


@pytest.mark.long
async def test_nothing_of_a_clients_headers_or_key_reaches_a_host() -> None:
    seen: list[bytes] = []

    def script(prompt: tuple[int, ...], _seed: int) -> str:
        seen.append(bytes(each for each in prompt if each < 256))
        return "ok"

    async with stage(1, ring=SingleKey("p2p-secretkey", where="FILE"), script=script) as s:
        headers = {"authorization": "Bearer p2p-secretkey", "x-private": "headersecret"}
        asked = {**ASK, "user": "usersecret", "metadata": {"a": "metasecret"}}
        async with s.http(headers=headers) as http:
            answer = await http.post(PATH, json=asked)
        assert answer.json()["choices"][0]["message"]["content"] == "ok"
        assert seen
        assert not [each for each in seen if b"secret" in each]


@pytest.mark.long
async def test_a_request_may_name_its_host_and_its_price() -> None:
    async with stage(2) as s:
        for member in s.members:
            host = str(member.node.peer_id)
            async with s.http() as http:
                asked = {**ASK, "max_tokens": 5, "p2pnode": {"host": host, "max_price": "0"}}
                answer = await http.post(PATH, json=asked)
            assert answer.headers["x-p2pnode-host"] == host
            assert answer.json()["usage"]["p2pnode"]["cost"] == "0.00"


@pytest.mark.long
async def test_a_name_that_an_alias_gives_is_answered_under_that_name() -> None:
    async with stage(1, aliases=(("claude-*", "scripted"),)) as s, s.http() as http:
        answer = await http.post(PATH, json={**ASK, "model": "claude-x", "max_tokens": 3})
        assert answer.json()["model"] == "claude-x"
        answer = await http.post(PATH, json={**ASK, "model": "gpt-x", "max_tokens": 3})
        assert answer.status_code == 404


@pytest.mark.long
@pytest.mark.parametrize("quantisation", ["q4_1", "Q8_0"])
async def test_a_quantisation_that_the_model_has_not_is_refused(quantisation: str) -> None:
    async with stage(1) as s, s.http() as http:
        headers = {"x-p2pnode-quantisation": quantisation}
        asked = {**ASK, "model": "smollm2-135m-instruct"}
        answer: httpx.Response = await http.post(PATH, json=asked, headers=headers)
        assert answer.status_code == (400 if quantisation == "Q8_0" else 503), answer.text


@pytest.mark.long
async def test_a_conversation_goes_back_to_the_host_that_has_it() -> None:
    async with stage(3) as s, s.http() as http:
        hosts: dict[str, set[str]] = {}
        for question in ("one", "two", "three", "one", "two", "three"):
            asked = {**ASK, "max_tokens": 5, "messages": [{"role": "user", "content": question}]}
            answer = await http.post(PATH, json=asked)
            hosts.setdefault(question, set()).add(answer.headers["x-p2pnode-host"])
        assert {len(each) for each in hosts.values()} == {1}


async def test_a_model_of_a_subscribed_list_is_named_by_list_and_name(tmp_path: Path) -> None:
    blob = list_blob(head(), [entry("a")])
    async with world() as w, w.client() as made:
        config, node = NodeConfig(data_dir=tmp_path), made.node
        async with Client(config, node=node, remember=False) as client:
            Subscriptions(client.runtime.data.models).take(pointer(blob), blob, 1_800_000_000)
            gateway = Gateway(client, aliases=[("gpt-*", "small/a")])
            assert gateway.model_of("small/a") == gateway.model_of("Small/A") == "small/a"
            assert gateway.model_of("gpt-5") == "small/a"
            for wrong in ("small/none", "other/a", "a", "./small/a", str(tmp_path)):
                with pytest.raises(FaultError) as refused:
                    gateway.model_of(wrong)
                assert refused.value.fault.code == "model_not_found"
