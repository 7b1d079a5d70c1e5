"""Commands and emissions of a connection to another S5 node. Never on the wire."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from p2pnode.protocols.s5.entries import Entry, EntryKey
from p2pnode.protocols.s5.ids import BlobHash
from p2pnode.protocols.s5.locations import StorageLocation
from p2pnode.protocols.s5.messages import KnownPeer
from p2pnode.protocols.s5.nodes import NodeId

# ---- role -> S5Peer


@dataclass(frozen=True, slots=True)
class FindBlob:
    """Ask where a blob is. Answered by any number of ``LocationHeard`` and one ``SearchOver``."""

    digest: BlobHash


@dataclass(frozen=True, slots=True)
class AskEntry:
    """Ask for the newest entry. Answered by one ``EntryHeard``."""

    key: EntryKey


@dataclass(frozen=True, slots=True)
class PushEntry:
    """Hand on an entry that is new here. Before ``Connected`` and after ``Ended`` it is dropped."""

    entry: Entry


@dataclass(frozen=True, slots=True)
class Announce:
    """Say which nodes are known. Before ``Connected`` and after ``Ended`` it is dropped."""

    peers: tuple[KnownPeer, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobHeld:
    """The answer to ``WantedBlob``: it is at ``urls`` until ``expires_at`` (epoch seconds), if at any."""

    digest: BlobHash
    urls: tuple[str, ...] = ()
    expires_at: int = 0


@dataclass(frozen=True, slots=True)
class EntryHeld:
    """The answer to ``WantedEntry``: the newest entry that is kept here, or None."""

    key: EntryKey
    entry: Entry | None


S5Command: TypeAlias = FindBlob | AskEntry | PushEntry | Announce | BlobHeld | EntryHeld


# ---- S5Peer -> role

EndReason: TypeAlias = Literal[
    "closed",
    "handshake_timeout",
    "other_network",
    "wrong_challenge",
    "wrong_node",
    "wrong_features",
    "bad_signature",
    "bad_statement",
    "out_of_order",
]


@dataclass(frozen=True, slots=True)
class Connected:
    """The other side proved that it is this node. ``uris`` is where it says it can be dialled."""

    node: NodeId
    uris: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ended:
    """The connection is over: close the websocket. What was asked has been answered. Comes once."""

    reason: EndReason
    detail: str = ""


@dataclass(frozen=True, slots=True)
class WantedBlob:
    """The peer asks for this blob: answer with ``BlobHeld``."""

    digest: BlobHash


@dataclass(frozen=True, slots=True)
class WantedEntry:
    """The newest entry of this key is wanted: answer with ``EntryHeld``."""

    key: EntryKey


@dataclass(frozen=True, slots=True)
class NewEntry:
    """The peer handed on an entry, rightly signed, that replaces the one that was ``EntryHeld``: keep it."""

    entry: Entry


@dataclass(frozen=True, slots=True)
class LocationHeard:
    """The answer to ``FindBlob``, rightly signed. The role judges whether it has expired."""

    location: StorageLocation


@dataclass(frozen=True, slots=True)
class SearchOver:
    """The end of a ``FindBlob``: no more locations will come."""

    digest: BlobHash


@dataclass(frozen=True, slots=True)
class EntryHeard:
    """The answer to ``AskEntry``: the peer's newest entry, rightly signed; None when none came in time."""

    key: EntryKey
    entry: Entry | None


@dataclass(frozen=True, slots=True)
class PeersHeard:
    """The peer says that these nodes exist. They are hints: the role decides whether to dial any."""

    peers: tuple[KnownPeer, ...]


S5Emission: TypeAlias = (
    Connected
    | Ended
    | WantedBlob
    | WantedEntry
    | NewEntry
    | LocationHeard
    | SearchOver
    | EntryHeard
    | PeersHeard
)
