"""A replica holds nothing of what was said, nor who said it where."""

from __future__ import annotations

from pathlib import Path

import pytest
import structlog.testing
from trio.testing import MockClock

from p2pnode.ids import ModelId, PeerId, SessionId
from tests.storage.conversations.worlds import KEYS, NOW, World, answered, asked, says, session

SECRETS = {
    "title": b"The title of it",
    "question": b"what nobody may read",
    "answer": b"and neither this answer",
    "host": b"12D3KooWHostOfTheSession",
    "model": b"\xaa\xbb" * 16,
    "session": b"\xcc\xdd" * 16,
    "voucher secret": b"\x07" * 32,
}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def files_of(folder: Path) -> list[bytes]:
    """The state among them."""
    return [path.read_bytes() for path in folder.iterdir()]


async def test_nothing_that_was_said_is_in_what_a_replica_or_a_disk_holds(
    world: World, tmp_path: Path, autojump_clock: MockClock
) -> None:
    machine = world.machine()
    with structlog.testing.capture_logs() as logs:
        async with machine.on() as archive:
            conversation = await archive.new(title=SECRETS["title"].decode(), model=ModelId(SECRETS["model"]))
            await conversation.append(asked(SECRETS["question"].decode()))
            for part in ("and neither ", "this "):
                await conversation.append(says("assistant", part))
            more = {"host": PeerId(SECRETS["host"].decode()), "session": SessionId(SECRETS["session"])}
            await conversation.append(answered("answer", **more))
            await conversation.append(answered(SECRETS["answer"].decode(), **more))
            for number in range(40):
                await conversation.append(asked(f"{SECRETS['question'].decode()} {number}"))
            await archive.save_session(session(1, amount=3))
            world.replicas[1].down = True
            await archive.flush()
            assert repr(conversation.turns).find("nobody may read") < 0
            seen = [repr(await archive.sessions()), repr(await archive.status()), repr(KEYS), repr(logs)]
    stored = [data for replica in [machine.own, *world.replicas] for data in replica.blobs().values()]
    stored += files_of(tmp_path)
    stored += [text.encode() for text in seen]
    stored += [repr(KEYS.index).encode()]
    everything = b"\n".join(stored)
    for what, secret in SECRETS.items():
        assert secret not in everything, what
        assert secret.hex().encode() not in everything or what in {"model", "session"}, what
    for secret in (KEYS.root, KEYS.index.sealing, KEYS.conversation(conversation.sid).sealing):
        assert secret not in everything
        assert secret.hex().encode() not in everything


async def test_all_that_a_replica_learns_is_sizes_in_blocks_and_pseudonyms(
    world: World, autojump_clock: MockClock
) -> None:
    async with world.machine().on() as archive:
        for text in ("a", "b" * 3000):
            conversation = await archive.new()
            await conversation.append(asked(text))
        await archive.flush()
    sizes = {len(data) for data in world.replicas[0].blobs().values()}
    assert sizes == {4096}
    assert str(int(NOW)).encode() not in b"".join(world.replicas[0].blobs().values())
