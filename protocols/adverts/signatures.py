"""How adverts are signed, read and verified, how a wallet binds itself to a peer, and how a sheet is hashed.

Pure: keys are injected as signers. ``AdvertChecks`` is what the machines read and verify with.

The binding's typed data (EIP-712)::

    HostBinding(string peerId,address receiptKey,uint256 chainId,
                address nodeRegistry,uint256 seq,uint256 expiresAt)
    domain: EIP712Domain(string name,string version) = ("p2pnode", "1")

Both chain fields are zero where no chain is configured. A binding lives at most 30 days.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from p2pnode.errors import ProtocolError
from p2pnode.ids import PeerId
from p2pnode.protocols.adverts.messages import (
    ADVERT_MAX,
    SHEET_MAX,
    Advert,
    Binding,
    Profile,
    Sheet,
    SignedAdvert,
)
from p2pnode.protocols.crypto import Signer, abi_encode, keccak256, recover_address, verify_peer
from p2pnode.protocols.wire import decode_record, encode

ADVERT_TAG: Final = b"p2pnode/advert/1\0"
SHEET_TAG: Final = b"p2pnode/sheet/1\0"
PROFILE_TAG: Final = b"p2pnode/profile/1\0"
_PROFILE_BYTES: Final = 8
BINDING_TTL_MAX_S: Final = 30 * 24 * 3600
CLOCK_SKEW_S: Final = 120
"""How far two clocks may differ, both ways. A replay of what expired gains no more than this."""
_DOMAIN: Final = keccak256(
    abi_encode(keccak256(b"EIP712Domain(string name,string version)"), keccak256(b"p2pnode"), keccak256(b"1"))
)
_BINDING_TYPE: Final = keccak256(
    b"HostBinding(string peerId,address receiptKey,uint256 chainId,"
    b"address nodeRegistry,uint256 seq,uint256 expiresAt)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BindingTerms:
    """What a wallet signs, before it is signed."""

    receipt_key: bytes
    chain_id: int = 0
    node_registry: bytes = bytes(20)
    seq: int
    expires_at: int


def binding_digest(peer: PeerId, terms: BindingTerms) -> bytes:
    """The 32-byte EIP-712 digest of a ``HostBinding``."""
    struct = keccak256(
        abi_encode(
            _BINDING_TYPE,
            keccak256(peer.encode()),
            terms.receipt_key,
            terms.chain_id,
            terms.node_registry,
            terms.seq,
            terms.expires_at,
        )
    )
    return keccak256(b"\x19\x01" + _DOMAIN + struct)


def bind(peer: PeerId, wallet: bytes, terms: BindingTerms, sign: Signer) -> Binding:
    """The binding of ``wallet`` (20 bytes), whose key ``sign`` uses."""
    return Binding(
        wallet=wallet,
        receipt_key=terms.receipt_key,
        chain_id=terms.chain_id,
        node_registry=terms.node_registry,
        seq=terms.seq,
        expires_at=terms.expires_at,
        signature=sign(binding_digest(peer, terms)),
    )


def binding_holds(peer: PeerId, binding: Binding, now: float) -> bool:
    """Whether the wallet signed this binding for this peer, and it is live at ``now``."""
    return is_live(binding, now) and is_bound(peer, binding)


def is_live(binding: Binding, now: float) -> bool:
    """Whether ``now`` (epoch seconds) is within the life of this binding."""
    return now < binding.expires_at <= now + BINDING_TTL_MAX_S + CLOCK_SKEW_S


def is_bound(peer: PeerId, binding: Binding) -> bool:
    """Whether the wallet that ``binding`` names signed it for this peer. Time is no part of this."""
    terms = BindingTerms(
        receipt_key=binding.receipt_key,
        chain_id=binding.chain_id,
        node_registry=binding.node_registry,
        seq=binding.seq,
        expires_at=binding.expires_at,
    )
    return recover_address(binding_digest(peer, terms), binding.signature) == binding.wallet


def seal(advert: Advert, sign: Signer) -> SignedAdvert:
    """Sign with the peer key. Raises ``ValueError`` when the advert would not fit."""
    body = encode(advert)
    signed = SignedAdvert(body=body, signature=sign(ADVERT_TAG + body))
    if (size := len(encode(signed))) > ADVERT_MAX:
        msg = f"the advert takes {size} bytes of {ADVERT_MAX}: announce fewer models or addresses"
        raise ValueError(msg)
    return signed


def parse(signed: SignedAdvert) -> Advert:
    """The advert inside, unverified. Raises ``ProtocolError``."""
    return decode_record(Advert, signed.body)


def decode_gossip(data: bytes) -> SignedAdvert:
    """A signed advert as gossip carries it. Raises ``ProtocolError``, also above ``ADVERT_MAX``."""
    if len(data) > ADVERT_MAX:
        msg = f"an advert of {len(data)} bytes; {ADVERT_MAX} are allowed"
        raise ProtocolError(msg)
    return decode_record(SignedAdvert, data)


def verify(signed: SignedAdvert, advert: Advert) -> bool:
    """Whether the peer that ``advert`` names signed it. Its binding is another matter: :func:`is_bound`.

    ``advert`` is what :func:`parse` made of ``signed``.
    """
    return verify_peer(advert.peer, ADVERT_TAG + signed.body, signed.signature)


# ---- sheets


def profile_hash(profile: Profile) -> bytes:
    """The 8 bytes by which an offer names a profile."""
    return keccak256(PROFILE_TAG + encode(profile))[:_PROFILE_BYTES]


def sheet_hash(body: bytes) -> bytes:
    """The 32 bytes by which an advert names a sheet, of which ``body`` is the msgpack."""
    return keccak256(SHEET_TAG + body)


def encode_sheet(sheet: Sheet) -> bytes:
    """A sheet's bytes. Raises ``ValueError`` above ``SHEET_MAX``."""
    body = encode(sheet)
    if len(body) > SHEET_MAX:
        msg = f"the sheet takes {len(body)} bytes of {SHEET_MAX}: serve fewer models or announce less"
        raise ValueError(msg)
    return body


def read_sheet(body: bytes, advert: Advert) -> Sheet:
    """The sheet that ``advert`` names, from what a peer answered. Raises ``ProtocolError`` for any other."""
    if advert.sheet is None or sheet_hash(body) != advert.sheet:
        msg = "the sheet is not the one that the advert names"
        raise ProtocolError(msg)
    sheet = decode_record(Sheet, body)
    if sheet.peer != advert.peer:
        msg = "the sheet is another host's"
        raise ProtocolError(msg)
    return sheet


@dataclass(frozen=True, slots=True, kw_only=True)
class AdvertChecks:
    """How a machine decodes gossip, parses an advert, and verifies it and its binding.

    Each function's result depends on its arguments alone, so that a simulator of many nodes can give them
    all functions that remember: an advert is then parsed and verified once, and not once a node.
    """

    decode: Callable[[bytes], SignedAdvert] = decode_gossip
    parse: Callable[[SignedAdvert], Advert] = parse
    verify: Callable[[SignedAdvert, Advert], bool] = verify
    is_bound: Callable[[PeerId, Binding], bool] = is_bound
