"""Lines of the tables that the demo ends with. Values only; ``cli/demo.py`` draws them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from p2pnode.demo.bills import Item

_SHORTEST_S = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """An answer."""

    step: str
    host: str
    tokens_in: int
    tokens_out: int
    ttft_s: float
    tokens_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BillRow:
    """A host's item on the bill of one answer; ``cost`` in USDC units."""

    host: str
    what: str
    tokens_in: int
    tokens_out: int
    cost: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MoneyRow:
    """Somebody's money in USDC units; ``due`` by the tokens that the client received."""

    who: str
    before: int
    after: int
    due: int


def row_of(step: str, host: str, done: Mapping[str, Any]) -> Row:
    """Of an answer that ended with the event ``done``."""
    return Row(
        step=step,
        host=host,
        tokens_in=done["tokens_in"],
        tokens_out=done["tokens_out"],
        ttft_s=done["ttft_s"],
        tokens_per_s=done["tokens_out"] / max(done["total_s"] - done["ttft_s"], _SHORTEST_S),
    )


def bill_row(host: str, what: str, item: Item) -> BillRow:
    """Of an item."""
    return BillRow(host=host, what=what, tokens_in=item.tokens_in, tokens_out=item.tokens_out, cost=item.cost)
