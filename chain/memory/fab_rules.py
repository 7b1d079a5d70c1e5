"""``FabRules``: what FAB does, in Python: balances, allowances, a burn. Pure and exact: no clock, no I/O.

The checks and their order are those of ``contracts/FAB.vy``, and so are the reasons. ``check_…`` raises
``RevertedError`` and changes nothing; the others carry out what was checked.
"""

from __future__ import annotations

from collections import defaultdict

from p2pnode.chain.memory.token_rules import require


class FabRules:
    """Amounts are FAB's smallest unit."""

    def __init__(self) -> None:
        self.balances: defaultdict[bytes, int] = defaultdict(int)
        self.allowances: defaultdict[tuple[bytes, bytes], int] = defaultdict(int)
        """Of an owner, to a spender."""

    def check_transfer(self, sender: bytes, to: bytes, amount: int) -> None:
        """``transfer`` by ``sender``."""
        require(any(to), "FAB: zero address")
        require(amount <= self.balances.get(sender, 0), "FAB: balance too low")

    def check_take(self, owner: bytes, spender: bytes, amount: int, allowed: int | None = None) -> None:
        """``transferFrom`` by ``spender`` to itself; ``allowed`` stands for the allowance where it is
        given."""
        held = self.allowances.get((owner, spender), 0) if allowed is None else allowed
        require(amount <= held, "FAB: allowance too low")
        self.check_transfer(owner, spender, amount)

    def move(self, sender: bytes, to: bytes, amount: int) -> None:
        """Carry out a transfer that was checked."""
        self.balances[sender] -= amount
        self.balances[to] += amount

    def take(self, owner: bytes, spender: bytes, amount: int) -> None:
        """Carry out a ``transferFrom`` that was checked."""
        self.allowances[owner, spender] -= amount
        self.move(owner, spender, amount)

    def burn(self, owner: bytes, amount: int) -> None:
        """Destroy tokens of an owner that has them."""
        self.balances[owner] -= amount
