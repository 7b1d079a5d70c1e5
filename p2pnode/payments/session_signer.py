"""Signs for a client's paid sessions, each once, with its wallet.

In this order, so that a crash at any point costs no more than the limits allow: the limits and the wallet's
balance are held against everything signed before, by all processes on this data dir; the session is written
into the journal; what will be signed is said in words; then the wallet signs. It needs no ether and sends
nothing. Knows nothing of streams, of ranking or of where keys are stored.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Final

import structlog
import trio
from coincurve import PrivateKey

from p2pnode.chain.addresses import shown_address
from p2pnode.chain.ledger import Ledger, UnavailableError
from p2pnode.errors import ChainError
from p2pnode.ids import SessionId
from p2pnode.models.catalogue import shown_name
from p2pnode.net.multiaddrs import without_peer
from p2pnode.payments.funds import reconcile
from p2pnode.payments.journal.journal import BoughtSession, Journal
from p2pnode.payments.journal.keys import Granted
from p2pnode.payments.spending import (
    FundsError,
    Market,
    SpendingLimitError,
    SpendingLimits,
    WalletRule,
    describe,
    fields_of,
    why_unpayable,
)
from p2pnode.payments.turn_budgets import first_claim, input_bound
from p2pnode.protocols.adverts.messages import Advert, Offer
from p2pnode.protocols.crypto import Signer, key_address, recover_address, sign_digest
from p2pnode.protocols.inference.channel import ClientPayment
from p2pnode.protocols.inference.commands import Ask
from p2pnode.protocols.inference.messages import WINDOW, SessionTerms
from p2pnode.protocols.typed_data import Domain, authorisation_digest, session_id

log = structlog.get_logger()
VALID_S: Final = 450
"""150 s below the 600 s that hosts take, and as much above what they need: clocks differ by up to 120 s."""
_ADDRESSES_MAX: Final = 8
EXPIRY_S: Final = 48 * 3600
"""A session that is left in the evening is there in the morning, and settled a day later."""


class SessionSigner:
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
        limits: SpendingLimits,
        wall: Callable[[], float],
        draw: Callable[[int], bytes],
        on_sign: Callable[[str, Mapping[str, object]], None],
    ) -> None:
        self.address = address
        self._sign, self._ledger, self._journal, self._limits = sign, ledger, journal, limits
        self._wall, self._draw, self._on_sign = wall, draw, on_sign

    def now(self) -> int:
        """Epoch seconds."""
        return int(self._wall())

    @property
    def market(self) -> Domain:
        """The market whose sessions this client pays."""
        return self._ledger.domains.market

    def exclusion(self, advert: Advert, offer: Offer) -> str:
        """Why this offer can't be paid; "" when it can.

        What is left of the limits of a day and of a host :meth:`open` sees.
        """
        domains = self._ledger.domains
        market = Market(domains.chain_id, domains.node_registry, domains.market.contract)
        return why_unpayable(advert, offer, market, self._limits, self.address)

    async def open(
        self,
        advert: Advert,
        offer: Offer,
        *,
        tokens_in: int,
        tokens_out: int,
        opened_for: Ask | None = None,
        addresses: Sequence[str] = (),
        on_granted: Callable[[Granted], None] = lambda _granted: None,
    ) -> ClientPayment:
        """Sign for a session whose deposit covers a turn of these sizes, and more such turns where it can.

        Where a key pays for the turn ``opened_for``, the fee and that turn must fit its budget;
        ``on_granted`` gets what it was granted. Raises ``SpendingLimitError``, ``BudgetError``,
        ``FundsError`` (with the address to fill), ``ChainError`` and ``StorageError``.
        """
        if advert.offer(offer.model) != offer:
            msg = "this host's offer has changed since it was chosen: search again"
            raise ChainError(msg)
        if (reason := self.exclusion(advert, offer)) != "":
            msg = f"host {advert.peer} can't be paid: it {reason}"
            raise ChainError(msg)
        sign = partial(
            self._open,
            advert,
            offer,
            tokens_in=tokens_in,
            tokens_out=tokens_out,
            opened_for=opened_for,
            addresses=addresses,
            on_granted=on_granted,
        )
        try:
            return await sign()
        except (SpendingLimitError, FundsError):
            # Sessions may have been settled, or never opened, since the chain was last asked.
            try:
                await self.reconcile()
            except UnavailableError as error:
                log.debug("spending.not_reconciled", reason=str(error))
        return await sign()

    async def reconcile(self) -> None:
        """Ask the chain about every session that isn't known to be over. Raises ``UnavailableError``."""
        await reconcile(self._journal, self._ledger, self.now())

    async def _open(
        self,
        advert: Advert,
        offer: Offer,
        *,
        tokens_in: int,
        tokens_out: int,
        opened_for: Ask | None,
        addresses: Sequence[str],
        on_granted: Callable[[Granted], None],
    ) -> ClientPayment:
        balance = (await self._ledger.balances(self.address)).usdc
        rule = WalletRule(self._limits, balance, shown_address(self.address))
        secret = PrivateKey(self._draw(32)).secret
        terms = self._terms(advert, offer, secret)
        spending = self._journal.spending(terms, advert.peer, self.now())
        deposit, tip = rule.deposit(offer, spending, tokens_in, tokens_out)
        terms = replace(terms, deposit=deposit, tip=tip)
        rule.check(replace(spending, deposit=terms.deposit))  # before a person is asked for a passphrase
        sign = await self._sign()
        now = self.now()  # read again: a person may have taken minutes to answer
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
        # Before the signature exists: what is not in the journal would not count for other processes, and a
        # crash would leave a deposit that a host may take and nobody knows of.
        claim = None
        if opened_for is not None and opened_for.budget:
            tokens = input_bound(opened_for), opened_for.body.tokens_out_max
            claim = first_claim(terms, opened_for.budget, *tokens, window=WINDOW, fee=terms.session_fee)
        granted = await self._journal.bought(record, rule, now, claim)
        if granted is not None:
            on_granted(granted)
        try:
            name = shown_name(offer.model)
            words = describe(terms, valid_before, host=advert.peer, model=name, chain=domains.chain_id)
            self._on_sign(words, fields_of(session, terms, valid_before, advert.peer, name))
            authorisation = self._authorise(sign, session, terms, valid_before)
        except BaseException:
            with trio.CancelScope(shield=True):
                await self._journal.bought_expired(session)  # the signature never left this function
            raise
        log.info("session.signed", session=session.hex(), host=advert.peer, deposit=terms.deposit)
        return ClientPayment(
            market=domains.market,
            terms=terms,
            valid_before=valid_before,
            authorisation=authorisation,
            sign=lambda message: sign_digest(secret, message),
            has_finished=self._journal.has_finished(terms.payer, terms.host),
        )

    def _authorise(self, sign: Signer, session: SessionId, terms: SessionTerms, valid_before: int) -> bytes:
        """The one signature: EIP-3009 over the deposit. Its nonce is the session, a digest of the terms."""
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
        """The terms of the offer, to the letter; deposit, tip and expiry are filled in later."""
        return SessionTerms(
            payer=self.address,
            host=advert.binding.wallet,
            voucher_key=key_address(secret),
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
