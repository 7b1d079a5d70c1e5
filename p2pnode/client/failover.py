"""What follows when a host's part of an answer is over, or its host is too slow: the policy of one answer.

``Failover`` holds the partial answer, its bill and the attempt that runs, and decides on who is asked next,
for what, and what the user is told in the end. Pure: it opens, pays, dials and waits for nothing. Times are
seconds of a monotonic clock, and arguments.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, TypeVar

from p2pnode.client.bill import Bill, BillItem
from p2pnode.client.ranking import Candidate, Ranking, is_priced
from p2pnode.errors import (
    WIRE_CODES,
    ConfigError,
    DisagreementError,
    HostFault,
    LocalError,
    NoHostError,
    P2PNodeError,
    RefusedError,
    RemoteError,
    UnpaidError,
    UnreachableError,
    UsageError,
)
from p2pnode.ids import PeerId, SessionId
from p2pnode.models.answer import Said
from p2pnode.protocols.inference.embeddings import FLOAT_BYTES
from p2pnode.protocols.inference.messages import CHECKPOINT_EVERY, PREFIX_MAX, FinishReason, PromptBody
from p2pnode.protocols.inference.prompt_rules import next_seed

if TYPE_CHECKING:  # a command that asks through a gateway has no session
    from p2pnode.protocols.inference.commands import Quoted, SessionFailed, TurnDone, TurnFailed

Move: TypeAlias = Literal["finish", "again", "next", "stop"]
"""``finish``: the answer is whole. ``again``:
ask the same host, in its session where that lives. ``next``: ask the next host by rank. ``stop``: nobody can
go on, or nobody should, and the user is told why."""

_REFUSED_BY_ALL: Final = frozenset({"bad_request"})
"""Codes that every host would answer with. One host alone may lie: it takes two of them to end an answer."""
_WITNESSES: Final = 2
AGAIN_MAX: Final = 2
"""So often one answer asks the same host once more. A host that hangs up costs an answer so many attempts."""
_EMPTY: Final = "the host was paid for the question and ended its answer without a token"
HEDGED: Final = "hedged"
"""On the bill: another host's first token came first."""
DISAGREES: Final = "disagrees"
"""On the bill: what the host sent can't follow what others sent."""
_SLOW_SHARE: Final = 0.1
"""A host is slow below this share of the median speed."""
_BETTER_FACTOR: Final = 2
"""A slow host is left for one that was measured to be more than so many times as fast."""
_REASONS_SHOWN: Final = 4
ALONE: Final = (
    "this node knows no other: no first peer was named, none is saved, and none is on the local network"
)
HONEST: Final[frozenset[str]] = WIRE_CODES - {"internal", "stalled"} - _REFUSED_BY_ALL
"""A host that answers with one of these did not fail: it is busy, or the question is not for it."""
E = TypeVar("E", bound=P2PNodeError)


# ---- the answer so far


@dataclass(frozen=True, slots=True)
class Held:
    """A partial answer to go on from. ``text`` is that of the first ``text_known`` of its ``ids``.

    ``calls`` are names and arguments of tools that were called, the last perhaps in part.
    """

    ids: tuple[int, ...]
    text: str
    text_known: int
    reasoning: str = ""
    calls: tuple[tuple[str, str], ...] = ()
    aside: int = 0
    """Bytes that it said in thoughts and calls which are not here: they were not kept."""
    seed: bytes = b""
    """What follows is drawn from this one; from that of the prompt where it is empty."""

    @property
    def said_aside(self) -> int:
        """UTF-8 bytes of all that it says beside its text."""
        said = (self.reasoning, *(part for call in self.calls for part in call))
        return self.aside + sum(len(part.encode(errors="replace")) for part in said)


@dataclass(slots=True)
class PartialAnswer:
    """What came of the answer to ``body``, which has no prefix.

    Text may come later than its ids, and the host that sent the ids may be gone by then: ``text`` is that of
    the first ``text_known`` ids. What the user has seen can't be taken back, so it stays whatever is learnt
    of its host later.
    """

    body: PromptBody
    ids: list[int] = field(default_factory=list)
    text: str = ""
    text_known: int = 0
    reasoning: str = ""
    calls: list[tuple[str, str]] = field(default_factory=list)
    """Names and arguments of the tools that were called."""
    aside: int = 0
    """Bytes said in thoughts and calls of which nothing is here."""
    said_aside: int = 0
    """Bytes said in all thoughts and calls."""
    receipted: int = 0
    """How many ids a host's receipt covers. When a host is gone, the ids it left count as covered."""
    vectors: dict[int, bytes] = field(default_factory=dict)
    """Those of the texts that are embedded, by the text's place: a receipt covers each."""
    vector_size: int = 0
    """How many bytes each has, where earlier ones of the same list of texts say so; otherwise 0."""
    _vectors_coming: list[bytes] = field(default_factory=list)
    """Of the turn that runs, in the order of its texts: no receipt covers them yet."""
    seed: bytes = b""
    """What is asked for next is drawn from this one; from that of the prompt where it is empty."""
    _others_began: bool = False
    """Whether the call of a tool that runs was begun by another host than the one that goes on with it."""

    @classmethod
    def of(cls, body: PromptBody, held: Held | None) -> PartialAnswer:
        """The answer to ``body`` that goes on from ``held``."""
        if held is None:
            return cls(body)
        known = min(held.text_known, len(held.ids))
        return cls(
            body,
            list(held.ids),
            held.text,
            known,
            held.reasoning,
            list(held.calls),
            held.aside,
            held.said_aside,
            seed=held.seed,
            _others_began=bool(held.ids),
        )

    @property
    def held(self) -> Held:
        """What another answer can go on from."""
        return Held(
            tuple(self.ids),
            self.text,
            self.text_known,
            self.reasoning,
            tuple(self.calls),
            self.aside,
            self.seed,
        )

    def take(self, ids: Sequence[int], said: Said) -> None:
        """Add what a host sent. A text that is not empty completes the text of all ids so far.

        Raises ``HostFault`` for a piece of a call that was not begun, and ``DisagreementError`` where it was
        another host that said so.
        """
        self.ids.extend(ids)
        if said.channel != "content":
            self.said_aside += len(said.text.encode(errors="replace")) + len(
                said.name.encode(errors="replace")
            )
        match said.channel:
            case "content":
                self.text += said.text
            case "reasoning":
                self.reasoning += said.text
            case "call":
                self._take_call(said)
        if said.text:
            self.text_known = len(self.ids)

    def _take_call(self, said: Said) -> None:
        if self.aside and said.call >= len(self.calls):
            # Earlier calls, or the beginning of this one, were not kept.
            begun = said.call + (not said.name)
            self.calls += [("", "")] * (begun - len(self.calls))
        if said.name and said.call == len(self.calls):
            self.calls.append((said.name, said.text))
        elif not said.name and said.call == len(self.calls) - 1:
            name, arguments = self.calls[-1]
            self.calls[-1] = (name, arguments + said.text)
        else:
            msg = f"the host sent a piece of call {said.call} when {len(self.calls)} were begun"
            if self._others_began:
                raise DisagreementError(f"{msg} by other hosts")
            raise HostFault(msg)
        self._others_began = False

    def take_vector(self, data: bytes) -> None:
        """Add a vector of the turn that runs. It counts once a receipt covers it.

        Raises ``DisagreementError`` where it can't be of the model that earlier ones are of.
        """
        if self.vector_size and len(data) != self.vector_size:
            sizes = len(data) // FLOAT_BYTES, self.vector_size // FLOAT_BYTES
            msg = "the host made a vector of {} numbers after other hosts' vectors of {}".format(*sizes)
            raise DisagreementError(msg)
        self._vectors_coming.append(data)

    def receipt(self) -> None:
        """The host's receipt over everything so far was checked."""
        self.receipted = len(self.ids)
        coming = self._vectors_coming
        places = self.places_missing
        if coming and any(len(each) != len(coming[0]) for each in self.vectors.values()):
            # Two hosts signed for vectors of different sizes. Either may lie: the older ones are asked for
            # again, so that no host that gave one and left can keep all others from answering.
            self.vectors.clear()
        self.vectors.update(zip(places, coming, strict=False))
        coming.clear()

    def left_by_host(self) -> None:
        """A host is gone. Vectors that no receipt of it covers prove nothing."""
        self._vectors_coming.clear()
        self._others_began = bool(self.ids)

    def draw_anew(self) -> None:
        """What follows is drawn from another seed, for the host could see what this one gives."""
        self.seed = next_seed(self.seed or self.body.seed)

    def drop_unproven(self) -> int:
        """Drop ids whose text nobody saw and that no receipt covers; returns how many.

        For a host that broke the protocol. A receipt proves who sent an id, not that a model made it: so text
        that was seen without a receipt is worth no less, and stays, unpaid.
        """
        return self._keep(max(self.text_known, self.receipted))

    def drop_unseen(self) -> int:
        """Drop ids whose text nobody saw, also those that a receipt covers; returns how many.

        For a prompt with these ids that was called wrong: another host may have made them up and signed.
        """
        return self._keep(self.text_known)

    def _keep(self, count: int) -> int:
        dropped = len(self.ids) - count
        del self.ids[count:]
        self.receipted = min(self.receipted, count)
        return dropped

    @property
    def size(self) -> int:
        """How many output tokens, or vectors, are here."""
        return len(self.ids) + len(self.vectors)

    @property
    def room(self) -> int:
        """How many output tokens, or vectors, may still come."""
        most = len(self.body.embed) if self.body.embed else self.body.sampling.tokens_max
        return max(0, most - self.size)

    @property
    def continuable(self) -> bool:
        """Whether a prompt can hold these ids and ask for more."""
        return self.room > 0 and len(self.ids) <= PREFIX_MAX

    @property
    def places_missing(self) -> list[int]:
        """Places of the texts that have no vector yet."""
        return [place for place in range(len(self.body.embed)) if place not in self.vectors]

    def next_prompt(self) -> PromptBody:
        """What to ask the next host for: the rest."""
        body = replace(self.body, seed=self.seed or self.body.seed)
        if self.body.embed:
            return replace(body, embed=tuple(self.body.embed[place] for place in self.places_missing))
        if not self.ids:
            return body
        return replace(
            body,
            sampling=replace(self.body.sampling, tokens_max=self.room),
            prefix=tuple(self.ids),
            text_bytes=len(self.text.encode(errors="replace")) + self.said_aside,
        )


# ---- one attempt


@dataclass(slots=True, kw_only=True)
class Attempt:
    """A turn that one host was asked for, and what came of it."""

    peer: PeerId
    session: SessionId
    paid: bool
    """Whether the session is paid."""
    reused: bool
    """Whether the session served an earlier turn."""
    prefix: int
    """How many ids of the answer went along with the prompt."""
    started_at: float
    first_at: float | None = None
    """When the first token came."""
    tokens_in: int = 0
    tokens_cached: int = 0
    """Input tokens that the host had in its cache."""
    tokens_out: int = 0
    messages_tokens: int | None = None
    """Input tokens without the prefix, once the host has counted them."""
    turn_over: bool = False
    """Whether the session is free for another turn."""
    restarted: bool = False
    """Whether the host restarted in the middle of the turn."""
    is_empty: bool = False
    """Whether the host was paid for the input, and ended the turn in order without a token."""
    engine_restarted: bool = False
    """Whether the host's engine did, and went on with the answer: that counts against the host."""
    host_failed: bool = False
    """Whether the host ended it, or was lost, without a cause here."""
    vectors_out: int = 0
    vectors_receipted: int = 0
    """How many of them the host's receipts cover."""
    tokens_receipted: int = 0
    """How many output tokens they cover."""
    _arrivals: deque[tuple[float, int]] = field(default_factory=deque)
    """When tokens were taken, and how many."""

    @property
    def fruitful(self) -> bool:
        """Whether enough came to ask this host again. A paid one bills its input anew, so it needs more."""
        # Of texts that are embedded only those that are missing are asked for again.
        return self.vectors_receipted > 0 or self.tokens_out >= (CHECKPOINT_EVERY if self.paid else 1)

    def quoted(self, quoted: Quoted) -> None:
        """The host counted the input."""
        self.tokens_in, self.tokens_cached = quoted.quote.tokens_in, quoted.quote.reused
        self.messages_tokens = self.tokens_in - self.prefix

    def delivered(self, count: int, now: float) -> None:
        """So many output tokens came."""
        if self.first_at is None:
            self.first_at = now
        self._arrivals.append((now, count))
        self.tokens_out += count

    def embedded(self, now: float) -> None:
        """A vector came."""
        if self.first_at is None:
            self.first_at = now
        self.vectors_out += 1

    def receipted(self) -> None:
        """The host's receipt over everything so far was checked."""
        self.vectors_receipted, self.tokens_receipted = self.vectors_out, self.tokens_out

    @property
    def took(self) -> bool:
        """Whether the host was to be paid for the input."""
        return self.paid and self.tokens_in > self.tokens_cached

    def done(self, over: TurnDone) -> None:
        """The host ended the turn. By its count, which was checked, input whose voucher was lost is free."""
        self.tokens_in, self.tokens_cached = over.done.tokens_in, over.done.reused
        self.turn_over = True
        came = self.tokens_out or self.vectors_out
        self.is_empty = self.took and not came and over.done.reason != "cancelled"

    def failed(self, failed: TurnFailed) -> None:
        """The turn failed, and the session goes on."""
        self.turn_over, self.restarted = True, failed.cause == "restarted"

    def pace(self, now: float, window_s: float) -> float | None:
        """Tokens a second over the last ``window_s``; None until so long after the first token."""
        if self.first_at is None or self.vectors_out or now - self.first_at < window_s:
            return None
        while self._arrivals and self._arrivals[0][0] <= now - window_s:
            self._arrivals.popleft()
        return sum(count for _, count in self._arrivals) / window_s

    def ttft_s(self, now: float) -> float:
        """Seconds to the first token; to ``now`` where none came."""
        return (self.first_at if self.first_at is not None else now) - self.started_at

    def speed(self, now: float) -> float | None:
        """Tokens a second after the first; None where all came at once."""
        if self.first_at is None or self.tokens_out <= 1 or now <= self.first_at:
            return None
        return (self.tokens_out - 1) / (now - self.first_at)


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionState:
    """What the session of an attempt is like when the attempt is over."""

    cost: int = 0
    """What its host can claim for the attempt, in token units."""
    n_ctx: int = 0
    lost: bool = False
    """Whether the connection broke, and the session with it."""
    covers_more: bool = True
    """Whether its deposit is enough for another turn like this; always where it is free."""
    slept: bool = False
    """Whether this machine slept during the attempt: then the host is as good as before."""


# ---- the decision


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """What the next move depends on when an attempt is over, or could not begin."""

    held: int = 0
    """Output tokens that are here."""
    continuable: bool = True
    """Whether more may come, and a prompt can hold what is here."""
    room: int = 1
    """Output tokens that may still come."""
    attempts_left: int = 1
    """How many more turns this answer may take, of any host."""
    cancelled: bool = False
    """Whether the user ended the answer."""
    progressed: bool = False
    """Whether this attempt brought a token."""
    fruitless: int = 0
    """How many attempts at this host in a row, up to this one, brought nothing or too little."""
    refusals: int = 0
    """How many hosts, up to this one, called the question itself wrong."""
    disputes: int = 0
    """How many hosts, up to this one, could not go on from what others sent."""
    dropped: bool = False
    """Whether something of what others sent was dropped, so that this host may be able to go on now."""
    again: int = 0
    """How often the host was asked once more already for this answer, without the reader's doing."""
    reused: bool = False
    """Whether the session served an earlier turn."""
    lost: bool = False
    """Whether the connection broke, and the session with it."""
    restarted: bool = False
    """Whether the host restarted in the middle of the turn: then it is there, and the session goes on."""
    slept: bool = False
    """Whether this machine slept during the attempt: then the host is as good as before."""
    used_up: bool = False
    """Whether the deposit of its session is used up: then the host is there, and takes another one."""
    asked_again: bool = False
    """Whether the host was asked again already, after it had failed or refused."""
    paid: bool = False
    """Whether the session is paid. Then it was tried to resume it, and another one costs another fee."""
    empty: bool = False
    """Whether the host was paid for the input, and ended the turn in order without a token."""


def after_turn(reason: FinishReason, situation: Situation) -> Move:
    """What follows when the host ended the turn in order.

    A turn that nobody cancelled ends as ``cancelled`` only where a stream was lost and the session resumed.
    """
    if reason != "cancelled" or situation.cancelled or (situation.held and not situation.room):
        return "finish"
    if not situation.continuable or not situation.attempts_left:
        return "stop"
    return "again" if _may_go_again(situation) else "next"


def _may_go_again(situation: Situation) -> bool:
    return situation.fruitless <= 1 and situation.again < AGAIN_MAX


def after_failure(error: P2PNodeError, situation: Situation) -> Move:
    """What follows when the turn, the session, the host or this side failed."""
    if situation.cancelled or (situation.held and not situation.room):
        return "finish"
    if is_final(error, situation.refusals) or not situation.continuable or not situation.attempts_left:
        return "stop"
    if situation.disputes >= _WITNESSES:
        return "stop"
    honest = _is_honest(error)
    # A session from before may have ended because of its age: that says nothing of the host.
    aged = situation.reused and not situation.progressed and not honest
    # A free session ends with its connection, and the host may live. A paid one was tried to resume already.
    broke = situation.lost and situation.progressed and not situation.paid
    slept = situation.slept and not honest
    # Another machine has the session that was left: the host is there, and others would take a fee as well.
    # Once: no host may say so without end.
    taken = isinstance(error, RefusedError) and error.code == "in_use" and not situation.asked_again
    there = situation.restarted or situation.dropped or (situation.used_up and honest)
    same_host = aged or broke or slept or taken or there
    return "again" if same_host and _may_go_again(situation) and not situation.empty else "next"


def _is_honest(error: P2PNodeError) -> bool:
    """Whether a host that answers so did not fail."""
    return isinstance(error, RefusedError) and error.code in HONEST


def is_failure(error: P2PNodeError) -> bool:
    """Whether no host was there, or one was lost, failed or broke the protocol: another one may do better."""
    refusal = _is_honest(error) or calls_question_wrong(error)
    return isinstance(error, RemoteError) and not refusal


def calls_question_wrong(error: P2PNodeError) -> bool:
    """Whether a host says by this error that the question itself is wrong."""
    return isinstance(error, RefusedError) and error.code in _REFUSED_BY_ALL


def is_final(error: P2PNodeError, refusals: int) -> bool:
    """Whether every other host would give the same error. ``refusals``: so many called the question wrong."""
    return isinstance(error, LocalError) or (calls_question_wrong(error) and refusals >= _WITNESSES)


def least_pace(usual: Iterable[float], *, floor: float, ceiling: float) -> float:
    """Tokens a second below which a host is slow: a tenth of the median of what hosts gave this client.

    At least ``floor``. At most ``ceiling``: what a person can read along with is not slow, however fast other
    hosts are.
    """
    known = sorted(usual)
    return min(ceiling, max(floor, known[len(known) // 2] * _SLOW_SHARE if known else floor))


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptEnd:
    """An attempt that is over, as it stands on the bill."""

    attempt: Attempt
    item: BillItem
    context_needed: int | None
    """Tokens of context that the next host needs; None where the input was not counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What follows now. ``ended`` is the attempt that is over; None where none had begun."""

    move: Move
    ended: AttemptEnd | None = None
    finish: FinishReason = "length"
    """Of ``finish``: how the answer ended."""
    stop: str = ""
    """Of ``finish``: the stop string that ended it, if any."""
    error: P2PNodeError | None = None
    """Of ``stop``: what the user is told."""
    blames: bool = False
    """Whether the failure counts against the host."""
    took_for_nothing: bool = False
    """Of one that does: whether the host was to be paid for the input, and too little came to be worth it."""


class Failover:
    """The policy of one answer, of which ``partial`` is here: at most ``attempts_max`` turns of any hosts.

    The caller takes a host (the next one where :attr:`wants_next_host`), calls :meth:`begin`, opens a
    session, calls :meth:`opened` and reports what became of the turn: :meth:`turn_ended`, :meth:`failed` or
    :meth:`abandon`. Each of them ends the attempt and says what follows.
    """

    def __init__(self, partial: PartialAnswer, *, attempts_max: int) -> None:
        self.partial = partial
        self.bill = Bill()
        self.attempt: Attempt | None = None
        """The one that runs."""
        self.cancelled = False
        """Whether the user ended the answer."""
        self.context_used = self.n_ctx = 0
        """Tokens that the conversation takes at the last host, and that host's context."""
        self._attempts_left = self._attempts_max = attempts_max
        self._move: Move = "next"
        self._same_host = False
        """Whether the attempt that runs, or could not begin, is at the host of the one before."""
        self._fruitless = self._again = self._refusals = self._disputes = self._empty = 0
        self._last_error: P2PNodeError | None = None
        self._went_on = bool(partial.ids)
        """Whether it goes on from an answer of which it isn't known who sent it."""
        self._senders: set[PeerId] = set()
        """Hosts that sent something of what is here."""

    # ---- attempts

    @property
    def wants_next_host(self) -> bool:
        """Whether another host is to be asked; otherwise the last one again."""
        return self._move == "next"

    def begin(self) -> None:
        """A host is to be asked for ``partial.next_prompt()``."""
        self._same_host = self._move == "again"
        self._again = self._again + 1 if self._same_host else 0
        if not self._same_host:
            self._fruitless = 0
        self._move, self._attempts_left = "next", self._attempts_left - 1

    def opened(self, attempt: Attempt) -> None:
        """There is a session, in which the host is asked."""
        self.attempt = attempt

    @property
    def may_ask_second(self) -> bool:
        """Whether another host may be asked for the same: nothing of the answer is here yet."""
        partial, attempt = self.partial, self.attempt
        if attempt is None or attempt.first_at is not None or partial.size or partial.body.embed:
            return False
        return not self.cancelled and self._attempts_left > 1

    def second_asked(self) -> None:
        """A second host is asked for the same: that is an attempt, too."""
        self._attempts_left -= 1

    def take_over(self, attempt: Attempt) -> None:
        """The second host's attempt is the one that runs from now on; the other is over, or was given up."""
        self.attempt, self._move, self._same_host = attempt, "next", False
        self._fruitless = self._again = 0

    def given_up(self, attempt: Attempt, state: SessionState) -> AttemptEnd:
        """An attempt beside the one that runs is over. Nothing of it is in the answer, all that it took is on
        the bill."""
        item = BillItem(
            peer=attempt.peer,
            session=attempt.session,
            tokens_in=attempt.tokens_in,
            reused=attempt.tokens_cached,
            tokens_out=attempt.tokens_out,
            cost=state.cost,
            reason=HEDGED,
        )
        self.bill.add(item)
        return AttemptEnd(attempt=attempt, item=item, context_needed=None)

    def second_failed(
        self, error: P2PNodeError, attempt: Attempt | None, state: SessionState | None
    ) -> Decision:
        """The second host could not be asked, or failed before its first token; the first one goes on."""
        blames = isinstance(error, RemoteError) and self._blames(error, attempt, state, disputes=False)
        return Decision(
            move="next",
            blames=blames,
            took_for_nothing=blames and attempt is not None and self._gave_little(attempt),
        )

    def begin_anew(self, partial: PartialAnswer) -> None:
        """Ask for another answer instead, of which nothing is here: any host may be asked again."""
        self.partial, self._attempts_left = partial, self._attempts_max
        self._move, self._last_error = "next", None
        self._fruitless = self._again = self._refusals = self._disputes = self._empty = 0

    def spare_attempt(self) -> None:
        """The reader gives the host's place back: that is no attempt of the answer's."""
        self._attempts_left, self._again = self._attempts_left + 1, self._again - 1

    def turn_ended(self, over: TurnDone, state: SessionState, *, early: str = "") -> Decision:
        """The host ended its turn; ``early`` is why this side wanted it to end, for the bill.

        Raises ``UnreachableError`` where the turn was lost and nobody can go on, and ``RefusedError`` where a
        host was paid for a question and gave nothing: report that as a failure.

        An answer of no token may be right: a second host that gives none proves it, and the rest of an answer
        may be none. But it is also the cheapest way to take pay for a question, so it counts against its
        host, and that session is not used again.
        """
        attempt = self._running()
        attempt.done(over)
        blames = False
        if attempt.is_empty and not self.cancelled:
            self._empty += 1
            if not self.partial.ids and self._empty < _WITNESSES:
                raise RefusedError("internal", _EMPTY)
            blames = self._empty < _WITNESSES
        reason = over.done.reason
        move = after_turn(reason, self._situation(attempt, state))
        if reason == "cancelled" and not self.cancelled:
            reason = "length"  # nobody cancelled it: where the answer is finished, all of it came
        if move == "stop":
            raise UnreachableError("the connection to the host was lost, and the turn with it")
        ended = self._end(attempt, state, reason if move == "finish" else early or "lost")
        self._move = move
        return Decision(
            move=move,
            ended=ended,
            finish=reason,
            stop=over.done.stop,
            blames=blames,
            took_for_nothing=blames,
        )

    def failed(self, error: P2PNodeError, state: SessionState | None) -> Decision:
        """The attempt failed, or the host could not be asked; then there is no ``state``."""
        attempt = self.attempt
        dropped = 0
        if attempt is not None and isinstance(error, HostFault | DisagreementError):
            # Of other hosts' ids there may be some among them: these are on the bill.
            dropped = min(self.partial.drop_unproven(), attempt.tokens_out)
        disputes = self._is_disputed_by(error, attempt)
        if attempt is not None and isinstance(error, RemoteError) and not (_is_honest(error) or disputes):
            attempt.host_failed = True
        unseen = self.partial.drop_unseen() if disputes and calls_question_wrong(error) else 0
        self._refusals += calls_question_wrong(error) and not disputes
        self._disputes += disputes and not unseen
        situation = replace(self._situation(attempt, state), dropped=unseen > 0)
        move = after_failure(error, situation)
        blames = self._blames(error, attempt, state, disputes=disputes)
        ended = None
        if attempt is not None and state is not None:
            lost = situation.lost or attempt.restarted
            ended = self._end(attempt, state, reason_of(error, lost=lost), dropped=dropped)
        if attempt is not None or not self._same_host:  # that it can't be reached again says less
            self._last_error = error
        self._move = move
        as_it_is = is_final(error, self._refusals) or not situation.held or bool(self.partial.body.embed)
        shown = error if as_it_is else too_long(error)
        if self.is_disputed:
            shown = not_continuable(error)
        return Decision(
            move=move,
            ended=ended,
            error=shown if move == "stop" else None,
            blames=blames,
            took_for_nothing=blames and attempt is not None and self._gave_little(attempt),
        )

    def _gave_little(self, attempt: Attempt) -> bool:
        """Whether a host that failed took the input for less than a receipt's tokens, or for less than half
        of the vectors: a token each time must not make good for it."""
        if self.partial.body.embed:
            return attempt.took and attempt.vectors_receipted < self.partial.room
        return attempt.took and not attempt.fruitful

    @property
    def is_disputed(self) -> bool:
        """Whether two hosts could not go on from what is here: then no other one is asked to."""
        return self._disputes >= _WITNESSES

    def abandon(self, state: SessionState) -> AttemptEnd:
        """The user ended the answer, and the host did not end its turn in time."""
        return self._end(self._running(), state, "cancelled")

    def leaves_for(self, pace: float, other: Candidate | None, other_speed: float | None) -> bool:
        """Whether to leave a slow host for another one, which gave ``other_speed`` tokens a second before.

        A free host is not left for one that asks for money: it may be slow because it is free.
        """
        attempt = self._running()
        return (
            other is not None
            and self._attempts_left > 0
            and self.partial.continuable
            and (attempt.paid or not is_priced(other.offer))
            and (other_speed is None or other_speed > _BETTER_FACTOR * pace)
        )

    def leave_host(self) -> None:
        """Ask the next host, although the last one ended its turn in order: it is too slow."""
        self._move = "next"

    def no_host(
        self,
        ranking: Ranking,
        failures: Mapping[PeerId, str],
        *,
        see: str = "hosts --why",
        alone: bool = False,
    ) -> P2PNodeError:
        """What the user is told when there is no host to ask. ``see`` and ``alone``: as :func:`nobody`."""
        last, body = self._last_error, self.partial.body
        if self.partial.size and not body.embed:
            return nobody_left(last, ranking)
        if isinstance(last, RefusedError) and last.code == "context_overflow" and not body.embed:
            return overflow(last, see=see)
        return last or nobody(ranking, failures, see=see, alone=alone)

    # ----

    def _running(self) -> Attempt:
        if self.attempt is None:
            raise RuntimeError("no attempt runs")
        return self.attempt

    def _is_disputed_by(self, error: P2PNodeError, attempt: Attempt | None) -> bool:
        """Whether a host says no more than that it can't go on from what others sent: they may have lied, or
        it may, and that counts against neither."""
        others = self._went_on or bool(self._senders - {attempt.peer if attempt is not None else None})
        if isinstance(error, DisagreementError):
            return others or bool(self.partial.vector_size)
        asked = attempt is not None and attempt.prefix > 0 and not attempt.tokens_out
        return asked and others and calls_question_wrong(error)

    @staticmethod
    def _blames(
        error: P2PNodeError, attempt: Attempt | None, state: SessionState | None, *, disputes: bool
    ) -> bool:
        if not (_is_honest(error) or disputes):
            return True
        if isinstance(error, DisagreementError):  # what it sent is worth its pay, if it is right
            return False
        # It took money for the input, and the deposit covers more output: then no code excuses it.
        took = attempt is not None and attempt.paid and attempt.tokens_in > attempt.tokens_cached
        return took and state is not None and state.covers_more

    def _situation(self, attempt: Attempt | None, state: SessionState | None) -> Situation:
        partial = self.partial
        situation = Situation(
            held=partial.size,
            room=partial.room,
            continuable=partial.continuable,
            attempts_left=self._attempts_left,
            cancelled=self.cancelled,
            refusals=self._refusals,
            disputes=self._disputes,
            again=self._again,
            asked_again=self._same_host,
        )
        if attempt is None or state is None:
            return situation
        return replace(
            situation,
            progressed=attempt.tokens_out + attempt.vectors_out > 0,
            fruitless=self._fruitless_with(attempt),
            reused=attempt.reused,
            lost=state.lost,
            restarted=attempt.restarted,
            paid=attempt.paid,
            empty=attempt.is_empty,
            slept=state.slept,
            used_up=attempt.paid and not state.covers_more,
        )

    def _fruitless_with(self, attempt: Attempt) -> int:
        return 0 if attempt.fruitful else self._fruitless + 1

    def _end(self, attempt: Attempt, state: SessionState, reason: str, *, dropped: int = 0) -> AttemptEnd:
        self.attempt = None
        if attempt.tokens_out:
            self._senders.add(attempt.peer)
        self.partial.left_by_host()
        if attempt.engine_restarted or attempt.host_failed:
            self.partial.draw_anew()
        self._fruitless = self._fruitless_with(attempt)
        context_needed = None
        if attempt.messages_tokens is not None:
            self.n_ctx = state.n_ctx
            self.context_used = attempt.messages_tokens + len(self.partial.ids)
            # Of texts to embed each has a context of its own, and what the longest one needs is not known.
            context_needed = None if self.partial.body.embed else self.context_used + 1
        item = BillItem(
            peer=attempt.peer,
            session=attempt.session,
            tokens_in=attempt.tokens_in,
            reused=attempt.tokens_cached,
            tokens_out=attempt.tokens_out - dropped,
            cost=state.cost,
            reason=reason,
        )
        self.bill.add(item)
        return AttemptEnd(attempt=attempt, item=item, context_needed=context_needed)


# ---- what the user and the bill are told


def nobody(
    ranking: Ranking, failures: Mapping[PeerId, str], *, see: str = "hosts --why", alone: bool = False
) -> NoHostError:
    """No host was found, or none that may be used.

    ``see`` is the command that shows hosts of the question. ``alone``: not one other node is known.
    """
    if ranking.excluded and not ranking.chosen and not failures:
        why = "; ".join(f"{c.advert.peer}: {c.excluded}" for c in ranking.excluded[:_REASONS_SHOWN])
        kind = UnpaidError if all(each.unpaid for each in ranking.excluded) else NoHostError
        return kind(f"no host of this model may be asked ({why}). `p2pnode {see}` shows all")
    reasons = [f"{c.advert.peer}: {c.excluded}" for c in ranking.excluded]
    reasons += [reason if peer in reason else f"{peer}: {reason}" for peer, reason in failures.items()]
    tried = "; ".join(reasons[:_REASONS_SHOWN]) or (ALONE if alone else "nobody answered")
    return NoHostError(
        f"no host for this model was found ({tried}). Start one with `p2pnode join`, name a first peer "
        f"with --bootstrap, or see `p2pnode {see}`"
    )


def nobody_left(last: P2PNodeError | None, ranking: Ranking) -> NoHostError:
    """A part of the answer is here, and no other host can go on."""
    why = f"the last one failed ({last})" if last is not None else "none was found"
    out = "; ".join(f"{c.advert.peer}: {c.excluded}" for c in ranking.excluded[:_REASONS_SHOWN])
    error = NoHostError(f"no host is left to go on with this answer: {why}{f'; {out}' if out else ''}")
    error.__cause__ = last
    return error


def overflow(error: RefusedError, *, see: str = "hosts --why") -> RefusedError:
    """The same error, with what helps: asking the same again doesn't. ``see``: as :func:`nobody`."""
    helps = (
        "Asking again can't help: ask for less, or choose a host with a larger context "
        f"(`p2pnode {see}` shows them). A chat can also start over (/new) or leave out its oldest messages "
        "(--context drop-oldest)"
    )
    error.args = (f"{error}. {helps}", *error.args[1:])
    return error


def too_long(last: P2PNodeError) -> NoHostError:
    """A part of the answer is here, and no prompt can hold it, or too many attempts failed."""
    error = NoHostError(f"this answer can't be handed to another host any more: {last}")
    error.__cause__ = last
    return error


def not_continuable(last: P2PNodeError) -> NoHostError:
    """Two hosts could not go on from what others sent."""
    error = NoHostError(
        f"hosts can't go on from what came of other hosts, which may have been made up ({last}): ask anew, "
        "perhaps of hosts that you trust (--only)"
    )
    error.__cause__ = last
    return error


def cut_short(error: E, held: int) -> E:
    """The same error, with how many tokens came and how to go on."""
    ways = "/go in a chat, `p2pnode sessions resume` where the conversation is kept, or go_on() in a program"
    error.args = (f"{error}. The {held} tokens that came stay: go on with {ways}", *error.args[1:])
    return error


def turn_error(failed: TurnFailed) -> P2PNodeError:
    """A failed turn as an error for its caller."""
    if failed.code is not None:
        said = failed.cause != "foreseen"
        return RefusedError(failed.code, failed.detail, retry_after_s=failed.retry_after_s, said=said)
    if failed.cause == "capped":
        return ConfigError(failed.detail)
    return UsageError(failed.detail) if failed.cause == "invalid" else UnreachableError(failed.detail)


def session_error(failure: SessionFailed | None) -> P2PNodeError:
    """Why a session is over as an error for whoever uses it; None where this side closed it."""
    if failure is None:
        return UnreachableError("the session was closed on this side")
    if failure.fault:
        return HostFault(failure.detail)
    if failure.code is None:
        return UnreachableError(failure.detail)
    return RefusedError(failure.code, failure.detail, retry_after_s=failure.retry_after_s, said=True)


def reason_of(error: P2PNodeError, *, lost: bool) -> str:
    """Why an attempt ended, in one word for the bill."""
    if isinstance(error, RefusedError):
        return error.code
    if isinstance(error, HostFault):
        return "fault"
    if isinstance(error, DisagreementError):
        return DISAGREES
    if isinstance(error, LocalError):
        return "unpaid"
    return "lost" if lost else "stalled"
