"""Which hosts a conversation may be with, by its user's word.

A host is named by its peer id, or by its wallet as ``0x…``; its binding proves that both are one. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from p2pnode.errors import ConfigError
from p2pnode.ids import PeerId, host_name
from p2pnode.protocols.adverts.messages import Advert


@dataclass(frozen=True, slots=True, kw_only=True)
class HostRules:
    """``only``: no other host; empty allows any. ``never``: not these. ``trust``: these go first.

    With ``trusted_only`` no others are asked: what was said to a host that its user trusts must not reach a
    stranger unless the user says so, which ``only`` does.
    """

    only: frozenset[str] = frozenset()
    never: frozenset[str] = frozenset()
    trust: frozenset[str] = frozenset()
    trusted_only: bool = False

    @classmethod
    def of(
        cls, *, only: Iterable[str] = (), never: Iterable[str] = (), trust: Iterable[str] = ()
    ) -> HostRules:
        """Rules of names as people write them. Raises ``ConfigError`` for what names no host."""
        try:
            return cls(
                only=frozenset(map(host_name, only)),
                never=frozenset(map(host_name, never)),
                trust=frozenset(map(host_name, trust)),
            )
        except ValueError as error:
            raise ConfigError(str(error)) from error

    def trusts(self, advert: Advert) -> bool:
        """Whether its user named this host as one to trust."""
        return bool(names_of(advert) & self.trust)

    def knows(self, peer: PeerId | None, wallet: bytes | None) -> bool:
        """Whether this peer, or this wallet (20 bytes), is one to trust."""
        return bool(_names(peer, wallet) & self.trust)

    def keep_to_trusted(self) -> HostRules:
        """These rules, once a host that is trusted knows what was said."""
        return replace(self, trusted_only=bool(self.trust))

    def exclusion(self, advert: Advert) -> str:
        """Why a host may not be asked; "" where it may."""
        names = names_of(advert)
        if names & self.never:
            return "you said never to ask it (--never, or `p2pnode block`)"
        if self.only:
            return "" if names & self.only else "you said to ask only others"
        if self.trusted_only and not names & self.trust:
            return "a stranger, and this conversation is with hosts you trust: --only ID lets it in"
        return ""


def names_of(advert: Advert) -> frozenset[str]:
    """The names of a host, in the form that :func:`~p2pnode.ids.host_name` gives."""
    return _names(advert.peer, advert.binding.wallet)


def _names(peer: PeerId | None, wallet: bytes | None) -> frozenset[str]:
    named = [str(peer)] if peer is not None else []
    named += [f"0x{wallet.hex()}"] if wallet is not None else []  # as ``host_name`` gives it
    return frozenset(named)
