"""Which turns of a session the token units of its vouchers are spent for, and what keys have for them. Pure.

A voucher is cumulative, and one session may carry turns of several keys. What a voucher adds to the one
before it is shared out among the turns under way, to the unit. Only the price of all tokens together is
rounded, so a turn pays at most two units more than its tokens cost, and at most one less for each turn beside
it. Amounts are token units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from p2pnode.contract_rules import TOKENS_PER_PRICE
from p2pnode.payments.journal.keys import Claim, Granted, KeyShare
from p2pnode.protocols.inference.commands import Ask, PaidPart
from p2pnode.protocols.inference.messages import CHECKPOINT_EVERY, SessionTerms
from p2pnode.protocols.typed_data import amount_due

_STEPS_AHEAD: Final = 4
"""Receipts for which a turn has a claim beyond what can't be stopped any more. The next part is claimed with
a voucher, and the machine learns of it a receipt or two later: with two it would stop an answer that may go
on."""
_ROUNDING: Final = 2
"""What a turn's share of vouchers may exceed the price of its tokens by. A unit goes to the turn to which
most is due, and together they are less than a unit ahead: so none is ahead by two."""


@dataclass(slots=True)
class _Turn:
    tokens_out_max: int
    granted: Granted | None = None
    day_max: int | None = None
    """What it may spend of the user's own limit for a day."""
    tokens_in: int = 0
    tokens_out: int = 0
    """What vouchers have named of it."""
    spent: int = 0
    carry: int = 0
    """Price of its tokens less what was counted for it, in parts of a unit; what was too much is below 0."""
    claimed: int = 0
    over: bool = False


class TurnBudgets:
    """Of one session. ``signed`` is what stands on earlier bills: its best voucher, or its fee alone."""

    def __init__(self, terms: SessionTerms, signed: int) -> None:
        self._terms, self._signed = terms, signed
        self._turns: dict[int, _Turn] = {}
        self._opened: Granted | None = None

    def opened_for(self, granted: Granted | None) -> None:
        """The session was opened for a turn with this claim, which is about to be asked."""
        self._opened = granted

    def claim(self, key: bytes, tokens_in: int, tokens_out: int, window: int) -> Claim | None:
        """What a turn of at most these sizes claims before it is asked; None where no key pays for it."""
        if not key:
            return None
        replaces = None
        if self._opened is not None and self._opened.key == key:
            replaces, self._opened = self._opened.claim, None
        return first_claim(self._terms, key, tokens_in, tokens_out, window=window, replaces=replaces)

    def begin(self, turn: int, tokens_out_max: int, granted: Granted | None, day_max: int) -> int:
        """A turn is asked. Returns what it may add to what is spent."""
        state = self._turns[turn] = _Turn(tokens_out_max, granted, day_max)
        state.claimed = granted.units if granted is not None else 0
        return self._spend_max(state)

    def shares(self, amount: int, parts: Sequence[PaidPart], window: int) -> list[KeyShare]:
        """What a voucher of ``amount`` adds for each turn of a key."""
        added, self._signed = max(0, amount - self._signed), max(amount, self._signed)
        for part in parts:
            turn = self._turns.setdefault(part.key, _Turn(0))
            turn.tokens_in += part.tokens_in
            turn.tokens_out += part.tokens_out
            turn.carry += part.tokens_in * self._terms.price_in + part.tokens_out * self._terms.price_out
        moved = {part.key for part in parts}
        shares = []
        # A unit that is made up of parts of several turns may be due to one of which nothing came this time.
        due = [turn.carry for turn in self._turns.values()]
        for (number, turn), units in zip(self._turns.items(), share_out(added, due), strict=True):
            turn.spent += units
            turn.carry -= units * TOKENS_PER_PRICE
            if turn.granted is not None and (units or number in moved):
                more = min(turn.tokens_out_max - turn.tokens_out, tokens_ahead(window))
                ahead = self._price(0, max(0, more)) + _ROUNDING
                shares.append(
                    KeyShare(claim=turn.granted.claim, key=turn.granted.key, units=units, ahead=ahead)
                )
        # A voucher names all that was to be signed of each turn, so nothing follows of one that is over.
        self._turns = {number: turn for number, turn in self._turns.items() if not turn.over}
        return shares

    def claimed(self, units: Mapping[int, int]) -> list[tuple[int, int]]:
        """What is claimed after a voucher, by claim. Returns what these turns may add to what is spent."""
        allowed = []
        for number, turn in self._turns.items():
            if turn.granted is not None and turn.granted.claim in units:
                turn.claimed = units[turn.granted.claim]
                allowed.append((number, self._spend_max(turn)))
        return allowed

    def end(self, turn: int, tokens_in: int, tokens_out: int) -> tuple[Granted, int] | None:
        """A turn is over that was billed these tokens: its claim, and how much of it is still to be signed.

        None where no key pays for it.
        """
        state = self._turns.get(turn)
        if state is None:
            return None
        if state.tokens_in >= tokens_in and state.tokens_out >= tokens_out:
            del self._turns[turn]
            to_come = 0
        else:
            state.over = True
            to_come = max(0, self._price(tokens_in, tokens_out) - state.spent) + _ROUNDING
        return None if state.granted is None else (state.granted, to_come)

    def rest(self) -> None:
        """No turn is under way."""
        self._turns.clear()

    def capped_by(self, turn: int) -> tuple[bytes, int] | None:
        """The key whose budget ends a turn, and what it could not have; None where something else does."""
        state = self._turns.get(turn)
        if state is None or state.granted is None:
            return None
        by_key = state.spent + state.claimed - _ROUNDING
        if state.day_max is not None and state.day_max < by_key:
            return None
        return state.granted.key, self._price(0, CHECKPOINT_EVERY)

    def _spend_max(self, turn: _Turn) -> int:
        by_day = turn.day_max if turn.day_max is not None else 0
        if turn.granted is None:
            return by_day
        return max(0, min(by_day, turn.spent + turn.claimed - _ROUNDING))

    def _price(self, tokens_in: int, tokens_out: int) -> int:
        return amount_due(self._terms, tokens_in, tokens_out) - self._terms.session_fee


def tokens_ahead(window: int) -> int:
    """Output tokens beyond the last voucher for which a turn has a claim."""
    return window + _STEPS_AHEAD * CHECKPOINT_EVERY


def input_bound(ask: Ask) -> int:
    """The most input tokens that a turn can be billed for."""
    if ask.input_exact is not None:
        return ask.input_exact
    return ask.prompt_tokens if ask.prompt_tokens is not None else ask.input_max


def first_claim(
    terms: SessionTerms,
    key: bytes,
    tokens_in: int,
    tokens_out: int,
    *,
    window: int,
    fee: int = 0,
    replaces: int | None = None,
) -> Claim:
    """What a turn of at most these sizes claims before anything is signed for it: its input, and the output
    that comes before it can be stopped."""
    unstopped = window + CHECKPOINT_EVERY

    def price(out: int) -> int:
        return amount_due(terms, tokens_in, min(tokens_out, out)) - terms.session_fee + _ROUNDING

    wanted = price(tokens_ahead(window))
    return Claim(key=key, wanted=wanted, least=price(unstopped), fee=fee, replaces=replaces)


def share_out(units: int, due: Sequence[int]) -> list[int]:
    """``units`` shared out in whole ones by what is ``due`` in parts of a unit, as if each unit went to the
    one to which most is due then. Nobody who gets one is then ahead of who is behind by more than a unit.
    """
    shares = [max(0, each // TOKENS_PER_PRICE) for each in due]

    def by_rest() -> list[int]:
        """Places, those first to which least is due besides their shares."""
        return sorted(range(len(due)), key=lambda place: due[place] - shares[place] * TOKENS_PER_PRICE)

    left = units - sum(shares)
    while left < 0:  # others are ahead, or an advance that was not used paid for some of it
        holders = [place for place in by_rest() if shares[place]][:-left]
        each = min(-left // len(holders), *(shares[place] for place in holders))
        for place in holders:
            shares[place] -= each
        left += each * len(holders)
    if not due:
        return shares
    for place in reversed(by_rest()[-left:] if left else []):
        shares[place] += 1
        left -= 1
    shares[by_rest()[-1]] += left  # more than is due to all together
    return shares
