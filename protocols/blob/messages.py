"""Messages of ``/p2pnode/blob/1``. See ``SPEC.md`` for states, limits and byte vectors.

``id`` names a request on its stream: the client draws it, it only grows, and everything about that
request carries it. Hashes are BLAKE3, sizes and offsets bytes, leases seconds from now.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Annotated, Final, TypeAlias

from blake3 import blake3

from p2pnode.errors import StoreCode
from p2pnode.ids import ModelId, PeerId
from p2pnode.protocols.s5.entries import EntryKey
from p2pnode.protocols.s5.ids import BlobHash
from p2pnode.protocols.wire import U32, U63, Bytes32, Bytes64, Codec, Range, Size, exactly, message

PROTOCOL: Final = "/p2pnode/blob/1"
FRAME_MAX: Final = 1 << 20
SIZE_MAX: Final = 34_000_000
"""Of one blob: ``storage.store.BLOB_MAX``."""
DATA_MAX: Final = FRAME_MAX - 64
"""Bytes of a blob in one frame, at most."""
CHUNK: Final = 1 << 18
"""What both sides send in one frame: small enough that other answers come between."""
INLINE_MAX: Final = CHUNK
"""A blob up to here goes with its ``Put``: one round trip."""
IN_FLIGHT_MAX: Final = 32
"""Requests of a stream that have no final answer yet."""
PENDING_MAX: Final = 4 << 20
"""Bytes of inline blobs that have no answer yet, at most."""
UPLOADS_MAX: Final = 2
"""Blobs that a stream uploads in pieces at the same time."""
UPLOAD_WINDOW: Final = 1 << 20
"""Bytes of an upload past the last ``Credit``."""
PIECE_MIN: Final = 4096
"""All pieces of a blob but the last have at least this many bytes: single bytes would cost too much."""
HASHES_MAX: Final = 64
LEASE_MAX_S: Final = 366 * 86_400
ENTRY_MIN, ENTRY_MAX = 107, 171
"""Bytes of a serialised entry without data, and with the most."""
DETAIL_MAX: Final = 512
RETRY_MAX_S: Final = 86_400
_CLAIM_TAG: Final = b"p2pnode/blob-owner/1\0"
_PROVIDER_TAG: Final = b"p2pnode/entry/1\0"
_FILES_TAG: Final = b"p2pnode/model-files/1\0"

Hash = Annotated[BlobHash, exactly(32)]
Key = Annotated[EntryKey, exactly(32)]
Bytes = Annotated[int, Range(0, SIZE_MAX)]
Lease = Annotated[int, Range(0, LEASE_MAX_S)]
Entry = Annotated[bytes, Size(ENTRY_MIN, ENTRY_MAX)]


@message("claim")
@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Says whose writes follow: ``signature`` is the owner key's over :func:`claim_digest`. Not answered."""

    owner: Bytes32
    signature: Bytes64


@message("admit")
@dataclass(frozen=True, slots=True, kw_only=True)
class Admit:
    """Ask whether writes of the claimed owner are taken now. Answered by ``Done`` or ``Failed``."""

    id: U32


@message("put")
@dataclass(frozen=True, slots=True, kw_only=True)
class Put:
    """Keep a blob. Without ``data`` it follows in ``Data``."""

    id: U32
    hash: Hash
    size: Bytes
    lease_s: Lease
    data: Annotated[bytes, Size(0, INLINE_MAX)] | None = None


@message("data")
@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """The next bytes of a blob, either way."""

    id: U32
    data: Annotated[bytes, Size(0, DATA_MAX)]
    last: bool = False


@message("credit")
@dataclass(frozen=True, slots=True, kw_only=True)
class Credit:
    """The store took the first ``received`` bytes of an upload."""

    id: U32
    received: Bytes


@message("get")
@dataclass(frozen=True, slots=True, kw_only=True)
class Get:
    """Read a blob from ``offset``, to its end or ``length`` bytes."""

    id: U32
    hash: Hash
    offset: U63 = 0
    length: U63 | None = None


@message("blob")
@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """The blob is here, ``size`` bytes in all; what was asked for follows in ``Data``."""

    id: U32
    size: Bytes


@message("has")
@dataclass(frozen=True, slots=True, kw_only=True)
class Has:
    """Ask which of these blobs are here. Answered by ``Sizes``."""

    id: U32
    hashes: Annotated[tuple[Hash, ...], Size(1, HASHES_MAX)]


@message("sizes")
@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """The sizes of the blobs in the order asked; -1 for one that is not here."""

    id: U32
    sizes: Annotated[tuple[Annotated[int, Range(-1, SIZE_MAX)], ...], Size(1, HASHES_MAX)]


@message("pin")
@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """Lease a blob that is here, or renew."""

    id: U32
    hash: Hash
    lease_s: Lease


@message("unpin")
@dataclass(frozen=True, slots=True, kw_only=True)
class Unpin:
    """End the owner's lease."""

    id: U32
    hash: Hash


@message("get_entry")
@dataclass(frozen=True, slots=True, kw_only=True)
class GetEntry:
    """Ask for the newest registry entry under a key. Answered by ``EntryIs``."""

    id: U32
    key: Key


@message("entry")
@dataclass(frozen=True, slots=True, kw_only=True)
class EntryIs:
    """That entry, serialised as S5 does it; absent where none is here."""

    id: U32
    entry: Entry | None = None


@message("set_entry")
@dataclass(frozen=True, slots=True, kw_only=True)
class SetEntry:
    """Keep a registry entry."""

    id: U32
    entry: Entry


@message("stale")
@dataclass(frozen=True, slots=True, kw_only=True)
class Stale:
    """The entry was not kept: ``current`` wins over it."""

    id: U32
    current: Entry


@message("done")
@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What was asked for is done, and durable."""

    id: U32


@message("cancel")
@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """The client wants no answer any more, or ends an upload that was refused."""

    id: U32


@message("failed")
@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The request came to nothing."""

    id: U32
    code: StoreCode
    detail: Annotated[str, Size(0, DETAIL_MAX)] = ""
    retry_after_s: Annotated[float, Range(0, RETRY_MAX_S)] | None = None


Request: TypeAlias = Admit | Put | Get | Has | Pin | Unpin | GetEntry | SetEntry
ClientMessage: TypeAlias = Claim | Request | Data | Cancel
ServerMessage: TypeAlias = Credit | Blob | Data | Sizes | EntryIs | Stale | Done | Failed
ANSWERS: Final = (Credit, Blob, Data, Sizes, EntryIs, Stale, Done, Failed)
CODEC: Final = Codec(
    Claim, Admit, Put, Data, Credit, Get, Blob, Has, Sizes, Pin, Unpin, GetEntry, EntryIs, SetEntry, Stale,
    Done, Cancel, Failed,
)  # fmt: skip


def claim_digest(client: PeerId, server: PeerId) -> bytes:
    """32 bytes that an owner key signs: BLAKE3 of a tag and both peer ids. It is good between these two."""
    return blake3(_CLAIM_TAG + client.encode() + b"\0" + server.encode()).digest()


def provider_key(key: EntryKey) -> bytes:
    """The 32-byte key of the provider records of whoever holds an entry: SHA-256 of a tag and the key."""
    return hashlib.sha256(_PROVIDER_TAG + key).digest()


def files_key(model: ModelId) -> bytes:
    """The 32-byte key of the provider records of who shares a model's files: SHA-256 of a tag and the id."""
    return hashlib.sha256(_FILES_TAG + model).digest()
