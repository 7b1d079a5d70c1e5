"""What a payer is about to sign, in words and in fields. Pure; holds no secret."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from p2pnode.chain.addresses import shown_address
from p2pnode.ids import PeerId, SessionId
from p2pnode.money import usdc_text
from p2pnode.protocols.inference.messages import SessionTerms
from p2pnode.words import one_line

CHALLENGE_S: Final = 24 * 3600
"""As the contract has it."""


def describe(terms: SessionTerms, valid_before: int, *, host: str, model: str, chain: int) -> str:
    """What a payer signs, in words: to whom, at most how much, for what, until when, and what comes back."""
    return (
        f"A deposit of {usdc_text(terms.deposit)} on chain {chain}, for host {one_line(host)} "
        f"(wallet {shown_address(terms.host)}) and the model {one_line(model)}. "
        f"Of it the host gets {usdc_text(terms.session_fee)} for the session, and per million tokens "
        f"{usdc_text(terms.price_in)} of input and {usdc_text(terms.price_out)} of output, for what you "
        "receive; the rest comes back. "
        f"The host may take the deposit until {_moment(valid_before)}, or never; the session ends by "
        f"{_moment(terms.expiry)}. Should the host not settle, {_refund(terms)}."
    )


def _refund(terms: SessionTerms) -> str:
    """Who brings it, and why anybody would."""
    when = _moment(terms.expiry + CHALLENGE_S)
    if terms.tip == 0:
        return f"you bring the refund yourself after {when}: this host's fee pays nobody else to do it"
    return f"anyone may bring the refund after {when}, for {usdc_text(terms.tip)} of the host's fee"


def fields_of(
    session: SessionId, terms: SessionTerms, valid_before: int, host: PeerId, model: str
) -> dict[str, object]:
    """The same for programs. Amounts are token units, times epoch seconds."""
    return {
        "session": session.hex(),
        "payer": shown_address(terms.payer),
        "host": host,
        "host_wallet": shown_address(terms.host),
        "model": model,
        "deposit": terms.deposit,
        "session_fee": terms.session_fee,
        "price_in": terms.price_in,
        "price_out": terms.price_out,
        "tip": terms.tip,
        "valid_before": valid_before,
        "expiry": terms.expiry,
    }


def _moment(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
