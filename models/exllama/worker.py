"""``Worker``: the one thread that uses a backend: commands in, iterations, events out.

Commands are taken between iterations, so that a cancel takes effect within one. What happens is told in
calls of ``tell`` and ``broken`` from this thread, one for each iteration.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from queue import SimpleQueue
from typing import TypeAlias

from p2pnode.models.engine import HiddenStates
from p2pnode.models.exllama.jobs import Backend, BackendInfo, Job, JobEvent, Made, Over


@dataclass(frozen=True, slots=True)
class _Submit:
    number: int
    job: Job


@dataclass(frozen=True, slots=True)
class _Cancel:
    number: int


@dataclass(frozen=True, slots=True)
class _States:
    number: int
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Bare:
    number: int
    jobs: tuple[Job, ...]


@dataclass(frozen=True, slots=True)
class BareTimes:
    """For each of some jobs: its tokens, and the seconds to its first and to its last one."""

    jobs: tuple[tuple[int, float, float], ...]


_Command: TypeAlias = _Submit | _Cancel | _States | _Bare
Told: TypeAlias = JobEvent | HiddenStates | BareTimes


class Worker:
    """Loads a backend in its thread, and runs it until the process ends."""

    def __init__(
        self,
        load: Callable[[], Backend],
        *,
        loaded: Callable[[BackendInfo], None],
        tell: Callable[[list[tuple[int, Told]]], None],
        broken: Callable[[BaseException], None],
    ) -> None:
        self._load = load
        self._loaded = loaded
        self._tell = tell
        self._broken = broken
        self._commands: SimpleQueue[_Command] = SimpleQueue()
        self._numbers = count(1)

    def start(self) -> None:
        """Start the thread. It ends with the process, or with the backend, which ``broken`` tells."""
        threading.Thread(target=self._run, name="generator", daemon=True).start()

    def submit(self, job: Job) -> int:
        """Give it a job; returns the number under which its events are told."""
        number = next(self._numbers)
        self._commands.put(_Submit(number, job))
        return number

    def cancel(self, number: int) -> None:
        """Take a job out. Events that were made before may still be told."""
        self._commands.put(_Cancel(number))

    def hidden_states(self, ids: Sequence[int]) -> int:
        """Ask for the hidden states of a text; returns the number under which they are told."""
        number = next(self._numbers)
        self._commands.put(_States(number, tuple(ids)))
        return number

    def bare(self, jobs: Sequence[Job]) -> int:
        """Run ``jobs`` by themselves, and tell nothing but their times: what the library can do without us.

        Whatever else is under way waits.
        """
        number = next(self._numbers)
        self._commands.put(_Bare(number, tuple(jobs)))
        return number

    def _run(self) -> None:
        try:
            backend = self._load()
            self._loaded(backend.info)
            while True:
                self._take(backend)
                if events := backend.iterate():
                    self._tell([(number, event) for number, event in events])
        except BaseException as error:  # noqa: BLE001 - whatever it is: nobody else would hear of it
            self._broken(error)

    def _take(self, backend: Backend) -> None:
        """Do what was asked for; wait for it where there is nothing else to do."""
        while not self._commands.empty() or not backend.busy:
            match self._commands.get():
                case _Submit(number, job):
                    backend.submit(number, job)
                case _Cancel(number):
                    backend.cancel(number)
                case _States(number, ids):
                    self._tell([(number, backend.hidden_states(ids))])
                case _Bare(number, jobs):
                    self._tell([(number, self._timed(backend, jobs))])

    def _timed(self, backend: Backend, jobs: Sequence[Job]) -> BareTimes:
        began = time.perf_counter()
        numbers = [next(self._numbers) for _ in jobs]
        for number, job in zip(numbers, jobs, strict=True):
            backend.submit(number, job)
        made, first, last = Counter[int](), dict[int, float](), dict[int, float]()
        left = set(numbers)
        while left:
            others: list[tuple[int, Told]] = []
            for number, event in backend.iterate():
                match event:
                    case Made() if number in left:
                        last[number] = time.perf_counter() - began
                        first.setdefault(number, last[number])
                        made[number] += 1
                    case Over() if number in left:
                        left.discard(number)
                    case _ if number not in numbers:
                        others.append((number, event))
                    case _:
                        pass
            if others:
                self._tell(others)
        return BareTimes(tuple((made[each], first.get(each, 0.0), last.get(each, 0.0)) for each in numbers))


def words_of(error: BaseException) -> str:
    """What went wrong, on one line."""
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0]}" if said else type(error).__name__
