"""What peers did against the protocol: enough of it, and a peer is not talked to for a while."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

import structlog

from p2pnode.ids import PeerId

log = structlog.get_logger()
FAULTS_MAX: Final = 10
WINDOW_S: Final = 600.0
_PEERS_MAX: Final = 4096


class FaultLedger:
    """Counts faults per peer over ten minutes. Bounded: the longest unseen peer is forgotten first."""

    def __init__(self) -> None:
        self._faults: OrderedDict[PeerId, tuple[float, int]] = OrderedDict()

    def record(self, peer: PeerId, what: str, now: float) -> None:
        """One fault of a peer."""
        since, count = self._faults.pop(peer, (now, 0))
        if now - since > WINDOW_S:
            since, count = now, 0
        self._faults[peer] = (since, count + 1)
        if len(self._faults) > _PEERS_MAX:
            self._faults.popitem(last=False)
        log.info("peer.fault", peer=peer, what=what[:200], count=count + 1)

    def count(self, peer: PeerId, now: float) -> int:
        """Faults of a peer in the window."""
        since, count = self._faults.get(peer, (now, 0))
        return count if now - since <= WINDOW_S else 0

    def shunned(self, peer: PeerId, now: float) -> bool:
        """Is this peer refused for now?"""
        return self.count(peer, now) >= FAULTS_MAX
