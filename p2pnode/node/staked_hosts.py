"""``StakedHosts``: which hosts have a stake, as the chain last said it.

A host's advert names its wallet; ``NodeRegistry`` says what that wallet has at stake, and for which peer key.
Both must agree. The answers are kept here, bounded, and read without waiting: gossip never waits for a chain.
``follow`` asks the chain, a few times a second at most, and goes on after it was silent. A silent chain is no
outage: what it said last counts for a day, and stake needs seven to leave.

Whoever floods a node with adverts of new names fills the queue of questions, and so delays answers about
others. It takes no place from a host that is known to be staked: those are kept apart from all others.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import structlog
import trio

from p2pnode.bounded import BoundedMap, backoff_s
from p2pnode.contract_rules import STAKE_MIN
from p2pnode.errors import ChainError, ConfigError, ProtocolError
from p2pnode.files import read_text_or_none, write_atomic
from p2pnode.ids import PeerId
from p2pnode.protocols.adverts.messages import Advert
from p2pnode.protocols.crypto import public_key_of

if TYPE_CHECKING:
    from p2pnode.chain.ledger import NodeRecord

    Ask: TypeAlias = Callable[[bytes], Awaitable[NodeRecord]]
    """What a wallet has in the registry. Raises ``ChainError``."""

log = structlog.get_logger()
STAKED_MAX: Final = 4096
UNSTAKED_MAX: Final = 8192
WANTED_MAX: Final = 256
REFRESH_S: Final = 600.0
"""After so long a staked host is asked for again."""
UNSTAKED_S: Final = 3600.0
"""And one without a stake, when it is heard of again."""
BELIEVED_S: Final = 86_400.0
"""What the chain said counts for so long where it is silent since."""
_EVERY_S: Final = 0.5
_ASK_DEADLINE_S: Final = 10.0
_PAUSE_FIRST_S: Final = 5.0
_PAUSE_MAX_S: Final = 300.0


@dataclass(frozen=True, slots=True)
class Stake:
    """What a host has at stake, in FAB's smallest unit, and when the chain said so."""

    wallet: bytes
    amount: int
    said_at: float


class StakedHosts:
    """See the module. ``wall`` gives epoch seconds; ``draw(n)`` a number below ``n``."""

    def __init__(
        self,
        *,
        chain_id: int,
        registry: bytes,
        wall: Callable[[], float],
        draw: Callable[[int], int],
    ) -> None:
        self._chain_id, self._registry, self._wall, self._draw = chain_id, registry, wall, draw
        self._staked: BoundedMap[PeerId, Stake] = BoundedMap(STAKED_MAX)
        """The one that the chain was asked about longest ago is the first."""
        self._unstaked: BoundedMap[PeerId, Stake] = BoundedMap(UNSTAKED_MAX)
        self._wanted: dict[PeerId, bytes] = {}
        self._changed = trio.Event()

    # ---- what others ask, without waiting

    def is_staked(self, peer: PeerId) -> bool:
        """Whether a host has a stake, as far as is known here."""
        found = self._staked.get(peer)
        return found is not None and self._wall() - found.said_at < BELIEVED_S

    def stake_of(self, advert: Advert) -> int:
        """What a host has at stake, by the wallet of this advert; 0 where that isn't known."""
        found = self._staked.get(advert.peer)
        if found is None or found.wallet != advert.binding.wallet or not self.is_staked(advert.peer):
            return 0
        return found.amount

    def heard(self, advert: Advert) -> None:
        """An advert was believed: the chain is to be asked about its host, unless that is known."""
        peer, wallet = advert.peer, advert.binding.wallet
        binding = advert.binding
        if (binding.chain_id, binding.node_registry) != (self._chain_id, self._registry):
            return  # paid on another chain, or free: no stake here backs its receipts
        known = self._staked.get(peer)
        if known is not None and known.wallet == wallet:
            return  # it is asked for again in its turn
        known = self._unstaked.get(peer)
        if known is not None and known.wallet == wallet and self._wall() - known.said_at < UNSTAKED_S:
            return
        if peer not in self._wanted and len(self._wanted) >= WANTED_MAX:
            # At random: who comes first in a flood must not keep out who comes late.
            self._wanted.pop(list(self._wanted)[self._draw(WANTED_MAX)])
        self._wanted[peer] = wallet
        self._changed.set()

    # ---- asking the chain

    def next_question(self) -> tuple[PeerId, bytes] | None:
        """A host to ask the chain about, and its wallet: a new one, or a staked one whose time is up."""
        due = next(iter(self._staked), None)
        if due is not None:
            stake = self._staked.get(due)
            if stake is not None and self._wall() - stake.said_at >= REFRESH_S:
                return due, stake.wallet
        return next(iter(self._wanted.items()), None)

    def answered(self, peer: PeerId, wallet: bytes, record: NodeRecord) -> None:
        """The chain said this of a host's wallet."""
        if self._wanted.get(peer) == wallet:
            del self._wanted[peer]
        said = Stake(wallet, record.stake, self._wall())
        self._staked.pop(peer)
        if record.stake >= STAKE_MIN and record.peer_key == _key_of(peer):
            self._unstaked.pop(peer)
            self._staked.put(peer, said)
        else:
            self._unstaked.put(peer, said)

    async def follow(self, ask: Ask, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Ask the chain until cancelled."""
        task_status.started()
        failures = 0
        while True:
            question = self.next_question()
            if question is None:
                with trio.move_on_after(REFRESH_S):
                    await self._changed.wait()
                self._changed = trio.Event()
                continue
            peer, wallet = question
            try:
                with trio.fail_after(_ASK_DEADLINE_S):
                    record = await ask(wallet)
            except (ChainError, trio.TooSlowError) as error:
                if not failures:
                    log.info("stakes.chain_silent", reason=str(error) or "too slow")
                await trio.sleep(backoff_s(failures, first_s=_PAUSE_FIRST_S, max_s=_PAUSE_MAX_S))
                failures += 1
                continue
            failures = 0
            self.answered(peer, wallet, record)
            await trio.sleep(_EVERY_S)

    # ---- between runs

    def load(self, path: Path) -> None:
        """Take what an earlier run knew of this registry. A file that can't be read is worth nothing."""
        try:
            text = read_text_or_none(path)
            body = {} if text is None else json.loads(text)
            if (body.get("chain_id"), body.get("registry")) != (self._chain_id, self._registry.hex()):
                return
            for peer, (wallet, amount, said_at) in dict(body["hosts"]).items():
                stake = Stake(bytes.fromhex(wallet), int(amount), float(said_at))
                if stake.said_at <= self._wall():  # one of the future would be believed for ever
                    self._staked.put(PeerId(peer), stake)
        except (ConfigError, ValueError, TypeError, KeyError, AttributeError) as error:
            log.info("stakes.not_loaded", reason=str(error))

    def save(self, path: Path) -> None:
        """Write what is known for the next run. Blocks; a disk that can't take it costs a log line."""
        hosts = {}
        for peer in self._staked:
            stake = self._staked.get(peer)
            if stake is not None:
                hosts[peer] = [stake.wallet.hex(), stake.amount, stake.said_at]
        body = {"chain_id": self._chain_id, "registry": self._registry.hex(), "hosts": hosts}
        try:
            write_atomic(path, json.dumps(body).encode())
        except ConfigError as error:
            log.info("stakes.not_saved", reason=str(error))


def _key_of(peer: PeerId) -> bytes:
    try:
        return public_key_of(peer)
    except ProtocolError:
        return b""
