"""Vouchers delivered again: a host that vanished gets the last voucher of the session it was left with.

The journal tells what a host may lack: sessions that no running process uses, and whose last voucher their
host is not known to have. A host that is away keeps its claim, and the next client tries again; so it does
with a host that says it does not know the session (it is settled, or its journal is gone), until the chain
says what became of it. A session that its host keeps is left with it again, and not while another command may
want to resume it: that brings the voucher, too. Nothing is signed here, no wallet is opened and no chain is
asked: a voucher that is delivered again was signed before. Knows nothing of answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, TypeAlias

import structlog
import trio

from p2pnode.config import NodeConfig
from p2pnode.contract_rules import CHALLENGE_S
from p2pnode.errors import (
    LocalError,
    P2PNodeError,
    ProtocolError,
    RefusedError,
    UnreachableError,
    first_error,
)
from p2pnode.ids import PeerId, SessionId
from p2pnode.limits import Limits
from p2pnode.net.network import Network
from p2pnode.net.stream import Stream
from p2pnode.node.datadir import DataDir
from p2pnode.node.driver import Driver, MessageChannel
from p2pnode.node.node import Node
from p2pnode.payments.books import open_journal, profile_of_config
from p2pnode.payments.journal.journal import BoughtSession, Journal
from p2pnode.payments.payer import OpenPayer, receipt_salt
from p2pnode.protocols.crypto import sign_digest
from p2pnode.protocols.inference.channel import ChannelSender, ClientPayment
from p2pnode.protocols.inference.client import ClientSession
from p2pnode.protocols.inference.client_turn import ClientTimes, held_from_journal, held_left
from p2pnode.protocols.inference.commands import (
    Accepted,
    ClientEmission,
    End,
    Ended,
    LeaveSession,
    SessionFailed,
    Start,
)
from p2pnode.protocols.inference.messages import CODEC, PROTOCOL, Voucher
from p2pnode.protocols.typed_data import Domain, market_domain, session_id

log = structlog.get_logger()
Outcome: TypeAlias = Literal["delivered", "refused", "away"]


@dataclass(frozen=True, slots=True)
class Redelivery:
    """What became of one voucher. ``detail`` says why it was not delivered."""

    session: SessionId
    outcome: Outcome
    detail: str = ""


def undelivered(journal: Journal, now: int, *, kept: bool = True) -> list[BoughtSession]:
    """Sessions whose host may lack the last voucher and can still use it, the newest first.

    Without ``kept`` those are left out that their hosts keep.
    """
    left = [
        record
        for record in journal.purchases_left(owed=True)
        if record.owed is not None
        and record.terms.expiry + CHALLENGE_S > now
        and (kept or not _is_kept(record))
    ]
    return left[::-1]


def _is_kept(record: BoughtSession) -> bool:
    return record.keep_s > 0 and record.state == "open"


async def redeliver_all(
    journal: Journal, market: Domain, network: Network, *, limits: Limits, now: int, kept: bool = True
) -> list[Redelivery]:
    """Deliver all such vouchers of this market, a few at once, each within its deadline.

    A host's fault or absence is an outcome, no error. Raises ``StorageError``.
    """
    limiter = trio.CapacityLimiter(limits.redeliveries_at_once)
    done: list[Redelivery] = []

    async def deliver(record: BoughtSession) -> None:
        async with limiter:
            if _is_kept(record) and await journal.bought_take(record.session, now) is None:
                return  # another command resumes it
            outcome = await _try(record, journal, market, network, limits)
            if _is_kept(record) and outcome.outcome != "delivered":
                await journal.bought_given_back(record.session)
            done.append(outcome)

    owed = undelivered(journal, now, kept=kept)
    records = [each for each in owed if session_id(market, each.terms) == each.session]
    async with trio.open_nursery() as nursery:
        for record in records[: limits.redeliveries_max]:
            nursery.start_soon(deliver, record)
    return done


async def _try(
    record: BoughtSession, journal: Journal, market: Domain, network: Network, limits: Limits
) -> Redelivery:
    outcome: Outcome = "delivered"
    detail = ""
    try:
        with trio.fail_after(limits.redelivery_deadline_s):
            await redeliver(record, journal, market, network, limits=limits)
    except (RefusedError, ProtocolError) as error:
        outcome, detail = "refused", str(error)
    except trio.TooSlowError:
        outcome, detail = "away", "it did not answer in time"
    except LocalError:
        raise
    except P2PNodeError as error:
        outcome, detail = "away", str(error)
    fields = {"session": record.session.hex()[:16], "host": record.host, "outcome": outcome}
    log.info("voucher.redelivered", **fields, reason=detail or None)
    return Redelivery(record.session, outcome, detail)


async def redeliver(
    record: BoughtSession, journal: Journal, market: Domain, network: Network, *, limits: Limits
) -> None:
    """Hand one session's final voucher to its host, and note it in the journal. Deadlines are the caller's.

    Raises ``UnreachableError`` when the host is away, ``RefusedError`` when it does not take it,
    ``ProtocolError`` when it breaks the protocol, and ``StorageError``.
    """
    voucher = record.owed
    if voucher is None:
        return
    await network.connect_peer(record.host, (), trusted=record.addresses)
    stream = await network.open_stream(record.host, PROTOCOL)
    delivering = _Stream(
        stream=stream,
        record=record,
        voucher=voucher,
        journal=journal,
        market=market,
        self_peer=network.peer_id,
        limits=limits,
        leaves=_is_kept(record),
    )
    await delivering.run()


async def close_at_host(
    record: BoughtSession, journal: Journal, market: Domain, network: Network, *, limits: Limits
) -> str:
    """Have a session that was left closed by its host, which settles it then. Returns why that failed, or "".

    Where the host is away, or busy, nothing more is signed in the session all the same, and it is asked again
    by a later command. Raises ``StorageError``.
    """
    why = ""
    try:
        with trio.fail_after(limits.redelivery_deadline_s):
            await network.connect_peer(record.host, (), trusted=record.addresses)
            stream = await network.open_stream(record.host, PROTOCOL)
            closing = _Stream(
                stream=stream,
                record=record,
                voucher=record.final or record.voucher,
                journal=journal,
                market=market,
                self_peer=network.peer_id,
                limits=limits,
                leaves=False,
            )
            await closing.run()
    except trio.TooSlowError:
        why = "it did not answer in time"
    except LocalError:
        raise
    except P2PNodeError as error:
        why = str(error)
    if why:
        await journal.bought_close_later(record.session)
    else:
        await journal.bought_over(record.session)
    return why


class _Stream:
    """One stream to one host."""

    def __init__(
        self,
        *,
        stream: Stream,
        record: BoughtSession,
        voucher: Voucher | None,
        journal: Journal,
        market: Domain,
        self_peer: PeerId,
        limits: Limits,
        leaves: bool,
    ) -> None:
        self._leaves = leaves
        secret = record.voucher_secret
        payment = ClientPayment(
            market=market,
            terms=record.terms,
            valid_before=record.valid_before,
            authorisation=b"",
            sign=lambda digest: sign_digest(secret, digest),
        )
        root = voucher.root if voucher is not None else b""
        receipt = journal.taken_with_root(record.session, root)
        held = (
            held_from_journal(payment, receipt, voucher)
            if voucher is not None
            else held_left(
                ChannelSender(payment),
                record.session,
                model=record.terms.model,
                salt=receipt_salt(secret),
                receipt=None,
                voucher=None,
                generation=record.generation,
            )
        )
        self._stream, self._record, self._voucher, self._journal = stream, record, voucher, journal
        machine = ClientSession(
            host=record.host,
            stream=0,
            model=record.terms.model,
            salt=b"",
            holder=bytes(16),  # it hands over, and holds nothing
            times=ClientTimes(open_s=limits.request_deadline_s, stall_s=limits.stall_s),
            resume=held,
            peer=self_peer,
        )
        self._driver = Driver(
            machine, MessageChannel(stream, CODEC), on_emit=self._emitted, write_deadline_s=limits.stall_s
        )
        self._failure: SessionFailed | None = None
        self._taken, self._close_s = False, limits.close_deadline_s
        self._generation = record.generation

    async def run(self) -> None:
        """Until the host has the voucher, or it is certain that this stream won't bring it."""
        self._driver.command_nowait(Start())
        try:
            await self._driver.run()
            if self._taken:  # the host ends the stream when it has read what we sent last
                with trio.move_on_after(self._close_s), suppress(UnreachableError):
                    while await self._stream.receive_some():
                        pass
        finally:
            await (self._stream.aclose() if self._taken else self._stream.reset())
        if not self._taken:
            failure = self._failure
            if failure is not None and failure.fault:
                raise ProtocolError(failure.detail)
            if failure is None or failure.code is None:
                raise UnreachableError(failure.detail if failure is not None else "the host went away")
            raise RefusedError(failure.code, failure.detail, retry_after_s=failure.retry_after_s, said=True)

    async def _emitted(self, value: ClientEmission) -> None:
        match value:
            case Accepted(accept=accept):
                # A host answers a resume only once the voucher is on its disk: it can't be lost any more.
                if self._voucher is not None:
                    await self._journal.bought_delivered(self._record.session, self._voucher.amount)
                self._taken, self._generation = True, accept.generation
                keeps = accept.keep_s and self._leaves
                until = self._record.terms.expiry  # the host says what it grants of this
                self._driver.command_nowait(LeaveSession(until) if keeps else End())
            case SessionFailed():
                self._failure = value
                self._driver.stop()
            case Ended(left=left):
                if left is not None:
                    session, until = self._record.session, left.until
                    await self._journal.bought_left(session, until, self._generation, left.settle_above)
                self._driver.stop()
            case _:
                pass


async def redeliver_from_journal(config: NodeConfig, node: Node) -> list[Redelivery]:
    """Deliver what the journal of a data dir holds, of sessions that no host keeps.

    Empty without a chain, or where there is nothing.

    Raises ``LocalError``.
    """
    profile, path = profile_of_config(config), DataDir(config.data_dir).journal
    if profile is None or not path.exists():
        return []
    now = int(node.wall())
    async with open_journal(path) as journal:
        if not undelivered(journal, now, kept=False):
            return []
        market = market_domain(profile.chain_id, profile.job_marketplace)
        return await redeliver_all(journal, market, node.network, limits=node.limits, now=now, kept=False)


class Redeliverer:
    """Of one client: tries once when it starts, and again after each turn that it paid for.

    ``tell`` hears what became of each voucher. Tasks run in ``tasks``, guarded as those for strangers are.
    """

    def __init__(
        self,
        config: NodeConfig,
        node: Node,
        tasks: trio.Nursery,
        tell: Callable[[str, dict[str, object]], None],
    ) -> None:
        self._config, self._node, self._tasks, self._tell = config, node, tasks, tell
        self._tried: trio.Event | None = None
        self._running = False
        self._done = trio.Event()
        """Set while nothing is delivered."""
        self._done.set()

    def begin(self) -> None:
        """Deliver what earlier runs left: their hosts may be back."""
        self._tried = trio.Event()
        self._tasks.start_soon(self._node.network.guard.run, self._begin, self._tried)

    async def wait_tried(self) -> None:
        """Until what earlier runs left was tried, where :meth:`begin` was called, and what this run left."""
        if self._tried is not None:
            await self._tried.wait()
        await self._done.wait()

    def soon(self, opened: OpenPayer) -> None:
        """Deliver what this run left, unless that is under way."""
        if not self._running and undelivered(opened.journal, opened.signer.now()):
            self._running, self._done = True, trio.Event()
            self._tasks.start_soon(self._node.network.guard.run, self._deliver, opened)

    async def _begin(self, tried: trio.Event) -> None:
        try:
            self._report(await redeliver_from_journal(self._config, self._node))
        except P2PNodeError as error:  # the journal still has what was not delivered
            log.warning("vouchers.not_redelivered", reason=str(error))
        finally:
            tried.set()

    async def _deliver(self, opened: OpenPayer) -> None:
        network, limits = self._node.network, self._node.limits
        now, market = opened.signer.now(), opened.signer.market
        try:
            self._report(await redeliver_all(opened.journal, market, network, limits=limits, now=now))
        except* LocalError as group:
            log.warning("vouchers.not_redelivered", reason=str(first_error(group)))
        finally:
            self._running = False
            self._done.set()

    def _report(self, done: Sequence[Redelivery]) -> None:
        for each in done:
            self._tell(
                "voucher", {"session": each.session.hex(), "outcome": each.outcome, "detail": each.detail}
            )
