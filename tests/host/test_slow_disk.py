"""Peers that talk while a disk is slow: what they say fills no queue that this side's own work needs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from p2pnode.client.client import Client
from p2pnode.errors import P2PNodeError
from p2pnode.net.stream import Stream
from p2pnode.net.virtual_time import wall_clock
from p2pnode.node.driver import MessageChannel
from p2pnode.payments.redelivery import undelivered
from p2pnode.protocols.inference.messages import CODEC, Accept, Challenge, Ping, Refuse, Resume
from tests.client.failing import ask, check_whole, read
from tests.client.support import misbehave
from tests.host.paid import FEE, LIMITS, PaidWorld, paid_world, priced
from tests.host.test_payment_faults import books_of
from tests.net.support import eventually
from tests.sqlite_disk import SlowDisk

HASTY = replace(
    LIMITS, dial_deadline_s=2.0, reconnect_patience_s=0.2, lookup_deadline_s=4.0, mdns_wait_s=0.1, stall_s=5.0
)


def accepts_and_pings(pings: int) -> Callable[[Stream], Awaitable[None]]:
    """A host that came back: it takes the voucher it is owed, and says much in the same breath."""

    async def serve(stream: Stream) -> None:
        channel = MessageChannel(stream, CODEC)
        request = await channel.receive()
        if not isinstance(request, Resume):
            await channel.send([Refuse(code="capacity", detail="busy")])
            return
        await channel.send([Challenge(nonce=bytes(32))])
        request = await channel.receive()
        assert isinstance(request, Resume)
        accept = Accept(
            session=request.session,
            nonce=bytes(32),
            epoch=1 + (request.receipt.epoch if request.receipt is not None else 0),
            n_ctx=2048,
            session_fee=FEE,
        )
        await channel.send([accept, *(Ping(nonce=number) for number in range(pings))])
        with suppress(P2PNodeError):
            while await channel.receive() is not None:
                pass

    return serve


def owes(client: Client) -> bool:
    return bool(undelivered(books_of(client), int(wall_clock())))


async def owe(w: PaidWorld, client: Client, index: int) -> None:
    """Have the client owe a final voucher to the host at ``index``, which was killed under an answer."""
    member = w.world.members[index]
    client.runtime.bootstrap = member.node.multiaddrs[:1]

    crashed = trio.Event()

    def then(held: int) -> None:
        if held >= 3:
            crashed.set()
            w.world.crash(member)

    while not crashed.is_set():  # a busy machine may end a question before that
        with pytest.raises(P2PNodeError):
            await read(ask(client, tokens=200), then)
    await eventually(lambda: owes(client))


@pytest.mark.long
async def test_a_host_that_talks_while_the_clients_disk_is_slow_ends_nothing_else(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with paid_world(tmp_path, limits=HASTY) as w:
            good, _ = await w.host()
            await w.host(model=priced(tokens_per_s=100))
            async with w.client(good, disk=SlowDisk(0.02)) as client:
                await owe(w, client, index=1)
                again, _ = await w.host(index=1)
                misbehave(again, accepts_and_pings(600))
                client.runtime.bootstrap = good.node.multiaddrs[:1]
                for _ in range(2):  # the first finds that a voucher is owed, the second runs beside its way
                    answer = ask(client)
                    shown = await read(answer)
                    await check_whole(answer, shown)
                await eventually(lambda: not owes(client))
