"""The journal: what must not be forgotten about money, on disk before it is acted on.

One SQLite file in the data dir, shared by ``join`` and any number of ``ask``. Everything awaited here (but
``host_issuing``) is durable when it returns; reads see what is committed. A record is never deleted, a
voucher never replaced by a lower one, a receipt never by another. The file holds the keys of sessions: mode
0600. It knows no chain and no peers. Every method raises ``StorageError``.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, Self, TypeVar

import trio

from p2pnode.chain.evm.order_book import Ending, SentOrder, SignedTransaction
from p2pnode.durable import SqliteDisk, SqliteFile, WriteQueue
from p2pnode.errors import BudgetError, StorageError
from p2pnode.ids import PeerId, SessionId
from p2pnode.payments.journal import keys, orders, payee, payer
from p2pnode.payments.journal.keys import Claim, Granted, Key, KeyLimits, KeyShare, KeyUsage
from p2pnode.payments.journal.orders import WalletOnChain
from p2pnode.payments.journal.owner import Owner, is_alive
from p2pnode.payments.journal.records import (
    BOUGHT_STATES,
    HOSTED_STATES,
    BoughtSession,
    BoughtState,
    Evidence,
    HostedSession,
    HostedState,
    Spending,
    SpendingRule,
    TurnRule,
)
from p2pnode.payments.journal.schema import journal_file
from p2pnode.protocols.inference.messages import Checkpoint, Receipt, SessionTerms, Voucher

__all__ = [
    "BoughtSession",
    "BoughtState",
    "Evidence",
    "HostedSession",
    "HostedState",
    "Journal",
    "Spending",
    "SpendingRule",
]
T = TypeVar("T")
_EPOCH: Final = "epoch"


class Journal:
    """One per process, made by :meth:`open`. Writes need :meth:`run` in a nursery; reads don't."""

    def __init__(
        self,
        file: SqliteFile,
        reads: sqlite3.Connection,
        writes: sqlite3.Connection,
        *,
        in_thread: bool = True,
    ) -> None:
        self.path, self._file = file.path, file
        self.in_thread = in_thread
        """See :meth:`open`."""
        self._reads, self._writes = reads, writes
        self._writer = WriteQueue(file, writes, in_thread=in_thread)
        self._owner = Owner(file.path)

    @classmethod
    def open(cls, path: Path, *, disk: SqliteDisk | None = None, in_thread: bool = True) -> Self:
        """Open the journal at ``path``, making it where there is none. Blocks for some milliseconds.

        Without a thread its commits block: for simulations, where a mock clock would not wait for one.
        """
        file = journal_file(path, disk)
        file.make_if_missing()
        reads = file.connect()
        try:
            return cls(file, reads, file.connect(), in_thread=in_thread)
        except BaseException:
            reads.close()
            raise

    def close(self) -> None:
        """Close the file. :meth:`run` must have ended."""
        self._owner.release()
        self._reads.close()
        self._writes.close()

    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Write, until cancelled; what waits then is still written."""
        await self._writer.run(task_status=task_status)

    # ---- host

    async def host_relaying(self, record: HostedSession) -> None:
        """Record a new session, before its open is relayed. One that is known is refused."""
        await self._writer.write(partial(payee.relaying, record=record))

    async def host_open(self, session: SessionId) -> None:
        """Record that the session is on the chain. Where that is known, nothing changes."""
        await self._writer.write(partial(payee.opened, session=session))

    async def host_lost(self, session: SessionId, detail: str) -> None:
        """Record that the session is not on the chain, or no longer."""
        await self._writer.write(partial(payee.lost, session=session, detail=detail))

    async def host_issued(self, session: SessionId, receipt: Receipt) -> None:
        """Record a receipt. A second one for the same place is refused."""
        await self._writer.write(partial(payee.issued, session=session, receipt=receipt))

    async def host_issuing(self, session: SessionId, receipt: Receipt) -> None:
        """Record a receipt that is about to be sent. It goes to disk with the next write, ahead of it.

        The next write is at the latest that of the voucher which pays for it, so the receipt costs no commit
        of its own. A crash may lose it: its epoch ends with the process, and no later receipt contradicts it.
        """
        if self._writer.crowded:
            await self.host_issued(session, receipt)
        else:
            self._writer.ride(partial(payee.issued, session=session, receipt=receipt))

    async def host_paid(self, session: SessionId, voucher: Voucher) -> None:
        """Record a valid voucher, before more is served. The highest one stays."""
        await self._writer.write(partial(payee.paid, session=session, voucher=voucher))

    async def host_over(self, session: SessionId, settle_at: int) -> None:
        """Record that the session is served no more, and is to be settled at ``settle_at``."""
        await self._writer.write(partial(payee.over, session=session, settle_at=settle_at))

    async def host_left(self, session: SessionId, until: int) -> None:
        """Record that its client left the session, and may resume it until ``until``."""
        await self._writer.write(partial(payee.left, session=session, until=until))

    async def host_taken_up(self, session: SessionId, epoch: int, generation: int) -> None:
        """Record that a client resumed what was left. The generation must be one above the last."""
        await self._writer.write(partial(payee.taken_up, session=session, epoch=epoch, generation=generation))

    async def host_left_open(
        self, session: SessionId, settle_at: int, epoch: int, left_until: int | None = None
    ) -> None:
        """Record that an earlier start than ``epoch`` left it open. Its client has until ``settle_at``."""
        await self._writer.write(
            partial(payee.left_open, session=session, settle_at=settle_at, left_until=left_until, epoch=epoch)
        )

    async def host_resumed(self, session: SessionId, epoch: int | None = None) -> None:
        """Record that its client came back in time. With an ``epoch`` it goes on under that one.

        The epoch must be higher than the one before, so that a session is rebuilt once within one start.
        """
        await self._writer.write(partial(payee.resumed, session=session, epoch=epoch))

    async def host_settled(self, session: SessionId, amount: int, detail: str = "") -> None:
        """Record that the chain paid ``amount``, the treasury's share included."""
        await self._writer.write(partial(payee.settled, session=session, amount=amount, detail=detail))

    async def prune(self, before: int) -> None:
        """Drop the receipts of sessions opened before ``before`` that are settled or lost."""
        await self._writer.write(partial(payee.prune, before=before))

    def hosted(self, *states: HostedState) -> list[HostedSession]:
        """Sessions in any of these states (in any, without one), the oldest first."""
        return self._read(partial(payee.some, states=states or HOSTED_STATES))

    def hosted_count(self, *states: HostedState) -> int:
        """How many sessions are in any of these states."""
        return self._read(partial(payee.count, states=states))

    def hosted_due(self, until: float, mine: Callable[[HostedSession], bool]) -> list[HostedSession]:
        """Sessions of ``mine`` that are over and due until then, the one that is due first first."""
        return self._read(lambda db: [each for each in payee.by_due(db, until) if mine(each)])

    def hosted_next(self, mine: Callable[[HostedSession], bool]) -> HostedSession | None:
        """The first session of ``mine`` to be settled; None where none is over. Reads no other of them."""
        return self._read(lambda db: next(filter(mine, payee.by_due(db, math.inf)), None))

    def hosted_one(self, session: SessionId) -> HostedSession | None:
        """The session, or None."""
        return self._read(partial(payee.one, session=session))

    def receipts(self, session: SessionId) -> list[Checkpoint]:
        """The receipts of a session, in order."""
        return self._read(partial(payee.receipts, session=session))

    def last_issued(self, session: SessionId) -> Receipt | None:
        """The last receipt that was issued, or None."""
        return self._read(partial(payee.last_receipt, session=session))

    def issued(self, session: SessionId, epoch: int, seq: int) -> Receipt | None:
        """The receipt for a place, or None."""
        return self._read(partial(payee.receipt, session=session, epoch=epoch, seq=seq))

    def issued_after(self, session: SessionId, epoch: int, seq: int, limit: int) -> list[Receipt]:
        """The receipts after a place, in order."""
        query = partial(payee.receipts_after, session=session, epoch=epoch, seq=seq, limit=limit)
        return self._read(query)

    # ---- client

    async def bought(
        self, record: BoughtSession, rule: SpendingRule, now: int, claim: Claim | None = None
    ) -> Granted | None:
        """Record a deposit before it is signed. Raises what ``rule`` raises; then nothing is recorded.

        What ``rule`` is shown holds for all processes on this data dir until this returns. Where a key pays,
        ``claim`` is that of the turn for which the session is opened: raises ``BudgetError``, too.
        """
        granted: list[Granted | None] = []
        asked: dict[str, Any] = {
            "now": now, "owner": self._name(), "alive": partial(is_alive, self.path), "claim": claim,
        }  # fmt: skip
        await self._writer.write(lambda db: granted.append(payer.buy(db, record, rule, **asked)))
        return granted[0]

    async def bought_reserve(
        self,
        session: SessionId,
        rule: TurnRule,
        wanted: int,
        least: int,
        now: int,
        *,
        claim: Claim | None = None,
    ) -> tuple[int, Granted | None]:
        """Let a turn add what ``rule`` grants of ``wanted`` token units to what was spent; how much that is.

        It holds for all processes on this data dir until vouchers use it or :meth:`bought_release` gives it
        back. So does what is granted of a key's budget, where ``claim`` asks for it. Raises what the rule
        raises, and ``BudgetError``.
        """
        granted: list[tuple[int, Granted | None]] = []
        asked: dict[str, Any] = {
            "wanted": wanted, "least": least, "now": now, "owner": self._name(),
            "alive": partial(is_alive, self.path), "claim": claim,
        }  # fmt: skip
        await self._writer.write(lambda db: granted.append(payer.reserve(db, session, rule, **asked)))
        return granted[0]

    async def bought_release(self, session: SessionId, units: int) -> None:
        """Give back what a turn did not use of what was reserved."""
        await self._writer.write(partial(payer.release, session=session, units=units))

    async def bought_release_all(self, session: SessionId) -> None:
        """Give back all that was reserved, and all that was claimed of keys: no turn is under way."""
        await self._writer.write(partial(payer.release_all, session=session))

    async def key_release(self, claim: int, keep: int) -> None:
        """Give back what a turn of a key did not use, but for ``keep`` token units still to be signed."""
        await self._writer.write(partial(keys.release, claim_=claim, keep=keep))

    async def bought_left(
        self, session: SessionId, until: int | None, generation: int, settle_above: int = 0
    ) -> None:
        """Record that nobody uses the session any more, and that its host keeps it."""
        await self._writer.write(
            partial(
                payer.left_session,
                session=session,
                until=until,
                generation=generation,
                settle_above=settle_above,
            )
        )

    async def bought_take(self, session: SessionId, now: int) -> BoughtSession | None:
        """Take a session that was left; None where another process was quicker."""
        found: list[BoughtSession | None] = []
        owner, alive = self._name(), partial(is_alive, self.path)
        await self._writer.write(lambda db: found.append(payer.take(db, session, owner, now, alive)))
        return found[0]

    async def bought_gone_on(self, session: SessionId, generation: int) -> None:
        """Record that its host gave a session to us that was left."""
        await self._writer.write(partial(payer.gone_on, session=session, generation=generation))

    async def bought_given_back(self, session: SessionId) -> None:
        """Record that a session was not resumed after all, and is left as before."""
        await self._writer.write(partial(payer.given_back, session=session))

    async def bought_close_later(self, session: SessionId) -> None:
        """Record that nothing more will be signed, and that its host is to be told when it is there again."""
        await self._writer.write(partial(payer.close_later, session=session))

    async def bought_elsewhere(self, session: SessionId) -> None:
        """Record that another machine of the user has the session."""
        await self._writer.write(partial(payer.used_elsewhere, session=session))

    def purchases_kept(self, now: int, peer: PeerId | None = None) -> list[BoughtSession]:
        """Sessions that were left (with this host, or with any) and may be resumed, the one that was opened
        last first."""
        return self._read(partial(payer.kept, now=now, alive=partial(is_alive, self.path), peer=peer))

    async def bought_restored(self, record: BoughtSession, now: int, receipt: Receipt | None = None) -> None:
        """Put back a purchase recovered from elsewhere. Of one that is here no voucher is lowered.

        ``receipt`` was checked there, and is the one that its voucher goes on from.
        """
        await self._writer.write(partial(payer.restored, record=record, receipt=receipt, now=now))

    async def bought_delivered(self, session: SessionId, amount: int) -> None:
        """Record that the host has a voucher of this amount."""
        await self._writer.write(partial(payer.delivered, session=session, amount=amount))

    def bought_receipt(self, session: SessionId, receipt: Receipt, now: int) -> None:
        """Record a checked receipt. It goes to disk with the next write: the voucher that answers it."""
        self._writer.ride(partial(payer.receipt_shown, session=session, receipt=receipt, held=True, now=now))

    async def bought_shown(self, session: SessionId, receipt: Receipt, now: int) -> None:
        """Record a receipt that the host signed and showed. With another one for its place it is evidence."""
        await self._writer.write(
            partial(payer.receipt_shown, session=session, receipt=receipt, held=False, now=now)
        )

    async def evidence_submitted(self, evidence: Evidence, outcome: str) -> None:
        """Record what the contract said to it."""
        epoch, seq = evidence.place
        await self._writer.write(
            partial(payer.evidence_submitted, session=evidence.session, epoch=epoch, seq=seq, outcome=outcome)
        )

    async def bought_open(self, session: SessionId, keep_s: int = 0, settle_above: int = 0) -> None:
        """Record that the host accepted the session, and for how long it keeps it."""
        await self._writer.write(
            partial(payer.opened, session=session, keep_s=keep_s, settle_above=settle_above)
        )

    async def bought_finished(self, session: SessionId) -> None:
        """Record that the host has finished a turn of the session."""
        await self._writer.write(partial(payer.finished, session=session))

    def has_finished(self, payer_address: bytes, host: bytes) -> bool:
        """Whether a host's wallet has ever finished a turn for a payer's wallet."""
        return self._read(partial(payer.has_finished, payer=payer_address, host=host))

    async def bought_mined(self, session: SessionId) -> None:
        """Record that the session is on the chain: its deposit has left the wallet."""
        await self._writer.write(partial(payer.mined, session=session))

    async def bought_over(self, session: SessionId) -> None:
        """Record that nothing more will be signed for the session."""
        await self._writer.write(partial(payer.over, session=session))

    async def bought_resumed(self, session: SessionId) -> None:
        """Record that the session goes on."""
        await self._writer.write(partial(payer.resumed, session=session))

    async def bought_settled(self, session: SessionId, spent: int, now: int) -> None:
        """Record that the chain took ``spent``. It counts for a day from ``now``."""
        await self._writer.write(partial(payer.settled, session=session, spent=spent, now=now))

    async def bought_expired(self, session: SessionId) -> None:
        """Record that it can't be opened: its authorisation is past, or never left this process."""
        await self._writer.write(partial(payer.expired, session=session))

    async def signed(
        self, session: SessionId, voucher: Voucher, now: int, shares: Sequence[KeyShare] = ()
    ) -> dict[int, int]:
        """Record a voucher, before it is sent. The highest one stays; what it adds is spent now.

        ``shares`` has what it adds for turns of keys. Returns what these may still add, by their claims.
        """
        claimed: dict[int, int] = {}
        asked: dict[str, Any] = {"voucher": voucher, "now": now, "shares": shares}
        await self._writer.write(lambda db: claimed.update(payer.signed(db, session, **asked)))
        return claimed

    def purchases(self, *states: BoughtState) -> list[BoughtSession]:
        """Purchases in any of these states (in any, without one), the oldest first."""
        return self._read(partial(payer.some, states=states or BOUGHT_STATES))

    def purchase(self, session: SessionId) -> BoughtSession | None:
        """The purchase, or None."""
        return self._read(partial(payer.one, session=session))

    def purchases_left(self, *, owed: bool = False) -> list[BoughtSession]:
        """Purchases that no running process uses and that are not known to be settled, the oldest first.

        ``owed``: only those whose host may lack a voucher.
        """
        return self._read(partial(payer.left, alive=partial(is_alive, self.path), owed=owed))

    def taken(self, session: SessionId) -> list[Receipt]:
        """The receipts of a purchase that were checked, in order."""
        return self._read(partial(payer.receipts_held, session=session))

    def taken_with_root(self, session: SessionId, root: bytes) -> Receipt | None:
        """The checked receipt that has this root, or None."""
        return self._read(partial(payer.receipt_with_root, session=session, root=root))

    def evidence(self) -> list[Evidence]:
        """Pairs of receipts that accuse a host, the oldest first."""
        return self._read(payer.evidence)

    def spending(self, terms: SessionTerms, peer: PeerId, now: int) -> Spending:
        """What a rule would be shown now. Only :meth:`bought` holds it against other processes."""
        alive = partial(is_alive, self.path)
        return self._read(partial(payer.spending, terms=terms, peer=peer, now=now, alive=alive))

    def outstanding(self, account: bytes, now: int) -> int:
        """Token units that hosts may still take from this wallet without anything more being signed."""
        return self._read(partial(payer.outstanding, payer=account, now=now))

    def taken_unserved(self, host: bytes, since: int) -> int:
        """How many sessions since ``since`` a host's wallet took the fee of and never accepted."""
        return self._read(partial(payer.taken_unserved, host=host, since=since))

    # ---- keys

    async def key_add(self, key: Key, digest: bytes) -> None:
        """Record a new key and the hash of its secret. Raises ``ConfigError`` for a name in use."""
        await self._writer.write(partial(keys.add, key=key, digest=digest))

    async def key_change(self, key: bytes, limits: KeyLimits) -> None:
        """Give a key other limits."""
        await self._writer.write(partial(keys.change, key=key, limits=limits))

    async def key_revoke(self, key: bytes, now: int) -> None:
        """Let a key pay for nothing more."""
        await self._writer.write(partial(keys.revoke, key=key, now=now))

    def all_keys(self) -> list[Key]:
        """All keys, the oldest first, those that were revoked included."""
        return self._read(keys.all_keys)

    def key_with_digest(self, digest: bytes) -> tuple[Key, bytes] | None:
        """The key whose secret has this hash, and the hash as it is recorded; None where there is none."""
        return self._read(partial(keys.with_digest, digest=digest))

    def key_usage(self, key: bytes, now: int) -> KeyUsage:
        """What was spent on a key, and what is claimed of it."""
        return self._read(partial(keys.usage, key=key, now=now))

    def key_refusal(self, key: bytes, least: int, now: int) -> BudgetError:
        """Why an answer that was stopped could not have ``least`` token units more of a key's budget."""
        return self._read(partial(keys.refusal, key_id=key, least=least, now=now))

    # ---- orders to the chain

    async def order_sending(self, order: SentOrder, version: SignedTransaction) -> None:
        """Record a transaction that this process is about to send."""
        owner = self._name()
        await self._writer.write(partial(orders.sending, sent=order, version=version, owner=owner))

    async def order_refused(self, version: SignedTransaction) -> None:
        """Record that no node took this transaction."""
        await self._writer.write(partial(orders.refused, version=version))

    async def order_ended(self, order: str, ending: Ending, transaction: bytes | None = None) -> None:
        """Record what became of an order. Only the first time counts."""
        await self._writer.write(partial(orders.ended, order=order, ending=ending, transaction=transaction))

    async def orders_taken_over(self, wallet: WalletOnChain) -> list[SentOrder]:
        """Take over the orders that processes which have ended left on their way, and return them."""
        found: list[SentOrder] = []
        owner, alive = self._name(), partial(is_alive, self.path)
        await self._writer.write(lambda db: found.extend(orders.take_over(db, wallet, owner, alive)))
        return found

    def orders(self, wallet: WalletOnChain, *kinds: str) -> list[SentOrder]:
        """Orders that are on their way, of these kinds or of any; the lowest nonce first."""
        found = self._read(partial(orders.on_their_way, wallet=wallet))
        return [each for each in found if not kinds or each.order.kind in kinds]

    def orders_done(self, wallet: WalletOnChain, kind: str) -> list[SentOrder]:
        """Orders of a kind that were carried out, the lowest nonce first."""
        return self._read(partial(orders.done, wallet=wallet, kind=kind))

    def order(self, order: str) -> SentOrder | None:
        """The order, whether it has ended or not, or None."""
        return self._read(partial(orders.one, order=order))

    # ---- both

    def cursor(self, name: str) -> int | None:
        """The block from which the log of this name is to be read on, or None."""
        row = self._read(
            lambda db: db.execute("SELECT block FROM cursors WHERE name = ?", (name,)).fetchone()
        )
        return None if row is None else int(row["block"])

    async def save_cursor(self, name: str, block: int) -> None:
        """Record that everything below ``block`` was acted on."""
        query = "INSERT INTO cursors VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET block = excluded.block"
        await self._writer.write(lambda db: _execute(db, query, (name, block)))

    def next_epoch(self, now_ms: int) -> int:
        """The number of this start: above every earlier one of this journal, and never below the clock.

        Receipts carry it, so that a client can tell a host that restored an old journal from one that
        merely restarted. Durable when it returns; blocks for a commit.
        """
        made: list[int] = []

        def step(db: sqlite3.Connection) -> None:
            row = db.execute("SELECT value FROM counters WHERE name = ?", (_EPOCH,)).fetchone()
            made.append(now_ms if row is None else max(row["value"] + 1, now_ms))
            query = (
                "INSERT INTO counters VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value"
            )
            _execute(db, query, (_EPOCH, made[-1]))

        # On the connection for reading: the other one is the writing thread's once ``run`` has begun.
        self._file.transact(self._reads, step)
        return made[-1]

    def verify(self) -> None:
        """Read the whole file and raise if any of it is damaged. Takes a second per some 100 MB."""
        found = self._read(lambda db: db.execute("PRAGMA integrity_check(1)").fetchone()[0])
        if found != "ok":
            msg = (
                f"the journal {self.path} is damaged ({found}): restore it from your backup; "
                "it is never replaced by itself"
            )
            raise StorageError(msg)

    def _name(self) -> str:
        """The name of this process among those that use this journal."""
        try:
            return self._owner.name()
        except OSError as error:
            msg = f"no file can be made beside {self.path} ({error.strerror}): free space, or fix its folder"
            raise StorageError(msg) from error

    def _read(self, query: Callable[[sqlite3.Connection], T]) -> T:
        with self._file.failing_as_storage():
            return query(self._reads)


def _execute(db: sqlite3.Connection, query: str, values: tuple[object, ...]) -> None:
    db.execute(query, values)
