"""A store at a peer: ``BlobStore`` and ``Registry`` over ``/p2pnode/blob/1``.

One stream, opened when it is first needed and again when it was lost; the questions of many tasks share it.
Blobs and entries that are returned were checked. Deadlines are the caller's cancel scopes, for opening too.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, NoReturn

import trio

from p2pnode.errors import (
    ProtocolError,
    RemoteError,
    StorageError,
    StoreCode,
    StoreRefusedError,
    UnreachableError,
)
from p2pnode.ids import PeerId
from p2pnode.limits import Limits
from p2pnode.net.stream import Stream
from p2pnode.node.driver import Driver, MessageChannel
from p2pnode.node.node import Node
from p2pnode.protocols.blob import commands as c
from p2pnode.protocols.blob.client import BlobClient
from p2pnode.protocols.blob.messages import CODEC, FRAME_MAX, LEASE_MAX_S, PROTOCOL, claim_digest
from p2pnode.protocols.s5.entries import Entry, EntryKey
from p2pnode.protocols.s5.ids import BlobHash, BlobId
from p2pnode.storage.rules import pieces_of
from p2pnode.storage.store import (
    BLOB_MAX,
    LEASE_S,
    BadEntryError,
    Data,
    DiskFullError,
    HashMismatchError,
    NoBlobError,
    OwnerKey,
    QuotaError,
    StaleEntryError,
    TooLargeError,
)
from p2pnode.words import quoted

OwnerSigner = Callable[[OwnerKey, bytes], bytes]
"""Returns the owner key's Ed25519 signature over 32 bytes. Raises ``LocalError`` for an unknown key."""
_ADDRESSES_MAX: Final = 8
_ERRORS: Final[dict[StoreCode, type[StorageError]]] = {
    "not_found": NoBlobError,
    "quota": QuotaError,
    "too_large": TooLargeError,
    "disk_full": DiskFullError,
}


class PeerStore:
    """The store of ``peer``. ``trusted`` are the multiaddrs that the user gave for it; see ``also_at`` for
    others.

    Besides the errors of ``storage.store`` each method raises ``RemoteError``: ``UnreachableError``,
    ``StoreRefusedError`` (not admitted, too fast, failed), ``ProtocolError`` (it sent what is wrong: this
    counts against it).
    """

    def __init__(self, node: Node, peer: PeerId, trusted: Sequence[str] = (), *, sign: OwnerSigner) -> None:
        self._node, self.peer, self._trusted = node, peer, tuple(trusted)
        self._heard: tuple[str, ...] = ()
        self._sign = sign
        self._claims: dict[bytes, bytes] = {}
        self._stream: PeerQuestions | None = None
        self._opening = trio.Lock()

    # ---- blobs

    async def put(
        self, data: Data, *, owner: OwnerKey, expected: BlobHash | None = None, lease_s: float = LEASE_S
    ) -> BlobId:
        """See ``BlobStore``. One round trip up to 256 KiB. A stream of data is collected in memory first."""
        whole = data if isinstance(data, bytes) else await _collect(data)
        if len(whole) > BLOB_MAX:
            raise TooLargeError(f"a blob has at most {BLOB_MAX} bytes, not {len(whole)}: cut it")
        blob = BlobId.of(whole)
        if expected is not None and expected != blob.hash:
            raise HashMismatchError("these bytes are not those of the hash that was expected")
        await self._keep(owner, c.AskPut(owner, blob.hash, whole, _lease(lease_s)))
        return blob

    async def read(self, digest: BlobHash, offset: int = 0, length: int | None = None) -> bytes:
        """See ``BlobStore``. The whole blob travels, since only the whole can be checked."""
        outcome = await self._ask(c.AskBlob(digest))
        if not isinstance(outcome, c.Fetched):
            self._refused(outcome)
        return outcome.data[offset : None if length is None else offset + length]

    async def public(self, sha256: bytes) -> bytes:
        """What the peer makes public of its models, by its SHA-256, which was checked. Raises as ``read``."""
        outcome = await self._ask(c.AskBlob(BlobHash(sha256), sha256=True))
        if not isinstance(outcome, c.Fetched):
            self._refused(outcome)
        return outcome.data

    async def size(self, digest: BlobHash) -> int | None:
        """See ``BlobStore``. It is the peer's word."""
        outcome = await self._ask(c.AskSizes((digest,)))
        if not isinstance(outcome, c.Sized):
            self._refused(outcome)
        return outcome.sizes[0]

    async def pin(self, digest: BlobHash, *, owner: OwnerKey, lease_s: float = LEASE_S) -> None:
        """See ``BlobStore``."""
        await self._keep(owner, c.AskPin(owner, digest, _lease(lease_s)))

    async def unpin(self, digest: BlobHash, *, owner: OwnerKey) -> None:
        """See ``BlobStore``."""
        await self._keep(owner, c.AskUnpin(owner, digest))

    # ---- registry

    async def get(self, key: EntryKey) -> Entry | None:
        """See ``Registry``. The signature was checked."""
        outcome = await self._ask(c.AskEntry(key))
        if not isinstance(outcome, c.Pointed):
            self._refused(outcome)
        return outcome.entry

    async def set(self, entry: Entry, *, owner: OwnerKey) -> None:
        """See ``Registry``."""
        if not entry.holds():
            raise BadEntryError("the entry's key did not sign it")
        await self._keep(owner, c.AskSet(owner, entry))

    # ---- what peers can do besides

    def also_at(self, heard: Sequence[str]) -> None:
        """Add addresses that strangers gave. The newest few are tried, where they may be dialled."""
        self._heard = tuple(dict.fromkeys((*heard, *self._heard)))[:_ADDRESSES_MAX]

    async def open(self) -> None:
        """Dial and open the stream, where it is not open. Raises ``RemoteError``."""
        await self._opened()

    async def admits(self, owner: OwnerKey) -> str:
        """Why the peer takes no writes of ``owner`` now; an empty text if it does."""
        try:
            await self._keep(owner, c.AskAdmission(owner))
        except StoreRefusedError as error:
            return str(error)
        return ""

    def close(self) -> None:
        """End the stream.

        Who waits for an answer gets ``UnreachableError``; a later question opens another.
        """
        if self._stream is not None:
            self._stream.stop()

    # ---- asking

    async def _keep(self, owner: OwnerKey, question: c.Question) -> None:
        if owner not in self._claims:
            # Signed here and not by the machine: that a key is missing is the caller's error.
            self._claims[owner] = self._sign(owner, claim_digest(self._node.peer_id, self.peer))
        outcome = await self._ask(question)
        if not isinstance(outcome, c.Kept):
            self._refused(outcome)

    async def _ask(self, question: c.Question) -> c.Outcome:
        stream = self._stream
        if stream is not None and stream.open:
            try:
                return await stream.ask(question)
            except UnreachableError:
                pass  # it ended while idle, or while we asked: every question may be asked twice
        return await (await self._opened()).ask(question)

    async def _opened(self) -> PeerQuestions:
        async with self._opening:
            if self._stream is not None and self._stream.open:
                return self._stream
            node = self._node
            if node.faults.shunned(self.peer, trio.current_time()):
                raise UnreachableError(f"{self.peer} broke the protocol too often: try again later")
            await node.network.connect_peer(self.peer, self._heard, trusted=self._trusted)
            stream = await node.network.open_stream(self.peer, PROTOCOL)
            machine = BlobClient(
                peer=self.peer,
                self_peer=node.peer_id,
                stream=0,
                sign=lambda owner, _digest: self._claims[owner],
            )
            asked = PeerQuestions(machine, stream, limits=node.limits, on_fault=self._fault)
            try:
                node.start_soon(node.network.guard.run, asked.run)
            except UnreachableError:  # the node is ending
                await stream.reset()
                raise
            self._stream = asked
            return asked

    def _fault(self, what: str) -> None:
        self._node.faults.record(self.peer, what, trio.current_time())

    def _refused(self, outcome: c.Outcome) -> NoReturn:
        match outcome:
            case c.Refused(code=code, detail=detail) if code in _ERRORS:
                raise _ERRORS[code](f"{self.peer}: {quoted(detail) if detail else code}")
            case c.Refused(code="hash_mismatch" | "bad_entry" as code):
                self._fault(f"calls what was checked here a {code}")
                raise ProtocolError(f"{self.peer} calls what was checked here a {code}")
            case c.Refused(code=code, detail=detail, retry_after_s=retry_after_s):
                raise StoreRefusedError(code, detail, retry_after_s=retry_after_s)
            case c.NotAsked(why=why):
                raise UnreachableError(f"{self.peer} was not asked: {why}")
            case c.Outdated(current=current):
                raise StaleEntryError(f"{self.peer} has an entry that wins", current)
            case c.Lied(what=what):
                self._fault(what)
                raise ProtocolError(f"{self.peer}: {what}")
            case _:
                raise ProtocolError(f"{self.peer} answers another question")


def _lease(lease_s: float) -> int:
    return math.ceil(min(max(0.0, lease_s), float(LEASE_MAX_S)))


async def _collect(data: Data) -> bytes:
    if isinstance(data, bytes):
        return data
    whole = bytearray()
    async with pieces_of(data) as pieces:
        async for piece in pieces:
            whole += piece
            if len(whole) > BLOB_MAX:
                raise TooLargeError(f"a blob has at most {BLOB_MAX} bytes: cut it")
    return bytes(whole)


@dataclass(slots=True)
class _Call:
    answered: trio.Event = field(default_factory=trio.Event)
    outcome: c.Outcome | None = None


class PeerQuestions:
    """One stream to a peer that stores: the client machine, and the tasks that wait for its answers.

    ``run`` it in a task of its own. A caller that is cancelled drops its question; the stream goes on.
    """

    def __init__(
        self, machine: BlobClient, stream: Stream, *, limits: Limits, on_fault: Callable[[str], None]
    ) -> None:
        self._stream, self._on_fault = stream, on_fault
        channel = MessageChannel(stream, CODEC, FRAME_MAX)
        self._driver = Driver(machine, channel, on_emit=self._emitted, write_deadline_s=limits.stall_s)
        self._tickets = itertools.count()
        self._calls: dict[int, _Call] = {}
        self._over: c.Over | None = None
        self._scope = trio.CancelScope()
        self._ended = False

    @property
    def open(self) -> bool:
        """Whether more may be asked."""
        return self._over is None and not self._ended

    async def ask(self, question: c.Question) -> c.Outcome:
        """The answer.

        Raises ``UnreachableError`` when the stream is lost, ``ProtocolError`` for a wrong answer.
        """
        if not self.open:
            raise self._why()
        ticket, call = next(self._tickets), _Call()
        self._calls[ticket] = call
        try:
            self._driver.command_nowait(c.Ask(ticket, question))  # in order with its Drop
            await call.answered.wait()
        finally:
            del self._calls[ticket]
            if not call.answered.is_set():
                self._driver.command_nowait(c.Drop(ticket))
        if call.outcome is None:
            raise self._why()
        return call.outcome

    async def run(self) -> None:
        """Run until the stream is over, or until :meth:`stop`."""
        fault: str | None = None
        try:
            with self._scope:
                await self._driver.run()
            over = self._over
            fault = self._driver.fault or (over.reason if over is not None and over.fault else None)
        finally:
            self._ended = True
            for call in self._calls.values():
                call.answered.set()
            if fault is not None:
                self._on_fault(fault)
            await (self._stream.reset() if fault is not None or self._over is None else self._stream.aclose())

    def stop(self) -> None:
        """End now."""
        self._scope.cancel()

    def _why(self) -> RemoteError:
        peer, over = self._stream.peer, self._over
        fault = self._driver.fault or (over.reason if over is not None and over.fault else None)
        if fault is not None:
            return ProtocolError(f"{peer} broke the protocol of blobs: {fault}")
        why = over.reason if over is not None and over.reason else "closed"
        return UnreachableError(f"the stream to {peer} was lost ({why}): try again, or another replica")

    async def _emitted(self, value: c.ClientEmission) -> None:
        match value:
            case c.Answered(ticket=ticket, outcome=outcome):
                call = self._calls.get(ticket)
                if call is not None:
                    call.outcome = outcome
                    call.answered.set()
            case c.Over():
                self._over = value
                self._driver.stop()
