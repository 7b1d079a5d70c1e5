"""The two sides of a session, one class each: see ``host.py`` and ``client.py``."""

from __future__ import annotations

from p2pnode.protocols.inference.client import ClientSession, ClientTimes
from p2pnode.protocols.inference.host import Admit, HostSession, HostTerms

__all__ = ["Admit", "ClientSession", "ClientTimes", "HostSession", "HostTerms"]
