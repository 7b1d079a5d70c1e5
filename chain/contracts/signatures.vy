# pragma version 0.4.3
"""
@title Signatures of plain accounts and of contract wallets
@license Apache-2.0
@notice Neither function reverts, so that a batch can skip one bad signature.
"""

# Half the order of secp256k1 (EIP-2).
HALF_ORDER: constant(uint256) = 57896044618658097711785492504343953926418782139537452191302581570759080747168

# ERC-1271: isValidSignature(bytes32,bytes) answers with its own selector, left-aligned in one word.
ERC1271_MAGIC: constant(bytes32) = 0x1626ba7e00000000000000000000000000000000000000000000000000000000


@internal
@pure
def _recover(digest: bytes32, signature: Bytes[65]) -> address:
    """
    @notice Who signed a digest.
    @dev Attack: a malleable twin. For each (r, s, v) there is a second valid (r, n - s, v'); whoever keyed
         anything by the bytes of a signature would see two. High s is refused, and nothing is keyed so.
    @param digest 32 bytes.
    @param signature r, s, v: 65 bytes, v is 27 or 28.
    @return The signer, or the zero address if there is none: callers must never accept zero.
    """
    if len(signature) != 65:
        return empty(address)
    s: uint256 = extract32(signature, 32, output_type=uint256)
    v: uint256 = convert(slice(signature, 64, 1), uint256)
    if s > HALF_ORDER or (v != 27 and v != 28):
        return empty(address)
    return ecrecover(digest, v, extract32(signature, 0, output_type=uint256), s)


@internal
@view
def _signed_by(account: address, digest: bytes32, signature: Bytes[2048]) -> bool:
    """
    @notice Did this account sign? Plain accounts by their key, contract wallets by ERC-1271.
    @dev The key is tried first: an EIP-7702 account has both code and a key. The wallet is called statically.
         Attack: a wallet that burns all gas. It costs whoever relays its signature at most the gas limit
         of that one transaction: nobody else's money depends on the call.
    @param account Whose word is claimed.
    @param digest 32 bytes.
    @param signature At most 2 kB, so that multisig and passkey wallets fit.
    @return Whether it holds.
    """
    if account == empty(address):
        return False
    if len(signature) == 65 and self._recover(digest, slice(signature, 0, 65)) == account:
        return True
    ok: bool = False
    response: Bytes[32] = b""
    ok, response = raw_call(
        account,
        abi_encode(digest, signature, method_id=method_id("isValidSignature(bytes32,bytes)")),
        max_outsize=32,
        is_static_call=True,
        revert_on_failure=False,
    )
    return ok and len(response) == 32 and convert(response, bytes32) == ERC1271_MAGIC
