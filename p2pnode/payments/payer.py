"""What a client pays with: opened when the first host that costs something is chosen, and not before.

``Payer`` says which offers can be paid at all, from the chain profile alone; the wallet, the ledger and
the journal follow when they are needed. ``Purchase`` is one paid session: what its machine needs, and
its line in the journal. It was bought now, or was left by an earlier command, or on another machine, and is
taken again: then its fee is paid already. Neither knows anything of streams.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final, TypeAlias

import trio

from p2pnode.chain.wallet.wallet import open_wallet
from p2pnode.config import NodeConfig
from p2pnode.errors import BudgetError, ChainError, RefusedError, StorageError
from p2pnode.extras import why_missing
from p2pnode.ids import ModelId, PeerId, SessionId
from p2pnode.node.datadir import DataDir
from p2pnode.node.identity import passphrase_of, wallet_files
from p2pnode.node.staked_hosts import StakedHosts
from p2pnode.payments.books import open_books, open_journal, profile_of_config
from p2pnode.payments.evidence import note_shown
from p2pnode.payments.journal.journal import BoughtSession, Journal
from p2pnode.payments.journal.keys import Granted
from p2pnode.payments.session_signer import SessionSigner
from p2pnode.payments.spending import Market, SpendingLimits, why_unpayable
from p2pnode.payments.turn_budgets import TurnBudgets, input_bound
from p2pnode.protocols.adverts.messages import Advert, Offer
from p2pnode.protocols.crypto import Signer, keccak256, sign_digest
from p2pnode.protocols.inference.channel import ClientPayment
from p2pnode.protocols.inference.commands import (
    Ask,
    ClientEmission,
    Disputed,
    FirstTurnFinished,
    Receipted,
    Signed,
)
from p2pnode.protocols.inference.messages import (
    CHECKPOINT_EVERY,
    WINDOW,
    Accept,
    Receipt,
    Voucher,
)
from p2pnode.protocols.typed_data import amount_due, session_id
from p2pnode.storage.conversations.records import SavedSession
from p2pnode.tasks import background_task

_RECONCILE_S: Final = 3.0
_SALT_TAG: Final = b"p2pnode/salt/1"
LEAST_TOKENS: Final = WINDOW + CHECKPOINT_EVERY
"""What may be on its way when a turn is told to end: it is asked only where so much can be paid."""
_LEFT_MARGIN_S: Final = 60
"""A session whose time is up so soon is not resumed: its host may be settling it."""
_DAY_S: Final = 86_400
_WAIT_TOLD_S: Final = 2.0
_TAKEN_MAX: Final = 2
"""Sessions a day whose fee a host may take without accepting them. One may be an accident: the client
left while its deposit was on the way."""
OnSign: TypeAlias = Callable[[str, Mapping[str, object]], None]
"""Told what is about to be signed, in words and in fields."""


@dataclass(frozen=True, slots=True)
class OpenPayer:
    """A session signer and the journal that it writes to."""

    signer: SessionSigner
    journal: Journal


@dataclass(frozen=True, slots=True)
class Purchase:
    """A session that was signed for."""

    payment: ClientPayment
    journal: Journal
    now: Callable[[], int]
    """Epoch seconds."""
    limits: SpendingLimits
    salt: bytes = field(repr=False)
    """The secret of its receipt chain."""
    budgets: TurnBudgets
    """What of it is spent for which turn, and by which key."""
    left: LeftPurchase | None = None
    """What it goes on from, where it was left before."""

    @property
    def session(self) -> SessionId:
        """The session's id: the digest of its terms."""
        return self.payment.session

    def covers(self, tokens_in: int, tokens_out: int) -> bool:
        """Whether the deposit is enough for these cumulative counts."""
        return amount_due(self.payment.terms, tokens_in, tokens_out) <= self.payment.terms.deposit

    async def accepted(self, accept: Accept) -> None:
        """The host accepted the session or, where it was left, gave it to us. Durable when it returns.

        What the host shows of a left session was checked: it may be newer than this journal, where another
        machine used the session since.
        """
        session, now = self.session, self.now()
        if self.left is None:
            await self.journal.bought_open(session, accept.keep_s, accept.settle_above)
            return
        if accept.receipt is not None:
            self.journal.bought_receipt(session, accept.receipt, now)
        if accept.voucher is not None:
            await self.journal.signed(session, accept.voucher, now)
            await self.journal.bought_delivered(session, accept.voucher.amount)
        await self.journal.bought_gone_on(session, accept.generation)

    async def reserve(self, ask: Ask, window: int) -> Reserved:
        """What a turn may add to what is spent, held against all other turns of this wallet and of its key.

        Less than it might cost where little is left of the day or of a key's budget: the turn then ends when
        that is used up. ``window`` output tokens may be on their way unpaid. Raises ``SpendingLimitError``
        and ``BudgetError`` where it could not even begin, and ``StorageError``.
        """
        tokens_in, tokens_out = input_bound(ask), ask.body.tokens_out_max
        counted = ask.input_max if ask.input_exact is None else ask.input_exact
        day, granted = await self.journal.bought_reserve(
            self.session,
            self.limits,
            self._price(counted, tokens_out),
            self._price(0, min(tokens_out, LEAST_TOKENS)),
            self.now(),
            claim=self.budgets.claim(ask.budget, tokens_in, tokens_out, window),
        )
        return Reserved(day, granted)

    def begin(self, ask: Ask, reserved: Reserved) -> Ask:
        """The turn, which has its name now, with what it may spend."""
        spend_max = self.budgets.begin(ask.key, ask.body.tokens_out_max, reserved.of_key, reserved.day)
        return replace(ask, spend_max=spend_max)

    async def release(self, ask: Ask, reserved: Reserved, tokens_in: int, tokens_out: int) -> None:
        """A turn is over that was billed these tokens: give back what it did not use."""
        unused = reserved.day - self._price(tokens_in, tokens_out)
        if unused > 0:
            await self.journal.bought_release(self.session, unused)
        if (ended := self.budgets.end(ask.key, tokens_in, tokens_out)) is not None:
            granted, keep = ended
            await self.journal.key_release(granted.claim, keep)

    async def release_all(self) -> None:
        """No turn is under way: give back all that was reserved."""
        self.budgets.rest()
        await self.journal.bought_release_all(self.session)

    def why_capped(self, turn: int) -> BudgetError | None:
        """Why a turn was ended, where its key's budget did that."""
        capped = self.budgets.capped_by(turn)
        return None if capped is None else self.journal.key_refusal(*capped, self.now())

    def _price(self, tokens_in: int, tokens_out: int) -> int:
        terms = self.payment.terms
        return amount_due(terms, tokens_in, tokens_out) - terms.session_fee

    async def leave(self, until: int, generation: int, settle_above: int = 0) -> None:
        """Record that nobody uses it any more and its host, which has all vouchers, keeps it."""
        bought = self.journal.purchase(self.session)
        if bought is not None and bought.owed is not None:
            await self.journal.bought_delivered(self.session, bought.owed.amount)
        await self.journal.bought_left(self.session, until, generation, settle_above)

    async def lose(self, keep_s: int, generation: int) -> None:
        """Record that its stream was lost: its host leaves it by itself, and may lack the last voucher."""
        await self.journal.bought_left(self.session, self.now() + keep_s, generation)

    async def give_back(self) -> None:
        """It could not be resumed now: it is left as before."""
        await self.journal.bought_given_back(self.session)

    async def used_elsewhere(self) -> None:
        """Another machine of this wallet uses it."""
        await self.journal.bought_elsewhere(self.session)

    async def signed(self, value: Signed, window: int) -> list[tuple[int, int]]:
        """Record a voucher; durable when it returns. Returns what turns of keys may spend from now on."""
        shares = self.budgets.shares(value.voucher.amount, value.parts, window)
        claimed = await self.journal.signed(self.session, value.voucher, self.now(), shares)
        return self.budgets.claimed(claimed)

    async def noted(self, value: ClientEmission) -> bool:
        """Durable when it returns, but a receipt: that is with the voucher that answers it.

        True for what concerns nobody else.
        """
        match value:
            case FirstTurnFinished():
                await self.journal.bought_finished(self.session)
            case Disputed(receipt=receipt):
                await note_shown(self.journal, self.payment.market, self.session, receipt, self.now())
            case Receipted(receipt=receipt):
                self.journal.bought_receipt(self.session, receipt, self.now())
                return False
            case _:
                return False
        return True

    async def over(self, *, heard: bool = False) -> None:
        """Record that nothing more is signed. ``heard``: the host has every voucher."""
        if heard and (bought := self.journal.purchase(self.session)) is not None and bought.owed is not None:
            await self.journal.bought_delivered(self.session, bought.owed.amount)
        await self.journal.bought_over(self.session)


@dataclass(frozen=True, slots=True)
class Reserved:
    """What a turn may spend: token units of the wallet's day, and of its key where it has one."""

    day: int
    of_key: Granted | None


@dataclass(frozen=True, slots=True)
class LeftPurchase:
    """What this side knows of a session that was left: enough to resume it, and to be paid up."""

    voucher: Voucher | None
    receipt: Receipt | None
    generation: int


def receipt_salt(voucher_secret: bytes) -> bytes:
    """The salt of a session's receipt chain: derived, so that whoever has the voucher key has it too."""
    return keccak256(_SALT_TAG + voucher_secret)


class Payer:
    """One per client. ``make`` opens what it pays with for as long as its block lasts."""

    def __init__(
        self,
        *,
        market: Market,
        limits: SpendingLimits,
        address: bytes | None = None,
        make: Callable[[], AbstractAsyncContextManager[OpenPayer]],
        on_wait: Callable[[], None] = lambda: None,
        look: Callable[[], Sequence[BoughtSession]] = lambda: (),
    ) -> None:
        """``on_wait`` is called when the chain has not answered for two seconds as it is asked first.

        ``look`` gives the sessions that were left, as the journal has them before it is opened for good.
        """
        self._on_wait, self._look = on_wait, look
        self._looked: Sequence[BoughtSession] | None = None
        self._market, self._limits, self._address, self._make = market, limits, address, make
        self._opening = trio.Lock()
        self._open: OpenPayer | None = None

    @property
    def opened(self) -> OpenPayer | None:
        """Signer and journal, once something was bought."""
        return self._open

    def payable(self, advert: Advert, offer: Offer) -> str:
        """Why an offer can't be paid; "" when it can, or is free."""
        return why_unpayable(advert, offer, self._market, self._limits, self._address) or (
            why_missing("paying", "pay") if offer.price_in or offer.price_out else ""
        )

    def purchase(self, session: SessionId) -> SavedSession | None:
        """What to save of a session in the sealed index; None while nothing was bought."""
        journal = self._open.journal if self._open is not None else None
        record = journal.purchase(session) if journal is not None else None
        if journal is None or record is None:
            return None
        voucher = last_voucher(record)
        root = voucher.root if voucher is not None else b""
        return saved_of(record, journal.taken_with_root(session, root))

    def left(self, peer: PeerId, model: ModelId) -> list[BoughtSession]:
        """Sessions with this host that were left and may be resumed, the one that was opened last first.

        Empty where the journal can't be read: then it is bought anew, or said why not.
        """
        return [each for each in self._kept(peer) if (each.host, each.terms.model) == (peer, model)]

    def left_hosts(self, model: ModelId) -> dict[PeerId, tuple[str, ...]]:
        """Hosts with which sessions of a model were left, and where they were then."""
        return {each.host: each.addresses for each in self._kept() if each.terms.model == model}

    def _kept(self, peer: PeerId | None = None) -> Sequence[BoughtSession]:
        """Those with this host, at least: a search asks for each host that it finds."""
        try:
            if self._open is not None:
                now = self._open.signer.now()
                kept: Sequence[BoughtSession] = self._open.journal.purchases_kept(now, peer)
            else:
                if self._looked is None:
                    self._looked = self._look()
                kept = self._looked
        except StorageError:
            return []
        return kept

    async def take_left(
        self, nursery: trio.Nursery, advert: Advert, offer: Offer, *, tokens_in: int, tokens_out: int
    ) -> Purchase | None:
        """A session with this host that was left, where one covers a turn of these sizes: no fee is due.

        None where there is none. It is ours until it is left, over, or given back. Raises ``LocalError``.
        """
        if not self.left(advert.peer, offer.model):
            return None
        opened = await self._opened(nursery)
        for found in self.left(advert.peer, offer.model):
            if not _fits(found, advert, offer, opened.signer.now()) or not _covers(
                found, tokens_in, tokens_out
            ):
                continue
            if session_id(opened.signer.market, found.terms) != found.session:
                continue  # of another chain
            taken = await opened.journal.bought_take(found.session, opened.signer.now())
            if taken is not None:
                return self._purchase_left(taken, opened)
        return None

    def _purchase_left(self, taken: BoughtSession, opened: OpenPayer) -> Purchase:
        secret, voucher = taken.voucher_secret, taken.final or taken.voucher
        payment = ClientPayment(
            market=opened.signer.market,
            terms=taken.terms,
            valid_before=taken.valid_before,
            authorisation=b"",
            sign=lambda digest: sign_digest(secret, digest),
            has_finished=opened.journal.has_finished(taken.terms.payer, taken.terms.host),
        )
        receipt = None
        if voucher is not None:
            receipt = opened.journal.taken_with_root(taken.session, voucher.root)
        return Purchase(
            payment,
            opened.journal,
            opened.signer.now,
            self._limits,
            receipt_salt(secret),
            TurnBudgets(taken.terms, max(taken.terms.session_fee, voucher.amount if voucher else 0)),
            LeftPurchase(voucher, receipt, taken.generation),
        )

    async def _opened(self, nursery: trio.Nursery) -> OpenPayer:
        async with self._opening:
            if self._open is None:
                async with background_task(self._tell_of_wait):
                    self._open = await nursery.start(self._hold)
        return self._open

    async def buy(
        self,
        nursery: trio.Nursery,
        advert: Advert,
        offer: Offer,
        *,
        tokens_in: int,
        tokens_out: int,
        opened_for: Ask | None = None,
        addresses: Sequence[str] = (),
    ) -> Purchase:
        """Sign for a session that covers a turn of these sizes. Raises ``LocalError``, saying what to do.

        ``opened_for`` is the turn whose key, if it has one, pays the fee. ``addresses`` are where the host
        was reached: it is looked for there when something is owed to it.
        """
        opened = await self._opened(nursery)
        if (reason := await self._why_not_again(opened, advert)) != "":
            raise RefusedError("payment_required", reason)
        granted: list[Granted] = []
        payment = await opened.signer.open(
            advert,
            offer,
            tokens_in=tokens_in,
            tokens_out=tokens_out,
            opened_for=opened_for,
            addresses=addresses,
            on_granted=granted.append,
        )
        bought = opened.journal.purchase(payment.session)
        secret = bought.voucher_secret if bought is not None else b""
        budgets = TurnBudgets(payment.terms, payment.terms.session_fee)
        budgets.opened_for(granted[0] if granted else None)
        return Purchase(
            payment, opened.journal, opened.signer.now, self._limits, receipt_salt(secret), budgets
        )

    async def _why_not_again(self, opened: OpenPayer, advert: Advert) -> str:
        """Why this host gets no session: today it took two fees and accepted neither session. Or ""."""
        journal, wallet = opened.journal, advert.binding.wallet
        if any(each.terms.host == wallet for each in journal.purchases("signed", "open")):
            with trio.move_on_after(_RECONCILE_S), suppress(ChainError):
                await opened.signer.reconcile()
        taken = journal.taken_unserved(wallet, opened.signer.now() - _DAY_S)
        if taken < _TAKEN_MAX:
            return ""
        return f"that host took the fee of {taken} sessions today that it never accepted: choose another"

    async def _tell_of_wait(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        await trio.sleep(_WAIT_TOLD_S)
        self._on_wait()

    async def _hold(self, *, task_status: trio.TaskStatus[OpenPayer]) -> None:
        async with self._make() as opened:
            task_status.started(opened)
            await trio.sleep_forever()


def payer_of(
    config: NodeConfig,
    *,
    wall: Callable[[], float],
    draw: Callable[[int], bytes],
    on_sign: OnSign,
    on_wait: Callable[[str], None] = lambda _chain: None,
    stakes: StakedHosts | None = None,
) -> Payer | None:
    """What a data dir pays with; None where no chain profile is configured. Raises ``ConfigError``.

    ``on_wait`` gets the chain's name when it has not answered for two seconds. While the chain is open,
    ``stakes`` asks it who is staked.
    """
    profile = profile_of_config(config)
    if profile is None:
        return None
    limits = SpendingLimits(
        session_max=config.spend_session_max,
        day_max=config.spend_day_max,
        host_max=config.spend_host_max,
        locked_max=config.spend_locked_max or None,
    )

    @asynccontextmanager
    async def make() -> AsyncIterator[OpenPayer]:
        async with open_books(DataDir(config.data_dir), profile) as books:
            sign: list[Signer] = []

            async def unlock() -> Signer:
                if not sign:
                    passphrase = await passphrase_of(books.wallet)
                    sign.append(await trio.to_thread.run_sync(books.wallet.unlock, passphrase))
                return sign[0]

            signer = SessionSigner(
                address=books.wallet.address,
                sign=unlock,
                ledger=books.ledger,
                journal=books.journal,
                limits=limits,
                wall=wall,
                draw=draw,
                on_sign=on_sign,
            )
            opened = OpenPayer(signer, books.journal)
            if stakes is None:
                yield opened
                return
            async with background_task(partial(stakes.follow, books.ledger.node)):
                yield opened

    def look() -> Sequence[BoughtSession]:
        path = DataDir(config.data_dir).journal
        if not path.exists():
            return ()
        journal = Journal.open(path)
        try:
            return journal.purchases_kept(int(wall()))
        finally:
            journal.close()

    market = Market(profile.chain_id, profile.node_registry, profile.job_marketplace)
    wallet = open_wallet(wallet_files(DataDir(config.data_dir)))
    address = None if wallet is None else wallet.address
    on_wait_here = partial(on_wait, profile.shown_name)
    return Payer(market=market, limits=limits, address=address, make=make, on_wait=on_wait_here, look=look)


# ---- sessions that were left


def _fits(record: BoughtSession, advert: Advert, offer: Offer, now: int) -> bool:
    """Whether a session that was left is with the host of this advert as it is now, and not dearer.

    A host that changed its keys could not sign in it; what it asks more than before, it asks in new ones.
    """
    terms, binding = record.terms, advert.binding
    ends = min(terms.expiry, record.left_until or terms.expiry)
    return (
        (terms.host, terms.receipt_key) == (binding.wallet, binding.receipt_key)
        and terms.price_in <= offer.price_in
        and terms.price_out <= offer.price_out
        and now + _LEFT_MARGIN_S < ends
    )


def _covers(record: BoughtSession, tokens_in: int, tokens_out: int) -> bool:
    """Whether what is left of its deposit pays for a turn of these sizes."""
    voucher, terms = record.final or record.voucher, record.terms
    used_in, used_out = (0, 0) if voucher is None else (voucher.tokens_in, voucher.tokens_out)
    return amount_due(terms, used_in + tokens_in, used_out + tokens_out) <= terms.deposit


# ---- paid sessions in the sealed index of conversations, so that twelve words recover them, too


def last_voucher(record: BoughtSession) -> Voucher | None:
    """The best voucher; of a session that is over the last one, which is what its host is owed."""
    return (record.final or record.voucher) if record.state == "over" else record.voucher


def saved_of(record: BoughtSession, receipt: Receipt | None) -> SavedSession:
    """What another machine needs of a purchase. :func:`last_voucher` goes on from ``receipt``."""
    return SavedSession(
        session=record.session,
        terms=record.terms,
        voucher_secret=record.voucher_secret,
        host=record.host,
        addresses=record.addresses,
        valid_before=record.valid_before,
        opened_at=record.opened_at,
        voucher=last_voucher(record),
        receipt=receipt,
        over=record.state == "over",
        keep_s=record.keep_s,
        left_until=record.left_until,
        generation=record.generation,
    )


def bought_of(saved: SavedSession) -> BoughtSession:
    """A purchase that was made elsewhere. The chain tells what became of it since."""
    return BoughtSession(
        session=saved.session,
        terms=saved.terms,
        voucher_secret=saved.voucher_secret,
        host=saved.host,
        addresses=saved.addresses,
        valid_before=saved.valid_before,
        opened_at=saved.opened_at,
        state="over" if saved.over else "signed",
        voucher=saved.voucher,
        keep_s=saved.keep_s,
        left_until=saved.left_until,
        generation=saved.generation,
    )


async def restore_purchases(
    config: NodeConfig, sessions: Sequence[SavedSession], now: int, *, in_thread: bool = True
) -> None:
    """Put recovered purchases into the journal: limits count them, and their vouchers are delivered.

    ``in_thread``: see ``Journal.open``. Raises ``StorageError``.
    """
    if not sessions:
        return
    data = DataDir(config.data_dir)
    data.prepare()
    async with open_journal(data.journal, in_thread=in_thread) as journal:
        for saved in sessions:
            await journal.bought_restored(bought_of(saved), now, saved.receipt)
