"""What a host earned and a client spent, by day, by week and by model, and what is stuck.

Pure; amounts are token units. A session counts on the day (UTC) on which it was opened, with what its best
voucher or its settlement gives. The treasury's tenth is part of what a host earned.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from p2pnode.models.catalogue import shown_name
from p2pnode.payments.funds import why_unsettled
from p2pnode.payments.journal.journal import BoughtSession, HostedSession

DAYS: Final = 30
WEEKS: Final = 12
_STUCK_MAX: Final = 100


def earnings_fields(hosted: Sequence[HostedSession], now: int) -> dict[str, Any]:
    """What a host earned. ``stuck``: the largest first. See :func:`sums_by` for the rest."""
    over = [each for each in hosted if each.state == "over"]
    stuck = [found for each in over if (found := why_unsettled(each, now)) is not None]
    stuck.sort(key=lambda each: -each.units)
    return {
        "earned": sum(each.due for each in hosted if each.state == "settled"),
        "owed": sum(each.due for each in hosted if each.state in ("open", "over")),
        "sessions": len(hosted),
        **sums_by((each for each in hosted if each.state in ("open", "over", "settled")), now),
        "stuck": [
            {"session": each.session.hex(), "units": each.units, "why": each.why, "until": each.until}
            for each in stuck[:_STUCK_MAX]
        ],
    }


def spending_fields(bought: Sequence[BoughtSession], now: int) -> dict[str, Any]:
    """What a client spent, by its own vouchers; ``locked``: deposits of sessions that have not ended."""
    open_ = [each for each in bought if each.state in ("open", "over")]
    hosts: defaultdict[str, int] = defaultdict(int)
    for each in bought:
        hosts[each.host] += each.due
    most = sorted(hosts.items(), key=lambda item: -item[1])[:_STUCK_MAX]
    return {
        "spent": sum(each.due for each in bought),
        "locked": sum(each.terms.deposit for each in open_),
        "signed": sum(each.due for each in open_),
        "sessions": len(bought),
        "hosts": [{"peer": peer, "units": units} for peer, units in most],
        **sums_by((each for each in bought if each.state in ("open", "over", "settled")), now),
    }


def sums_by(sessions: Iterable[HostedSession | BoughtSession], now: int) -> dict[str, Any]:
    """Sums of what sessions came to. ``days`` and ``weeks`` are in order and end now, with zeros; ``models``
    begin with the largest."""
    today = datetime.fromtimestamp(now, UTC).date()
    monday = today - timedelta(days=today.weekday())
    days = {(today - timedelta(days=back)).isoformat(): [0, 0] for back in reversed(range(DAYS))}
    weeks = {(monday - timedelta(weeks=back)).isoformat(): [0, 0] for back in reversed(range(WEEKS))}
    models: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0])
    for each in sessions:
        day = datetime.fromtimestamp(each.opened_at, UTC).date()
        begins = (day - timedelta(days=day.weekday())).isoformat()
        for sums in (days.get(day.isoformat()), weeks.get(begins), models[shown_name(each.terms.model)]):
            if sums is not None:
                sums[0] += each.due
                sums[1] += 1
    return {
        "days": _rows("day", days),
        "weeks": _rows("week", weeks),
        "models": sorted(_rows("model", models), key=lambda row: -row["units"]),
    }


def _rows(name: str, sums: dict[str, list[int]]) -> list[dict[str, Any]]:
    return [{name: key, "units": units, "sessions": sessions} for key, (units, sessions) in sums.items()]
