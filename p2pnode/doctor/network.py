"""Checks that ask other nodes: who is there, whether clocks agree, whether one has our peer id."""

from __future__ import annotations

from collections import Counter
from statistics import median
from typing import Final

from p2pnode.client.client import Client
from p2pnode.config import NodeConfig
from p2pnode.doctor.finding import Finding, ok, problem, warning
from p2pnode.doctor.machine import peer_key
from p2pnode.errors import RemoteError
from p2pnode.node.datadir import DataDir, RunningNode
from p2pnode.protocols.adverts.messages import Advert
from p2pnode.words import span

CLOCK_SKEW_MAX_S: Final = 30.0


class NetworkChecks:
    """:meth:`peers` looks around; the other checks judge what it saw."""

    def __init__(self, config: NodeConfig, running: RunningNode | None) -> None:
        self._config, self._running = config, running
        self._data = DataDir(config.data_dir)
        self.adverts: list[Advert] = []
        self.offsets: list[float] = []
        """How far the clocks of hosts that were asked themselves are ahead of ours."""
        self.own: Advert | None = None
        self.verdicts: Counter[str] = Counter()
        """What became of the adverts that others showed us."""
        self.now = 0.0

    async def peers(self) -> Finding:
        """Whether any other node was reached."""
        try:
            async with Client(self._config) as client:
                self.adverts = await client.known_adverts()
                self.offsets = await client.clock_offsets()
                reached = len(client.node.network.connected_peers())
                if self._running is not None:
                    self.own = await client.advert_of(self._running.multiaddrs)
                self.verdicts = client.node.adverts.book.counts.copy()
                self.now = client.node.wall()
        except RemoteError as error:
            remedy = "the node of this data dir does not answer: restart it"
            return problem("peers", "node_unreachable", str(error), remedy)
        others = reached - (self._running is not None)
        if others <= 0 and len(self.adverts) <= 1:
            remedy = "name a first peer with --bootstrap (a multiaddr or an invite)"
            return warning("peers", "no_peers", "no other node was reached", remedy)
        return ok("peers", f"peers reached: {max(others, 0)}; hosts known: {len(self.adverts)}")

    async def clock(self) -> Finding:
        """Whether this clock agrees with those that dated the adverts of others."""
        remedy = "turn on network time (e.g. systemd-timesyncd or chrony)"
        if self.offsets and abs(offset_s := median(self.offsets)) > CLOCK_SKEW_MAX_S:
            asked = "the host's that was asked" if len(self.offsets) == 1 else f"{len(self.offsets)} hosts'"
            much = f"this clock is about {span(abs(offset_s))}"
            if offset_s > 0:
                return problem("clock", "clock_behind", f"{much} behind {asked}", remedy)
            return problem("clock", "clock_ahead", f"{much} ahead of {asked}", remedy)
        taken = self.verdicts["accepted"]
        if self.verdicts["expired"] > taken:
            detail = "this clock is ahead: what others call live looks expired from here"
            return problem("clock", "clock_ahead", detail, remedy)
        if self.verdicts["future"] > taken:
            detail = "this clock is behind: others date their adverts in its future"
            return problem("clock", "clock_behind", detail, remedy)
        own = self.own.peer if self.own is not None else None
        ahead = [advert.issued_at - self.now for advert in self.adverts if advert.peer != own]
        if not ahead:
            return ok("clock", "not compared: no other host is known")
        if median(ahead) > CLOCK_SKEW_MAX_S:
            detail = f"this clock is about {median(ahead):.0f} s behind the network's"
            return problem("clock", "clock_behind", detail, remedy)
        return ok("clock", f"agrees with the hosts known ({len(ahead)})")

    async def identity(self) -> Finding:
        """Whether another node speaks with our peer id."""
        key = peer_key(self._data)
        if key is None:
            return ok("identity", "none yet")
        ours = self._data.known_starts()
        running = self.own.instance if self.own is not None else None
        strangers = [
            advert
            for advert in self.adverts
            if advert.peer == key.peer_id
            and advert.instance != running
            and advert.instance not in ours
            and (running is not None or self._running is None)
        ]
        newest = max((advert.issued_at for advert in strangers), default=0)
        # What a start that is not known any more signed may live on for its lifetime: only newer ones count.
        since = self.own.issued_at if self.own is not None else self.now - CLOCK_SKEW_MAX_S
        if strangers and newest > since:
            remedy = "a data dir was copied: stop one of them, and give it a data dir of its own (--data-dir)"
            return problem("identity", "duplicate_identity", f"another node speaks as {key.peer_id}", remedy)
        return ok("identity", "nobody else speaks with this peer id")
