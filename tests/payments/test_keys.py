"""Keys are made, found by their secret, and end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from random import Random

import pytest
import structlog

from p2pnode.errors import BudgetError, ConfigError
from p2pnode.ids import ModelId
from p2pnode.log import configure_logging
from p2pnode.payments.journal.journal import Journal
from p2pnode.payments.keys import KEYS_MAX, PREFIX, KeyBook, KeyLimits, check_model, digest_of
from p2pnode.payments.spending import LIMIT_MAX
from p2pnode.words import KEY_SECRET
from tests.payments.journals import DAY, NOW, writing


@dataclass
class Clock:
    now: float = NOW

    def __call__(self) -> float:
        return self.now


@dataclass
class Kept:
    book: KeyBook
    clock: Clock
    journal: Journal


@pytest.fixture
async def kept(tmp_path: Path) -> AsyncIterator[Kept]:
    async with writing(tmp_path / "journal.sqlite") as journal:
        clock = Clock()
        yield Kept(KeyBook(journal, wall=clock, draw=Random(1).randbytes), clock, journal)


async def test_a_key_is_found_by_its_secret_alone_and_only_a_hash_of_that_is_on_disk(kept: Kept) -> None:
    made, other = await kept.book.new("codex", KeyLimits()), await kept.book.new("laptop", KeyLimits())
    assert KEY_SECRET.fullmatch(made.secret) is not None
    assert made.secret.startswith(PREFIX)
    assert kept.book.find(made.secret) == made.key
    assert kept.book.find(other.secret) == other.key
    for wrong in ("", made.secret[:-1], made.secret + "0", made.secret.upper(), made.key.id.hex()):
        assert kept.book.find(wrong) is None
    files = b"".join(each.read_bytes() for each in kept.journal.path.parent.iterdir())
    assert digest_of(made.secret) in files
    assert made.secret.encode() not in files
    assert bytes.fromhex(made.secret.removeprefix(PREFIX)) not in files
    assert made.secret not in repr(made)


async def test_a_key_ends_when_it_expires_or_is_revoked(kept: Kept) -> None:
    short = await kept.book.new("short", KeyLimits(expires_at=NOW + DAY))
    long = await kept.book.new("long", KeyLimits())
    assert [each.name for each in kept.book.valid()] == ["long", "short"]
    kept.clock.now = NOW + DAY
    error = kept.book.why_not(short.key)
    assert error is not None
    assert error.reason == "expired"
    await kept.book.revoke("long")
    found = kept.book.find(long.secret)
    assert found is not None
    error = kept.book.why_not(found)
    assert error is not None
    assert error.reason == "revoked"
    assert kept.book.valid() == []
    assert len(kept.book.all()) == 2
    again = await kept.book.new("long", KeyLimits())
    assert kept.book.named("long") == again.key


async def test_a_key_that_expired_goes_on_where_its_time_is_set_anew(kept: Kept) -> None:
    made = await kept.book.new("codex", KeyLimits(expires_at=NOW + 60))
    kept.clock.now = NOW + 61
    await kept.book.change("codex", KeyLimits(total_max=5, expires_at=NOW + DAY))
    found = kept.book.find(made.secret)
    assert found is not None
    assert kept.book.why_not(found) is None
    assert found.limits.total_max == 5


@pytest.mark.parametrize("name", ["", " ", "-x", "a b", "x" * 41, "ä", "a/b", "a\n"])
async def test_a_name_is_a_word(kept: Kept, name: str) -> None:
    with pytest.raises(ConfigError, match="no name for a key"):
        await kept.book.new(name, KeyLimits())


@pytest.mark.parametrize(
    "limits",
    [
        KeyLimits(expires_at=NOW),
        KeyLimits(total_max=LIMIT_MAX + 1),
        KeyLimits(day_max=10**30),
        KeyLimits(price_in_max=10**30),
        KeyLimits(models=tuple(ModelId(n.to_bytes(32, "big")) for n in range(101))),
    ],
)
async def test_limits_that_no_key_can_have_are_refused(kept: Kept, limits: KeyLimits) -> None:
    await kept.book.new("codex", KeyLimits())
    with pytest.raises(ConfigError):
        await kept.book.new("other", limits)
    with pytest.raises(ConfigError):
        await kept.book.change("codex", limits)
    assert kept.book.named("codex").limits == KeyLimits()


async def test_an_unknown_name_is_told_with_those_there_are(kept: Kept) -> None:
    with pytest.raises(ConfigError, match="none yet"):
        kept.book.named("codex")
    made = await kept.book.new("laptop", KeyLimits())
    with pytest.raises(ConfigError, match="Keys are: laptop"):
        await kept.book.revoke("codex")
    assert kept.book.named(made.key.id.hex()) == made.key


async def test_only_so_many_keys_are_valid_at_once(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    assert KEYS_MAX >= 100
    monkeypatch.setattr("p2pnode.payments.keys.KEYS_MAX", 2)
    for name in ("one", "two"):
        await kept.book.new(name, KeyLimits())
    with pytest.raises(ConfigError, match="revoke some"):
        await kept.book.new("three", KeyLimits())
    await kept.book.revoke("one")
    await kept.book.new("three", KeyLimits())


async def test_a_model_that_a_key_may_not_use_is_told_before_any_host_is_looked_for(kept: Kept) -> None:
    allowed = ModelId(b"\x01" * 32)
    made = await kept.book.new("codex", KeyLimits(models=(allowed,), expires_at=NOW + DAY))
    check_model(made.key, allowed, NOW)
    with pytest.raises(BudgetError) as caught:
        check_model(made.key, ModelId(b"\x02" * 32), NOW)
    assert caught.value.reason == "model"
    with pytest.raises(BudgetError) as caught:
        check_model(made.key, allowed, NOW + DAY)
    assert caught.value.reason == "expired"


async def test_a_secret_that_stands_in_an_error_is_not_logged(kept: Kept) -> None:
    made = await kept.book.new("codex", KeyLimits())
    log, before = StringIO(), structlog.get_config()
    try:
        configure_logging("debug", stream=log)
        error = ValueError(f"bad header Bearer {made.secret}")
        structlog.get_logger().warning("request.failed", reason=f"x {made.secret} y", exc_info=error)
    finally:
        structlog.configure(**before)
    assert "request.failed" in log.getvalue()
    assert made.secret not in log.getvalue()
    assert log.getvalue().count("p2p-\\u2026") == 2, "in the reason and in the error"
