"""What a check finds: a verdict, a stable code, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "warning", "problem"]
Code = Literal[
    "ok",
    "data_dir_not_writable",
    "data_dir_copied",
    "keys_exposed",
    "keys_damaged",
    "wallet_locked",
    "disk_low",
    "port_taken",
    "ipv6_only",
    "private_only",
    "shared_only",
    "no_network",
    "model_missing",
    "model_corrupt",
    "engine_failed",
    "node_unreachable",
    "no_peers",
    "clock_behind",
    "clock_ahead",
    "duplicate_identity",
    "chain_unreachable",
    "chain_wrong",
    "no_chain",
    "chain_made_anew",
    "no_wallet",
    "gas_low",
    "gas_dear",
    "stake_elsewhere",
    "journal_damaged",
    "unsettled",
    "store_damaged",
    "store_full",
    "storage_key_missing",
    "storage_key_damaged",
    "storage_key_other",
    "unkept",
    "check_failed",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one check found. ``code`` is stable; ``remedy`` is empty when there is nothing to do."""

    check: str
    verdict: Verdict
    code: Code
    detail: str
    remedy: str = ""


def ok(check: str, detail: str) -> Finding:
    """Nothing to do."""
    return Finding(check=check, verdict="ok", code="ok", detail=detail)


def warning(check: str, code: Code, detail: str, remedy: str) -> Finding:
    """Works, but not as the user may expect."""
    return Finding(check=check, verdict="warning", code=code, detail=detail, remedy=remedy)


def problem(check: str, code: Code, detail: str, remedy: str) -> Finding:
    """Something does not work."""
    return Finding(check=check, verdict="problem", code=code, detail=detail, remedy=remedy)
