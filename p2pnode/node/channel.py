"""Messages over a stream: frames, codec, and the one place where bytes become protocol messages."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

from p2pnode.errors import ProtocolError
from p2pnode.net.stream import Stream
from p2pnode.protocols.framing.codec import FRAME_MAX, FrameDecoder, pack_frame
from p2pnode.protocols.wire import Codec


class MessageChannel:
    """Sends and receives one protocol's messages on one stream, in frames of at most ``frame_max`` bytes."""

    def __init__(self, stream: Stream, codec: Codec, frame_max: int = FRAME_MAX) -> None:
        self.stream = stream
        self._codec, self.frame_max = codec, frame_max
        self._decoder = FrameDecoder(frame_max)
        self._payloads: deque[bytes] = deque()
        self._error: ProtocolError | None = None

    async def send(self, messages: Iterable[Any]) -> None:
        """Write messages in one piece. Raises ``UnreachableError`` when the peer is gone."""
        data = b"".join(pack_frame(self._codec.encode(message), self.frame_max) for message in messages)
        if data:
            await self.stream.send_all(data)

    async def receive(self) -> Any | None:
        """The next message; None at a clean end. Raises ``ProtocolError`` or ``UnreachableError``.

        However the bytes were cut, the messages before a malformed one are returned first; after it there
        are none.
        """
        if self._error is not None:
            raise self._error
        try:
            if not self._payloads and not await self._fill():
                return None
            # One at a time: the next payload may be malformed, and this one isn't.
            return self._codec.decode(self._payloads.popleft())
        except ProtocolError as error:
            self._error = error
            raise

    async def _fill(self) -> bool:
        """Read until a payload is whole; false at a clean end."""
        while not self._payloads:
            self._decoder.check()  # before waiting: who sent a malformed length may send nothing more
            data = await self.stream.receive_some()
            if not data:
                if self._decoder.pending:
                    raise ProtocolError("the stream ended inside a frame")
                return False
            self._payloads += self._decoder.feed(data)
        return True
