"""What dishonest and slow hosts do, from when a fault strikes them until it is over.

Those who forge, replay and eclipse do so in the adverts; those who bill too much or answer with another model
in their sessions. An honest machine runs in each of them: what it says is changed on its way out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final, Protocol

from p2pnode.ids import PeerId
from p2pnode.protocols.adverts.exchange import Announcement
from p2pnode.protocols.adverts.messages import (
    Address,
    Adverts,
    GetAdvert,
    Load,
    Offer,
    SampleAdverts,
    SignedAdvert,
    topic_of,
)
from p2pnode.protocols.adverts.signatures import AdvertChecks
from p2pnode.protocols.events import Effect, Event, Send
from p2pnode.protocols.inference.messages import Checkpoint
from p2pnode.protocols.wire import encode
from p2pnode.simulations.faults import Fault, Undo
from p2pnode.simulations.gossip_service import GossipService
from p2pnode.simulations.market.adverts import PROTOCOL, NodeAdverts, bound
from p2pnode.simulations.market.client import ClientProfile
from p2pnode.simulations.market.host import Host, HostParameters, HostProfile
from p2pnode.simulations.market.surroundings import Surroundings
from p2pnode.simulations.world import Answerer, Node

_OVERBILLED: Final = 5
_FORGED_EVERY_S: Final = 5.0
_REPLAYED_AFTER_S: Final = 250.0
_REPLAYED_MAX: Final = 256
_SAMPLE: Final = 16


class StruckMarket(Surroundings, Protocol):
    """What hosts that do wrong need of their market."""

    hosts: dict[PeerId, Host]
    """Those that are up."""
    host_profiles: dict[int, HostProfile]
    client_profiles: dict[int, ClientProfile]
    adverts: dict[PeerId, NodeAdverts]
    checks: AdvertChecks
    gossip: GossipService
    dishonest: dict[PeerId, str]
    """Hosts that do wrong, and what."""
    tamper: dict[PeerId, Callable[[Any], Any]]
    """What is made of the machine of a session at these hosts."""
    answers: dict[PeerId, Answerer]
    """What these hosts answer questions for adverts with, in place of their machine."""
    slow: dict[PeerId, float]
    """Hosts that take so many times as long."""
    other_model: dict[PeerId, int]
    """Hosts that run another model than they say."""

    @property
    def parameters(self) -> HostParameters:
        """How it is set up."""
        ...

    def add_plain(self, ip: str) -> Node:
        """A node that gossips and is no host, at this address."""
        ...


class Tampering:
    """A machine whose messages are changed on their way out; all else is the machine's."""

    def __init__(self, machine: Any, change: Callable[[Any], Any]) -> None:
        self._machine, self._change = machine, change

    def __getattr__(self, name: str) -> Any:
        return getattr(self._machine, name)

    def handle(self, event: Event, now: float) -> list[Effect]:
        """As the machine, with other messages."""
        effects = self._machine.handle(event, now)
        return [
            replace(effect, message=self._change(effect.message)) if isinstance(effect, Send) else effect
            for effect in effects
        ]


def overbilled(message: Any) -> Any:
    """A receipt for more than was sent."""
    if isinstance(message, Checkpoint):
        return replace(message, tokens_out=message.tokens_out + _OVERBILLED)
    return message


def strike(market: StruckMarket, fault: Fault, nodes: Sequence[Node]) -> Undo:
    """Let these hosts do wrong from now on; what is returned ends it."""
    for node in nodes:
        if fault.kind != "slow":
            market.dishonest[node.peer] = fault.kind
    match fault.kind:
        case "slow":
            _set_speed(market, nodes, fault.factor)
            return lambda: _set_speed(market, nodes, 1.0)
        case "wrong_model":
            _set_model(market, nodes, 1)
            return _all(lambda: _set_model(market, nodes, 0), lambda: _forgive(market, nodes))
        case "over_billing":
            for node in nodes:
                market.tamper[node.peer] = lambda machine: Tampering(machine, overbilled)
            return lambda: _forgive(market, nodes)
        case "forged_adverts" | "replayed_adverts":
            liar = Liar(market, nodes, forges=fault.kind == "forged_adverts")
            liar.begin()
            return _all(liar.stop, lambda: _forgive(market, nodes))
        case "sybil":
            made = [_sybil(market, node, number) for node in nodes for number in range(int(fault.factor))]
            return _all(*(partial(market.world.crash, each) for each in made))
        case _:
            _eclipse(market, nodes)
            return lambda: _forgive(market, nodes)


def _all(*actions: Callable[[], None]) -> Undo:
    def undo() -> None:
        for action in actions:
            action()

    return undo


def _set_speed(market: StruckMarket, nodes: Sequence[Node], factor: float) -> None:
    for node in nodes:
        market.slow[node.peer] = factor
        node.think_s = 0.05 * (factor - 1)
        if (host := market.hosts.get(node.peer)) is not None:
            host.engine.slow = factor


def _set_model(market: StruckMarket, nodes: Sequence[Node], model: int) -> None:
    for node in nodes:
        market.other_model[node.peer] = model
        if (host := market.hosts.get(node.peer)) is not None:
            host.engine.model = model


def _forgive(market: StruckMarket, nodes: Sequence[Node]) -> None:
    for node in nodes:
        market.dishonest.pop(node.peer, None)
        market.tamper.pop(node.peer, None)
        market.answers.pop(node.peer, None)
        if (adverts := market.adverts.get(node.peer)) is not None:
            node.answers[PROTOCOL] = adverts.answer


class Liar:
    """Hosts that spread adverts of others: some that those did not sign, or that they signed long ago."""

    def __init__(self, market: StruckMarket, nodes: Sequence[Node], *, forges: bool) -> None:
        self._market, self._nodes, self._forges = market, nodes, forges
        self._random = market.world.draws("liar", nodes[0].number if nodes else 0)
        self._old: dict[SignedAdvert, float] = {}
        """Adverts to replay, and when each was first seen. The newest are left out: they would take the place
        of the others before these are old.
        """
        self._is_over = False

    def begin(self) -> None:
        """Lie from now on."""
        for node in self._nodes:
            self._market.answers[node.peer] = self._answer
            node.answers[PROTOCOL] = self._answer
        self._tell()

    def stop(self) -> None:
        """Tell the truth from now on."""
        self._is_over = True

    def _tell(self) -> None:
        market, world = self._market, self._market.world
        if self._is_over:
            return
        for node in self._nodes:
            adverts = market.adverts.get(node.peer)
            if adverts is None:
                continue
            model = market.host_profiles[node.number].model
            for signed in self._lies(adverts, 1):
                market.gossip.publish(node, topic_of(model), encode(signed))
        world.loop.after(_FORGED_EVERY_S, self._tell)

    def _lies(self, adverts: NodeAdverts, count: int) -> list[SignedAdvert]:
        found = adverts.book.sample(count, adverts.wall())
        now = self._market.world.now
        if self._forges:
            return [self._forged(adverts, entry.signed) for entry in found]
        self._old = {signed: at for signed, at in self._old.items() if now - at <= 2 * _REPLAYED_AFTER_S}
        for entry in found:
            if len(self._old) < _REPLAYED_MAX:
                self._old.setdefault(entry.signed, now)
        return [signed for signed, at in self._old.items() if now - at > _REPLAYED_AFTER_S][:count]

    def _forged(self, adverts: NodeAdverts, signed: SignedAdvert) -> SignedAdvert:
        """The victim's advert with a price that nobody can beat, newer than its own, and not signed by it."""
        advert = adverts.book.checks.parse(signed)
        offers = tuple(replace(offer, price_in=1, price_out=1) for offer in advert.offers)
        body = encode(replace(advert, seq=advert.seq + 60_000, offers=offers))
        return SignedAdvert(body=body, signature=self._random.randbytes(64))

    def _answer(self, asker: Node, question: Any) -> Any | None:
        node = self._nodes[self._random.randrange(len(self._nodes))]
        adverts = self._market.adverts.get(node.peer)
        if adverts is None:
            return None
        match question:
            case SampleAdverts():
                return Adverts(adverts=tuple(self._lies(adverts, _SAMPLE)))
            case GetAdvert(peer=peer):
                own = self._market.adverts.get(peer)
                return own.answer(asker, question) if own is not None else None
            case _:
                return None


def _sybil(market: StruckMarket, maker: Node, number: int) -> Node:
    """An id of somebody who has one already: it advertises a low price, and serves nothing."""
    prefix = maker.ip.rpartition(".")[0]
    node = market.add_plain(f"{prefix}.{10 + number % 240}")
    adverts = market.adverts_of(node, gossips=True)
    model = market.host_profiles[maker.number].model
    wallet = market.keys.address(f"sybil {node.number}")
    domains = market.chain.domains
    market.dishonest[node.peer] = "sybil"
    for link in list(maker.links.values())[:4]:
        market.world.connect(node, link.receiver)
    adverts.follow(model)
    adverts.update(
        Announcement(
            binding=bound(market.keys, node.peer, wallet, wallet, domains),
            addresses=(Address(multiaddr=f"/ip4/{node.ip}/tcp/4001"),),
            offers=(Offer(model=model, n_ctx=8192, price_in=1, price_out=1),),
            load=Load(slots=8),
        )
    )
    return node


def _eclipse(market: StruckMarket, nodes: Sequence[Node]) -> None:
    """All clients know these first, and these tell of themselves only."""
    theirs = frozenset(node.peer for node in nodes)
    for profile in market.client_profiles.values():
        profile.bootstrap = tuple(nodes)[: market.parameters.hosts.bootstrap]
    for node in nodes:

        def answer(asker: Node, question: Any, node: Node = node) -> Any | None:
            adverts = market.adverts.get(node.peer)
            found = adverts.answer(asker, question) if adverts is not None else None
            if isinstance(found, Adverts):
                parse = market.checks.parse
                kept = tuple(each for each in found.adverts if parse(each).peer in theirs)
                return Adverts(adverts=kept)
            return found

        market.answers[node.peer] = answer
        node.answers[PROTOCOL] = answer
