"""Conversations on other nodes' disks: when they count as kept, and what is there after a lost machine.

Each user has one conversation. What is decided is decided by the node's own code: which replicas are written
to, and in which order (``replication/choice.py``), when a pointer may move and what counts as kept
(``replication/quorum.py``), who is left alone after a failure (``Backoffs``), when leases are renewed
(``conversations/schedule.py``). Modelled is what a disk keeps: for each user a revision, the turns that it
holds, and a lease. The DHT is taken to know all who have an entry. There is no sealing, no compaction, no
quota, and no host that keeps what it serves; bytes are counted, and take no time.

``Conversations`` are the parameters.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final, Literal, TypeAlias

from p2pnode.bounded import Backoff, Backoffs
from p2pnode.ids import PeerId
from p2pnode.limits import DEFAULT_LIMITS
from p2pnode.protocols.s5.entries import Entry, EntryKey
from p2pnode.simulations.invariants import Watch
from p2pnode.simulations.parameters import require_not_negative, require_positive, require_shares
from p2pnode.simulations.recorder import Recorder
from p2pnode.simulations.world import Link, Node, World
from p2pnode.storage.conversations.schedule import to_renew
from p2pnode.storage.replication.choice import (
    in_order_of_preference,
    nearest,
    ours_first,
    to_write_to,
    worth_a_write,
)
from p2pnode.storage.replication.quorum import Seen, WriteRound, counted
from p2pnode.storage.store import DAY_S, GRACE_S, LEASE_S, Place

PROTOCOL: Final = "blob"
_LIMITS: Final = DEFAULT_LIMITS
_TRY_AGAIN_S: Final = 3600.0
"""A user who finds nobody with the conversation looks again after this."""
_SAMPLES: Final = 240
"""Of how many copies there are, in a run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversations:
    """Who writes, and what is lost. Times are means of exponential distributions; 0: never."""

    users_share: float = 0.2
    """Of all nodes: these write. The others store."""
    turns_per_day: float = 10.0
    turn_bytes: int = 4000
    contacts: int = 20
    """Storing nodes that a user is connected to. Those that are down are replaced when it looks for them."""
    machine_days: float = 0.0
    """After so many a user loses the machine, with its disk."""
    away_days: float = 1.0
    """After so many the user is back, on another machine, with the twelve words."""
    disk_days: float = 0.0
    """After so many a storing node loses its disk."""

    def __post_init__(self) -> None:
        require_shares(self, "users_share")
        require_positive(self, "turns_per_day", "turn_bytes", "contacts", "away_days")
        require_not_negative(self, "machine_days", "disk_days")

    def users(self, nodes: int) -> int:
        """How many of so many nodes write."""
        return round(self.users_share * nodes)


@dataclass(frozen=True, slots=True)
class _Copy:
    """What one disk has of one conversation. ``turns`` has a bit for each turn."""

    entry: Entry
    turns: int
    leased_until: float


@dataclass(frozen=True, slots=True)
class _Disk:
    """A replica, as far as it is chosen and counted: by its name, which is its peer's id, and place."""

    name: str
    place: Place = "other"


_OWN: Final = _Disk("this machine", "own")


@dataclass(frozen=True, slots=True)
class _Question:
    """``look``: what is there? ``put``: take these turns. ``point``: this entry is the newest now.

    ``renew``: renew the lease, too.
    """

    does: Literal["look", "put", "point"]
    key: EntryKey
    entry: Entry | None = None
    turns: int = 0
    renew: bool = False


@dataclass(slots=True)
class _User:
    """One user, who has one conversation. Sets of turns are numbers with a bit for each."""

    node: Node
    key: EntryKey
    draw: Random
    contacts: list[Node] = field(default_factory=list)
    machine: int = 0
    """Counts machines: no later one goes on with what an earlier one began."""
    is_away: bool = False
    """Without a machine, or on a new one that has not found the conversation yet."""
    revision: int = 0
    turns: int = 0
    """Those that this machine has."""
    kept_revision: int = 0
    kept: int = 0
    """Those that a quorum had once, and that were not found lost since."""
    lost: int = 0
    """Those that a quorum had once, and that a new machine did not find."""
    said: int = 0
    """How many turns there ever were."""
    waiting: dict[int, float] = field(default_factory=dict)
    """When the turns were said that no quorum has."""
    some_lack: bool = False
    """Whether a replica did not get the last write."""
    is_writing: bool = False
    is_waiting: bool = False
    """Whether it waits to try again."""
    renewed_at: float = 0.0
    failing: Backoffs[str] = field(
        default_factory=lambda: Backoffs(_LIMITS.replica_backoff_s, _LIMITS.replica_backoff_max_s)
    )
    backoff: Backoff = field(
        default_factory=lambda: Backoff(_LIMITS.archive_retry_s, _LIMITS.archive_retry_max_s)
    )

    def entry(self) -> Entry:
        """What points at all its turns. It isn't signed: nobody here forges one."""
        turns = self.turns.to_bytes(self.turns.bit_length() // 8 + 1, "big")
        digest = hashlib.blake2b(turns, digest_size=32).digest()
        return Entry(key=self.key, revision=self.revision, data=digest, signature=b"")


_Found: TypeAlias = dict[PeerId, "_Copy | None"]
"""Disks that answered, and what they have."""


class ConversationService:
    """Users and disks of a world; a ``Service`` of it. Add the nodes, then :meth:`begin`.

    Only nodes that store may crash: a user's machine is lost, or there.
    """

    def __init__(self, world: World, parameters: Conversations, recorder: Recorder | None = None) -> None:
        self.world, self._parameters, self._recorder = world, parameters, recorder
        self._draw = world.draws("disks")
        self._storing: list[Node] = []
        self._disks: dict[PeerId, dict[EntryKey, _Copy]] = {}
        """Of all who store. A crash leaves them as they are."""
        self._taken: Counter[int] = Counter()
        """Bytes, by number of a node that stores."""
        self._users: dict[int, _User] = {}
        self._holders: dict[EntryKey, dict[PeerId, None]] = {}
        """Who was given an entry, and has not lost its disk since: what the DHT knows."""
        self._watch = Watch()
        world.services.append(self)

    def begin(self, users: Sequence[Node], storing: Sequence[Node], duration_s: float) -> None:
        """Let users write, and disks and machines be lost, from now on."""
        parameters, after = self._parameters, self.world.loop.after
        self._storing = list(storing)
        for node in storing:
            self._disks[node.peer] = {}
            self._serve(node)
            if parameters.disk_days:
                after(_days(parameters.disk_days, self._draw), self._lose_disk, node)
        for node in users:
            key = EntryKey(hashlib.sha256(b"conversation" + node.public_key).digest())
            user = _User(node, key, self.world.draws("conversation", node.number))
            self._users[node.number], self._holders[key] = user, {}
            after(_days(1 / parameters.turns_per_day, user.draw), self._say, user)
            after(_LIMITS.renew_interval_s, self._renew, user)
            if parameters.machine_days:
                after(_days(parameters.machine_days, user.draw), self._lose_machine, user)
        after(duration_s / _SAMPLES, self._sample, duration_s / _SAMPLES)

    def columns_of(self, node: Node) -> dict[str, Any]:
        """What the table of nodes says of one."""
        user = self._users.get(node.number)
        if user is None:
            return {"role": "store", "bytes_received": self._taken[node.number]}
        return {"role": "user", "turns": user.said, "turns_lost": (user.lost & ~user.turns).bit_count()}

    # ---- the world

    def started(self, node: Node) -> None:
        """A disk answers again."""
        if node.peer in self._disks:
            self._serve(node)

    def stopped(self, node: Node) -> None:
        """Its disk stays as it is."""

    def connected(self, link: Link) -> None:
        """Most links are for one question: whom a user is connected to is kept beside them."""

    def disconnected(self, link: Link) -> None:
        """The same."""

    # ---- disks

    def _serve(self, node: Node) -> None:
        node.answers[PROTOCOL] = lambda _asker, question: self._answer(node, question)

    def _answer(self, node: Node, question: _Question) -> _Copy | str:
        """What a disk has; ``"empty"``, ``"done"``, or the copy that the question's entry can't replace."""
        copies, key, now = self._disks[node.peer], question.key, self.world.now
        copy = copies.get(key)
        if copy is not None and not self._is_kept(copy):
            copy = None
            del copies[key]
        if question.does == "look" or question.entry is None:
            return copy or "empty"
        had = copy.turns if copy is not None else 0
        if copy is not None and (had & ~question.turns or copy.entry.replaces(question.entry)):
            return copy  # another machine of the user wrote it
        until = copy.leased_until if copy is not None and not question.renew else now + LEASE_S
        if question.does == "point":
            copies[key] = _Copy(question.entry, question.turns, until)
            self._holders[key][node.peer] = None
        else:
            self._taken[node.number] += (question.turns & ~had).bit_count() * self._parameters.turn_bytes
        return "done"

    def _lose_disk(self, node: Node) -> None:
        self.world.loop.after(_days(self._parameters.disk_days, self._draw), self._lose_disk, node)
        for key in self._disks[node.peer]:
            self._holders[key].pop(node.peer, None)
        self._disks[node.peer] = {}

    def _copies(self, user: _User) -> list[_Copy]:
        """On all disks, also on those of nodes that are down."""
        found = (self._disks[peer].get(user.key) for peer in self._holders[user.key])
        return [copy for copy in found if copy is not None and self._is_kept(copy)]

    def _is_kept(self, copy: _Copy) -> bool:
        """Whether somebody leases it. What nobody does is swept."""
        return self.world.now <= copy.leased_until + GRACE_S

    def _sample(self, every_s: float) -> None:
        self.world.loop.after(every_s, self._sample, every_s)
        written = [user for user in self._users.values() if user.kept]
        if self._recorder is None or not written:
            return
        copies = [[not user.kept & ~each.turns for each in self._copies(user)] for user in written]
        for name, found in (
            ("copies_of_a_conversation", sum(map(sum, copies))),
            ("conversations_on_some_disk", sum(map(any, copies))),
        ):
            self._recorder.row("samples", at_s=self.world.now, name=name, value=found / len(written))

    # ---- writing

    def _say(self, user: _User) -> None:
        wait_s = _days(1 / self._parameters.turns_per_day, user.draw)
        self.world.loop.after(wait_s, self._say, user)
        if not user.is_away:
            user.turns |= 1 << user.said
            user.waiting[user.said] = self.world.now
            user.said += 1
            user.revision += 1
            self._write(user)

    def _renew(self, user: _User) -> None:
        self.world.loop.after(_LIMITS.renew_interval_s, self._renew, user)
        if user.kept_revision and to_renew({user.key: user.renewed_at}, self.world.now):
            self._write(user, renew=True)

    def _write(self, user: _User, *, renew: bool = False) -> None:
        lags = user.revision != user.kept_revision
        if not user.is_writing and not user.is_away and (lags or user.some_lack or renew):
            user.is_writing = True
            self.find(user, lambda found: _Write(self, user, found, renew=renew).begin())

    def reached(self, user: _User, write: WriteRound, entry: Entry, turns: int, *, renewed: bool) -> None:
        """A quorum has ``entry``, with these turns."""
        world, recorder = self.world, self._recorder
        acks = write.outcome().acks
        having = [name for name in acks & write.counted.names if self._has(name, entry, turns)]
        self._watch.now = world.now
        self._watch.require(
            len(having) >= write.counted.quorum,
            lambda: (
                f"revision {entry.revision} of user {user.node.number} is on {len(having)} disks, not on "
                f"{write.counted.quorum}"
            ),
        )
        if renewed or not user.kept_revision:
            user.renewed_at = world.now
        user.kept |= turns
        user.kept_revision = max(user.kept_revision, entry.revision)
        for number in [each for each in user.waiting if turns >> each & 1]:
            said_s = user.waiting.pop(number)
            if recorder is not None:
                recorder.row(
                    "kept", at_s=said_s, node=user.node.number, seconds=world.now - said_s,
                    weak=bool(write.counted.weak),
                )  # fmt: skip
                recorder.event(world.now, user.node.number, "kept", number)

    def _has(self, name: str, entry: Entry, turns: int) -> bool:
        if name == _OWN.name:
            return True
        copy = self._disks[PeerId(name)].get(entry.key)
        return copy is not None and copy.entry.revision >= entry.revision and not turns & ~copy.turns

    def over(self, user: _User, write: WriteRound, theirs: Sequence[_Copy]) -> None:
        """A write is over. ``theirs``: copies of an earlier machine that it met, which are merged."""
        user.is_writing = False
        user.some_lack = bool(write.failures)
        for copy in theirs:
            user.turns |= copy.turns
            user.revision = max(user.revision, copy.entry.revision) + 1
        if user.revision == user.kept_revision:
            user.backoff.reset()
        elif not user.is_waiting:
            user.is_waiting = True
            self.world.loop.after(user.backoff.next_s(), self._try_again, user)

    def _try_again(self, user: _User) -> None:
        user.is_waiting = False
        self._write(user)

    # ---- asking

    def find(self, user: _User, then: Callable[[_Found], None]) -> None:
        """Ask all who may have the conversation, and nodes that are near. ``then`` hears who answered."""
        contacts = [node for node in user.contacts if node.is_up]
        # One that is drawn and down is replaced the next time.
        contacts.extend(user.draw.choices(self._storing, k=self._parameters.contacts - len(contacts)))
        user.contacts = contacts
        near = nearest(user.key, {node.peer for node in contacts}, _LIMITS.replicas_max)
        asked = dict.fromkeys([*self._holders[user.key], *near])
        found: _Found = {}
        left = len(asked)

        def heard(peer: PeerId, answer: _Copy | str | None) -> None:
            nonlocal left
            left -= 1
            if answer is not None:
                found[peer] = answer if isinstance(answer, _Copy) else None
            if not left:
                then(found)

        for peer in asked:
            self.ask(user, peer, _Question("look", user.key), heard, _LIMITS.replica_ask_s)

    def ask(
        self,
        user: _User,
        peer: PeerId,
        question: _Question,
        then: Callable[[PeerId, _Copy | str | None], None],
        deadline_s: float,
    ) -> None:
        """Ask one disk; ``then`` hears None where it doesn't answer in time, and nothing on a new machine."""
        machine = user.machine

        def heard(answer: _Copy | str | None) -> None:
            if user.machine == machine:
                then(peer, answer)

        other = self.world.by_peer[peer]
        self.world.ask(user.node, other, PROTOCOL, question, heard, deadline_s=deadline_s)

    # ---- losing a machine

    def _lose_machine(self, user: _User) -> None:
        loop, parameters = self.world.loop, self._parameters
        loop.after(_days(parameters.machine_days, user.draw), self._lose_machine, user)
        user.machine += 1
        user.is_away, user.is_writing, user.some_lack = True, False, False
        user.turns = user.revision = user.kept_revision = 0
        user.contacts = []
        for said_s in user.waiting.values():
            if self._recorder is not None:
                self._recorder.row("kept", at_s=said_s, node=user.node.number)
        user.waiting.clear()
        away_s = _days(parameters.away_days, user.draw)
        loop.after(away_s, self._recover, user, user.machine, self.world.now + away_s)

    def _recover(self, user: _User, machine: int, began_s: float) -> None:
        if user.machine == machine:  # else this one was lost, too
            self.find(user, lambda found: self._recovered(user, began_s, found))

    def _recovered(self, user: _User, began_s: float, found: _Found) -> None:
        world, recorder = self.world, self._recorder
        copies = [(str(peer), copy) for peer, copy in found.items() if copy is not None]
        newest = Seen(tuple((name, copy.entry) for name, copy in copies)).newest_first()
        if not newest and self._copies(user):  # whoever has it is down
            world.loop.after(_TRY_AGAIN_S, self._recover, user, user.machine, began_s)
            return
        user.is_away = False
        if newest:
            user.revision = newest[0].revision
            user.turns = next(copy.turns for _, copy in copies if copy.entry == newest[0])
        lost = user.kept & ~user.turns
        if recorder is not None and user.kept:
            recorder.row(
                "recoveries", at_s=began_s, node=user.node.number, seconds=world.now - began_s,
                turns=user.kept.bit_count(), lost=lost.bit_count(),
            )  # fmt: skip
            recorder.event(world.now, user.node.number, "recovered", lost.bit_count())
        user.lost, user.kept = user.lost | lost, user.kept & user.turns
        self._write(user)


class _Write:
    """One write of a user's conversation to its replicas, as ``Replication.write`` does it."""

    def __init__(self, service: ConversationService, user: _User, found: _Found, *, renew: bool) -> None:
        self._service, self._user, self._renews = service, user, renew
        self._entry, self._turns = user.entry(), user.turns
        replicas = [_Disk(peer) for peer in found]
        chosen = to_write_to(in_order_of_preference(user.key, replicas, ()))
        holding = [each for each in replicas if found[PeerId(each.name)] is not None]
        known = ours_first(_OWN, [*holding, *chosen], _LIMITS.replicas_max)
        judged, now = counted(known), service.world.now
        self._asked = (
            known if renew else worth_a_write(known, judged, lambda name: user.failing.waits(name, now))
        )
        self._round = WriteRound(self._entry, len(self._asked), judged)
        self._ready: list[PeerId] = []
        """Replicas that have the turns, and wait for the pointer."""
        self._theirs: list[_Copy] = []
        self._is_decided = self._is_over = False

    def begin(self) -> None:
        """Ask all of them at once."""
        for each in self._asked:
            if each is _OWN:
                self._round.blobs_over(each.name, there=True)
                self._acknowledged(each.name)
            else:
                self._tell(PeerId(each.name), "put", self._put)
        self._go_on()

    def _tell(
        self, peer: PeerId, does: Literal["put", "point"], then: Callable[[PeerId, _Copy | str | None], None]
    ) -> None:
        question = _Question(does, self._user.key, self._entry, self._turns, self._renews)
        self._service.ask(self._user, peer, question, then, _LIMITS.replica_write_s)

    def _put(self, peer: PeerId, answer: _Copy | str | None) -> None:
        self._round.blobs_over(str(peer), there=answer == "done")
        if answer == "done":
            self._ready.append(peer)
        else:
            self._failed(peer, answer)
        self._go_on()

    def _pointed(self, peer: PeerId, answer: _Copy | str | None) -> None:
        if answer == "done":
            self._user.failing.succeeded(str(peer))
            self._acknowledged(str(peer))
        else:
            self._failed(peer, answer)
        self._go_on()

    def _acknowledged(self, name: str) -> None:
        self._round.acknowledged(name)
        self._round.finished()

    def _failed(self, peer: PeerId, answer: _Copy | str | None) -> None:
        if isinstance(answer, _Copy):
            self._theirs.append(answer)
            self._round.conflict(str(peer), answer.entry)
        else:
            self._user.failing.failed(str(peer), self._service.world.now)
            self._round.failures[str(peer)] = "it did not answer in time"
        self._round.finished()

    def _go_on(self) -> None:
        this = self._round
        if this.may_point:
            ready, self._ready = self._ready, []
            for peer in ready:
                if this.in_conflict:
                    this.failures[str(peer)] = "not moved: another writer was there first"
                    this.finished()
                else:
                    self._tell(peer, "point", self._pointed)
        if this.decided and not self._is_decided:
            self._is_decided = True
            if this.outcome().reached:
                self._service.reached(self._user, this, self._entry, self._turns, renewed=self._renews)
            self._service.world.loop.after(_LIMITS.replica_lag_s, self._end, self._user.machine)
        if this.over:
            self._end(self._user.machine)

    def _end(self, machine: int) -> None:
        if not self._is_over and self._user.machine == machine:
            self._is_over = True
            if not self._round.over:
                self._round.failures.setdefault("others", "they did not answer in time")
            self._service.over(self._user, self._round, self._theirs)


def _days(mean: float, draw: Random) -> float:
    """Seconds, of an exponential distribution with a mean in days."""
    return draw.expovariate(1 / mean) * DAY_S
