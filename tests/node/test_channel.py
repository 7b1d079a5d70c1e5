"""Messages on a stream: what is delivered doesn't depend on how the bytes were cut on their way."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from p2pnode.errors import ProtocolError
from p2pnode.net.stream import Stream
from p2pnode.node.driver import MessageChannel
from p2pnode.protocols.adverts.messages import CODEC, PROTOCOL, GetAdvert, SampleAdverts
from p2pnode.protocols.framing.codec import pack_frame
from tests.net.support import make, make_client, running

GOOD = [SampleAdverts(count=1), GetAdvert(peer=make("subject").peer_id), SampleAdverts(count=3)]
MALFORMED = {
    "payload": pack_frame(b"\xc1"),
    "message": pack_frame(b"\x80"),
    "zero length": b"\x00",
    "long length": b"\x81\x00",
    "oversized": b"\xff\xff\xff\x7f",
}


async def received(pieces: list[bytes], *, then_end: bool) -> list[Any]:
    """What a peer's reader gets of ``pieces``, each sent when what came before was read; the error last."""
    got: list[Any] = []
    host, client = make("host"), make_client("client")
    finished = trio.Event()
    read = 0

    async def read_all(stream: Stream) -> None:
        nonlocal read
        channel = MessageChannel(_Counted(stream), CODEC)  # type: ignore[arg-type]
        try:
            while (message := await channel.receive()) is not None:
                got.append(message)
        except ProtocolError as error:
            got.append("malformed")
            with pytest.raises(ProtocolError, match=str(error)[:20]):
                await channel.receive()  # nothing after it
        finished.set()

    class _Counted:
        """The stream, and how much of it was read."""

        def __init__(self, stream: Stream) -> None:
            self._stream = stream

        async def receive_some(self) -> bytes:
            nonlocal read
            data = await self._stream.receive_some()
            read += len(data)
            return data

    host.serve(PROTOCOL, read_all)
    async with running(host, client):
        await client.connect(host.multiaddrs[0])
        stream = await client.open_stream(host.peer_id, PROTOCOL)
        sent = 0
        for piece in pieces:
            await stream.send_all(piece)
            sent += len(piece)
            with trio.fail_after(10):
                while read < sent and not finished.is_set():  # noqa: ASYNC110  the reader's own progress
                    await trio.sleep(0.005)
        if then_end:
            await stream.send_eof()
        with trio.fail_after(10):  # without an end, too: what is malformed needs no more bytes to be so
            await finished.wait()
        await stream.reset()
    return got


@pytest.mark.parametrize("then_end", [True, False])
@pytest.mark.parametrize("bad", MALFORMED.values(), ids=list(MALFORMED))
async def test_messages_before_a_malformed_frame_are_delivered_in_one_chunk_or_in_many(
    bad: bytes, then_end: bool
) -> None:
    frames = [pack_frame(CODEC.encode(each)) for each in GOOD]
    after = pack_frame(CODEC.encode(GOOD[0]))
    for pieces in (
        [b"".join(frames) + bad + after],
        [*frames, bad + after],
        [frames[0], frames[1] + frames[2][:2], frames[2][2:] + bad + after],
    ):
        assert await received(pieces, then_end=then_end) == [*GOOD, "malformed"]


async def test_messages_without_a_malformed_one_are_all_delivered_and_end_cleanly() -> None:
    frames = [pack_frame(CODEC.encode(each)) for each in GOOD]
    assert await received([b"".join(frames)], then_end=True) == GOOD
    assert await received(frames, then_end=True) == GOOD


async def test_a_stream_that_ends_inside_a_frame_is_malformed_after_what_came_whole() -> None:
    frames = [pack_frame(CODEC.encode(each)) for each in GOOD]
    assert await received([b"".join(frames)[:-1]], then_end=True) == [*GOOD[:2], "malformed"]
