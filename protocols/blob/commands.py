"""Commands and emissions of the machines of ``/p2pnode/blob/1``. Never on the wire.

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
    """Look up the sizes of blobs. Reported by ``SizesFound``."""

    id: int
    hashes: tuple[BlobHash, ...]


@dataclass(frozen=True, slots=True)
class KeepLease:
    """Lease a blob that is here, or renew its lease."""

    id: int
    owner: bytes
    hash: BlobHash
    lease_s: int


@dataclass(frozen=True, slots=True)
class EndLease:
    """End the owner's lease of a blob."""

    id: int
    owner: bytes
    hash: BlobHash


@dataclass(frozen=True, slots=True)
class FindEntry:
    """Look up the newest entry under a key. Reported by ``EntryFound``."""

    id: int
    key: EntryKey


@dataclass(frozen=True, slots=True)
class KeepEntry:
    """Set a registry entry; the store checks its signature."""

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
    """The order was carried out, and is durable."""

    id: int


@dataclass(frozen=True, slots=True)
class Taken:
    """The store took so many more bytes of an upload."""

    id: int
    count: int


@dataclass(frozen=True, slots=True)
class BlobRead:
    """Bytes as ordered, fewer only at the blob's end; ``size`` where it was ordered."""

    id: int
    data: bytes
    size: int | None = None


@dataclass(frozen=True, slots=True)
class SizesFound:
    """Sizes in the order asked; None for a blob that is not here."""

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
    retry_after_s: float | None = None


Report: TypeAlias = WorkDone | Taken | BlobRead | SizesFound | EntryFound | NewerEntry | NotDone

# ---- what a client asks of a peer


@dataclass(frozen=True, slots=True)
class AskAdmission:
    """Ask whether the peer takes writes of this owner. Answered by ``Kept``."""

    owner: bytes


@dataclass(frozen=True, slots=True)
class AskPut:
    """Keep ``data``, whose hash is ``hash``. Answered by ``Kept``."""

    owner: bytes
    hash: BlobHash
    data: bytes
    lease_s: int


@dataclass(frozen=True, slots=True)
class AskBlob:
    """Ask for a whole blob, which is verified. Answered by ``Fetched``.

    ``sha256``: it is one that the peer makes public of its models, and ``hash`` is its SHA-256.
    """

    hash: BlobHash
    sha256: bool = False


@dataclass(frozen=True, slots=True)
class AskSizes:
    """Ask for the sizes of at most ``HASHES_MAX`` blobs. Answered by ``Sized``."""

    hashes: tuple[BlobHash, ...]


@dataclass(frozen=True, slots=True)
class AskPin:
    """Answered by ``Kept``."""

    owner: bytes
    hash: BlobHash
    lease_s: int


@dataclass(frozen=True, slots=True)
class AskUnpin:
    """Answered by ``Kept``."""

    owner: bytes
    hash: BlobHash


@dataclass(frozen=True, slots=True)
class AskEntry:
    """Ask for the newest entry under a key. Answered by ``Pointed``."""

    key: EntryKey


@dataclass(frozen=True, slots=True)
class AskSet:
    """Set a registry entry. Answered by ``Kept`` or ``Outdated``."""

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
    """The peer says that it is done, and durable."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """The blob; its hash was checked."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Sized:
    """Sizes in the order asked; None for a blob that the peer says it does not have."""

    sizes: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Pointed:
    """The newest entry that the peer has; its signature was checked."""

    entry: Entry | None


@dataclass(frozen=True, slots=True)
class Outdated:
    """The peer has an entry that wins over ours; its signature was checked."""

    current: Entry


@dataclass(frozen=True, slots=True)
class Refused:
    """The peer refused."""

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
