"""The options of the S5 server, checked as it is made. No file and no environment variable is read here."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from p2pnode.errors import ConfigError
from p2pnode.http_server import parse_listen
from p2pnode.protocols.crypto import Signer
from p2pnode.protocols.s5.nodes import NodeId
from p2pnode.scopes import is_loopback
from p2pnode.storage.store import OwnerKey

_HOST: Final = re.compile(r"[a-z0-9_.:-]+")
_TOKEN_MIN: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class S5Options:
    """What comes without an account counts for ``owner``. ``folder`` has partial uploads and accounts.

    Beyond loopback every request needs the ``token``. ``origins`` are those of the web pages that may use the
    server (``https://app.example``), ``names`` its other names in a ``Host`` header. Raises ``ConfigError``.
    """

    owner: OwnerKey
    folder: Path
    host: str = "127.0.0.1"
    port: int = 0
    token: str | None = field(default=None, repr=False)
    accounts: bool = False
    allow_delete: bool = False
    origins: frozenset[str] = frozenset()
    names: frozenset[str] = frozenset()
    node: NodeId | None = None
    """Its id for S5 nodes that dial ``/s5/p2p``, whose key ``sign`` signs with.

    None: there is no such route.
    """
    sign: Signer | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if (self.node is None) != (self.sign is None):
            msg = "an S5 node has an id and signs, or neither"
            raise ConfigError(msg)
        if self.token is not None and len(self.token) < _TOKEN_MIN:
            msg = f"the S5 token must have at least {_TOKEN_MIN} characters"
            raise ConfigError(msg)
        if self.token is None and not is_loopback(self.host):
            msg = (
                f"the S5 API without a token is for programs on this machine: {self.host} is open to others. "
                "Listen on 127.0.0.1, or set a token"
            )
            raise ConfigError(msg)


def check_origin(text: str) -> str:
    """An ``Origin`` as browsers send it: ``https://app.example`` or ``http://localhost:3000``.

    Raises ``ConfigError`` for what no browser sends, and for what would admit every page.
    """
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        parts, host, port = None, "", None
    usual = {"http": 80, "https": 443}
    if parts is None or parts.scheme not in usual or not _HOST.fullmatch(host):
        msg = f"{text[:100]!r} is no origin of web pages: name one as https://app.example or with its port"
        raise ConfigError(msg)
    bracketed = f"[{host}]" if ":" in host else host
    shown = f"{parts.scheme}://{bracketed}" + ("" if port in (None, usual[parts.scheme]) else f":{port}")
    if text.lower().rstrip("/") not in (shown, f"{parts.scheme}://{bracketed}:{port}"):
        msg = f"{text[:100]!r} says more than an origin: write {shown}"
        raise ConfigError(msg)
    return shown


def check_s5_listen(text: str) -> tuple[str, int]:
    """Host and port of an address of this machine only. Raises ``ConfigError``."""
    host, port = parse_listen(text)
    if not is_loopback(host):
        msg = (
            f"{host} is open to others, and the S5 API is for programs on this machine: use 127.0.0.1:{port}"
        )
        raise ConfigError(msg)
    return host, port
