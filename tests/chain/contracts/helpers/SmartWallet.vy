# pragma version 0.4.3
"""
@title A contract wallet for tests: the owner's 65 bytes, then as much padding as there is room for
@license Apache-2.0
"""
owner: immutable(address)

@deploy
def __init__(owner_: address):
    owner = owner_

@external
@view
def isValidSignature(digest: bytes32, signature: Bytes[2048]) -> bytes4:
    v: uint256 = convert(slice(signature, 64, 1), uint256)
    r: uint256 = extract32(signature, 0, output_type=uint256)
    s: uint256 = extract32(signature, 32, output_type=uint256)
    if ecrecover(digest, v, r, s) == owner:
        return 0x1626ba7e
    return 0xffffffff

@external
def execute(target: address, data: Bytes[4096]):
    assert msg.sender == owner
    raw_call(target, data)
