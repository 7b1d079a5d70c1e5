"""Commands and emissions of the two machines of a fetch. Never on the wire."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from p2pnode.errors import WireCode
from p2pnode.ids import SessionId
from p2pnode.protocols.inference.messages import Receipt, Voucher

# ---- host


@dataclass(frozen=True, slots=True)
class Look:
    """Read at most ``limit`` receipts after a place (an epoch and a seq), and one more if there is one."""

    session: SessionId
    epoch: int
    seq: int
    limit: int


@dataclass(frozen=True, slots=True)
class Found:
    """What was read, in order, and the best voucher."""

    receipts: tuple[Receipt, ...]
    voucher: Voucher | None


@dataclass(frozen=True, slots=True)
class Unreadable:
    """What was to be read can't be."""


@dataclass(frozen=True, slots=True)
class Served:
    """The stream is over. ``fault`` is True when the peer broke the protocol."""

    reason: str
    fault: bool = False


# ---- client


@dataclass(frozen=True, slots=True)
class Start:
    """Ask."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A page whose receipts hold: each signed by the host, each following one that was shown."""

    receipts: tuple[Receipt, ...]


@dataclass(frozen=True, slots=True)
class Fetched:
    """That was all; ``voucher`` is the best one the host says it has."""

    voucher: Voucher | None


@dataclass(frozen=True, slots=True)
class FetchFailed:
    """It is over. ``code`` is the host's word; None for what this side saw: a lost stream, silence, a fault.

    ``fault`` is True when the host broke the protocol.
    """

    code: WireCode | None
    detail: str
    fault: bool = False


HostEmission: TypeAlias = Look | Served
ClientEmission: TypeAlias = Shown | Fetched | FetchFailed
