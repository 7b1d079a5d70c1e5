"""Registry keys and entries as S5's HTTP API writes them: JSON with base64url. Both sides use it. Pure."""

from __future__ import annotations

import json
from typing import Final

from p2pnode.errors import ProtocolError
from p2pnode.protocols.s5.entries import Entry, EntryKey, checked, parse_key, tagged
from p2pnode.protocols.s5.ids import base64url, from_base64url

_KEY_TEXT: Final = 44


def key_of(text: str) -> EntryKey:
    """A registry key as the API writes it: base64url of 33 bytes. Raises ``ProtocolError``."""
    bare = text[1:] if len(text) == _KEY_TEXT + 1 and text.startswith("u") else text
    return parse_key(from_base64url(bare))


def entry_json(entry: Entry) -> dict[str, str | int]:
    """An entry as the API writes it."""
    return {
        "pk": base64url(tagged(entry.key)),
        "revision": entry.revision,
        "data": base64url(entry.data),
        "signature": base64url(entry.signature),
    }


def entry_of(body: bytes) -> Entry:
    """An entry from the API's JSON; its signature is not checked. Raises ``ProtocolError``."""
    try:
        raw = json.loads(body)
        pk, revision, data, signature = (raw[name] for name in ("pk", "revision", "data", "signature"))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        msg = "an entry is JSON with pk, revision, data and signature"
        raise ProtocolError(msg) from error
    if type(revision) is not int or not all(isinstance(text, str) for text in (pk, data, signature)):
        msg = "an entry's revision is a whole number, its pk, data and signature are base64url"
        raise ProtocolError(msg)
    return checked(
        key=key_of(pk),
        revision=revision,
        data=from_base64url(data),
        signature=from_base64url(signature),
    )
