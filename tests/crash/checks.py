"""What must hold when a crash is over, and what it cost."""

from __future__ import annotations

from dataclasses import dataclass

from p2pnode.ids import SessionId
from p2pnode.payments.journal.journal import HostedSession
from p2pnode.protocols.inference.messages import Checkpoint
from p2pnode.protocols.typed_data import amount_due
from tests.crash.parties import RICH, WINDOW_UNITS, Party
from tests.crash.support import CrashWorld, until


@dataclass(frozen=True)
class Loss:
    """Of one case, in token units."""

    amount: int
    """What the session was settled at."""
    host: int
    """Delivered and not paid."""
    unpaid_signature: int
    """What the client had signed for beyond it."""
    fee_only: int
    """What the client paid without receiving a token."""


async def wait_settled(w: CrashWorld, host: Party, session: SessionId) -> None:
    """On the chain, and in the journal."""

    async def on_chain() -> bool:
        return (await w.ledger.session(session)).status == "closed"

    async def written() -> bool:
        return [each.state for each in host.hosted() if each.session == session] == ["settled"]

    await until(on_chain, "the session is settled")
    await until(written, "the host knows that it is settled")


async def check_settled(
    w: CrashWorld, host: Party, client: Party, best: HostedSession, received: int
) -> Loss:
    """Once, with the best voucher there was, to the unit; nobody lost more than a window."""
    terms = best.terms
    (closed,) = await w.closed(best.session)
    assert await w.opened(best.session) == 1
    amount = best.voucher.amount if best.voucher is not None else terms.session_fee
    (record,) = [each for each in host.hosted() if each.session == best.session]
    assert (record.state, record.amount, closed.amount) == ("settled", amount, amount)

    treasury = (amount - terms.session_fee) // 10
    assert (closed.to_treasury, closed.tip) == (treasury, 0)
    assert (closed.refund, closed.pushed) == (terms.deposit - amount, True)
    assert await w.earned(w.chain.treasury) == treasury
    assert await w.earned(host.wallet.address) == amount - treasury
    assert RICH - await w.usdc(client) == amount

    (bought,) = [each for each in client.purchases() if each.session == best.session]
    signed = bought.voucher
    signed_amount = signed.amount if signed is not None else terms.session_fee
    assert amount <= signed_amount, "the host took what nobody signed for"
    tokens_in = signed.tokens_in if signed is not None else 0
    delivered = amount_due(terms, tokens_in, received) if received else terms.session_fee
    loss = Loss(
        amount=amount,
        host=max(0, delivered - amount),
        unpaid_signature=signed_amount - amount,
        fee_only=amount if received == 0 else 0,
    )
    assert loss.host <= WINDOW_UNITS
    assert loss.unpaid_signature <= WINDOW_UNITS
    assert loss.fee_only <= terms.session_fee + (tokens_in * terms.price_in) // 1_000_000
    return loss


def check_receipts(w: CrashWorld, host: Party, best: HostedSession) -> None:
    """One for a place: nobody was shown another than the journal has, and what was paid for is there.

    One that nobody paid for may be forgotten with its epoch: the session never goes on.
    """
    held = host.receipts(best.session)
    assert [receipt.seq for receipt in held] == list(range(1, len(held) + 1))
    assert len(held) >= (best.voucher.seq if best.voucher is not None else 0)
    known: dict[int, Checkpoint] = {receipt.seq: receipt for receipt in held}
    for session, receipt in w.seen:
        if session == best.session:
            assert known.setdefault(receipt.seq, receipt) == receipt
