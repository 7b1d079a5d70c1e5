"""Invites: a node's multiaddrs in one string without spaces, which can be sent in a chat.

``p2pnode1`` + base64url of (4 bytes of SHA-256 over the body, the body). The body is text: the peer
id and then its addresses, separated by spaces.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Sequence
from typing import Final

from p2pnode.errors import ConfigError
from p2pnode.ids import pasted
from p2pnode.net.address_policy import mixed, scope_of
from p2pnode.net.multiaddrs import split_peer

_PREFIX: Final = "p2pnode1"
_CHECK_BYTES: Final = 4
_ADDRESSES_MAX: Final = 4
_LENGTH_MAX: Final = 2048


def make_invite(multiaddrs: Sequence[str]) -> str:
    """An invite to this node with a mix of its addresses, without loopback ones where there are others."""
    parts = [split_peer(each) for each in multiaddrs]
    every = [address for address, _ in parts]
    far = [address for address in every if scope_of(address) != "loopback"]
    body = " ".join([parts[0][1], *mixed(far or every, _ADDRESSES_MAX)]).encode()
    check = hashlib.sha256(body).digest()[:_CHECK_BYTES]
    return _PREFIX + base64.urlsafe_b64encode(check + body).decode().rstrip("=")


def read_bootstrap(text: str) -> tuple[str, ...]:
    """The multiaddrs of an invite, or a multiaddr itself. Raises ``ConfigError``."""
    text = pasted(text)
    if not text.startswith(_PREFIX):
        split_peer(text)
        return (text,)
    body = _unpack(text.removeprefix(_PREFIX))
    if body is None:
        msg = "this invite is damaged: copy it again, whole, from the node that printed it"
        raise ConfigError(msg)
    peer, *addresses = body.split(" ")
    multiaddrs = tuple(f"{address}/p2p/{peer}" for address in addresses)
    for each in multiaddrs:
        split_peer(each)
    return multiaddrs


def _unpack(encoded: str) -> str | None:
    if len(encoded) > _LENGTH_MAX:
        return None
    try:
        raw = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))
        check, body = raw[:_CHECK_BYTES], raw[_CHECK_BYTES:]
        return body.decode() if body and hashlib.sha256(body).digest()[:_CHECK_BYTES] == check else None
    except (ValueError, binascii.Error):
        return None
