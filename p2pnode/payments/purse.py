"""A client's purse: decides what a session may cost, and signs for it once.

In this order: the caps and the wallet's balance are held against everything signed before, by all processes
on this data dir; the session is written into the journal; what will be signed is said in words; then the
wallet signs. It needs no ether and sends nothing. Knows nothing of streams, ranking or where keys lie.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import structlog
import trio
from coincurve import PrivateKey

from p2pnode.chain.addresses import shown_address
from p2pnode.chain.ledger import Ledger, UnavailableError
from p2pnode.errors import ChainError
from p2pnode.ids import SessionId
from p2pnode.money import usdc_text
from p2pnode.net.multiaddrs import without_peer
from p2pnode.payments.journal.journal import BoughtSession, Journal, Spending
from p2pnode.payments.offers import Market, offer_cost, why_unpayable
from p2pnode.payments.purse_words import describe, fields_of
from p2pnode.payments.reconcile import reconcile
from p2pnode.payments.spending import SpendingCapError, SpendingCaps
from p2pnode.protocols.adverts.messages import Advert, Offer
from p2pnode.protocols.crypto import Signer, address_of, recover_address, sign_digest
from p2pnode.protocols.inference.messages import SessionTerms
from p2pnode.protocols.inference.payment import ClientPayment
from p2pnode.protocols.typed_data import Domain, authorisation_digest, session_id

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
