"""Wallets of a simulation."""

from __future__ import annotations

import pytest

from p2pnode.protocols.inference.messages import Voucher
from p2pnode.simulations.keys import Keys


def test_an_address_signs_for_itself_and_for_nobody_else() -> None:
    keys = Keys(1)
    one, other = keys.address("one"), keys.address("other")
    assert one != other
    digest = bytes(range(32))
    signature = keys.signer(one)(digest)
    assert len(signature) == 65
    assert keys.recover(digest, signature) == one
    assert keys.recover(digest, other + signature[20:]) is None
    assert keys.recover(bytes(32), signature) is None
    assert Keys(2).recover(digest, signature) is None


@pytest.mark.parametrize("place", [0, 32, 40, 63, 64])
def test_a_changed_byte_is_no_signature(place: int) -> None:
    keys = Keys(1)
    signature = bytearray(keys.signer(keys.address("one"))(bytes(32)))
    signature[place] ^= 1
    assert keys.recover(bytes(32), bytes(signature)) is None
    assert keys.recover(bytes(32), b"") is None


def test_signatures_fit_where_real_ones_do() -> None:
    keys = Keys(1)
    half = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0
    for number in range(200):
        signature = keys.signer(keys.address(str(number)))(bytes(32))
        assert 0 < int.from_bytes(signature[32:64], "big") <= half
        Voucher(seq=0, tokens_in=0, tokens_out=0, amount=0, root=bytes(32), signature=signature)
