"""What a host stands to lose, and the limits on it. Pure arithmetic over token units: no I/O, no clock.

A session may owe at most its window: that much is reserved while it lives. What was served and never paid
counts for a day. Both count against the limits of the payer, of its network prefix and of the
host as a whole, so that a thousand fresh payers of one attacker cost the host what one may cost it.
"""

from __future__ import annotations

import ipaddress
from collections import Counter, deque
from dataclasses import dataclass
from typing import Final

from p2pnode.ids import SessionId
from p2pnode.money import usdc_text

LOSS_REMEMBERED_S: Final = 86_400.0
_LOSSES_MAX: Final = 10_000
_PREFIX_BITS: Final = {4: 24, 6: 48}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExposureLimits:
    """Token units (1e-6 USDC) that may be unpaid at any time, losses of the last day included."""

    session: int = 50_000
    payer: int = 100_000
    prefix: int = 250_000
    all: int = 2_000_000


@dataclass(frozen=True, slots=True)
class _Amount:
    payer: bytes
    prefix: str
    units: int


class Exposure:
    """Reservations of live sessions and the losses of the last day."""

    def __init__(self, limits: ExposureLimits) -> None:
        self._limits = limits
        self._reserved: dict[SessionId, _Amount] = {}
        self._losses: deque[tuple[float, _Amount]] = deque(maxlen=_LOSSES_MAX)
        self._payers: Counter[bytes] = Counter()
        self._prefixes: Counter[str] = Counter()
        self._all = 0

    @property
    def units(self) -> int:
        """Token units that could be lost now, and those lost in the last day."""
        return self._all

    def reserve(self, session: SessionId, payer: bytes, address: str | None, units: int, now: float) -> str:
        """Let this session owe up to ``units``, in place of what it could before. Returns why not, or ""."""
        self.release(session)  # its own reservation must not count against itself
        why = self.why_not(payer, address, units, now)
        if why == "":
            amount = _Amount(payer, prefix_of(address), units)
            self._reserved[session] = amount
            self._add(amount, +1)
        return why

    def why_not(self, payer: bytes, address: str | None, units: int, now: float) -> str:
        """Why no new session of this payer may owe up to ``units``; "" where one may."""
        self._forget(now)
        amount = _Amount(payer, prefix_of(address), units)
        limits = self._limits
        for what, held, limit in (
            ("this session", 0, limits.session),
            ("this payer", self._payers[payer], limits.payer),
            ("its network", self._prefixes[amount.prefix], limits.prefix),
            ("all payers", self._all, limits.all),
        ):
            if held + units > limit:
                return (
                    f"{what} may owe this host {usdc_text(limit)} unpaid at most; "
                    f"{usdc_text(held)} stand out, this session could owe {usdc_text(units)}"
                )
        return ""

    def release(self, session: SessionId) -> None:
        """Forget what this session could owe: it owes nothing more."""
        amount = self._reserved.pop(session, None)
        if amount is not None:
            self._add(amount, -1)

    def lost(self, session: SessionId, units: int, now: float) -> None:
        """Count a loss: the session ended owing ``units``."""
        amount = self._reserved.get(session)
        self.release(session)
        if amount is None or units <= 0:
            return
        if len(self._losses) == _LOSSES_MAX:
            self._add(self._losses.popleft()[1], -1)
        loss = _Amount(amount.payer, amount.prefix, units)
        self._losses.append((now, loss))
        self._add(loss, +1)

    def _forget(self, now: float) -> None:
        while self._losses and self._losses[0][0] <= now - LOSS_REMEMBERED_S:
            self._add(self._losses.popleft()[1], -1)

    def _add(self, amount: _Amount, sign: int) -> None:
        self._all += sign * amount.units
        self._payers[amount.payer] += sign * amount.units
        self._prefixes[amount.prefix] += sign * amount.units
        if not self._payers[amount.payer]:
            del self._payers[amount.payer]
        if not self._prefixes[amount.prefix]:
            del self._prefixes[amount.prefix]


def prefix_of(address: str | None) -> str:
    """The /24 or /48 of a multiaddr or an IP; what has none shares one prefix."""
    for part in (address or "").strip("/").split("/"):
        try:
            ip = ipaddress.ip_address(part.rpartition(":")[0].strip("[]") if part.count(":") == 1 else part)
        except ValueError:
            continue
        return str(ipaddress.ip_network(f"{ip}/{_PREFIX_BITS[ip.version]}", strict=False))
    return ""
