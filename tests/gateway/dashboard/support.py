"""A gateway with its dashboard over scripted hosts in memory, on a real socket of loopback."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import trio

from p2pnode.client.client import Client
from p2pnode.gateway.access import OpenRing
from p2pnode.gateway.app import AppOptions, make_app
from p2pnode.gateway.dashboard.access import AccessFile, new_link
from p2pnode.gateway.dashboard.dashboard import PAGE_HEADER, Dashboard
from p2pnode.gateway.dashboard.node_view import NodeView
from p2pnode.gateway.gateway import Gateway
from p2pnode.http_server import HttpBounds, HttpServer
from p2pnode.limits import Limits
from tests.client.failing import ONE_BY_ONE, seeds
from tests.client.machines import machine
from tests.node.world import Member, World, scripted_host, world

LIMITS = replace(ONE_BY_ONE, drain_deadline_s=1.0)


@dataclass
class DashboardStage:
    """What runs; ``link`` makes one for a browser."""

    world: World
    members: list[Member]
    client: Client
    view: NodeView
    dashboard: Dashboard
    key_file: Path
    url: str

    def link(self) -> str:
        """A link that works once."""
        return new_link(self.key_file, self.url, time.time())

    @asynccontextmanager
    async def browser(self) -> AsyncIterator[httpx.AsyncClient]:
        """A client that is signed in, and sends both secrets and its origin with each request."""
        async with httpx.AsyncClient(base_url=self.url, timeout=30) as http:
            http.headers["origin"] = self.url
            token = self.link().partition("#")[2]
            answer = await http.post(
                "/dashboard/api/sign-in", json={"token": token}, headers={PAGE_HEADER: "sign-in"}
            )
            assert answer.status_code == 200, answer.text
            http.headers[PAGE_HEADER] = answer.json()["secret"]
            yield http


@asynccontextmanager
async def dashboard_stage(
    folder: Path,
    count: int = 1,
    *,
    limits: Limits = LIMITS,
    hosts: tuple[dict[str, Any], ...] = (),
    keeps: bool = False,
    **engine: Any,
) -> AsyncIterator[DashboardStage]:
    """Free hosts of the scripted model behind one gateway; ``keeps``: its client keeps conversations."""
    async with world(limits=limits) as w:
        members: list[Member] = []
        for index in range(count):
            first = members[0].node.multiaddrs[:1] if members else ()
            of_this = hosts[index] if hosts else {}
            members.append(await w.add([scripted_host(**{**engine, **of_this})], bootstrap=first))
        made = machine(w, folder / "data", knows=members) if keeps else w.client(seeds(members))
        async with made as client:
            await client.hosts("scripted")
            gateway = Gateway(client)
            view = NodeView(client, gateway)
            file = AccessFile(folder / "dashboard.json")
            server = await HttpServer.bind(
                "127.0.0.1", 0, what="a test", option="--x", bounds=HttpBounds(drain_s=1.0)
            )
            app = make_app(gateway, OpenRing(), AppOptions(observe=view.observe), limits=limits)
            dashboard = Dashboard(app, gateway, view, file, file.load(), observe=view.observe, limits=limits)
            async with trio.open_nursery() as nursery:
                url = await nursery.start(server.run, dashboard)
                await nursery.start(view.run)
                yield DashboardStage(w, members, client, view, dashboard, folder / "dashboard.json", url)
                dashboard.close()
                nursery.cancel_scope.cancel()
