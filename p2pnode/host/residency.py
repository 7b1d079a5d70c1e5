"""Which models lie in a host's memory: what is loaded for a request, what is unloaded for it, and who waits.

A host offers models that need not fit into its memory together. A request for one that is *cold* has it
loaded; where memory is short, the models without work that were used least recently are unloaded for it. A
model with requests or turns under way, or one that is pinned, is never unloaded. Who can't be served soon is
refused with the time after which asking again may help.

Memory is counted by device: the machine's own, and that of its GPUs. What makes vectors of texts for a model
is loaded for itself, beside the model or without it (:class:`EmbedderOf`).

Pure: times are seconds of a monotonic clock, and arguments; ``steps`` says what is to be loaded and unloaded
now, and whoever acts says how it went. It knows neither engines nor sessions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import count
from typing import Final, Literal, TypeAlias

from p2pnode.bounded import backoff_s
from p2pnode.ids import ModelId

State: TypeAlias = Literal["cold", "warming", "warm"]
LOAD_UNKNOWN_S: Final = 10.0
"""How long a model takes to load, until that was measured."""
FAILURES_MAX: Final = 3
"""After so many crashes and failed loads in a row, without an answer between, a model is not offered."""
BROKEN_FIRST_S: Final = 600.0
BROKEN_MAX_S: Final = 86_400.0
"""When a model that isn't offered for its failures is tried again: the time doubles up to this."""
PROMISED_S: Final = 30.0
"""A model that was loaded for a request that was told to come back is kept for it so long."""
_AGAIN_FIRST_S: Final = 2.0
_AGAIN_MAX_S: Final = 60.0
RETRY_LEAST_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class EmbedderOf:
    """What makes vectors of texts for a model."""

    model: ModelId


Resident: TypeAlias = ModelId | EmbedderOf
"""What is loaded for itself."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes by device: ``main`` is the machine's own memory, ``gpu`` that of its GPUs together."""

    main: int = 0
    gpu: int = 0

    @classmethod
    def unbounded(cls) -> Memory:
        """More than anybody has."""
        return cls(1 << 62, 1 << 62)

    def __add__(self, other: Memory) -> Memory:
        return Memory(self.main + other.main, self.gpu + other.gpu)

    def __sub__(self, other: Memory) -> Memory:
        return Memory(self.main - other.main, self.gpu - other.gpu)

    def fits(self, room: Memory) -> bool:
        """Whether it is no more than ``room``, on each device. What takes nothing of one fits there."""
        return (not self.main or self.main <= room.main) and (not self.gpu or self.gpu <= room.gpu)

    def least(self, other: Memory) -> Memory:
        """The less of both, of each device."""
        return Memory(min(self.main, other.main), min(self.gpu, other.gpu))

    def most(self, other: Memory) -> Memory:
        """The more of both, of each device."""
        return Memory(max(self.main, other.main), max(self.gpu, other.gpu))


@dataclass(frozen=True, slots=True)
class Load:
    """Step: load this model now. ``loaded`` or ``failed`` ends it."""

    model: Resident


@dataclass(frozen=True, slots=True)
class Unload:
    """Step: free this model's memory now. ``unloaded`` ends it."""

    model: Resident


Step: TypeAlias = Load | Unload


@dataclass(frozen=True, slots=True)
class NotNow:
    """The answer to a request that can't wait here: why, and after how many seconds it may ask again."""

    detail: str
    retry_after_s: float


@dataclass(slots=True)
class _Model:
    memory: Memory
    pinned: bool
    load_s: float
    idle_s: float
    """Without work for so long it is unloaded; 0: only for another one."""
    state: Literal["cold", "warming", "warm", "leaving"] = "cold"
    """``leaving``: it is being unloaded; its memory is taken until that is done."""
    held: Memory = Memory()
    """What it was seen to take since it was loaded; until then what it is expected to."""
    uses: int = 0
    """Requests and turns under way."""
    waiting: int = 0
    last_use: int = 0
    """The number of its last use: they are counted over all models."""
    used_at: float = -math.inf
    begun_at: float = 0.0
    """When it began to load."""
    wanted_since: float | None = None
    wanted_until: float = -math.inf
    """Until when it is to be loaded though nobody waits: a request was told to come back."""
    promised_until: float = -math.inf
    failures: int = 0
    """Crashes and failed loads since the last answer."""
    not_before: float = -math.inf
    """When it may be loaded again after a failure."""
    broken: bool = False
    """Not offered, for it failed too often in a row."""
    rounds: int = 0
    """How often it was broken."""
    withdrawn: bool = False

    @property
    def offered(self) -> bool:
        return not (self.broken or self.withdrawn)

    def is_wanted(self, now: float) -> bool:
        return bool(self.waiting) or self.wanted_until > now


@dataclass
class Residency:
    """The models of one host, within ``memory``.

    One that had no work for ``idle_s`` seconds is unloaded (0: only for another one). Requests for a cold
    model wait if it is expected to be warm within ``wait_s``, and ``waiting_max`` of them at most.
    """

    memory: Memory
    idle_s: float = 0.0
    wait_s: float = 60.0
    waiting_max: int = 32
    _models: dict[Resident, _Model] = field(default_factory=dict)
    _uses: count[int] = field(default_factory=lambda: count(1))

    # ---- what is offered

    def room(self, *, pinned: bool = False) -> Memory:
        """What one more model may take, so that each that is offered can be loaded.

        Pinned models stay, so each of the others has to fit beside all of them.
        """
        room, largest = self.memory, Memory()
        for each in self._models.values():
            if each.withdrawn:
                continue
            if each.pinned:
                room -= each.memory
            elif pinned:
                largest = largest.most(each.memory)
        return room - largest

    def offer(
        self,
        model: Resident,
        memory: Memory,
        *,
        pinned: bool = False,
        load_s: float = LOAD_UNKNOWN_S,
        idle_s: float | None = None,
    ) -> None:
        """Offer a model that takes so much. Raises ``ValueError`` where :meth:`room` has less.

        ``idle_s``: as the field of this name, for this one.
        """
        known = self._models.get(model)
        if known is not None and known.broken and not known.withdrawn and known.memory == memory:
            known.broken, known.failures, known.rounds, known.not_before = False, 0, 0, -math.inf
            return
        if known is not None and not known.withdrawn:
            msg = "the model is offered already"
            raise ValueError(msg)
        if not memory.fits(room := self.room(pinned=pinned)):
            msg = f"the model takes {memory} bytes, and {room} can be had"
            raise ValueError(msg)
        if known is not None and known.memory == memory:  # it is still here, for work that goes on
            known.withdrawn, known.pinned = False, pinned
        elif known is not None:
            msg = "the model is still being withdrawn: offer it again when its work is done"
            raise ValueError(msg)
        else:
            self._models[model] = _Model(memory, pinned, load_s, self.idle_s if idle_s is None else idle_s)

    def withdraw(self, model: Resident) -> None:
        """Take a model out of what is offered. Its work goes on; after that it is unloaded, and forgotten."""
        one = self._models.get(model)
        if one is None:
            return
        one.withdrawn, one.waiting, one.wanted_until, one.wanted_since = True, 0, -math.inf, None
        if one.state == "cold":
            del self._models[model]

    def knows(self, model: Resident) -> bool:
        """Whether it is offered, was and may be again, or is still in memory."""
        return model in self._models

    def offers(self, model: Resident) -> bool:
        """Whether it can be asked for."""
        return model in self._models and self._models[model].offered

    def state(self, model: Resident) -> State:
        """Where a model is; one that is being unloaded is cold."""
        one = self._models.get(model)
        return "cold" if one is None or one.state == "leaving" else one.state

    def warm_in_s(self, model: Resident, now: float) -> float:
        """In how many seconds it can answer if it is asked now and memory can be had; 0 where it is warm."""
        one = self._models.get(model)
        if one is None or one.state == "warm":
            return 0.0
        begun = now - one.begun_at if one.state == "warming" else 0.0
        return max(RETRY_LEAST_S, one.load_s - begun, one.not_before - now)

    @property
    def taken(self) -> Memory:
        """What is in memory, is being loaded, or isn't unloaded yet."""
        return self._sum("warm", "warming", "leaving")

    def _sum(self, *states: str) -> Memory:
        return sum((each.held for each in self._models.values() if each.state in states), Memory())

    def in_use(self, model: Resident) -> int:
        """Requests and turns of a model that are under way."""
        return self._models[model].uses if model in self._models else 0

    # ---- requests

    def ask(self, model: Resident, now: float, *, patient: bool = False) -> Literal["warm", "waits"] | NotNow:
        """A request begins.

        ``warm``: it holds the model until :meth:`release`. ``waits``: it does as soon as the model is loaded;
        :meth:`leave` where it waits no longer. One that is ``patient`` waits however long that takes.
        """
        if refusal := self.want(model, now, patient=patient):
            return refusal
        one = self._models[model]
        if one.state == "warm":
            self._use(one, now)
            one.uses += 1
            return "warm"
        if one.waiting >= self.waiting_max:
            return NotNow(f"{one.waiting} requests wait for this model to load", self._retry_s(model, now))
        one.waiting += 1
        return "waits"

    def want(self, model: Resident, now: float, *, patient: bool = False) -> NotNow | None:
        """Somebody means to ask: a cold model is loaded. Says why asking now would be in vain, else None."""
        one = self._models.get(model)
        if one is None or not one.offered:
            return NotNow("this host does not serve the model now", BROKEN_FIRST_S)
        if one.state == "warm":
            one.promised_until = max(one.promised_until, now + min(PROMISED_S, self.wait_s))
            return None
        wait_s = self.warm_in_s(model, now)
        if one.not_before > now:
            return NotNow("the model could not be loaded: it is tried again", self._retry_s(model, now))
        if one.wanted_since is None or not one.is_wanted(now):
            one.wanted_since = now
        one.wanted_until = max(one.wanted_until, now + wait_s + PROMISED_S)
        if wait_s > self.wait_s and not patient:
            return NotNow(f"the model takes {wait_s:.0f} s to load", self._retry_s(model, now))
        return None

    def hold(self, model: Resident) -> bool:
        """Hold a model for what is no work of anybody, such as a measurement; False where it isn't warm."""
        one = self._models.get(model)
        if one is None or one.state != "warm" or not one.offered:
            return False
        one.uses += 1
        return True

    def release(self, model: Resident, now: float, *, worked: bool = True) -> None:
        """What held the model is over; ``worked`` False after :meth:`hold`."""
        one = self._models.get(model)
        if one is None:
            return
        one.uses -= 1
        if worked:
            self._use(one, now)

    def leave(self, model: Resident) -> None:
        """A request that waited does so no longer."""
        one = self._models.get(model)
        if one is not None and one.waiting:
            one.waiting -= 1

    def served(self, model: Resident) -> None:
        """A request was answered: what failed before is forgotten."""
        if (one := self._models.get(model)) is not None:
            one.failures = one.rounds = 0

    def _use(self, one: _Model, now: float) -> None:
        one.last_use, one.used_at, one.promised_until = next(self._uses), now, -math.inf

    def _retry_s(self, model: Resident, now: float) -> float:
        return max(RETRY_LEAST_S, self.warm_in_s(model, now))

    # ---- what became of a step

    def loaded(self, model: Resident, now: float) -> int:
        """A model is warm. Returns how many requests waited for it: each holds it now."""
        one = self._models[model]
        one.state, one.broken = "warm", False
        one.load_s = now - one.begun_at
        promised = one.wanted_until > now and not one.waiting
        self._use(one, now)
        one.promised_until = now + PROMISED_S if promised else -math.inf
        held, one.waiting = one.waiting, 0
        one.uses += held
        one.wanted_since, one.wanted_until = None, -math.inf
        return held

    def measured(self, model: Resident, *, gpu: int) -> None:
        """A model that is loaded takes so many bytes of the GPUs' memory, whatever was expected."""
        if (one := self._models.get(model)) is not None and one.state == "warm":
            one.held = Memory(one.held.main, gpu)

    def failed(self, model: Resident, now: float) -> bool:
        """A model could not be loaded; what waited for it must be refused. Returns whether the offer is over
        for now."""
        one = self._models[model]
        one.state, one.waiting, one.wanted_since, one.wanted_until = "cold", 0, None, -math.inf
        if one.withdrawn:
            del self._models[model]
            return False
        return self._count_failure(one, now)

    def crashed(self, model: Resident, now: float) -> bool:
        """An engine died with its requests; it starts itself again. Returns whether its offer is over for
        now: then it is unloaded."""
        one = self._models.get(model)
        return one is not None and not one.broken and self._count_failure(one, now)

    def lost(self, model: Resident, now: float, *, retry_s: float) -> None:
        """What answers for a model is not there now: it is not offered until it can be loaded again, which is
        tried every ``retry_s`` seconds."""
        one = self._models.get(model)
        if one is not None:
            one.broken, one.not_before = True, now + retry_s

    def unloaded(self, model: Resident) -> None:
        """The memory of a model is free."""
        one = self._models[model]
        one.state, one.uses = "cold", 0
        if one.withdrawn:
            del self._models[model]

    def _count_failure(self, one: _Model, now: float) -> bool:
        one.failures += 1
        if one.failures < FAILURES_MAX and not one.broken:
            one.not_before = now + backoff_s(one.failures - 1, first_s=_AGAIN_FIRST_S, max_s=_AGAIN_MAX_S)
            return False
        over = not one.broken
        one.broken = True
        one.not_before = now + backoff_s(one.rounds, first_s=BROKEN_FIRST_S, max_s=BROKEN_MAX_S)
        one.rounds += 1
        one.failures = FAILURES_MAX - 1  # the next failure is one too many again, an answer makes all good
        return over

    # ---- what to do

    def steps(self, now: float) -> list[Step]:
        """What is to be loaded and unloaded now; each step is given once. Call it after every change."""
        steps: list[Step] = [Unload(model) for model in self._to_free(now)]
        models = self._models
        free = self.memory - self.taken
        coming = free + self._sum("leaving")
        waiting = [
            (one.wanted_since or 0.0, number, model)
            for number, (model, one) in enumerate(models.items())
            if one.state == "cold" and one.offered and one.not_before <= now and one.is_wanted(now)
        ]
        for _, _, model in sorted(waiting):  # who waits longest comes first
            one = models[model]
            if one.memory.fits(free.least(coming)):
                free, coming = free - one.memory, coming - one.memory
                steps.append(self._load(model, now))
            elif one.memory.fits(coming):
                coming -= one.memory  # what is being unloaded is for this one
            elif victims := self._victims(one.memory, coming, now):
                for victim in victims:
                    models[victim].state = "leaving"
                    coming += models[victim].held
                    steps.append(Unload(victim))
                coming -= one.memory
            # Else all memory is in use: it waits, and whatever still fits may go before it.
        for model, one in models.items():
            tried_again = one.state == "cold" and one.broken and not one.withdrawn and one.not_before <= now
            if tried_again and one.memory.fits(free.least(coming)):
                free, coming = free - one.memory, coming - one.memory
                steps.append(self._load(model, now))
        return steps

    def _load(self, model: Resident, now: float) -> Load:
        one = self._models[model]
        one.state, one.begun_at, one.held = "warming", now, one.memory
        return Load(model)

    def _to_free(self, now: float) -> list[Resident]:
        """Models that are to go whether or not memory is short: begun here."""
        found = []
        for model, one in self._models.items():
            if one.state != "warm":
                continue
            idle = one.idle_s and self._may_go(one, now) and now - one.used_at >= one.idle_s
            if one.broken or (one.withdrawn and not one.uses) or idle:
                one.state = "leaving"
                found.append(model)
        return found

    @staticmethod
    def _may_go(one: _Model, now: float) -> bool:
        return (
            one.state == "warm" and not (one.uses or one.waiting or one.pinned) and one.promised_until <= now
        )

    def _victims(self, needed: Memory, room: Memory, now: float) -> list[Resident]:
        """The models without work whose memory is enough together with ``room``, least recently used first;
        none where all of it isn't."""
        idle = [model for model, one in self._models.items() if self._may_go(one, now)]
        chosen: list[Resident] = []
        for model in sorted(idle, key=lambda model: self._models[model].last_use):
            if needed.fits(room):
                break
            memory = self._models[model].held
            # One that takes nothing of the device that is short would go in vain.
            if (memory.main and needed.main > room.main) or (memory.gpu and needed.gpu > room.gpu):
                chosen.append(model)
                room += memory
        if not needed.fits(room):
            return []
        for model in reversed(chosen[:-1]):  # a large one may make smaller ones before it needless
            if needed.fits(without := room - self._models[model].held):
                room = without
                chosen.remove(model)
        return chosen

    def due(self, now: float) -> float:
        """When :meth:`steps` may say something new though nothing happened; infinite for never."""
        times = [math.inf]
        for one in self._models.values():
            if one.state == "cold" and not one.withdrawn and (one.broken or one.is_wanted(now)):
                times.append(one.not_before)
            if one.state == "warm" and not one.pinned:
                times.append(one.promised_until)
                if one.idle_s and not one.uses:
                    times.append(max(one.promised_until, one.used_at + one.idle_s))
        return min(each for each in times if each > now)
