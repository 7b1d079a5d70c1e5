"""The vectors of S5. Those marked ``external`` came from other programs, or from code that reads their live
data; the tests beside this file hold the code to them literally. The others are ours."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

from p2pnode.protocols.s5.accounts import Purpose, challenge_response
from p2pnode.protocols.s5.entries import pointer_to
from p2pnode.protocols.s5.ids import BlobHash, BlobId, hash_of, multibase
from p2pnode.protocols.s5.locations import make_location
from p2pnode.protocols.s5.messages import (
    AnnouncePeers,
    HandshakeDone,
    HandshakeOpen,
    HashQuery,
    KnownPeer,
    RegistryQuery,
    encode,
    encode_statement,
    sign_statement,
)
from p2pnode.protocols.s5.nodes import PeerUri, node_text
from p2pnode.protocols.s5.values import pack
from tests.protocols.s5.support import COUNTING, HELLO, HELLO_HASH, OTHER, ZERO


def s5_vectors() -> dict[str, Any]:
    """All of them."""
    return {
        "seeds": {"zero": bytes(32).hex(), "other": (b"\x01" * 32).hex()},
        "ids": ids(),
        "refused_ids": refused_ids(),
        "entries": entries(),
        "messages": messages(),
        "statements": statements(),
        "refused_messages": refused_messages(),
        "handshake": handshake(),
        "nodes": nodes(),
        "accounts": accounts(),
    }


def source(external: bool) -> str:
    """Who made a vector."""
    return "external" if external else "ours"


def plain(value: Any) -> Any:
    """As JSON shows it: bytes as hex."""
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, tuple):
        return [plain(each) for each in value]
    return value.hex() if isinstance(value, bytes) else value


def ids() -> list[dict[str, Any]]:
    """Of blobs, in both dialects and every base."""
    told = [
        ("Hello, world!", BlobId.of(HELLO), True),
        ("the empty blob", BlobId.of(b""), True),
        (
            "5050 bytes",
            BlobId(
                BlobHash(bytes.fromhex("e40b877081c208036d451b898700b4bf938792ffa3e4426f2bf871aa057d992b")),
                5050,
            ),
            True,
        ),
        ("the largest size", BlobId(HELLO_HASH, 2**64 - 1), False),
    ]
    return [
        {
            "name": name,
            "source": source(external),
            "hash": blob.hash.hex(),
            "size": blob.size,
            "hex": blob.to_bytes().hex(),
            "legacy_hex": blob.to_legacy_bytes().hex(),
            "texts": [multibase(blob.to_bytes(), base) for base in ("z", "f", "b", "u")],
            "legacy_texts": [multibase(blob.to_legacy_bytes(), base) for base in ("z", "f", "b", "u")],
        }
        for name, blob, external in told
    ]


def refused_ids() -> list[dict[str, str]]:
    """Texts that name no blob."""
    blob = BlobId.of(HELLO)
    return [
        {"name": "an unknown base", "text": "x" + blob.to_bytes().hex()},
        {"name": "upper case", "text": blob.text().upper()},
        {"name": "spare bits set", "text": blob.text()[:-1] + "v"},
        {"name": "padding", "text": blob.text() + "="},
        {"name": "SHA-256", "text": "f5b8212" + "00" * 33},
        {"name": "a size of nine bytes", "text": "f5b821e" + "00" * 32 + "01" * 9},
        {"name": "a hash that is cut", "text": "f5b821e" + "00" * 31},
        {"name": "a directory", "text": "f5d1e" + "00" * 32},
    ]


def entries() -> list[dict[str, Any]]:
    """Signed by the seed of zeros."""
    told = [
        ("33 zero bytes", ZERO.entry(1, bytes(33)), True),
        ("points at the empty blob", ZERO.entry(42, pointer_to(hash_of(b""))), True),
        ("no data, revision 0", ZERO.entry(0, b""), False),
        ("all that fits", ZERO.entry(2**48, b"\xff" * 64), False),
    ]
    return [
        {"name": name, "source": source(external), "fields": plain(entry), "hex": entry.to_bytes().hex()}
        for name, entry, external in told
    ]


def messages() -> list[dict[str, Any]]:
    """One or more of each."""
    done = sign_statement(HandshakeDone(challenge=COUNTING), ZERO.node, ZERO.sign)
    where = make_location(
        HELLO_HASH, parts=("http://127.0.0.1:1/x",), expires_at=2_000_000_000, node=ZERO.node, sign=ZERO.sign
    )
    told: list[tuple[str, Any, bool]] = [
        ("", HandshakeOpen(challenge=COUNTING), True),
        ("HandshakeOpen of s5.js, 64 bytes", HandshakeOpen(challenge=COUNTING * 2), False),
        ("HandshakeOpen of a closed network", HandshakeOpen(challenge=COUNTING, network="closed"), False),
        ("", done, True),
        ("", HashQuery(digest=HELLO_HASH), True),
        ("HashQuery with the newer kind of hash", HashQuery(digest=HELLO_HASH, types=(3,), old=False), False),
        ("", RegistryQuery(key=ZERO.entry_key), True),
        ("", where, True),
        ("Entry", ZERO.entry(42, pointer_to(hash_of(b""))), True),
    ]
    return [
        {
            "name": name or type(message).__name__,
            "type": type(message).__name__,
            "source": source(external),
            "fields": plain(message),
            "hex": encode(message).hex(),
        }
        for name, message, external in told
    ]


def statements() -> list[dict[str, Any]]:
    """What ``Signed`` holds."""
    known = KnownPeer(node=OTHER.node, connected=True, uris=("wss://s5.example/s5/p2p",))
    told: list[tuple[Any, bool]] = [
        (HandshakeDone(challenge=COUNTING), True),
        (HandshakeDone(challenge=COUNTING * 2, uris=("ws://127.0.0.1:5050/s5/p2p",)), False),
        (AnnouncePeers(peers=(known,)), False),
        (AnnouncePeers(peers=()), False),
    ]
    return [
        {
            "type": type(statement).__name__,
            "source": source(external),
            "fields": plain(statement),
            "hex": encode_statement(statement).hex(),
        }
        for statement, external in told
    ]


def refused_messages() -> list[dict[str, str]]:
    """Frames that end a connection."""
    location = encode(make_location(HELLO_HASH, parts=("x",), expires_at=1, node=ZERO.node, sign=ZERO.sign))
    told = {
        "nothing": b"",
        "not a number": b"\xc0",
        "a challenge of 31 bytes": pack(1, bytes(31)),
        "a challenge of 65 bytes": pack(1, bytes(65)),
        "bytes that are longer than the frame": b"\x01\xc6\xff\xff\xff\xff",
        "a hash of another kind": pack(4, b"\x12" + bytes(32), [3]),
        "17 types": pack(4, b"\x1f" + bytes(32), [3] * 17),
        "a key of another kind": pack(13, b"\xee" + bytes(32)),
        "an entry with a byte too many": ZERO.entry().to_bytes() + b"\0",
        "a location that is cut": location[:-1],
        "a location of nine parts": location[:39] + b"\x09" + location[40:],
    }
    return [{"name": name, "hex": frame.hex()} for name, frame in told.items()]


def handshake() -> list[dict[str, str]]:
    """Two nodes meet: the seed of zeros (``zero``) was dialled by the seed of ones (``other``)."""
    one, two = COUNTING, COUNTING[::-1]
    said: list[tuple[str, Any]] = [
        ("other", HandshakeOpen(challenge=two)),
        ("zero", HandshakeOpen(challenge=one)),
        ("zero", sign_statement(HandshakeDone(challenge=two), ZERO.node, ZERO.sign)),
        ("other", sign_statement(HandshakeDone(challenge=one), OTHER.node, OTHER.sign)),
    ]
    return [{"from": side, "hex": encode(message).hex()} for side, message in said]


def nodes() -> dict[str, str]:
    """A node's name and URI."""
    uri = PeerUri(host="s5.example", port=5050, tls=False, node=ZERO.node)
    return {"key": ZERO.public.hex(), "text": node_text(ZERO.node), "uri": uri.text()}


def accounts() -> list[dict[str, str]]:
    """Answers to a challenge of zeros, signed by the seed of zeros."""
    host = "127.0.0.1:5601"
    told = [(Purpose.REGISTER, True), (Purpose.LOGIN, False)]
    answers = [
        (purpose, external, challenge_response(purpose, bytes(32), host)) for purpose, external in told
    ]
    return [
        {
            "purpose": purpose.name.lower(),
            "source": source(external),
            "host": host,
            "response": response.hex(),
            "signature": ZERO.sign(response).hex(),
        }
        for purpose, external, response in answers
    ]
