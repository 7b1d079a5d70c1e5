"""Can this offer be paid from here? Pure: the chain profile, the caps and the advert decide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from p2pnode.chain.addresses import shown_address
from p2pnode.money import usdc_text
from p2pnode.payments.spending import SpendingCaps
from p2pnode.protocols.adverts.messages import Advert, Offer
from p2pnode.protocols.inference.messages import WINDOW
from p2pnode.protocols.typed_data import TOKENS_PER_PRICE

_NOBODY: Final = bytes(20)


@dataclass(frozen=True, slots=True)
class Market:
    """Where a client pays: ids and 20-byte addresses of its chain profile."""

    chain_id: int
    node_registry: bytes
    contract: bytes


def offer_cost(offer: Offer, tokens_in: int, tokens_out: int) -> int:
    """Fee and tokens, as a voucher for these counts would say."""
    cost = tokens_in * offer.price_in + tokens_out * offer.price_out
    return offer.session_fee + -(-cost // TOKENS_PER_PRICE)


def why_unpayable(
    advert: Advert, offer: Offer, market: Market, caps: SpendingCaps, payer: bytes | None = None
) -> str:
    """Why this offer can't be paid; "" when it can, or is free. What day and host caps leave shows later."""
    binding = advert.binding
    if not (offer.price_in or offer.price_out):
        return ""
    if binding.chain_id != market.chain_id:
        where = f"on chain {binding.chain_id}" if binding.chain_id else "on no chain"
        return f"is paid {where}, this client pays on chain {market.chain_id}"
    if binding.node_registry != market.node_registry:
        return f"belongs to another market (its registry is {shown_address(binding.node_registry)})"
    if binding.wallet == payer:
        return "is paid at this client's own wallet"
    if binding.wallet in (_NOBODY, market.contract) or binding.receipt_key == _NOBODY:
        return "names no account that could be paid"
    if offer.session_fee > caps.fee_max:
        return f"asks {usdc_text(offer.session_fee)} a session; at most {usdc_text(caps.fee_max)} is allowed"
    least = offer_cost(offer, 0, WINDOW)
    if least > caps.session_max:
        return (
            f"asks {usdc_text(least)} for a session's first {WINDOW} tokens; your cap for one is "
            f"{usdc_text(caps.session_max)} (spend_session_max in config.toml)"
        )
    return ""
