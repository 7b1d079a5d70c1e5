"""``Standby``: the next best host, kept ready while an answer streams, as ``p2pnode/client/pool.py`` has it.

Which host that is says the node's ``HostChoice``. It is connected and asked for its advert now and then; when
it is gone, another one takes its place. Nothing is signed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from p2pnode.client.ranking import Candidate, HostChoice
from p2pnode.ids import PeerId
from p2pnode.limits import Limits
from p2pnode.protocols.adverts.messages import Advert
from p2pnode.simulations.market.adverts import NodeAdverts
from p2pnode.simulations.world import Node, World


class Ready(Protocol):
    """What it needs of the client that asks."""

    node: Node
    world: World
    adverts: NodeAdverts

    @property
    def now(self) -> float:
        """Seconds since the start of the run."""
        ...

    def wall(self) -> float:
        """Epoch seconds."""
        ...

    def after(self, seconds: float, action: Callable[..., object], *arguments: Any) -> None:
        """Do it later, unless the client is gone by then."""
        ...


class Standby:
    """Of one question. ``look_for_hosts`` begins a lookup, unless one is under way."""

    def __init__(
        self, client: Ready, choice: HostChoice, limits: Limits, look_for_hosts: Callable[[], None]
    ) -> None:
        self._client, self._choice, self._limits = client, choice, limits
        self._look_for_hosts = look_for_hosts
        self._is_over = self._is_waiting = False
        self._waits = 0
        self._probe_at = 0.0

    def begin(self) -> None:
        """Keep a host ready from now on."""
        self._look()

    def stop(self) -> None:
        """Nobody needs it any more."""
        self._is_over = True

    def changed(self) -> None:
        """A host was found, or a lookup is over."""
        if self._is_waiting:
            self._look()

    def _look(self) -> None:
        if self._is_over:
            return
        self._is_waiting = False
        candidate = self._choice.best(self._client.wall())
        if candidate is not None:
            self._refresh(candidate, lambda there: self._ready(candidate) if there else self._look())
            return
        self._choice.standby = None
        self._is_waiting = True
        self._waits += 1
        self._client.after(self._limits.standby_look_s, self._look_again, self._waits)

    def _look_again(self, number: int) -> None:
        """Nobody came for a while: hosts may have come that were not there before."""
        if self._is_waiting and number == self._waits and not self._is_over:
            self._look_for_hosts()
            self._look()

    def _refresh(self, candidate: Candidate, then: Callable[[bool], None]) -> None:
        """Fetch a host's advert; ``then`` hears whether it is there, and may still be chosen."""
        peer = candidate.advert.peer

        def answered(advert: Advert | None) -> None:
            if self._is_over:
                return
            if advert is None:
                self._choice.pass_over(peer)
            else:
                self._choice.found(advert)
            then(advert is not None and self._choice.may_use(peer, self._client.wall()))

        other = self._client.world.by_peer.get(peer)
        self._client.adverts.fetch(other, peer, self._limits.standby_reach_s, answered)

    def _ready(self, candidate: Candidate) -> None:
        self._choice.standby = candidate.advert.peer
        self._probe_at = self._client.now + self._limits.standby_probe_s
        self._watch(candidate)

    def _watch(self, candidate: Candidate) -> None:
        """Until the host is not ready any more, is used, or is not the best any more."""
        peer = candidate.advert.peer
        if peer in self._client.node.links and self._choice.may_use(peer, self._client.wall()):
            self._client.after(self._limits.standby_check_s, self._check, candidate)
        else:
            self._lost()

    def _check(self, candidate: Candidate) -> None:
        if self._is_over:
            return
        if self._client.now < self._probe_at:
            self._watch(candidate)
        else:
            self._refresh(candidate, lambda there: self._probed(candidate.advert.peer, there))

    def _probed(self, peer: PeerId, there: bool) -> None:
        best = self._choice.best(self._client.wall(), standby_first=False) if there else None
        if best is None or best.advert.peer != peer:
            self._lost()
        else:
            self._ready(best)

    def _lost(self) -> None:
        self._choice.standby = None
        self._look()
