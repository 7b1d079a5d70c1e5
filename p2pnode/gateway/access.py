"""Who may use the gateway, and for what.

``KeyRing`` is the seam: the gateway asks it for the :class:`Caller` of each request, and hands what the
caller may spend to the client. On loopback, where no wallet pays, everybody may: that is an ``OpenRing``.
Otherwise there is one key, in ``<data-dir>/gateway.key``, which is drawn at the first start: a ``SingleKey``.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from p2pnode.client.ranking import Filters
from p2pnode.files import read_secret_or_none, write_private
from p2pnode.gateway.faults import KeyRefusedError
from p2pnode.payments.journal.keys import Key
from p2pnode.scopes import is_loopback

_BYTES: Final = 24
_BEGINS: Final = "p2p-"
_TOKEN_MAX: Final = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who asks. ``key_id`` names the key in logs and metrics, and tells its caches from those of others."""

    key_id: str = ""
    models: frozenset[str] | None = None
    """Names of models that may be asked; None for any."""
    filters: Filters = field(default_factory=Filters)
    """The highest prices and cost; the request may ask for lower ones."""
    budget: Key | None = None
    """The key whose budget pays for what is asked, as ``ChatOptions`` takes it."""


class KeyRing(Protocol):
    """Knows the callers."""

    @property
    def required(self) -> bool:
        """Whether nobody may ask without a key."""

    async def authorise(self, token: str) -> Caller:
        """Who has this key; "" where none was sent. Raises ``LocalError``."""


class OpenRing:
    """Lets everybody in, whatever key programs send: many send one because they must."""

    required = False

    async def authorise(self, token: str) -> Caller:  # noqa: ARG002
        """Anybody."""
        return Caller()


class SingleKey:
    """Lets in who has the one key."""

    required = True

    def __init__(self, key: str, *, where: str) -> None:
        """``where`` the key stands, for the error."""
        self._key, self._where = key.encode(), where

    async def authorise(self, token: str) -> Caller:
        """The owner."""
        if not token:
            msg = f"a key is needed: it stands in {self._where}; send it as `Authorization: Bearer KEY`"
            raise KeyRefusedError("missing", msg)
        if not hmac.compare_digest(token.encode(), self._key):
            raise KeyRefusedError("invalid", f"this key is not known: the right one stands in {self._where}")
        return Caller(key_id="owner")


def gateway_ring(path: Path, host: str, *, pays: bool) -> KeyRing:
    """Who may use a gateway that listens on ``host``; ``pays``: its client has a wallet.

    ``path`` is the key's file, which is made where one is needed and none is there. Blocks on the disk.
    Raises ``ConfigError``.
    """
    if is_loopback(host) and not pays:
        return OpenRing()
    key = (read_secret_or_none(path) or "").strip()
    if not key:
        key = _BEGINS + secrets.token_hex(_BYTES)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(path, f"{key}\n".encode())
    # A stranger who has no key learns from the error neither its owner's name nor where the data dir is.
    return SingleKey(key, where=str(path) if is_loopback(host) else f"{path.name} in its owner's data dir")


def token_of(headers: Mapping[str, str]) -> str:
    """The key that a request brings, as OpenAI's clients send it or as Anthropic's do; "" for none."""
    kind, _, token = headers.get("authorization", "").partition(" ")
    if kind.lower() != "bearer" or not token.strip():
        token = headers.get("x-api-key", "")
    return token.strip()[:_TOKEN_MAX]
