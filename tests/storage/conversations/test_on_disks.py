"""The same on real disks, with threads and syncs, in real time: our own store and three others."""

from __future__ import annotations

import json
import secrets
import time
from contextlib import ExitStack
from pathlib import Path

import trio

from p2pnode.storage.conversations.archive import Archive
from p2pnode.storage.conversations.export import exported
from p2pnode.storage.conversations.replication_state import ReplicationState
from p2pnode.storage.local.store import LocalStore
from p2pnode.storage.rules import Quotas
from p2pnode.storage.store import Place, Replica
from tests.storage.conversations.worlds import KEYS, answered, asked, session, texts


def replica(stack: ExitStack, root: Path, name: str, place: Place) -> Replica:
    store = LocalStore.open(root / name, wall=time.time, quotas=Quotas())
    stack.callback(store.close)
    return Replica(name, store, store, place)


async def test_a_conversation_is_written_kept_and_recovered_on_real_disks(tmp_path: Path) -> None:
    with ExitStack() as stack:
        others = [replica(stack, tmp_path, f"replica {at}", "other") for at in range(3)]
        own = replica(stack, tmp_path, "own", "own")
        state = ReplicationState(tmp_path / "own" / "outbox.sqlite", secrets.token_bytes)
        stack.callback(state.close)
        archive = Archive(KEYS, own, lambda: others, state=state, draw=secrets.token_bytes, wall=time.time)
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                await nursery.start(archive.run)
                conversation = await archive.new(title="Numbers")
                for number in range(20):
                    await conversation.append(asked(f"{number}?"), answered(f"{number}!"))
                await archive.save_session(session(1, amount=3))
                await archive.wait_kept(conversation.sid)
                await archive.wait_kept()
                nursery.cancel_scope.cancel()
        assert (tmp_path / "own" / "outbox.sqlite").stat().st_mode & 0o777 == 0o600
        whole = json.loads(json.dumps(await exported(conversation)))
        assert [turn["text"] for turn in whole["turns"][-2:]] == ["19?", "19!"]
        assert (whole["missing_turns"], whole["losses"], whole["branches"]) == ([], [], [])
        fresh = ReplicationState(tmp_path / "fresh.sqlite", secrets.token_bytes)
        stack.callback(fresh.close)
        new_own = replica(stack, tmp_path, "new", "own")
        again = Archive(
            KEYS, new_own, lambda: others[1:], state=fresh, draw=secrets.token_bytes, wall=time.time
        )
        assert (await again.recover()).sessions == (session(1, amount=3),)
        assert texts((await again.open(conversation.sid)).turns) == [
            f"{number}{mark}" for number in range(20) for mark in "?!"
        ]
