"""The vectors of ``storage/SPEC.md``: keys from twelve words, sealed objects, a conversation, an index."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Final

from nacl.bindings import crypto_aead_xchacha20poly1305_ietf_encrypt

from p2pnode.chain.wallet.phrase import phrase_of, wallet_secret
from p2pnode.ids import ModelId, PeerId, SessionId
from p2pnode.protocols.crypto import key_address
from p2pnode.protocols.inference.messages import SamplingParams, SessionTerms, Voucher
from p2pnode.protocols.s5.entries import pointer_to
from p2pnode.protocols.s5.ids import BlobHash, hash_of
from p2pnode.protocols.wire import encode
from p2pnode.storage.conversations.compaction import FAN_IN, due, groups
from p2pnode.storage.conversations.merge import better, next_step, wins
from p2pnode.storage.conversations.records import (
    TOMBSTONE,
    IndexRecord,
    Link,
    Manifest,
    Piece,
    SavedConversation,
    SavedSession,
    Segment,
    SegmentRef,
    WriterSeq,
)
from p2pnode.storage.keys import LogKeys, StorageKeys
from p2pnode.storage.replication.choice import distance
from p2pnode.storage.sealing import MAGIC, NONCE_BYTES, Draw, Kind, padded, seal

ENTROPY: Final = bytes(range(16))
SID: Final = bytes(range(16, 32))
KEYS: Final = StorageKeys.from_entropy(ENTROPY)
MODEL: Final = ModelId(hashlib.sha256(b"model").digest())
HOST: Final = PeerId("12D3KooWA4Xop1JaT3MHxwYMkCepYsv4iPVopMXwCz5iHYdBfeSB")
OTHER: Final = PeerId("12D3KooWHFd1gyNYFqxt7ke9FY2VoVVWY2XSPhvL9vg2pB6wQGfa")
WRITER: Final = b"\x01" * 8
AT: Final = 1_700_000_000
PIECES: Final = (
    Piece(role="user", text="What is a ship?", at=AT, turn=0),
    Piece(
        role="assistant",
        text="A large ",
        ids=(330, 2301),
        model=MODEL,
        host=HOST,
        tokens_in=12,
        tokens_out=2,
        at=AT + 2,
        turn=1,
    ),
    Piece(
        role="assistant",
        text="boat.",
        ids=(5634, 30),
        finish="stop",
        model=MODEL,
        host=OTHER,
        tokens_in=14,
        tokens_out=2,
        at=AT + 5,
        turn=1,
        part=1,
    ),
)
"""A question, and an answer that a second host ended."""
COMMITS: Final = ((), PIECES[:1], PIECES[1:])
"""What each commit adds: the conversation is begun, asked, answered."""

TERMS: Final = SessionTerms(
    payer=b"\x01" * 20,
    host=b"\x02" * 20,
    voucher_key=b"\x03" * 20,
    receipt_key=b"\x11" * 20,
    model=MODEL,
    deposit=1_000_000,
    price_in=5,
    price_out=10,
    session_fee=2500,
    tip=100,
    expiry=AT + 3600,
    salt=b"\x5a" * 32,
)
SESSION: Final = SavedSession(
    session=SessionId(b"\x5e" * 32),
    terms=TERMS,
    voucher_secret=b"\x09" * 32,
    host=HOST,
    addresses=("/ip4/192.0.2.7/tcp/4001",),
    valid_before=AT + 300,
    opened_at=AT,
)
VOUCHER: Final = Voucher(
    seq=1, tokens_in=5, tokens_out=3, amount=2501, root=b"\x0f" * 32, signature=bytes(65)
)


def nonces(first: int) -> Draw:
    """Nonces in the order in which they are drawn: 24 equal bytes, each one more than the one before."""
    drawn = iter(range(first, 256))
    return lambda count: bytes([next(drawn)]) * count


def storage_vectors() -> dict[str, Any]:
    """Everything of the SPEC that is bytes."""
    from tests.protocols.make_vectors import vector

    return {
        "phrase": {
            "entropy": ENTROPY.hex(),
            "words": phrase_of(ENTROPY),
            "wallet_secret": wallet_secret(ENTROPY).hex(),
            "wallet": key_address(wallet_secret(ENTROPY)).hex(),
        },
        "keys": {
            "root": KEYS.root.hex(),
            "owner_secret": KEYS.owner_signing.private_bytes_raw().hex(),
            "owner": KEYS.owner.hex(),
            "index": _log_keys(KEYS.index),
            "conversation": _log_keys(KEYS.conversation(SID)),
            "model_list": {"name": "small", "entry_key": KEYS.model_list("small").entry_key.hex()},
        },
        "padded": [[size, padded(size)] for size in (0, 1, 4096, 4097, 81_920, 81_921, 163_841, 4_194_304)],
        "sealed": _sealed(),
        "refused": [{"name": name, "hex": data.hex()} for name, data in refused().items()],
        "records": [
            vector(PIECES[0]),
            vector(PIECES[1]),
            vector(SavedConversation(sid=SID, title="Ships", created=AT, updated=AT + 5, model=MODEL)),
            vector(SESSION),
            vector(replace(SESSION, voucher=VOUCHER, over=True), "session, over"),
            vector(_LEFT, "session, left"),
        ],
        "conversation": _conversation(),
        "index": _index(),
        "tombstone": {
            "revision": 4,
            "entry": KEYS.conversation(SID).entry(4, pointer_to(TOMBSTONE)).to_bytes().hex(),
        },
        "merge": [
            {"name": name, "kept": encode(better(*pair)).hex(), "of": [encode(each).hex() for each in pair]}
            for name, pair in PAIRS.items()
        ],
        "forks": _forks(),
        "compaction": _compaction(),
        "distances": [
            {
                "entry_key": KEYS.index.entry_key.hex(),
                "peer": peer,
                "distance": f"{distance(KEYS.index.entry_key, peer):064x}",
            }
            for peer in (HOST, OTHER)
        ],
    }


def _log_keys(keys: LogKeys) -> dict[str, str]:
    return {"sid": keys.sid.hex(), "sealing": keys.sealing.hex(), "entry_key": keys.entry_key.hex()}


def _sealed() -> dict[str, Any]:
    record, seq, nonce = b"hello", 7, 1
    data = seal(KEYS.conversation(SID), seq, "S", record, nonces(nonce))
    return {
        "sid": SID.hex(),
        "seq": seq,
        "kind": "S",
        "nonce": (bytes([nonce]) * NONCE_BYTES).hex(),
        "record": record.hex(),
        "size": len(data),
        "hash": hash_of(data).hex(),
    }


def refused() -> dict[str, bytes]:
    """Objects for the place 7, S of the conversation that none may open."""
    keys = KEYS.conversation(SID)
    nonce, bound = b"\x07" * NONCE_BYTES, b"p2pc1" + SID + (7).to_bytes(8, "big") + b"S"

    def raw(plain: bytes, magic: bytes = MAGIC) -> bytes:
        sealed = crypto_aead_xchacha20poly1305_ietf_encrypt(plain, bound, nonce, keys.sealing)
        return magic + nonce + sealed

    return {
        "another version": raw(b"\x05\0\0\0hello", b"p2pc\x02"),
        "a length beyond the end": raw(b"\x06\0\0\0hello"),
        "padding that is not zero": raw(b"\x05\0\0\0hello\x01"),
        "cut short": seal(keys, 7, "S", b"hello", nonces(7))[:100],
    }


# ---- logs


def commits_of(
    keys: LogKeys, kind: Kind, commits: tuple[tuple[bytes, ...], ...], *, whole: bool, **fields: Any
) -> list[dict[str, Any]]:
    """A log as one writer commits it: each commit's objects, manifest and entry. ``whole``: all bytes."""
    nonce = 0x10
    objects: list[dict[str, Any]] = []

    def put(kind: Kind, seq: int, record: bytes) -> bytes:
        nonlocal nonce
        sealed = seal(keys, seq, kind, record, nonces(nonce))
        told = {"kind": kind, "seq": seq, "nonce": (bytes([nonce]) * NONCE_BYTES).hex()}
        objects.append(told | ({"hex": sealed.hex()} if whole else {"hash": hash_of(sealed).hex()}))
        nonce += 1
        return sealed

    manifest = Manifest(seq=0, writer=WRITER, **fields)
    prev: Link | None = None
    told = []
    for seq, records in enumerate(commits, 1):
        objects = []
        if records:
            segment = put(kind, manifest.next, encode(Segment(records=records)))
            ref = SegmentRef(
                first=manifest.next, last=manifest.next, hash=hash_of(segment), length=len(segment)
            )
            manifest = replace(manifest, segments=(*manifest.segments, ref), next=manifest.next + 1)
        turns = max([manifest.turns, *(turn_of(record) + 1 for record in records)])
        manifest = replace(
            manifest, seq=seq, prev=prev, writers=(WriterSeq(writer=WRITER, seq=seq),), turns=turns
        )
        sealed = put("M", seq, encode(manifest))
        prev = Link(seq=seq, hash=hash_of(sealed))
        told.append(
            {
                "revision": seq,
                "records": [record.hex() for record in records],
                "manifest": encode(manifest).hex(),
                "objects": objects,
                "hash": prev.hash.hex(),
                "entry": keys.entry(seq, pointer_to(prev.hash)).to_bytes().hex(),
            }
        )
    return told


def turn_of(record: bytes) -> int:
    """The turn of a piece; -1 for a record of the index."""
    return next((piece.turn for piece in PIECES if encode(piece) == record), -1)


def _conversation() -> dict[str, Any]:
    commits = tuple(tuple(encode(piece) for piece in pieces) for pieces in COMMITS)
    sampling = SamplingParams(tokens_max=64, temperature=0.0)
    fields = {"title": "Ships", "model": MODEL, "sampling": sampling}
    return {
        "writer": WRITER.hex(),
        "commits": commits_of(KEYS.conversation(SID), "S", commits, whole=True, **fields),
        "turns": ["What is a ship?", "A large boat."],
    }


def _index() -> dict[str, Any]:
    listed = SavedConversation(sid=SID, title="Ships", created=AT, updated=AT, model=MODEL)
    over = replace(SESSION, voucher=VOUCHER, over=True)
    commits = ((encode(listed),), (encode(SESSION),), (encode(over),))
    return {"writer": WRITER.hex(), "commits": commits_of(KEYS.index, "I", commits, whole=False)}


# ---- what is decided


_LISTED: Final = SavedConversation(sid=SID, title="a", created=AT, updated=AT + 5)
_LEFT: Final = replace(SESSION, voucher=VOUCHER, keep_s=86_400, left_until=AT + 86_400)
PAIRS: Final[dict[str, tuple[IndexRecord, IndexRecord]]] = {
    "the later one": (_LISTED, replace(_LISTED, title="b", updated=AT + 6)),
    "forgotten": (replace(_LISTED, updated=AT, gone=True), _LISTED),
    "at one time the larger bytes": (_LISTED, replace(_LISTED, title="b")),
    "with a voucher": (SESSION, replace(SESSION, voucher=VOUCHER)),
    "the higher voucher": (
        replace(SESSION, voucher=VOUCHER),
        replace(SESSION, voucher=replace(VOUCHER, amount=2502)),
    ),
    "over": (
        replace(SESSION, voucher=VOUCHER, over=True),
        replace(SESSION, voucher=replace(VOUCHER, amount=2502)),
    ),
    "left": (replace(_LEFT, left_until=None), _LEFT),
    "used since by another machine": (_LEFT, replace(_LEFT, left_until=None, generation=1)),
}


def _forks() -> list[dict[str, Any]]:
    def link(seq: int, byte: int) -> Link:
        return Link(seq=seq, hash=BlobHash(bytes([byte]) * 32))

    cases = ((link(5, 1), link(4, 2)), (link(5, 1), link(6, 2)), (link(5, 1), link(5, 2)))
    return [
        {
            "ours": {"revision": ours.seq, "hash": ours.hash.hex()},
            "other": {"revision": other.seq, "hash": other.hash.hex()},
            "ours_wins": wins(ours, other),
            "step": next_step("fork", ours, other, in_turn=False),
        }
        for ours, other in cases
    ]


def _compaction() -> list[dict[str, Any]]:
    """Segments of a log as (how many, level, bytes of each), and those that are joined next."""
    cases = (
        ((FAN_IN - 1, 0, 4096),),
        ((FAN_IN, 0, 4096),),
        ((FAN_IN - 1, 1, 8192), (FAN_IN, 0, 4096)),
        ((FAN_IN, 1, 8192), (FAN_IN - 1, 0, 4096)),
        ((FAN_IN, 0, 300_000),),
    )
    return [
        {"segments": [list(each) for each in case], "joined": joined(segments_of(case))} for case in cases
    ]


def segments_of(case: Iterable[Sequence[int]]) -> list[SegmentRef]:
    """The segments of a case."""
    kinds = [(level, length) for count, level, length in case for _ in range(count)]
    return [
        SegmentRef(first=n, last=n, level=level, hash=BlobHash(bytes(32)), length=length)
        for n, (level, length) in enumerate(kinds)
    ]


def joined(refs: Sequence[SegmentRef]) -> list[list[int]]:
    """The numbers of those that become one segment each: the first and the last."""
    start = due(refs)
    found = [] if start is None else groups(refs[start:])
    return [[group[0].first, group[-1].last] for group in found]
