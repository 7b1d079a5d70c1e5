"""How a plan is refused: by a stable code, in words that say what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from p2pnode.payments.plans import PlanError


@contextmanager
def refused(code: str, *words: str) -> Iterator[None]:
    """The block raises a ``PlanError`` with this code and all of these words."""
    with pytest.raises(PlanError) as met:
        yield
    assert met.value.code == code, met.value
    for each in words:
        assert each in str(met.value)
