"""The two sides of a session, one class each: see ``host.py`` and ``client.py``."""

from __future__ import annotations

from p2pnode.protocols.inference.client import ClientSession
from p2pnode.protocols.inference.client_turn import ClientTimes, HeldSession, held_from_journal
from p2pnode.protocols.inference.host import HostSession
from p2pnode.protocols.inference.session import (
    Admit,
    FindSession,
    HostTerms,
    LapsedSession,
    OpenSession,
)

__all__ = [
    "Admit", "ClientSession", "ClientTimes", "FindSession", "HeldSession", "HostSession", "HostTerms",
    "LapsedSession", "OpenSession", "held_from_journal",
]  # fmt: skip
