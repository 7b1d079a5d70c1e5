"""The one tree of errors: each class says whose fault it is.

::

    P2PNodeError
    ├── LocalError          ours: it stops what we were doing
    │   ├── ConfigError     a flag, file or setting the user can change
    │   │   ├── UsageError  what was typed makes no sense
    │   │   └── BudgetError the key that pays for a question does not allow it
    │   ├── EngineError     the inference engine failed or can't do what was asked
    │   ├── ChainError      the wallet or the ledger failed
    │   └── StorageError    the disk or a store failed
    └── RemoteError         the peer's: it ends that conversation, never more
        ├── ProtocolError   the peer broke the protocol; it counts against the peer
        ├── HostFault       a host broke it in a session of this client, which remembers that
        ├── DisagreementError  two hosts contradict one another: it counts against neither
        ├── ClockError      the peer's clock and ours differ too much: one of the two is wrong
        ├── RefusedError    the peer said no, with a stable wire code
        └── StoreRefusedError  the same of a peer that stores

Every message says what to do next. This module imports only ``words``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal, TypeVar, get_args

from p2pnode.words import quoted

WireCode = Literal[
    "model_not_available",
    "capacity",
    "context_overflow",
    "payment_required",
    "rate_limited",
    "bad_request",
    "stalled",
    "shutting_down",
    "internal",
    "in_use",
]
WIRE_CODES: Final[frozenset[str]] = frozenset(get_args(WireCode))

StoreCode = Literal[
    "not_found",
    "quota",
    "too_large",
    "hash_mismatch",
    "bad_entry",
    "not_admitted",
    "disk_full",
    "rate_limited",
    "cancelled",
    "internal",
]
"""The codes of ``/p2pnode/blob/1``: a store refuses for other reasons than a host."""
STORE_CODES: Final[frozenset[str]] = frozenset(get_args(StoreCode))


class P2PNodeError(Exception):
    """Root of everything this package raises on purpose."""


class LocalError(P2PNodeError):
    """Our side failed; the message names the remedy."""


class ConfigError(LocalError):
    """A setting is wrong; the user can change it."""


class UsageError(ConfigError):
    """What was typed makes no sense; nothing was done."""


BudgetReason = Literal["model", "price", "day", "total", "expired", "revoked"]


class BudgetError(ConfigError):
    """The key that a question came with does not pay for it, or not for more of it. Nothing was closed.

    ``reason`` is what of the key forbids it; ``retry_after_s`` says when asking again may help, where it may.
    """

    def __init__(self, message: str, *, reason: BudgetReason, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.reason: BudgetReason = reason
        self.retry_after_s = retry_after_s


class EngineError(LocalError):
    """The engine failed a request.

    ``code`` is the wire code a host answers with; ``retry_after_s`` says when asking again may help.
    """

    def __init__(
        self, message: str, *, code: WireCode = "internal", retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.code: WireCode = code
        self.retry_after_s = retry_after_s


class EngineLostError(EngineError):
    """The engine died or hung with the request, and starts again: the same request can go on there, once."""


class ChainError(LocalError):
    """The wallet or the ledger failed."""


class StorageError(LocalError):
    """The disk or a store failed."""


class RemoteError(P2PNodeError):
    """The peer failed; that ends this conversation and counts against the peer."""


class ProtocolError(RemoteError):
    """The peer sent what the protocol forbids."""

    code: WireCode = "bad_request"


class HostFault(RemoteError):  # noqa: N818 - it names what the host did
    """A host broke the protocol in a session of this client, which remembers that."""


class DisagreementError(RemoteError):
    """What a host sent can't follow what another host sent before. Which of them is right is unknown here."""


class ClockError(RemoteError):
    """What the peer signs has expired, or is not valid yet: its clock is ``offset_s`` ahead of ours."""

    def __init__(self, message: str, *, offset_s: float) -> None:
        super().__init__(message)
        self.offset_s = offset_s


class RefusedError(RemoteError):
    """The peer answered with an error, or is known to do so when it is asked.

    ``code`` is one of :data:`WIRE_CODES`. With ``said`` the ``detail`` is the peer's own words, which the
    message quotes on one line; otherwise ours.
    """

    def __init__(
        self, code: WireCode, detail: str, *, retry_after_s: float | None = None, said: bool = False
    ) -> None:
        super().__init__(f"{code}: that host says {quoted(detail)}" if said else f"{code}: {detail}")
        self.code: WireCode = code
        self.detail = detail
        self.retry_after_s = retry_after_s


class StoreRefusedError(RemoteError):
    """A peer that stores said no.

    ``code`` is one of :data:`STORE_CODES`, ``detail`` the peer's own words, which the message quotes.
    """

    def __init__(self, code: StoreCode, detail: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(f"{code}: that node says {quoted(detail)}" if detail else code)
        self.code: StoreCode = code
        self.detail = detail
        self.retry_after_s = retry_after_s


class NoHostError(RemoteError):
    """No host serves what was asked within what the user allowed."""


class UnpaidError(NoHostError):
    """Hosts are there, and each asks for money that this client has no way to pay."""


class UnreachableError(RemoteError):
    """A peer could not be dialled, or the connection to it was lost."""


_Error = TypeVar("_Error", bound=BaseException)


def first_error(error: BaseException) -> BaseException:
    """The first error in a group, however deep, or ``error`` itself where it is no group."""
    return next(_errors_in(error))


def first_of_kind(error: BaseException, kind: type[_Error]) -> _Error | None:
    """The first error of a kind in a group, depth first; None where there is none."""
    return next((each for each in _errors_in(error) if isinstance(each, kind)), None)


def _errors_in(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _errors_in(each)
    else:
        yield error
