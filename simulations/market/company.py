"""``Company``: the peers that a simulated host stays connected to, and whom it asks for adverts.

Whom to dial, whom to ask and when to look again is the node's ``PeerSelection``; the order of one round is
that of ``p2pnode/node/peers.py``: all dials, then all questions, then a pause, which ends when the first peer
comes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from p2pnode.ids import PeerId
from p2pnode.limits import Limits
from p2pnode.node.peer_selection import ADVERTS_DRAWN, DialCandidate, PeerSelection
from p2pnode.protocols.adverts.messages import Advert
from p2pnode.simulations.market.adverts import NodeAdverts
from p2pnode.simulations.world import Link, Node, World


class Company:
    """Of one start of a host. ``guarded`` makes an action do nothing once the host is gone."""

    def __init__(
        self,
        world: World,
        node: Node,
        adverts: NodeAdverts,
        *,
        limits: Limits,
        first: Sequence[PeerId],
        guarded: Callable[[Callable[..., None]], Callable[..., None]],
    ) -> None:
        self._world, self._node, self._adverts, self._limits = world, node, adverts, limits
        self._guarded = guarded
        known = [(peer, f"/ip4/{world.by_peer[peer].ip}/tcp/4001") for peer in first]
        self.selection = PeerSelection(node.peer, limits, known)
        self._is_alone = True
        """Whether nobody was connected when that was looked at last."""
        self._rounds = 0
        self._outstanding = 0
        """Dials, then questions, that this round waits for."""
        self._is_waiting = self._looks_again = False

    def begin(self) -> None:
        """Look for peers from now on."""
        self._begin_round(self._rounds)

    def connected(self) -> None:
        """There is a new connection. The first one is asked at once."""
        if not self._is_alone:
            return
        self._is_alone = False
        self.selection.begin_anew()
        self._looks_again = True
        if self._is_waiting:
            self._after(0.0, self._begin_round, self._rounds)

    def _after(self, seconds: float, action: Callable[..., None], *arguments: Any) -> None:
        self._world.loop.after(seconds, self._guarded(action), *arguments)

    def _begin_round(self, number: int) -> None:
        if number != self._rounds:
            return  # it was begun for another reason
        self._rounds += 1
        self._is_waiting = self._looks_again = False
        chosen = self.selection.to_dial(
            list(self._node.links),
            saved=(),
            adverts=[
                entry.advert for entry in self._adverts.book.sample(ADVERTS_DRAWN, self._adverts.wall())
            ],
            dialable=tuple,
        )
        self._outstanding = len(chosen)
        for candidate in chosen:
            other = self._world.by_peer.get(candidate.peer)
            self._world.dial(self._node, other, self._guarded(partial(self._dialled, candidate)))
        if not chosen:
            self._ask()

    def _dialled(self, candidate: DialCandidate, link: Link | None) -> None:
        if link is None:
            self.selection.failed(candidate.peer, candidate.kind)
        else:
            self.selection.dialled(candidate.peer)
        self._outstanding -= 1
        if not self._outstanding:
            self._ask()

    def _ask(self) -> None:
        asked = self.selection.to_ask(list(self._node.links))
        self._outstanding = len(asked)
        for peer in asked:
            self.selection.asked(peer)
            other = self._world.by_peer[peer]
            self._adverts.sample(other, None, self._limits.request_deadline_s, partial(self._sampled, other))
        if not asked:
            self._wait()

    def _sampled(self, other: Node, found: Sequence[Advert] | None) -> None:
        """After others' adverts it asks for its own: somebody may use its identity."""
        if found is None:
            self._answered(None)
            return
        deadline_s = self._limits.request_deadline_s
        own = self._node.peer
        self._adverts.fetch(other, own, deadline_s, lambda _advert: self._answered(other.peer))

    def _answered(self, peer: PeerId | None) -> None:
        if peer is not None:
            self.selection.answered(peer)
        self._outstanding -= 1
        if not self._outstanding:
            self._wait()

    def _wait(self) -> None:
        self._is_alone = not self._node.links
        if self._looks_again:
            self._begin_round(self._rounds)
            return
        self._is_waiting = True
        self._after(self.selection.wait_s(len(self._node.links)), self._begin_round, self._rounds)
