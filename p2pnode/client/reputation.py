"""What this client knows of a host from its own dealings with it, and how far it can rely on it.

Pure: the wall clock is an argument. ``Measured`` is the memory of one host: means of what was timed, counts
of turns, and what receipts prove. ``Reputation`` says how likely a turn there ends as promised: the share
that did so far, within a 95% interval (Wilson 1927: "Probable inference, the law of succession, and
statistical inference"). Of a host that nobody here has asked the interval is 0 to 1.

A turn ended as promised where its host brought it to its end in order, with receipts that were checked. One
that the user stopped counts as neither.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Final

from p2pnode.bounded import backoff_s
from p2pnode.errors import ConfigError
from p2pnode.ids import PeerId

WEIGHT: Final = 0.3
"""The share of the newest measurement in the exponentially weighted means."""
BREAKER_FAILURES: Final = 3
BREAKER_S: Final = 60.0
BREAKER_MAX_S: Final = 3600.0
FORGIVEN: Final = 1 / 8
"""Of one question that was paid for and not answered, an answer makes good so much: a host that gives nothing
for more than one question in nine is left out in the end."""
_AT_ONCE_S: Final = 0.001
"""What is asked so soon before a failure, by a rounded clock, may be what is asked because of it."""
TURNS_MAX: Final = 1000
"""Beyond so many turns both counts are halved: what a host did long ago counts less and less."""
HOSTS_MAX: Final = 512
"""Hosts that are remembered."""
_Z: Final = 1.959963984540054
"""The standard normal's 97.5% point: an interval of this many standard errors covers 95%."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What this client knows of a host from its own dealings with it.

    Times are in seconds; ``last_failure`` is by the wall clock.
    """

    connect_s: float | None = None
    ttft_s: float | None = None
    tokens_per_s: float | None = None
    failure_rate: float = 0.0
    failures_in_a_row: int = 0
    last_failure: float = 0.0
    faults: int = 0
    unanswered: float = 0.0
    """Questions that it was paid for and gave too little, less an eighth for each answer since."""
    left_closed: int = 0
    """Sessions that were left with the host and that it closed before their time."""
    reuse: float | None = None
    """Of the input that an earlier turn had brought, the share that it didn't bill anew, from 0 to 1."""
    kept: int = 0
    """Turns that ended as promised, of the last thousand or so."""
    broken: int = 0
    """Turns that didn't, of the same."""
    receipted: int = 0
    """Output tokens that its signed receipts cover, ever; a vector counts as one."""

    def reused(self, share: float) -> Measured:
        """With a turn whose quote took so much of what could be reused, from 0 to 1."""
        return replace(self, reuse=_mean(self.reuse, min(1.0, max(0.0, share))))

    def closed_early(self) -> Measured:
        """With a session that was left there, and was gone before its time."""
        return replace(self, left_closed=self.left_closed + 1)

    def connected(self, seconds: float) -> Measured:
        """With a dial that took so many seconds."""
        return replace(self, connect_s=_mean(self.connect_s, seconds))

    def proved(self, tokens: int) -> Measured:
        """With receipts over so many more output tokens."""
        return replace(self, receipted=self.receipted + tokens)

    def answered(self, ttft_s: float, tokens_per_s: float | None, *, whole: bool = True) -> Measured:
        """With a turn that was answered; not ``whole`` where it was left before its end, for it was slow."""
        speed = self.tokens_per_s if tokens_per_s is None else _mean(self.tokens_per_s, tokens_per_s)
        return replace(
            self._with_turn(kept=whole),
            ttft_s=_mean(self.ttft_s, ttft_s),
            tokens_per_s=speed,
            failure_rate=self.failure_rate * (1 - WEIGHT),
            failures_in_a_row=0,
            unanswered=max(0.0, self.unanswered - FORGIVEN),
        )

    def late(self, waited_s: float) -> Measured:
        """With a turn that was given to another host after so long, without a token from this one."""
        return replace(self, ttft_s=max(self.ttft_s or 0.0, _mean(self.ttft_s, waited_s)))

    def failed(
        self,
        now: float,
        *,
        began: float = math.inf,
        turn: bool = False,
        fault: bool = False,
        took_for_nothing: bool = False,
    ) -> Measured:
        """With a dial or, if ``turn``, a turn that failed; ``fault`` where the host broke the protocol,
        ``took_for_nothing`` where it was to be paid for the question and gave too little to be worth it.

        ``began``: when it was asked. A host that dies fails all that it was asked before, and has died once.
        """
        # The time of the first failure stays: otherwise turns that overlap would hide all later ones.
        same = self.failures_in_a_row > 0 and began < self.last_failure - _AT_ONCE_S
        return replace(
            self._with_turn(broken=turn),
            failure_rate=self.failure_rate * (1 - WEIGHT) + WEIGHT,
            failures_in_a_row=self.failures_in_a_row + (not same),
            last_failure=self.last_failure if same else now,
            faults=self.faults + fault,
            unanswered=self.unanswered + took_for_nothing,
        )

    def _with_turn(self, *, kept: bool = False, broken: bool = False) -> Measured:
        shrinks = self.kept + self.broken >= TURNS_MAX
        before = (self.kept // 2, self.broken // 2) if shrinks else (self.kept, self.broken)
        return replace(self, kept=before[0] + kept, broken=before[1] + broken)

    @property
    def is_costly(self) -> bool:
        """Whether it broke the protocol, or took pay for too many questions that it did not answer."""
        return self.faults > 0 or math.ceil(self.unanswered) >= BREAKER_FAILURES

    def broken_until(self) -> float:
        """Until when the circuit breaker leaves this host out.

        The time doubles with each failure in a row after the third, and with each question after the third
        that was paid for and not answered: of these one answer makes good only a part.
        """
        if self.faults:
            return self.last_failure + BREAKER_MAX_S
        over = max(self.failures_in_a_row, math.ceil(self.unanswered)) - BREAKER_FAILURES
        return (
            0.0 if over < 0 else self.last_failure + backoff_s(over, first_s=BREAKER_S, max_s=BREAKER_MAX_S)
        )


def _mean(before: float | None, value: float) -> float:
    return value if before is None else before + WEIGHT * (value - before)


# ---- reputation


@dataclass(frozen=True, slots=True)
class Reputation:
    """How likely a turn ends as promised: with 95% confidence from ``low`` to ``high``, each from 0 to 1."""

    low: float
    high: float


def reputation(known: Measured) -> Reputation:
    """That of a host of which this is known; 0 to 1 where no turn of it ended yet."""
    turns = known.kept + known.broken
    if not turns:
        return Reputation(0.0, 1.0)
    share, spread = known.kept / turns, _Z * _Z / turns
    middle = share + spread / 2
    half = _Z * math.sqrt(share * (1 - share) / turns + spread / (4 * turns))
    # At the ends the bound is exact, and rounding would put it beside it.
    low = 0.0 if not known.kept else (middle - half) / (1 + spread)
    high = 1.0 if not known.broken else (middle + half) / (1 + spread)
    return Reputation(low, high)


def failure_share(known: Measured) -> float:
    """The share of turns that are expected to fail: as lately, or as over a long time if that is worse.

    Of the long time only what is certain counts (the upper end of the interval): a host of which little is
    known is not ranked behind one that is known to be bad.
    """
    if not known.broken:  # most hosts: their interval ends at 1
        return known.failure_rate
    return max(known.failure_rate, 1 - reputation(known).high)


# ---- many hosts


def worth_keeping(known: Mapping[PeerId, Measured], most: int = HOSTS_MAX) -> dict[PeerId, Measured]:
    """At most so many hosts, in the same order: those that were asked something before those that were only
    met, and of either those of which something was noted last.

    Without that order, strangers who make themselves found would push out what is known of all others.
    """
    if len(known) <= most:
        return dict(known)
    asked = [peer for peer, each in known.items() if each.kept or each.broken or each.faults]
    met = [peer for peer in known if peer not in set(asked)]
    kept = {*asked[-most:], *(met[-(most - len(asked)) :] if len(asked) < most else ())}
    return {peer: each for peer, each in known.items() if peer in kept}


def merged(
    ours: Mapping[PeerId, Measured], before: Mapping[PeerId, Measured], theirs: Mapping[PeerId, Measured]
) -> dict[PeerId, Measured]:
    """What this process and others on the same data dir know.

    ``before`` is what the file held when this process read it, ``theirs`` what it holds now. Of a host that
    only others dealt with theirs is taken; of one that both did, what either counted.
    """
    found = {peer: known for peer, known in theirs.items() if peer not in ours}
    for peer, mine in ours.items():
        old, other = before.get(peer, Measured()), theirs.get(peer)
        if mine == old and other is not None:
            found[peer] = other
        else:
            found[peer] = mine if other is None or other == old else _both(mine, old, other)
    return found


def _both(mine: Measured, old: Measured, other: Measured) -> Measured:
    # A count that was halved meanwhile may have shrunk: then ours alone is the better guess.
    counts = {
        name: max(getattr(mine, name), getattr(other, name) + getattr(mine, name) - getattr(old, name))
        for name in COUNTS - {"failures_in_a_row"}
    }
    return replace(mine, **counts)


COUNTS: Final = frozenset({"failures_in_a_row", "faults", "left_closed", "kept", "broken", "receipted"})
_KEYS: Final = frozenset(item.name for item in fields(Measured))


def measured_of(values: Mapping[str, object]) -> Measured:
    """One host's memory as a file has it; unknown keys are ignored. Raises ``ConfigError``."""
    given = {key: value for key, value in values.items() if key in _KEYS}
    for key, value in given.items():
        unknown = value is None and getattr(Measured(), key) is None
        kind = int if key in COUNTS else (int, float)
        if not unknown and not (isinstance(value, kind) and math.isfinite(value) and value >= 0):
            msg = f"{key} can't be {value!r}"
            raise ConfigError(msg)
    return Measured(**given)  # type: ignore[arg-type]
