"""Keys with budgets: one for each app or person that asks through this data dir, made and found here.

A key's secret is shown once, when it is made. The journal has a hash of it: its 192 random bits can't be
guessed, so that a plain hash is enough. What may be spent on a key is held to where vouchers are signed; here
is what can be said before: whether a secret is a valid key's, and which hosts its question may go to.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from p2pnode.errors import BudgetError, ConfigError
from p2pnode.ids import ModelId
from p2pnode.money import usdc_text
from p2pnode.payments.journal.keys import Key, KeyLimits, KeyUsage, why_not_valid
from p2pnode.payments.spending import LIMIT_MAX

if TYPE_CHECKING:
    from p2pnode.payments.journal.journal import Journal

__all__ = ["Key", "KeyBook", "KeyLimits", "KeyUsage", "NewKey", "digest_of"]
PREFIX: Final = "p2p-"
"""Tells a key of this market from those of others, and lets scanners of code find one that was published."""
_SECRET_BYTES: Final = 24
_ID_BYTES: Final = 8
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")
_MODELS_MAX: Final = 100
KEYS_MAX: Final = 1_000
"""Keys that are valid at once."""


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key that was made just now, and its secret, which nothing can show again."""

    key: Key
    secret: str = field(repr=False)


def digest_of(secret: str) -> bytes:
    """The hash of a secret that the journal holds."""
    return hashlib.sha256(b"p2pnode/key/1" + secret.encode()).digest()


def new_key(name: str, limits: KeyLimits, *, draw: Callable[[int], bytes], now: int) -> NewKey:
    """Make a key. Raises ``ConfigError`` for a name that is none."""
    if _NAME.fullmatch(name) is None:
        msg = (
            f"{name[:60]!r} is no name for a key: take letters, digits, '.', '_' and '-', 40 at most, such "
            "as 'codex' or 'my-laptop'"
        )
        raise ConfigError(msg)
    check_limits(limits, now)
    key = Key(id=draw(_ID_BYTES), name=name, limits=limits, made_at=now)
    return NewKey(key, PREFIX + draw(_SECRET_BYTES).hex())


def check_limits(limits: KeyLimits, now: int) -> None:
    """Raise ``ConfigError`` for limits that no key can have."""
    if limits.expires_at is not None and limits.expires_at <= now:
        raise ConfigError("the key would have expired already: name a time to come")
    for most in (limits.day_max, limits.total_max, limits.price_in_max, limits.price_out_max):
        if most is not None and most > LIMIT_MAX:
            raise ConfigError(f"a limit of a key is {usdc_text(LIMIT_MAX)} at most; leave it out for none")
    if len(limits.models) > _MODELS_MAX:
        raise ConfigError(f"a key names {_MODELS_MAX} models at most; leave them out for any")


def check_model(key: Key, model: ModelId, now: int) -> None:
    """Raise ``BudgetError`` where the key may not ask for this model, or for any."""
    if (error := why_not_valid(key, now)) is not None:
        raise error
    if key.limits.models and model not in key.limits.models:
        raise BudgetError(f"the key {key.name!r} may not use this model", reason="model")


class KeyBook:
    """The keys of a journal. ``wall`` gives epoch seconds, ``draw`` random bytes."""

    def __init__(self, journal: Journal, *, wall: Callable[[], float], draw: Callable[[int], bytes]) -> None:
        self._journal, self._wall, self._draw = journal, wall, draw

    async def new(self, name: str, limits: KeyLimits) -> NewKey:
        """Make a key and record it. Raises ``ConfigError``; the journal must run (``Journal.run``)."""
        if len(self.valid()) >= KEYS_MAX:
            raise ConfigError(f"there are {KEYS_MAX} keys: revoke some first")
        made = new_key(name, limits, draw=self._draw, now=self._now())
        await self._journal.key_add(made.key, digest_of(made.secret))
        return made

    async def change(self, name: str, limits: KeyLimits) -> Key:
        """Give the key of this name other limits. Raises ``ConfigError``."""
        check_limits(limits, self._now())
        key = self.named(name)
        await self._journal.key_change(key.id, limits)
        return self.named(name)

    async def revoke(self, name: str) -> Key:
        """Let the key of this name pay for nothing more. Raises ``ConfigError``."""
        key = self.named(name)
        await self._journal.key_revoke(key.id, self._now())
        return key

    def find(self, secret: str) -> Key | None:
        """The key of this secret, valid or not; None where there is none.

        It is looked up by its hash, of which somebody who measures the time learns nothing that helps.
        """
        digest = digest_of(secret)
        found = self._journal.key_with_digest(digest)
        if found is None or not hmac.compare_digest(found[1], digest):
            return None
        return found[0]

    def why_not(self, key: Key) -> BudgetError | None:
        """Why a key is good for nothing any more; None while it is valid."""
        return why_not_valid(key, self._now())

    def named(self, name: str) -> Key:
        """The key of this name that was not revoked. Raises ``ConfigError`` that names those there are."""
        keys = [each for each in self._journal.all_keys() if each.revoked_at is None]
        for key in keys:
            if key.name == name or key.id.hex() == name:
                return key
        known = ", ".join(each.name for each in keys[:10]) or "none yet: `p2pnode keys new NAME` makes one"
        raise ConfigError(f"there is no key {name[:60]!r}. Keys are: {known}")

    def all(self) -> Sequence[Key]:
        """All keys, the oldest first, those that were revoked included."""
        return self._journal.all_keys()

    def valid(self) -> Sequence[Key]:
        """Those that may ask now."""
        return [each for each in self._journal.all_keys() if self.why_not(each) is None]

    def usage(self, key: Key) -> KeyUsage:
        """What was spent on a key, and what its answers under way may still take."""
        return self._journal.key_usage(key.id, self._now())

    def _now(self) -> int:
        return int(self._wall())
