"""``p2pnode doctor``: one check after another, each with a reason code and a remedy.

A check never changes anything. It may be run beside a running node, and on a machine that never had one.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from statistics import median
from typing import Final, Literal

import trio

from p2pnode.client.client import Client
from p2pnode.config import DEFAULT_MODEL, NodeConfig
from p2pnode.errors import ConfigError, EngineError, P2PNodeError, RemoteError, StorageError
from p2pnode.files import read_text_or_none
from p2pnode.host.join import LISTEN_DEFAULT
from p2pnode.models.catalogue import Catalogue
from p2pnode.models.engine import GenerateRequest, Sampling
from p2pnode.models.local import LocalModel, installed
from p2pnode.models.pull import verify
from p2pnode.models.registry import EngineSpec, make_engine
from p2pnode.models.scripted_model import SCRIPTED
from p2pnode.net.ports import is_free
from p2pnode.node.datadir import DataDir, RunningNode
from p2pnode.node.invite import read_bootstrap
from p2pnode.node.keys import PeerKey
from p2pnode.protocols.adverts.messages import Advert

Verdict = Literal["ok", "warning", "problem"]
CLOCK_SKEW_MAX_S: Final = 30.0
DISK_MARGIN_BYTES: Final = 1 << 30
ENGINE_DEADLINE_S: Final = 60.0
_SECRETS: Final = ("peer.key", "receipt.key", "wallet.json", "wallet.pass")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one check found. ``code`` is stable; ``remedy`` is empty when there is nothing to do."""

    check: str
    verdict: Verdict
    code: str
    detail: str
    remedy: str = ""


def _ok(check: str, detail: str) -> Finding:
    return Finding(check=check, verdict="ok", code="ok", detail=detail)


class Doctor:
    """Examines a data dir and the network around it."""

    def __init__(self, config: NodeConfig) -> None:
        self._config = config
        self._data = DataDir(config.data_dir)
        self._running: RunningNode | None = None
        self._adverts: list[Advert] = []
        self._own: Advert | None = None
        self._now = 0.0
        self._reached = 0

    async def examine(self) -> list[Finding]:
        """All findings, in order: the data dir, then ports, model, engine, then the network."""
        self._running = self._data.running_node()
        checks: list[Callable[[], Awaitable[Finding]]] = [
            self._check_data_dir,
            self._check_keys,
            self._check_disk,
            self._check_ports,
            self._check_model,
            self._check_engine,
            self._check_peers,
            self._check_clock,
            self._check_duplicate,
        ]
        return [await check() for check in checks]

    async def _check_data_dir(self) -> Finding:
        root = self._data.root
        if not root.exists():
            return _ok("data dir", f"{root} will be made at the first start")
        if not os.access(root, os.W_OK | os.X_OK):
            return Finding(
                check="data dir",
                verdict="problem",
                code="data_dir_not_writable",
                detail=f"{root} can't be written",
                remedy="fix its owner and permissions, or choose another with --data-dir",
            )
        try:
            self._data.look_at_place()
        except ConfigError as error:
            return Finding(
                check="data dir",
                verdict="problem",
                code="data_dir_copied",
                detail=str(error).split(". ", maxsplit=1)[0],
                remedy="--moved if you moved it; delete peer.key and place.json if it is a copy",
            )
        running = f", a node runs on it (pid {self._running.pid})" if self._running is not None else ""
        return _ok("data dir", f"{root}{running}")

    async def _check_keys(self) -> Finding:
        present = [path for name in _SECRETS if (path := self._data.root / name).exists()]
        if not present:
            return _ok("keys", "none yet: the first `p2pnode join` makes them")
        exposed = [path for path in present if stat.S_IMODE(path.stat().st_mode) & 0o077]
        if exposed:
            names = ", ".join(path.name for path in exposed)
            return Finding(
                check="keys",
                verdict="problem",
                code="keys_exposed",
                detail=f"{names} can be read by others",
                remedy=f"chmod 600 {' '.join(str(path) for path in exposed)}",
            )
        try:
            key = self._peer_key()
        except (ConfigError, ValueError):
            key = None
        if key is None:
            return Finding(
                check="keys",
                verdict="problem",
                code="keys_damaged",
                detail="peer.key does not hold a key",
                remedy="restore it from your backup, or move it away to get a new identity",
            )
        return _ok("keys", f"{len(present)} files, readable by you only; peer id {key.peer_id}")

    def _peer_key(self) -> PeerKey | None:
        text = read_text_or_none(self._data.peer_key)
        return PeerKey(bytes.fromhex(text.strip())) if text is not None else None

    async def _check_disk(self) -> Finding:
        where = self._data.root
        while not where.exists():
            where = where.parent
        free = shutil.disk_usage(where).free
        if free < DISK_MARGIN_BYTES:
            return Finding(
                check="disk",
                verdict="problem",
                code="disk_low",
                detail=f"{free / 1e6:.0f} MB free at {where}",
                remedy="free some space, or choose another disk with --data-dir",
            )
        return _ok("disk", f"{free / 1e9:.1f} GB free")

    async def _check_ports(self) -> Finding:
        if self._running is not None:
            return _ok("ports", f"the running node listens on {len(self._running.multiaddrs)} addresses")
        wanted = self._config.listen or LISTEN_DEFAULT
        taken = [address for address in wanted if not is_free(address)]
        if taken and self._config.listen:
            return Finding(
                check="ports",
                verdict="problem",
                code="port_taken",
                detail=f"another program uses {', '.join(taken)}",
                remedy="stop it, or listen elsewhere with --listen",
            )
        if taken:
            return Finding(
                check="ports",
                verdict="warning",
                code="port_taken",
                detail=f"another program uses {', '.join(taken)}; `join` will take any free port",
                remedy="stop it to keep the usual port, or choose one with --listen",
            )
        return _ok("ports", f"{len(wanted)} addresses are free")

    def _model(self) -> LocalModel | None:
        name = (self._config.models or (DEFAULT_MODEL,))[0]
        if name == SCRIPTED:
            return None
        wanted = Catalogue.load().find(name)
        for model in installed(self._data.models):
            if model.model_id == wanted.model_id or model.path == wanted.path:
                return model
        return None

    async def _check_model(self) -> Finding:
        try:
            model = self._model()
            if model is None:
                return Finding(
                    check="model",
                    verdict="warning",
                    code="model_missing",
                    detail="the model is not on this machine yet",
                    remedy="`p2pnode models pull` or the next `p2pnode join` fetches it",
                )
            await verify(model, self._data.models)
        except (ConfigError, StorageError) as error:
            return Finding(
                check="model",
                verdict="problem",
                code="model_corrupt",
                detail=str(error),
                remedy=f"p2pnode models pull {(self._config.models or (DEFAULT_MODEL,))[0]}",
            )
        return _ok("model", f"{model.name}: the weights are right")

    async def _check_engine(self) -> Finding:
        model = self._model()
        if model is None:
            return _ok("engine", "not tried: there is no model yet")
        engine = make_engine(EngineSpec(n_ctx=512, slots=1, threads=1), model)
        try:
            with trio.fail_after(ENGINE_DEADLINE_S):
                info = await engine.load()
                ids = await engine.render([{"role": "user", "content": "Hello"}])
                request = GenerateRequest(
                    prompt_ids=ids, sampling=Sampling(tokens_max=4), cache_key=b"doctor"
                )
                started = trio.current_time()
                async with engine.generate(request) as events:
                    async for _ in events:
                        pass
                took = trio.current_time() - started
        except (EngineError, trio.TooSlowError) as error:
            return Finding(
                check="engine",
                verdict="problem",
                code="engine_failed",
                detail=str(error) or "no answer in time",
                remedy="see the log with --log-level debug; check memory and --threads",
            )
        finally:
            with trio.move_on_after(5, shield=True):
                await engine.aclose()
        return _ok("engine", f"{info.engine} answered in {took:.1f} s")

    async def _check_peers(self) -> Finding:
        bootstrap = tuple(one for each in self._config.bootstrap for one in read_bootstrap(each))
        try:
            async with Client(self._config, bootstrap=bootstrap) as client:
                self._adverts = await client.known_adverts()
                self._reached = len(client.node.network.connected_peers())
                if self._running is not None:
                    self._own = await client.advert_of(self._running.multiaddrs)
                self._now = client.node.wall()
        except RemoteError as error:
            return Finding(
                check="peers",
                verdict="problem",
                code="node_unreachable",
                detail=str(error),
                remedy="the node of this data dir does not answer: restart it",
            )
        except P2PNodeError as error:
            return Finding(
                check="peers",
                verdict="problem",
                code="peers_failed",
                detail=str(error),
                remedy="see the message",
            )
        others = self._reached - (self._running is not None)
        if others <= 0 and len(self._adverts) <= 1:
            return Finding(
                check="peers",
                verdict="warning",
                code="no_peers",
                detail="no other node was reached",
                remedy="name a first peer with --bootstrap (a multiaddr or an invite)",
            )
        return _ok("peers", f"{max(others, 0)} reached, {len(self._adverts)} hosts known")

    async def _check_clock(self) -> Finding:
        # A fresh advert's issue time is its host's clock; a half-life old one is at most 45 s behind.
        own = self._own.peer if self._own is not None else None
        others = [advert for advert in self._adverts if advert.peer != own]
        ahead = [advert.issued_at - self._now for advert in others]
        if not ahead:
            return _ok("clock", "not compared: no other host is known")
        if median(ahead) > CLOCK_SKEW_MAX_S:
            return Finding(
                check="clock",
                verdict="problem",
                code="clock_behind",
                detail=f"this clock is about {median(ahead):.0f} s behind the network's",
                remedy="turn on network time (e.g. systemd-timesyncd or chrony)",
            )
        return _ok("clock", f"agrees with {len(ahead)} other hosts")

    async def _check_duplicate(self) -> Finding:
        try:
            key = self._peer_key()
        except (ConfigError, ValueError):
            key = None
        if key is None:
            return _ok("identity", "none yet")
        seen = [advert for advert in self._adverts if advert.peer == key.peer_id]
        running = self._own.instance if self._own is not None else None
        strangers = [
            advert for advert in seen if advert.instance != running and (running or not self._running)
        ]
        newest = max((advert.issued_at for advert in strangers), default=0)
        reference = self._own.issued_at if self._own is not None else self._now - CLOCK_SKEW_MAX_S
        if strangers and newest > reference:
            return Finding(
                check="identity",
                verdict="problem",
                code="duplicate_identity",
                detail=f"another node speaks as {key.peer_id}",
                remedy="a data dir was copied: stop one of them, and delete peer.key in the copy",
            )
        return _ok("identity", "nobody else speaks with this peer id")
