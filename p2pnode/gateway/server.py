"""The gateway on a socket: over which client, at which address, and where other programs find it.

While it runs, ``<data-dir>/gateway.json`` says where: ``{"pid", "url", "keys_required", "socket"}``. It is
written once the address is taken, removed at the end, and believed only while ``gateway.lock`` is held. A
command such as ``p2pnode ask`` that finds it there asks through its owner socket instead of starting a
network of its own.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import structlog
import trio
from starlette.types import ASGIApp

from p2pnode.client.client import Client
from p2pnode.client.question import resolve_model
from p2pnode.errors import ConfigError
from p2pnode.files import off_the_loop, write_private
from p2pnode.gateway.access import gateway_ring
from p2pnode.gateway.app import AppOptions, Observer, RequestRecord, make_app
from p2pnode.gateway.dashboard.access import AccessFile, new_links
from p2pnode.gateway.dashboard.dashboard import Dashboard
from p2pnode.gateway.dashboard.node_view import Checks, NodeView
from p2pnode.gateway.gateway import Gateway
from p2pnode.gateway.keys import BudgetRing
from p2pnode.gateway.owner_socket import OwnerSocket
from p2pnode.http_server import HttpBounds, HttpServer, parse_listen
from p2pnode.limits import Limits
from p2pnode.scopes import is_loopback
from p2pnode.tasks import background_task

LISTEN: Final = "127.0.0.1:8080"
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayOptions:
    """What a user can set. ``aliases`` are written ``PATTERN=MODEL``; ``origins`` are those of web pages."""

    listen: str = LISTEN
    listen_option: str = "--listen"
    """The flag that sets ``listen``."""
    aliases: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    trust_host: bool = False
    metrics: ASGIApp | None = None
    observe: Observer | None = None
    checks: Checks | None = None
    """Examines this node when somebody asks for it on the dashboard."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedGateway:
    """A gateway that runs."""

    gateway: Gateway
    ring: BudgetRing
    server: HttpServer
    url: str
    """``http://127.0.0.1:8080``; programs want it with ``/v1``."""
    keys_required: bool
    key_file: Path
    dashboard_urls: tuple[str, ...]
    """The dashboard's addresses, this machine's first, each with a token that can be used once: nobody else
    may see them."""


def read_aliases(given: Sequence[str], models_dir: Path) -> tuple[tuple[str, str], ...]:
    """Pairs of a pattern and a model. Raises ``ConfigError``."""
    made = []
    for each in given:
        pattern, equals, model = each.rpartition("=")
        if not (equals and pattern.strip() and model.strip()):
            raise ConfigError(f"{each[:80]!r} is no PATTERN=MODEL, as 'claude-*=smollm2-135m-instruct'")
        resolve_model(model.strip(), models_dir)
        made.append((pattern.strip(), model.strip()))
    return tuple(made)


@asynccontextmanager
async def serving_gateway(
    client: Client, options: GatewayOptions, *, limits: Limits
) -> AsyncIterator[ServedGateway]:
    """The gateway over ``client``, which runs, until the block ends. Raises ``ConfigError``."""
    host, port = parse_listen(options.listen)
    aliases = read_aliases(options.aliases, client.runtime.data.models)
    data = client.runtime.data
    others = await off_the_loop(partial(gateway_ring, data.gateway_key, host, pays=client.runtime.pays))
    ring = BudgetRing(others, data.journal)
    gateway = Gateway(client, aliases=aliases, trust_host=options.trust_host)
    view = NodeView(client, gateway, checks=options.checks)

    def observe(record: RequestRecord) -> None:
        view.observe(record)
        if options.observe is not None:
            options.observe(record)

    app_options = AppOptions(
        origins=options.origins,
        names=(host,),
        open_host=not is_loopback(host),
        metrics=options.metrics,
        observe=observe,
    )
    key_file = AccessFile(data.dashboard)
    dashboard = Dashboard(
        make_app(gateway, ring, app_options, limits=limits),
        gateway,
        view,
        key_file,
        await off_the_loop(key_file.load),
        names=(host,),
        open_host=not is_loopback(host),
        observe=observe,
        limits=limits,
    )
    with data.gateway_locked():
        server = await HttpServer.bind(
            host, port, what="the gateway", option=options.listen_option, bounds=_bounds(limits)
        )
        try:
            ended = trio.Event()

            async def run(*, task_status: trio.TaskStatus[str]) -> None:
                try:
                    await server.run(dashboard, task_status=task_status)
                finally:
                    ended.set()

            owner = OwnerSocket(client)
            async with background_task(run), background_task(view.run), background_task(owner.run):
                told = {
                    "pid": os.getpid(),
                    "url": server.url,
                    "keys_required": ring.required,
                    "socket": str(owner.path),
                }
                await off_the_loop(partial(write_private, data.gateway_json, json.dumps(told).encode()))
                log.info("gateway.listening", url=server.url, keys_required=ring.required)
                yield ServedGateway(
                    gateway=gateway,
                    ring=ring,
                    server=server,
                    url=server.url,
                    keys_required=ring.required,
                    key_file=data.gateway_key,
                    dashboard_urls=await off_the_loop(
                        partial(new_links, data.dashboard, server.url, time.time())
                    ),
                )
                dashboard.close()
                server.stop()  # requests under way may end, for a while
                with trio.move_on_after(limits.drain_deadline_s + limits.close_deadline_s):
                    await owner.stop()
                    await ended.wait()
        finally:
            ring.close()
            server.close()
            data.gateway_json.unlink(missing_ok=True)


def _bounds(limits: Limits) -> HttpBounds:
    return HttpBounds(
        connections_max=limits.gateway_connections_max,
        stall_s=limits.gateway_stall_s,
        linger_s=limits.s5_linger_s,
        drain_s=limits.drain_deadline_s,
    )
