"""Messages of the inference protocol as the tuples that the contracts take. Pure."""

from __future__ import annotations

from dataclasses import astuple
from typing import Any, Final

from p2pnode.protocols.inference.messages import Receipt, SessionTerms, Voucher

NO_VOUCHER: Final = (0, 0, 0, 0, bytes(32), b"")
"""What ``request_close`` takes from someone who never signed one."""


def terms_tuple(terms: SessionTerms) -> tuple[Any, ...]:
    """``SessionTerms``: the message's fields stand in the contract's order."""
    return astuple(terms)


def voucher_tuple(voucher: Voucher) -> tuple[Any, ...]:
    """``Voucher``, likewise."""
    return astuple(voucher)


def claim_tuple(terms: SessionTerms, voucher: Voucher) -> tuple[Any, ...]:
    """``Claim``: what ``close`` and ``close_many`` take."""
    return terms_tuple(terms), voucher_tuple(voucher)


def receipt_tuple(receipt: Receipt) -> tuple[Any, ...]:
    """``Receipt`` of NodeRegistry: what ``slash`` takes of each; epoch and seq go beside."""
    told = receipt.checkpoint
    counts = (told.tokens_in, told.tokens_out)
    return receipt.previous, *counts, told.token_hash, told.fingerprint_hash, told.signature
