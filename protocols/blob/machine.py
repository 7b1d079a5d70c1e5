"""The two sides of a stream, one class each: see ``server.py`` and ``client.py``."""

from __future__ import annotations

from p2pnode.protocols.blob.client import BlobClient
from p2pnode.protocols.blob.rates import Allowance
from p2pnode.protocols.blob.server import BlobServer

__all__ = ["Allowance", "BlobClient", "BlobServer"]
