"""One node as a whole, many of them on an event heap, and whatever hostile peers may send to one."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from p2pnode.ids import PeerId
from p2pnode.protocols.events import Command, Effect, Emit, Received, Send, SetTimer, TimerFired
from p2pnode.protocols.kademlia import records
from p2pnode.protocols.kademlia.lookup import OUT_MAX, WIDTH
from p2pnode.protocols.kademlia.messages import (
    ADDRESSES_MAX,
    ANSWER_SENT_MAX,
    KINDS,
    KadPeer,
    Message,
    encode,
    record_key,
)
from p2pnode.protocols.kademlia.node import (
    LOOKUP_S,
    LOOKUPS_MAX,
    REFRESH_FIRST_S,
    STORE_AFTER_S,
    STORES_AT_ONCE,
    Abandon,
    Answered,
    AskPeer,
    Disconnected,
    Ended,
    FindProviders,
    Identified,
    KademliaNode,
    Provide,
    Unanswered,
)
from p2pnode.shares import Origin
from tests.protocols.kademlia.dht_world import address, grown, ip_in, peer_number
from tests.protocols.support import emitted, only

KEY = record_key(b"k" * 32)
OWN = peer_number(0)


def alone(mode: Any = "server", seed: int = 1) -> KademliaNode:
    return KademliaNode(
        OWN,
        mode,
        draw=random.Random(seed).randrange,
        origin_of=lambda peer: Origin(peer[-2:], peer[-2:]),
        origin_at=lambda peer, _addresses: Origin(peer[-2:], peer[-2:]),
        dialable=lambda addresses: tuple(each for each in addresses if ip_in(each)),
        reached=lambda peer: peer[-1] < "F",
        own_addresses=lambda: (address("20.0.0.9"),),
    )


def with_peers(*numbers: int, mode: Any = "server") -> KademliaNode:
    node = alone(mode)
    for number in numbers:
        node.handle(Command(Identified(peer_number(number), (address("20.0.0.1"),), True)), 0.0)
    return node


def asks(effects: Any) -> list[AskPeer]:
    return [each for each in emitted(effects) if isinstance(each, AskPeer)]


def test_without_anybody_a_lookup_ends_at_once_with_what_is_here() -> None:
    node = alone()
    told = KadPeer(peer=peer_number(5), addresses=(address("20.0.0.5"),))
    node.handle(Received(peer_number(5), 1, Message(kind="add_provider", key=KEY, providers=(told,))), 0.0)
    ended = only(Ended, emitted(node.handle(Command(FindProviders(1, KEY, 9)), 0.0)))
    assert [each.peer for each in ended.providers] == [peer_number(5)]
    assert ended.providers[0].addresses == (address("20.0.0.5"),)


def test_a_lookup_ends_at_its_deadline_with_what_was_found_by_then() -> None:
    node = with_peers(1, 2)
    effects = node.handle(Command(FindProviders(1, KEY, 9)), 0.0)
    assert SetTimer("deadline/1", LOOKUP_S) in effects
    (first, _) = asks(effects)
    told = Message(kind="get_providers", key=KEY, providers=(KadPeer(peer=peer_number(7)),))
    assert not emitted(node.handle(Command(Answered(1, first.ask.peer, told)), 1.0))
    ended = only(Ended, emitted(node.handle(TimerFired("deadline/1"), LOOKUP_S)))
    assert [each.peer for each in ended.providers] == [peer_number(7)]
    assert not node.handle(Command(Answered(1, peer_number(2), told)), 9.0)


def test_a_record_is_stored_with_those_that_answered_all_at_once() -> None:
    node = with_peers(*range(1, 40))
    effects = list(node.handle(Command(Provide(1, KEY)), 0.0))
    stores: list[AskPeer] = []
    out: list[AskPeer] = asks(effects)
    ended = None
    while out:
        each = out.pop(0)
        if each.ask.question.kind == "add_provider":
            stores.append(each)
            assert sum(o.ask.question.kind == "add_provider" for o in out) < STORES_AT_ONCE == WIDTH
            assert each.ask.question.providers == (KadPeer(peer=OWN, addresses=(address("20.0.0.9"),)),)
            report: Any = (
                Answered(1, each.ask.peer, None) if len(stores) % 2 else Unanswered(1, each.ask.peer)
            )
        else:
            report = Answered(1, each.ask.peer, Message(kind="find_node", key=KEY))
        more = emitted(node.handle(Command(report), 1.0))
        out += [value for value in more if isinstance(value, AskPeer)]
        ended = next((value for value in more if isinstance(value, Ended)), ended)
    assert len(stores) == WIDTH
    assert ended is not None
    assert ended.stored == WIDTH // 2


def test_a_lookup_that_stores_leaves_time_for_it() -> None:
    node = with_peers(1)
    assert SetTimer("deadline/1", STORE_AFTER_S) in node.handle(Command(Provide(1, KEY)), 0.0)
    assert only(Ended, emitted(node.handle(TimerFired("deadline/1"), STORE_AFTER_S))).stored == 0


def test_what_a_node_provides_it_names_itself_for_an_hour() -> None:
    node = alone()
    node.handle(Command(Provide(1, KEY)), 0.0)

    def providers(now: float) -> list[PeerId]:
        question = Received(peer_number(3), 1, Message(kind="get_providers", key=KEY))
        (answer,) = [each.message for each in node.handle(question, now) if isinstance(each, Send)]
        return [each.peer for each in answer.providers]

    assert providers(3599.0) == [OWN]
    assert providers(3600.0) == []


def test_nobody_waits_for_a_lookup_that_was_abandoned() -> None:
    node = with_peers(1)
    (ask,) = asks(node.handle(Command(FindProviders(1, KEY, 9)), 0.0))
    node.handle(Command(Abandon(1)), 1.0)
    assert not node.handle(Command(Answered(1, ask.ask.peer, Message(kind="get_providers"))), 2.0)
    assert not node.handle(TimerFired("deadline/1"), LOOKUP_S)
    assert not node.handle(TimerFired("slow/1"), LOOKUP_S)


def test_more_lookups_than_allowed_end_at_once() -> None:
    node = with_peers(1)
    for number in range(LOOKUPS_MAX):
        assert asks(node.handle(Command(FindProviders(number, KEY, 9)), 0.0))
    assert emitted(node.handle(Command(FindProviders(LOOKUPS_MAX, KEY, 9)), 0.0)) == [Ended(LOOKUPS_MAX)]


def test_a_server_looks_for_its_neighbours_and_a_client_does_not() -> None:
    node = with_peers(1)
    assert SetTimer("refresh", REFRESH_FIRST_S) in node.start(0.0)
    assert [each.ask.question.kind for each in asks(node.handle(TimerFired("refresh"), 5.0))] == ["find_node"]
    assert SetTimer("refresh", REFRESH_FIRST_S) not in with_peers(1, mode="client").start(0.0)
    assert not asks(alone().handle(TimerFired("refresh"), 5.0))


def test_a_peer_that_does_not_answer_twice_leaves_the_table() -> None:
    node = with_peers(1)
    for number in range(2):
        (ask,) = asks(node.handle(Command(FindProviders(number, KEY, 9)), 0.0))
        node.handle(Command(Unanswered(number, ask.ask.peer)), 3.0)
    assert len(node.table) == 0
    assert not asks(node.handle(Command(FindProviders(9, KEY, 9)), 0.0))


def test_records_expire_by_a_timer() -> None:
    node = alone()
    told = KadPeer(peer=peer_number(5))
    node.handle(Received(peer_number(5), 1, Message(kind="add_provider", key=KEY, providers=(told,))), 0.0)
    node.handle(TimerFired("sweep"), 3600.0)
    assert len(node.records) == 0


# ---- many of them


def found_share(count: int, keys: int, *, stale: float) -> float:
    """How many of the lookups find a record, after that share of all nodes vanished without a word."""
    world = grown(count)
    hosts = list(world.hosts.values())
    named = [record_key(number.to_bytes(32, "big")) for number in range(keys)]
    providers = [world.draw.choice(hosts) for _ in named]
    for key, host in zip(named, providers, strict=True):
        assert world.provide(host, key) == WIDTH
    for host in world.draw.sample(hosts, int(count * stale)):
        world.crash(host.peer)
    alive = [host for host in hosts if host.at.is_up]
    found = 0
    for key, host in zip(named, providers, strict=True):
        asker = world.draw.choice(alive)
        answer = world.find(asker, key)
        found += asker is host or [each.peer for each in answer] == [host.peer]
    return found / keys


@pytest.mark.long
def test_two_hundred_nodes_find_records_though_thirty_of_a_hundred_are_gone() -> None:
    assert found_share(200, 20, stale=0.3) == 1.0


@pytest.mark.long
def test_a_thousand_nodes_find_99_of_100_records_though_thirty_of_a_hundred_are_gone() -> None:
    assert found_share(1000, 300, stale=0.3) >= 0.99


# ---- whatever comes

NUMBERS = st.integers(0, 60)
KEYS = st.sampled_from([KEY, b"", b"k", record_key(b"other")])
ADDRESS = st.sampled_from([address("20.0.0.1"), address("21.0.0.1"), b"", b"junk", b"\xff" * 255])
KAD_PEERS = st.lists(
    st.builds(
        KadPeer,
        peer=NUMBERS.map(peer_number),
        addresses=st.lists(ADDRESS, max_size=12).map(tuple),
        connected=st.booleans(),
    ),
    max_size=40,
).map(tuple)
MESSAGES = st.builds(Message, kind=st.sampled_from(KINDS), key=KEYS, closer=KAD_PEERS, providers=KAD_PEERS)
IDS = st.integers(-3, 6)
EVENTS = st.one_of(
    st.builds(Received, peer=NUMBERS.map(peer_number), stream=st.just(1), message=MESSAGES),
    st.builds(
        Command,
        st.one_of(
            st.builds(
                Identified, NUMBERS.map(peer_number), st.lists(ADDRESS, max_size=12).map(tuple), st.booleans()
            ),
            st.builds(Disconnected, NUMBERS.map(peer_number)),
            st.builds(FindProviders, st.integers(0, 6), KEYS, st.integers(1, 20)),
            st.builds(Provide, st.integers(0, 6), KEYS),
            st.builds(Abandon, IDS),
            st.builds(Answered, IDS, NUMBERS.map(peer_number), st.one_of(st.none(), MESSAGES)),
            st.builds(Unanswered, IDS, NUMBERS.map(peer_number)),
        ),
    ),
    st.builds(
        TimerFired,
        st.one_of(
            st.sampled_from(["sweep", "refresh"]),
            IDS.map("slow/{}".format),
            IDS.map("deadline/{}".format),
        ),
    ),
)
STEPS = st.lists(st.tuples(EVENTS, st.sampled_from([0.0, 0.1, 1.0, 700.0])), max_size=60)


class Watched:
    """A node under hostile events: what it emits is within bounds, and each lookup ends at most once."""

    def __init__(self) -> None:
        self.node, self.now = alone(), 0.0
        self.out: dict[int, int] = {}

    def step(self, event: Any, later_s: float) -> None:
        self.now += later_s
        if isinstance(event, Command) and isinstance(event.value, FindProviders | Provide):
            if event.value.id in self.out:
                return  # a shell gives each lookup a number of its own
            self.out[event.value.id] = 0
        effects = self.node.handle(event, self.now)
        self.check(effects)

    def check(self, effects: Any) -> None:
        each: Effect
        for each in effects:
            match each:
                case Send(message=message):
                    assert len(encode(message)) <= ANSWER_SENT_MAX
                    assert len(message.closer) <= 20
                    assert len(message.providers) <= 21
                case Emit(value=AskPeer() as asked):
                    assert asked.ask.peer != OWN
                    assert len(asked.ask.addresses) <= ADDRESSES_MAX
                    assert all(ip_in(where) for where in asked.ask.addresses)
                case Emit(value=Ended() as ended):
                    self.out.pop(ended.id, None)
                    assert len(ended.providers) <= 20
                case _:
                    pass
        assert len([each for each in emitted(effects) if isinstance(each, AskPeer)]) <= OUT_MAX
        assert len(self.node.records) <= records.RECORDS_MAX
        for key in list(self.node.records.keys()):
            held = self.node.records.draw(key, 1000, self.now)
            assert len(held) <= records.PROVIDERS_MAX
            assert all(len(record.addresses) <= ADDRESSES_MAX for record in held)


def survive(steps: list[tuple[Any, float]]) -> None:
    watched = Watched()
    for event, later_s in steps:
        watched.step(event, later_s)


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(STEPS)
def test_no_sequence_of_events_makes_a_node_raise_or_grow_beyond_its_bounds(
    steps: list[tuple[Any, float]],
) -> None:
    survive(steps)


@pytest.mark.long
@settings(max_examples=10_000, suppress_health_check=[HealthCheck.too_slow])
@given(STEPS)
def test_ten_thousand_sequences_of_events_neither(steps: list[tuple[Any, float]]) -> None:
    survive(steps)
