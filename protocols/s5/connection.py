"""One websocket between two S5 nodes, as a machine. Both sides are the same.

Each side draws a challenge and signs the other's. Then either asks for blobs and entries, answers from
what it holds, and hands on new entries. The role knows what is held: the machine emits what is to be looked
up and takes the answer as a command. Nothing is forwarded to third nodes. Signing is injected; the role gives
the epoch seconds in locations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, assert_never

from p2pnode.bounded import TokenBucket
from p2pnode.errors import ProtocolError
from p2pnode.ids import PeerId
from p2pnode.protocols.crypto import Signer
from p2pnode.protocols.events import (
    CancelTimer,
    Closed,
    Command,
    Effect,
    Emit,
    Event,
    HalfClosed,
    Received,
    Send,
    SetTimer,
    StreamRef,
    TimerFired,
)
from p2pnode.protocols.s5.commands import (
    Announce,
    AskEntry,
    BlobHeld,
    Connected,
    Ended,
    EndReason,
    EntryHeard,
    EntryHeld,
    FindBlob,
    LocationHeard,
    NewEntry,
    PeersHeard,
    PushEntry,
    S5Command,
    SearchOver,
    WantedBlob,
    WantedEntry,
)
from p2pnode.protocols.s5.entries import Entry, EntryKey
from p2pnode.protocols.s5.ids import BlobHash
from p2pnode.protocols.s5.locations import FILE, FULL, StorageLocation, make_location
from p2pnode.protocols.s5.messages import (
    CHALLENGE_BYTES,
    FEATURES,
    AnnouncePeers,
    HandshakeDone,
    HandshakeOpen,
    HashQuery,
    Ignored,
    RegistryQuery,
    S5Message,
    Signed,
    announcement,
    decode_statement,
    readable_uris,
    sign_statement,
)
from p2pnode.protocols.s5.nodes import NodeId, node_text

HANDSHAKE_S: Final = 10.0
ENTRY_WAIT_S: Final = 2.5
"""How long a registry query may take, as s5.js has it: a node that has no entry says nothing."""
BLOB_WAIT_S: Final = 5.0
ASKED_MAX: Final = 64
"""Blobs, and entries, that are asked for at once."""
LOOKUPS_MAX: Final = 64
"""Blobs, and entries, that the role is looking up at once."""
LOCATIONS_MAX: Final = 8
"""Locations of one blob that are reported."""
EARLY_MAX: Final = 8
"""Messages that may overtake the end of the handshake: JavaScript nodes sign while they already speak."""
EARLY_STATEMENT_MAX: Final = 8 * 1024
"""Bytes of an announcement that may wait so. A longer one is dropped: a stranger gets little memory."""
CHECKS_PER_S: Final = 16.0
CHECKS_BURST: Final = 64.0
"""Signatures of one peer that are checked, at a third of a millisecond each. Beyond: dropped unread."""
LOOKUPS_PER_S: Final = 64.0
LOOKUPS_BURST: Final = 128.0
"""Questions of one peer that are looked up. Beyond: unanswered, as S5 knows no refusal."""
HANDSHAKE_TIMER: Final = "handshake"
_UNNAMED: Final = PeerId("")


@dataclass(slots=True)
class _EntryLookup:
    """Why an entry is being looked up: the peer asked for it, or offered one, or both."""

    asked: bool = False
    offered: Entry | None = None


class S5Peer:
    """One side of a connection. Begin it with :meth:`start`; after ``Ended`` it says nothing more.

    ``challenge`` is 32 random bytes; ``dialled`` says whether we did it; ``expected`` is the node that was
    dialled, where the URI names one; ``uris`` are where this node can be dialled; ``peer`` and ``stream``
    only come back in ``Send``.
    """

    def __init__(
        self,
        *,
        node: NodeId,
        sign: Signer,
        challenge: bytes,
        dialled: bool,
        uris: tuple[str, ...] = (),
        expected: NodeId | None = None,
        peer: PeerId = _UNNAMED,
        stream: StreamRef = 0,
    ) -> None:
        if len(challenge) != CHALLENGE_BYTES:
            msg = f"a challenge has {CHALLENGE_BYTES} random bytes"
            raise ValueError(msg)
        self._self, self._sign, self._challenge = node, sign, challenge
        self._dialled, self._expected, self._uris = dialled, expected, readable_uris(uris)
        self._peer, self._stream = peer, stream
        self._state: Literal["greeting", "open", "over"] = "greeting"
        self._node: NodeId | None = None
        self._answered = False
        self._early: list[S5Message] = []
        self._blobs_asked: dict[BlobHash, int] = {}
        self._entries_asked: set[EntryKey] = set()
        self._blob_lookups: dict[BlobHash, bool] = {}
        self._entry_lookups: dict[EntryKey, _EntryLookup] = {}
        self._checks = TokenBucket(CHECKS_PER_S, CHECKS_BURST)
        self._lookups = TokenBucket(LOOKUPS_PER_S, LOOKUPS_BURST)

    @property
    def node(self) -> NodeId | None:
        """Who the other side is, once it has proved it."""
        return self._node

    def start(self, now: float) -> Sequence[Effect]:
        """Send the challenge, or wait for the dialler's: libs5 misses what comes before it has spoken."""
        timer = SetTimer(HANDSHAKE_TIMER, now + HANDSHAKE_S)
        return [timer, self._challenge_them()] if self._dialled else [timer]

    def handle(self, event: Event, now: float) -> Sequence[Effect]:
        """Messages are ``S5Message``, commands ``S5Command``, emissions ``S5Emission``."""
        match event:
            case Received(message=message):
                return self._message(message, now) if self._state != "over" else []
            case Command(value=value):
                return self._command(value, now)
            case TimerFired(key=key):
                return self._fired(key)
            case HalfClosed():  # a websocket has no halves
                return self._end("closed", "")
            case Closed(code=code):
                return self._end("closed", code)
            case _:
                assert_never(event)

    # ---- messages

    def _message(self, message: S5Message, now: float) -> Sequence[Effect]:
        match message:
            case HandshakeOpen():
                return self._open(message)
            case Signed():
                return self._signed(message, now)
            case HashQuery() | RegistryQuery() | Entry() if self._state == "greeting":
                return self._wait(message)
            case HashQuery():
                return self._asked_for_blob(message, now)
            case RegistryQuery(key=key):
                return self._look_up(key, now, asked=True)
            case Entry():
                return self._entry(message, now)
            case StorageLocation():
                return self._location(message, now)
            case Ignored():
                return []
            case _:
                assert_never(message)

    def _open(self, message: HandshakeOpen) -> Sequence[Effect]:
        if self._answered:
            return self._end("out_of_order", "opens the handshake a second time")
        if message.network:
            return self._end("other_network", f"belongs to the closed network {message.network[:64]!r}")
        self._answered = True
        answer = self._say(HandshakeDone(challenge=message.challenge, uris=self._uris))
        return [answer] if self._dialled else [self._challenge_them(), answer]

    def _signed(self, message: Signed, now: float) -> Sequence[Effect]:
        try:
            statement = decode_statement(message.inner)
        except ProtocolError as error:
            return self._end("bad_statement", str(error))
        match statement:
            case HandshakeDone():
                return self._done(message, statement, now)
            case AnnouncePeers() if self._state == "greeting":
                return self._wait(message) if len(message.inner) <= EARLY_STATEMENT_MAX else []
            case AnnouncePeers(peers=peers):
                if message.node != self._node:
                    return self._end("wrong_node", "announces peers in the name of another")
                if not self._checks.take(now):
                    return []
                if not message.holds():
                    return self._end("bad_signature", "announces peers with a wrong signature")
                return [Emit(PeersHeard(peers))]
            case Ignored():
                return []
            case _:
                assert_never(statement)

    def _done(self, message: Signed, statement: HandshakeDone, now: float) -> Sequence[Effect]:
        if self._state != "greeting":
            return self._end("out_of_order", "ends the handshake a second time")
        if statement.challenge != self._challenge:
            return self._end("wrong_challenge", "answers a challenge that is not ours")
        if statement.features != FEATURES:
            return self._end("wrong_features", f"supports features {statement.features}, not {FEATURES}")
        if message.node == self._self:
            return self._end("wrong_node", "is this node itself")
        if self._expected is not None and message.node != self._expected:
            return self._end("wrong_node", f"is {node_text(message.node)}, not who was dialled")
        if not message.holds():
            return self._end("bad_signature", "did not sign the challenge with its key")
        self._state, self._node = "open", message.node
        early, self._early = self._early, []
        effects: list[Effect] = [
            CancelTimer(HANDSHAKE_TIMER),
            Emit(Connected(message.node, statement.uris)),
        ]
        for each in early:
            effects.extend(self.handle(Received(self._peer, self._stream, each), now))
        return effects

    def _wait(self, message: S5Message) -> Sequence[Effect]:
        if len(self._early) >= EARLY_MAX:
            return self._end("out_of_order", "asks and asks before it has answered the challenge")
        self._early.append(message)
        return []

    def _asked_for_blob(self, query: HashQuery, now: float) -> Sequence[Effect]:
        """Only whole files are served here: a query for anything else gets no answer."""
        known, full = query.digest in self._blob_lookups, len(self._blob_lookups) >= LOOKUPS_MAX
        if FILE not in query.types or known or full or not self._lookups.take(now):
            return []
        self._blob_lookups[query.digest] = query.old
        return [Emit(WantedBlob(query.digest))]

    def _location(self, location: StorageLocation, now: float) -> Sequence[Effect]:
        """The signature of a location that nobody asked for is not checked, so that it costs nothing."""
        left = self._blobs_asked.get(location.digest)
        if left is None or location.type not in (FILE, FULL) or not location.parts:
            return []
        if not self._checks.take(now) or not location.holds():
            return []
        effects: list[Effect] = [Emit(LocationHeard(location))]
        self._blobs_asked[location.digest] = left - 1
        if left == 1:
            effects.extend(self._search_over(location.digest))
        return effects

    def _entry(self, entry: Entry, now: float) -> Sequence[Effect]:
        if entry.key not in self._entries_asked:
            return self._look_up(entry.key, now, offered=entry)
        if not self._checks.take(now) or not entry.holds():
            return []
        return self._entry_over(entry.key, entry)

    def _look_up(
        self, key: EntryKey, now: float, *, asked: bool = False, offered: Entry | None = None
    ) -> Sequence[Effect]:
        lookup = self._entry_lookups.get(key)
        effects: list[Effect] = []
        if lookup is None:
            if len(self._entry_lookups) >= LOOKUPS_MAX or not self._lookups.take(now):
                return []
            lookup = self._entry_lookups[key] = _EntryLookup()
            effects.append(Emit(WantedEntry(key)))
        lookup.asked |= asked
        if offered is not None and offered.replaces(lookup.offered):
            lookup.offered = offered
        return effects

    # ---- commands

    def _command(self, command: S5Command, now: float) -> Sequence[Effect]:
        is_open = self._state == "open"
        match command:
            case FindBlob(digest=digest):
                if digest in self._blobs_asked:
                    return []
                if not is_open or len(self._blobs_asked) >= ASKED_MAX:
                    return [Emit(SearchOver(digest))]
                self._blobs_asked[digest] = LOCATIONS_MAX
                return [
                    SetTimer(_blob_timer(digest), now + BLOB_WAIT_S),
                    self._send(HashQuery(digest=digest)),
                ]
            case AskEntry(key=key):
                if key in self._entries_asked:
                    return []
                if not is_open or len(self._entries_asked) >= ASKED_MAX:
                    return [Emit(EntryHeard(key, None))]
                self._entries_asked.add(key)
                timer = SetTimer(_entry_timer(key), now + ENTRY_WAIT_S)
                return [timer, self._send(RegistryQuery(key=key))]
            case PushEntry(entry=entry):
                return [self._send(entry)] if is_open else []
            case Announce(peers=peers):
                return [self._say(announcement(peers))] if is_open else []
            case BlobHeld():
                return self._blob_held(command)
            case EntryHeld():
                return self._entry_held(command, now)
            case _:
                assert_never(command)

    def _blob_held(self, answer: BlobHeld) -> Sequence[Effect]:
        old = self._blob_lookups.pop(answer.digest, None)
        if old is None or not answer.urls:
            return []
        location = make_location(
            answer.digest,
            parts=answer.urls,
            expires_at=answer.expires_at,
            node=self._self,
            sign=self._sign,
            old=old,
        )
        return [self._send(location)]

    def _entry_held(self, answer: EntryHeld, now: float) -> Sequence[Effect]:
        lookup, held = self._entry_lookups.pop(answer.key, None), answer.entry
        if lookup is None:
            return []
        offered = lookup.offered
        if offered is not None and offered.replaces(held):
            if self._checks.take(now) and offered.holds():
                return [Emit(NewEntry(offered))]
            offered = None
        if held is not None and (lookup.asked or (offered is not None and held.replaces(offered))):
            return [self._send(held)]
        return []

    # ---- ends

    def _fired(self, key: str) -> Sequence[Effect]:
        if key == HANDSHAKE_TIMER:
            return self._end("handshake_timeout") if self._state == "greeting" else []
        for digest in self._blobs_asked:
            if _blob_timer(digest) == key:
                return self._search_over(digest)
        for asked in self._entries_asked:
            if _entry_timer(asked) == key:
                return self._entry_over(asked, None)
        return []

    def _search_over(self, digest: BlobHash) -> Sequence[Effect]:
        del self._blobs_asked[digest]
        return [CancelTimer(_blob_timer(digest)), Emit(SearchOver(digest))]

    def _entry_over(self, key: EntryKey, entry: Entry | None) -> Sequence[Effect]:
        self._entries_asked.remove(key)
        return [CancelTimer(_entry_timer(key)), Emit(EntryHeard(key, entry))]

    def _end(self, reason: EndReason, detail: str = "") -> Sequence[Effect]:
        if self._state == "over":
            return []
        effects: list[Effect] = [CancelTimer(HANDSHAKE_TIMER)]
        for digest in list(self._blobs_asked):
            effects.extend(self._search_over(digest))
        for key in sorted(self._entries_asked):
            effects.extend(self._entry_over(key, None))
        self._state = "over"
        for table in (self._early, self._blob_lookups, self._entry_lookups):
            table.clear()
        return [*effects, Emit(Ended(reason, detail))]

    def _challenge_them(self) -> Send:
        # The network's id is never sent: s5.js can't read past the challenge.
        return self._send(HandshakeOpen(challenge=self._challenge))

    def _send(self, message: S5Message) -> Send:
        return Send(self._peer, self._stream, message)

    def _say(self, statement: HandshakeDone | AnnouncePeers) -> Send:
        return self._send(sign_statement(statement, self._self, self._sign))


def _blob_timer(digest: BlobHash) -> str:
    return f"blob {digest.hex()}"


def _entry_timer(key: EntryKey) -> str:
    return f"entry {key.hex()}"
