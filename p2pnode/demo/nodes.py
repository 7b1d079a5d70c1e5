"""The demo's nodes: three hosts that are paid, and two nodes that keep one user's conversations.

Each is a ``p2pnode join`` of its own. A host that was killed comes back on its data dir and its ports, as one
with a fixed address does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import trio

from p2pnode.demo.bills import PRICE_IN, PRICE_OUT, SESSION_FEE
from p2pnode.demo.processes import NodeProcess, Processes
from p2pnode.errors import LocalError
from p2pnode.money import usdc_number

HOSTS: Final = ("A", "B", "C")
STORES: Final = ("D", "E")
_HOST_FLAGS: Final = (
    "--threads=1",
    "--slots=2",
    f"--price-in={usdc_number(PRICE_IN)}",
    f"--price-out={usdc_number(PRICE_OUT)}",
    f"--session-fee={usdc_number(SESSION_FEE)}",
)


class Nodes:
    """``say`` prints a line; ``chain`` is the flag that names the chain."""

    def __init__(self, processes: Processes, say: Callable[[str], None], chain: str) -> None:
        self._processes, self._say, self._chain = processes, say, chain
        self._owners: Mapping[str, str] = {}
        self.hosts: list[NodeProcess] = []
        self.stores: list[NodeProcess] = []

    async def start(self, owners: Mapping[str, str]) -> None:
        """All of them: the first host, then the others with it as their first peer.

        ``owners``: owner keys of the hosts and of the client. Storing nodes keep what is the client's, hosts
        only what is their own. Raises ``LocalError``.
        """
        self._owners = owners
        first = await self._host("A")
        more: dict[str, NodeProcess] = {}

        async def host(name: str) -> None:
            more[name] = await self._host(name, first)

        async def store(name: str) -> None:
            flags = ("--client-only", f"--store-for={owners['client']}")
            more[name] = await self._processes.node(name, first.multiaddrs[:1], *flags)

        async with trio.open_nursery() as nursery:
            for name in HOSTS[1:]:
                nursery.start_soon(host, name)
            for name in STORES:
                nursery.start_soon(store, name)
        self.hosts = [first, *(more[name] for name in HOSTS[1:])]
        self.stores = [more[name] for name in STORES]
        for each in self.hosts:
            self._say(f"  host {each.name}  {each.peer_id}")
        for each in self.stores:
            self._say(f"  node {each.name}  {each.peer_id}  serves nothing, stores for one user")

    async def _host(self, name: str, first: NodeProcess | None = None) -> NodeProcess:
        bootstrap = [] if first is None else first.multiaddrs[:1]
        return await self._processes.node(name, bootstrap, *self._flags(name))

    def _flags(self, name: str) -> tuple[str, ...]:
        return (*_HOST_FLAGS, self._chain, f"--store-for={self._owners[name]}")

    def kill(self, peer: str) -> NodeProcess:
        """SIGKILL to a host. Raises ``LocalError`` when it is none of ours."""
        host = self._host_at(peer)
        self._processes.kill(host.name)
        return host

    async def bring_back(self, peer: str) -> None:
        """Start a killed host again where it was. Raises ``LocalError``."""
        lost = self._host_at(peer)
        self._say(f"\nhost {lost.name} is started again, on its data dir and ports")
        other = next(host for host in self.hosts if host is not lost)
        listen = [each.rpartition("/p2p/")[0] for each in lost.multiaddrs]
        flags = self._flags(lost.name)
        back = await self._processes.node(lost.name, other.multiaddrs[:1], *flags, listen=listen)
        if back.peer_id != peer:
            msg = f"host {lost.name} came back as another peer"
            raise LocalError(msg)
        self.hosts[self.hosts.index(lost)] = back

    def _host_at(self, peer: str) -> NodeProcess:
        host = next((each for each in self.hosts if each.peer_id == peer), None)
        if host is None:
            msg = f"{peer} is none of the demo's hosts"
            raise LocalError(msg)
        return host

    @property
    def host_of(self) -> dict[str, str]:
        """Names of hosts by peer id."""
        return {each.peer_id: each.name for each in self.hosts}

    def name(self, peer: str) -> str:
        """The name of a node; the beginning of its peer id where it is none of the demo's."""
        return next((each.name for each in (*self.hosts, *self.stores) if each.peer_id == peer), peer[:12])
