"""The client itself: what it takes, whom it asks first, and errors that callers can catch by name."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from p2pnode.client.client import Client
from p2pnode.client.question import resolve_model
from p2pnode.config import NodeConfig
from p2pnode.errors import ConfigError, NoHostError, RefusedError, UnreachableError
from p2pnode.models.catalogue import DEFAULT_MODEL, Catalogue
from p2pnode.models.manifest import SCRIPTED, model_id_text, scripted_model_id
from p2pnode.net.multiaddrs import PeerAddresses
from p2pnode.net.saved_peers import SavedPeers
from p2pnode.net.stream import Stream
from p2pnode.node.datadir import DataDir
from p2pnode.node.invite import make_invite
from p2pnode.protocols.adverts.messages import PROTOCOL as ADVERTS
from p2pnode.protocols.inference.messages import SamplingParams
from tests.client.machines import machine
from tests.client.support import ask, peer, whole
from tests.node.world import scripted_host, world

FIRST = f"/ip4/127.0.0.1/tcp/1/p2p/{peer(1)}"
SECOND = f"/ip4/127.0.0.1/tcp/1/p2p/{peer(2)}"


def _client(tmp_path: Path, **options: object) -> Client:
    return Client(NodeConfig(data_dir=tmp_path, mdns=False), **options)  # type: ignore[arg-type]


async def test_an_error_inside_the_client_is_raised_as_itself_and_not_in_a_group(tmp_path: Path) -> None:
    with pytest.raises(NoHostError, match="this node knows no other"):
        async with _client(tmp_path) as client:
            await whole(ask(client))
    with pytest.raises(KeyError):
        async with _client(tmp_path):
            raise KeyError("the caller's own")


async def test_a_client_whose_scope_is_cancelled_leaves_at_once(tmp_path: Path) -> None:
    with trio.fail_after(10), trio.CancelScope() as scope:
        async with _client(tmp_path):
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught


async def test_a_client_that_was_not_entered_says_how_to_use_it(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="use the client as `async with"):
        await _client(tmp_path).hosts()


async def test_an_invite_is_a_first_peer_as_good_as_a_multiaddr(autojump_clock: MockClock) -> None:
    async with world() as w:
        host = await w.add([scripted_host()])
        async with w.client([make_invite(host.node.multiaddrs)]) as client:
            assert await whole(ask(client))


@pytest.mark.parametrize(
    ("bootstrap", "message"),
    [
        ("nonsense", "is no multiaddr; a right one looks like /ip4/"),
        ("/ip4/127.0.0.1/tcp/4001", "must end in /p2p/<peer id>"),
        ("p2pnode1AAAA", "this invite is damaged: copy it again"),
    ],
)
def test_a_malformed_first_peer_is_refused_at_once(tmp_path: Path, bootstrap: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _client(tmp_path, bootstrap=[bootstrap])


async def test_the_node_on_this_data_dir_is_asked_first_and_saved_peers_last(tmp_path: Path) -> None:
    data = DataDir(tmp_path)
    saved = {
        "peer": peer(3),
        "addrs": [f"/ip4/127.0.0.1/tcp/3/p2p/{peer(3)}"],
        "last_seen": 1.0,
        "failures": 0,
    }
    data.peers.write_text(json.dumps({"format": 2, "peers": [saved]}))
    client = _client(tmp_path, bootstrap=[SECOND])
    with data.locked():
        data.write_node_json(peer(1), [FIRST])
        client.runtime.make_node()
    assert await client.searches.first_peers() == [FIRST, SECOND, saved["addrs"][0]]  # type: ignore[index]


async def test_a_stale_node_file_is_ignored(tmp_path: Path) -> None:
    data = DataDir(tmp_path)
    data.write_node_json(peer(1), [FIRST])
    client = _client(tmp_path, bootstrap=[SECOND])
    client.runtime.make_node()
    assert await client.searches.first_peers() == [SECOND]
    assert json.loads(data.node_json.read_text())["pid"] == os.getpid()


def test_models_are_known_by_name_and_by_id_and_a_file_is_not(tmp_path: Path) -> None:
    entry = Catalogue.load().find(DEFAULT_MODEL)
    assert entry.model_id is not None
    assert resolve_model(DEFAULT_MODEL, tmp_path).model == entry.model_id
    assert resolve_model(model_id_text(entry.model_id), tmp_path).model == entry.model_id
    assert resolve_model(SCRIPTED, tmp_path).model == scripted_model_id()
    with pytest.raises(ConfigError, match=r"unknown model 'smollm': did you mean 'smollm2-135m-instruct'\?"):
        resolve_model("smollm", tmp_path)
    with pytest.raises(ConfigError, match="unknown model 'm1nonsense'"):
        resolve_model("m1nonsense", tmp_path)
    (tmp_path / "my.gguf").write_bytes(b"GGUF")
    with pytest.raises(ConfigError, match="is a file: ask for it by its model id"):
        resolve_model(str(tmp_path / "my.gguf"), tmp_path)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "there is nothing to ask"),
        ([{"role": "robot", "content": "x"}], "each message is"),
        ([{"role": "user", "content": 7}], "each message is"),
        ([{"role": "user", "content": "\ud800"}], "half of a character"),
    ],
)
def test_a_conversation_that_makes_no_sense_is_refused_at_once(
    tmp_path: Path, messages: list[dict[str, str]], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        _client(tmp_path).chat(messages, model=SCRIPTED)


async def test_a_system_message_changes_the_answer(autojump_clock: MockClock) -> None:
    async with world() as w:
        host = await w.add([scripted_host()])
        async with w.client(host.node.multiaddrs[:1]) as client:
            plain = await whole(ask(client))
            assert plain == await whole(ask(client))
            told = client.chat(
                "hello",
                model=SCRIPTED,
                system="Be brief.",
                sampling=SamplingParams(tokens_max=80, temperature=0),
            )
            assert await whole(told) != plain


async def test_a_peer_named_by_multiaddr_is_asked_and_nobody_else(autojump_clock: MockClock) -> None:
    async with world() as w:
        first = await w.add([scripted_host()])
        second = await w.add([scripted_host()], bootstrap=first.node.multiaddrs[:1])
        async with w.client(first.node.multiaddrs[:1]) as client:
            answer = ask(client, peer=second.node.multiaddrs[0])
            await whole(answer)
            assert answer.host == second.node.peer_id
        assert first.host is not None
        assert first.host.totals.turns == 0


async def test_a_named_peer_is_asked_although_it_failed_before(autojump_clock: MockClock) -> None:
    async with world() as w:
        host = await w.add([scripted_host()])
        async with w.client(host.node.multiaddrs[:1]) as client:
            client.searches.note_failure(host.node.peer_id, turn=True, fault=True)
            with pytest.raises(NoHostError, match="broke the protocol"):
                await whole(ask(client))
            assert await whole(ask(client, peer=host.node.multiaddrs[0]))


async def test_a_wrong_peer_id_is_told_from_a_wrong_address(autojump_clock: MockClock) -> None:
    async with world() as w:
        host = await w.add([scripted_host()])
        address = host.node.multiaddrs[0].partition("/p2p/")[0]
        async with w.client() as client:
            with pytest.raises(UnreachableError, match="peer id"):
                await whole(ask(client, peer=f"{address}/p2p/{peer(77)}"))
            with pytest.raises(UnreachableError, match="refused"):
                await whole(ask(client, peer=f"/ip4/10.0.0.1/tcp/9/p2p/{host.node.peer_id}"))


async def test_a_node_without_the_model_says_what_it_serves(autojump_clock: MockClock) -> None:
    async with world() as w:
        host, idle = await w.add([scripted_host()]), await w.add()
        async with w.client() as client:
            with pytest.raises(RefusedError, match="that host serves scripted: choose it with --model"):
                await whole(client.chat("hi", peer=host.node.multiaddrs[0]))
            with pytest.raises(RefusedError, match="that peer serves no model"):
                await whole(ask(client, peer=idle.node.multiaddrs[0]))


async def test_a_draining_host_that_is_named_refuses_with_its_reason(autojump_clock: MockClock) -> None:
    async with world() as w:
        host = await w.add([scripted_host(tokens_per_s=20)])
        async with w.client(host.node.multiaddrs[:1], ip="10.0.9.8") as busy, w.client() as client:
            answer = ask(busy, tokens=100)
            await anext(answer)
            w.nursery.start_soon(host.node.aclose)
            await trio.sleep(0.5)
            with pytest.raises(RefusedError, match="about to leave") as caught:
                await whole(ask(client, peer=host.node.multiaddrs[0]))
            assert caught.value.code == "shutting_down"
            await whole(answer)
            assert len(answer.ids) == 100  # the drain let it end


async def test_those_on_the_local_network_are_asked_what_they_know(autojump_clock: MockClock) -> None:
    async with world() as w:
        host = await w.add([scripted_host()])
        where = PeerAddresses(peer=host.node.peer_id, addrs=host.node.multiaddrs[:1])
        async with w.client() as client:
            client.node.network._found(where)
            assert await client.known_adverts() == []
            client.runtime.browses = True
            assert [advert.peer for advert in await client.known_adverts()] == [host.node.peer_id]


async def test_whom_a_client_reached_it_saves_and_whom_it_could_not_it_forgets(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with world() as w:
        host, gone = [await w.add([scripted_host()]) for _ in range(2)]
        w.crash(gone)
        addresses = [each.node.multiaddrs[0] for each in (gone, host)]
        async with machine(w, tmp_path, knows=[gone, host]) as client:
            await client.searches.save_peers()
            assert not client.runtime.data.peers.exists()  # nobody was reached yet: that says nothing
            saved = SavedPeers(client.runtime.data.peers, in_thread=False)
            saved.remember(gone.node.peer_id, addresses[:1], now=1.0)
            await saved.save()
            await client.searches.connect_first_peers()
            await client.searches.save_peers()
            (only,) = await saved.load()
            assert (only.peer, addresses[1] in only.addrs) == (host.node.peer_id, True)


async def test_first_peers_that_never_answer_cost_one_deadline_and_not_one_each(
    autojump_clock: MockClock,
) -> None:
    async with world() as w:
        host = await w.add([scripted_host()])
        mute = [await w.add() for _ in range(4)]
        seeds = [*(each.node.multiaddrs[0] for each in mute), host.node.multiaddrs[0]]
        for each in mute:
            each.node.network.serve(ADVERTS, _never)
        async with w.client(seeds) as client:
            started = trio.current_time()
            adverts = await client.known_adverts()
            assert [each.peer for each in adverts] == [host.node.peer_id]
            assert trio.current_time() - started < 2 * w.limits.request_deadline_s


async def _never(_stream: Stream) -> None:
    await trio.sleep_forever()
