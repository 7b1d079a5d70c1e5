"""EIP-712 digests for what the contracts and the token also take, and no command of ours signs."""

from __future__ import annotations

from typing import Final

from p2pnode.ids import SessionId
from p2pnode.protocols.crypto import abi_encode, keccak256
from p2pnode.protocols.typed_data import Domain

_HOST_CLOSE: Final = keccak256(b"HostClose(bytes32 sessionId,uint64 amount)")
_CANCEL: Final = keccak256(b"CancelAuthorization(address authorizer,bytes32 nonce)")
_PERMIT: Final = keccak256(
    b"Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)"
)


def fab_domain(chain_id: int, fab: bytes) -> Domain:
    """The domain of ``FAB``. USDC's is read from the token: its name differs between chains."""
    return Domain(name="FAB", version="1", chain_id=chain_id, contract=fab)


def host_close_digest(market: Domain, session: SessionId, amount: int) -> bytes:
    """What a host signs so that another account may close with the voucher of exactly this amount."""
    return market.digest(keccak256(abi_encode(_HOST_CLOSE, session, amount)))


def cancel_digest(token: Domain, *, payer: bytes, nonce: bytes) -> bytes:
    """EIP-3009 ``CancelAuthorization``."""
    return token.digest(keccak256(abi_encode(_CANCEL, payer, nonce)))


def permit_digest(
    token: Domain, *, owner: bytes, spender: bytes, amount: int, nonce: int, deadline: int
) -> bytes:
    """EIP-2612 ``Permit``."""
    return token.digest(keccak256(abi_encode(_PERMIT, owner, spender, amount, nonce, deadline)))
