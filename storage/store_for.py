"""For whom this node stores: the setting ``store_for`` as a policy.

An owner key that is listed, a peer with an open session, or anyone. It knows neither the store nor quotas.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from p2pnode.ids import PeerId
from p2pnode.storage.store import OwnerKey


class StoreFor:
    """``rules`` as ``NodeConfig.store_for`` has them, checked there."""

    def __init__(
        self, rules: Sequence[str], has_session: Callable[[PeerId], bool] = lambda _peer: False
    ) -> None:
        self._anyone, self._sessions = "anyone" in rules, "sessions" in rules
        self._owners = frozenset(bytes.fromhex(rule) for rule in rules if rule not in ("anyone", "sessions"))
        self.has_session = has_session
        """Says whether a peer has an open session; a host role sets it."""

    def admits(self, peer: PeerId, owner: OwnerKey) -> str:
        """Why this owner's writes are not taken from this peer; empty: they are."""
        if self._anyone or owner in self._owners or (self._sessions and self.has_session(peer)):
            return ""
        if self._sessions:
            return "this node keeps copies for clients only while it answers them: name another with --store"
        return "this node keeps copies for owners on its list only: ask its keeper, or name another node"
