"""A model of an inference engine: how fast it reads and writes, how many requests at once, and who waits.

Which request gets a slot, what of its prompt is cached, and who gives way in the queue is the node's own
``SlotQueue``; here is how long things take. Prompts are read at ``prefill_tokens_per_s``, shared by all that
are read at once. Each of ``b`` answers that are written at once gets ``decode_tokens_per_s`` divided by
``1 + batch_slowdown * (b - 1)``: 0 is an engine whose batches cost nothing, 1 one without batches.

Every host of a model gives the same tokens: the id at a place follows from the prompt's seed and the place
alone, as at temperature 0 on one profile. How long the whole answer is follows from the seed, too
(``seed_of_length``): people are modelled, and the model with them. Not modelled: memory, speculation, what
prompts say.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any, Final

from p2pnode.errors import EngineError
from p2pnode.models.slots import QueuedRequest, SlotQueue
from p2pnode.protocols.inference.commands import GenDone, Generate, GenFailed, GenProgress, GenTokens
from p2pnode.protocols.inference.messages import CHECKPOINT_EVERY, PromptBody
from p2pnode.protocols.inference.replay import Piece
from p2pnode.shares import Origin
from p2pnode.simulations.event_loop import EventLoop
from p2pnode.simulations.market.economy import spread_by
from p2pnode.simulations.parameters import require_not_negative, require_positive, require_shares

VOCABULARY: Final = 49_152
BYTES_PER_TOKEN = 4
"""Of a text. No `Final`: whole nodes are compared with another number, which a compiled constant hides."""
_TEXT: Final = " tok"
_LENGTH_BYTES: Final = 4
_NAME_BYTES: Final = 8
"""Of a seed: how long the answer is, and which one."""
_PROGRESS_S: Final = 2.0
"""Between two reports of how much of a prompt was read."""
_OTHER_MODEL: Final = 7
_ROUNDING: Final = 1e-9
_LONG_AGO_S: Final = -3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Engines:
    """What engines are like. ``spread`` is the sigma of a lognormal factor by which hosts differ in speed."""

    slots: int = 4
    queue_max: int = 32
    n_ctx: int = 8192
    prefill_tokens_per_s: float = 1500.0
    decode_tokens_per_s: float = 30.0
    batch_slowdown: float = 0.15
    spread: float = 0.3
    flush_s: float = 0.06
    """How long output is gathered before it is sent on; the first tokens go out at once. The node's own is
    0.06 s; a longer one makes fewer events."""
    flush_tokens: int = 16

    def __post_init__(self) -> None:
        require_positive(
            self, "slots", "n_ctx", "prefill_tokens_per_s", "decode_tokens_per_s", "flush_s", "flush_tokens"
        )
        require_not_negative(self, "queue_max", "spread")
        require_shares(self, "batch_slowdown")


# ---- what a prompt and an answer are in tokens


def seed_of_length(tokens: int, rest: bytes) -> bytes:
    """The seed of a prompt whose answer is to have so many tokens; 12 more bytes tell it from others."""
    return tokens.to_bytes(_LENGTH_BYTES, "big") + rest[: 16 - _LENGTH_BYTES].ljust(16 - _LENGTH_BYTES, b"\0")


def named_by(seed: bytes) -> int:
    """What tells hosts which answer is wanted, for ``PromptBody.now``.

    The seed can't: a client asks the next host with a fresh one after a host has failed. No template here
    asks for the date.
    """
    return int.from_bytes(seed[:_NAME_BYTES], "big")


def first_seed(body: PromptBody) -> bytes:
    """Of the seed that a question had at first: what its answer follows from."""
    return body.seed if body.now is None else body.now.to_bytes(_NAME_BYTES, "big")


def answer_length(seed: bytes) -> int:
    """How many tokens the whole answer to a prompt with this seed has."""
    return int.from_bytes(seed[:_LENGTH_BYTES], "big")


def answer_ids(seed: bytes, start: int, count: int, model: int = 0) -> tuple[int, ...]:
    """The answer's ids from ``start`` on. ``model`` other than 0 gives those of another model."""
    base = int.from_bytes(seed[_LENGTH_BYTES : _LENGTH_BYTES + 4], "big") + model * _OTHER_MODEL
    return tuple([(base + at * 7919) % VOCABULARY for at in range(start, start + count)])


def prompt_ids(body: PromptBody) -> tuple[int, ...]:
    """A prompt's ids: one for each four bytes of its messages, by what they say, and those of its prefix."""
    found: list[int] = []
    for message in body.messages:
        text = message.text
        # Two messages of one length differ by how they begin: that is what people's models write there.
        mark = int.from_bytes(text[:BYTES_PER_TOKEN].encode(), "big") % VOCABULARY
        found += [mark] * (-(-len(text) // BYTES_PER_TOKEN) + 1)
    return (*found, *body.prefix)


def text_of(ids: tuple[int, ...]) -> str:
    """The text that ids complete."""
    return _TEXT * len(ids)


# ---- the engine


class Run:
    """One request on its way through an engine."""

    __slots__ = (
        "begun_at", "flushed_at", "ids", "is_over", "is_reading", "left", "made", "order", "out", "place",
        "report", "seed",
    )  # fmt: skip

    def __init__(self, order: Generate, ids: tuple[int, ...], report: Callable[[Any], None]) -> None:
        self.order, self.ids, self.report = order, ids, report
        self.out: list[int] = []
        """What it made itself."""
        self.seed = first_seed(order.body)
        self.made = len(order.body.prefix) + len(order.answer_ids)
        """The place of the next id in the whole answer."""
        self.left = 0.0
        """Tokens of the prompt that are not read."""
        self.place: QueuedRequest | None = None
        self.begun_at = 0.0
        self.flushed_at = _LONG_AGO_S  # the first token does not wait for others
        """When output was sent on last, or the request began."""
        self.is_over = self.is_reading = False


class SimulatedEngine:
    """The engine of one host. ``report`` of a request gets what ``HostSession`` takes as commands."""

    def __init__(self, loop: EventLoop, engines: Engines, random: Random) -> None:
        self._loop, self._engines = loop, engines
        factor = spread_by(engines.spread, random)
        self.decode_tokens_per_s = engines.decode_tokens_per_s * factor
        self.prefill_tokens_per_s = engines.prefill_tokens_per_s * factor
        self.slow = 1.0
        """How many times as long everything takes: a fault."""
        self.model = 0
        """Another number: the tokens of another model, which is a fraud."""
        self.tokens_out = self.tokens_in = 0
        """What it made and read so far."""
        self.busy_s = 0.0
        """Seconds of its slots that were used, of requests that are over."""
        self._queue = SlotQueue(engines.slots, engines.queue_max)
        self._reading: list[Run] = []
        self._writing = 0

    @property
    def slots(self) -> int:
        """How many requests run at once."""
        return self._engines.slots

    @property
    def active(self) -> int:
        """How many run now."""
        return self._queue.table.busy

    @property
    def queued(self) -> int:
        """How many wait."""
        return self._queue.statistics(restarts=0).queued

    def reusable(self, key: bytes, ids: tuple[int, ...]) -> int:
        """How many of a prompt's ids are cached for this key."""
        return self._queue.table.reusable(key, ids)

    def generate(
        self,
        order: Generate,
        *,
        ids: tuple[int, ...],
        key: bytes,
        origin: Origin,
        session: bytes,
        report: Callable[[Any], None],
    ) -> Run:
        """Begin a request, or let it wait for a slot; ``report`` is called later, never from here."""
        run = Run(order, (*ids, *order.answer_ids), report)
        try:
            place = self._queue.enter(key, run.ids, origin, session)
        except EngineError as error:
            self._loop.after(0.0, self._refuse, run, error)
            return run
        run.place = place
        if place.assignment is not None:
            self._begin(run)
        else:
            place.on_decided = lambda: self._decided(run)
            self._loop.after(_PROGRESS_S, self._tell_waiting, run)
        return run

    def cancel(self, run: Run) -> None:
        """Stop a request; what it made stays made."""
        if not run.is_over:
            self._end(run)

    def _decided(self, run: Run) -> None:
        assert run.place is not None  # noqa: S101 - it was set with the callback
        if run.place.refusal is not None:
            self._loop.after(0.0, self._refuse, run, run.place.refusal)
        else:
            self._begin(run)

    def _refuse(self, run: Run, error: EngineError) -> None:
        if not run.is_over:
            run.is_over = True
            run.report(GenFailed(run.order.run, error.code, str(error), error.retry_after_s))

    def _tell_waiting(self, run: Run) -> None:
        if run.is_over or run.place is None or run.place.assignment is not None:
            return
        run.report(GenProgress(run.order.run, 0, len(run.ids)))
        self._loop.after(_PROGRESS_S, self._tell_waiting, run)

    def _begin(self, run: Run) -> None:
        assert run.place is not None and run.place.assignment is not None  # noqa: S101, PT018 - it has a slot
        run.begun_at, run.is_reading = self._loop.now, True
        run.left = float(max(1, len(run.ids) - run.place.assignment.reusable))
        self.tokens_in += int(run.left)
        self._reading.append(run)
        self._loop.after(self._reading_step_s(run), self._read, run, self._loop.now)

    def _reading_step_s(self, run: Run) -> float:
        # An answer that is written while prompts are read is not slowed down: engines mix both in a batch.
        rate = self.prefill_tokens_per_s / (len(self._reading) * self.slow)
        return min(_PROGRESS_S, run.left / rate)

    def _read(self, run: Run, since: float) -> None:
        if run.is_over:
            return
        now, loop = self._loop.now, self._loop
        rate = self.prefill_tokens_per_s / (len(self._reading) * self.slow)
        run.left -= rate * (now - since)
        if run.left > 0.5:  # noqa: PLR2004 - half a token: others came meanwhile, and shared the engine
            run.report(GenProgress(run.order.run, len(run.ids) - int(run.left), len(run.ids)))
            if not run.is_over:
                loop.after(self._reading_step_s(run), self._read, run, now)
            return
        run.is_reading = False
        self._reading.remove(run)
        self._writing += 1
        order = run.order
        most = len(order.body.prefix) + len(order.answer_ids) + order.tokens_max
        self._write_on(run, min(answer_length(run.seed) + 1, most))

    def _pace(self) -> float:
        """Tokens a second of each answer, as many as are written now."""
        slowed = 1 + self._engines.batch_slowdown * (self._writing - 1)
        return self.decode_tokens_per_s / (slowed * self.slow)

    def _write(self, run: Run, count: int) -> None:
        if run.is_over:
            return
        order, now = run.order, self._loop.now
        whole = answer_length(run.seed)
        most = len(order.body.prefix) + len(order.answer_ids) + order.tokens_max
        is_whole = run.made + count > whole  # the model's token that says so is among them
        count = max(0, min(count, whole - run.made, most - run.made))
        run.flushed_at = now
        if count:
            ids = answer_ids(run.seed, run.made, count, self.model)
            run.made += count
            run.out += ids
            self.tokens_out += count
            run.report(GenTokens(order.run, Piece(ids=ids, text=text_of(ids))))
            if run.is_over:  # the report led to its end
                return
        if is_whole or run.made >= most:
            self._end(run)
            run.report(GenDone(order.run, "stop" if is_whole else "length"))
            return
        self._write_on(run, min(whole + 1, most))

    def _write_on(self, run: Run, end: int) -> None:
        """Write as much as is sent on at once, of an answer that is over at place ``end``.

        As the node gathers tokens: until the first of them that is made when ``flush_s`` are over since the
        last ones went out, and never over a checkpoint.
        """
        pace, engines = self._pace(), self._engines
        due_s = run.flushed_at + engines.flush_s - self._loop.now
        step = max(1, min(engines.flush_tokens, math.ceil(pace * due_s - _ROUNDING)))
        room = CHECKPOINT_EVERY - (run.made - len(run.order.body.prefix)) % CHECKPOINT_EVERY
        step = min(step, room, max(1, end - run.made))
        self._loop.after(step / pace, self._write, run, step)

    def _end(self, run: Run) -> None:
        run.is_over = True
        if run.place is None:
            return
        if run.place.assignment is not None:
            took_s = self._loop.now - run.begun_at
            self.busy_s += took_s
            if run.is_reading:
                self._reading.remove(run)
            else:
                self._writing -= 1
                self._queue.record(len(run.out), took_s)
        self._queue.leave(run.place, (*run.ids, *run.out))
