"""Whatever happens in whatever order: the disk holds what the rules in Python hold, also after a restart."""

from __future__ import annotations

import sqlite3
import tempfile
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from p2pnode.errors import StorageError
from p2pnode.protocols.s5.entries import pointer_to
from p2pnode.protocols.s5.ids import hash_of
from p2pnode.storage.local.store import LocalStore
from p2pnode.storage.memory import MemoryStore
from p2pnode.storage.rules import charge
from p2pnode.storage.store import DAY_S, OwnerKey
from tests.examples import examples
from tests.storage.store_conformance import ALICE, BLOCK, BOB, QUOTAS, Writer, blob
from tests.storage.stores import Wall, collect, files_of, local_store

CAROL = OwnerKey(b"\xca" * 32)
BLOBS = [blob(number, size) for number, size in enumerate((0, 5, BLOCK, 4 * BLOCK, 7 * BLOCK, 8 * BLOCK))]
WRITERS = [Writer(number) for number in range(4)]
_BLOB = st.integers(0, len(BLOBS) - 1)
_OWNER = st.sampled_from([ALICE, BOB])
_LEASE = st.sampled_from([0.0, 60.0, 2 * DAY_S])
STEPS = st.lists(
    st.tuples(st.just("put"), _BLOB, _OWNER, _LEASE)
    | st.tuples(st.just("pin"), _BLOB, _OWNER, _LEASE)
    | st.tuples(st.just("unpin"), _BLOB, _OWNER)
    | st.tuples(st.just("set"), st.integers(0, 3), st.integers(0, 3), st.none() | _BLOB, _OWNER)
    | st.tuples(st.just("later"), st.sampled_from([1.0, 60.0, DAY_S - 1, DAY_S, 3 * DAY_S]))
    | st.tuples(st.just("gc"))
    | st.tuples(st.just("restart")),
    max_size=30,
)


async def _apply(store: MemoryStore | LocalStore, what: str, *values: Any) -> object:
    """What came of it: a result, or the kind of error (with the entry that one shows)."""
    try:
        match what, values:
            case "put", (number, owner, lease_s):
                return await store.put(BLOBS[number], owner=owner, lease_s=lease_s)
            case "pin", (number, owner, lease_s):
                await store.pin(hash_of(BLOBS[number]), owner=owner, lease_s=lease_s)
            case "unpin", (number, owner):
                await store.unpin(hash_of(BLOBS[number]), owner=owner)
            case "set", (writer, revision, number, owner):
                data = b"" if number is None else pointer_to(hash_of(BLOBS[number]))
                await store.set(WRITERS[writer].entry(revision, data), owner=owner)
            case _:
                raise AssertionError(what)
    except StorageError as error:
        return type(error), getattr(error, "current", None)
    return None


async def _collected(store: MemoryStore | LocalStore) -> int:
    if isinstance(store, LocalStore):
        steps = await collect(store, 3)
        assert sum(step.files_removed + step.blobs_lost for step in steps) == 0
        return sum(step.blobs_swept for step in steps)
    swept = 0
    while True:
        step = store.gc_step(3)
        swept += step.blobs_swept
        if not step.due:
            return swept


async def _look(store: MemoryStore | LocalStore) -> object:
    sizes = [await store.size(hash_of(data)) for data in BLOBS]
    for data, size in zip(BLOBS, sizes, strict=True):
        if size is not None:
            assert await store.read(hash_of(data)) == data
    return sizes, [await store.get(writer.key) for writer in WRITERS]


async def _check_counts(store: LocalStore) -> None:
    """What triggers counted is what there is."""
    with closing(sqlite3.connect(store.root / "index.sqlite")) as db:
        await _compare_counts(db, store)


async def _compare_counts(db: sqlite3.Connection, store: LocalStore) -> None:
    for count, table in (
        ("blobs, bytes, charged", "COUNT(*), TOTAL(size), TOTAL(charge) FROM blobs"),
        ("leases", "COUNT(*) FROM leases"),
        ("keys", "COUNT(*) FROM entries"),
    ):
        said = tuple(db.execute(f"SELECT {count} FROM totals").fetchone())
        assert said == tuple(db.execute(f"SELECT {table}").fetchone())
    for each in await store.owners():
        leases, leased = db.execute(
            "SELECT COUNT(*), TOTAL(charge) FROM leases JOIN blobs USING (hash) WHERE owner = ?",
            (each.owner,),
        ).fetchone()
        free = db.execute(
            "SELECT TOTAL(charge) FROM blobs WHERE leases = 0 AND last = ?", (each.owner,)
        ).fetchone()[0]
        assert (each.leases, each.charged) == (leases, leased + free)
        assert each.keys + each.leases + each.charged > 0
        assert each.charged <= QUOTAS.owner_bytes
    assert db.execute("SELECT COUNT(*) FROM blobs WHERE (leases = 0) != (last != x'')").fetchone()[0] == 0
    wrong = db.execute(
        "SELECT COUNT(*) FROM leases WHERE pointed != "
        "(SELECT COUNT(*) FROM entries WHERE target = leases.hash AND owner = leases.owner)"
    ).fetchone()
    assert wrong[0] == 0


async def _let_a_newcomer_in(store: LocalStore, model: MemoryStore, wall: Wall) -> None:
    """When all leases are over, and only entries hold anything, there is room for whatever else fits."""
    wall.now += 3 * DAY_S
    held = sum(
        charge(info.id.size) for info in await store.blobs() if any(lease.pointed for lease in info.leases)
    )
    size = min(QUOTAS.node_bytes - held, QUOTAS.blob_bytes)
    for each in (store, model):
        await each.put(blob(99, size), owner=CAROL)
    assert await _look(store) == await _look(model)


async def _compare(root: Path, steps: list[tuple[Any, ...]]) -> None:
    wall = Wall()
    model = MemoryStore(wall, QUOTAS)
    with ExitStack() as stack:
        store = stack.enter_context(local_store(root, wall, in_thread=False))
        for what, *values in steps:
            match what:
                case "later":
                    wall.now += values[0]
                case "gc":
                    assert await _collected(store) == await _collected(model)
                case "restart":
                    stack.close()
                    store = stack.enter_context(local_store(root, wall, in_thread=False))
                case _:
                    assert await _apply(store, what, *values) == await _apply(model, what, *values)
            assert await _look(store) == await _look(model)
            assert all(model.charged(owner) <= QUOTAS.owner_bytes for owner in (ALICE, BOB))
        await _check_counts(store)
        await _let_a_newcomer_in(store, model, wall)
        assert files_of(root) == {each.id.hash.hex() for each in await store.blobs()}


@settings(examples(100), suppress_health_check=[HealthCheck.too_slow])
@given(STEPS)
def test_the_disk_and_the_model_never_differ(steps: list[tuple[Any, ...]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        trio.run(_compare, Path(folder) / "store", steps)
