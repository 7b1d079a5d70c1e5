"""Both machines and a store that is a dict, with everything between them in the test's hands."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pnode.protocols.blob import commands as c
from p2pnode.protocols.blob import messages as m
from p2pnode.protocols.blob.allowance import Allowance
from p2pnode.protocols.blob.client import BlobClient
from p2pnode.protocols.blob.server import BlobServer
from p2pnode.protocols.events import (
    CancelTimer,
    Closed,
    Command,
    Effect,
    Emit,
    Event,
    Received,
    Send,
    SetTimer,
    TimerFired,
)
from p2pnode.protocols.s5.entries import Entry, EntryKey, make_entry
from p2pnode.protocols.s5.ids import BlobHash, hash_of
from tests.protocols.support import Identity, secret

CLIENT, SERVER = Identity("blob client").peer, Identity("blob server").peer
STREAM = 0


class Owner:
    """A key with a name."""

    def __init__(self, name: str = "owner") -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(secret(name))
        self.key = self._key.public_key().public_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        return self._key.sign(message)

    def claim(self) -> m.Claim:
        return m.Claim(owner=self.key, signature=self.sign(m.claim_digest(CLIENT, SERVER)))

    def entry(self, revision: int, data: bytes = b"") -> Entry:
        return make_entry(EntryKey(self.key), revision, data, self.sign)


OWNER, OTHER = Owner(), Owner("other owner")
BY_KEY = {each.key: each for each in (OWNER, OTHER)}


@dataclass
class Side:
    """A machine, the time, and what it said, armed and emitted."""

    machine: Any
    peer: Any
    now: float = 100.0
    said: list[Any] = field(default_factory=list)
    emitted: list[Any] = field(default_factory=list)
    timers: dict[str, float] = field(default_factory=dict)

    def take(self, effects: Sequence[Effect]) -> list[Any]:
        """Obey; returns what was sent."""
        sent = []
        for effect in effects:
            match effect:
                case Send(message=message):
                    assert m.CODEC.decode(m.CODEC.encode(message)) == message
                    sent.append(message)
                case SetTimer(key=key, at=at):
                    self.timers[key] = at
                case CancelTimer(key=key):
                    self.timers.pop(key, None)
                case Emit(value=value):
                    self.emitted.append(value)
        self.said += sent
        return sent

    def handle(self, event: Event) -> list[Any]:
        return self.take(self.machine.handle(event, self.now))

    def hear(self, message: Any) -> list[Any]:
        return self.handle(Received(self.peer, STREAM, message))

    def tell(self, value: Any) -> list[Any]:
        return self.handle(Command(value))

    def fire(self, key: str) -> list[Any]:
        self.now = max(self.now, self.timers.pop(key))
        return self.handle(TimerFired(key))

    def lose(self) -> list[Any]:
        return self.handle(Closed(self.peer, STREAM, "lost"))

    def orders(self) -> list[Any]:
        """What was emitted since the last time."""
        taken, self.emitted = self.emitted, []
        return taken

    @property
    def over(self) -> c.Over | None:
        return next((each for each in self.emitted if isinstance(each, c.Over)), None)


def server_side(
    admits: Callable[[bytes], str] = lambda _owner: "", allowance: Allowance | None = None
) -> Side:
    machine = BlobServer(
        peer=CLIENT,
        self_peer=SERVER,
        stream=STREAM,
        admits=admits,
        allowance=allowance or Allowance(Allowance()),
    )
    side = Side(machine, CLIENT)
    side.take(machine.start(side.now))
    return side


def client_side() -> Side:
    machine = BlobClient(
        peer=SERVER,
        self_peer=CLIENT,
        stream=STREAM,
        sign=lambda owner, digest: BY_KEY[owner].sign(digest),
    )
    return Side(machine, SERVER)


def put(id_: int, data: bytes, *, inline: bool = True, **changes: Any) -> m.Put:
    fields: dict[str, Any] = {
        "id": id_, "hash": hash_of(data), "size": len(data), "lease_s": 100, "data": data if inline else None,
    }  # fmt: skip
    return m.Put(**{**fields, **changes})


class DictStore:
    """Does what a server orders, one step at a time."""

    def __init__(self) -> None:
        self.blobs: dict[BlobHash, bytes] = {}
        self.entries: dict[EntryKey, Entry] = {}
        self._uploads: dict[int, tuple[c.KeepBlob, bytearray]] = {}

    def obey(self, order: Any) -> list[c.Report]:
        if isinstance(order, c.Piece) and order.id in self._uploads and not order.last:
            self._uploads[order.id][1].extend(order.data)
            return [c.Taken(order.id, len(order.data))]
        report = self._do(order)
        return [] if report is None else [report]

    def _do(self, order: Any) -> c.Report | None:
        match order:
            case c.KeepBlob(data=None):
                self._uploads[order.id] = (order, bytearray())
            case c.KeepBlob(data=data):
                return self._keep(order, data or b"")
            case c.Piece(id=id_, data=data):
                if id_ in self._uploads:
                    kept, whole = self._uploads.pop(id_)
                    return self._keep(kept, bytes(whole + data))
            case c.Abandon(id=id_):
                self._uploads.pop(id_, None)
                return c.NotDone(id_, "cancelled")
            case c.ReadBlob(id=id_, hash=digest, offset=offset, length=length, sized=sized):
                if digest not in self.blobs:
                    return c.NotDone(id_, "not_found")
                whole_ = self.blobs[digest]
                return c.BlobRead(id_, whole_[offset : offset + length], len(whole_) if sized else None)
            case c.FindSizes(id=id_, hashes=hashes):
                found = [self.blobs.get(each) for each in hashes]
                return c.SizesFound(id_, tuple(None if each is None else len(each) for each in found))
            case c.KeepLease(id=id_, hash=digest):
                return c.WorkDone(id_) if digest in self.blobs else c.NotDone(id_, "not_found")
            case c.EndLease(id=id_):
                return c.WorkDone(id_)
            case c.FindEntry(id=id_, key=key):
                return c.EntryFound(id_, self.entries.get(key))
            case c.KeepEntry(id=id_, entry=entry):
                return self._set(id_, entry)
            case _:
                raise AssertionError(order)
        return None

    def _keep(self, order: c.KeepBlob, data: bytes) -> c.Report:
        if hash_of(data) != order.hash:
            return c.NotDone(order.id, "hash_mismatch")
        self.blobs[order.hash] = data
        return c.WorkDone(order.id)

    def _set(self, id_: int, entry: Entry) -> c.Report:
        if not entry.holds():
            return c.NotDone(id_, "bad_entry")
        held = self.entries.get(entry.key)
        if held is not None and held != entry and not entry.replaces(held):
            return c.NewerEntry(id_, held)
        self.entries[entry.key] = entry
        return c.WorkDone(id_)


class Pair:
    """A client and a server over a store; ``step`` moves one thing, chosen by the test."""

    def __init__(self, store: DictStore | None = None) -> None:
        self.client, self.server = client_side(), server_side()
        self.store = store or DictStore()
        self.to_server: deque[Any] = deque()
        self.to_client: deque[Any] = deque()
        self.work: deque[Any] = deque()
        self.answers: dict[int, Any] = {}
        self.blob_bytes_heard = 0
        """By the client, of all blobs."""

    def ask(self, ticket: int, question: c.Question) -> None:
        self._from_client(self.client.tell(c.Ask(ticket, question)))

    def drop(self, ticket: int) -> None:
        self._from_client(self.client.tell(c.Drop(ticket)))

    @property
    def busy(self) -> bool:
        return bool(self.to_server or self.to_client or self.work)

    def step(self, choice: int) -> None:
        moves: list[Callable[[], None]] = []
        if self.to_server:
            moves.append(lambda: self.from_server(self.server.hear(self.to_server.popleft())))
        if self.to_client:
            moves.append(self._hear)
        if self.work:
            moves.append(self._work)
        if moves:
            moves[choice % len(moves)]()

    def run(self) -> None:
        while self.busy:
            self.step(0)

    def _hear(self) -> None:
        message = self.to_client.popleft()
        self.blob_bytes_heard += len(message.data) if isinstance(message, m.Data) else 0
        self._from_client(self.client.hear(message))

    def _work(self) -> None:
        for report in self.store.obey(self.work.popleft()):
            self.from_server(self.server.tell(report))

    def from_server(self, sent: list[Any]) -> None:
        self.to_client.extend(sent)
        for order in self.server.orders():
            # A client that goes past a limit of requests or of bytes is at fault, and its stream ends.
            assert not isinstance(order, c.Over | c.Fault), order
            self.work.append(order)

    def _from_client(self, sent: list[Any]) -> None:
        self.to_server.extend(sent)
        for value in self.client.orders():
            match value:
                case c.Answered(ticket=ticket, outcome=outcome):
                    assert ticket not in self.answers, "answered twice"
                    self.answers[ticket] = outcome
                case _:
                    raise AssertionError(value)
