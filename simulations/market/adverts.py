"""Adverts in a simulated market: each node's ``Book``, ``Publisher`` and ``AdvertExchange``.

Every decision is theirs. What is the same for all nodes, how an advert parses and whether its signatures
hold, is found out once. A node that gossips follows the topics of its models; one that doesn't, a client
that comes for a question, asks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, Final, Protocol

from p2pnode.bounded import BoundedMap
from p2pnode.chain.ledger import Domains
from p2pnode.ids import ModelId, PeerId
from p2pnode.limits import DEFAULT_LIMITS
from p2pnode.node.advert_exchange import AdvertExchange
from p2pnode.protocols.adverts.book import Book
from p2pnode.protocols.adverts.exchange import Announcement, Publish, Publisher, Update, Withdraw
from p2pnode.protocols.adverts.messages import (
    Advert,
    Adverts,
    Binding,
    GetAdvert,
    SampleAdverts,
    SignedAdvert,
    topic_of,
)
from p2pnode.protocols.adverts.signatures import (
    ADVERT_TAG,
    AdvertChecks,
    BindingTerms,
    bind,
    binding_digest,
    decode_gossip,
)
from p2pnode.protocols.crypto import public_key_of
from p2pnode.protocols.events import Received, Send
from p2pnode.protocols.gossipsub.commands import Validator
from p2pnode.protocols.wire import decode_record, encode
from p2pnode.shares import Origin
from p2pnode.simulations.keys import Keys
from p2pnode.simulations.market.ledger import EPOCH_S
from p2pnode.simulations.signatures import check, sign_with
from p2pnode.simulations.world import Node, Shell, World

PROTOCOL: Final = "adverts"
_BINDING_S: Final = 20 * 86_400
_REMEMBERED: Final = 1 << 14


def _itself(binding: Binding) -> Binding:
    return binding


def shared_checks(keys: Keys) -> AdvertChecks:
    """The checks of all nodes of a run: each advert is decoded, parsed and verified once."""

    shared_binding = lru_cache(_REMEMBERED)(_itself)

    decoded: BoundedMap[bytes, SignedAdvert] = BoundedMap(_REMEMBERED)
    parsed: BoundedMap[bytes, Advert] = BoundedMap(_REMEMBERED)

    def decode(data: bytes) -> SignedAdvert:
        signed = decoded.get(data)
        if signed is None:
            signed = decode_gossip(data)
            decoded.put(data, signed)
        return signed

    # By bytes, whose hashes are known, and not by records, whose are found anew each time.
    def parse(signed: SignedAdvert) -> Advert:
        advert = parsed.get(signed.body)
        if advert is None:
            read = decode_record(Advert, signed.body)
            # One object for all adverts with an equal binding: books compare each one's with the last.
            advert = replace(read, binding=shared_binding(read.binding))
            parsed.put(signed.body, advert)
        return advert

    def verify(body: bytes, signature: bytes, peer: PeerId) -> bool:
        return check(public_key_of(peer), ADVERT_TAG + body, signature)

    def is_bound(peer: PeerId, binding: Binding) -> bool:
        terms = BindingTerms(
            receipt_key=binding.receipt_key,
            chain_id=binding.chain_id,
            node_registry=binding.node_registry,
            seq=binding.seq,
            expires_at=binding.expires_at,
        )
        return keys.recover(binding_digest(peer, terms), binding.signature) == binding.wallet

    verify_once = lru_cache(_REMEMBERED)(verify)
    return AdvertChecks(
        decode=decode,
        parse=parse,
        verify=lambda signed, advert: verify_once(signed.body, signed.signature, advert.peer),
        is_bound=lru_cache(_REMEMBERED)(is_bound),
    )


class Spread(Protocol):
    """What carries adverts from node to node, as ``GossipService`` does."""

    def join(self, node: Node, topic: str, validator: Validator, /) -> None:
        """The node takes part in a topic."""
        ...

    def publish(self, node: Node, topic: str, data: bytes, /) -> object:
        """Send an advert of the node's own."""
        ...


class NodeAdverts:
    """Adverts at one node, from a start to its end."""

    def __init__(
        self,
        world: World,
        node: Node,
        checks: AdvertChecks,
        *,
        gossip: Spread | None,
        on_believed: Callable[[Node, Advert | None, Advert], None],
        book_max: int = DEFAULT_LIMITS.book_max,
        start: int = 0,
        sweeps: bool = True,
    ) -> None:
        """Without ``sweeps`` adverts that are over stay in memory; nobody believes them any more."""
        self._world, self._node, self._gossip, self._on_believed = world, node, gossip, on_believed
        random = world.draws("adverts", node.number, start)
        self.book = Book(
            size_max=book_max,
            privileged=self._is_privileged,
            origin_of=self._seen_at,
            draw=lambda count: int(random.random() * count),
            checks=checks,
            believed=self._believed,
        )
        self.book_max = book_max
        instance = b"%08d" % (start % 10**8)
        self.publisher = Publisher(
            peer=node.peer,
            instance=instance,
            sign=sign_with(node.public_key),
            wall=self.wall,
            draw=random.random,
        )
        self.exchange = AdvertExchange(
            self.book,
            self.publisher,
            peer=node.peer,
            starts=(instance,),
            wall=self.wall,
            origin_of=self._seen_at,
        )
        self._asked = 0
        self._shell: Shell = world.mount(node, PROTOCOL, self.exchange, on_emit=self._emitted)
        if sweeps:
            self._shell.perform(self.exchange.start(world.now))
        node.answers[PROTOCOL] = self.answer

    def wall(self) -> float:
        """Epoch seconds."""
        return EPOCH_S + self._world.now

    def _seen_at(self, peer: PeerId) -> Origin | None:
        link = self._node.links.get(peer)
        return link.receiver.origin if link is not None else None

    def _is_privileged(self, peer: PeerId) -> bool:
        link = self._node.links.get(peer)
        return link is not None and link.dialled

    def follow(self, model: ModelId) -> None:
        """Take part in a model's topic."""
        self.exchange.topics.add(model)
        if self._gossip is not None:
            self._gossip.join(
                self._node, topic_of(model), lambda author, data: self.exchange.judge(data, author, model)
            )

    def update(self, announcement: Announcement) -> None:
        """Say what this host offers now."""
        self._shell.command(Update(announcement))

    def withdraw(self) -> None:
        """Say that this host is gone."""
        self._shell.command(Withdraw())

    def _believed(self, advert: Advert, before: Advert | None) -> None:
        """The book took an advert, which may be the one that it held ``before``. Of a host's own nothing
        stays there."""
        if advert is before or advert.peer == self._node.peer:
            return
        if self.book.get(advert.peer, self.wall()) is not None:
            self._on_believed(self._node, before, advert)

    def _emitted(self, value: object) -> None:
        if isinstance(value, Publish) and self._gossip is not None:
            data = encode(value.signed)
            for model in self.exchange.topics_of(value.advert):
                # Later: gossip's own machine may be the one that is at work.
                self._world.loop.after(0.0, self._gossip.publish, self._node, topic_of(model), data)

    def answer(self, asker: Node, question: Any) -> Any | None:
        """What the machine answers a question on a stream of its own."""
        self._asked += 1
        event = Received(asker.peer, self._asked, question)
        for effect in self.exchange.handle(event, self._world.now):
            if isinstance(effect, Send):
                return effect.message
        return None

    # ---- asking others

    def sample(
        self,
        other: Node,
        model: ModelId | None,
        deadline_s: float,
        then: Callable[[Sequence[Advert] | None], None],
    ) -> None:
        """Ask a peer for adverts, of one model or of any; ``then`` gets those that hold, None where nobody
        answers."""

        def answered(answer: Any | None) -> None:
            if isinstance(answer, Adverts):
                then(self.exchange.sampled(answer.adverts, other.peer))
            else:
                then(None)

        question = SampleAdverts(model=model)
        self._world.ask(self._node, other, PROTOCOL, question, answered, deadline_s=deadline_s)

    def fetch(
        self, other: Node | None, peer: PeerId, deadline_s: float, then: Callable[[Advert | None], None]
    ) -> None:
        """Ask a peer for the advert of ``peer``, mostly its own."""

        def answered(answer: Any | None) -> None:
            found = None
            if isinstance(answer, Adverts):
                found = self.exchange.fetched(answer.adverts, other.peer if other is not None else peer, peer)
            then(found)

        self._world.ask(self._node, other, PROTOCOL, GetAdvert(peer=peer), answered, deadline_s=deadline_s)


def bound(
    keys: Keys, peer: PeerId, wallet: bytes, receipt_key: bytes, domains: Domains | None = None
) -> Binding:
    """A wallet's word for a peer, as it is at the start of a run; without ``domains`` there is no chain."""
    terms = BindingTerms(
        receipt_key=receipt_key,
        chain_id=domains.chain_id if domains is not None else 0,
        node_registry=domains.node_registry if domains is not None else bytes(20),
        seq=1,
        expires_at=EPOCH_S + _BINDING_S,
    )
    return bind(peer, wallet, terms, keys.signer(wallet))
