"""Signed lists of models between machines: published to places that store, and taken from them.

A place is this machine's own store, a peer that stores (``/p2pnode/blob/1``), or an S5 node over HTTP: the
same seam as for conversations. No place is believed: what follows from the pointers that they show is decided
in ``models/subscriptions.py``, and the bytes of a list have the hash that its curator signed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Final, NoReturn, TypeAlias

import structlog
import trio

from p2pnode.config import NodeConfig
from p2pnode.errors import ConfigError, P2PNodeError
from p2pnode.files import off_the_loop
from p2pnode.limits import Limits
from p2pnode.models.model_list import LIST_BYTES_MAX, ModelList, list_key_text
from p2pnode.models.subscriptions import (
    WITHDRAWN,
    NotTaken,
    Subscription,
    Subscriptions,
    Take,
    Unchanged,
    judge,
)
from p2pnode.node.datadir import DataDir
from p2pnode.node.node import Node
from p2pnode.protocols.s5.entries import Entry, EntryKey, pointer_to
from p2pnode.protocols.s5.ids import BlobHash, hash_of
from p2pnode.storage.keys import ListKey, StorageKeys
from p2pnode.storage.node_store import open_store
from p2pnode.storage.peer_store import OwnerSigner
from p2pnode.storage.replication.replicas import ReplicaFinder
from p2pnode.storage.store import NoBlobError, OwnerKey, Replica, StaleEntryError

OWN: Final = "this machine"
_SLOW: Final = "it did not answer in time"

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Taken:
    """A list that was not here before, or a newer revision of one that was."""

    subscription: Subscription
    found: ModelList


@dataclass(frozen=True, slots=True)
class Refused:
    """Nothing was taken, and what was here stays. ``hostile``: somebody did what no honest one does."""

    why: str
    hostile: bool = False


Outcome: TypeAlias = Taken | Unchanged | Refused


@dataclass(slots=True)
class Shown:
    """What places showed of one list: pointers by place, and why each other place showed none."""

    pointers: dict[str, Entry] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


# ---- places


@asynccontextmanager
async def list_places(
    config: NodeConfig,
    node: Node,
    key: EntryKey,
    *,
    own_store: bool = False,
    owner: OwnerKey | None = None,
    sign: OwnerSigner | None = None,
    in_thread: bool = True,
) -> AsyncIterator[list[Replica]]:
    """The places where the list of ``key`` may be; with ``owner``, those that would take its writes now.

    This machine's store comes first where it has one, with ``own_store`` in any case; then the S5 node of the
    configuration, then peers. Peers are dialled under their own deadlines. Raises ``StorageError`` where the
    machine's own store can't be opened.
    """
    data = DataDir(config.data_dir)
    running = data.running_node()
    finder = ReplicaFinder(
        node,
        stores=config.stores,
        sign=sign or _signs_nothing,
        own=running.peer_id if running is not None else None,
    )
    async with AsyncExitStack() as stack:
        stack.callback(finder.close)
        places: list[Replica] = []
        if own_store or data.store.is_dir():
            opened = open_store(config, wall=node.wall, in_thread=in_thread)
            store = await stack.enter_async_context(opened)
            places.append(Replica(OWN, store, store, "own"))
        if config.s5_url:
            from p2pnode.storage.s5.client import open_s5

            server = await stack.enter_async_context(open_s5(config.s5_url))
            places.append(Replica(config.s5_url, server, server))
        found = await (finder.find(key) if owner is None else finder.candidates(key, owner=owner))
        for peer, why in found.failed.items():
            log.info("models.list_place_failed", peer=peer, reason=why)
        # The node that runs on this data dir has the store that was opened: it is no other place.
        yield [*places, *(each for each in found.found if each.place != "own")]


async def pointers_at(places: Sequence[Replica], key: EntryKey, limits: Limits) -> Shown:
    """The pointer of the list of ``key`` at each place; all are asked at once."""
    shown = Shown()

    async def ask(place: Replica) -> None:
        shown.failures[place.name] = _SLOW
        with trio.move_on_after(limits.replica_ask_s):
            try:
                pointer = await place.registry.get(key)
            except P2PNodeError as error:
                shown.failures[place.name] = str(error)
                return
            shown.failures[place.name] = "it does not have this list"
            if pointer is not None:
                del shown.failures[place.name]
                shown.pointers[place.name] = pointer

    async with trio.open_nursery() as nursery:
        for place in places:
            nursery.start_soon(ask, place)
    return shown


# ---- taking


async def take_list(
    places: Sequence[Replica],
    subscriptions: Subscriptions,
    key: EntryKey,
    *,
    now: int,
    limits: Limits,
    name: str = "",
    in_thread: bool = True,
) -> Outcome:
    """Bring the list of ``key`` to the newest revision that any place shows. ``name``: see ``take``.

    Raises ``ConfigError`` for a name that is taken or no name, and ``StorageError`` for our own disk.
    """
    on_disk = partial(off_the_loop, in_thread=in_thread)
    known = await on_disk(partial(subscriptions.pointer_of, key))
    shown = await pointers_at(places, key, limits)
    pointer: Entry | None
    verdict = judge(key, known, shown.pointers.values())
    match verdict:
        case NotTaken(why=why, hostile=hostile):
            reasons = "; ".join(f"{place}: {reason}" for place, reason in sorted(shown.failures.items()))
            return Refused(f"{why} ({reasons})" if reasons and not hostile else why, hostile=hostile)
        case Unchanged():
            if await on_disk(partial(_is_whole, subscriptions, key)) and not name:
                await on_disk(partial(subscriptions.note_asked, key, now))
                return verdict
            pointer = known
        case Take(pointer=pointer):
            pass
    assert pointer is not None  # noqa: S101 - nothing has changed of what is known
    if pointer.points_at is None:
        return Refused(f"revision {pointer.revision} of it names no document", hostile=True)
    if pointer.points_at == WITHDRAWN:
        return Refused(f"its curator has withdrawn it, with revision {pointer.revision}")
    holders = [place for place in places if shown.pointers.get(place.name) == pointer]
    others = [place for place in places if place not in holders]
    try:
        blob = await fetch_list([*holders, *others], pointer.points_at, limits)
    except NoBlobError as error:
        return Refused(f"revision {pointer.revision} of it can't be had: {error}")
    try:
        taken, found = await on_disk(partial(subscriptions.take, pointer, blob, now, name=name))
    except ConfigError as error:
        return Refused(str(error), hostile=True)
    return Taken(taken, found)


async def fetch_list(places: Sequence[Replica], digest: BlobHash, limits: Limits) -> bytes:
    """The bytes with this hash, from the first place that has them. Raises ``NoBlobError`` with what each
    said."""
    reasons: dict[str, str] = {}
    for place in places:
        reasons[place.name] = _SLOW
        with trio.move_on_after(limits.list_read_s):
            try:
                size = await place.blobs.size(digest)
                if size is None:
                    reasons[place.name] = "it does not have it"
                    continue
                if size > LIST_BYTES_MAX:  # its word only: what it sends is bounded by its seam
                    reasons[place.name] = (
                        f"it has {size} bytes, and a list of models has at most {LIST_BYTES_MAX}"
                    )
                    continue
                blob = await place.blobs.read(digest)
            except P2PNodeError as error:
                reasons[place.name] = str(error)
                continue
            if hash_of(blob) == digest:
                return blob
            reasons[place.name] = "its bytes are not those that the curator signed"
    raise NoBlobError("; ".join(f"{place}: {reason}" for place, reason in reasons.items()) or "nobody has it")


def _is_whole(subscriptions: Subscriptions, key: EntryKey) -> bool:
    """Whether the list is subscribed, and its file is what it was."""
    for each in subscriptions:
        if each.key == key:
            try:
                subscriptions.blob(each)
            except ConfigError:
                return False
            return True
    return False


# ---- publishing


@dataclass(frozen=True, slots=True)
class Published:
    """The newest revision of a list of this user that any place has.

    ``blob``: its document; None where it is withdrawn, or can't be had.
    """

    pointer: Entry | None
    blob: bytes | None

    @property
    def revision(self) -> int:
        """0 where nothing was published."""
        return self.pointer.revision if self.pointer is not None else 0


async def published(config: NodeConfig, node: Node, key: EntryKey) -> Published:
    """What was published so far under a key of this user."""
    async with list_places(config, node, key, own_store=True) as places:
        shown = await pointers_at(places, key, node.limits)
        ours = [entry for entry in shown.pointers.values() if entry.key == key and entry.holds()]
        newest = max(ours, key=lambda entry: entry.revision, default=None)
        if newest is None or newest.points_at is None or newest.points_at == WITHDRAWN:
            return Published(newest, None)
        try:
            return Published(newest, await fetch_list(places, newest.points_at, node.limits))
        except NoBlobError:
            return Published(newest, None)


async def publish_revision(
    config: NodeConfig, node: Node, keys: StorageKeys, key: ListKey, *, revision: int, blob: bytes | None
) -> tuple[Entry, dict[str, str]]:
    """Sign a revision and put it at each place of its key; ``blob`` None withdraws the list.

    Returns its pointer, and what :func:`publish_list` says of each place.
    """

    def sign(_owner: bytes, digest: bytes) -> bytes:
        return keys.owner_signing.sign(digest)

    pointer = key.entry(revision, pointer_to(WITHDRAWN if blob is None else hash_of(blob)))
    async with list_places(
        config, node, key.entry_key, own_store=True, owner=keys.owner, sign=sign
    ) as places:
        return pointer, await publish_list(places, pointer, blob, owner=keys.owner, limits=node.limits)


async def publish_list(
    places: Sequence[Replica], pointer: Entry, blob: bytes | None, *, owner: OwnerKey, limits: Limits
) -> dict[str, str]:
    """Put a list at each place, its bytes before its pointer. ``blob``: None for one that is withdrawn.

    By place, why it has not taken it; "" for those that have it.
    """
    outcomes: dict[str, str] = {}

    async def put(place: Replica) -> None:
        outcomes[place.name] = _SLOW
        with trio.move_on_after(limits.list_read_s):
            outcomes[place.name] = await _put(place, pointer, blob, owner)

    async with trio.open_nursery() as nursery:
        for place in places:
            nursery.start_soon(put, place)
    return outcomes


async def _put(place: Replica, pointer: Entry, blob: bytes | None, owner: OwnerKey) -> str:
    try:
        if blob is not None:
            await place.blobs.put(blob, owner=owner, expected=hash_of(blob))
        await place.registry.set(pointer, owner=owner)
    except StaleEntryError as error:
        if (error.current.revision, error.current.data) == (pointer.revision, pointer.data):
            return ""
        return f"it has revision {error.current.revision} of this list already"
    except P2PNodeError as error:
        return str(error)
    return ""


# ---- in a node that runs anyway


async def keep_lists_fresh(node: Node, config: NodeConfig, *, in_thread: bool = True) -> None:
    """Ask for a newer revision of each subscribed list once a day, until cancelled.

    Only a node that runs anyway does so: a command that asks a question tells nobody which lists its user
    has. What is refused is logged, and what was here stays.
    """
    limits, tried = node.limits, dict[EntryKey, float]()
    subscriptions = Subscriptions(DataDir(config.data_dir).models)
    while True:
        await trio.sleep(limits.lists_check_s)
        now = int(node.wall())
        try:
            due = await off_the_loop(partial(_due, subscriptions, now, limits), in_thread=in_thread)
        except ConfigError as error:
            log.warning("models.lists_unreadable", reason=str(error))
            continue
        for each in due:
            if trio.current_time() - tried.get(each.key, -limits.lists_refresh_s) < limits.lists_refresh_s:
                continue
            tried[each.key] = trio.current_time()
            await _refresh(node, config, subscriptions, each, now, in_thread=in_thread)


async def _refresh(
    node: Node,
    config: NodeConfig,
    subscriptions: Subscriptions,
    each: Subscription,
    now: int,
    *,
    in_thread: bool,
) -> None:
    outcome: Outcome = Refused(_SLOW)
    with trio.move_on_after(node.limits.list_refresh_deadline_s):
        try:
            async with list_places(config, node, each.key, in_thread=in_thread) as places:
                outcome = await take_list(
                    places, subscriptions, each.key, now=now, limits=node.limits, in_thread=in_thread
                )
        except P2PNodeError as error:
            outcome = Refused(str(error))
    key = list_key_text(each.key)
    match outcome:
        case Taken(subscription=taken):
            log.info("models.list_taken", name=taken.name, key=key, revision=taken.pointer.revision)
        case Unchanged():
            log.info("models.list_unchanged", name=each.name, key=key)
        case Refused(why=why, hostile=hostile):
            say = log.warning if hostile else log.info
            say("models.list_not_taken", name=each.name, key=key, reason=why)


def _due(subscriptions: Subscriptions, now: int, limits: Limits) -> list[Subscription]:
    return [each for each in subscriptions if not 0 <= now - each.asked_at < limits.lists_refresh_s]


def _signs_nothing(_owner: bytes, _digest: bytes) -> NoReturn:
    raise ConfigError("nothing is written where a list is only read")
