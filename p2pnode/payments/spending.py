"""What a client may sign away, whatever a host asks: limits, the deposit of a session, and its words. Pure.

Two amounts are bounded. What is *locked* are the deposits of all sessions that have not ended on the chain.
What is *spent* is what fees and vouchers added in the last 24 hours, counted when they are signed. A deposit
is held against the first before a wallet signs it, a turn against the second before it is asked: it may add
what is left of the day at most, and ends honestly when that is used up. The journal does both inside a
transaction, so that they hold for all processes on a data dir. Nothing here signs, asks a chain or holds a
secret: ``session_signer.py`` does. Amounts are token units (1e-6 USDC), times are epoch seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Final

from p2pnode.chain.addresses import shown_address
from p2pnode.contract_rules import CHALLENGE_S, SESSION_FEE_MAX, TOKENS_PER_PRICE
from p2pnode.errors import ChainError, ConfigError
from p2pnode.ids import PeerId, SessionId
from p2pnode.money import usdc_text
from p2pnode.payments.journal.records import Spending
from p2pnode.protocols.adverts.messages import Advert, Offer
from p2pnode.protocols.inference.messages import WINDOW, SessionTerms
from p2pnode.words import one_line

_RAISE_SESSION_MAX: Final = "--max-spend, or without that flag spend_session_max in config.toml"
LIMIT_MAX: Final = 10**15
TURNS: Final = 5
"""Turns like the first that a deposit covers, where the limits and the wallet allow it."""
FEES: Final = 10
"""Session fees that a deposit covers: a smaller one would be used up, and the next fee due, all too soon."""
DAYS: Final = 2
"""Days like the last with the same host that a deposit covers, where the limits and the wallet allow it."""
TIP: Final = 10_000
"""Goes to whoever brings the refund, if the host doesn't: about what that costs on an L2."""
_NOBODY: Final = bytes(20)


class SpendingLimitError(ConfigError):
    """A session would go beyond what the user allows; nothing was signed."""


class FundsError(ChainError):
    """The wallet holds too little; nothing was signed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpendingLimits:
    """Token units. Zero allows nothing. Implements ``SpendingRule`` and ``TurnRule``."""

    session_max: int = 1_000_000
    """The deposit of one session."""
    day_max: int = 5_000_000
    """What is spent in 24 hours."""
    host_max: int = 2_000_000
    """What is locked with one host, and was spent in the last 24 hours in its sessions that have ended."""
    locked_max: int | None = None
    """What is locked in all; None: as ``day_max``."""
    fee_max: int = SESSION_FEE_MAX
    """The session fee of a host."""

    def __post_init__(self) -> None:
        for item in fields(self):
            value, highest = getattr(self, item.name), LIMIT_MAX
            if item.name == "fee_max":
                highest = SESSION_FEE_MAX
            if item.name == "locked_max" and value is None:
                continue
            if type(value) is not int or not 0 <= value <= highest:
                msg = f"{item.name} must be a whole number of USDC units from 0 to {highest}"
                raise ConfigError(msg)

    def check(self, spending: Spending) -> None:
        """Raise ``SpendingLimitError`` that names the limit, what is used of it, and how to raise it."""
        if spending.session_fee > self.fee_max:
            msg = (
                f"this host asks a session fee of {usdc_text(spending.session_fee)}; at most "
                f"{usdc_text(self.fee_max)} is allowed: choose another host"
            )
            raise SpendingLimitError(msg)
        if spending.deposit > self.session_max:
            msg = (
                f"this session needs a deposit of {usdc_text(spending.deposit)}; your limit for one is "
                f"{usdc_text(self.session_max)}: ask for less, or raise {_RAISE_SESSION_MAX}"
            )
            raise SpendingLimitError(msg)
        host_left, locked_left = self.left(spending)
        if spending.deposit > host_left:
            used = self.host_max - host_left
            raise _used_up("one host", self.host_max, used, spending.deposit, "spend_host_max")
        if spending.deposit > locked_left:
            most, name = self._locked_max, "spend_locked_max"
            raise _used_up("deposits", most, spending.locked, spending.deposit, name)
        if spending.session_fee > self.day_left(spending):
            raise _day_used_up(self.day_max, spending)

    @property
    def _locked_max(self) -> int:
        return self.day_max if self.locked_max is None else self.locked_max

    def left(self, spending: Spending) -> tuple[int, int]:
        """What may still be locked with this host, and in all."""
        at_host = spending.host_locked + spending.host_ended
        return max(0, self.host_max - at_host), max(0, self._locked_max - spending.locked)

    def day_left(self, spending: Spending) -> int:
        """What may still be spent today. What other turns may still add counts as spent."""
        return max(0, self.day_max - spending.day_spent - spending.day_reserved)

    def grant(self, wanted: int, least: int, spending: Spending) -> int:
        """How much a turn may add, ``wanted`` at most. Raises ``SpendingLimitError`` below ``least``."""
        left = self.day_left(spending)
        if left < min(wanted, least):
            raise _day_used_up(self.day_max, spending)
        return min(wanted, left)


def _day_used_up(limit: int, spending: Spending) -> SpendingLimitError:
    under_way = ""
    if spending.day_reserved:
        under_way = f", and answers that are under way may take {usdc_text(spending.day_reserved)}"
    return SpendingLimitError(
        f"your spending limit for a day is {usdc_text(limit)}: {usdc_text(spending.day_spent)} of it were "
        f"spent in the last 24 hours{under_way}. Nothing was closed: wait, or raise spend_day_max in "
        "config.toml"
    )


def _used_up(what: str, limit: int, used: int, deposit: int, setting: str) -> SpendingLimitError:
    return SpendingLimitError(
        f"your spending limit for {what} is {usdc_text(limit)}: {usdc_text(used)} of it are locked or "
        f"spent, and this session needs a deposit of {usdc_text(deposit)}. Wait until other sessions are "
        f"settled (`p2pnode funds` shows them), or raise {setting} in config.toml"
    )


@dataclass(frozen=True, slots=True)
class WalletRule:
    """The limits, and the balance of the wallet as the ledger knows it. Implements ``SpendingRule``."""

    limits: SpendingLimits
    balance: int
    account: str
    """The wallet's address, as it is shown."""

    def check(self, spending: Spending) -> None:
        """Raise ``SpendingLimitError``, or ``FundsError`` with what is missing and where to send it."""
        self.limits.check(spending)
        free = self.balance - spending.outstanding
        if free < spending.deposit:
            held = f"{usdc_text(self.balance)} in the wallet"
            if spending.outstanding:
                held += f", {usdc_text(spending.outstanding)} of it signed away already"
            msg = (
                f"this session needs a deposit of {usdc_text(spending.deposit)}, and there is {held}: "
                f"{usdc_text(spending.deposit - free)} is missing. Send USDC to {self.account}"
            )
            raise FundsError(msg)

    def deposit(self, offer: Offer, spending: Spending, tokens_in: int, tokens_out: int) -> tuple[int, int]:
        """Deposit and tip of a session: for one turn of these sizes, and for more where that fits.

        More is ``TURNS`` such turns, ``FEES`` fees, or ``DAYS`` days like the last with this host: a session
        that a host keeps serves many commands for one fee. The tip comes out of the host's fee: a host
        without a fee leaves the refund to its payer.
        """
        turn = offer_cost(offer, tokens_in, tokens_out) - offer.session_fee
        needed = offer.session_fee + turn
        room = min(
            self.limits.session_max,
            *self.limits.left(spending),
            max(0, self.balance - spending.outstanding),
        )
        wanted = offer.session_fee + max(TURNS * turn, FEES * offer.session_fee, DAYS * spending.host_spent)
        return max(needed, min(wanted, room)), min(TIP, offer.session_fee)


# ---- offers


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
    advert: Advert, offer: Offer, market: Market, limits: SpendingLimits, payer: bytes | None = None
) -> str:
    """Why this offer can't be paid; "" when it can, or is free.

    What is left of the limits of a day and of a host only the journal knows: it is not asked here.
    """
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
    if offer.session_fee > limits.fee_max:
        return (
            f"asks {usdc_text(offer.session_fee)} a session; at most {usdc_text(limits.fee_max)} is allowed"
        )
    least = offer_cost(offer, 0, WINDOW)
    if least > limits.session_max:
        return (
            f"asks {usdc_text(least)} for a session's first {WINDOW} tokens; your limit for one is "
            f"{usdc_text(limits.session_max)} (raise {_RAISE_SESSION_MAX})"
        )
    return ""


# ---- what is signed, in words


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
    """Who brings the refund, and what for."""
    when = _moment(terms.expiry + CHALLENGE_S)
    if terms.tip == 0:
        return f"you bring the refund yourself after {when}: this host's fee pays nobody else to do it"
    return f"anyone may bring the refund after {when}, for {usdc_text(terms.tip)} of the host's fee"


def fields_of(
    session: SessionId, terms: SessionTerms, valid_before: int, host: PeerId, model: str
) -> dict[str, object]:
    """The same for programs."""
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
