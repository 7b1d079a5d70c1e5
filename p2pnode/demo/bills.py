"""What the demo's answers cost, host by host, and what follows for everybody's money. Pure.

It reads the bill that ``p2pnode ask --json`` ends with, and says in a ``LocalError`` where it is not what it
must be. It asks neither a chain nor a journal: their word is compared with this one in ``money.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from p2pnode.contract_rules import treasury_share
from p2pnode.errors import LocalError

PRICE_IN: Final = 1_000_000
PRICE_OUT: Final = 2_000_000
SESSION_FEE: Final = 10_000
"""USDC units: 1 and 2 USDC per million tokens, 1 cent a session."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One host's part of one answer; ``cost`` in USDC units, with the fee where the session was new."""

    session: str
    peer: str
    tokens_in: int
    reused: int
    tokens_out: int
    cost: int

    @property
    def billed_in(self) -> int:
        """Input tokens that cost something."""
        return self.tokens_in - self.reused

    @property
    def fee(self) -> int:
        """The part of the cost that is no tokens: the session's fee, or nothing in one that was left."""
        return self.cost - tokens_price(self.billed_in, self.tokens_out)


def tokens_price(tokens_in: int, tokens_out: int) -> int:
    """What tokens cost, in USDC units: at these prices no part of a unit is ever rounded."""
    return -(-(tokens_in * PRICE_IN + tokens_out * PRICE_OUT) // 1_000_000)


def price_of(tokens_in: int, tokens_out: int) -> int:
    """What a session of these counts costs, in USDC units."""
    return SESSION_FEE + tokens_price(tokens_in, tokens_out)


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionBill:
    """All that one session served, for one fee; ``price`` in USDC units."""

    session: str
    peer: str
    billed_in: int
    tokens_out: int
    answers: int

    @property
    def price(self) -> int:
        """What it costs."""
        return price_of(self.billed_in, self.tokens_out)


def items_of(done: Mapping[str, Any]) -> list[Item]:
    """The bill of a ``done`` event. Raises ``LocalError`` when its sums or its prices are wrong."""
    names = ("session", "peer", "tokens_in", "reused", "tokens_out", "cost")
    items = [Item(**{name: each[name] for name in names}) for each in done["bill"]]
    for name in ("tokens_in", "reused", "tokens_out", "cost"):
        total = sum(getattr(item, name) for item in items)
        if total != done[name]:
            msg = f"the items of the bill have {total} {name} together, the answer {done[name]}"
            raise LocalError(msg)
    for item in items:
        if item.fee not in (0, SESSION_FEE):
            price = price_of(item.billed_in, item.tokens_out)
            msg = f"session {item.session[:16]} is billed {item.cost} units; its tokens cost {price}"
            raise LocalError(msg)
    return items


def check_failover(items: Sequence[Item], *, killed: str, held: int) -> tuple[Item, Item]:
    """The killed host's item and that of who went on, which read the prompt and what was ``held`` again.

    Raises ``LocalError``.
    """
    if len(items) != 2 or items[0].peer != killed or items[1].peer == killed:  # noqa: PLR2004 - two hosts
        msg = f"the bill has {len(items)} items, not one of the killed host and one of another"
        raise LocalError(msg)
    first, second = items
    if first.tokens_out != held:
        msg = f"{held} tokens were held when the other host went on; the killed one bills {first.tokens_out}"
        raise LocalError(msg)
    if second.tokens_in != first.tokens_in + held:
        msg = (
            f"the second host read {second.tokens_in} tokens: the prompt has {first.tokens_in}, "
            f"and {held} were held"
        )
        raise LocalError(msg)
    return first, second


def by_session(items: Iterable[Item]) -> dict[str, SessionBill]:
    """What each session served. Raises ``LocalError`` where its fee was billed twice, or never."""
    found: dict[str, list[Item]] = {}
    for item in items:
        found.setdefault(item.session, []).append(item)
    for session, parts in found.items():
        if sum(part.fee for part in parts) != SESSION_FEE:
            fees = sum(part.fee == SESSION_FEE for part in parts)
            msg = f"the fee of session {session[:16]} was billed {fees} times for {len(parts)} answers"
            raise LocalError(msg)
    return {
        session: SessionBill(
            session=session,
            peer=parts[0].peer,
            billed_in=sum(part.billed_in for part in parts),
            tokens_out=sum(part.tokens_out for part in parts),
            answers=len(parts),
        )
        for session, parts in found.items()
    }


def dues(bills: Iterable[SessionBill], host_of: Mapping[str, str]) -> dict[str, int]:
    """Who must have how much more than before, in USDC units, by what the client received.

    ``host_of`` names peers. Of what tokens cost, a tenth (rounded down) is the treasury's.
    """
    due = dict.fromkeys((*host_of.values(), "treasury", "client"), 0)
    for bill in bills:
        treasury = treasury_share(bill.price - SESSION_FEE)
        due[host_of[bill.peer]] += bill.price - treasury
        due["treasury"] += treasury
        due["client"] -= bill.price
    return due
