"""What every part of one client uses: its configuration, node, tasks and wallet, and its events.

It knows no part of the client.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from p2pnode.client.bill import AnswerRecord
from p2pnode.client.ranking import why_not_free
from p2pnode.config import NodeConfig
from p2pnode.ids import SessionId
from p2pnode.limits import Limits
from p2pnode.net.address_policy import nearest_first
from p2pnode.node.datadir import DataDir
from p2pnode.node.invite import read_bootstrap
from p2pnode.node.keys import PeerKey
from p2pnode.node.node import Node, NodeSetup
from p2pnode.protocols.adverts.messages import Advert, Offer
from p2pnode.storage.conversations.records import SavedSession

if TYPE_CHECKING:
    from p2pnode.node.staked_hosts import StakedHosts
    from p2pnode.payments.payer import Payer

Event = Callable[[str, dict[str, object]], None]


@dataclass(slots=True, eq=False)
class _Listener:
    on_event: Event | None


_LISTENING: ContextVar[_Listener | None] = ContextVar("p2pnode_listening", default=None)
_OUTSIDE = "use the client as `async with Client() as client`"


class Runtime:
    """Of one client. ``node`` is one that runs already and outlives the client; without it one is made."""

    def __init__(
        self,
        config: NodeConfig,
        *,
        bootstrap: tuple[str, ...],
        discovery: bool,
        limits: Limits,
        node: Node | None,
        payer: Payer | None,
        on_event: Event,
    ) -> None:
        self.config, self.discovers, self.limits = config, discovery, limits
        self.bootstrap = tuple(
            one for each in (*bootstrap, *config.bootstrap) for one in read_bootstrap(each)
        )
        self.data = DataDir(config.data_dir)
        self.owns_node, self.payer = node is None, payer
        self.holder = secrets.token_bytes(16)
        """Tells this client from others of the same wallet."""
        self.on_event = on_event
        """The listener of this client's events."""
        self.observe: Callable[[AnswerRecord], None] = lambda _record: None
        """Is told of each answer at its end."""
        self.local: tuple[str, ...] = ()
        """Multiaddrs of the node that runs on this data dir, the nearest first."""
        self.holder = secrets.token_bytes(16)
        """What tells this process from others of its user, at hosts that keep sessions."""
        self._networks: tuple[str, ...] = ()
        self.browses = False
        """Whether it looks for peers on the local network."""
        self._node = node
        self.stakes: StakedHosts | None = None
        """Which hosts are staked on the chain that this client pays on; None where it pays nothing. Asked of
        the chain while that is open, which it is from the first payment on."""
        self._tasks: trio.Nursery | None = None

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Run the node and the tasks for the block; after it the tasks are cancelled, then the node ends."""
        if self.payer is None and self.pays:
            self.payer = self._configured_payer()
        # The node's nursery is the outer one: whatever uses the node has ended before it does.
        async with _independent_tasks() as under:
            if self._node is None:
                self._node = self.make_node()
                await under.start(self._node.run)
            try:
                stores = (one for each in self.config.stores for one in read_bootstrap(each))
                self._node.network.policy.trust((*self.bootstrap, *stores), self._networks)
                async with _independent_tasks() as self._tasks:
                    yield
            finally:
                self._tasks = None
                if self.owns_node:
                    with trio.move_on_after(self.limits.close_deadline_s, shield=True):
                        await self._node.aclose()
                if self.stakes is not None and self.payer is not None and self.payer.opened is not None:
                    self.stakes.save(self.data.stakes)

    @property
    def node(self) -> Node:
        """The node underneath. Raises ``RuntimeError`` outside :meth:`run`."""
        if self._node is None or self._tasks is None:
            raise RuntimeError(_OUTSIDE)
        return self._node

    @property
    def running(self) -> bool:
        """Whether tasks can be started now."""
        return self._tasks is not None

    @property
    def tasks(self) -> trio.Nursery:
        """Tasks that live as long as the client. Raises ``RuntimeError`` outside :meth:`run`."""
        if self._tasks is None:
            raise RuntimeError(_OUTSIDE)
        return self._tasks

    def now(self) -> int:
        """Wall clock, Unix seconds."""
        return int(self.node.wall())

    def tell(self, event: str, fields: dict[str, object]) -> None:
        """Tell who listens to the work that runs; where nobody does, the listener of this client's events."""
        listener = _LISTENING.get()
        (self.on_event if listener is None or listener.on_event is None else listener.on_event)(event, fields)

    @contextmanager
    def told_to(self, on_event: Event) -> Iterator[None]:
        """Tell events of what is done in the block, by this task and those that it starts, to ``on_event``.

        A session that is opened in it may outlive it; what happens to that later is told to this client's
        listener again.
        """
        listener = _Listener(on_event)
        token = _LISTENING.set(listener)
        try:
            yield
        finally:
            _LISTENING.reset(token)
            listener.on_event = None

    def make_node(self) -> Node:
        """A node that dials only, with a peer key that is never written down."""
        running = self.data.running_node()
        self.local = nearest_first(running.multiaddrs) if running is not None else ()
        self._networks = running.networks if running is not None else ()
        self.browses = self.discovers and self.config.mdns and not self.local
        return Node(
            NodeSetup(
                key=PeerKey.generate(),
                dht="client" if self.discovers else "off",
                gossip=False,
                keep_connected=False,
                mdns="browse" if self.browses else "off",
                stakes=self.stakes,
                limits=self.limits,
            )
        )

    # ---- paying

    @property
    def pays(self) -> bool:
        """Whether a chain is configured."""
        return bool(self.config.chain or self.data.chain.exists())

    def payable(self, advert: Advert, offer: Offer) -> str:
        """Why this client can't pay an offer; "" where it can, or the offer is free."""
        return why_not_free(advert, offer) if self.payer is None else self.payer.payable(advert, offer)

    def stake_of(self, advert: Advert) -> int:
        """What a host has at stake, in FAB's smallest unit; 0 where that isn't known here."""
        return 0 if self.stakes is None else self.stakes.stake_of(advert)

    def purchase(self, session: SessionId) -> SavedSession | None:
        """What is to be kept of a session that this client pays for; None for a free one."""
        return self.payer.purchase(session) if self.payer is not None else None

    def _configured_payer(self) -> Payer | None:
        from p2pnode.payments.books import stakes_of
        from p2pnode.payments.payer import payer_of

        self.stakes = stakes_of(self.config)

        def on_sign(words: str, fields: Mapping[str, object]) -> None:
            self.tell("signing", {"words": words, **fields})

        def on_wait(chain: str) -> None:
            self.tell("chain.waiting", {"chain": chain})

        return payer_of(
            self.config,
            wall=time.time,
            draw=secrets.token_bytes,
            on_sign=on_sign,
            on_wait=on_wait,
            stakes=self.stakes,
        )


@asynccontextmanager
async def _independent_tasks() -> AsyncIterator[trio.Nursery]:
    """A nursery that does not end with a cancelled caller, but with the block, and then at once.

    Before the block ends, what runs there must be ended in order: an answer that was interrupted would
    neither be written down nor paid for.
    """
    async with trio.open_nursery() as outer:
        tasks = await outer.start(_hold_tasks)
        try:
            yield tasks
        finally:
            tasks.cancel_scope.cancel()


async def _hold_tasks(*, task_status: trio.TaskStatus[trio.Nursery]) -> None:
    async with trio.open_nursery() as tasks:
        tasks.cancel_scope.shield = True
        task_status.started(tasks)
        await trio.sleep_forever()
