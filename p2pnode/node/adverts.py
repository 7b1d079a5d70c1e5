"""Adverts on a node: the gossip topics, the questions of peers, and this host's own advert.

Owns the book. A live advert of our own peer id that we did not sign stops the node: someone runs a
copy of our identity.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

import structlog
import trio

from p2pnode.bounded import BoundedMap, TokenBucket
from p2pnode.errors import ClockError, ConfigError, ProtocolError, RemoteError, UnreachableError
from p2pnode.ids import ModelId, PeerId
from p2pnode.limits import Limits
from p2pnode.net.network import Network
from p2pnode.net.stream import Stream
from p2pnode.node.driver import MessageChannel
from p2pnode.node.keys import PeerKey
from p2pnode.protocols.adverts.book import Book
from p2pnode.protocols.adverts.exchange import (
    Directory,
    Population,
    Publish,
    Publisher,
    PublisherCommand,
    Standing,
    Update,
    Withdraw,
)
from p2pnode.protocols.adverts.messages import (
    CODEC,
    PROTOCOL,
    Advert,
    Adverts,
    GetAdvert,
    SampleAdverts,
    SignedAdvert,
    topic_of,
)
from p2pnode.protocols.adverts.signing import CLOCK_SKEW_S, parse
from p2pnode.protocols.events import (
    CancelTimer,
    Command,
    Effect,
    Emit,
    Event,
    Received,
    Send,
    SetTimer,
    TimerFired,
)
from p2pnode.protocols.wire import encode
from p2pnode.words import span

log = structlog.get_logger()
_QUESTIONS_PER_STREAM: Final = 4
_QUESTIONS_PER_S: Final = 8.0
_QUESTIONS_BURST: Final = 64.0
"""Of one peer. A sample may walk the whole book and be answered with 32 kB."""
_ASKERS_MAX: Final = 1024
_SWEEP_S: Final = 5.0
_COMMANDS: Final = 32


class AdvertService:
    """The node's view of who serves what."""

    def __init__(
        self,
        network: Network,
        key: PeerKey,
        *,
        limits: Limits,
        instance: bytes,
        wall: Callable[[], float],
        draw: Callable[[], float],
        privileged: Callable[[PeerId], bool],
    ) -> None:
        self._network, self._key, self._limits = network, key, limits
        self._instance, self._wall = instance, wall
        self.wall = wall
        self._started_wall = wall()
        self.book = Book(size_max=limits.book_max, privileged=privileged)
        self.publisher = Publisher(peer=key.peer_id, instance=instance, sign=key.sign, wall=wall, draw=draw)
        self._directory = Directory(self.book, peer=key.peer_id, own=self._own, wall=wall)
        self._commands, self._inbox = trio.open_memory_channel[PublisherCommand](_COMMANDS)
        self._topics: set[ModelId] = set()
        self._duplicate = trio.Event()
        self.served: Counter[str] = Counter()
        self._askers: BoundedMap[PeerId, TokenBucket] = BoundedMap(_ASKERS_MAX)
        network.serve(PROTOCOL, self._serve)

    # ---- what the roles use

    async def update(self, standing: Standing) -> None:
        """This host's standing changed."""
        await self._commands.send(Update(standing))

    async def withdraw(self) -> None:
        """Tell the network that this host is gone."""
        await self._perform(self.publisher.handle(Command(Withdraw()), trio.current_time()))

    async def join(self, model: ModelId, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Follow the topic of a model until cancelled; started when subscribed."""
        subscription = await self._network.subscribe(topic_of(model), self._validate)
        self._topics.add(model)
        try:
            task_status.started()
            async for _sender, _data in subscription:
                pass  # the validator has put it into the book already
        finally:
            self._topics.discard(model)
            with trio.move_on_after(self._limits.close_deadline_s, shield=True):
                await subscription.aclose()

    async def fetch(self, peer: PeerId, subject: PeerId | None = None) -> Advert | None:
        """A peer's current advert, asked of itself (or of ``peer`` about ``subject``) and verified.

        Raises ``UnreachableError``, ``ProtocolError``, or ``ClockError`` where the peer's own advert shows
        that its clock and ours differ too much; the caller sets the deadline.
        """
        wanted = subject or peer
        answer = await self._ask(peer, GetAdvert(peer=wanted))
        for signed in answer.adverts:
            verdict, advert = self._take(signed, peer)
            if advert is not None and verdict in ("accepted", "stale") and advert.peer == wanted:
                held = self.book.get(wanted, self._wall())
                return held.advert if held is not None else None
            if wanted == peer and verdict in ("expired", "future"):
                self._check_clock(signed, peer)
        return None

    def _check_clock(self, signed: SignedAdvert, peer: PeerId) -> None:
        """Raise ``ClockError`` if what a peer gives as its current advert is dated by another clock."""
        advert = parse(signed)
        offset_s = advert.clock_offset_s(self._wall())
        if advert.peer == peer and not advert.withdrawn and abs(offset_s) > CLOCK_SKEW_S:
            way = "ahead of" if offset_s > 0 else "behind"
            msg = (
                f"that host's clock is about {span(abs(offset_s))} {way} this machine's: "
                "one of the two is wrong (`p2pnode doctor` compares this one with others)"
            )
            raise ClockError(msg, offset_s=offset_s)

    async def sample(self, peer: PeerId, model: ModelId | None = None) -> list[Advert]:
        """Live adverts another peer knows of, each verified: peer exchange."""
        answer = await self._ask(peer, SampleAdverts(model=model))
        taken = []
        for signed in answer.adverts:
            verdict, advert = self._take(signed, peer)
            if advert is not None and verdict in ("accepted", "stale") and advert.peer != self._key.peer_id:
                taken.append(advert)
        return taken

    # ---- running

    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Publish, refresh and expire until cancelled. Raises ``ConfigError`` on a duplicate identity."""
        task_status.started()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._publish_loop)
            nursery.start_soon(self._sweep_loop)
            await self._duplicate.wait()
            msg = (
                f"another node speaks as {self._key.peer_id}: a data dir was copied. Keep one of "
                "them running; start the other with a data dir of its own: --data-dir FOLDER (the keys in "
                "the copy need not be deleted)"
            )
            raise ConfigError(msg)

    async def _publish_loop(self) -> None:
        timers: dict[str, float] = {}
        while True:
            event: Event | None = None
            with trio.move_on_at(min(timers.values(), default=math.inf)):
                event = Command(await self._inbox.receive())
            if event is None:
                timers.clear()
                count = max((self.book.population(self._wall(), m) for m in self._topics), default=0)
                self.publisher.handle(Command(Population(count)), trio.current_time())
                event = TimerFired("refresh")
            try:
                effects = self.publisher.handle(event, trio.current_time())
            except ValueError as error:
                raise ConfigError(str(error)) from error
            for effect in effects:
                match effect:
                    case SetTimer(key=key, at=at):
                        timers[key] = at
                    case CancelTimer(key=key):
                        timers.pop(key, None)
                    case _:
                        pass
            await self._perform(effects)

    async def _perform(self, effects: Any) -> None:
        effect: Effect
        for effect in effects:
            if isinstance(effect, Emit) and isinstance(effect.value, Publish):
                await self._gossip(effect.value)

    async def _gossip(self, publish: Publish) -> None:
        data = encode(publish.signed)
        for offer in publish.advert.offers:
            if offer.model in self._topics:
                await self._network.publish(topic_of(offer.model), data)

    async def _sweep_loop(self) -> None:
        while True:
            await trio.sleep(_SWEEP_S)
            for peer in self.book.expire(self._wall()):
                log.debug("advert.expired", peer=peer)

    def _own(self, now: float) -> SignedAdvert | None:
        publish = self.publisher.renew(now)
        return publish.signed if publish is not None else None

    # ---- what comes in

    def _validate(self, sender: PeerId, data: bytes) -> bool:
        verdict, advert = self.book.offer_gossip(data, sender, self._wall())
        if advert is not None and verdict == "accepted":
            self._check_duplicate(advert)
        if verdict == "stale" and advert is not None:
            # What we learned by asking must still reach those who only listen.
            held = self.book.get(advert.peer, self._wall())
            return held is not None and encode(held.signed) == data
        return verdict == "accepted"

    def _take(self, signed: SignedAdvert, source: PeerId) -> tuple[str, Advert | None]:
        verdict, advert = self.book.offer(signed, source, self._wall(), asked=True)
        if advert is not None and verdict == "accepted":
            self._check_duplicate(advert)
        return verdict, advert

    def _check_duplicate(self, advert: Advert) -> None:
        if advert.peer != self._key.peer_id:
            return
        self.book.forget(advert.peer)
        # What an earlier start of ours signed may live on for its lifetime: only newer ones count.
        # Its clock may have been ahead then: by more than others take, nobody has it.
        newer = advert.issued_at > self._started_wall + CLOCK_SKEW_S
        if advert.instance != self._instance and newer:
            self._duplicate.set()

    async def _ask(self, peer: PeerId, question: GetAdvert | SampleAdverts) -> Adverts:
        stream = await self._network.open_stream(peer, PROTOCOL)
        try:
            channel = MessageChannel(stream, CODEC)
            await channel.send([question])
            answer = await channel.receive()
        except BaseException:
            await stream.reset()
            raise
        await stream.aclose()
        if not isinstance(answer, Adverts):
            msg = "the peer answered an advert question with something else"
            raise ProtocolError(msg)
        return answer

    async def _serve(self, stream: Stream) -> None:
        channel = MessageChannel(stream, CODEC)
        with trio.move_on_after(self._limits.request_deadline_s):
            for _ in range(_QUESTIONS_PER_STREAM):
                try:
                    question = await channel.receive()
                except UnreachableError:
                    return
                if question is None:
                    break
                if not self._admits(stream.peer):
                    break
                event = Received(stream.peer, 0, question)
                answers = [
                    effect.message
                    for effect in self._directory.handle(event, trio.current_time())
                    if isinstance(effect, Send)
                ]
                self.served[type(question).__name__] += 1
                await channel.send(answers)
            await stream.aclose()
            return
        await stream.reset()

    def _admits(self, peer: PeerId) -> bool:
        """May this peer ask one more question? Who asks too fast gets the stream's end for an answer."""
        bucket = self._askers.use(peer, lambda: TokenBucket(_QUESTIONS_PER_S, _QUESTIONS_BURST))
        return bucket.take(trio.current_time())


def failure_of(error: RemoteError) -> str:
    """One line for ``hosts --why``."""
    return str(error).splitlines()[0][:200]
