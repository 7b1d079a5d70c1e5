"""Who may open the dashboard: links that work once, and the sessions of browsers that they begin.

A file in the data dir holds a key, which only its owner can read. Who can read it makes a link with a token:
an expiry, a nonce, and a MAC of both. A browser gives the token back once, and gets two secrets. One is a
cookie, which no script can read. The other is the page's own, and comes with each request in a header: a
cookie of one port of this machine is sent to its other ports, too, where other users may listen.

``Access`` decides, and does no I/O; the clock is an argument. ``AccessFile`` is the file.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from p2pnode.errors import ConfigError
from p2pnode.files import read_secret_or_none, write_private
from p2pnode.net.address_policy import interface_addresses

LINK_S: Final = 24 * 3600
"""How long a link can be used, once."""
SESSION_S: Final = 30 * 24 * 3600
"""How long a browser stays signed in."""
LISTENS_ON_ALL: Final = "//0.0.0.0:"
"""What stands in the url of a server that listens on all IPv4 addresses."""
_KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 16
_USED_MAX: Final = 1024
"""Links used within their time that are remembered."""
_TOKEN_MAX: Final = 256


class LinkError(ConfigError):
    """A link that can't be used: it was used before, is too old, or was made with another key."""


@dataclass(frozen=True, slots=True)
class BrowserSession:
    """What a browser that is signed in holds: the value of its cookie, and the secret of its page."""

    cookie: str
    secret: str


@dataclass(slots=True)
class Access:
    """The key, and the nonces of the links that were used, with the time at which each ends by itself."""

    key: bytes
    used: dict[str, int] = field(default_factory=dict)

    def link(self, nonce: bytes, now: float) -> str:
        """A token for a link. ``nonce``: 16 random bytes."""
        body = f"{int(now) + LINK_S:x}.{nonce.hex()}"
        return f"{body}.{self._mac('link', body)}"

    def begin(self, token: str, nonce: bytes, now: float) -> BrowserSession:
        """Use a link's token, once. ``nonce``: 16 random bytes. Raises ``LinkError``."""
        body, _, mac = token[:_TOKEN_MAX].rpartition(".")
        if not _equal(mac, self._mac("link", body)):
            raise LinkError("this link is not of this node, or the node has a new key since")
        expires, _, drawn = body.partition(".")
        if int(expires, 16) < now:
            raise LinkError("this link is too old")
        if drawn in self.used:
            raise LinkError("this link was used already: each works once")
        self.used = {each: until for each, until in self.used.items() if until >= now}
        if len(self.used) >= _USED_MAX:
            raise LinkError("too many links were used within a day")
        self.used[drawn] = int(expires, 16)
        body = f"{int(now) + SESSION_S:x}.{nonce.hex()}"
        cookie = f"{body}.{self._mac('cookie', body)}"
        return BrowserSession(cookie, self._mac("page", cookie))

    def admits(self, cookie: str, secret: str, now: float) -> bool:
        """Whether these are both secrets of one session that has not ended."""
        body, _, mac = cookie[:_TOKEN_MAX].rpartition(".")
        if not _equal(mac, self._mac("cookie", body)):
            return False
        return _equal(secret, self._mac("page", cookie)) and int(body.partition(".")[0], 16) >= now

    def _mac(self, what: str, body: str) -> str:
        return hmac.new(self.key, f"{what} {body}".encode(errors="replace"), hashlib.sha256).hexdigest()


class AccessFile:
    """``<data-dir>/dashboard.json``, mode 0600. Its methods block on the disk and raise ``ConfigError``."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> Access:
        """What it holds; a new key where there is no file, or a damaged one."""
        try:
            found = json.loads(read_secret_or_none(self._path) or "")
            key = bytes.fromhex(found["key"])
            used = {str(nonce): int(until) for nonce, until in found["used"].items()}
            if len(key) == _KEY_BYTES:
                return Access(key, used)
        except (ValueError, KeyError, TypeError, AttributeError):
            pass
        return self.renew()

    def renew(self) -> Access:
        """Draw a new key: all links and sessions end."""
        access = Access(secrets.token_bytes(_KEY_BYTES))
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.save(access)
        return access

    def save(self, access: Access) -> None:
        """Write it down: a link that was used stays used after a restart."""
        content = {"key": access.key.hex(), "used": access.used}
        write_private(self._path, json.dumps(content).encode())


def new_link(path: Path, url: str, now: float) -> str:
    """The address of the dashboard at ``url`` with a fresh token, which never reaches a server's log: it
    stands behind the ``#``. Blocks on the disk. Raises ``ConfigError``."""
    token = AccessFile(path).load().link(secrets.token_bytes(_NONCE_BYTES), now)
    return f"{url}/dashboard/#{token}"


def new_links(path: Path, url: str, now: float) -> tuple[str, ...]:
    """A link for this machine. Where the server at ``url`` listens on all IPv4 addresses, another for each of
    them: a phone needs an address of the network, and a link works once. Blocks as ``new_link``."""
    urls = [near_url(url)]
    if LISTENS_ON_ALL in url:
        found = [each.partition("/")[0] for each in interface_addresses()]
        urls += [url.replace(LISTENS_ON_ALL, f"//{each}:") for each in found if not _only_here(each)]
    return tuple(new_link(path, each, now) for each in urls)


def _only_here(address: str) -> bool:
    found = ipaddress.ip_address(address)
    return found.version != 4 or found.is_loopback  # noqa: PLR2004 - IPv4: the server listens on no other


def near_url(url: str) -> str:
    """Of a server that listens on all addresses: the one at which this machine reaches it."""
    return url.replace(LISTENS_ON_ALL, "//127.0.0.1:").replace("//[::]:", "//[::1]:")


def _equal(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(errors="replace"), other.encode())
