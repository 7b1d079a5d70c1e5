"""A gateway over scripted hosts in memory, on a real socket of loopback, and programs in threads."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import httpx
import trio

from p2pnode.client.client import Client
from p2pnode.gateway.access import KeyRing, OpenRing
from p2pnode.gateway.app import AppOptions, RequestRecord, make_app
from p2pnode.gateway.gateway import Gateway
from p2pnode.http_server import HttpBounds, HttpServer
from p2pnode.limits import Limits
from tests.client.failing import ONE_BY_ONE, seeds
from tests.node.world import Member, World, scripted_host, world

T = TypeVar("T")
LIMITS = replace(ONE_BY_ONE, drain_deadline_s=1.0)


@dataclass
class Stage:
    """What runs: hosts, a client, a gateway at ``url``, and the records of its requests."""

    world: World
    members: list[Member]
    client: Client
    gateway: Gateway
    server: HttpServer
    url: str
    records: list[RequestRecord]

    def http(self, **settings: Any) -> httpx.AsyncClient:
        """A client for single requests."""
        return httpx.AsyncClient(base_url=self.url, timeout=30, **settings)


@asynccontextmanager
async def stage(
    count: int = 1,
    *,
    ring: KeyRing | None = None,
    limits: Limits = LIMITS,
    options: AppOptions | None = None,
    bounds: HttpBounds | None = None,
    aliases: tuple[tuple[str, str], ...] = (),
    **engine: Any,
) -> AsyncIterator[Stage]:
    """Free hosts of the scripted model behind one gateway."""
    records: list[RequestRecord] = []
    options = replace(options or AppOptions(), observe=records.append)
    async with world(limits=limits) as w:
        members: list[Member] = []
        for _ in range(count):
            first = members[0].node.multiaddrs[:1] if members else ()
            members.append(await w.add([scripted_host(**engine)], bootstrap=first))
        async with w.client(seeds(members)) as client:
            await client.hosts("scripted")
            gateway = Gateway(client, aliases=aliases)
            server = await HttpServer.bind(
                "127.0.0.1", 0, what="a test", option="--x", bounds=bounds or HttpBounds(drain_s=1.0)
            )
            app = make_app(gateway, ring or OpenRing(), options, limits=limits)
            async with trio.open_nursery() as nursery:
                url = await nursery.start(server.run, app)
                yield Stage(w, members, client, gateway, server, url, records)
                nursery.cancel_scope.cancel()


async def in_thread(work: Callable[[], T]) -> T:
    """What a program does that knows nothing of trio."""
    return await trio.to_thread.run_sync(work, abandon_on_cancel=True)


async def until(holds: Callable[[], bool], within_s: float) -> None:
    """Look again and again: what is looked at is in an engine, or in another thread."""
    with trio.fail_after(within_s):
        while not holds():  # noqa: ASYNC110 - nobody tells
            await trio.sleep(0.01)
