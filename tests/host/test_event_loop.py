"""While a node serves, its tasks wait for no disk: what syncs, commits or opens a database is in a thread."""

from __future__ import annotations

import os
import sqlite3
import threading
import traceback
from pathlib import Path
from typing import Any

import pytest
import trio

from p2pnode.client.chat_options import ChatOptions
from p2pnode.client.client import Client
from p2pnode.config import NodeConfig
from p2pnode.host.join import Join, JoinOptions
from p2pnode.limits import Limits
from p2pnode.models.manifest import SCRIPTED
from p2pnode.node.datadir import DataDir
from p2pnode.protocols.inference.messages import SamplingParams
from p2pnode.storage.key_file import save_storage_key
from tests.client.machines import ENTROPY
from tests.net.support import eventually

LISTEN = ("/ip4/127.0.0.1/tcp/0",)
LIMITS = Limits(peers_interval_s=0.05, announce_soon_s=0.05, store_gc_settle_s=0.0, store_gc_interval_s=0.1)


class Watch:
    """Notes which disk work was done in the thread of the event loop, and how often it was done in others."""

    def __init__(self) -> None:
        self.loop: int | None = None
        self.in_loop: list[str] = []
        self.elsewhere = 0

    def note(self, what: str) -> None:
        if threading.get_ident() != self.loop:
            self.elsewhere += 1
            return
        frames = [each for each in traceback.extract_stack() if "p2pnode" in each.filename]
        calls = " < ".join(f"{Path(each.filename).name}:{each.name}" for each in reversed(frames[-8:]))
        self.in_loop.append(f"{what}: {calls}")


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    made, fsync, connect = Watch(), os.fsync, sqlite3.connect

    class Connection(sqlite3.Connection):
        def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
            if sql.startswith(("COMMIT", "BEGIN IMMEDIATE")):
                made.note(sql)
            return super().execute(sql, *values)

        def close(self) -> None:  # the last one of a file writes its log back
            made.note("close")
            super().close()

    def synced(handle: int) -> None:
        made.note("fsync")
        fsync(handle)

    def connected(*values: Any, **named: Any) -> Connection:
        made.note("connect")
        return connect(*values, factory=Connection, **named)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(sqlite3, "connect", connected)
    return made


async def test_a_host_and_a_client_at_work_wait_for_no_disk(tmp_path: Path, watch: Watch) -> None:
    ready: dict[str, object] = {}
    is_ready = trio.Event()

    def report(name: str, fields: dict[str, object]) -> None:
        if name == "listening":
            watch.loop = threading.get_ident()
        if name == "ready":
            ready.update(fields)
            is_ready.set()

    config = NodeConfig(data_dir=tmp_path / "host", listen=LISTEN, mdns=False, models=(SCRIPTED,))
    join = Join(config, JoinOptions(ready_file=tmp_path / "ready", limits=LIMITS), report)
    data = DataDir(tmp_path / "client")
    data.prepare()
    save_storage_key(data, ENTROPY)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(join.run)
        await is_ready.wait()
        first = tuple(str(each) for each in ready["multiaddrs"])  # type: ignore[attr-defined]
        async with Client(NodeConfig(data_dir=data.root, mdns=False), bootstrap=first) as client:
            conversation = await client.new_conversation(
                ChatOptions(model=SCRIPTED, sampling=SamplingParams(tokens_max=8, temperature=0))
            )
            async with conversation.ask("hello") as answer:
                assert "".join([piece async for piece in answer])
        rounds = watch.elsewhere + 4  # a collection begins with a transaction
        await eventually(lambda: watch.elsewhere >= rounds)
        join.stop()
    assert watch.in_loop == []
    assert watch.elsewhere > 0
