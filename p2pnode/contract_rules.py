"""The constants of the contracts: what they allow, how long they wait, and who gets which share.

Each has the value that its Vyper source has; ``tests/test_contract_rules.py`` compares them. Nothing else in
the package writes these numbers down. Amounts are token units (1e-6 USDC), times are seconds.
"""

from __future__ import annotations

from typing import Final

SESSION_FEE_MAX: Final = 250_000
"""The highest session fee that ``open`` takes."""
DURATION_MAX_S: Final = 432_000
"""The furthest expiry that ``open`` takes, after its block."""
CHALLENGE_S: Final = 86_400
"""How long a host can answer a close request with a better voucher. After the expiry of a session it has as
long to settle, before anybody may bring the refund."""
CLAIMS_MAX: Final = 25
"""Sessions that one ``close_many`` settles."""
TOKENS_PER_PRICE: Final = 1_000_000
"""Prices are token units for so many tokens."""
BPS: Final = 10_000
"""Shares are given in parts of this."""
TREASURY_BPS: Final = 1_000
"""The treasury's share of what tokens earn. The session fee is all the host's."""
REPORTER_BPS: Final = 1_000
"""The share of a forfeited stake that goes to whoever shows the evidence."""
STAKE_MIN: Final = 1_000 * 10**18
"""What a registered host has at stake at the least, in FAB's smallest unit."""
UNBONDING_S: Final = 604_800
"""How long stake is on its way out: longer than any session that it stood for, and its challenge."""
BOND: Final = 1_000 * 10**18
"""What a proposal of a model needs, in FAB's smallest unit; it comes back whatever the outcome."""
QUORUM: Final = 10_000_000 * 10**18
"""What must be for a proposal, in FAB's smallest unit, so that it is accepted."""
VOTING_S: Final = 604_800
"""How long a vote lasts."""
MANIFEST_BYTES_MAX: Final = 32_768
"""The longest manifest that can be put to the vote, in its canonical form."""


def treasury_share(earned: int) -> int:
    """What the treasury takes of ``earned`` token units (without the session fee), rounded down."""
    return earned * TREASURY_BPS // BPS
