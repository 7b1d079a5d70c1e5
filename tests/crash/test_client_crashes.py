"""A client that is killed at any point between its prompt and its last voucher, and started again.

The host settles with the best voucher it has; the client's next start knows where every unit is.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from p2pnode.payments.books import books_of
from p2pnode.payments.funds import Funds, funds, reconcile
from p2pnode.payments.journal.journal import BoughtSession
from p2pnode.protocols.typed_data import amount_due
from tests.crash.checks import (
    Loss,
    wait_settled,
)
from tests.crash.parties import (
    FEE,
    QUESTION,
    RICH,
    TOKENS,
    WINDOW_UNITS,
    Party,
)
from tests.crash.points import Point, points
from tests.crash.processes import (
    Forge,
)
from tests.crash.support import (
    CrashWorld,
    crash_world,
    joined,
)

Note = Callable[[Loss], None]
UNKNOWN = points("journal", "bought", "before", "inside")
"""The wallet has not signed, and the journal holds nothing."""
UNSENT = (*points("journal", "bought", "after"), *points("send", "Open", "before"))
"""It stands in the journal, and the host never heard of it."""
SENT = (
    *points("journal", "bought_open", "before", "inside", "after"),
    *points("send", "Prompt", "before", "after"),
    *points("journal", "signed", "before", "inside", "after", nth=(1, 2, 3, 5)),
    *points("send", "Voucher", "before", "after", nth=(1, 2, 3)),
    *points("send", "Close", "before", "after"),
    *points("journal", "bought_over", "before", "inside", "after"),
)
IN_CI = {"after-journal.bought-1", "after-journal.signed-3"}


def _marked(some: tuple[Point, ...] | list[Point]) -> list[object]:
    """All of them in the long run, a few in every one."""
    return [
        pytest.param(point, id=str(point), marks=() if str(point) in IN_CI else pytest.mark.long)
        for point in some
    ]


async def crash(forge: Forge, client: Party, peer: str, point: Point) -> None:
    """A client that dies at ``point``."""
    asked = {"peer": peer, "question": QUESTION, "tokens": TOKENS}
    async with forge.process("client", client.config, point, **asked) as process:
        await process.killed()


async def accounts(client: Party) -> tuple[Funds, list[BoughtSession]]:
    """What ``p2pnode funds`` shows, and the journal after it."""
    async with books_of(client.node_config) as books:
        now = int(time.time())
        await reconcile(books.journal, books.ledger, now)
        found = await funds(books.journal, books.ledger, books.wallet.address, now)
        return found, books.journal.purchases()


async def serve_again(w: CrashWorld, host: Party, client: Party, peer: str) -> int:
    """The client's next start: it is served, and pays. What it paid."""
    before = {each.session for each in host.hosted()}
    asked = await w.ask(client, peer)
    assert (asked.error, len(asked.ids)) == (None, TOKENS)
    (session,) = {each.session for each in host.hosted()} - before
    await wait_settled(w, host, session)
    (closed,) = await w.closed(session)
    return closed.amount


@pytest.mark.parametrize("point", _marked(UNKNOWN))
async def test_a_client_killed_before_it_signed_anything_owes_nothing(
    tmp_path: Path, forge: Forge, point: Point
) -> None:
    async with crash_world(tmp_path) as w:
        host, client = await w.host(), await w.client()
        async with joined(host) as peer:
            await crash(forge, client, peer, point)
            assert (host.hosted(), client.purchases()) == ([], [])
            paid = await serve_again(w, host, client, peer)
        found, _ = await accounts(client)
        assert (found.wallet, found.spent) == (RICH - paid, paid)
        assert (found.authorised, found.escrow) == (0, 0)


@pytest.mark.parametrize("point", _marked(UNSENT))
async def test_a_client_killed_before_its_deposit_left_counts_it_as_signed_away(
    tmp_path: Path, forge: Forge, point: Point
) -> None:
    async with crash_world(tmp_path) as w:
        host, client = await w.host(), await w.client()
        async with joined(host) as peer:
            await crash(forge, client, peer, point)
            (lost,) = client.purchases()
            assert (lost.state, lost.voucher, host.hosted()) == ("signed", None, [])
            paid = await serve_again(w, host, client, peer)
        found, purchases = await accounts(client)
        assert await w.opened(lost.session) == 0
        assert (found.wallet, found.spent, found.escrow) == (RICH - paid, paid, 0)
        assert found.authorised == lost.terms.deposit  # until the authorisation ends
        assert lost in purchases


@pytest.mark.parametrize("point", _marked(SENT))
async def test_a_client_killed_at(tmp_path: Path, forge: Forge, point: Point, note: Note) -> None:
    async with crash_world(tmp_path) as w:
        host, client = await w.host(), await w.client()
        async with joined(host) as peer:
            await crash(forge, client, peer, point)
            (lost,) = client.purchases()
            await wait_settled(w, host, lost.session)
            (best,) = host.hosted()
            receipts = host.receipts(lost.session)
            again = await serve_again(w, host, client, peer)

        (closed,) = await w.closed(lost.session)
        amount = best.voucher.amount if best.voucher is not None else FEE
        assert (closed.amount, await w.opened(lost.session)) == (amount, 1)
        signed = lost.voucher.amount if lost.voucher is not None else FEE
        assert amount <= signed, "a voucher left the client before it was written down"
        assert signed - amount <= WINDOW_UNITS
        served = amount_due(lost.terms, receipts[-1].tokens_in, receipts[-1].tokens_out) if receipts else FEE
        assert served - amount <= WINDOW_UNITS

        found, purchases = await accounts(client)
        assert (found.wallet, found.spent) == (RICH - amount - again, amount + again)
        assert (found.authorised, found.escrow, found.stuck) == (0, 0, ())
        (known,) = [each for each in purchases if each.session == lost.session]
        assert (known.state, known.spent, known.voucher) == ("settled", amount, lost.voucher)
        note(
            Loss(
                amount=amount,
                host=max(0, served - amount),
                unpaid_signature=signed - amount,
                fee_only=amount if best.voucher is None else 0,
            )
        )
