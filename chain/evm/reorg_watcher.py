"""Transactions that were reported already, watched a while longer: a reorganisation that drops one has it
sent again, byte for byte. What it does then is for whoever reads the events.
"""

from __future__ import annotations

import structlog
import trio

from p2pnode.chain.evm.broadcaster import Courier, Flight
from p2pnode.chain.evm.node import Receipt
from p2pnode.errors import ChainError

_log = structlog.get_logger()


async def restore(courier: Courier, flight: Flight) -> None:
    """Its nonce is free again: the same bytes are as good as they were."""
    version = flight.last if flight.mined is None else flight.version(flight.mined.hash)
    if flight.mined is not None:
        _log.warning("chain.reorged", transaction=version.hash.hex(), block=flight.mined.block, dropped=True)
    flight.mined = None
    try:
        await courier.push(flight, version)
    except ChainError as error:
        _log.warning("chain.not_restored", transaction=version.hash.hex(), error=str(error))


def moved(flight: Flight, receipt: Receipt) -> bool:
    """Is it in another block than it was? Said in the log."""
    before = flight.mined
    # A node that names no block hash shows only a move to another height.
    hashes = set() if before is None else {before.block_hash, receipt.block_hash} - {None}
    if before is not None and before.block == receipt.block and len(hashes) <= 1:
        return False
    _log.warning(
        "chain.reorged", transaction=receipt.hash.hex(), block=receipt.block, dropped=False,
        succeeded=receipt.succeeded,
    )  # fmt: skip
    return True


class Watch:
    """See the module. Each is watched for ``final_blocks``, or ``final_s``; no more than ``watched_max``."""

    def __init__(self, courier: Courier, *, final_blocks: int, final_s: float, watched_max: int) -> None:
        self._courier = courier
        self._final_blocks, self._final_s, self._max = final_blocks, final_s, watched_max
        self._flights: list[Flight] = []

    def __len__(self) -> int:
        return len(self._flights)

    def add(self, flight: Flight, receipt: Receipt) -> None:
        """From now on."""
        flight.until_block = receipt.block + self._final_blocks
        flight.until = trio.current_time() + self._final_s
        flight.seen(receipt)
        self._flights.append(flight)
        del self._flights[: -self._max]

    async def look(self) -> None:
        """Is what was reported still so?"""
        used = await self._courier.node.nonce(self._courier.account)
        height = await self._courier.node.height()
        for flight in list(self._flights):
            if trio.current_time() >= flight.until or (
                height >= flight.until_block and flight.mined is not None
            ):
                self._flights.remove(flight)
            elif flight.nonce >= used:
                await restore(self._courier, flight)
            else:
                await self._confirm(flight, height)

    async def _confirm(self, flight: Flight, height: int) -> None:
        receipt = await self._courier.receipt(flight)
        if receipt is None:
            if not flight.unseen(trio.current_time()):
                return
            place = await self._courier.place(flight, height)
            if place is not None and all(place.transaction != version.hash for version in flight.versions):
                self._flights.remove(flight)
                _log.error("chain.lost", nonce=flight.nonce, transaction=flight.last.hash.hex())
            return
        if moved(flight, receipt):
            flight.until_block = receipt.block + self._final_blocks
        flight.seen(receipt)
