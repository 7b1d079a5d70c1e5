"""A wallet's orders to the chain in the journal: written before they are sent, until their end is known.

An order has every transaction that was ever signed for it, raw, so that another process can send the same
bytes again and look for their hashes. A lock tells which processes run (``owner.py``): another one may follow
the orders of a process that has ended. Knows nothing of what they mean.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, get_args

from p2pnode.chain.evm.fees import Fees
from p2pnode.chain.evm.order_book import Ending, Order, SentOrder, SignedTransaction

ORDERS_TABLES: Final = f"""
CREATE TABLE orders (
    id TEXT PRIMARY KEY,
    chain_id INTEGER NOT NULL,
    genesis BLOB NOT NULL,
    account BLOB NOT NULL,
    nonce INTEGER NOT NULL,
    kind TEXT NOT NULL,
    words TEXT NOT NULL,
    recipient BLOB NOT NULL,
    data BLOB NOT NULL,
    gas INTEGER NOT NULL,
    since_block INTEGER NOT NULL,
    sent_at INTEGER NOT NULL,
    owner TEXT NOT NULL,
    ending TEXT CHECK (ending IN ({", ".join(f"'{each}'" for each in get_args(Ending))})),
    transaction_hash BLOB
) WITHOUT ROWID;
CREATE INDEX orders_on_their_way ON orders (account, chain_id) WHERE ending IS NULL;

CREATE TABLE signed (
    hash BLOB PRIMARY KEY,
    id TEXT NOT NULL REFERENCES orders (id),
    raw BLOB NOT NULL,
    most INTEGER NOT NULL,
    tip INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX signed_by_order ON signed (id, most);
"""


@dataclass(frozen=True, slots=True)
class WalletOnChain:
    """A wallet on one chain. A development chain made anew has the same id, and another first block."""

    chain_id: int
    account: bytes
    genesis: bytes = b""
    """The first block's hash; empty where the profile does not name it, which goes with any."""

    @property
    def marks(self) -> dict[str, int | bytes]:
        """The marks of a query."""
        return {"chain_id": self.chain_id, "account": self.account, "genesis": self.genesis}


_OF_WALLET: Final = (
    "chain_id = :chain_id AND account = :account AND (genesis = :genesis OR genesis = x'' OR :genesis = x'')"
)


def sending(db: sqlite3.Connection, sent: SentOrder, version: SignedTransaction, owner: str) -> None:
    """Insert a transaction that is about to be sent. The first one of an order inserts the order, too."""
    order = sent.order
    db.execute(
        "INSERT INTO orders (id, chain_id, genesis, account, nonce, kind, words, recipient, data, gas,"
        " since_block, sent_at, owner) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (id) DO UPDATE SET owner = excluded.owner",
        (
            sent.id, sent.chain_id, sent.genesis, sent.account, sent.nonce, order.kind, order.words, order.to,
            order.data, sent.gas, sent.since_block, sent.sent_at, owner,
        ),
    )  # fmt: skip
    db.execute(
        "INSERT INTO signed VALUES (?, ?, ?, ?, ?) ON CONFLICT (hash) DO NOTHING",
        (version.hash, sent.id, version.raw, version.fees.most, version.fees.tip),
    )


def refused(db: sqlite3.Connection, version: SignedTransaction) -> None:
    """Delete a transaction that can't be mined, and an order that has none left: it was never sent."""
    db.execute("DELETE FROM signed WHERE hash = ?", (version.hash,))
    none_left = "NOT EXISTS (SELECT 1 FROM signed WHERE signed.id = orders.id)"
    db.execute(f"DELETE FROM orders WHERE ending IS NULL AND {none_left}")  # noqa: S608 - a literal


def ended(db: sqlite3.Connection, order: str, ending: Ending, transaction: bytes | None) -> None:
    """Set what became of an order. Only the first time counts."""
    db.execute(
        "UPDATE orders SET ending = ?, transaction_hash = ? WHERE id = ? AND ending IS NULL",
        (ending, transaction, order),
    )


def take_over(
    db: sqlite3.Connection, wallet: WalletOnChain, owner: str, alive: Callable[[str], bool]
) -> list[SentOrder]:
    """Give ``owner`` the orders of ``wallet`` on their way whose process has ended, and return them.

    No two processes follow one order. Those of another wallet or chain stay: this process can't follow them.
    """
    rows = db.execute(
        f"SELECT id, owner FROM orders WHERE ending IS NULL AND {_OF_WALLET}",  # noqa: S608 - a literal
        wallet.marks,
    ).fetchall()
    dead = [each["id"] for each in rows if not alive(each["owner"])]
    db.executemany("UPDATE orders SET owner = ? WHERE id = ?", [(owner, order) for order in dead])
    return [each for each in on_their_way(db, wallet) if each.id in dead]


# ---- questions


def on_their_way(db: sqlite3.Connection, wallet: WalletOnChain) -> list[SentOrder]:
    """The orders that have not ended, the lowest nonce first."""
    rows = db.execute(
        f"SELECT * FROM orders WHERE ending IS NULL AND {_OF_WALLET} ORDER BY nonce, sent_at",  # noqa: S608 - a literal
        wallet.marks,
    )
    return [_order_of(db, row) for row in rows.fetchall()]


def one(db: sqlite3.Connection, order: str) -> SentOrder | None:
    """The order, whether it has ended or not, or None."""
    row = db.execute("SELECT * FROM orders WHERE id = ?", (order,)).fetchone()
    return None if row is None else _order_of(db, row)


def done(db: sqlite3.Connection, wallet: WalletOnChain, kind: str) -> list[SentOrder]:
    """The orders of a kind that were carried out, the lowest nonce first."""
    rows = db.execute(
        f"SELECT * FROM orders WHERE ending = 'done' AND {_OF_WALLET} AND kind = :kind"  # noqa: S608 - a literal
        " ORDER BY nonce, sent_at",
        {**wallet.marks, "kind": kind},
    )
    return [_order_of(db, row) for row in rows.fetchall()]


def _order_of(db: sqlite3.Connection, row: sqlite3.Row) -> SentOrder:
    versions = db.execute("SELECT * FROM signed WHERE id = ? ORDER BY most", (row["id"],)).fetchall()
    return SentOrder(
        id=row["id"],
        chain_id=row["chain_id"],
        account=row["account"],
        nonce=row["nonce"],
        order=Order(
            to=row["recipient"], data=row["data"], gas_max=row["gas"], kind=row["kind"], words=row["words"]
        ),
        gas=row["gas"],
        since_block=row["since_block"],
        versions=tuple(
            SignedTransaction(
                raw=each["raw"], hash=each["hash"], fees=Fees(most=each["most"], tip=each["tip"])
            )
            for each in versions
        ),
        sent_at=row["sent_at"],
        genesis=row["genesis"],
        ending=row["ending"],
        transaction=row["transaction_hash"],
    )
