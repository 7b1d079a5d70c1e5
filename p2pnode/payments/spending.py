"""What a client may sign away, whatever a host asks: per session, per day and per host. Pure.

The caps are held against everything this data dir has at stake, by the journal, before a wallet signs.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from typing import Final

import structlog
import trio
from coincurve import PrivateKey

from p2pnode.chain.addresses import shown_address
from p2pnode.chain.ledger import Ledger, UnavailableError
from p2pnode.errors import ChainError, ConfigError
from p2pnode.ids import PeerId, SessionId
from p2pnode.money import usdc_text
from p2pnode.net.multiaddrs import without_peer
from p2pnode.payments.funds import reconcile
from p2pnode.payments.journal.journal import BoughtSession, Journal, Spending
from p2pnode.protocols.adverts.messages import Advert, Offer
from p2pnode.protocols.crypto import Signer, address_of, recover_address, sign_digest
from p2pnode.protocols.inference.channel import ClientPayment
from p2pnode.protocols.inference.messages import WINDOW, SessionTerms
from p2pnode.protocols.typed_data import TOKENS_PER_PRICE, Domain, authorisation_digest, session_id
from p2pnode.words import one_line

CAP_MAX: Final = 10**15
FEE_MAX: Final = 250_000
"""The contract takes no higher session fee."""


class SpendingCapError(ConfigError):
    """A session would go beyond what the user allows; nothing was signed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpendingCaps:
    """Token units (1e-6 USDC). Zero allows nothing. Implements ``SpendingRule``."""

    session_max: int = 1_000_000
    """The deposit of one session."""
    day_max: int = 5_000_000
    """What is at stake in all, and was spent in the last 24 hours."""
    host_max: int = 2_000_000
    """The same, with one host."""
    fee_max: int = FEE_MAX
    """The session fee of a host."""

    def __post_init__(self) -> None:
        for item in fields(self):
            value, highest = getattr(self, item.name), FEE_MAX if item.name == "fee_max" else CAP_MAX
            if type(value) is not int or not 0 <= value <= highest:
                msg = f"{item.name} must be a whole number of USDC units from 0 to {highest}"
                raise ConfigError(msg)

    def check(self, spending: Spending) -> None:
        """Raise ``SpendingCapError`` that names the cap, what is used of it, and how to raise it."""
        if spending.session_fee > self.fee_max:
            msg = (
                f"this host asks a session fee of {usdc_text(spending.session_fee)}; at most "
                f"{usdc_text(self.fee_max)} is allowed: choose another host"
            )
            raise SpendingCapError(msg)
        if spending.deposit > self.session_max:
            msg = (
                f"this session needs a deposit of {usdc_text(spending.deposit)}; your cap for one is "
                f"{usdc_text(self.session_max)}: shorten the conversation or the answer, or raise "
                "spend_session_max in config.toml"
            )
            raise SpendingCapError(msg)
        host_left, day_left = self.left(spending)
        if spending.deposit > host_left:
            raise _used_up("one host", self.host_max, spending.host_used, spending.deposit, "spend_host_max")
        if spending.deposit > day_left:
            raise _used_up("a day", self.day_max, spending.day_used, spending.deposit, "spend_day_max")

    def left(self, spending: Spending) -> tuple[int, int]:
        """What may still be signed away to this host, and today."""
        return max(0, self.host_max - spending.host_used), max(0, self.day_max - spending.day_used)


def _used_up(what: str, cap: int, used: int, deposit: int, setting: str) -> SpendingCapError:
    return SpendingCapError(
        f"your spending cap for {what} is {usdc_text(cap)}: {usdc_text(used)} of it are spent or at stake, "
        f"and this session needs a deposit of {usdc_text(deposit)}. Wait until other sessions are settled "
        f"(`p2pnode funds` shows them), or raise {setting} in config.toml"
    )


# Can this offer be paid from here? Pure: the chain profile, the caps and the advert decide.


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


# What a payer is about to sign, in words and in fields. Pure; holds no secret.


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


# A client's purse: decides what a session may cost, and signs for it once.
#
# In this order: the caps and the wallet's balance are held against everything signed before, by all
# processes
# on this data dir; the session is written into the journal; what will be signed is said in words; then the
# wallet signs. It needs no ether and sends nothing. Knows nothing of streams, ranking or where keys lie.


log = structlog.get_logger()
TURNS: Final = 8
"""Turns like the first that a deposit covers, where the caps and the wallet allow it."""
TIP: Final = 10_000
"""Goes to whoever brings the refund, if the host doesn't: about what that costs on an L2."""
VALID_S: Final = 450
"""150 s below the 600 s that hosts take, and as much above what they need: clocks differ by up to 120 s."""
_ADDRESSES_MAX: Final = 8
EXPIRY_S: Final = 24 * 3600


class FundsError(ChainError):
    """The wallet holds too little; nothing was signed."""


@dataclass(frozen=True, slots=True)
class _Rule:
    """The caps, and the wallet's balance as the ledger knows it."""

    caps: SpendingCaps
    balance: int
    account: str

    def check(self, spending: Spending) -> None:
        self.caps.check(spending)
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


class Purse:
    """Of one wallet. ``sign`` gives its signer, perhaps after a second or a question; ``wall`` epoch seconds.

    ``on_sign`` gets the words and the fields of what is signed, before it is.
    """

    def __init__(
        self,
        *,
        address: bytes,
        sign: Callable[[], Awaitable[Signer]],
        ledger: Ledger,
        journal: Journal,
        caps: SpendingCaps,
        wall: Callable[[], float],
        draw: Callable[[int], bytes],
        on_sign: Callable[[str, Mapping[str, object]], None],
    ) -> None:
        self.address = address
        self._sign, self._ledger, self._journal, self._caps = sign, ledger, journal, caps
        self._wall, self._draw, self._on_sign = wall, draw, on_sign

    def now(self) -> int:
        """Epoch seconds."""
        return int(self._wall())

    @property
    def market(self) -> Domain:
        """Where it pays."""
        return self._ledger.domains.market

    def exclusion(self, advert: Advert, offer: Offer) -> str:
        """Why this offer can't be paid; "" when it can. :meth:`open` sees what day and host caps leave."""
        domains = self._ledger.domains
        market = Market(domains.chain_id, domains.node_registry, domains.market.contract)
        return why_unpayable(advert, offer, market, self._caps, self.address)

    async def open(
        self, advert: Advert, offer: Offer, *, tokens_in: int, tokens_out: int, addresses: Sequence[str] = ()
    ) -> ClientPayment:
        """Sign for a session whose deposit covers a turn of these sizes, and more such turns where it can.

        Raises ``SpendingCapError``, ``FundsError`` (with the address to fill), ``ChainError`` and
        ``StorageError``.
        """
        if advert.offer(offer.model) != offer:
            msg = "this host's offer has changed since it was chosen: search again"
            raise ChainError(msg)
        if (reason := self.exclusion(advert, offer)) != "":
            msg = f"host {advert.peer} can't be paid: it {reason}"
            raise ChainError(msg)
        try:
            return await self._open(advert, offer, tokens_in, tokens_out, addresses)
        except (SpendingCapError, FundsError):
            # Sessions may have ended, or come to nothing, since we last looked.
            try:
                await self.reconcile()
            except UnavailableError as error:
                log.debug("purse.not_reconciled", reason=str(error))
        return await self._open(advert, offer, tokens_in, tokens_out, addresses)

    async def reconcile(self) -> None:
        """Ask the chain about every session that isn't known to be over. Raises ``UnavailableError``."""
        await reconcile(self._journal, self._ledger, int(self._wall()))

    async def _open(
        self, advert: Advert, offer: Offer, tokens_in: int, tokens_out: int, addresses: Sequence[str]
    ) -> ClientPayment:
        balance = (await self._ledger.balances(self.address)).usdc
        rule = _Rule(self._caps, balance, shown_address(self.address))
        secret = PrivateKey(self._draw(32)).secret
        terms = self._terms(advert, offer, secret)
        spending = self._journal.spending(terms, advert.peer, int(self._wall()))
        deposit, tip = self._deposit(offer, spending, rule, tokens_in, tokens_out)
        terms = replace(terms, deposit=deposit, tip=tip)
        rule.check(replace(spending, deposit=terms.deposit))  # before a person is asked for a passphrase
        sign = await self._sign()
        now = int(self._wall())
        terms = replace(terms, expiry=now + EXPIRY_S)
        domains, valid_before = self._ledger.domains, now + VALID_S
        session = session_id(domains.market, terms)
        record = BoughtSession(
            session=session,
            terms=terms,
            voucher_secret=secret,
            host=advert.peer,
            addresses=tuple(without_peer(each) for each in addresses)[:_ADDRESSES_MAX],
            valid_before=valid_before,
            opened_at=now,
        )
        await self._journal.bought(record, rule, now)
        try:
            words = describe(terms, valid_before, host=advert.peer, model=offer.name, chain=domains.chain_id)
            self._on_sign(words, fields_of(session, terms, valid_before, advert.peer, offer.name))
            authorisation = self._authorise(sign, session, terms, valid_before)
        except BaseException:
            with trio.CancelScope(shield=True):
                await self._journal.bought_expired(session)  # it never left this function
            raise
        log.info("session.signed", session=session.hex(), host=advert.peer, deposit=terms.deposit)
        return ClientPayment(
            market=domains.market,
            terms=terms,
            valid_before=valid_before,
            authorisation=authorisation,
            sign=lambda message: sign_digest(secret, message),
        )

    def _authorise(self, sign: Signer, session: SessionId, terms: SessionTerms, valid_before: int) -> bytes:
        """The one signature: EIP-3009 over the deposit, its nonce the session, which is all of the terms."""
        domains = self._ledger.domains
        digest = authorisation_digest(
            domains.token,
            payer=terms.payer,
            to=domains.market.contract,
            amount=terms.deposit,
            valid_before=valid_before,
            nonce=session,
        )
        authorisation = sign(digest)
        if recover_address(digest, authorisation) != self.address:
            msg = f"the key signs for another address than {shown_address(self.address)}: was it exchanged?"
            raise ChainError(msg)
        return authorisation

    def _terms(self, advert: Advert, offer: Offer, secret: bytes) -> SessionTerms:
        """The offer to the letter; what is deposited is decided after."""
        return SessionTerms(
            payer=self.address,
            host=advert.binding.wallet,
            voucher_key=address_of(PrivateKey(secret).public_key.format(compressed=False)),
            receipt_key=advert.binding.receipt_key,
            model=offer.model,
            deposit=0,
            price_in=offer.price_in,
            price_out=offer.price_out,
            session_fee=offer.session_fee,
            tip=0,
            expiry=0,
            salt=self._draw(32),
        )

    def _deposit(
        self, offer: Offer, spending: Spending, rule: _Rule, tokens_in: int, tokens_out: int
    ) -> tuple[int, int]:
        """Deposit and tip: what one turn needs, ``TURNS`` of them where that fits what is left.

        The tip comes out of the host's fee: a host without one leaves the refund to its payer.
        """
        turn = offer_cost(offer, tokens_in, tokens_out) - offer.session_fee
        needed = offer.session_fee + turn
        room = min(
            self._caps.session_max, *self._caps.left(spending), max(0, rule.balance - spending.outstanding)
        )
        wanted = offer.session_fee + TURNS * turn
        return max(needed, min(wanted, room)), min(TIP, offer.session_fee)
