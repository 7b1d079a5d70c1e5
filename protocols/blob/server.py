"""The side that stores, as a machine: one stream of a peer.

It decides who may write, how much at once and how fast, and that no piece of an upload is more than was
announced. Orders go to the store, reports come back. The store checks that bytes have the hash they should
have, and that entries are signed. It knows no store.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, assert_never

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from p2pnode.errors import ProtocolError, StoreCode
from p2pnode.ids import PeerId
from p2pnode.protocols.blob import commands as c
from p2pnode.protocols.blob import messages as m
from p2pnode.protocols.blob.allowance import Allowance
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
from p2pnode.protocols.s5.entries import parse_entry
from p2pnode.protocols.s5.ids import BlobHash
from p2pnode.protocols.wire import wire_name

IDLE_S: Final = 120.0
UPLOAD_S: Final = 30.0
UPLOAD_BYTES_PER_S: Final = 16 * 1024
"""An upload has ``UPLOAD_S`` and its size at this rate; what trickles slower is cut off."""
READS_MAX: Final = 8
"""Blobs that are read at the same time; further ``Get`` wait."""
_SERVED = (m.Admit, m.Put, m.Get, m.Has, m.Pin, m.Unpin, m.GetEntry, m.SetEntry)


@dataclass(slots=True)
class _Upload:
    size: int
    received: int = 0
    taken: int = 0
    ended: bool = False
    answered: bool = False


@dataclass(slots=True)
class _Download:
    hash: BlobHash
    at: int
    length: int | None
    end: int | None = None
    """Known when the blob's size is known."""


@dataclass(slots=True)
class _Served:
    """A request without a final answer, or an upload that was refused and still comes."""

    upload: _Upload | None = None
    download: _Download | None = None
    inline: int = 0


class BlobServer:
    """Serves one stream. ``admits`` says why an owner's writes are not taken from this peer, or nothing."""

    def __init__(
        self,
        *,
        peer: PeerId,
        self_peer: PeerId,
        stream: StreamRef,
        admits: Callable[[bytes], str],
        allowance: Allowance,
    ) -> None:
        self._digest = m.claim_digest(peer, self_peer)
        self._admits, self._allowance = admits, allowance
        self._out = Effects(peer, stream)
        self._owner: bytes | None = None
        self._claim_wait_s = 0.0
        self._last_id = -1
        self._requests: dict[int, _Served] = {}
        self._waiting: deque[int] = deque()
        self._reading: set[int] = set()
        self._half_closed = False
        """Whether the client says nothing more: then this ends when it was answered."""
        self._over = False

    @property
    def resting(self) -> bool:
        """Whether it serves nothing at the moment. The rest of a refused upload does not count."""
        return all(each.upload is not None and each.upload.answered for each in self._requests.values())

    def start(self, now: float) -> Sequence[Effect]:
        """Begin: an idle stream doesn't stay."""
        self._out.set_timer("idle", now + IDLE_S)
        return self._out.take()

    def handle(self, event: Event, now: float) -> Sequence[Effect]:
        """Commands are ``Report``; emissions are ``Order``."""
        if self._over:
            return []
        match event:
            case Received(message=message):
                self._received(message, now)
            case Command(value=report):
                self._report(report, now)
            case TimerFired(key=key):
                if self._out.fired(key):
                    self._end("idle" if key == "idle" else "an upload came too slowly", fault=key != "idle")
            case HalfClosed():
                self._half_close(now)
            case Closed(code=code):
                self._end(code)
        return self._out.take()

    def _half_close(self, now: float) -> None:
        self._half_closed = True
        for id_, served in list(self._requests.items()):
            if served.upload is not None and not served.upload.ended:  # the rest of it can't come
                self._cancel(id_, now)
        self._rest(now)

    # ---- what the peer says

    def _received(self, message: Any, now: float) -> None:
        match message:
            case m.Claim():
                self._claim(message, now)
            case m.Data():
                self._data(message, now)
            case m.Cancel():
                self._cancel(message.id, now)
            case _ if isinstance(message, _SERVED):
                self._request(message, now)
            case _:
                self._end(f"a {wire_name(type(message))!r} from a client", fault=True)

    def _claim(self, message: m.Claim, now: float) -> None:
        self._owner = None
        self._claim_wait_s = self._allowance.check(now)
        if self._claim_wait_s:
            return
        try:
            Ed25519PublicKey.from_public_bytes(message.owner).verify(message.signature, self._digest)
        except (InvalidSignature, ValueError):
            self._end("a claim that its owner's key did not sign for these two peers", fault=True)
        else:
            self._owner = message.owner

    def _request(self, message: m.Request, now: float) -> None:
        if message.id <= self._last_id:
            self._end("the id of a request does not grow", fault=True)
            return
        if len(self._requests) >= m.IN_FLIGHT_MAX:
            self._end("too many requests at once", fault=True)
            return
        self._last_id = message.id
        served = self._requests[message.id] = _Served()
        self._out.cancel_timer("idle")
        if isinstance(message, m.Put) and not self._put_is_sound(message, served, now):
            return
        if wait_s := self._allowance.request(now):
            self._fail(message.id, "rate_limited", "too many requests", now, wait_s)
            return
        self._order(message, served, now)

    def _order(self, message: m.Request, served: _Served, now: float) -> None:
        emit = self._out.emit
        match message:
            case m.Get(id=id_, hash=digest, offset=offset, length=length):
                if wait_s := self._allowance.flow(now):
                    self._fail(id_, "rate_limited", "too many bytes", now, wait_s)
                    return
                served.download = _Download(digest, offset, length)
                self._waiting.append(id_)
                self._read_next()
            case m.Has():
                emit(c.FindSizes(message.id, message.hashes))
            case m.GetEntry():
                emit(c.FindEntry(message.id, message.key))
            case m.Admit() | m.Put() | m.Pin() | m.Unpin() | m.SetEntry():
                owner = self._writer(message.id, now)
                if owner is not None:
                    self._write(message, owner, now)
            case _:
                assert_never(message)

    def _writer(self, id_: int, now: float) -> bytes | None:
        """Whose write it is; None when it was refused."""
        if self._owner is None:
            if self._claim_wait_s:
                self._fail(id_, "rate_limited", "too many signatures: claim again", now, self._claim_wait_s)
            else:
                self._fail(id_, "not_admitted", "writes need a claim of their owner", now)
            return None
        if why := self._admits(self._owner):
            self._fail(id_, "not_admitted", why, now)
            return None
        return self._owner

    def _write(
        self, message: m.Admit | m.Put | m.Pin | m.Unpin | m.SetEntry, owner: bytes, now: float
    ) -> None:
        emit = self._out.emit
        match message:
            case m.Admit():
                self._answer(m.Done(id=message.id), now)
            case m.Put():
                if wait_s := self._allowance.flow(now):
                    self._fail(message.id, "rate_limited", "too many bytes", now, wait_s)
                    return
                self._allowance.spend(message.size)
                emit(c.KeepBlob(message.id, owner, message.hash, message.size, message.lease_s, message.data))
            case m.Pin():
                emit(c.KeepLease(message.id, owner, message.hash, message.lease_s))
            case m.Unpin():
                emit(c.EndLease(message.id, owner, message.hash))
            case m.SetEntry():
                self._set_entry(message, owner, now)
            case _:
                assert_never(message)

    def _set_entry(self, message: m.SetEntry, owner: bytes, now: float) -> None:
        try:
            entry = parse_entry(message.entry)
        except ProtocolError as error:
            self._end(str(error), fault=True)
            return
        if wait_s := self._allowance.check(now):
            self._fail(message.id, "rate_limited", "too many signatures", now, wait_s)
            return
        self._out.emit(c.KeepEntry(message.id, owner, entry))

    # ---- uploads

    def _put_is_sound(self, message: m.Put, served: _Served, now: float) -> bool:
        if message.data is not None:
            served.inline = len(message.data)
            if served.inline != message.size:
                self._end("a blob of another size than announced", fault=True)
            elif sum(each.inline for each in self._requests.values()) > m.PENDING_MAX:
                self._end("too many bytes at once", fault=True)
        else:
            served.upload = _Upload(message.size)
            if sum(each.upload is not None for each in self._requests.values()) > m.UPLOADS_MAX:
                self._end("too many uploads at once", fault=True)
            else:
                due = now + UPLOAD_S + message.size / UPLOAD_BYTES_PER_S
                self._out.set_timer(f"upload {message.id}", due)
        return not self._over

    def _data(self, message: m.Data, now: float) -> None:
        served = self._requests.get(message.id)
        upload = served.upload if served is not None else None
        if upload is None or upload.ended:
            self._end("data that belongs to no upload", fault=True)
            return
        upload.received += len(message.data)
        if upload.received > upload.size or message.last != (upload.received == upload.size):
            self._end("an upload of another size than announced", fault=True)
            return
        if not message.last and len(message.data) < m.PIECE_MIN:
            self._end("a piece of an upload that is too small", fault=True)
            return
        if upload.received - upload.taken > m.UPLOAD_WINDOW:
            self._end("an upload ahead of its credit", fault=True)
            return
        if not upload.answered:
            self._out.emit(c.Piece(message.id, message.data, message.last))
        if message.last:
            upload.ended = True
            self._out.cancel_timer(f"upload {message.id}")
            if upload.answered:
                self._forget(message.id, now)

    def _cancel(self, id_: int, now: float) -> None:
        served = self._requests.get(id_)
        if served is None:
            return  # it crossed the answer
        if served.upload is not None and served.upload.answered:
            self._out.cancel_timer(f"upload {id_}")
            self._forget(id_, now)
        elif id_ in self._waiting:
            self._fail(id_, "cancelled", "", now)
        else:
            self._out.cancel_timer(f"upload {id_}")
            served.upload = None  # what it still sends is out of order
            self._out.emit(c.Abandon(id_))

    # ---- what the store reports

    def _report(self, report: c.Report, now: float) -> None:
        served = self._requests.get(report.id)
        if served is None or (served.upload is not None and served.upload.answered):
            return
        match report:
            case c.WorkDone(id=id_):
                self._answer(m.Done(id=id_), now)
            case c.Taken(id=id_, count=count):
                if served.upload is not None:
                    served.upload.taken += count
                    if not served.upload.ended:
                        self._out.send(m.Credit(id=id_, received=served.upload.taken))
            case c.BlobRead():
                if served.download is not None:
                    self._read(report, served.download, now)
            case c.SizesFound(id=id_, sizes=sizes):
                self._answer(m.Sizes(id=id_, sizes=tuple(_size_sent(size) for size in sizes)), now)
            case c.EntryFound(id=id_, entry=entry):
                raw = entry.to_bytes() if entry is not None else None
                self._answer(m.EntryIs(id=id_, entry=raw), now)
            case c.NewerEntry(id=id_, current=current):
                self._answer(m.Stale(id=id_, current=current.to_bytes()), now)
            case c.NotDone(id=id_, code=code, detail=detail, retry_after_s=retry_after_s):
                if code in ("hash_mismatch", "bad_entry"):
                    self._out.emit(c.Fault(f"{code}: {detail}"))
                self._fail(id_, code, detail, now, retry_after_s)
            case _:
                assert_never(report)

    def _read_next(self) -> None:
        while self._waiting and len(self._reading) < READS_MAX:
            id_ = self._waiting.popleft()
            download = self._requests[id_].download
            if download is not None:
                self._reading.add(id_)
                length = m.CHUNK if download.length is None else min(m.CHUNK, download.length)
                self._out.emit(c.ReadBlob(id_, download.hash, download.at, length, sized=True))

    def _read(self, report: c.BlobRead, download: _Download, now: float) -> None:
        if download.end is None:
            size = report.size or 0
            if size > m.SIZE_MAX:
                self._fail(report.id, "too_large", "more than one blob may have between peers", now)
                return
            stop = size if download.length is None else min(size, download.at + download.length)
            download.end = max(stop, download.at)
            self._allowance.spend(download.end - download.at)
            self._out.send(m.Blob(id=report.id, size=size))
        if len(report.data) != min(m.CHUNK, download.end - download.at):
            self._fail(report.id, "internal", "the blob changed while it was read", now)
            return
        download.at += len(report.data)
        left = download.end - download.at
        data = m.Data(id=report.id, data=report.data, last=not left)
        if left:
            self._out.send(data)
            order = c.ReadBlob(report.id, download.hash, download.at, min(m.CHUNK, left), sized=False)
            self._out.emit(order)
        else:
            self._answer(data, now)

    # ---- answers

    def _fail(self, id_: int, code: StoreCode, detail: str, now: float, wait_s: float | None = None) -> None:
        detail = detail.encode()[: m.DETAIL_MAX].decode(errors="ignore")
        self._answer(m.Failed(id=id_, code=code, detail=detail, retry_after_s=wait_s), now)

    def _answer(self, message: Any, now: float) -> None:
        """The final one of a request. An upload under way is only forgotten when it ends."""
        id_ = message.id
        self._out.send(message)
        served = self._requests[id_]
        if id_ in self._waiting:
            self._waiting.remove(id_)
        self._reading.discard(id_)
        if served.upload is not None and not served.upload.ended:
            served.upload.answered = True  # to be cancelled, or to end soon whatever its size
            self._out.set_timer(f"upload {id_}", now + UPLOAD_S)
            self._rest(now)
        else:
            self._forget(id_, now)
        self._read_next()

    def _forget(self, id_: int, now: float) -> None:
        del self._requests[id_]
        self._rest(now)

    def _rest(self, now: float) -> None:
        if self._half_closed and not self._requests and not self._over:
            self._end("closed by the client")
        elif self.resting:
            self._out.set_timer("idle", now + IDLE_S)

    def _end(self, reason: str, *, fault: bool = False) -> None:
        self._over = True
        self._requests.clear()
        self._waiting.clear()
        self._reading.clear()
        self._out.cancel_timers()
        self._out.emit(c.Over(reason, fault=fault))


def _size_sent(size: int | None) -> int:
    return -1 if size is None or size > m.SIZE_MAX else size
