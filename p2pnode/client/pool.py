"""Sessions of one client: opened, paid for, kept between turns, and the next host kept ready.

It knows neither answers nor conversations: who asks gets a session that can take a turn.
"""

from __future__ import annotations

from collections.abc import Sequence

import trio

from p2pnode.client.debts import Debts
from p2pnode.client.ranking import Candidate, is_priced
from p2pnode.client.runtime import Runtime
from p2pnode.client.search import HostSearch
from p2pnode.client.session import Session
from p2pnode.client.standby import Standby
from p2pnode.errors import P2PNodeError, UnreachableError
from p2pnode.ids import ModelId, PeerId
from p2pnode.protocols.adverts.messages import Advert
from p2pnode.protocols.inference.commands import Ask


class SessionPool:
    """Of one client. At most one idle session with a host and a model."""

    def __init__(self, runtime: Runtime, debts: Debts) -> None:
        self._runtime, self._debts = runtime, debts
        self._free: dict[tuple[PeerId, ModelId], Session] = {}

    def peers(self, model: ModelId) -> Sequence[PeerId]:
        """With whom a session of this model is kept."""
        return [
            peer for (peer, served), session in self._free.items() if served == model and not session.over
        ]

    def close(self) -> None:
        """Say goodbye in all of them."""
        for session in self._free.values():
            session.close()

    async def wait_closed(self) -> None:
        """Until each goodbye was heard, or can't be."""
        for session in self._free.values():
            await session.wait_over()

    def kept(self, peer: PeerId, model: ModelId) -> Session | None:
        session = self._free.get((peer, model))
        return session if session is not None and not session.over else None

    async def open(self, candidate: Candidate, ask: Ask) -> Session:
        """An idle session with a host, kept from before or opened now, that can pay for a turn.

        Raises ``RemoteError``, and ``LocalError`` when this client can't or may not pay.
        """
        peer, model = candidate.advert.peer, candidate.offer.model
        tokens_out = ask.body.sampling.tokens_max
        kept = self._free.pop((peer, model), None)
        if kept is not None and not kept.over:
            if kept.covers(ask.input_max, tokens_out):
                kept.kept = True
                return kept
            kept.close()  # its deposit is nearly used up: the next one tops it up
        await self._reach(candidate.advert)
        purchase = None
        if self._runtime.payer is not None and is_priced(candidate.offer):
            purchase = await self._runtime.payer.buy(
                self._runtime.tasks,
                candidate.advert,
                candidate.offer,
                tokens_in=ask.input_max,
                tokens_out=tokens_out,
            )
        session = Session(
            self._runtime.node.network,
            peer,
            model,
            limits=self._runtime.limits,
            draw=self._runtime.node.draw,
            purchase=purchase,
            addresses=[address.multiaddr for address in candidate.advert.addresses],
        )
        outcome: list[P2PNodeError] = []
        opened = trio.Event()

        async def run() -> None:
            try:
                await session.run(on_open=opened.set)
            except P2PNodeError as error:
                outcome.append(error)
            finally:
                opened.set()

        self._runtime.tasks.start_soon(run)
        try:
            await opened.wait()
        except BaseException:
            session.close()
            raise
        if session.accept is None:
            raise outcome[0] if outcome else session.error()
        return session

    async def _reach(self, advert: Advert) -> None:
        """Be connected: a host that was found, and is gone, must not cost more than a moment, nor a fee."""
        patience_s = self._runtime.limits.reconnect_patience_s
        with trio.move_on_after(patience_s) as scope:
            await self._runtime.node.network.connect_peer(
                advert.peer, [each.multiaddr for each in advert.addresses]
            )
        if scope.cancelled_caught:
            msg = f"{advert.peer} is not connected any more, and did not answer within {patience_s:g} s"
            raise UnreachableError(msg)

    def keep_ready(self, search: HostSearch) -> trio.CancelScope:
        """Keep the next best host of a search ready until the scope is cancelled."""
        scope = trio.CancelScope()
        standby = Standby(
            search,
            contact=self._runtime.node.finder.contact,
            is_connected=self._runtime.node.network.is_connected,
            limits=self._runtime.limits,
        )

        async def run() -> None:
            with scope:
                await standby.run()

        self._runtime.tasks.start_soon(run)
        self._debts.pay_soon()
        return scope

    def release(self, session: Session) -> None:
        """Keep an idle session for the next turn with the same host."""
        self._debts.pay_soon()
        if session.over:
            return
        before = self._free.get((session.host, session.model))
        if before is not None and before is not session:
            before.close()
        self._free = {key: each for key, each in self._free.items() if not each.over}
        self._free[session.host, session.model] = session
