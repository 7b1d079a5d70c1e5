"""What a client may sign away, whatever a host asks: per session, per day and per host. Pure.

The caps are held against everything this data dir has at stake, by the journal, before a wallet signs.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

from p2pnode.errors import ConfigError
from p2pnode.money import usdc_text
from p2pnode.payments.journal.journal import Spending

CAP_MAX: Final = 10**15
FEE_MAX: Final = 250_000
"""The contract takes no higher session fee."""


class SpendingCapError(ConfigError):
    """A session would go beyond what the user allows; nothing was signed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpendingCaps:
    """Token units (1e-6 USDC). Zero allows nothing. Implements ``SpendingRule``."""

    session_max: int = 1_000_000
    """The deposit of one session."""
    day_max: int = 5_000_000
    """What is at stake in all, and was spent in the last 24 hours."""
    host_max: int = 2_000_000
    """The same, with one host."""
    fee_max: int = FEE_MAX
    """The session fee of a host."""

    def __post_init__(self) -> None:
        for item in fields(self):
            value, highest = getattr(self, item.name), FEE_MAX if item.name == "fee_max" else CAP_MAX
            if type(value) is not int or not 0 <= value <= highest:
                msg = f"{item.name} must be a whole number of USDC units from 0 to {highest}"
                raise ConfigError(msg)

    def check(self, spending: Spending) -> None:
        """Raise ``SpendingCapError`` that names the cap, what is used of it, and how to raise it."""
        if spending.session_fee > self.fee_max:
            msg = (
                f"this host asks a session fee of {usdc_text(spending.session_fee)}; at most "
                f"{usdc_text(self.fee_max)} is allowed: choose another host"
            )
            raise SpendingCapError(msg)
        if spending.deposit > self.session_max:
            msg = (
                f"this session needs a deposit of {usdc_text(spending.deposit)}; your cap for one is "
                f"{usdc_text(self.session_max)}: shorten the conversation or the answer, or raise "
                "spend_session_max in config.toml"
            )
            raise SpendingCapError(msg)
        host_left, day_left = self.left(spending)
        if spending.deposit > host_left:
            raise _used_up("one host", self.host_max, spending.host_used, spending.deposit, "spend_host_max")
        if spending.deposit > day_left:
            raise _used_up("a day", self.day_max, spending.day_used, spending.deposit, "spend_day_max")

    def left(self, spending: Spending) -> tuple[int, int]:
        """What may still be signed away to this host, and today."""
        return max(0, self.host_max - spending.host_used), max(0, self.day_max - spending.day_used)


def _used_up(what: str, cap: int, used: int, deposit: int, setting: str) -> SpendingCapError:
    return SpendingCapError(
        f"your spending cap for {what} is {usdc_text(cap)}: {usdc_text(used)} of it are spent or at stake, "
        f"and this session needs a deposit of {usdc_text(deposit)}. Wait until other sessions are settled "
        f"(`p2pnode funds` shows them), or raise {setting} in config.toml"
    )
