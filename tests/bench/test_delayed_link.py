"""A link that is as long as one wants: bytes come whole, in order, and late."""

from __future__ import annotations

from contextlib import suppress
from functools import partial

import trio

from p2pnode.bench.delayed_link import delayed_link

HALF_S = 0.05


async def test_bytes_go_there_and_back_in_order_and_no_sooner_than_a_round_trip() -> None:
    async def echo(stream: trio.SocketStream) -> None:
        async for data in stream:
            await stream.send_all(data)

    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, echo, 0, host="127.0.0.1"))
        async with delayed_link(listener.socket.getsockname()[1], 2 * HALF_S) as port:
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            began = trio.current_time()
            sent = bytes(range(256)) * 1024
            await stream.send_all(sent)
            await stream.send_eof()
            came = b"".join([data async for data in stream])
            assert came == sent
            assert trio.current_time() - began >= 2 * HALF_S
            await stream.aclose()
        nursery.cancel_scope.cancel()


async def test_a_connection_that_breaks_behind_it_breaks_before_it() -> None:
    async def hang_up(stream: trio.SocketStream) -> None:
        await stream.receive_some(1)
        await trio.aclose_forcefully(stream)

    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, hang_up, 0, host="127.0.0.1"))
        async with (
            delayed_link(listener.socket.getsockname()[1], 2 * HALF_S) as port,
            await trio.open_tcp_stream("127.0.0.1", port) as stream,
        ):
            await stream.send_all(b"x")
            with trio.fail_after(10), suppress(trio.BrokenResourceError):  # a reset is an end, too
                assert await stream.receive_some(1) == b""
        nursery.cancel_scope.cancel()
