"""Sessions to write down, made by hand, and a journal whose writer runs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import trio

from p2pnode.durable import SqliteDisk
from p2pnode.ids import ModelId, PeerId, SessionId
from p2pnode.payments.journal.journal import BoughtSession, HostedSession, Journal, Spending
from p2pnode.protocols.inference.messages import Checkpoint, Receipt, SessionTerms, Voucher

NOW = 1_800_000_000
HOUR = 3600
DAY = 24 * HOUR
PEER = PeerId("12D3KooWHost")
TERMS = SessionTerms(
    payer=b"\x01" * 20,
    host=b"\x02" * 20,
    voucher_key=b"\x03" * 20,
    receipt_key=b"\x04" * 20,
    model=ModelId(b"\x05" * 32),
    deposit=1_000_000,
    price_in=200_000,
    price_out=800_000,
    session_fee=20_000,
    tip=10_000,
    expiry=NOW + DAY,
    salt=b"\x06" * 32,
)


def session(number: int) -> SessionId:
    return SessionId(number.to_bytes(32, "big"))


def hosted(number: int, **changes: object) -> HostedSession:
    record = HostedSession(
        session=session(number),
        terms=TERMS,
        salt=b"\x07" * 32,
        authorisation=b"\x08" * 65,
        valid_before=NOW + 600,
        epoch=1,
        peer=PEER,
        opened_at=NOW,
    )
    return replace(record, **changes)  # type: ignore[arg-type]


def bought(number: int, *, terms: SessionTerms = TERMS, **changes: object) -> BoughtSession:
    record = BoughtSession(
        session=session(number),
        terms=terms,
        voucher_secret=b"\x09" * 32,
        host=PEER,
        addresses=("/ip4/10.0.0.1/tcp/4001",),
        valid_before=NOW + 600,
        opened_at=NOW,
    )
    return replace(record, **changes)  # type: ignore[arg-type]


def voucher(seq: int, amount: int) -> Voucher:
    return Voucher(
        seq=seq, tokens_in=10, tokens_out=32 * seq, amount=amount, root=b"\x0a" * 32, signature=b"\x0b" * 65
    )


def checkpoint(seq: int, *, root: bytes = b"\x0c" * 32) -> Checkpoint:
    return Checkpoint(
        seq=seq,
        tokens_in=10,
        tokens_out=32 * seq,
        token_hash=b"\x0d" * 32,
        fingerprint_hash=bytes(32),
        root=root,
        signature=b"\x0e" * 65,
    )


def receipt(seq: int, *, root: bytes = b"\x0c" * 32, epoch: int = 1) -> Receipt:
    return Receipt(epoch=epoch, previous=b"\x0f" * 32, checkpoint=checkpoint(seq, root=root))


class Anything:
    """A rule that allows everything, and remembers what it was shown."""

    def __init__(self) -> None:
        self.shown: list[Spending] = []

    def check(self, spending: Spending) -> None:
        self.shown.append(spending)


@asynccontextmanager
async def writing(path: Path, disk: SqliteDisk | None = None) -> AsyncIterator[Journal]:
    """A journal at ``path`` with its writer running."""
    journal = Journal.open(path, disk=disk)
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(journal.run)
            yield journal
            nursery.cancel_scope.cancel()
    finally:
        journal.close()
