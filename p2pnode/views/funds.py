"""Where the money of a wallet is, as it is told to people and programs. Pure; amounts are token units."""

from __future__ import annotations

from typing import Any

from p2pnode.payments.funds import Funds


def funds_fields(found: Funds) -> dict[str, Any]:
    """None where the chain was not asked or did not answer. Times are epoch seconds."""
    stuck = [
        {"session": each.session.hex(), "units": each.units, "why": each.why, "until": each.until}
        for each in found.stuck
    ]
    left = [
        {"session": each.session.hex(), "host": each.host, "units": each.units, "signed": each.signed,
         "until": each.until, "refund_at": each.refund_at}
        for each in found.left
    ]  # fmt: skip
    return {
        "wallet": found.wallet, "ether_wei": found.ether_wei,
        "authorised": found.authorised, "escrow": found.escrow, "signed": found.signed, "spent": found.spent,
        "owed": found.owed, "earned": found.earned, "withdrawable": found.withdrawable,
        "elsewhere": found.elsewhere, "elsewhere_open": [each.hex() for each in found.elsewhere_open],
        "stuck": stuck, "left": left,
    }  # fmt: skip
