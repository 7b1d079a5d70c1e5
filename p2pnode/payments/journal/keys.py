"""The keys that apps and people ask with, and what is spent on each, in a transaction.

A key has limits: what may be spent in 24 hours and in all, which models, at what prices, until when. Of its
secret only a hash is here. A turn *claims* a part of what is left of them before anything is signed for it:
the bound of its input and what comes before it can be stopped. Each voucher then turns a part of the claim
into what was spent, in the transaction that records the voucher, and claims the next part. So what was spent
and what is claimed never exceed a limit together, whatever is killed when. The fee of a session is spent by
the key whose turn opened it, for the deposit is signed for that turn.

A claim of a process that has ended is dropped by the next one: all that process signed is in here, for a
voucher is sent only when it is. What was signed for a session that turned out to be never opened is not
spent: sums leave out sessions that expired. Amounts are token units, times are epoch seconds.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import msgpack

from p2pnode.errors import BudgetError, ConfigError
from p2pnode.ids import ModelId, SessionId
from p2pnode.money import usdc_number, usdc_text
from p2pnode.protocols.inference.messages import SessionTerms

KEY_TABLES: Final = """
CREATE TABLE keys (
    key BLOB PRIMARY KEY,
    name TEXT NOT NULL,
    digest BLOB NOT NULL UNIQUE,
    day_max INTEGER,
    total_max INTEGER,
    price_in_max INTEGER,
    price_out_max INTEGER,
    models BLOB NOT NULL,
    made_at INTEGER NOT NULL,
    expires_at INTEGER,
    revoked_at INTEGER
) WITHOUT ROWID;
CREATE UNIQUE INDEX keys_by_name ON keys (name) WHERE revoked_at IS NULL;

CREATE TABLE key_spent (
    key BLOB NOT NULL REFERENCES keys (key),
    session BLOB NOT NULL REFERENCES bought (session),
    at INTEGER NOT NULL,
    units INTEGER NOT NULL,
    PRIMARY KEY (key, at, session)
) WITHOUT ROWID;

CREATE TABLE key_claims (
    claim INTEGER PRIMARY KEY AUTOINCREMENT,
    key BLOB NOT NULL REFERENCES keys (key),
    session BLOB NOT NULL REFERENCES bought (session),
    owner TEXT NOT NULL,
    units INTEGER NOT NULL
);
CREATE INDEX key_claims_by_session ON key_claims (session);
"""
"""Spent is what was signed in the minute that began at ``at``, or on that day where it is two days old."""
DAY_S: Final = 24 * 3600
_MINUTE_S: Final = 60
_ROUGH_AFTER_S: Final = 2 * DAY_S
_UNDER_WAY_RETRY_S: Final = 10.0
"""When to ask again where only answers under way hold what is left: most end by then."""
_SPENT: Final = (
    "SELECT COALESCE(SUM(units), 0) FROM key_spent JOIN bought USING (session)"
    " WHERE key_spent.key = ? AND bought.state != 'expired'"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyLimits:
    """What a key allows. None, or no model, stands for no limit of its own."""

    day_max: int | None = None
    """Token units in 24 hours."""
    total_max: int | None = None
    """Token units in all."""
    price_in_max: int | None = None
    """Token units per million tokens, as offers have them."""
    price_out_max: int | None = None
    models: tuple[ModelId, ...] = ()
    expires_at: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A key, without its secret. ``id`` is public: 8 bytes."""

    id: bytes
    name: str
    limits: KeyLimits
    made_at: int
    revoked_at: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyUsage:
    """What was signed on a key in 24 hours and in all, and what its answers under way may still take."""

    day: int
    total: int
    claimed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What a turn asks of a key's budget: ``wanted`` token units, and not less than ``least``.

    ``fee`` is spent at once, where the turn opens a session. ``replaces`` is the claim that was made then.
    """

    key: bytes
    wanted: int
    least: int
    fee: int = 0
    replaces: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Granted:
    """A claim that was granted: its number in the journal, and how many token units."""

    claim: int
    key: bytes
    units: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyShare:
    """What a voucher adds for a turn of a key: ``units`` are spent, ``ahead`` are to be claimed after it."""

    claim: int
    key: bytes
    units: int
    ahead: int


# ---- keys


def add(db: sqlite3.Connection, key: Key, digest: bytes) -> None:
    """Insert a new key. ``digest`` is the hash of its secret. Raises ``ConfigError`` for a name in use."""
    query = "SELECT 1 FROM keys WHERE name = ? AND revoked_at IS NULL"
    if db.execute(query, (key.name,)).fetchone() is not None:
        raise ConfigError(f"there is a key {key.name!r} already: revoke it first, or choose another name")
    own = {"key": key.id, "name": key.name, "digest": digest, "made": key.made_at, "revoked": key.revoked_at}
    db.execute(
        "INSERT INTO keys VALUES (:key, :name, :digest, :day_max, :total_max, :price_in_max, :price_out_max,"
        " :models, :made, :expires_at, :revoked)",
        own | _columns(key.limits),
    )


def change(db: sqlite3.Connection, key: bytes, limits: KeyLimits) -> None:
    """Give a key other limits. What was spent stays."""
    db.execute(
        "UPDATE keys SET day_max = :day_max, total_max = :total_max, price_in_max = :price_in_max,"
        " price_out_max = :price_out_max, models = :models, expires_at = :expires_at WHERE key = :key",
        {"key": key, **_columns(limits)},
    )


def revoke(db: sqlite3.Connection, key: bytes, now: int) -> None:
    """Let the key pay for nothing more. Its name is free again, and what it spent stays on record."""
    db.execute("UPDATE keys SET revoked_at = COALESCE(revoked_at, ?) WHERE key = ?", (now, key))


def all_keys(db: sqlite3.Connection) -> list[Key]:
    """All keys, the oldest first, those that were revoked included."""
    return [_key_of(row) for row in db.execute("SELECT * FROM keys ORDER BY made_at, name")]


def with_digest(db: sqlite3.Connection, digest: bytes) -> tuple[Key, bytes] | None:
    """The key whose secret has this hash, and the hash as it stands here."""
    row = db.execute("SELECT * FROM keys WHERE digest = ?", (digest,)).fetchone()
    return None if row is None else (_key_of(row), bytes(row["digest"]))


def with_id(db: sqlite3.Connection, key: bytes) -> Key | None:
    """The key, or None."""
    row = db.execute("SELECT * FROM keys WHERE key = ?", (key,)).fetchone()
    return None if row is None else _key_of(row)


def usage(db: sqlite3.Connection, key: bytes, now: int) -> KeyUsage:
    """What was spent on a key, and what is claimed of it."""
    claimed = db.execute("SELECT COALESCE(SUM(units), 0) FROM key_claims WHERE key = ?", (key,)).fetchone()[0]
    return KeyUsage(
        day=int(db.execute(f"{_SPENT} AND at > ?", (key, now - DAY_S - _MINUTE_S)).fetchone()[0]),
        total=int(db.execute(_SPENT, (key,)).fetchone()[0]),
        claimed=int(claimed),
    )


def _columns(limits: KeyLimits) -> dict[str, Any]:
    return {**asdict(limits), "models": msgpack.packb([bytes(each) for each in limits.models])}


def _key_of(row: sqlite3.Row) -> Key:
    return Key(
        id=bytes(row["key"]),
        name=row["name"],
        limits=KeyLimits(
            day_max=row["day_max"],
            total_max=row["total_max"],
            price_in_max=row["price_in_max"],
            price_out_max=row["price_out_max"],
            models=tuple(ModelId(each) for each in msgpack.unpackb(row["models"])),
            expires_at=row["expires_at"],
        ),
        made_at=row["made_at"],
        revoked_at=row["revoked_at"],
    )


# ---- claims


def claim(
    db: sqlite3.Connection,
    asked: Claim,
    session: SessionId,
    terms: SessionTerms,
    *,
    now: int,
    owner: str,
    alive: Callable[[str], bool],
) -> Granted:
    """Grant a turn a part of its key's budget. Raises ``BudgetError``; then nothing is granted or spent.

    ``terms`` are those of the session, which must be recorded.
    """
    key = with_id(db, asked.key)
    if key is None:
        raise BudgetError("the key that pays for this is not in the journal", reason="revoked")
    check(key, terms, now)
    _drop_claims_of_the_dead(db, asked.key, alive)
    if asked.replaces is not None:
        db.execute("DELETE FROM key_claims WHERE claim = ?", (asked.replaces,))
    used = usage(db, key.id, now)
    least = asked.fee + asked.least
    left = _left(key.limits, used)
    if left is not None and left < least:
        raise _refusal(db, key, used, least, now)
    units = asked.wanted if left is None else min(asked.wanted, left - asked.fee)
    if asked.fee:
        _spend(db, key.id, session, asked.fee, now)
    made = db.execute(
        "INSERT INTO key_claims (key, session, owner, units) VALUES (?, ?, ?, ?)",
        (key.id, session, owner, units),
    )
    assert made.lastrowid is not None  # noqa: S101 - an insert has one
    return Granted(claim=made.lastrowid, key=key.id, units=units)


def check(key: Key, terms: SessionTerms, now: int) -> None:
    """Raise ``BudgetError`` where the key may not pay in a session of these terms, whatever is left of it."""
    limits = key.limits
    if (error := why_not_valid(key, now)) is not None:
        raise error
    if limits.models and terms.model not in limits.models:
        raise BudgetError(f"the key {key.name!r} may not use this model", reason="model")
    for what, price, most in (
        ("input", terms.price_in, limits.price_in_max),
        ("output", terms.price_out, limits.price_out_max),
    ):
        if most is not None and price > most:
            raise BudgetError(
                f"this host asks {usdc_number(price)} USDC per million tokens of {what}; the key "
                f"{key.name!r} allows {usdc_number(most)}",
                reason="price",
            )


def why_not_valid(key: Key, now: int) -> BudgetError | None:
    """Why the key is good for nothing any more; None while it is valid."""
    if key.revoked_at is not None:
        return BudgetError(f"the key {key.name!r} was revoked: ask for another one", reason="revoked")
    if key.limits.expires_at is not None and now >= key.limits.expires_at:
        msg = f"the key {key.name!r} has expired: `p2pnode keys set {key.name} --expires` renews it"
        return BudgetError(msg, reason="expired")
    return None


def signed(
    db: sqlite3.Connection, session: SessionId, shares: Sequence[KeyShare], now: int
) -> dict[int, int]:
    """Count what a voucher adds for turns of keys as spent. Returns what is claimed after it, by claim.

    Of what is left of a key's limits each claim gets what it asks for as ``ahead``, or what there is.
    """
    claimed: dict[int, int] = {}
    for share in shares:
        _spend(db, share.key, session, share.units, now)
        row = db.execute("SELECT units FROM key_claims WHERE claim = ?", (share.claim,)).fetchone()
        if row is None:  # its turn is over
            continue
        rest = max(0, row["units"] - share.units)
        db.execute("UPDATE key_claims SET units = ? WHERE claim = ?", (min(rest, share.ahead), share.claim))
        units = min(rest, share.ahead)
        key = with_id(db, share.key)
        if rest < share.ahead and key is not None and why_not_valid(key, now) is None:
            left = _left(key.limits, usage(db, key.id, now))
            units = share.ahead if left is None else min(share.ahead, rest + max(0, left))
            db.execute("UPDATE key_claims SET units = ? WHERE claim = ?", (units, share.claim))
        claimed[share.claim] = units
    return claimed


def release(db: sqlite3.Connection, claim_: int, keep: int) -> None:
    """A turn is over, for which ``keep`` token units are still to be signed: give back the rest."""
    if keep > 0:
        db.execute("UPDATE key_claims SET units = MIN(units, ?) WHERE claim = ?", (keep, claim_))
    else:
        db.execute("DELETE FROM key_claims WHERE claim = ?", (claim_,))


def release_session(db: sqlite3.Connection, session: SessionId) -> None:
    """No turn of the session is under way."""
    db.execute("DELETE FROM key_claims WHERE session = ?", (session,))


def make_rough(db: sqlite3.Connection, now: int) -> None:
    """Keep of what was spent long ago only the day, so that a year of minutes stays small."""
    marks = {"before": (now - _ROUGH_AFTER_S) // DAY_S * DAY_S, "day": DAY_S}
    old = "FROM key_spent WHERE at < :before AND at % :day != 0"
    db.execute(
        f"INSERT INTO key_spent SELECT key, session, at / :day * :day AS day, SUM(units) {old}"
        " GROUP BY key, session, day ON CONFLICT DO UPDATE SET units = units + excluded.units",
        marks,
    )
    db.execute(f"DELETE {old}", marks)


def _drop_claims_of_the_dead(db: sqlite3.Connection, key: bytes, alive: Callable[[str], bool]) -> None:
    owners = db.execute("SELECT DISTINCT owner FROM key_claims WHERE key = ?", (key,)).fetchall()
    for row in owners:
        if not alive(row["owner"]):
            db.execute("DELETE FROM key_claims WHERE key = ? AND owner = ?", (key, row["owner"]))


def _spend(db: sqlite3.Connection, key: bytes, session: SessionId, units: int, now: int) -> None:
    if units > 0:
        db.execute(
            "INSERT INTO key_spent (key, session, at, units) VALUES (?, ?, ?, ?)"
            " ON CONFLICT DO UPDATE SET units = units + excluded.units",
            (key, session, now - now % _MINUTE_S, units),
        )


def refusal(db: sqlite3.Connection, key_id: bytes, least: int, now: int) -> BudgetError:
    """Why an answer that was stopped could not have ``least`` token units more."""
    key = with_id(db, key_id)
    if key is None:
        return BudgetError("the key that pays for this is not in the journal", reason="revoked")
    return why_not_valid(key, now) or _refusal(db, key, usage(db, key_id, now), least, now)


def _left(limits: KeyLimits, used: KeyUsage) -> int | None:
    """Token units that may still be claimed; None for any."""
    rests = [
        most - spent - used.claimed
        for most, spent in ((limits.day_max, used.day), (limits.total_max, used.total))
        if most is not None
    ]
    return max(0, min(rests)) if rests else None


def _refusal(db: sqlite3.Connection, key: Key, used: KeyUsage, least: int, now: int) -> BudgetError:
    """What is used up of which limit, and when asking again may help."""
    limits, under_way = key.limits, ""
    if used.claimed:
        under_way = f", and answers under way may take {usdc_text(used.claimed)}"
    if limits.total_max is not None and limits.total_max - used.total - used.claimed < least:
        fits_later = limits.total_max - used.total >= least
        return BudgetError(
            f"the budget of the key {key.name!r} is {usdc_text(limits.total_max)}: {usdc_text(used.total)} "
            f"of it are spent{under_way}, and {usdc_text(least)} are needed to go on. "
            f"`p2pnode keys set {key.name} --budget` raises it",
            reason="total",
            retry_after_s=_UNDER_WAY_RETRY_S if fits_later else None,
        )
    most = limits.day_max or 0
    retry_s = _UNDER_WAY_RETRY_S if most - used.day >= least else _room_in_s(db, key, used, least, now)
    return BudgetError(
        f"the budget of the key {key.name!r} for 24 hours is {usdc_text(most)}: {usdc_text(used.day)} of it "
        f"are spent{under_way}, and {usdc_text(least)} are needed to go on. Wait, or raise it with "
        f"`p2pnode keys set {key.name} --per-day`",
        reason="day",
        retry_after_s=retry_s,
    )


def _room_in_s(db: sqlite3.Connection, key: Key, used: KeyUsage, least: int, now: int) -> float | None:
    """In how many seconds enough of the day is over for ``least``; None where it never is."""
    needed = least - ((key.limits.day_max or 0) - used.day)
    rows = db.execute(
        "SELECT at, SUM(units) AS units FROM key_spent JOIN bought USING (session)"
        " WHERE key_spent.key = ? AND bought.state != 'expired' AND at > ? GROUP BY at ORDER BY at",
        (key.id, now - DAY_S - _MINUTE_S),
    )
    for row in rows:
        needed -= row["units"]
        if needed <= 0:
            return float(row["at"] + DAY_S + _MINUTE_S - now)
    return None
