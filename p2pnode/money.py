"""Amounts of money as people write and read them. All arithmetic is in integers, never in floats.

Inside and on the wire an amount is a whole number of token units (1e-6 USDC) or of wei, and a price is such
units per million tokens. What a person types or reads is USDC, USDC per million tokens, or ETH, exactly.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Final

USDC: Final = 1_000_000
"""Token units in one USDC."""
USDC_DIGITS: Final = 6
ETHER_DIGITS: Final = 18
GWEI_DIGITS: Final = 9
FAB_DIGITS: Final = 18
_CENTS: Final = 2
_DECIMAL: Final = re.compile(r"([0-9]{1,18})(?:\.([0-9]{1,18}))?")


def decimal_units(text: str, digits: int) -> int:
    """``"0.05"`` of something in its smallest unit, exactly. Raises ``ValueError`` for what is no decimal
    number, or finer than the unit."""
    found = _DECIMAL.fullmatch(text.strip())
    if found is None:
        msg = f"{text[:40]!r} is no decimal number such as 12 or 0.05"
        raise ValueError(msg)
    whole, part = found[1], (found[2] or "").rstrip("0")
    if len(part) > digits:
        msg = f"{text[:40]!r} has more than {digits} digits after the point"
        raise ValueError(msg)
    return int(whole + part.ljust(digits, "0"))


def usdc_units(amount: str | int | Decimal) -> int:
    """An amount of USDC as somebody wrote it, in token units. Raises ``ValueError``."""
    return decimal_units(f"{amount:f}" if isinstance(amount, Decimal) else str(amount), USDC_DIGITS)


def usdc_number(units: int) -> str:
    """``1250000`` is ``1.25``: exact, with two decimals at least. :func:`usdc_units` reads it again."""
    whole, rest = divmod(abs(units), USDC)
    part = f"{rest:0{USDC_DIGITS}d}".rstrip("0").ljust(_CENTS, "0")
    return f"{'-' if units < 0 else ''}{whole}.{part}"


def usdc_text(units: int) -> str:
    """``1250000`` is ``1.25 USDC``."""
    return f"{usdc_number(units)} USDC"


def price_text(price_in: int, price_out: int, session_fee: int = 0) -> str:
    """The price of an offer, as a phrase."""
    if not (price_in or price_out):
        return "free"
    fee = f", {usdc_text(session_fee)} a session" if session_fee else ""
    return f"{usdc_number(price_in)}/{usdc_number(price_out)} USDC per million tokens in/out{fee}"


def ether_text(wei: int) -> str:
    """``0.0012 ETH``, exactly."""
    whole, rest = divmod(wei, 10**ETHER_DIGITS)
    return f"{whole}.{rest:0{ETHER_DIGITS}d}".rstrip("0").rstrip(".") + " ETH"


def fab_text(units: int) -> str:
    """``1000.5 FAB``, exactly: stake and votes."""
    whole, rest = divmod(units, 10**FAB_DIGITS)
    return f"{whole}.{rest:0{FAB_DIGITS}d}".rstrip("0").rstrip(".") + " FAB"


def gwei_text(wei: int) -> str:
    """``0.0012 gwei``, exactly: a price of gas."""
    whole, rest = divmod(wei, 10**GWEI_DIGITS)
    return f"{whole}.{rest:0{GWEI_DIGITS}d}".rstrip("0").rstrip(".") + " gwei"
