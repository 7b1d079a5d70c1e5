"""What the machines of ``/p2pnode/blob/1`` are told, and what they ask for.

The server emits :data:`Order` and takes :data:`Report`; the client takes :data:`ClientCommand` and emits
:data:`ClientEmission`. Owners are 32-byte Ed25519 keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from p2pnode.errors import StoreCode
from p2pnode.protocols.s5.entries import Entry, EntryKey
from p2pnode.protocols.s5.ids import BlobHash

# ---- what a server orders of its store


@dataclass(frozen=True, slots=True)
class KeepBlob:
    """Put a blob; where ``data`` is None, ``Piece`` follow until one is the last."""

    id: int
    owner: bytes
    hash: BlobHash
    size: int
    lease_s: int
    data: bytes | None


@dataclass(frozen=True, slots=True)
class Piece:
    """The next bytes of that blob: at most ``UPLOAD_WINDOW`` of them are out without a ``Taken``."""

    id: int
    data: bytes
    last: bool


@dataclass(frozen=True, slots=True)
class ReadBlob:
    """Read ``length`` bytes, and tell the blob's size if ``sized``. Reported by ``BlobRead``."""

    id: int
    hash: BlobHash
    offset: int
    length: int
    sized: bool


@dataclass(frozen=True, slots=True)
class FindSizes:
    """Reported by ``SizesFound``."""

    id: int
    hashes: tuple[BlobHash, ...]


@dataclass(frozen=True, slots=True)
class KeepLease:
    """Pin."""

    id: int
    owner: bytes
    hash: BlobHash
    lease_s: int


@dataclass(frozen=True, slots=True)
class EndLease:
    """Unpin."""

    id: int
    owner: bytes
    hash: BlobHash


@dataclass(frozen=True, slots=True)
class FindEntry:
    """Reported by ``EntryFound``."""

    id: int
    key: EntryKey


@dataclass(frozen=True, slots=True)
class KeepEntry:
    """Set a registry entry; its signature is the store's to check."""

    id: int
    owner: bytes
    entry: Entry


@dataclass(frozen=True, slots=True)
class Abandon:
    """Stop working on this request, and report it ``NotDone`` unless it is done already."""

    id: int


@dataclass(frozen=True, slots=True)
class Fault:
    """The peer did what only a liar or a broken peer does; the stream goes on."""

    what: str


@dataclass(frozen=True, slots=True)
class Over:
    """The stream is over. ``fault``: by the peer's fault."""

    reason: str
    fault: bool = False


Work: TypeAlias = KeepBlob | ReadBlob | FindSizes | KeepLease | EndLease | FindEntry | KeepEntry
Order: TypeAlias = Work | Piece | Abandon | Fault | Over

# ---- what the store reports


@dataclass(frozen=True, slots=True)
class WorkDone:
    """Kept, pinned, unpinned or set; durable."""

    id: int


@dataclass(frozen=True, slots=True)
class Taken:
    """The store took so many more bytes of an upload."""

    id: int
    count: int


@dataclass(frozen=True, slots=True)
class BlobRead:
    """Bytes as asked, fewer only at the end; ``size`` where it was asked."""

    id: int
    data: bytes
    size: int | None = None


@dataclass(frozen=True, slots=True)
class SizesFound:
    """None for what is not here."""

    id: int
    sizes: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class EntryFound:
    """The newest entry, or None."""

    id: int
    entry: Entry | None


@dataclass(frozen=True, slots=True)
class NewerEntry:
    """The registry keeps this one instead."""

    id: int
    current: Entry


@dataclass(frozen=True, slots=True)
class NotDone:
    """The store refused or failed, or the work was abandoned (``cancelled``)."""

    id: int
    code: StoreCode
    detail: str = ""


Report: TypeAlias = WorkDone | Taken | BlobRead | SizesFound | EntryFound | NewerEntry | NotDone

# ---- what a client asks of a peer


@dataclass(frozen=True, slots=True)
class AskAdmission:
    """Would the peer take writes of this owner? Answered ``Kept``."""

    owner: bytes


@dataclass(frozen=True, slots=True)
class AskPut:
    """Keep ``data``, whose hash is ``hash``. Answered ``Kept``."""

    owner: bytes
    hash: BlobHash
    data: bytes
    lease_s: int


@dataclass(frozen=True, slots=True)
class AskBlob:
    """A whole blob, verified. Answered ``Fetched``."""

    hash: BlobHash


@dataclass(frozen=True, slots=True)
class AskSizes:
    """At most ``HASHES_MAX``. Answered ``Sized``."""

    hashes: tuple[BlobHash, ...]


@dataclass(frozen=True, slots=True)
class AskPin:
    """Answered ``Kept``."""

    owner: bytes
    hash: BlobHash
    lease_s: int


@dataclass(frozen=True, slots=True)
class AskUnpin:
    """Answered ``Kept``."""

    owner: bytes
    hash: BlobHash


@dataclass(frozen=True, slots=True)
class AskEntry:
    """Answered ``Pointed``, its signature checked."""

    key: EntryKey


@dataclass(frozen=True, slots=True)
class AskSet:
    """Answered ``Kept`` or ``Outdated``."""

    owner: bytes
    entry: Entry


Question: TypeAlias = AskAdmission | AskPut | AskBlob | AskSizes | AskPin | AskUnpin | AskEntry | AskSet


@dataclass(frozen=True, slots=True)
class Ask:
    """One question; ``ticket`` is the shell's name for it."""

    ticket: int
    question: Question


@dataclass(frozen=True, slots=True)
class Drop:
    """Nobody waits for this any more."""

    ticket: int


ClientCommand: TypeAlias = Ask | Drop

# ---- what a client hands up


@dataclass(frozen=True, slots=True)
class Kept:
    """The peer says that it is so, and durable."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """The blob; its hash was checked."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Sized:
    """None for what the peer says it does not have."""

    sizes: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Pointed:
    """The newest entry that the peer has; its signature was checked."""

    entry: Entry | None


@dataclass(frozen=True, slots=True)
class Outdated:
    """The peer has one that wins; its signature was checked."""

    current: Entry


@dataclass(frozen=True, slots=True)
class Refused:
    """The peer said no."""

    code: StoreCode
    detail: str
    retry_after_s: float | None


@dataclass(frozen=True, slots=True)
class NotAsked:
    """So many questions wait for this peer that it was not asked."""

    why: str


@dataclass(frozen=True, slots=True)
class Lied:
    """The bytes are not those of the hash. Counts against the peer; the stream is in order."""

    what: str


Outcome: TypeAlias = Kept | Fetched | Sized | Pointed | Outdated | Refused | NotAsked | Lied


@dataclass(frozen=True, slots=True)
class Answered:
    """What became of a question. Once each, unless it was dropped or the stream is over."""

    ticket: int
    outcome: Outcome


ClientEmission: TypeAlias = Answered | Over
