"""The two sides of a fetch, one class each: see ``host.py`` and ``client.py``."""

from __future__ import annotations

from p2pnode.protocols.checkpoint.client import FetchClient
from p2pnode.protocols.checkpoint.host import FetchHost

__all__ = ["FetchClient", "FetchHost"]
