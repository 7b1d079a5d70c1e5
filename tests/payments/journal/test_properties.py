"""Whatever happens in whatever order: the journal holds what a model of it holds, also after a restart."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from p2pnode.errors import StorageError
from p2pnode.ids import SessionId
from p2pnode.payments.journal.journal import BoughtSession, HostedSession, HostedState, Journal
from p2pnode.protocols.inference.messages import Checkpoint, Receipt, SessionTerms, Voucher
from tests.payments.journals import Anything, bought, hosted, writing
from tests.protocols.strategies import messages

_NUMBERS = st.integers(0, 2)
_AMOUNTS = st.integers(0, 2**63 - 1)
_STEPS = st.lists(
    st.tuples(st.just("paid"), _NUMBERS, messages(Voucher))
    | st.tuples(st.just("issued"), _NUMBERS, messages(Checkpoint, seq=st.integers(1, 3)))
    | st.tuples(st.just("open"), _NUMBERS, st.none())
    | st.tuples(st.just("over"), _NUMBERS, _AMOUNTS)
    | st.tuples(st.just("resumed"), _NUMBERS, st.none())
    | st.tuples(st.just("lost"), _NUMBERS, st.text(max_size=20))
    | st.tuples(st.just("settled"), _NUMBERS, _AMOUNTS)
    | st.tuples(st.just("restart"), st.just(0), st.none()),
    max_size=25,
)
_MOVES: dict[str, tuple[set[HostedState], set[HostedState], HostedState]] = {
    "open": ({"relaying", "lost"}, {"open", "over", "settled"}, "open"),
    "over": ({"relaying", "open", "over"}, {"settled"}, "over"),
    "resumed": ({"over"}, {"open"}, "open"),
    "lost": ({"relaying", "open", "over", "lost"}, set(), "lost"),
    "settled": ({"relaying", "open", "over", "lost", "settled"}, set(), "settled"),
}
_quietly = settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])


class _Model:
    """What the journal must hold."""

    def __init__(self, records: list[HostedSession]) -> None:
        self.sessions = {record.session: record for record in records}
        self.receipts: dict[tuple[SessionId, int], Checkpoint] = {}

    def step(self, what: str, session: SessionId, value: Any) -> bool:
        """Whether it is taken."""
        record = self.sessions[session]
        if what == "paid":
            if record.voucher is None or value.amount >= record.voucher.amount:
                self.sessions[session] = replace(record, voucher=value)
            return True
        if what == "issued":
            return bool(self.receipts.setdefault((session, value.seq), value) == value)
        before, same, after = _MOVES[what]
        if record.state in before:
            record = replace(record, state=after)
        elif record.state not in same:
            return False
        match what:
            case "over" if record.state == "over":
                record = replace(record, settle_at=value)
            case "resumed":
                record = replace(record, settle_at=None)
            case "lost":
                record = replace(record, settle_at=None, detail=value)
            case "settled":
                record = replace(record, settle_at=None, amount=value, detail="")
            case _:
                pass
        self.sessions[session] = record
        return True


async def _apply(journal: Journal, what: str, session: SessionId, value: Any) -> None:
    match what:
        case "paid":
            await journal.host_paid(session, value)
        case "issued":
            await journal.host_issued(session, Receipt(epoch=1, previous=bytes(32), checkpoint=value))
        case "open":
            await journal.host_open(session)
        case "over":
            await journal.host_over(session, value)
        case "resumed":
            await journal.host_resumed(session)
        case "lost":
            await journal.host_lost(session, value)
        case "settled":
            await journal.host_settled(session, value)
        case _:
            raise AssertionError(what)


def _compare(journal: Journal, model: _Model) -> None:
    assert {each.session: each for each in journal.hosted()} == model.sessions
    for session in model.sessions:
        held = {(session, receipt.seq): receipt for receipt in journal.receipts(session)}
        assert held == {place: receipt for place, receipt in model.receipts.items() if place[0] == session}


async def _follow(path: Path, steps: list[tuple[str, int, Any]]) -> None:
    records = [hosted(number) for number in range(3)]
    model, rest = _Model(records), iter(steps)
    async with writing(path) as journal:
        for record in records:
            await journal.host_relaying(record)
    more = True
    while more:
        async with writing(path) as journal:
            _compare(journal, model)
            more = False
            for what, number, value in rest:
                if what == "restart":
                    more = True
                    break
                session = records[number].session
                taken = True
                try:
                    await _apply(journal, what, session, value)
                except StorageError:
                    taken = False
                assert taken == model.step(what, session, value)
            _compare(journal, model)


@_quietly
@given(_STEPS)
def test_a_hosts_sessions_follow_the_model(steps: list[tuple[str, int, Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        trio.run(_follow, Path(folder) / "journal.sqlite", steps)


@_quietly
@given(messages(SessionTerms), messages(Voucher), st.lists(st.text(max_size=30), max_size=4))
def test_any_terms_and_vouchers_are_read_as_they_were_written(
    terms: SessionTerms, voucher: Voucher, addresses: list[str]
) -> None:
    host = hosted(1, terms=terms, voucher=voucher)
    client: BoughtSession = bought(1, terms=terms, voucher=voucher, addresses=tuple(addresses))

    async def there_and_back(path: Path) -> None:
        async with writing(path) as journal:
            await journal.host_relaying(host)
            await journal.bought(client, Anything(), 0)
            assert journal.hosted() == [host]
            assert journal.purchases() == [client]

    with tempfile.TemporaryDirectory() as folder:
        trio.run(there_and_back, Path(folder) / "journal.sqlite")
