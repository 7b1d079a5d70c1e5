"""An account's transactions on their way, in the order of their nonces: sending them, following them until
they are deep enough, replacing what is stuck, and taking another nonce where somebody took ours.

A nonce that is used is never a reason to send an order anew: it may be ours that used it, at a node that
shows no receipt. Another nonce is taken only when the chain shows which other transaction has it.
Decides what to do when asked to look; ``sender.py`` decides when.
"""

from __future__ import annotations

import secrets
from typing import Final

import structlog
import trio

from p2pnode.chain.addresses import shown_address
from p2pnode.chain.evm.broadcaster import Courier, Flight, Handed, Job, RejectedError
from p2pnode.chain.evm.fees import Fees, raised
from p2pnode.chain.evm.node import Place, Receipt
from p2pnode.chain.evm.order_book import Ending, Order, SentOrder
from p2pnode.chain.evm.reorg_watcher import Watch, moved, restore
from p2pnode.chain.evm.rpc import Jitter
from p2pnode.chain.ledger import UnseenError
from p2pnode.errors import ChainError, StorageError

_log = structlog.get_logger()

_TRIES: Final = 5
_PLAIN_GAS: Final = 21_000


class Fleet:
    """See the module. What is mined, and deep enough, goes on to ``watch``."""

    def __init__(
        self,
        courier: Courier,
        watch: Watch,
        *,
        confirmations: int,
        replace_after_s: float,
        unseen_s: float,
        jitter: Jitter,
    ) -> None:
        self._courier, self._node, self._watch = courier, courier.node, watch
        self._confirmations, self._replace_after_s, self._jitter = confirmations, replace_after_s, jitter
        self._unseen_s = unseen_s
        self._flights: dict[int, Flight] = {}
        self._nonce = 0
        self._gap_since: float | None = None

    def __len__(self) -> int:
        return len(self._flights)

    @property
    def hashes(self) -> tuple[bytes, ...]:
        """Of what is on its way: each one's best-paying version, the lowest nonce first."""
        return tuple(self._flights[nonce].last.hash for nonce in sorted(self._flights))

    def carries(self, job: Job) -> bool:
        """Is something sent for it?"""
        return any(flight.job is job for flight in self._flights.values())

    def stop(self) -> None:
        """Tell who waits. What was sent stays sent."""
        for flight in self._flights.values():
            if flight.job is not None and flight.versions:
                msg = (
                    f"the ledger closed before transaction 0x{flight.last.hash.hex()} was mined: it may "
                    "still be, look at the session before sending again"
                )
                flight.job.fail(ChainError(msg))

    def adopt(self, orders: list[SentOrder]) -> None:
        """Follow what an earlier process sent, as if it had been sent here."""
        for each in orders:
            if each.versions and each.nonce not in self._flights:
                flight = Flight(each.id, None, each.order, each.nonce, each.gas, each.since_block)
                flight.versions += each.versions
                self._flights[each.nonce] = flight
                self._nonce = max(self._nonce, each.nonce + 1)
                _log.info("chain.adopted", nonce=each.nonce, transaction=flight.last.hash.hex())

    def joined(self, job: Job) -> bool:
        """Whether the same is on its way, with nobody who waits for it; then ``job`` waits for that one."""
        for flight in self._flights.values():
            left = flight.job is None or not flight.job.waits
            if left and flight.versions and flight.order.equals(job.order):
                flight.job, flight.order = job, job.order  # what it may cost may have risen
                if flight.unseen_since is not None:
                    flight.unseen_since = trio.current_time()  # who waits from now on waits as long
                return True
        return False

    def tell_unseen(self, why: str) -> None:
        """The chain can't be asked, for ``why``: whoever waits on what was sent is told so."""
        for flight in self._flights.values():
            if flight.job is not None and flight.versions:
                flight.job.fail(UnseenError(flight.order.words, flight.last.hash, why))

    async def launch(self, job: Job) -> None:
        """Estimate, price, sign, write down, send. Raises ``ChainError`` if nothing was sent."""
        if self.joined(job):
            return
        gas = await self._courier.gas(job.order)
        fees = await self._courier.fees(gas, job.order)
        since = await self._node.height()
        if job.withdrawn:
            return
        nonce = await self._free_nonce()
        for _ in range(_TRIES):
            if job.order.nonce not in (None, nonce):
                msg = (
                    f"the next nonce of {shown_address(self._courier.account)} is {nonce}, and this must "
                    f"have {job.order.nonce}: is another program using the key? Stop it, and start again"
                )
                raise ChainError(msg)
            flight = Flight(_new_id(), job, job.order, nonce, gas, since)
            self._flights[nonce] = flight  # from here on it may have been sent, even if we are cancelled
            try:
                handed, doubt = await self._hand_over(flight, fees)
            except ChainError as error:
                if isinstance(error, RejectedError) and error.doubt:
                    handed, doubt = "unsure", True
                else:
                    del self._flights[nonce]
                    raise
            # "Nonce too low" may be about these very bytes, sent twice by whoever stands before the node: the
            # chain will tell whose transaction used it.
            if handed in ("taken", "unsure", "nonce_used") or doubt:
                self._nonce = max(self._nonce, nonce + 1)
                _log.info("chain.sent", nonce=nonce, transaction=flight.last.hash.hex(), taken=flight.taken)
                return
            del self._flights[nonce]
            await self._ended(flight, "displaced")
            if handed == "fee_too_low":
                better = raised(fees, await self._node.fees(), self._courier.price_max(gas, job.order))
                if better is None:
                    break
                fees = better
            else:
                _log.warning("chain.nonce_used_elsewhere", nonce=nonce, account=self._courier.account.hex())
                nonce = max(nonce + 1, await self._free_nonce())
        msg = (
            "no node takes the transaction, for its nonce or its fee: is another program using the key of "
            f"{shown_address(self._courier.account)}? Stop it, and try again"
        )
        raise ChainError(msg)

    async def _ended(self, flight: Flight, ending: Ending, transaction: bytes | None = None) -> None:
        try:
            await self._courier.book.ended(flight.id, ending, transaction)
        except StorageError as error:  # it stays in the book, and is found at the next start
            _log.warning("chain.order_not_noted", nonce=flight.nonce, error=str(error))

    async def _free_nonce(self) -> int:
        """The first unused one: ours while something of ours is young, else what the chain says."""
        pending = await self._node.nonce(self._courier.account, "pending")
        young = self._flights or len(self._watch)
        self._nonce = max(self._nonce, pending) if young else pending
        return self._nonce

    async def _hand_over(self, flight: Flight, fees: Fees) -> tuple[Handed, bool]:
        others = (other for other in self._flights.values() if other is not flight)
        reserved = sum(other.gas * other.last.fees.most for other in others if other.versions)
        flight.replace_at = trio.current_time() + self._replace_after_s * (1 + self._jitter() / 4)
        return await self._courier.hand_over(flight, fees, reserved_wei=reserved)

    async def look(self) -> None:
        """Where are they? The lowest nonce that isn't mined is the one that may be stuck."""
        used = await self._node.nonce(self._courier.account)
        height = await self._node.height()
        await self._fill_gap(used)
        for flight in sorted(self._flights.values(), key=lambda one: one.nonce):
            if flight.nonce < used:
                await self._follow(flight, height)
            elif flight.mined is not None:
                await restore(self._courier, flight)
            elif not flight.taken:
                await self._push_again(flight)
            elif flight.nonce == used and trio.current_time() >= flight.replace_at:
                await self._replace(flight)

    async def _follow(self, flight: Flight, height: int) -> None:
        """Its nonce is used: by which version, and how deep?"""
        receipt = await self._courier.receipt(flight) or await self._unseen(flight, height)
        if receipt is None:
            return
        if flight.mined is not None:
            moved(flight, receipt)
        flight.seen(receipt)
        if height - receipt.block + 1 >= self._confirmations:
            await self._settle(flight, receipt)

    async def _unseen(self, flight: Flight, height: int) -> Receipt | None:
        """Its nonce is used and no node shows a receipt: ask what used it, and what that did."""
        now = trio.current_time()
        if not flight.unseen(now):
            return None
        place = await self._courier.place(flight, height)
        if place is not None and any(place.transaction == version.hash for version in flight.versions):
            found = await self._courier.by_effect(place)
            if found is not None:
                return found
        elif place is not None:
            if height - place.block + 1 >= self._confirmations:
                await self._displaced(flight, place)
            return None
        since = flight.unseen_since
        if since is not None and now - since >= self._unseen_s and flight.job is not None:
            flight.job.fail(UnseenError(flight.order.words, flight.last.hash))
        return None

    async def _settle(self, flight: Flight, receipt: Receipt) -> None:
        error = None if receipt.succeeded else await self._courier.why(flight, receipt)
        del self._flights[flight.nonce]
        _log.info(
            "chain.mined", nonce=flight.nonce, transaction=receipt.hash.hex(), block=receipt.block,
            gas=receipt.gas_used, reverted=None if error is None else error.reason,
        )  # fmt: skip
        await self._ended(flight, "done" if error is None else "failed", receipt.hash)
        if error is None:
            self._watch.add(flight, receipt)
        if flight.job is not None and error is not None:
            flight.job.fail(error)
        elif flight.job is not None:
            flight.job.finish(receipt)

    async def _replace(self, flight: Flight) -> None:
        """Stuck: the same nonce with a higher fee, or, at the cap, the same bytes once more."""
        old = flight.last.fees
        fees = raised(old, await self._node.fees(), self._courier.price_max(flight.gas, flight.order))
        if fees is None:
            _log.warning("chain.stuck_at_fee_limit", nonce=flight.nonce, fee_wei=old.most)
            flight.replace_at = trio.current_time() + self._replace_after_s
            await self._push_again(flight)
            return
        _log.warning("chain.replaced", nonce=flight.nonce, fee_wei=fees.most, was_wei=old.most)
        await self._outbid(flight, fees)

    async def _outbid(self, flight: Flight, fees: Fees) -> None:
        """A better offer for a nonce that is in the pool already, ours or not: twice as much, if need be."""
        for _ in range(_TRIES):
            try:
                handed, _ = await self._hand_over(flight, fees)
            except ChainError as error:
                # It can't be afforded, say. Older versions still stand.
                _log.warning("chain.not_replaced", nonce=flight.nonce, error=str(error))
                handed = "taken"
            flight.taken = handed != "unsure"
            doubled = Fees(most=2 * fees.most, tip=2 * fees.tip)
            more = raised(fees, doubled, self._courier.price_max(flight.gas, flight.order))
            if handed not in ("nonce_taken", "fee_too_low") or more is None:
                return
            fees = more

    async def _push_again(self, flight: Flight) -> None:
        """The same bytes. What is refused now may have been taken before: nobody is told that it failed."""
        try:
            handed, _ = await self._courier.push(flight, flight.last)
        except RejectedError as error:
            _log.warning("chain.not_resent", nonce=flight.nonce, error=str(error))
            handed = "taken"
        # A used nonce shows in the next look; a taken one needs a better offer than the one that has it.
        flight.taken = handed != "unsure"

    async def _displaced(self, flight: Flight, place: Place) -> None:
        """Another transaction has our nonce, and the chain shows it: none of our versions can be mined. Take
        another nonce."""
        _log.warning(
            "chain.nonce_used_elsewhere", nonce=flight.nonce, account=self._courier.account.hex(),
            transaction=place.transaction.hex(),
        )  # fmt: skip
        del self._flights[flight.nonce]
        await self._ended(flight, "displaced", place.transaction)
        if flight.job is None or not flight.job.waits:
            return
        try:
            await self.launch(flight.job)
        except ChainError as error:
            flight.job.fail(error)

    async def _fill_gap(self, used: int) -> None:
        """Nothing of ours can be mined while a nonce below it is missing, or stuck from an earlier life."""
        now = trio.current_time()
        if not self._flights or used >= min(self._flights):
            self._gap_since = None
        elif self._gap_since is None:
            self._gap_since = now
        elif now - self._gap_since >= self._replace_after_s:
            self._gap_since = None
            _log.warning("chain.gap_filled", nonce=used, account=self._courier.account.hex())
            words = f"nothing, to fill the gap at nonce {used}"
            nothing = Order(to=self._courier.account, data=b"", gas_max=_PLAIN_GAS, kind="gap", words=words)
            flight = Flight(_new_id(), None, nothing, used, _PLAIN_GAS, await self._node.height())
            await self._outbid(flight, await self._courier.fees(_PLAIN_GAS, nothing))
            if flight.versions:
                self._flights[used] = flight


def _new_id() -> str:
    return secrets.token_hex(8)
