"""What the role tells a connection to another S5 node, and what that tells the role. Never on the wire."""

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
    """Ask where it is. Answered by any number of ``LocationHeard`` and one ``SearchOver``."""

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
    """To ``WantedBlob``: it is to be had at ``urls`` until ``expires_at`` (epoch seconds). None: not here."""

    digest: BlobHash
    urls: tuple[str, ...] = ()
    expires_at: int = 0


@dataclass(frozen=True, slots=True)
class EntryHeld:
    """To ``WantedEntry``: the newest that is kept here, or None."""

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
    """The peer asks for this blob: say ``BlobHeld``."""

    digest: BlobHash


@dataclass(frozen=True, slots=True)
class WantedEntry:
    """What is the newest entry of this key here? Say ``EntryHeld``."""

    key: EntryKey


@dataclass(frozen=True, slots=True)
class NewEntry:
    """The peer handed on an entry, rightly signed, that replaces the one that was ``EntryHeld``: keep it."""

    entry: Entry


@dataclass(frozen=True, slots=True)
class LocationHeard:
    """To ``FindBlob``: rightly signed. Whether it has expired is for the role to say."""

    location: StorageLocation


@dataclass(frozen=True, slots=True)
class SearchOver:
    """To ``FindBlob``: no more locations will come."""

    digest: BlobHash


@dataclass(frozen=True, slots=True)
class EntryHeard:
    """To ``AskEntry``: the peer's newest, rightly signed; None when it said nothing in time."""

    key: EntryKey
    entry: Entry | None


@dataclass(frozen=True, slots=True)
class PeersHeard:
    """The peer says that these nodes exist. Hints: whether to dial any is for the role to say."""

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
