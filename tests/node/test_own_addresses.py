"""A node's own addresses: what it tells whom, and what happens when they change under it."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from p2pnode.host.host import Host
from p2pnode.net.memory import MemoryNet
from p2pnode.net.network import Network, NetworkConfig
from p2pnode.net.virtual_time import wall_clock
from p2pnode.node.invite import make_invite, read_bootstrap
from p2pnode.node.keys import PeerKey
from p2pnode.node.node import Node, NodeSetup
from p2pnode.node.reachability import reach_code, reachability
from tests.net.memory_world import seed_of
from tests.node.world import identity_of, scripted_host

LOOPBACK = ("127.0.0.1/8",)
HOME = (*LOOPBACK, "192.168.1.5/24")


@dataclass
class Machine:
    """A machine whose interfaces a test changes, and the host that runs on it."""

    node: Node
    interfaces: list[str] = field(default_factory=list)
    troubles: list[OSError] = field(default_factory=list)
    """While there is one, nobody can look at them."""

    def advertised(self) -> list[str]:
        """What its advert says now."""
        publish = self.node.adverts.publisher.current
        assert publish is not None
        return [each.multiaddr for each in publish.advert.addresses]


@asynccontextmanager
async def machine(interfaces: Sequence[str], announce: Sequence[str] = ()) -> AsyncIterator[Machine]:
    net = MemoryNet(seed=1)
    identity = identity_of(1, wall_clock())
    now, troubles = list(interfaces), list[OSError]()

    def look() -> tuple[str, ...]:
        if troubles:
            raise troubles[0]
        return tuple(now)

    node = Node(
        NodeSetup(
            key=identity.key,
            listen=("/ip4/0.0.0.0/tcp/4001",),
            announce=tuple(announce),
            transport=net.transport("192.168.1.5"),
            interfaces=look,
            wall=wall_clock,
        )
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(node.run)
        await Host(node, identity, [scripted_host()]).start()
        await trio.sleep(1)
        yield Machine(node, now, troubles)
        await node.aclose()


async def test_a_host_that_was_started_before_the_network_tells_its_address_once_it_has_one(
    autojump_clock: MockClock,
) -> None:
    async with machine(LOOPBACK) as m:
        assert (m.node.reach, m.advertised()) == ("no_network", ["/ip4/127.0.0.1/tcp/4001"])
        m.interfaces[:] = HOME
        with trio.fail_after(60):
            await m.node.network.wait_changed()
        assert m.node.reach == "private_only"
        await trio.sleep(10)
        assert m.advertised() == ["/ip4/192.168.1.5/tcp/4001"]
        assert read_bootstrap(make_invite(m.node.multiaddrs)) == m.node.multiaddrs[:1]


async def test_an_address_that_changes_is_told_and_the_old_one_no_longer(autojump_clock: MockClock) -> None:
    async with machine([*HOME, "8.8.8.8/24"]) as m:
        assert m.advertised() == ["/ip4/8.8.8.8/tcp/4001", "/ip4/192.168.1.5/tcp/4001"]
        m.interfaces[:] = [*HOME, "8.8.4.4/24"]
        await trio.sleep(60)
        assert m.advertised() == ["/ip4/8.8.4.4/tcp/4001", "/ip4/192.168.1.5/tcp/4001"]
        assert all("8.8.8.8" not in each for each in m.node.multiaddrs)


async def test_a_machine_out_of_open_files_costs_no_node_and_is_looked_at_again(
    autojump_clock: MockClock,
) -> None:
    async with machine(HOME) as m:
        m.troubles.append(OSError(errno.EMFILE, os.strerror(errno.EMFILE)))
        m.interfaces[:] = [*HOME, "8.8.4.4/24"]
        await trio.sleep(60)
        assert m.advertised() == ["/ip4/192.168.1.5/tcp/4001"]
        m.troubles.clear()
        await trio.sleep(60)
        assert m.advertised() == ["/ip4/8.8.4.4/tcp/4001", "/ip4/192.168.1.5/tcp/4001"]


async def test_addresses_that_stay_are_not_told_again(autojump_clock: MockClock) -> None:
    async with machine(HOME) as m:
        with trio.move_on_after(300) as waiting:
            await m.node.network.wait_changed()
        assert waiting.cancelled_caught


async def test_a_shared_address_is_told_to_no_stranger_unless_its_user_says_so(
    autojump_clock: MockClock,
) -> None:
    async with machine([*HOME, "100.64.0.9/10"]) as m:
        assert m.advertised() == ["/ip4/192.168.1.5/tcp/4001"]
        assert any("100.64.0.9" in each for each in m.node.multiaddrs)
    async with machine([*HOME, "100.64.0.9/10"], ["/ip4/100.64.0.9/tcp/4001"]) as m:
        assert m.advertised() == ["/ip4/100.64.0.9/tcp/4001", "/ip4/192.168.1.5/tcp/4001"]


async def test_what_the_user_announces_comes_first_to_everybody(autojump_clock: MockClock) -> None:
    told = ["/ip4/8.8.8.8/tcp/14001", "/dns4/node.example.org/tcp/4001", "/ip4/8.8.8.8/tcp/80/ws"]
    async with machine([*HOME, "8.8.4.4/24"], told) as m:
        assert m.advertised() == told  # three, of different kinds
        assert m.node.advertised() == (*told, "/ip4/8.8.4.4/tcp/4001", "/ip4/192.168.1.5/tcp/4001")
        assert [each.partition("/p2p/")[0] for each in m.node.multiaddrs[:3]] == told
        assert m.node.reach == "global"


async def test_of_what_the_user_announces_strangers_learn_each_kind_before_a_second_of_any(
    autojump_clock: MockClock,
) -> None:
    told = [
        "/ip4/8.8.8.8/tcp/1",
        "/ip4/8.8.8.8/tcp/2",
        "/ip4/8.8.8.8/tcp/3",
        "/ip4/8.8.8.8/tcp/4/ws",
        "/ip6/2606:4700::1/tcp/5",
    ]
    async with machine(HOME, told) as m:
        assert m.advertised() == [told[0], told[3], told[4]]
        assert set(told) <= set(m.node.advertised())


async def test_adverts_hold_addresses_without_the_peer_id_and_peers_dial_them(
    autojump_clock: MockClock,
) -> None:
    async with machine(HOME) as m:
        assert not [each for each in m.advertised() if "/p2p/" in each]
        assert all(each.endswith(f"/p2p/{m.node.peer_id}") for each in m.node.multiaddrs)


async def test_what_a_peer_learns_by_identify_is_what_strangers_are_told(autojump_clock: MockClock) -> None:
    net = MemoryNet(seed=1)
    host = Network(
        NetworkConfig(
            key_seed=seed_of(1),
            listen=("/ip4/0.0.0.0/tcp/4001",),
            transport=net.transport("192.168.1.5"),
            interfaces=lambda: (*HOME, "100.64.0.9/10"),
        )
    )
    peer = Network(NetworkConfig(key_seed=seed_of(2), transport=net.transport("192.168.1.6")))
    async with trio.open_nursery() as nursery:
        await nursery.start(host.run)
        await nursery.start(peer.run)
        await peer.connect(f"/ip4/192.168.1.5/tcp/4001/p2p/{host.peer_id}")
        await trio.sleep(1)
        assert peer.addresses_of(host.peer_id) == (f"/ip4/192.168.1.5/tcp/4001/p2p/{host.peer_id}",)
        await peer.aclose()
        await host.aclose()


@pytest.mark.parametrize(
    ("addresses", "on_all", "code", "says"),
    [
        (["/ip4/8.8.8.8/tcp/4001", "/ip4/10.0.0.1/tcp/4001"], True, "global", "only a peer outside can tell"),
        (["/dns4/node.example.org/tcp/4001"], True, "global", "only a peer outside can tell"),
        (["/ip6/2606:4700::1/tcp/4001", "/ip4/10.0.0.1/tcp/4001"], True, "ipv6_only", "nobody without IPv6"),
        (["/ip4/10.0.0.1/tcp/4001"], True, "private_only", "nobody outside this network"),
        (["/ip4/127.0.0.1/tcp/4001"], True, "no_network", "this machine has no network"),
        (["/ip4/127.0.0.1/tcp/4001"], False, "this_machine_only", "as --listen or config.toml says"),
    ],
)
def test_its_addresses_tell_from_where_it_can_be_reached(
    addresses: list[str], on_all: bool, code: str, says: str
) -> None:
    assert reach_code(addresses, addresses, listens_on_all=on_all) == code
    found = reachability(code, addresses)
    assert (found.code, says in found.detail) == (code, True)
    assert bool(found.remedy) == (code not in ("global", "this_machine_only"))


def test_behind_a_carriers_nat_no_port_can_be_forwarded() -> None:
    shared = ["/ip4/100.64.0.2/tcp/4001", "/ip4/127.0.0.1/tcp/4001"]
    assert reach_code(shared[1:], shared, listens_on_all=True) == "shared_only"
    assert "forwards no port" in reachability("shared_only", shared).remedy


def test_a_router_is_told_which_port_to_forward() -> None:
    found = reachability("private_only", ["/ip4/192.168.1.5/tcp/4711"])
    assert "forward TCP port 4711" in found.remedy
    assert "--announce /ip4/YOUR-PUBLIC-ADDRESS/tcp/4711" in found.remedy


_SCRIPT = """
"$1" -m p2pnode join --data-dir d --model scripted >out 2>err & node=$!
until grep -q ready: err; do sleep 0.1; done
ip link set lo up
ip addr add 192.168.7.5/24 dev lo
until grep -q 192.168.7.5 d/node.json; do sleep 0.1; done
"$1" -m p2pnode status --data-dir d >status
"$1" -m p2pnode ask --data-dir d --model scripted hello >answer 2>ask.err
kill -INT $node
wait $node
"""


def _run_isolated(folder: Path, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script where there is no network but the one that it makes."""
    isolated = [shutil.which("unshare") or "unshare", "--net", "--map-root-user"]
    if sys.platform != "linux" or subprocess.run([*isolated, "true"], check=False).returncode:
        pytest.skip("a network namespace of our own can't be made here")
    command = [*isolated, "sh", "-c", script, "sh", sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, timeout=90, check=False, capture_output=True, text=True)


@pytest.mark.long
def test_a_node_without_any_network_starts_says_so_and_tells_when_the_network_comes(tmp_path: Path) -> None:
    ran = _run_isolated(tmp_path, _SCRIPT)
    said = (tmp_path / "err").read_text()
    assert ran.returncode == 0, said
    first, _, later = said.partition("addresses changed:")
    assert "this machine has no network: only programs on it can reach this node" in first
    assert "invite     none yet" in first
    assert "only private addresses are known (192.168.7.5)" in later
    assert "p2pnode1" in later
    assert "/ip6/::1/tcp/" in later  # it listens on both IP versions
    assert "{" not in said  # no line of a log
    assert "reach      only private addresses are known" in (tmp_path / "status").read_text()
    assert (tmp_path / "answer").read_text().strip()


_FAR_AWAY = """
ip link set lo up
ip addr add 10.1.1.1/32 dev lo
ip route add 192.168.9.0/24 dev lo
"$1" -m p2pnode ask --data-dir d --no-mdns --model scripted "$2" "$3" hello
"""


@pytest.mark.long
@pytest.mark.parametrize("flag", ["--peer", "--bootstrap"])
def test_who_is_outside_a_private_network_reads_so_within_seconds(tmp_path: Path, flag: str) -> None:
    silent = f"/ip4/192.168.9.9/tcp/4001/p2p/{PeerKey(seed_of(1)).peer_id}"
    began = time.monotonic()
    ran = _run_isolated(tmp_path, _FAR_AWAY, flag, silent)
    assert ran.returncode in (1, 3)
    assert "192.168.9.9 is of a private network: only machines there reach it" in ran.stderr
    assert time.monotonic() - began < 12  # 3 s, and what a start takes on a busy machine
