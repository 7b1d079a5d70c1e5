"""What an answer cost, host by host. Pure.

Each output token stands in exactly one item: that of the host which sent it. What a later host had to read
again is among its ``tokens_in``: the price of a failure. ``CostShares`` shares out what a session costs among
its turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from p2pnode.ids import PeerId, SessionId
from p2pnode.protocols.inference.messages import SessionTerms
from p2pnode.protocols.typed_data import amount_due


@dataclass(frozen=True, slots=True, kw_only=True)
class BillItem:
    """What one host did of an answer. ``cost`` is what it can claim for that by what was signed, in token
    units.

    A session's fee is in its first item. ``tokens_out`` may be up to 31 more than what was signed for where a
    host died before its receipt. ``reason`` says why its attempt ended: ``stop``, ``length``, ``cancelled``,
    a wire code, ``lost``, ``slow``, ``fault`` (it broke the protocol), ``unpaid`` (this side could not go on)
    or ``hedged`` (another host was asked, too, and was first: then its tokens are not in the answer).
    """

    peer: PeerId
    session: SessionId
    tokens_in: int = 0
    reused: int = 0
    tokens_out: int = 0
    cost: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What an answer cost: the sums over its bill, and the seconds to the first token and in all.

    ``cost`` is in token units; ``reason`` is why the last attempt ended. ``context_used`` of the last
    host's ``n_ctx`` tokens hold the conversation with this answer; both are 0 where no host was asked.
    ``stop`` is the stop string that ended it, by its host's word; "" where none did, or the host is silent.
    """

    tokens_in: int
    reused: int
    tokens_out: int
    cost: int
    reason: str
    ttft_s: float
    total_s: float
    context_used: int = 0
    n_ctx: int = 0
    stop: str = ""

    @property
    def context_full(self) -> bool:
        """Whether the answer ended because its host's context has no room for another token."""
        return self.reason == "length" and self.n_ctx > 0 and not self.context_left

    @property
    def context_left(self) -> int:
        """Tokens that the next question, its answer and what the template adds may take."""
        return max(0, self.n_ctx - self.context_used)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerRecord:
    """One answer that is over, for the log and for metrics: nothing of what was said.

    ``outcome`` is how it ended (``stop``, ``length``, ``tool_calls``, ``cancelled``), or the code of the
    error. ``attempts`` is to how many sessions it went, one after another, ``cost`` in token units;
    ``ttft_s`` is None where no token came. ``hedge``: what a second host, asked beside the first, was good
    for (``won``, ``lost``, ``failed``); "" where none was asked.
    """

    model: str
    outcome: str
    host: PeerId | None
    attempts: int
    tokens_in: int
    reused: int
    tokens_out: int
    cost: int
    ttft_s: float | None
    total_s: float
    hedge: str = ""


class Bill:
    """Items in the order of use; attempts in one session that follow one another are one item."""

    def __init__(self) -> None:
        self._items: list[BillItem] = []

    @property
    def items(self) -> tuple[BillItem, ...]:
        """All so far."""
        return tuple(self._items)

    def add(self, item: BillItem) -> None:
        """Add an attempt that is over. One that neither billed nor sent anything makes no item."""
        last = self._items[-1] if self._items else None
        if last is not None and last.session == item.session:
            self._items[-1] = _sum(last, item)
        elif item.tokens_in or item.tokens_out or item.cost:
            self._items.append(item)

    def usage(
        self,
        *,
        reason: str,
        ttft_s: float,
        total_s: float,
        context_used: int = 0,
        n_ctx: int = 0,
        stop: str = "",
    ) -> Usage:
        """The sums."""
        return Usage(
            tokens_in=sum(item.tokens_in for item in self._items),
            reused=sum(item.reused for item in self._items),
            tokens_out=sum(item.tokens_out for item in self._items),
            cost=cost_of(self._items),
            reason=reason,
            ttft_s=ttft_s,
            total_s=total_s,
            context_used=context_used,
            n_ctx=n_ctx,
            stop=stop,
        )


def cost_of(items: Sequence[BillItem]) -> int:
    """The sum of the costs, in token units."""
    return sum(item.cost for item in items)


def _sum(one: BillItem, more: BillItem) -> BillItem:
    return replace(
        one,
        tokens_in=one.tokens_in + more.tokens_in,
        reused=one.reused + more.reused,
        tokens_out=one.tokens_out + more.tokens_out,
        cost=one.cost + more.cost,
        reason=more.reason,
    )


# ---- several turns of one session


class TurnCost(Protocol):
    """What a turn of a session costs."""

    tokens_in: int
    """Input that is billed."""
    tokens_out: int
    cost: int | None
    """Its share of the session's cost in token units, once it was taken."""


class CostShares:
    """How the cost of one session is shared out among its turns, each when it is over.

    The shares of all turns are the session's cost, to the unit: what is rounded, or was paid for nothing, is
    the last one's. ``terms`` is None where the session is free.
    """

    def __init__(self, terms: SessionTerms | None, billed: tuple[int, int, int] = (0, 0, 0)) -> None:
        """``billed`` is what an earlier process took: token units, and input and output tokens."""
        self._terms = terms
        self._taken, self._tokens_in, self._tokens_out = billed
        self._under_way: set[TurnCost] = set()

    def begin(self, turn: TurnCost) -> None:
        """A turn is asked."""
        self._under_way.add(turn)

    def give_up(self, turn: TurnCost) -> None:
        """It was not asked after all."""
        self._under_way.discard(turn)

    def take(self, turn: TurnCost | None, cost: int) -> int:
        """A turn's token units of ``cost``, that of the session so far; the same when it is asked again.

        None stands for an attempt in which no turn was asked.
        """
        if turn is not None and turn.cost is not None:
            return turn.cost
        if turn is not None:
            self._under_way.discard(turn)
        share = cost - self._taken
        if self._terms is not None and self._under_way:
            if turn is None:
                return 0
            self._tokens_in += turn.tokens_in if turn.tokens_out else 0
            self._tokens_out += turn.tokens_out
            share = min(share, amount_due(self._terms, self._tokens_in, self._tokens_out) - self._taken)
        elif turn is not None:
            self._tokens_in += turn.tokens_in
            self._tokens_out += turn.tokens_out
        self._taken += share
        if turn is not None:
            turn.cost = share
        return share
