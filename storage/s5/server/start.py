"""S5's HTTP API beside a node: what ``--s5-listen`` starts.

Without a token, which there is no flag for, it is for programs on this machine, and for the web pages whose
origins are named. With accounts each program or page has one, by an Ed25519 key, and its share of the store;
without, all count for the owner called local. To other S5 nodes it has a key of its own, so that nothing of
theirs is ever signed with the peer key.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pnode.errors import ConfigError
from p2pnode.files import off_the_loop
from p2pnode.limits import Limits
from p2pnode.node.beside import beside
from p2pnode.node.datadir import DataDir
from p2pnode.node.keys import load_or_create_seed
from p2pnode.protocols.s5.nodes import NodeId
from p2pnode.scopes import is_loopback
from p2pnode.storage.s5.server.options import S5Options, check_origin, parse_listen
from p2pnode.storage.store import OwnerKey

if TYPE_CHECKING:
    from p2pnode.storage.local.store import LocalStore


def check_s5_listen(text: str) -> tuple[str, int]:
    """Host and port to listen on. Raises ``ConfigError``."""
    host, port = parse_listen(text)
    if not is_loopback(host):
        msg = (
            f"{host} is open to others, and the S5 API is for programs on this machine: use 127.0.0.1:{port}"
        )
        raise ConfigError(msg)
    return host, port


@asynccontextmanager
async def serving_s5(
    listen: str,
    data: DataDir,
    store: LocalStore,
    owner: OwnerKey,
    *,
    accounts: bool = False,
    origins: Sequence[str] = (),
    limits: Limits,
    wall: Callable[[], float] = time.time,
) -> AsyncIterator[str]:
    """The API over ``store`` until the block ends, at the url it gives. Raises ``ConfigError``."""
    from p2pnode.storage.s5.server.server import S5Server

    host, port = check_s5_listen(listen)
    data.s5.mkdir(mode=0o700, exist_ok=True)
    seed = await off_the_loop(partial(load_or_create_seed, data.s5 / "node.key"))
    key = Ed25519PrivateKey.from_private_bytes(seed)
    options = S5Options(
        owner=owner,
        folder=data.s5,
        host=host,
        port=port,
        accounts=accounts,
        origins=frozenset(map(check_origin, origins)),
        node=NodeId(key.public_key().public_bytes_raw()),
        sign=key.sign,
    )
    server = S5Server(store, store, options, limits=limits, wall=wall)
    async with beside(server.run):
        yield server.url
        server.stop()
        with trio.move_on_after(limits.close_deadline_s):
            await server.wait_ended()
