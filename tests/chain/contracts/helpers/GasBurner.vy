# pragma version 0.4.3
"""
@title A contract wallet for tests that burns all gas when asked for a signature
@license Apache-2.0
"""

@external
@view
def isValidSignature(digest: bytes32, signature: Bytes[2048]) -> bytes4:
    x: bytes32 = digest
    for i: uint256 in range(max_value(uint256)):
        x = keccak256(x)
    return 0x1626ba7e
