"""How many inputs a dear property is tried with: a part in the short tests, all of them in the long ones."""

from __future__ import annotations

from hypothesis import settings

LONG = "long"
"""The profile that ``make test-long`` names."""
_SHORT_PERCENT = 40


def examples(count: int) -> settings:
    """``count`` inputs in the long tests."""
    if settings.get_current_profile_name() != LONG:
        count = count * _SHORT_PERCENT // 100
    return settings(max_examples=count)
