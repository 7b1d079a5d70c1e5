"""Ending a paid session by hand, from either side: what the chain allows now, and when it allows the rest."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal, TypeAlias

from p2pnode.chain.ledger import Close, EscrowState, Refund, Release, RequestClose
from p2pnode.errors import ChainError, ConfigError
from p2pnode.money import usdc_text
from p2pnode.payments.books import Books
from p2pnode.payments.funds import CHALLENGE_S
from p2pnode.payments.journal.journal import BoughtSession, HostedSession
from p2pnode.protocols.typed_data import session_id

Done: TypeAlias = Literal["settled", "requested", "waiting", "nothing"]
_CALL_GAS: Final = 150_000


@dataclass(frozen=True, slots=True)
class Closing:
    """What was done, in a word and in words; ``until`` is when the next step is possible."""

    outcome: Done
    words: str
    until: int | None = None


async def close_session(record: BoughtSession | HostedSession, books: Books, now: int) -> Closing:
    """Do what brings this session's money home soonest. Raises ``ChainError``, ``ConfigError``."""
    if session_id(books.ledger.domains.market, record.terms) != record.session:
        msg = (
            "this session is of another chain, or of another market, than the profile's: name the profile it "
            "was made with, with --chain"
        )
        raise ConfigError(msg)
    state = await books.ledger.session(record.session)
    if state.status == "closed" and not await books.ledger.confirmed(record.session, state):
        msg = "an RPC endpoint says that this session is closed, and no second one does: try again later"
        raise ChainError(msg)
    if state.status == "closed":
        if isinstance(record, BoughtSession):
            await books.journal.bought_settled(record.session, state.recorded, now)
        else:
            await books.journal.host_settled(record.session, state.recorded)
        return Closing("nothing", f"it was settled at {usdc_text(state.recorded)}")
    if state.status == "none":
        return Closing("nothing", "it is not on the chain: there is nothing to close")
    if isinstance(record, BoughtSession):
        await books.journal.bought_mined(record.session)
    if isinstance(record, HostedSession):
        return await _as_host(record, books)
    return await _as_payer(record, books, state, now)


async def _as_host(record: HostedSession, books: Books) -> Closing:
    call = Release(record.terms) if record.voucher is None else Close(record.terms, record.voucher)
    await books.orders.transact(call)
    paid = (await books.ledger.session(record.session)).recorded
    await books.journal.host_settled(record.session, paid, "by hand")
    return Closing("settled", f"settled at {usdc_text(paid)}")


async def _as_payer(record: BoughtSession, books: Books, state: EscrowState, now: int) -> Closing:
    due = state.closing_at if state.closing_at is not None else record.terms.expiry + CHALLENGE_S
    if now >= due:
        await _transact(books, Refund(record.terms), due)
        paid = (await books.ledger.session(record.session)).recorded
        await books.journal.bought_settled(record.session, paid, now)
        return Closing("settled", f"refunded; the host was paid {usdc_text(paid)}")
    if state.closing_at is not None:
        words = f"asked for already: the refund may be brought from {_moment(due)} on"
        return Closing("waiting", words, due)
    await _transact(books, RequestClose(record.terms, record.voucher), due)
    await books.journal.bought_over(record.session)
    until = now + CHALLENGE_S
    return Closing(
        "requested", f"asked; the host has until {_moment(until)}, then close it again for the refund", until
    )


async def _transact(books: Books, call: RequestClose | Refund, due: int) -> None:
    """A payer needs no ether, ever; but by hand it is quicker."""
    head = await books.ledger.head()
    if (await books.ledger.balances(books.wallet.address)).ether < _CALL_GAS * head.gas_price_wei:
        msg = (
            "closing by hand takes a little ether for gas, and this wallet has none. Without it the refund "
            f"comes all the same: from {_moment(due)} on anyone is paid to bring it"
        )
        raise ChainError(msg)
    await books.orders.transact(call)


def _moment(epoch: int) -> str:
    return f"{datetime.fromtimestamp(epoch, UTC):%Y-%m-%d %H:%M} UTC"
