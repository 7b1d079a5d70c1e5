"""``ReorgWatcher``: watches mined transactions for a while after they were reported.

One that a reorganisation drops is sent again, byte for byte. What that means is for the readers of events.
"""

from __future__ import annotations

import structlog
import trio

from p2pnode.chain.evm.broadcaster import Broadcaster, PendingTransaction
from p2pnode.chain.evm.node import Receipt
from p2pnode.errors import ChainError

_log = structlog.get_logger()


async def restore(broadcaster: Broadcaster, sent: PendingTransaction) -> None:
    """Send the version that was mined again: its nonce is free, so the same bytes are valid."""
    version = sent.last if sent.mined is None else sent.version(sent.mined.hash)
    if sent.mined is not None:
        _log.warning("chain.reorged", transaction=version.hash.hex(), block=sent.mined.block, dropped=True)
    sent.mined = None
    try:
        await broadcaster.send(sent, version)
    except ChainError as error:
        _log.warning("chain.not_restored", transaction=version.hash.hex(), error=str(error))


def note_move(sent: PendingTransaction, receipt: Receipt) -> bool:
    """Log that a transaction is in another block than before. Returns whether it is."""
    before = sent.mined
    # A node that names no block hash shows only a move to another height.
    hashes = set() if before is None else {before.block_hash, receipt.block_hash} - {None}
    if before is not None and before.block == receipt.block and len(hashes) <= 1:
        return False
    _log.warning(
        "chain.reorged", transaction=receipt.hash.hex(), block=receipt.block, dropped=False,
        succeeded=receipt.succeeded,
    )  # fmt: skip
    return True


class ReorgWatcher:
    """See the module. Each is watched for ``final_blocks`` or ``final_s``; ``watched_max`` at most."""

    def __init__(
        self, broadcaster: Broadcaster, *, final_blocks: int, final_s: float, watched_max: int
    ) -> None:
        self._broadcaster = broadcaster
        self._final_blocks, self._final_s, self._max = final_blocks, final_s, watched_max
        self._mined: list[PendingTransaction] = []

    def __len__(self) -> int:
        return len(self._mined)

    def add(self, sent: PendingTransaction, receipt: Receipt) -> None:
        """Watch it from now on."""
        sent.until_block = receipt.block + self._final_blocks
        sent.until = trio.current_time() + self._final_s
        sent.seen(receipt)
        self._mined.append(sent)
        del self._mined[: -self._max]

    async def poll(self) -> None:
        """Ask the chain for each of them, and send again what was dropped."""
        used = await self._broadcaster.node.nonce(self._broadcaster.account)
        height = await self._broadcaster.node.height()
        for sent in list(self._mined):
            if trio.current_time() >= sent.until or (height >= sent.until_block and sent.mined is not None):
                self._mined.remove(sent)
            elif sent.nonce >= used:
                await restore(self._broadcaster, sent)
            else:
                await self._confirm(sent, height)

    async def _confirm(self, sent: PendingTransaction, height: int) -> None:
        receipt = await self._broadcaster.receipt(sent)
        if receipt is None:
            if not sent.unseen(trio.current_time()):
                return
            used_by = await self._broadcaster.nonce_user(sent, height)
            if used_by is not None and all(used_by.transaction != version.hash for version in sent.versions):
                self._mined.remove(sent)
                _log.error("chain.lost", nonce=sent.nonce, transaction=sent.last.hash.hex())
            return
        if note_move(sent, receipt):
            sent.until_block = receipt.block + self._final_blocks
        sent.seen(receipt)
