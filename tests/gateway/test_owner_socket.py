"""The owner socket: who may ask through it, and what becomes of its work when either end goes away."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from p2pnode.client.chosen import chosen_client
from p2pnode.client.client import Client
from p2pnode.client.interface import Answer
from p2pnode.client.proxy.proxy_client import ProxyClient, ask_gateway
from p2pnode.config import NodeConfig
from p2pnode.errors import ConfigError, LocalError
from p2pnode.gateway.owner_socket import OwnerSocket
from p2pnode.models.manifest import SCRIPTED, scripted_model_id
from p2pnode.node.datadir import DataDir
from p2pnode.private_socket import connect_private
from p2pnode.protocols.inference.messages import SamplingParams
from tests.client.failing import ONE_BY_ONE, seeds
from tests.client.machines import machine, options, say
from tests.client.support import Events
from tests.node.world import Member, World, scripted_host, world

SLOW = 10.0


@dataclass
class Stage:
    world: World
    host: Member
    under: Client
    owner: OwnerSocket
    client: ProxyClient
    scope: trio.CancelScope
    """Of the gateway: cancelled, it is as if it were killed."""

    @property
    def path(self) -> str:
        return str(self.owner.path)


@asynccontextmanager
async def stage(tokens_per_s: float = SLOW) -> AsyncIterator[Stage]:
    async with world(limits=ONE_BY_ONE) as w:
        host = await w.add([scripted_host(tokens_per_s=tokens_per_s)])
        async with w.client(seeds([host])) as under, trio.open_nursery() as nursery:
            owner = OwnerSocket(under)
            await nursery.start(owner.run)
            async with ProxyClient(str(owner.path)) as client:
                yield Stage(w, host, under, owner, client, nursery.cancel_scope)
            nursery.cancel_scope.cancel()


def ask(client: ProxyClient, tokens: int = 40) -> Answer:
    return client.chat("hello", model=SCRIPTED, sampling=SamplingParams(tokens_max=tokens, temperature=0))


def turns_under_way(s: Stage) -> int:
    return s.under.pool.under_way(s.host.node.peer_id, scripted_model_id())


# ---- whose it is


async def test_only_its_user_can_reach_the_socket_and_nothing_is_left_of_it() -> None:
    async with stage() as s:
        folder = s.owner.path.parent
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert folder.parent == Path(tempfile.gettempdir())
    assert not folder.exists()


async def test_a_folder_of_another_user_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stage() as s:
        monkeypatch.setattr(os, "getuid", lambda: tmp_path.stat().st_uid + 1)
        with pytest.raises(PermissionError, match="another user"):
            await connect_private(s.path)
        assert await ask_gateway(s.path, {}) is None
        with pytest.raises(LocalError, match="is gone"):
            await s.client.hosts(SCRIPTED)


async def test_settings_that_the_gateway_does_not_have_are_named() -> None:
    async with stage() as s:
        assert await ask_gateway(s.path, {}) == ()
        first = tuple(s.under.runtime.bootstrap)
        same = {"bootstrap": first, "mdns": True, "spend_session_max": 1_000_000, "chain": ""}
        assert await ask_gateway(s.path, same) == ()
        other = {**same, "bootstrap": (*first, f"/ip4/10.0.0.9/tcp/1/p2p/{s.host.node.peer_id}")}
        assert await ask_gateway(s.path, other) == ("bootstrap",)
        assert await ask_gateway(s.path, {"bootstrap": ("not an address",)}) == ("bootstrap",)
        wanted = {"mdns": False, "spend_session_max": 5, "closes": True, "chain": "/elsewhere.toml"}
        assert await ask_gateway(s.path, wanted) == tuple(wanted)


async def test_a_key_with_a_budget_is_not_for_the_owners_socket() -> None:
    async with stage() as s:
        with pytest.raises(ConfigError, match="leave the budget out"):
            s.client.chat("hello", budget=object())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x00\x00\x00\x01\xc1",
        b"\x00\x00\x00\x01\x80",
        b"\xff\xff\xff\xff",
        b"\x00\x00\x00\x0c\x81\xa2do\xa7nonsens",
        b"\x00\x00\x00\x09\x81\xa2do\xa4call",
        b"\x00\x00\x00\x0f\x82\xa1\x00\xa7os:path\xa1x\xa1y",
    ],
)
async def test_what_is_no_message_ends_its_connection_alone(autojump_clock: MockClock, sent: bytes) -> None:
    async with stage(tokens_per_s=1000.0) as s:
        stream = await connect_private(s.path)
        async with stream:
            await stream.send_all(sent)
            with trio.fail_after(30):
                while await stream.receive_some():
                    pass
        async with ask(s.client) as answer:
            assert len("".join([piece async for piece in answer])) == 40


async def test_no_more_is_carried_at_once_than_the_bound_and_less_again_when_programs_leave() -> None:
    async with stage() as s:
        most = s.under.runtime.limits.gateway_connections_max
        idle = [await connect_private(s.path) for _ in range(most)]
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(LocalError, match="too much of the gateway"):
            await s.client.known_adverts()
        assert await ask_gateway(s.path, {}) is None, "a command uses its own network then"
        for each in idle:
            await each.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert await ask_gateway(s.path, {}) == ()


# ---- when an end goes away


async def test_a_program_that_is_gone_leaves_no_turn_at_its_host(autojump_clock: MockClock) -> None:
    async with stage() as s:
        answer = ask(s.client, tokens=400)
        await anext(answer)
        assert turns_under_way(s) == 1
        del answer  # as where the process is killed: its connection closes
        with trio.fail_after(2):
            while turns_under_way(s):  # noqa: ASYNC110 - nobody tells
                await trio.sleep(0.1)


async def test_a_gateway_that_dies_is_told_with_what_came_of_the_answer(autojump_clock: MockClock) -> None:
    async with stage() as s:
        answer = ask(s.client)
        text = await anext(answer) + await anext(answer)
        s.scope.cancel()
        with pytest.raises(LocalError, match=r"ended in the middle of the answer after \d+ tokens"):
            await say_rest(answer)
        assert answer.text.startswith(text)
        assert len(answer.text) == len(answer.ids) < 40
        assert len(answer.held.ids) == len(answer.ids)
        with pytest.raises(StopAsyncIteration):
            await anext(answer)
        with pytest.raises(LocalError, match="is gone"):
            await anext(ask(s.client))


async def test_a_gateway_that_ends_in_order_lets_answers_end_and_waits_for_no_idle_chat(
    autojump_clock: MockClock,
) -> None:
    async with stage() as s:
        idle = await s.client.new_conversation(options(5))
        await say(idle, "hello")
        answer = ask(s.client)
        await anext(answer)
        async with trio.open_nursery() as nursery:
            with trio.fail_after(10):
                nursery.start_soon(s.owner.stop)
                rest = [piece async for piece in answer]
        assert len(rest) == 39
        assert answer.usage is not None
        assert not s.owner.path.exists()
        with pytest.raises(LocalError, match="gateway that runs here ended"):
            await say(idle, "and more")


async def test_a_conversation_cut_by_the_death_of_the_gateway_is_known_and_can_be_resumed(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with world(limits=ONE_BY_ONE) as w:
        host = await w.add([scripted_host(tokens_per_s=20.0)])
        async with machine(w, tmp_path, knows=[host]) as under:
            async with trio.open_nursery() as nursery:
                owner = OwnerSocket(under)
                await nursery.start(owner.run)
                client = ProxyClient(str(owner.path))
                conversation = await client.new_conversation(options(80))
                answer = conversation.ask("hello")
                for _ in range(40):
                    await anext(answer)
                nursery.cancel_scope.cancel()
            with pytest.raises(LocalError, match="ended in the middle"):
                await say_rest(answer)
            assert (conversation.cut_short, conversation.is_kept) == (True, True)
            await conversation.wait_written()  # which it can't any more, and doesn't wait
            assert conversation.sid is not None
            await client.__aexit__(None, None, None)
        async with machine(w, tmp_path, knows=[host], ip="10.0.9.8") as later:
            resumed = await later.resume(conversation.sid)
            assert resumed.cut_short
            rest = resumed.go_on()
            await say_rest(rest)
            assert rest.text.startswith(answer.text[:32])
            assert len(rest.ids) == 80
            assert sum(item.tokens_out for item in rest.bill) <= 80 - 32, "what was held is not asked again"


async def test_a_kept_conversation_is_found_and_resumed_through_the_gateway_that_runs(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with world(limits=ONE_BY_ONE) as w:
        host = await w.add([scripted_host()])
        async with machine(w, tmp_path, knows=[host]) as under, trio.open_nursery() as nursery:
            owner = OwnerSocket(under)
            await nursery.start(owner.run)
            async with ProxyClient(str(owner.path)) as client:
                conversation = await client.new_conversation(options(20))
                await say(conversation, "hello")
                await conversation.wait_written()
                assert conversation.sid is not None
                sid = conversation.sid
            async with ProxyClient(str(owner.path)) as client:
                found = await client.find_conversation(sid.hex()[:8])
                assert ([each.sid for each in found.conversations], found.recovered) == ([sid], None)
                resumed = await client.resume(sid)
                assert (resumed.sid, resumed.cut_short, resumed.losses) == (sid, False, ())
                answer = resumed.ask("and more")
                await say_rest(answer)
                assert answer.usage is not None
                assert answer.usage.tokens_in > 2 * len("hello"), "what was said before is in the prompt"
                nobody = await client.find_conversation("0" * 32)
                assert nobody.conversations == ()
                assert nobody.recovered is not None, "others were asked"
                with pytest.raises(LocalError):
                    await client.resume(bytes(16))
            nursery.cancel_scope.cancel()


async def say_rest(answer: Answer) -> None:
    async with answer:
        async for _ in answer:
            pass


async def test_events_of_an_answer_are_its_programs_alone_and_later_ones_the_gateways(
    autojump_clock: MockClock,
) -> None:
    async with stage(tokens_per_s=1000.0) as s:
        own, others, gateways = Events(), Events(), Events()
        gateways.of(s.under)
        async with ProxyClient(s.path, on_event=own) as one, ProxyClient(s.path, on_event=others) as two:
            await say_rest(ask(one))
            assert [name for name, _ in own.told] == ["host"]
            assert others.told == gateways.told == []
            await say_rest(ask(two))
        assert len(own.told) == 1
        assert len(others.named("host")) == 1
        await say_rest(s.under.chat("hello", model=SCRIPTED, sampling=SamplingParams(tokens_max=5)))
        assert gateways.named("host")


# ---- which client is chosen


async def test_without_a_gateway_the_own_network_is_chosen_and_with_one_the_gateway(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    made: list[Client] = []
    differs: list[tuple[str, ...]] = []

    async with stage(tokens_per_s=1000.0) as s:

        def make() -> Client:
            made.append(Client(NodeConfig(data_dir=tmp_path, mdns=False), node=s.under.node, remember=False))
            return made[-1]

        def chosen(**wanted: object) -> object:
            return chosen_client(tmp_path, wanted, make, on_event=Events(), on_own=differs.append)

        data = DataDir(tmp_path)
        async with chosen() as client:  # type: ignore[attr-defined]
            assert client is made[0]
        text = f'{{"pid": 1, "url": "http://127.0.0.1:1", "keys_required": false, "socket": "{s.path}"}}'
        data.gateway_json.write_text(text)
        async with chosen() as client:  # type: ignore[attr-defined]
            assert client is made[1], "nobody holds the lock: the file is stale"
        with data.gateway_locked():
            async with chosen() as client:  # type: ignore[attr-defined]
                assert isinstance(client, ProxyClient)
                await say_rest(client.chat("hello", model=SCRIPTED))
            async with chosen(mdns=False) as client:  # type: ignore[attr-defined]
                assert client is made[2]
            assert differs == [("mdns",)]
            data.gateway_json.write_text(text.replace("owner.sock", "gone.sock"))
            async with chosen() as client:  # type: ignore[attr-defined]
                assert client is made[3], "it can't be asked"
        assert differs == [("mdns",)], "a gateway that is gone is no news"
