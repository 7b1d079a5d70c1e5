"""A blocked peer is neither served nor kept connected, at once and after a restart; the list survives."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from p2pnode.errors import ConfigError, P2PNodeError
from p2pnode.node.block_list import BLOCKED_MAX, REASON_MAX, BlockList
from tests.client.support import ask, peer, whole
from tests.node.world import scripted_host, world


def test_what_was_blocked_stands_in_the_file_with_its_reason(tmp_path: Path) -> None:
    path = tmp_path / "data" / "blocked.json"
    blocks = BlockList(path, wall=lambda: 1000.5)
    assert blocks.read() == ()
    assert blocks.add(peer(1), "asks all day")
    assert blocks.add(peer(2), "x" * 1000)
    assert not blocks.add(peer(1), "still does")
    found = BlockList(path).read()
    assert [(each.peer, each.since) for each in found] == [(peer(2), 1000), (peer(1), 1000)]
    assert found[1].reason == "still does"
    assert len(found[0].reason) == REASON_MAX
    assert path.stat().st_mode & 0o077 == 0
    assert blocks.remove(peer(2))
    assert not blocks.remove(peer(2))
    assert [each.peer for each in blocks.read()] == [peer(1)]


@pytest.mark.parametrize("text", ["", "{", "7", '[{"peer": 1}]', '[{"peer": "x", "since": "y"}]', "[null]"])
def test_a_damaged_list_lets_nobody_in_and_says_what_to_do(tmp_path: Path, text: str) -> None:
    path = tmp_path / "blocked.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match="damaged"):
        BlockList(path).read()
    with pytest.raises(ConfigError, match="damaged"):
        BlockList(path).add(peer(1))
    assert path.read_text() == text


def test_the_list_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "blocked.json"
    entries = ",".join(f'{{"peer": "p{number}", "since": 1}}' for number in range(BLOCKED_MAX))
    path.write_text(f"[{entries}]")
    with pytest.raises(ConfigError, match="unblock some"):
        BlockList(path).add(peer(1))


async def test_a_blocked_peer_is_cut_off_at_once_and_stays_so_until_it_is_let_in(
    autojump_clock: MockClock,
) -> None:
    async with world() as w:
        host = await w.add([scripted_host()])
        async with (
            w.client(host.node.multiaddrs[:1]) as client,
            w.client(host.node.multiaddrs[:1], ip="10.0.9.10") as friend,
        ):
            await whole(ask(client))
            me = client.node.peer_id
            assert host.node.network.is_connected(me)
            host.node.block([me])
            await trio.sleep(1)
            assert not host.node.network.is_connected(me)
            with pytest.raises(P2PNodeError):
                await whole(ask(client, "again"))
            await trio.sleep(1)
            assert not host.node.network.is_connected(me)
            await whole(ask(friend))  # others are served
            host.node.block([])
            await trio.sleep(120)
            await whole(ask(client, "once more"))


async def test_a_client_does_not_ask_a_host_that_its_user_blocked(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    from tests.client.machines import machine, options, read

    async with world() as w:
        first, second = await w.add([scripted_host()]), await w.add([scripted_host()])
        async with machine(w, tmp_path, knows=[first, second], keeps=False) as client:
            BlockList(client.runtime.data.blocked).add(first.node.peer_id)
            for _ in range(3):
                answer = client.answer("hello", options())
                await read(answer)
                assert answer.host == second.node.peer_id
