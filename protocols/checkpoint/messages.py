"""Messages of ``/p2pnode/checkpoint/1``. See ``SPEC.md`` for states, limits and byte vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final, TypeAlias

from p2pnode.errors import WireCode
from p2pnode.ids import PeerId, SessionId
from p2pnode.protocols.crypto import abi_encode, keccak256
from p2pnode.protocols.inference.messages import Detail, Receipt, SessionIdBytes, Signature, Voucher
from p2pnode.protocols.wire import U63, Bytes32, Codec, Size, message

PROTOCOL: Final = "/p2pnode/checkpoint/1"
PAGE_MAX: Final = 14
"""Receipts in one page: within a frame, however long their signatures are."""
RECEIPTS_MAX: Final = 65_536
"""A client takes no more of one session: two million tokens."""
_FETCH_TAG: Final = keccak256(b"p2pnode/checkpoint/1")


@message("fetch")
@dataclass(frozen=True, slots=True, kw_only=True)
class Fetch:
    """Ask for the receipts and the best voucher of a session."""

    session: SessionIdBytes


@message("challenge")
@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """Prove that it is yours."""

    nonce: Bytes32


@message("prove")
@dataclass(frozen=True, slots=True, kw_only=True)
class Prove:
    """The voucher key's signature of ``fetch_digest``."""

    proof: Signature


@message("more")
@dataclass(frozen=True, slots=True, kw_only=True)
class More:
    """The next page, after this place."""

    epoch: U63
    seq: U63


@message("page")
@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Receipts by epoch and place; with the ``last`` of them the best voucher, if there is one."""

    receipts: Annotated[tuple[Receipt, ...], Size(0, PAGE_MAX)]
    last: bool
    voucher: Voucher | None = None


@message("refuse")
@dataclass(frozen=True, slots=True, kw_only=True)
class Refuse:
    """Nothing (more); the stream ends."""

    code: WireCode
    detail: Detail = ""


ClientMessage: TypeAlias = Fetch | Prove | More
HostMessage: TypeAlias = Challenge | Page | Refuse
CODEC: Final = Codec(Fetch, Challenge, Prove, More, Page, Refuse)


def fetch_digest(nonce: bytes, session: SessionId, host: PeerId, client: PeerId) -> bytes:
    """What the voucher key signs to be shown a session between these two peers."""
    peers = (keccak256(host.encode()), keccak256(client.encode()))
    return keccak256(abi_encode(_FETCH_TAG, nonce, session, *peers))
