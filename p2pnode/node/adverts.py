"""Adverts on a node: its gossip topics, its questions to peers and theirs, and this host's own advert.

It acts on what :class:`AdvertExchange` decides. A live advert of our own peer id that we did not sign stops
the node: somebody runs a copy of our identity.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import structlog
import trio

from p2pnode.bounded import BoundedMap, TokenBucket
from p2pnode.errors import ConfigError, ProtocolError, RemoteError, UnreachableError
from p2pnode.ids import ModelId, PeerId
from p2pnode.limits import Limits
from p2pnode.net.network import Network
from p2pnode.net.stream import Stream
from p2pnode.node.advert_exchange import (
    ASKERS_MAX,
    QUESTIONS_BURST,
    QUESTIONS_PER_S,
    AdvertExchange,
    Answered,
    ExchangeEmission,
    Expired,
)
from p2pnode.node.driver import Driver, MessageChannel, ask_once
from p2pnode.node.keys import PeerKey
from p2pnode.protocols.adverts.book import Book
from p2pnode.protocols.adverts.exchange import Announcement, Publish, Publisher, Update, Withdraw
from p2pnode.protocols.adverts.messages import (
    CODEC,
    PROTOCOL,
    Advert,
    Adverts,
    GetAdvert,
    GetSheet,
    SampleAdverts,
    Sheet,
    SheetAnswer,
    topic_of,
)
from p2pnode.protocols.adverts.signatures import read_sheet
from p2pnode.protocols.events import Command, Emit
from p2pnode.protocols.gossipsub.commands import Verdict
from p2pnode.protocols.wire import encode
from p2pnode.shares import Origin
from p2pnode.single_flight import SingleFlight

if TYPE_CHECKING:
    from p2pnode.node.staked_hosts import StakedHosts

log = structlog.get_logger()
Answer = TypeVar("Answer", Adverts, SheetAnswer)
ANSWERS_MAX: Final = 64
"""Answers of peers that are kept for a moment: 32 KiB each at most."""
_ANSWER_GOOD_S: Final = 2.0
SHEETS_MAX: Final = 128
"""Sheets of other hosts that are kept: 16 KiB each at most."""


class AdvertService:
    """What a node knows of who serves which model, and what it says of itself."""

    def __init__(
        self,
        network: Network,
        key: PeerKey,
        *,
        limits: Limits,
        starts: Sequence[bytes],
        wall: Callable[[], float],
        draw: Callable[[], float],
        privileged: Callable[[PeerId], bool],
        stakes: StakedHosts | None = None,
    ) -> None:
        """``starts`` are the instances of the node's starts; the last is this one's. ``stakes`` hears of each
        advert that is believed."""
        self._network, self._limits = network, limits
        self.wall = wall
        self.book = Book(
            size_max=limits.book_max,
            privileged=privileged,
            staked=(lambda _peer: False) if stakes is None else stakes.is_staked,
            believed=lambda advert, _before: stakes.heard(advert) if stakes is not None else None,
            origin_of=self._seen_at,
            draw=lambda count: int(draw() * count),
        )
        self.publisher = Publisher(peer=key.peer_id, instance=starts[-1], sign=key.sign, wall=wall, draw=draw)
        self._exchange = AdvertExchange(
            self.book,
            self.publisher,
            peer=key.peer_id,
            starts=starts,
            wall=wall,
            origin_of=self._seen_at,
        )
        self._driver = Driver(
            self._exchange, on_emit=self._emitted, write_deadline_s=limits.request_deadline_s
        )
        self.served = self._exchange.served
        self._sheets: BoundedMap[bytes, Sheet] = BoundedMap(SHEETS_MAX)
        """By their hashes."""
        self._fetches: SingleFlight[tuple[PeerId, PeerId], Advert | None] = SingleFlight()
        self._asked: BoundedMap[PeerId, TokenBucket] = BoundedMap(ASKERS_MAX)
        """How often each peer may be asked: half as often as it has to answer one peer."""
        self._last_answers: BoundedMap[tuple[PeerId, object], tuple[float, object]] = BoundedMap(ANSWERS_MAX)
        """What came, and when, by whom and what was asked."""
        self._unpublished: Publish | None = None
        """The newest advert of this host that gossip was not given yet: an older one would tell nobody
        anything."""
        self._to_publish = trio.Event()
        self._copied = trio.Event()
        network.serve(PROTOCOL, self._serve)

    def _seen_at(self, peer: PeerId) -> Origin | None:
        """Where a peer is connected from, or was reached; None where we have never met it."""
        met = self._network.is_connected(peer) or self._network.was_reached(peer)
        return self._network.origin_of(peer) if met else None

    # ---- what the roles use

    async def update(self, announcement: Announcement) -> None:
        """Tell what this host offers now; it is published where it differs from before."""
        await self._driver.command(Update(announcement))

    async def withdraw(self) -> None:
        """Tell the network that this host is gone."""
        # Not through the driver: a copy of our identity may have ended that, and the withdrawal still counts.
        for effect in self._exchange.handle(Command(Withdraw()), trio.current_time()):
            if isinstance(effect, Emit) and isinstance(effect.value, Publish):
                self._unpublished = None
                await self._publish(effect.value)

    async def join(self, model: ModelId, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Follow the topic of a model until cancelled; started when subscribed."""
        subscription = await self._network.subscribe(topic_of(model), partial(self._judge, model))
        self._exchange.topics.add(model)
        try:
            task_status.started()
            async for _sender, _data in subscription:
                pass  # it was taken when it was asked whether to forward it
        finally:
            self._exchange.topics.discard(model)
            with trio.move_on_after(self._limits.close_deadline_s, shield=True):
                await subscription.aclose()

    async def fetch(self, peer: PeerId, subject: PeerId | None = None) -> Advert | None:
        """A peer's current advert, asked of itself (or of ``peer`` about ``subject``) and verified.

        What many want at once is asked once. What is asked often may be up to ``_ANSWER_GOOD_S`` old.

        Raises ``UnreachableError``, ``ProtocolError``, or ``ClockError`` where the peer's own advert shows
        that its clock and ours differ too much; the caller sets the deadline.
        """
        wanted = subject or peer

        async def ask() -> Advert | None:
            answer = await self._ask(peer, GetAdvert(peer=wanted), Adverts)
            found = self._exchange.fetched(answer.adverts, peer, wanted)
            self._check_copied()
            return found

        return await self._fetches.do((peer, wanted), ask)

    async def sample(self, peer: PeerId, model: ModelId | None = None, *, caps: int = 0) -> list[Advert]:
        """Live adverts that another peer knows, each verified: this is the peer exchange.

        ``caps``: only of hosts that offer the model with all of these capabilities.
        """
        answer = await self._ask(peer, SampleAdverts(model=model, caps=caps), Adverts)
        taken = self._exchange.sampled(answer.adverts, peer)
        self._check_copied()
        return taken

    async def sheet(self, advert: Advert) -> Sheet | None:
        """What a host says at length, asked of the host itself where it isn't known yet.

        None where the host has no sheet, or another one by now: its newest advert names that. Raises
        ``UnreachableError``, and ``ProtocolError`` for a sheet that is not the one of this advert; the caller
        sets the deadline.
        """
        if advert.sheet is None:
            return None
        known = self._sheets.get(advert.sheet)
        if known is None:
            answer = await self._ask(advert.peer, GetSheet(hash=advert.sheet), SheetAnswer)
            if not answer.body:
                return None
            known = read_sheet(answer.body, advert)
        self._sheets.put(advert.sheet, known)
        return known

    # ---- running

    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Publish, refresh and expire until cancelled.

        Raises ``ConfigError`` where somebody else uses this identity, or too much is offered for an advert.
        """
        task_status.started()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._drive)
            nursery.start_soon(self._publish_newest)
            await self._copied.wait()
            msg = (
                f"another node speaks as {self._network.peer_id}: a data dir was copied. Keep one of "
                "them running; start the other with a data dir of its own: --data-dir FOLDER (the keys in "
                "the copy need not be deleted)"
            )
            raise ConfigError(msg)

    async def _drive(self) -> None:
        try:
            await self._driver.run(self._exchange.start(trio.current_time()))
        except ValueError as error:
            raise ConfigError(str(error)) from error

    async def _emitted(self, value: ExchangeEmission) -> None:
        match value:
            case Publish():
                # In another task: peers that take gossip slowly must not hold up the answers to others.
                self._unpublished = value
                self._to_publish.set()
            case Answered(stream=ref):
                self._driver.finish(ref)
            case Expired(peers=peers):
                for peer in peers:
                    log.debug("advert.expired", peer=peer)

    async def _publish_newest(self) -> None:
        while True:
            await self._to_publish.wait()
            self._to_publish = trio.Event()
            publish, self._unpublished = self._unpublished, None
            if publish is not None:
                await self._publish(publish)

    async def _publish(self, publish: Publish) -> None:
        data = encode(publish.signed)
        for model in self._exchange.topics_of(publish.advert):
            await self._network.publish(topic_of(model), data)

    async def _serve(self, stream: Stream) -> None:
        with trio.move_on_after(self._limits.request_deadline_s):
            await self._driver.serve(MessageChannel(stream, CODEC))
            await stream.aclose()
            return
        await stream.reset()

    def _judge(self, model: ModelId, author: PeerId, data: bytes) -> Verdict:
        verdict = self._exchange.judge(data, author, model)
        self._check_copied()
        return verdict

    def _check_copied(self) -> None:
        if self._exchange.is_copied:
            self._copied.set()

    async def _ask(
        self, peer: PeerId, question: GetAdvert | SampleAdverts | GetSheet, kind: type[Answer]
    ) -> Answer:
        said = await self._said(peer, question)
        if said is None:
            msg = f"{peer} gave no answer: it is asked too much, or about to end"
            raise UnreachableError(msg)
        if not isinstance(said, kind):
            msg = "the peer answered an advert question with something else"
            raise ProtocolError(msg)
        return said

    async def _said(self, peer: PeerId, question: GetAdvert | SampleAdverts | GetSheet) -> Any | None:
        """Ask a peer, or take what it said a moment ago where it was asked often: it answers so often only.

        Many lookups at once ask the same, as while one of a model's hosts is dead.
        """
        bucket = self._asked.use(peer, lambda: TokenBucket(QUESTIONS_PER_S / 2, QUESTIONS_BURST / 2))
        while not bucket.take(now := trio.current_time()):
            last = self._last_answers.get((peer, question))
            if last is not None and now < last[0] + _ANSWER_GOOD_S:
                return last[1]
            await trio.sleep(bucket.wait_s(now))
        said = await ask_once(self._network, peer, PROTOCOL, CODEC, [question])
        if said is not None:
            self._last_answers.put((peer, question), (trio.current_time(), said))
        return said


def failure_of(error: RemoteError) -> str:
    """The error's first line, for ``hosts --why``."""
    return str(error).splitlines()[0][:200]
