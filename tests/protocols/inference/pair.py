"""Both sides of a session on two wires in memory, with an engine whose every token is known.

Nothing moves by itself: tests say which wire delivers and when the engine speaks, so that any
interleaving can be played. Everything crosses as bytes. Invariants are checked at each step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import sin
from typing import Any, Final

from p2pnode.errors import WireCode
from p2pnode.ids import PeerId
from p2pnode.protocols.crypto import verify_peer
from p2pnode.protocols.events import Closed, Command, Effect, Emit, Received, Send, TimerFired
from p2pnode.protocols.inference.channel import HostTerms
from p2pnode.protocols.inference.client import ClientSession
from p2pnode.protocols.inference.commands import (
    Ask,
    CancelGenerate,
    CancelTurn,
    Count,
    Counted,
    Delivered,
    Embed,
    Embedded,
    Ended,
    Finished,
    GenDone,
    Generate,
    GenFailed,
    GenProgress,
    GenTokens,
    GenVector,
    SessionFailed,
    Start,
    TokensTaken,
    TurnDone,
    TurnFailed,
    TurnServed,
)
from p2pnode.protocols.inference.embeddings import vector_bytes
from p2pnode.protocols.inference.host import HostSession
from p2pnode.protocols.inference.host_turn import AHEAD_MAX, HostTurn
from p2pnode.protocols.inference.messages import (
    CHECKPOINT_EVERY,
    CODEC,
    VECTOR_CREDIT,
    VECTOR_MAX,
    WINDOW,
    ChatMessage,
    PromptBody,
    PromptReceived,
    SamplingParams,
)
from p2pnode.protocols.inference.replay import PayCredit, Piece
from tests.protocols.support import MODEL, Identity

HOST, CLIENT = Identity("host"), PeerId("client")
STREAM: Final = 1
TERMS: Final = HostTerms(n_ctx=4096)
SALT: Final = b"salt" * 8
HOLDER: Final = b"process of client"[:16]
PROMPT_HASH: Final = b"rendered" * 4


def ask(
    tokens_max: int = 512, content: str = "hello", input_max: int = 4096, stop: tuple[str, ...] = ()
) -> Ask:
    """A turn."""
    body = PromptBody(
        messages=(ChatMessage.of("user", content),),
        sampling=SamplingParams(tokens_max=tokens_max, stop=stop),
        seed=bytes(16),
    )
    return Ask(body, input_max)


def embed(*texts: str, input_max: int = 1 << 20) -> Ask:
    """An embeddings turn."""
    return Ask(PromptBody(embed=texts, seed=bytes(16)), input_max)


def vector_of(text: str, size: int = 32) -> bytes:
    """The vector that a fake engine makes of a text, whatever else it embeds."""
    return vector_bytes(sin(len(text) * n + sum(text.encode())) for n in range(size))


def token(turn: int, position: int) -> int:
    """The id a fake engine makes there, whatever happened before."""
    return (turn * 100_003 + position * 7919) % 49_152


def text_of(turn: int, position: int) -> str:
    """The text of that id."""
    return f"{turn}.{position} "


@dataclass(slots=True)
class Run:
    """One engine request."""

    order: Generate
    turn: int
    position: int
    told: int
    end: int
    reason: str
    started: bool = False
    cancelled: bool = False


Step = tuple[str, int, bool]
"""A move by its name; the engine's has a number of tokens, and whether their text comes later."""


class Pair:
    """The stage. A turn's key is its number."""

    def __init__(self, terms: HostTerms = TERMS, answer_tokens: int = 100) -> None:
        self.now = 0.0
        self.answer_tokens = answer_tokens
        self.window = terms.window
        self.host, self.client = self.cast_sides(terms)
        self.to_host: deque[bytes] = deque()
        self.to_client: deque[bytes] = deque()
        self.live: dict[int, Run] = {}
        """The engine requests that run, by their numbers."""
        self.old_runs: list[Run] = []
        self.counts: list[Count] = []
        self.turn = 0
        self.ids_of: dict[int, list[int]] = {}
        self.text_of: dict[int, str] = {}
        self.restarted: set[int] = set()
        """The turns whose engine died."""
        self.embeds: dict[int, Embed] = {}
        """The engine requests that embed, by their numbers."""
        self.vectors_of: dict[int, list[bytes]] = {}
        self.idle: set[int] = set()
        """The turns whose output the application does not take."""
        self.outcomes: list[TurnDone | TurnFailed | SessionFailed | Ended] = []
        self.served: list[TurnServed] = []
        self.finished: list[Finished] = []
        self.chunk_max = 0
        self.runs = 0
        self.receipts_checked = 0
        self.host_did(self.host.start(self.now))

    def cast_sides(self, terms: HostTerms) -> tuple[HostSession, ClientSession]:
        return new_host(terms), new_client()

    @property
    def delivered(self) -> list[int]:
        """The ids of the last turn that was asked."""
        return self.ids_of.setdefault(self.turn, [])

    @property
    def text(self) -> str:
        """Its text."""
        return self.text_of.get(self.turn, "")

    @property
    def run(self) -> Run | None:
        """The engine request that was made last, if it runs."""
        return list(self.live.values())[-1] if self.live else None

    # ---- what a test can do

    def open(self) -> None:
        """To the point where the client may ask."""
        self.client_does(Start())
        self.settle()

    def ask(self, order: Ask) -> None:
        """Begin a turn."""
        self.turn += 1
        self.client_does(replace(order, key=self.turn))

    def cancel(self) -> None:
        """The user wants no more of the last turn."""
        self.client_does(CancelTurn(self.turn))

    def client_does(self, command: Any) -> None:
        self.client_did(self.client.handle(Command(command), self.now))

    def host_does(self, command: Any) -> None:
        self.host_did(self.host.handle(Command(command), self.now))

    def deliver_to_host(self) -> bool:
        """One message, if there is one."""
        if not self.to_host:
            return False
        message = CODEC.decode(self.to_host.popleft())
        self.host_did(self.host.handle(Received(CLIENT, STREAM, message), self.now))
        return True

    def deliver_to_client(self) -> bool:
        """One message, if there is one; what confirms prompts before it comes along with it."""
        if not self.to_client:
            return False
        message = CODEC.decode(self.to_client.popleft())
        self.client_did(self.client.handle(Received(HOST.peer, STREAM, message), self.now))
        if isinstance(message, PromptReceived):
            self.deliver_to_client()
        return True

    def count(self) -> bool:
        """A prompt is counted."""
        if not self.counts:
            return False
        order = self.counts.pop(0)
        self.host_does(Counted(order.turn, 20 + len(order.body.prefix), 5, PROMPT_HASH))
        return True

    def engine(self, count: int = 16, *, hold: bool = False, run: Run | None = None) -> bool:
        """The engine makes up to ``count`` tokens; with ``hold`` their text comes later."""
        run = run or self.run
        if run is None:
            return False
        if not run.started:
            run.started = True
            self._report(run, GenProgress(run.order.run, 20, 20))
            return True
        made = min(count, run.end - run.position)
        self.chunk_max = max(self.chunk_max, made)
        ids = tuple(token(run.turn, run.position + n) for n in range(made))
        run.position += made
        over = run.position == run.end
        text = ""
        if over or not hold or run.position - run.told > WINDOW // 2:
            text = "".join(text_of(run.turn, n) for n in range(run.told, run.position))
            run.told = run.position
        self._report(run, GenTokens(run.order.run, Piece(ids=ids, text=text)))
        if over and run.order.run in self.live:
            self._report(run, GenDone(run.order.run, run.reason))  # type: ignore[arg-type]
            self.live.pop(run.order.run, None)
        return True

    def embed(self, count: int = 4) -> bool:
        """The engine makes up to ``count`` vectors of the request that embeds."""
        for run, order in tuple(self.embeds.items()):
            made = order.first
            while run in self.embeds and made < min(order.first + count, len(order.body.embed)):
                self.embeds[run] = replace(order, first=made + 1)
                self.host_does(GenVector(run, vector_of(order.body.embed[made])))
                made += 1
            if run in self.embeds and made == len(order.body.embed):
                del self.embeds[run]
                self.host_does(GenDone(run, "stop"))
            return True
        return False

    def late_engine(self) -> bool:
        """A cancelled run that has not noticed yet reports once more."""
        return bool(self.old_runs) and self.engine(3, run=self.old_runs[-1])

    def fail_engine(self, code: WireCode = "internal", detail: str = "boom", *, lost: bool = False) -> bool:
        """The present engine request fails; ``lost``: the engine died with it."""
        run = self.run
        if run is not None:
            del self.live[run.order.run]
            self.restarted |= {run.turn} if lost else set()
            self._report(run, GenFailed(run.order.run, code, detail, 1.0, lost))
        return run is not None

    def end_engine(self, stop: str = "") -> bool:
        """The present engine request ends in order, perhaps at a stop string."""
        run = self.run
        if run is not None:
            del self.live[run.order.run]
            self._report(run, GenDone(run.order.run, "stop", stop))
        return run is not None

    def settle(self, count: int = 16) -> None:
        """Let everything move until nothing does."""
        for _ in range(20_000):
            if not any(self.moves(count)):
                return
        raise AssertionError("it never comes to rest")

    def play(self, script: Sequence[Step]) -> None:
        """Make these moves, each if there is one to make."""
        for kind, count, hold in script:
            self.move(kind, count, hold=hold)

    def move(self, kind: str, count: int, *, hold: bool) -> None:
        match kind:
            case "host":
                self.deliver_to_host()
            case "client":
                self.deliver_to_client()
            case "engine":
                self.engine(count, hold=hold)
            case "late":
                self.late_engine()
            case "lost":
                self.fail_engine(lost=True)
            case _:
                raise AssertionError(kind)

    def moves(self, count: int) -> list[bool]:
        moved = [self.deliver_to_host(), self.deliver_to_client(), count > 0 and self.embed(count)]
        return [*moved, *[self.engine(count, run=run) for run in tuple(self.live.values())]]

    def close(self) -> None:
        """The connection is lost; what was under way is gone."""
        self.to_host.clear()
        self.to_client.clear()
        self.host_did(self.host.handle(Closed(CLIENT, STREAM, "lost"), self.now))
        self.client_did(self.client.handle(Closed(HOST.peer, STREAM, "lost"), self.now))

    def fire(self, key: str, *, host: bool) -> None:
        """A timer fires, due or not."""
        event = TimerFired(key)
        if host:
            self.host_did(self.host.handle(event, self.now))
        else:
            self.client_did(self.client.handle(event, self.now))

    # ---- what must hold

    def expected(self, tokens_max: int) -> list[int]:
        """The ids of the present turn, all of them."""
        return [token(self.turn, n) for n in range(min(tokens_max, self.answer_tokens))]

    def check(self) -> None:
        """At any moment."""
        credit = credit_of(self.host)
        assert credit.sent - credit.acknowledged <= self.window, "past the window"
        for turn in turns_of(self.host):
            assert turn.read.left >= 0, "past what the client reads"
            if turn.embeds:
                assert turn.queue.waiting <= VECTOR_CREDIT + VECTOR_MAX, "too many vectors wait"
                continue
            ahead = AHEAD_MAX + (CHECKPOINT_EVERY if turn.number in self.restarted else 0)
            assert turn.queue.waiting <= ahead + self.chunk_max, "too much buffered"
            if turn.queue.waiting > ahead:
                assert not [run for run in self.live.values() if run.turn == turn.number], "it runs on"
        for number, ids in self.ids_of.items():
            assert ids == [token(number, n) for n in range(len(ids))]
        assert len(self.finished) <= 1
        assert len(self.outcomes) <= self.turn + 1

    def taken(self, key: int) -> None:
        """The application takes all that came of a turn."""
        self.client_did(self.client.handle(Command(TokensTaken(len(self.ids_of[key]), key)), self.now))

    def taken_again(self, key: int) -> None:
        """The application takes a turn's output again, what has come of it too."""
        self.idle.discard(key)
        if self.ids_of.get(key):
            self.taken(key)

    def _report(self, run: Run, command: Any) -> None:
        self.host_does(command)

    def host_did(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(message=message):
                    self.to_client.append(CODEC.encode(message))
                case Emit(value=Count() as order):
                    self.counts.append(order)
                case Emit(value=Generate() as order):
                    assert order.turn not in [run.turn for run in self.live.values()], "two for one turn"
                    self._generate(order)
                case Emit(value=Embed() as order):
                    assert order.turn not in [each.turn for each in self.embeds.values()], "two for one turn"
                    self.runs += 1
                    self.embeds[order.run] = order
                case Emit(value=CancelGenerate(run=number)):
                    self.embeds.pop(number, None)
                    if number in self.live:
                        self.old_runs.append(self.live.pop(number))
                case Emit(value=TurnServed() as served):
                    self.served.append(served)
                case Emit(value=Finished() as finished):
                    self.finished.append(finished)
                case _:
                    pass
        self.after_host()
        self.check()

    def after_host(self) -> None:
        """Here prompts are counted at once."""
        self.count()

    def _generate(self, order: Generate) -> None:
        self.runs += 1
        made = len(order.answer_ids)
        assert list(order.answer_ids) == [token(order.turn, n) for n in range(made)]
        end = min(self.answer_tokens, made + order.tokens_max)
        reason = "stop" if end == self.answer_tokens else "length"
        told, known = 0, 0
        while known < order.answer_text_bytes:
            known += len(text_of(order.turn, told))
            told += 1
        assert known == order.answer_text_bytes, "in the middle of a text"
        self.live[order.run] = Run(order, order.turn, made, told, end, reason)

    def client_did(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(message=message):
                    self.to_host.append(CODEC.encode(message))
                case Emit(value=Delivered(tokens=tokens, key=key)):
                    assert tokens.turn == key
                    self.ids_of.setdefault(key, []).extend(tokens.ids)
                    self.text_of[key] = self.text_of.get(key, "") + tokens.text
                    if key not in self.idle:
                        self.taken(key)
                case Emit(value=Embedded(vector=vector, taken=taken, key=key)):
                    assert vector.turn == key
                    self.vectors_of.setdefault(key, []).append(vector.data)
                    if key not in self.idle:
                        self.client_did(self.client.handle(Command(TokensTaken(taken, key)), self.now))
                case Emit(value=(TurnDone() | TurnFailed() | SessionFailed() | Ended()) as outcome):
                    self.outcomes.append(outcome)
                case _:
                    pass
        self.check()


def credit_of(host: HostSession) -> PayCredit:
    """A host's pay credit; untouched before the session."""
    return host.session.channel.credit if host.session is not None else PayCredit()


def turns_of(host: HostSession) -> list[HostTurn]:
    """A host's turns under way."""
    return list(host.session.turns.values()) if host.session is not None else []


def turn_of(host: HostSession) -> HostTurn:
    """The one turn that is under way."""
    (turn,) = turns_of(host)
    return turn


def new_host(terms: HostTerms = TERMS) -> HostSession:
    """A host that admits everyone."""
    return HostSession(
        peer=CLIENT,
        stream=STREAM,
        admit=lambda _open: terms,
        sign=HOST.sign,
        epoch=3,
        draw=lambda count: bytes(range(count)),
        terms=terms,
    )


def new_client() -> ClientSession:
    """A client of that host."""
    return ClientSession(
        host=HOST.peer, stream=STREAM, model=MODEL, salt=SALT, holder=HOLDER, verify=verify_peer
    )
