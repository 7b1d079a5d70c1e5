# pragma version 0.4.3
"""
@title EIP-712 domain of one contract
@license Apache-2.0
@notice Turns the hash of a struct into the digest that a key signs.
@dev Replay on another chain or contract is stopped here: both are part of every digest. The separator is
     recomputed when the chain id is not the one deployed on, so that a fork can't replay either.
"""

DOMAIN_TYPE: constant(bytes32) = keccak256(
    "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
)

NAME_HASH: immutable(bytes32)
VERSION_HASH: immutable(bytes32)
CHAIN_ID: immutable(uint256)
SEPARATOR: immutable(bytes32)


@deploy
def __init__(name: String[32], version: String[8]):
    """
    @notice Fix the domain's name and version.
    @param name As wallets show it.
    @param version Of the signed structs.
    """
    NAME_HASH = keccak256(name)
    VERSION_HASH = keccak256(version)
    CHAIN_ID = chain.id
    SEPARATOR = keccak256(abi_encode(DOMAIN_TYPE, keccak256(name), keccak256(version), chain.id, self))


@internal
@view
def _separator() -> bytes32:
    """
    @notice The domain separator on the chain we run on now.
    @return 32 bytes.
    """
    if chain.id == CHAIN_ID:
        return SEPARATOR
    return keccak256(abi_encode(DOMAIN_TYPE, NAME_HASH, VERSION_HASH, chain.id, self))


@internal
@view
def _digest(struct_hash: bytes32) -> bytes32:
    """
    @notice What a key signs for a struct.
    @param struct_hash `hashStruct` of EIP-712.
    @return The 32-byte digest.
    """
    return keccak256(concat(x"1901", self._separator(), struct_hash))
