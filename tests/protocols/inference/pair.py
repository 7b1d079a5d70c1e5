"""Both sides of a session on two wires in memory, with an engine whose every token is known.

Nothing moves by itself: tests say which wire delivers and when the engine speaks, so that any
interleaving can be played. Everything crosses as bytes. Invariants are checked at each step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from p2pnode.errors import WireCode
from p2pnode.ids import PeerId
from p2pnode.protocols.crypto import verify_peer
from p2pnode.protocols.events import Closed, Command, Effect, Emit, Received, Send, TimerFired
from p2pnode.protocols.inference.client import ClientSession
from p2pnode.protocols.inference.commands import (
    Ask,
    CancelGenerate,
    Delivered,
    Ended,
    Finished,
    GenDone,
    Generate,
    GenFailed,
    GenProgress,
    GenStarted,
    GenTokens,
    SessionFailed,
    Start,
    TurnDone,
    TurnFailed,
    TurnServed,
)
from p2pnode.protocols.inference.host import HostSession
from p2pnode.protocols.inference.messages import CODEC, WINDOW, ChatMessage, PromptBody, SamplingParams
from p2pnode.protocols.inference.open_session import HostTerms
from p2pnode.protocols.inference.replay import SendQueue
from tests.protocols.support import MODEL, Identity

HOST, CLIENT = Identity("host"), PeerId("client")
STREAM: Final = 1
TERMS: Final = HostTerms(n_ctx=4096)
SALT: Final = b"salt" * 8


def ask(tokens_max: int = 512, content: str = "hello", input_max: int = 4096) -> Ask:
    """A turn."""
    body = PromptBody(
        messages=(ChatMessage.of("user", content),),
        sampling=SamplingParams(tokens_max=tokens_max),
        seed=bytes(16),
    )
    return Ask(body, input_max)


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
    """The stage."""

    def __init__(self, terms: HostTerms = TERMS, answer_tokens: int = 100) -> None:
        self.now = 0.0
        self.answer_tokens = answer_tokens
        self.host, self.client = self.cast_sides(terms)
        self.to_host: deque[bytes] = deque()
        self.to_client: deque[bytes] = deque()
        self.run: Run | None = None
        self.old_runs: list[Run] = []
        self.turn = 0
        self.delivered: list[int] = []
        self.text = ""
        self.outcomes: list[TurnDone | TurnFailed | SessionFailed | Ended] = []
        self.served: list[TurnServed] = []
        self.finished: list[Finished] = []
        self.chunk_max = 0
        self.runs = 0
        self.receipts_checked = 0
        self.host_did(self.host.start(self.now))

    def cast_sides(self, terms: HostTerms) -> tuple[HostSession, ClientSession]:
        return new_host(terms), new_client()

    # ---- what a test can do

    def open(self) -> None:
        """To the point where the client may ask."""
        self.client_does(Start())
        self.settle()

    def ask(self, order: Ask) -> None:
        """Begin a turn."""
        self.turn += 1
        self.delivered, self.text = [], ""
        self.client_does(order)

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
        """One message, if there is one."""
        if not self.to_client:
            return False
        message = CODEC.decode(self.to_client.popleft())
        self.client_did(self.client.handle(Received(HOST.peer, STREAM, message), self.now))
        return True

    def engine(self, count: int = 16, *, hold: bool = False, run: Run | None = None) -> bool:
        """The engine makes up to ``count`` tokens; with ``hold`` their text comes later."""
        run = run or self.run
        if run is None:
            return False
        if not run.started:
            run.started = True
            self._report(run, GenStarted(run.order.run, 20 + len(run.order.body.prefix), 5))
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
        self._report(run, GenTokens(run.order.run, ids, text))
        if over and run is self.run:
            self._report(run, GenDone(run.order.run, run.reason))  # type: ignore[arg-type]
            if run is self.run:
                self.run = None
        return True

    def late_engine(self) -> bool:
        """A cancelled run that has not noticed yet reports once more."""
        return bool(self.old_runs) and self.engine(3, run=self.old_runs[-1])

    def fail_engine(self, code: WireCode = "internal", detail: str = "boom") -> bool:
        """The present engine request fails."""
        run, self.run = self.run, None
        if run is not None:
            self._report(run, GenFailed(run.order.run, code, detail, 1.0))
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
            case _:
                raise AssertionError(kind)

    def moves(self, count: int) -> list[bool]:
        return [self.deliver_to_host(), self.deliver_to_client(), self.engine(count)]

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
        queue = queue_of(self.host)
        assert queue.sent - queue.acknowledged <= WINDOW, "past the window"
        assert queue.waiting <= WINDOW + self.chunk_max, "too much buffered"
        if queue.waiting > WINDOW:
            assert self.run is None, "the engine runs on"
        assert self.delivered == [token(self.turn, n) for n in range(len(self.delivered))]
        assert len(self.finished) <= 1
        assert len(self.outcomes) <= self.turn + 1

    def _report(self, run: Run, command: Any) -> None:
        self.host_does(command)

    def host_did(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(message=message):
                    self.to_client.append(CODEC.encode(message))
                case Emit(value=Generate() as order):
                    assert self.run is None or self.run.cancelled, "two engine requests at once"
                    self._generate(order)
                case Emit(value=CancelGenerate(run=number)):
                    assert self.run is None or self.run.order.run == number
                    if self.run is not None:
                        self.old_runs.append(self.run)
                    self.run = None
                case Emit(value=TurnServed() as served):
                    self.served.append(served)
                case Emit(value=Finished() as finished):
                    self.finished.append(finished)
                case _:
                    pass
        self.check()

    def _generate(self, order: Generate) -> None:
        self.runs += 1
        made = len(order.answer_ids)
        assert list(order.answer_ids) == [token(self.turn, n) for n in range(made)]
        end = min(self.answer_tokens, made + order.tokens_max)
        reason = "stop" if end == self.answer_tokens else "length"
        self.run = Run(order, self.turn, made, made, end, reason)

    def client_did(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(message=message):
                    self.to_host.append(CODEC.encode(message))
                case Emit(value=Delivered(ids=ids, text=text)):
                    self.delivered.extend(ids)
                    self.text += text
                case Emit(value=(TurnDone() | TurnFailed() | SessionFailed() | Ended()) as outcome):
                    self.outcomes.append(outcome)
                case _:
                    pass
        self.check()


def queue_of(host: HostSession) -> SendQueue:
    """A host's queue; an empty one before the session."""
    return host.session.queue if host.session is not None else SendQueue()


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
    return ClientSession(host=HOST.peer, stream=STREAM, model=MODEL, salt=SALT, verify=verify_peer)
