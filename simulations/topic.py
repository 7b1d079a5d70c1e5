"""The hosts of one model and their adverts alone: how often they publish, and what books keep of it.

Of each host the ``Publisher``, the ``AdvertExchange`` and the ``Book`` are the node's own, and so is every
decision: when an advert goes out, whether a reader takes it, who keeps a place. How an advert travels is
modelled: some time after it was published it is at the hosts that are connected to its own, and at
``listeners`` that take all that the topic carries. So 100,000 hosts fit in a process. A listener is offered
everything, whatever the readers before it would have passed on: the most that it can have to deal with.

An attacker's ids are no nodes here. They are adverts with valid signatures of ids that nobody is connected
to, from made-up addresses. ``Topic`` are the parameters.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from p2pnode.ids import ModelId, PeerId
from p2pnode.protocols.adverts.book import TTL_MAX_S
from p2pnode.protocols.adverts.exchange import Announcement, Heard
from p2pnode.protocols.adverts.messages import Address, Advert, Load, Offer
from p2pnode.protocols.adverts.signatures import seal
from p2pnode.protocols.crypto import peer_id_of
from p2pnode.protocols.events import Command
from p2pnode.protocols.gossipsub.commands import Validator
from p2pnode.protocols.wire import encode
from p2pnode.simulations.keys import Keys
from p2pnode.simulations.market.adverts import NodeAdverts, bound, shared_checks
from p2pnode.simulations.market.ledger import EPOCH_S
from p2pnode.simulations.parameters import require_not_negative, require_positive, require_shares
from p2pnode.simulations.recorder import Recorder
from p2pnode.simulations.signatures import sign_with
from p2pnode.simulations.world import Link, Node, World

_SAMPLE_S: Final = 5.0
_SAMPLES: Final = 240
"""At most, of a run."""
_SYBIL_SHARE_MAX: Final = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Topic:
    """The parameters. All nodes of the scenario are honest hosts of one model."""

    dials: int = 8
    """Hosts that each host has dialled, drawn from all: these count as its population."""
    listeners: int = 20
    """Hosts whose books take all adverts of the topic, drawn from all. Those of the others take the adverts
    of connected hosts, which is all that a host's own publishing depends on."""
    spread_s: float = 0.5
    """How long an advert takes to those who take it."""
    start_s: float = 60.0
    """Hosts start within so many seconds, evenly."""
    period_s: float = 0.0
    """They begin with this mean time between two adverts, as where a topic has been for long; 0: the node's
    own rule alone."""
    book_max: int = 4096
    sybil_share: float = 0.0
    """Of all ids that advertise: so many are an attacker's."""
    sybil_at_s: float = 0.0
    """When these begin."""
    sybil_until_s: float = 0.0
    """When these fall silent; 0: never."""
    sybil_interval_s: float = 1.0
    """Each of them publishes so often. Readers ignore an id's adverts that are less than a second apart."""

    def __post_init__(self) -> None:
        require_positive(self, "dials", "listeners", "book_max", "sybil_interval_s")
        require_not_negative(self, "spread_s", "start_s", "period_s", "sybil_at_s", "sybil_until_s")
        require_shares(self, "sybil_share")
        if self.sybil_share > _SYBIL_SHARE_MAX:
            msg = f"sybil_share is {self.sybil_share}: it must not be above {_SYBIL_SHARE_MAX}"
            raise ValueError(msg)
        if 0 < self.sybil_until_s <= self.sybil_at_s:
            msg = f"sybil_until_s is {self.sybil_until_s}: it must be later than sybil_at_s"
            raise ValueError(msg)

    def sybils(self, nodes: int) -> int:
        """How many ids an attacker has beside so many honest ones."""
        return round(nodes * self.sybil_share / (1 - self.sybil_share))


class TopicService:
    """The topic of a world; a ``Service`` of it. Add the nodes, then :meth:`begin`."""

    def __init__(self, world: World, parameters: Topic, recorder: Recorder | None = None) -> None:
        self.world, self.parameters, self.recorder = world, parameters, recorder
        self.model = ModelId(hashlib.sha256(b"model 0").digest())
        self.adverts: dict[PeerId, NodeAdverts] = {}
        """Of the hosts that are up."""
        self.published: dict[int, int] = {}
        """Adverts by number of node."""
        self._told: Counter[str] = Counter()
        """Since the last look: adverts of hosts and of an attacker, and how many all listeners took."""
        self._keys = Keys(world.draws.seed)
        self._checks = shared_checks(self._keys)
        self._judges: dict[PeerId, Validator] = {}
        self._starts: dict[int, int] = {}
        self._listeners: dict[PeerId, int] = {}
        self._heard: list[Counter[ModelId]] = []
        """What each of them heard."""
        self._sample_s = _SAMPLE_S
        self._start_draw = world.draws("topic starts").random
        world.services.append(self)

    def begin(self, nodes: Sequence[Node], duration_s: float) -> None:
        """Choose who listens, and let time be measured; the attacker comes when it is time."""
        world, parameters = self.world, self.parameters
        draw = world.draws("listeners")
        chosen = draw.sample(nodes, min(len(nodes), parameters.listeners))
        self._listeners = {node.peer: place for place, node in enumerate(chosen)}
        self._heard = [Counter() for _ in chosen]
        self._sample_s = max(_SAMPLE_S, duration_s / _SAMPLES)
        world.loop.after(self._sample_s, self._look)
        spread = world.draws("sybils")
        for number in range(parameters.sybils(len(nodes))):
            sybil = Sybil(self, number)
            world.loop.at(parameters.sybil_at_s + spread.random() * parameters.sybil_interval_s, sybil.tell)

    def listens(self, node: Node) -> bool:
        """Whether it is one whose book is measured: these neither leave nor fail."""
        return node.peer in self._listeners

    # ---- a service of the world

    def started(self, node: Node) -> None:
        """It has its machines at some time of the start; later, when it comes back, at once."""
        number = node.number
        self._starts[number] = start = self._starts.get(number, 0) + 1
        wait_s = self._start_draw() * self.parameters.start_s if start == 1 else 0.0
        self.world.loop.after(wait_s, self._start, node, start)

    def stopped(self, node: Node) -> None:
        """It is gone without a word: its advert stays in books until it is over."""
        self.adverts.pop(node.peer, None)
        self._judges.pop(node.peer, None)

    def connected(self, link: Link) -> None:
        """Nothing follows from a connection alone."""

    def disconnected(self, link: Link) -> None:
        """Nothing follows from a lost one."""

    def _start(self, node: Node, start: int) -> None:
        if not node.is_up or self._starts[node.number] != start:
            return
        adverts = self.adverts[node.peer] = NodeAdverts(
            self.world,
            node,
            self._checks,
            gossip=self,
            on_believed=self._believed,
            book_max=self.parameters.book_max,
            start=start,
            sweeps=node.peer in self._listeners,
        )
        # Who doesn't listen hears as much of the topic as a listener does.
        adverts.exchange.heard = self._heard[self._listeners.get(node.peer, node.number % len(self._heard))]
        adverts.follow(self.model)
        if self.parameters.period_s:
            adverts.publisher.handle(Command(Heard(period_s=self.parameters.period_s)), self.world.now)
        adverts.update(self.announcement(node.peer, node.ip))

    def announcement(self, peer: PeerId, ip: str) -> Announcement:
        """What a host says of itself: it has one model and one address, and is free."""
        wallet = self._keys.address(f"host {peer}")
        return Announcement(
            binding=bound(self._keys, peer, wallet, wallet),
            addresses=(Address(multiaddr=f"/ip4/{ip}/tcp/4001"),),
            offers=(Offer(model=self.model, n_ctx=8192),),
            load=Load(slots=4),
        )

    def _believed(self, node: Node, _before: Advert | None, advert: Advert) -> None:
        if self.recorder is not None and node.peer in self._listeners:
            self.recorder.event(self.world.now, node.number, "advert", advert.peer, advert.seq)

    # ---- how adverts travel

    def join(self, node: Node, _topic: str, judge: Validator) -> None:
        """A node takes part, and says what becomes of an advert that came."""
        self._judges[node.peer] = judge

    def publish(self, node: Node, _topic: str, data: bytes) -> None:
        """A host's advert is on its way."""
        self.published[node.number] = self.published.get(node.number, 0) + 1
        self._told["hosts"] += 1
        near = [peer for peer in node.links if peer not in self._listeners]
        self.world.loop.after(self.parameters.spread_s, self._arrived, node.peer, data, near)

    def publish_made_up(self, author: PeerId, data: bytes) -> None:
        """An advert of an attacker's id is on its way: nobody is connected to that."""
        self._told["sybils"] += 1
        self.world.loop.after(self.parameters.spread_s, self._arrived, author, data, ())

    def _arrived(self, author: PeerId, data: bytes, near: Sequence[PeerId]) -> None:
        judges = self._judges
        for peer in near:
            if (adverts := self.adverts.get(peer)) is not None:
                adverts.book.offer_gossip(data, author, adverts.wall())
        for peer in self._listeners:
            judge = judges.get(peer)
            if judge is not None and peer != author and judge(author, data).kind == "accept":
                self._told["taken"] += 1

    # ---- what is measured

    def _look(self) -> None:
        """Tell how it stands, and look again."""
        world, recorder = self.world, self.recorder
        world.loop.after(self._sample_s, self._look)
        books = [adverts.book for peer in self._listeners if (adverts := self.adverts.get(peer)) is not None]
        told, self._told = self._told, Counter()
        if recorder is None or not books:
            return
        wall, up = EPOCH_S + world.now, self.adverts
        honest, all_live = [], []
        for book in books:
            peers = [entry.advert.peer for entry in book.live(wall, self.model)]
            all_live.append(len(peers))
            honest.append(sum(peer in up for peer in peers))
        others = max(1, len(up) - 1)
        samples = {
            "adverts_published_per_s": told["hosts"] / self._sample_s,
            "adverts_made_up_per_s": told["sybils"] / self._sample_s,
            "adverts_taken_per_s": told["taken"] / self._sample_s / len(books),
            "hosts_in_book_share": math.fsum(honest) / len(books) / others,
            "hosts_in_book_share_least": min(honest) / others,
            "book_honest_share": math.fsum(honest) / max(1, sum(all_live)),
            "book_entries": sum(all_live) / len(books),
        }
        for name, value in samples.items():
            if name != "adverts_made_up_per_s" or self.parameters.sybil_share:
                recorder.sample(world.now, name, value)

    def columns_of(self, node: Node) -> dict[str, Any]:
        """What the table ``nodes`` tells of a host."""
        adverts = self.adverts.get(node.peer)
        return {
            "role": "host",
            "published": self.published.get(node.number, 0),
            "book": len(adverts.book) if adverts is not None else 0,
        }


class Sybil:
    """One of an attacker's ids: it says again and again that it is a host, for as long as it may."""

    def __init__(self, topic: TopicService, number: int) -> None:
        self._topic = topic
        key = hashlib.sha256(f"{topic.world.draws.seed}/sybil {number}".encode()).digest()
        self._sign, self._peer = sign_with(key), peer_id_of(key)
        made_up = f"{60 + number // 62500}.{number // 250 % 250}.{number % 250}.7"
        said = topic.announcement(self._peer, made_up)
        self._advert = Advert(
            peer=self._peer,
            instance=bytes(8),
            seq=0,
            issued_at=0,
            expires_at=0,
            binding=said.binding,
            addresses=said.addresses,
            offers=said.offers,
            load=said.load,
        )

    def tell(self) -> None:
        """Publish a new advert, and again after the interval, until the attack is over."""
        topic = self._topic
        world, interval_s = topic.world, topic.parameters.sybil_interval_s
        if 0 < topic.parameters.sybil_until_s <= world.now:
            return
        wall = EPOCH_S + world.now
        issued_at = int(wall)
        advert = replace(
            self._advert, seq=int(wall * 1000), issued_at=issued_at, expires_at=issued_at + TTL_MAX_S
        )
        topic.publish_made_up(self._peer, encode(seal(advert, self._sign)))
        world.loop.after(interval_s, self.tell)
