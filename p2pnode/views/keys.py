"""A key of the gateway, as it is told to people and programs. Amounts: token units; times: epoch seconds."""

from __future__ import annotations

from typing import Any

from p2pnode.models.manifest import model_id_text
from p2pnode.payments.journal.keys import Key
from p2pnode.payments.keys import KeyBook


def key_fields(book: KeyBook, key: Key) -> dict[str, Any]:
    """A key, its limits and what was spent on it; never its secret."""
    limits, used = key.limits, book.usage(key)
    return {
        "id": key.id.hex(),
        "name": key.name,
        "state": key_state(book, key),
        "budget": limits.total_max,
        "per_day": limits.day_max,
        "spent": used.total,
        "spent_day": used.day,
        "claimed": used.claimed,
        "price_in_max": limits.price_in_max,
        "price_out_max": limits.price_out_max,
        "models": [model_id_text(each) for each in limits.models],
        "made_at": key.made_at,
        "expires_at": limits.expires_at,
        "revoked_at": key.revoked_at,
    }


def key_state(book: KeyBook, key: Key) -> str:
    """``valid``, or why it isn't."""
    error = book.why_not(key)
    return "valid" if error is None else error.reason
