"""What a session is to its host besides the stream it is on: its turns and its account.

Exactly one machine holds an open session, or none. A machine that finds another holder must not touch it
again. A paid session outlives its streams: while no machine holds it, its turns go on as far as their credit
reaches, and what they would have sent waits in the replay buffer. It knows nothing of the chain.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import TypeAlias

from p2pnode.errors import ProtocolError, WireCode
from p2pnode.ids import ModelId, SessionId
from p2pnode.protocols.effects import Effects
from p2pnode.protocols.events import Effect
from p2pnode.protocols.inference.channel import ChannelReceiver, HostTerms
from p2pnode.protocols.inference.commands import (
    Counted,
    CountFailed,
    GenDone,
    GenFailed,
    GenProgress,
    GenTokens,
    GenVector,
    GiveWay,
    Grown,
)
from p2pnode.protocols.inference.host_turn import NO_MEMORY, RETRY_S, HostTurn, Report
from p2pnode.protocols.inference.messages import (
    CHECKPOINT_EVERY,
    Ack,
    Done,
    Error,
    Open,
    Prompt,
    Receipt,
    Refuse,
    Resume,
    SessionTerms,
    Tokens,
    Voucher,
    prompt_bytes_max,
)
from p2pnode.protocols.inference.meter import Meter
from p2pnode.protocols.inference.turn_memory import KeptOutput, bytes_announced

TurnReport: TypeAlias = Report | Counted | CountFailed | Grown | GiveWay
"""What the role says of a turn."""


@dataclass(slots=True, eq=False, kw_only=True)
class OpenSession:
    """A session that was accepted."""

    session: SessionId
    model: ModelId
    granted: HostTerms
    epoch: int
    nonce: bytes
    """The next resume signs it."""
    channel: ChannelReceiver
    effects: Effects
    """Of the machine that holds it, or held it last: then they are muted."""
    salt: bytes = field(repr=False)
    holder_id: bytes
    """What the process of its client drew."""
    heard_at: float
    """When its client was heard last."""
    generation: int = 0
    """How often it was resumed after it was left."""
    turns: dict[int, HostTurn] = field(default_factory=dict)
    """Those under way, by number."""
    asked: int = 0
    """The last turn that was asked."""
    runs: int = 0
    """Engine requests of all its turns. Their numbers tell a late report of one from a report of the next."""
    holder: object | None = None
    """The machine whose stream it is on."""
    former_nonce: bytes | None = None
    """Good too until the client is heard on its new stream: the ``Accept`` that renewed it may be lost."""
    unheard: bool = False
    """Rebuilt from the journal, and the client not heard since: it may know neither nonce."""
    _frames: int = 0
    _kept: dict[int, KeptOutput] = field(default_factory=dict)
    """By turn: output of turns that are over, in the replay buffer."""

    @property
    def meter(self) -> Meter:
        """What was delivered and paid."""
        return self.channel.meter

    @property
    def unpaid(self) -> int:
        """Token units that this host delivered and no voucher covers."""
        channel = self.channel
        signed = channel.best.amount if channel.best is not None else channel.terms.session_fee
        return max(0, channel.cost - signed)

    @property
    def may_be_left(self) -> bool:
        """Whether its client may leave it now: this host keeps it, nothing is under way, and all is paid."""
        return self.granted.keep_s > 0 and not self.turns and not self.channel.owed

    def lapse(
        self, take: Callable[[OpenSession], Refuse | None], issued: Callable[[int, int], Receipt | None]
    ) -> LapsedSession:
        """What this host keeps of it for a client that left, or that lost its memory: no stream has it."""
        return LapsedSession(
            session=self.session,
            model=self.model,
            terms=self.channel.terms,
            salt=self.salt,
            granted=self.granted,
            voucher=self.channel.best,
            receipt=self.channel.last_receipt,
            generation=self.generation,
            left=True,
            issued=issued,
            take=take,
        )

    @property
    def reserved_out(self) -> int:
        """Output tokens that the deposit must have room for: some of each turn that was quoted."""
        return sum(turn.reserved_out for turn in self.turns.values() if turn.is_quoted)

    @property
    def is_starving(self) -> bool:
        """Whether nothing more can be done before the client pays or acknowledges."""
        serving = [turn for turn in self.turns.values() if turn.state == "serving"]
        if not serving:
            return any(turn.is_quoted for turn in self.turns.values())
        return self.channel.credit.left <= 0 and any(
            turn.needs_pay and not turn.is_unread for turn in serving
        )

    @property
    def is_unread(self) -> bool:
        """Whether a turn waits for its client to take what was sent."""
        return any(turn.is_unread for turn in self.turns.values())

    @property
    def prompt_by(self) -> float | None:
        """Until when the first of the prompts that are read must be whole."""
        return min((turn.prompt_by for turn in self.turns.values() if turn.state == "reading"), default=None)

    @property
    def read_by(self) -> float | None:
        """When the first turn ends whose output nobody takes."""
        return min((turn.read_by for turn in self.turns.values() if turn.read_by is not None), default=None)

    def next_run(self) -> int:
        """A number for an engine request."""
        self.runs += 1
        return self.runs

    # ---- memory

    @property
    def leaving(self) -> list[int]:
        """The turns that were told to give way, and are not over yet."""
        return [number for number, turn in self.turns.items() if self.granted.memory.is_leaving(turn)]

    def free_memory(self, turn: HostTurn) -> None:
        """A turn is over: give back what it held, but for what is kept of its output."""
        size = self.channel.replay.bytes_of(turn.number)
        if size:
            self._kept[turn.number] = self.granted.memory.keep(turn, size)
        else:
            self.granted.memory.release(turn)

    def _free_received(self) -> None:
        """Give back the memory of output that is kept no longer."""
        if self._kept:
            known = self.channel.replay.answered_since(0)
            for number in [each for each in self._kept if each not in known]:
                self.granted.memory.release(self._kept.pop(number))

    # ---- what the client says of its turns

    def prompt(self, part: Prompt, now: float, *, draining: bool) -> None:
        """Take a part of a prompt. One of a turn that is over means nothing.

        Raises ``ProtocolError`` when it isn't one that may follow.
        """
        turn = self.turns.get(part.turn)
        if turn is None and not 0 < part.turn <= self.asked:
            turn = self._begin(part, now, draining=draining)
        if turn is not None:
            turn.add(part)

    def _begin(self, first: Prompt, now: float, *, draining: bool) -> HostTurn | None:
        """The turn that a first part begins; None where it has its answer at once."""
        number, granted = first.turn, self.granted
        if number != self.asked + 1 or first.part != 0:
            msg = f"turn {self.asked + 1} starts with part 0"
            raise ProtocolError(msg)
        if len(self.turns) >= granted.turns_max:
            msg = (
                f"turn {number} while {len(self.turns)} turns are under way: {granted.turns_max} were granted"
            )
            raise ProtocolError(msg)
        self.asked = number
        self.channel.begin_turn(number, granted.turns_max, self.turns)
        self._free_received()
        bytes_max = prompt_bytes_max(granted.n_ctx)
        refusal = None
        is_parallel = bool(self.turns)  # one turn of each session needs no place
        if draining:
            refusal = Error(code="shutting_down", detail="this host is going away: try another", turn=number)
        elif first.total > bytes_max:
            detail = (
                f"a prompt of {first.total} bytes; a context of {granted.n_ctx} tokens "
                f"takes {bytes_max}: shorten the conversation"
            )
            refusal = Error(code="context_overflow", detail=detail, turn=number)
        elif is_parallel and not granted.places.enter():
            detail = "too many turns of yours are under way here: ask again when one is over"
            refusal = Error(code="rate_limited", detail=detail, retry_after_s=RETRY_S, turn=number)
        turn = HostTurn(number, first.total, self, now, is_parallel=is_parallel)
        if refusal is None and not granted.memory.hold(turn, bytes_announced(first.total)):
            if is_parallel:
                granted.places.leave()
            refusal = Error(code="capacity", detail=NO_MEMORY, retry_after_s=RETRY_S, turn=number)
        if refusal is not None:
            self.channel.end_turn(number)
            self.effects.send(refusal)
            return None
        self.turns[number] = turn
        return turn

    def credit(self, message: Ack | Voucher) -> bool:
        """Take an ack or a voucher; True when it is news. Raises ``ProtocolError``."""
        paid = self.channel.take(message, self.effects)
        if paid is None:
            return False
        if (turn := self.turns.get(paid)) is not None:
            turn.serve()
        return True

    def grant(self, number: int, upto: int) -> None:
        """The client takes output of a turn. Raises ``ProtocolError`` for more than it may give."""
        if number > self.asked:
            msg = f"read credit of turn {number}, which was not asked"
            raise ProtocolError(msg)
        if (turn := self.turns.get(number)) is not None:
            turn.read.grant(upto)
            # Vectors may be large, and no voucher says that they came: none of theirs is kept longer.
            self.channel.replay.forget(turn.received(upto))

    def cancel(self, number: int) -> None:
        """Cancel a turn; one that is not under way means nothing, for its answer may cross the cancel."""
        if (turn := self.turns.get(number)) is not None:
            turn.cancel()

    # ---- what the role says of them

    def report(self, report: TurnReport) -> None:
        """Take what a count or an engine request gave. What comes too late means nothing."""
        match report:
            case GiveWay():
                if (turn := self.turns.get(report.turn)) is not None:
                    turn.give_way()
            case Grown():
                if (turn := self.turns.get(report.turn)) is not None:
                    turn.grown(report.more)
            case Counted() | CountFailed():
                if (turn := self.turns.get(report.turn)) is not None:
                    turn.counted(report)
            case GenProgress() | GenTokens() | GenVector() | GenDone() | GenFailed():
                for turn in tuple(self.turns.values()):
                    turn.report(report)

    def report_detached(
        self, report: Report | Counted | CountFailed | Grown | GiveWay, now: float
    ) -> list[Effect]:
        """The same while no stream has the session: its output waits for whoever resumes it.

        Of the effects only what the machine emits counts.
        """
        if self.holder is not None:
            return []
        self.report(report)
        self.pump(now)
        return list(self.effects.take())

    # ---- what goes out

    def pump(self, now: float) -> None:
        """Send what credit allows, steer the engines, and answer the turns that are done."""
        while (turn := self._next_to_send()) is not None:
            self._send_frame(turn)
        if any(turn.needs_pay for turn in self.turns.values()) and self.channel.affordable <= 0:
            for turn in tuple(self.turns.values()):
                if turn.is_quoted and not turn.embeds:
                    turn.lacks_deposit()
        for turn in tuple(self.turns.values()):
            turn.steer()
            turn.conclude()
            turn.watch_reading(now)
        self._free_received()

    def _next_to_send(self) -> HostTurn | None:
        """Of the turns that may send, the one that did so longest ago."""
        ready = [turn for turn in self.turns.values() if turn.is_ready]
        if ready and min(self.channel.credit.left, self.channel.affordable) <= 0:
            ready = [turn for turn in ready if not turn.needs_pay]
        return min(ready, key=lambda turn: turn.last_sent) if ready else None

    def _send_frame(self, turn: HostTurn) -> None:
        """Send a turn's next frame: its share of the pay credit at most, and up to the next receipt."""
        others = sum(each.is_ready and each.needs_pay for each in self.turns.values())
        share = max(1, self.channel.credit.left // max(1, others))
        most = min(share, turn.read.left, self.channel.affordable, CHECKPOINT_EVERY - self.meter.unreceipted)
        frame = turn.next_frame(max(1, most))
        self._frames += 1
        turn.last_sent = self._frames
        self.effects.send(frame)
        if isinstance(frame, Tokens):
            self.channel.credit.spend(len(frame.ids))
        else:
            turn.sent(self.channel.replay.count)
        if self.meter.unreceipted >= CHECKPOINT_EVERY:
            self.channel.issue(self.effects)

    def end_unread(self, now: float) -> None:
        """End the turns whose output nobody has taken for too long."""
        for turn in tuple(self.turns.values()):
            if turn.read_by is not None and turn.read_by <= now:
                turn.fail("stalled", "the output of this turn was not taken in time", as_="stalled")

    # ---- endings

    def detach(self) -> None:
        """The stream is gone: prompts that are not whole end, and the other turns go on."""
        self.effects.muted = True
        self.end_prompts()
        self.holder = None

    def end_prompts(self) -> None:
        """End the turns whose prompt never came whole."""
        for turn in tuple(self.turns.values()):
            if turn.state == "reading":
                turn.cancel()

    def end_all(self) -> None:
        """End all turns as cancelled, for a client that does not know them any more."""
        for turn in tuple(self.turns.values()):
            turn.cancel()

    def abandon(self, reason: str) -> None:
        """The session is over: nobody is answered."""
        for turn in tuple(self.turns.values()):
            turn.abandon(reason)
        for kept in self._kept.values():
            self.granted.memory.release(kept)
        self._kept.clear()
        self.holder = None

    def fail_prompts(self, code: WireCode, detail: str) -> None:
        """End the turns whose prompt can't come whole, or is not wanted any more, each with an error."""
        for turn in tuple(self.turns.values()):
            if turn.state == "reading":
                turn.fail(code, detail)

    def answer_unasked(self, turns: Collection[int], last: int) -> None:
        """Answer turns of which nothing arrived here; ``last`` is the last that was asked."""
        for number in sorted(turns):
            self.effects.send(Done(turn=number, reason="cancelled", tokens_in=0, reused=0, tokens_out=0))
        self.asked = max(self.asked, last)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class LapsedSession:
    """A session that no stream has and no machine holds, as this host keeps it. ``host_open`` rebuilds it.

    It was *left*, or an earlier start of this host served it. One that was left is rebuilt from what is here;
    of the other its client must show as much as it has paid for. Within one start a session that wasn't left
    is rebuilt once, for this host may not know what it signed in it before.
    """

    session: SessionId
    model: ModelId
    terms: SessionTerms
    """Of a free one: no prices, and its resume key in the voucher key's place."""
    salt: bytes = field(repr=False)
    granted: HostTerms
    voucher: Voucher | None
    """The best there is."""
    receipt: Receipt | None = None
    """The last that was issued, where it was left."""
    generation: int = 0
    left: bool = False
    issued: Callable[[int, int], Receipt | None]
    """The receipt that was written down for an epoch and a place."""
    take: Callable[[OpenSession], Refuse | None]
    """The role's last word, once the proof held: it refuses, or this is the session from now on, for whoever
    looks for it."""


Admit: TypeAlias = Callable[[Open], HostTerms | Refuse]
"""The role's decision on an ``Open``: what it grants, or why not. With terms: after ``check_open``."""
FindSession: TypeAlias = Callable[[Resume], OpenSession | LapsedSession | Refuse]
"""The role's answer to a ``Resume``: the session it keeps, or why there is none. It checks no proof."""
