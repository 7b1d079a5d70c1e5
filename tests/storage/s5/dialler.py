"""A client of the S5 websocket (``/s5/p2p``) for tests: no command of ours dials another S5 node."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_client_stream

from p2pnode.errors import UnreachableError, first_error, first_of_kind
from p2pnode.protocols.s5.entries import Entry, EntryKey
from p2pnode.protocols.s5.ids import BlobHash, BlobId, from_multibase
from p2pnode.protocols.s5.locations import StorageLocation
from p2pnode.protocols.s5.messages import FRAME_MAX, HashQuery, RegistryQuery, S5Message, decode, encode
from p2pnode.protocols.s5.nodes import P2P_PATH, NodeId, PeerUri, parse_node
from p2pnode.storage.s5.peer import PeerConnection, S5Node
from p2pnode.tasks import Guard
from p2pnode.websockets import shake_hands

Stream: TypeAlias = trio.SocketStream | trio.SSLStream[trio.SocketStream]


class Dialled:
    """A node that dialled another one. What it asks goes over the same websocket as all that it answers."""

    def __init__(self, connection: PeerConnection, frames: _Frames) -> None:
        self._connection, self._frames = connection, frames

    @property
    def other(self) -> NodeId | None:
        """Who the other side is."""
        return self._connection.other

    async def push(self, entry: Entry) -> None:
        """Send an entry to the other side."""
        await self._connection.push(entry)

    async def find(self, digest: BlobHash) -> StorageLocation:
        """The first place that the other side names."""
        found = await self._frames.ask(HashQuery(digest=digest), StorageLocation, digest)
        assert isinstance(found, StorageLocation)
        return found

    async def ask(self, key: EntryKey) -> Entry:
        """The other side's newest entry."""
        found = await self._frames.ask(RegistryQuery(key=key), Entry, key)
        assert isinstance(found, Entry)
        return found


@asynccontextmanager
async def dial_s5(uri: str, node: S5Node, *, url: str = "", stall_s: float) -> AsyncIterator[Dialled]:
    """A connection to the node at ``uri``, which has proved who it is; it runs as long as the block.

    ``url`` is where our own HTTP API is reached; empty: no blobs are offered. Deadlines are the caller's.
    Raises ``UnreachableError`` when nobody, or somebody else, answers.
    """
    target = peer_of(uri)
    lost = f"the S5 node {target.host}:{target.port} can't be reached: check its address and that it runs"
    try:
        stream = await _connect(target)
    except (OSError, UnicodeError, trio.BrokenResourceError) as error:
        raise UnreachableError(lost) from error

    def urls(blob: BlobId) -> tuple[str, ...]:
        return (f"{url}/{blob.text()}",) if url else ()

    async def run(*, task_status: trio.TaskStatus[Dialled]) -> None:
        try:
            async with trio.open_nursery() as inner:
                host = f"[{target.host}]" if ":" in target.host else target.host

                async def ask(reader: Any) -> WebSocketConnection:
                    return await wrap_client_stream(
                        reader, stream, f"{host}:{target.port}", P2P_PATH, max_message_size=FRAME_MAX
                    )

                def guarded(function: Callable[..., Awaitable[None]], *args: Any) -> None:
                    inner.start_soon(Guard().run, function, *args)

                frames = _Frames(await shake_hands(guarded, stream, ask))
                made = PeerConnection(node, frames, urls, stall_s=stall_s, dialled=True, expected=target.node)
                inner.start_soon(made.run)
                await made.wait_connected()
                if made.other is None:
                    raise UnreachableError(f"{lost} ({_why(made)})")
                task_status.started(Dialled(made, frames))
        except BaseExceptionGroup as group:
            raise _plain(group, lost) from group

    failed: Exception | None = None
    async with stream, trio.open_nursery() as nursery:
        try:
            yield await nursery.start(run)
        except Exception as error:  # noqa: BLE001 - raised again below, outside the nursery and its groups
            failed = error
        nursery.cancel_scope.cancel()
    if failed is not None:
        raise failed


def peer_of(uri: str) -> PeerUri:
    """What a well-formed URI says."""
    parts = urlsplit(uri)
    tls = parts.scheme == "wss"
    return PeerUri(
        host=parts.hostname or "",
        port=parts.port or (443 if tls else 80),
        tls=tls,
        node=parse_node(from_multibase(parts.username)) if parts.username else None,
    )


async def _connect(target: PeerUri) -> Stream:
    stream = await trio.open_tcp_stream(target.host, target.port)
    if not target.tls:
        return stream
    context = ssl.create_default_context()
    return trio.SSLStream(stream, context, server_hostname=target.host, https_compatible=True)


def _why(connection: PeerConnection) -> str:
    ended = connection.ended
    return "it left" if ended is None else ended.reason.replace("_", " ")


def _plain(group: BaseExceptionGroup[BaseException], lost: str) -> BaseException:
    """What the other node made the websocket's library raise, whatever it is, as one error of ours."""
    faults, others = group.split(Exception)
    if faults is None or (others is not None and others.split(trio.Cancelled)[1] is not None):
        return group
    unreachable = first_of_kind(faults, UnreachableError)
    return unreachable or UnreachableError(f"{lost} ({type(first_error(faults)).__name__})")


class _Frames:
    """See ``peer.Frames``. An answer that somebody here waits for goes to them alone."""

    def __init__(self, socket: WebSocketConnection) -> None:
        self._socket = socket
        self._asked: dict[tuple[type, bytes], trio.MemorySendChannel[object]] = {}

    async def ask(self, question: S5Message, kind: type, about: bytes) -> object:
        """What the other side answers to ``question``: the next message of this kind about that."""
        send, receive = trio.open_memory_channel[object](1)
        self._asked[kind, about] = send
        await self.send(encode(question))
        return await receive.receive()

    def _is_an_answer(self, frame: bytes) -> bool:
        message = decode(frame)
        about = message.digest if isinstance(message, StorageLocation) else getattr(message, "key", b"")
        waiting = self._asked.pop((type(message), about), None)
        if waiting is None:
            return False
        waiting.send_nowait(message)
        return True

    async def send(self, frame: bytes) -> None:
        try:
            await self._socket.send_message(frame)
        except ConnectionClosed as error:
            msg = "the S5 peer closed the connection"
            raise UnreachableError(msg) from error

    async def receive(self) -> bytes | None:
        while True:
            try:
                message = await self._socket.get_message()
            except ConnectionClosed:
                return None
            frame = message if isinstance(message, bytes) else message.encode()
            if not (self._asked and self._is_an_answer(frame)):
                return frame
