"""What is sealed: records, segments of records, and manifests that list segments. Pure.

A *log* is a list of segments, named by its newest manifest. A conversation is a log of ``Piece``; the
index is a log of ``SavedConversation`` and ``SavedSession``. All of it is msgpack with bounds
(``protocols/wire.py``), as on the wire: one codec for everything. Keys and stores are not known here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Final, Literal, TypeAlias

from p2pnode.errors import StorageError
from p2pnode.ids import PeerId
from p2pnode.protocols.inference.messages import (
    ModelIdBytes,
    Receipt,
    Role,
    SamplingParams,
    SessionIdBytes,
    SessionTerms,
    Voucher,
)
from p2pnode.protocols.s5.ids import BlobHash
from p2pnode.protocols.wire import U32, U63, Bytes20, Bytes32, Codec, Key, Range, Size, exactly, message

PIECE_TEXT_MAX: Final = 1 << 19
"""Bytes of text in one piece; longer text takes several."""
PIECE_IDS_MAX: Final = 8192
RECORDS_MAX: Final = 4096
"""Records in a segment."""
RECORD_BYTES_MAX: Final = 1 << 20
SEGMENTS_MAX: Final = 1024
LEVEL_MAX: Final = 7
BRANCHES_MAX: Final = 16
WRITERS_MAX: Final = 16
WRITER_BYTES: Final = 8
TITLE_MAX: Final = 128
_PEER_MAX: Final = 128
_ADDRESSES_MAX: Final = 16
_ADDRESS_MAX: Final = 256
_LENGTH_MAX: Final = 4 << 20

Sid = Annotated[bytes, exactly(16)]
HashBytes = Annotated[BlobHash, exactly(32)]
Title = Annotated[str, Size(0, TITLE_MAX)]
Finish: TypeAlias = Literal["stop", "length", "cancelled", "failed", "tool_calls"]


class ArchiveError(StorageError):
    """A conversation can't be read or written. The message says what to do."""


# ---- what a conversation is made of


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """New text of a turn: all of it, or what came since the last piece.

    The conversation numbers ``turn``, ``part`` (how many pieces of the turn came before this one) and
    ``parts`` (how many were joined in it). Counts and ``cost`` (token units) are those of this piece, so that
    they add up. ``aside`` counts the bytes of what an answer said beside its text, in thoughts and calls:
    they are not kept, and another host has to know that they came. ``receipt`` is the root of the host's
    receipt chain. ``finish`` ends the turn. ``at`` is in epoch seconds.
    """

    role: Role
    text: Annotated[str, Size(0, PIECE_TEXT_MAX), Key("x")] = field(default="", repr=False)
    ids: Annotated[tuple[U32, ...], Size(0, PIECE_IDS_MAX), Key("i")] = field(default=(), repr=False)
    finish: Annotated[Finish | None, Key("f")] = None
    model: Annotated[ModelIdBytes | None, Key("m")] = None
    host: Annotated[PeerId | None, Size(1, _PEER_MAX), Key("h")] = None
    wallet: Annotated[Bytes20 | None, Key("w")] = None
    session: Annotated[SessionIdBytes | None, Key("s")] = None
    receipt: Annotated[Bytes32 | None, Key("r")] = None
    tokens_in: Annotated[U63, Key("ti")] = 0
    reused: Annotated[U63, Key("re")] = 0
    tokens_out: Annotated[U63, Key("to")] = 0
    cost: Annotated[U63, Key("c")] = 0
    at: U63 = 0
    turn: Annotated[U32, Key("n")] = 0
    part: Annotated[U32, Key("p")] = 0
    parts: Annotated[U32, Key("q")] = 1
    aside: Annotated[U63, Key("a")] = 0


# ---- what the index is made of


@message("conversation")
@dataclass(frozen=True, slots=True, kw_only=True)
class SavedConversation:
    """A conversation in the list. Times are epoch seconds; ``updated`` is exact to an hour."""

    sid: Sid
    title: Title = field(default="", repr=False)
    created: U63
    updated: U63
    model: ModelIdBytes | None = None
    gone: bool = False
    """It was forgotten. The record stays, so that no other machine brings the conversation back."""


@message("session")
@dataclass(frozen=True, slots=True, kw_only=True)
class SavedSession:
    """A paid session: what is needed to pay for what was received, and to know what was spent."""

    session: SessionIdBytes
    terms: SessionTerms
    voucher_secret: Bytes32 = field(repr=False)
    host: Annotated[PeerId, Size(1, _PEER_MAX)]
    addresses: Annotated[tuple[Annotated[str, Size(1, _ADDRESS_MAX)], ...], Size(0, _ADDRESSES_MAX)] = ()
    valid_before: U63
    opened_at: U63
    voucher: Voucher | None = None
    receipt: Receipt | None = None
    """The host's receipt that the voucher goes on from. Who hands the voucher over late must show it."""
    over: bool = False
    """Nothing more is signed for it, so ``voucher`` is the last. Another machine may hand that one over."""
    keep_s: U32 = 0
    """For how long its host keeps it when it is left; 0 for not at all."""
    left_until: U63 | None = None
    """It is left until then: another machine may resume it. Absent while a machine uses it."""
    generation: U32 = 0
    """How often it was resumed after it was left: of two records the later one counts."""


IndexRecord: TypeAlias = SavedConversation | SavedSession
INDEX_CODEC: Final = Codec(SavedConversation, SavedSession)


# ---- what holds them


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Encoded records, oldest first."""

    v: Annotated[int, Range(1, 1)] = 1
    records: Annotated[tuple[Annotated[bytes, Size(1, RECORD_BYTES_MAX)], ...], Size(1, RECORDS_MAX)]


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentRef:
    """A segment in a manifest: what was written as the segments ``first`` to ``last``, counted from 0.

    It is sealed for the place ``last``. ``length`` is that of the sealed object, in bytes.
    """

    first: Annotated[U63, Key("f")]
    last: Annotated[U63, Key("l")]
    level: Annotated[int, Range(0, LEVEL_MAX), Key("v")] = 0
    hash: Annotated[HashBytes, Key("h")]
    length: Annotated[int, Range(1, _LENGTH_MAX), Key("n")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A manifest: its sequence number, which is its revision in the registry, and its hash."""

    seq: Annotated[U63, Key("s")]
    hash: Annotated[HashBytes, Key("h")]


@dataclass(frozen=True, slots=True, kw_only=True)
class WriterSeq:
    """The newest manifest of one writer that a manifest builds on."""

    writer: Annotated[bytes, exactly(WRITER_BYTES), Key("w")]
    seq: Annotated[U63, Key("s")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """One state of a log. ``writers`` tells descent from a fork; ``branches`` are those that lost one."""

    v: Annotated[int, Range(1, 1)] = 1
    seq: U63
    prev: Link | None = None
    next: U63 = 0
    """The number of the next segment."""
    segments: Annotated[tuple[SegmentRef, ...], Size(0, SEGMENTS_MAX)] = ()
    writer: Annotated[bytes, exactly(WRITER_BYTES)]
    writers: Annotated[tuple[WriterSeq, ...], Size(0, WRITERS_MAX)] = ()
    branches: Annotated[tuple[Link, ...], Size(0, BRANCHES_MAX + 1)] = ()
    turns: U32 = 0
    title: Title = field(default="", repr=False)
    model: ModelIdBytes | None = None
    sampling: SamplingParams | None = None

    def builds_on(self, other: Manifest) -> bool:
        """Whether ``other`` is this manifest, an ancestor, or kept as a branch of one."""
        return any(known.writer == other.writer and known.seq >= other.seq for known in self.writers)


@dataclass(frozen=True, slots=True)
class Head:
    """A manifest and its name."""

    link: Link
    manifest: Manifest

    @property
    def blobs(self) -> list[BlobHash]:
        """Its segments, and itself."""
        return [*(ref.hash for ref in self.manifest.segments), self.link.hash]


TOMBSTONE: Final = BlobHash(bytes(32))
"""The hash that the pointer of a forgotten conversation has."""


# ---- what is missing


LossKind: TypeAlias = Literal["rollback", "manifest", "segment", "branch"]


@dataclass(frozen=True, slots=True)
class Loss:
    """Something that should be there and isn't. ``detail`` says what, and who said so."""

    kind: LossKind
    sid: bytes
    seq: int
    detail: str


def title_of(text: str) -> str:
    """``text`` as a title: one line, cut at a character to what a title may hold."""
    line = " ".join(text.split())
    return line.encode(errors="replace")[:TITLE_MAX].decode(errors="ignore")
