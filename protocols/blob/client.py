"""The side that asks, as a machine: any number of questions on one stream.

Questions that the limits of the protocol don't let out yet wait in a queue; each is answered once. A blob
is handed up whole and only when its hash is right, an entry only when its key signed it: the peer is
trusted with nothing. What breaks the protocol ends the stream. Deadlines are those of whoever asks (it
drops the question); only a peer that says nothing at all, or never ends what was dropped, is given up here.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, assert_never

from p2pnode.errors import ProtocolError
from p2pnode.ids import PeerId
from p2pnode.protocols.blob import commands as c
from p2pnode.protocols.blob import messages as m
from p2pnode.protocols.effects import Effects
from p2pnode.protocols.events import (
    Closed,
    Command,
    Effect,
    Event,
    HalfClosed,
    Received,
    StreamRef,
    TimerFired,
)
from p2pnode.protocols.s5.entries import Entry, EntryKey, parse_entry
from p2pnode.protocols.s5.ids import hash_of
from p2pnode.protocols.wire import wire_name

SILENCE_S: Final = 30.0
"""A peer that owes answers and says nothing for so long is gone."""
CANCELLED_S: Final = 30.0
"""A dropped question must be ended by the peer within this."""
FIRST: Final = 1 << 20
"""A blob's first bytes are asked with its size; the rest of a larger one when it is its turn."""
QUEUE_MAX: Final = 1024
_WRITES = (c.AskAdmission, c.AskPut, c.AskPin, c.AskUnpin, c.AskSet)


@dataclass(slots=True)
class _Asked:
    """A question on its way. ``held`` gathers a blob that comes, ``sent`` counts one that goes."""

    ticket: int
    question: c.Question
    id: int = -1
    sent: int = 0
    credited: int = 0
    held: bytearray = field(default_factory=bytearray)
    size: int | None = None
    """Size of the blob, once the peer said it."""
    stop: int = 0
    """The offset at which the present ``Get`` ends."""
    announced: bool = False
    dropped: bool = False

    @property
    def inline(self) -> int:
        return len(self.question.data) if isinstance(self.question, c.AskPut) and not self.uploads else 0

    @property
    def uploads(self) -> bool:
        return isinstance(self.question, c.AskPut) and len(self.question.data) > m.INLINE_MAX

    @property
    def large(self) -> bool:
        """Whether it is the rest of a blob that is too large to come at the same time as others."""
        return self.size is not None


class BlobClient:
    """Asks one peer on one stream. ``sign(owner, digest)`` gives the 64 bytes of a claim."""

    def __init__(
        self,
        *,
        peer: PeerId,
        self_peer: PeerId,
        stream: StreamRef,
        sign: Callable[[bytes, bytes], bytes],
    ) -> None:
        self._digest = m.claim_digest(self_peer, peer)
        self._sign = sign
        self._out = Effects(peer, stream)
        self._claimed: bytes | None = None
        self._next_id = 0
        self._queue: deque[_Asked] = deque()
        self._asked: dict[int, _Asked] = {}
        self._over = False

    def handle(self, event: Event, now: float) -> Sequence[Effect]:
        """Commands are ``ClientCommand``; emissions are ``ClientEmission``."""
        if self._over:
            return []
        match event:
            case Command(value=c.Ask(ticket=ticket, question=question)):
                self._enter(_Asked(ticket, question), now)
            case Command(value=c.Drop(ticket=ticket)):
                self._drop(ticket, now)
            case Received(message=message):
                self._received(message, now)
            case TimerFired(key=key):
                if self._out.fired(key):
                    self._end("it owes an answer and says nothing")
            case HalfClosed():
                self._end("closed")
            case Closed(code=code):
                self._end(code)
            case Command():
                pass
        return self._out.take()

    # ---- asking

    def _enter(self, asked: _Asked, now: float) -> None:
        if len(self._queue) >= QUEUE_MAX:
            why = f"{len(self._queue)} questions wait for this peer already"
            self._out.emit(c.Answered(asked.ticket, c.NotAsked(why)))
            return
        self._queue.append(asked)
        self._send_next(now)

    def _send_next(self, now: float) -> None:
        """Send every question that the limits allow now, in order."""
        for asked in list(self._queue):
            if len(self._asked) >= m.IN_FLIGHT_MAX:
                break
            if self._may_go(asked):
                self._queue.remove(asked)
                self._send(asked, now)

    def _may_go(self, asked: _Asked) -> bool:
        out = self._asked.values()
        if asked.uploads:
            return sum(each.uploads for each in out) < m.UPLOADS_MAX
        if asked.inline:
            return sum(each.inline for each in out) + asked.inline <= m.PENDING_MAX
        if not isinstance(asked.question, c.AskBlob):
            return True
        if asked.large:
            return not any(len(each.held) >= FIRST for each in out)
        held = sum(each.large for each in self._queue) + sum(isinstance(e.question, c.AskBlob) for e in out)
        return held < m.IN_FLIGHT_MAX

    def _send(self, asked: _Asked, now: float) -> None:
        question = asked.question
        if isinstance(question, _WRITES) and self._claimed != question.owner:
            self._out.send(m.Claim(owner=question.owner, signature=self._sign(question.owner, self._digest)))
            self._claimed = question.owner
        asked.id, self._next_id = self._next_id, self._next_id + 1
        if not self._asked:
            self._out.set_timer("silence", now + SILENCE_S)
        self._asked[asked.id] = asked
        self._out.send(self._request(asked))
        if asked.uploads:
            self._send_pieces(asked)

    def _request(self, asked: _Asked) -> m.Request:
        id_ = asked.id
        match asked.question:
            case c.AskAdmission():
                return m.Admit(id=id_)
            case c.AskPut(hash=digest, data=data, lease_s=lease_s):
                inline = None if asked.uploads else data
                return m.Put(id=id_, hash=digest, size=len(data), lease_s=lease_s, data=inline)
            case c.AskBlob(hash=digest):
                asked.announced = False
                asked.stop = asked.size if asked.size is not None else FIRST
                return m.Get(id=id_, hash=digest, offset=len(asked.held), length=asked.stop - len(asked.held))
            case c.AskSizes(hashes=hashes):
                return m.Has(id=id_, hashes=hashes)
            case c.AskPin(hash=digest, lease_s=lease_s):
                return m.Pin(id=id_, hash=digest, lease_s=lease_s)
            case c.AskUnpin(hash=digest):
                return m.Unpin(id=id_, hash=digest)
            case c.AskEntry(key=key):
                return m.GetEntry(id=id_, key=key)
            case c.AskSet(entry=entry):
                return m.SetEntry(id=id_, entry=entry.to_bytes())
            case _:
                assert_never(asked.question)

    def _send_pieces(self, asked: _Asked) -> None:
        """Send as much of an upload as its credit allows."""
        if not isinstance(asked.question, c.AskPut):
            return
        data = asked.question.data
        while asked.sent < len(data):
            piece = data[asked.sent : asked.sent + m.CHUNK]
            if asked.sent + len(piece) - asked.credited > m.UPLOAD_WINDOW:
                return
            asked.sent += len(piece)
            self._out.send(m.Data(id=asked.id, data=piece, last=asked.sent == len(data)))

    def _drop(self, ticket: int, now: float) -> None:
        waiting = next((each for each in self._queue if each.ticket == ticket), None)
        if waiting is not None:
            self._queue.remove(waiting)
            return
        asked = next((each for each in self._asked.values() if each.ticket == ticket), None)
        if asked is not None and not asked.dropped:
            asked.dropped = True
            asked.held.clear()
            self._out.send(m.Cancel(id=asked.id))
            self._out.set_timer(f"dropped {asked.id}", now + CANCELLED_S)

    # ---- what the peer says

    def _received(self, message: Any, now: float) -> None:
        asked = self._asked.get(message.id) if isinstance(message, m.ANSWERS) else None
        if asked is None:
            self._end(f"a {wire_name(type(message))!r} that answers nothing", fault=True)
            return
        self._out.set_timer("silence", now + SILENCE_S)
        try:
            self._answer(asked, message)
        except ProtocolError as error:
            self._end(str(error), fault=True)
            return
        if not self._asked:
            self._out.cancel_timer("silence")
        self._send_next(now)

    def _answer(self, asked: _Asked, message: m.ServerMessage) -> None:
        """Raises ``ProtocolError`` for what is no answer to this question."""
        if asked.dropped:
            if not isinstance(message, m.Blob | m.Credit) and getattr(message, "last", True):
                self._retire(asked)
            return
        question = asked.question
        match message:
            case m.Failed(code=code, detail=detail, retry_after_s=retry_after_s):
                self._refused(asked, c.Refused(code, detail, retry_after_s))
            case m.Credit(received=received) if asked.uploads:
                self._credited(asked, received)
            case m.Blob(size=size) if isinstance(question, c.AskBlob):
                self._announced(asked, size)
            case m.Data() if isinstance(question, c.AskBlob):
                self._data(asked, message)
            case m.Done() if isinstance(question, _WRITES) and not self._uploading(asked):
                self._settle(asked, c.Kept())
            case m.Sizes(sizes=sizes) if isinstance(question, c.AskSizes):
                if len(sizes) != len(question.hashes):
                    raise ProtocolError("sizes of more or fewer blobs than asked")
                self._settle(asked, c.Sized(tuple(None if size < 0 else size for size in sizes)))
            case m.EntryIs(entry=raw) if isinstance(question, c.AskEntry):
                self._settle(asked, c.Pointed(_checked(raw, question.key) if raw is not None else None))
            case m.Stale(current=raw) if isinstance(question, c.AskSet):
                current = _checked(raw, question.entry.key)
                if question.entry.replaces(current) or question.entry == current:
                    raise ProtocolError("an entry that does not win is called the newer one")
                self._settle(asked, c.Outdated(current))
            case _:
                raise ProtocolError(f"a {wire_name(type(message))!r} answers another question")

    def _credited(self, asked: _Asked, received: int) -> None:
        if not asked.credited < received <= asked.sent:
            raise ProtocolError("credit for bytes that were not sent")
        asked.credited = received
        self._send_pieces(asked)

    def _announced(self, asked: _Asked, size: int) -> None:
        if asked.announced or (asked.size is not None and asked.size != size):
            raise ProtocolError("the size of a blob changed")
        asked.announced, asked.size = True, size
        asked.stop = min(asked.stop, size)

    def _data(self, asked: _Asked, message: m.Data) -> None:
        if not asked.announced or asked.size is None:
            raise ProtocolError("bytes of a blob before its size")
        held = asked.held
        held += message.data
        if len(held) > asked.stop or message.last != (len(held) == asked.stop):
            raise ProtocolError("more or fewer bytes of a blob than announced")
        if not message.last:
            if len(message.data) < m.PIECE_MIN:
                raise ProtocolError("a piece of a blob that is too small")
            return
        if len(held) < asked.size:
            self._retire(asked)
            self._queue.appendleft(asked)
        elif isinstance(asked.question, c.AskBlob):
            data = bytes(held)
            made = hashlib.sha256(data).digest() if asked.question.sha256 else hash_of(data)
            good = made == asked.question.hash
            self._settle(asked, c.Fetched(data) if good else c.Lied("it sent other bytes than the hash says"))

    def _refused(self, asked: _Asked, refused: c.Refused) -> None:
        if self._uploading(asked):
            self._out.send(m.Cancel(id=asked.id))
        if refused.code == "rate_limited":
            self._claimed = None  # it may have been the claim that was not looked at
        self._settle(asked, refused)

    @staticmethod
    def _uploading(asked: _Asked) -> bool:
        question = asked.question
        return isinstance(question, c.AskPut) and asked.uploads and asked.sent < len(question.data)

    def _settle(self, asked: _Asked, outcome: c.Outcome) -> None:
        self._retire(asked)
        self._out.emit(c.Answered(asked.ticket, outcome))

    def _retire(self, asked: _Asked) -> None:
        del self._asked[asked.id]
        self._out.cancel_timer(f"dropped {asked.id}")

    def _end(self, reason: str, *, fault: bool = False) -> None:
        self._over = True
        self._queue.clear()
        self._asked.clear()
        self._out.cancel_timers()
        self._out.emit(c.Over(reason, fault=fault))


def _checked(raw: bytes, key: EntryKey) -> Entry:
    entry = parse_entry(raw)
    if entry.key != key:
        raise ProtocolError("an entry of another key than asked")
    if not entry.holds():
        raise ProtocolError("an entry that its key did not sign")
    return entry
