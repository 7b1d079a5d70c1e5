"""What a server answers, takes and refuses; each question by itself."""

from __future__ import annotations

import random
from typing import Any

import pytest

from p2pnode.ids import PeerId
from p2pnode.protocols.events import Command, Fault, Received
from p2pnode.protocols.kademlia.messages import K, KadPeer, Message, bytes_of, record_key
from p2pnode.protocols.kademlia.node import Identified, KademliaNode, Mode
from p2pnode.protocols.kademlia.server import ORIGIN_FACTOR, QUESTIONS_BURST
from p2pnode.shares import Origin
from tests.protocols.kademlia.dht_world import address, ip_in, peer_number
from tests.protocols.support import emitted, sent

KEY = record_key(b"k" * 32)
OWN, ASKER = peer_number(0), peer_number(1)


class Served:
    """A node, and what it says to a question. Each peer has a prefix of its own, unless told otherwise."""

    def __init__(self, mode: Mode = "server") -> None:
        self.origins: dict[PeerId, Origin] = {}
        self.reached: set[PeerId] = set()
        self.node = KademliaNode(
            OWN,
            mode,
            draw=random.Random(1).randrange,
            origin_of=lambda peer: self.origins.get(peer, Origin(peer, peer)),
            origin_at=lambda peer, _addresses: Origin(peer, peer),
            dialable=lambda addresses: tuple(each for each in addresses if ip_in(each)),
            reached=lambda peer: peer in self.reached,
            own_addresses=lambda: (address("20.0.0.9"),),
        )

    def know(self, *numbers: int) -> None:
        for number in numbers:
            where = (address(f"30.0.{number}.1"),)
            self.node.handle(Command(Identified(peer_number(number), where, serves=True)), 0.0)

    def say(self, message: Message, peer: PeerId = ASKER, now: float = 0.0) -> list[Any]:
        effects = self.node.handle(Received(peer, 7, message), now)
        return [*sent(effects), *emitted(effects)]


def provide(*providers: PeerId, key: bytes = KEY) -> Message:
    told = tuple(KadPeer(peer=each, addresses=(address("20.0.0.1"),)) for each in providers)
    return Message(kind="add_provider", key=key, providers=told)


def ask(key: bytes = KEY) -> Message:
    return Message(kind="get_providers", key=key)


def test_a_ping_is_answered() -> None:
    assert Served().say(Message(kind="ping")) == [Message(kind="ping")]


@pytest.mark.parametrize("kind", ["get_value", "put_value"])
def test_values_are_not_kept_and_a_question_for_one_is_answered_emptily(kind: Any) -> None:
    assert Served().say(Message(kind=kind, key=b"k")) == [Message(kind=kind, key=b"k")]


def test_the_closest_peers_are_named_without_the_asker() -> None:
    served = Served()
    served.know(*range(1, 60))
    (answer,) = served.say(Message(kind="find_node", key=KEY))
    assert len(answer.closer) == K
    assert ASKER not in {each.peer for each in answer.closer}
    assert all(each.addresses and each.connected for each in answer.closer)


def test_a_peer_that_is_looked_for_is_named_though_others_are_closer_by_origin() -> None:
    served = Served()
    served.know(*range(1, 60))
    for number in range(2, 60):
        (answer,) = served.say(Message(kind="find_node", key=bytes_of(peer_number(number))))
        if served.node.table.get(peer_number(number)) is not None:
            assert peer_number(number) in {each.peer for each in answer.closer}
        assert len(answer.closer) <= K


def test_a_provider_that_brings_its_record_is_named_to_who_asks() -> None:
    served = Served()
    assert served.say(provide(ASKER)) == []
    (answer,) = served.say(ask(), peer_number(2))
    assert answer.providers == (KadPeer(peer=ASKER, addresses=(address("20.0.0.1"),)),)
    assert answer.kind == "get_providers"
    assert answer.key == KEY


def test_nobody_provides_in_anothers_name() -> None:
    served = Served()
    assert served.say(provide(peer_number(5))) == [Fault(ASKER, "kad_foreign_record", 1.0)]
    assert served.say(provide()) == [Fault(ASKER, "kad_foreign_record", 1.0)]
    assert served.say(provide(ASKER, key=b"")) == [Fault(ASKER, "kad_foreign_record", 1.0)]
    served.say(provide(peer_number(5), ASKER))
    (answer,) = served.say(ask(), peer_number(2))
    assert [each.peer for each in answer.providers] == [ASKER]


def test_where_a_provider_comes_from_decides_and_not_what_its_addresses_say() -> None:
    served = Served()
    for number in range(10, 60):
        served.origins[peer_number(number)] = Origin("flood", "flood")
        lie = KadPeer(peer=peer_number(number), addresses=(address(f"50.{number}.0.1"),))
        served.say(Message(kind="add_provider", key=KEY, providers=(lie,)), peer_number(number))
    (answer,) = served.say(ask())
    assert len(answer.providers) == 8


def test_dialled_providers_are_told_from_others() -> None:
    served = Served()
    for number in range(10, 100):
        served.say(provide(peer_number(number)), peer_number(number))
    served.reached.add(peer_number(100))
    served.say(provide(peer_number(100)), peer_number(100))
    for number in range(200, 400):
        served.say(provide(peer_number(number)), peer_number(number), now=1.0)
    held = {each.provider for each in served.node.records.draw(KEY, 1000, 1.0)}
    assert peer_number(100) in held


def test_who_asks_too_often_gets_no_answer_and_others_do() -> None:
    served = Served()
    answered = [served.say(Message(kind="ping")) for _ in range(int(QUESTIONS_BURST) + 5)]
    assert answered.count([Message(kind="ping")]) == QUESTIONS_BURST
    assert answered[-1] == [Fault(ASKER, "kad_flood", 1.0)]
    assert served.say(Message(kind="ping"), peer_number(2)) == [Message(kind="ping")]
    assert served.say(Message(kind="ping"), now=5.0) == [Fault(ASKER, "kad_flood", 1.0)]  # five were too many
    assert served.say(Message(kind="ping"), now=7.0) == [Message(kind="ping")]


def test_many_ids_of_one_prefix_have_one_rate_together() -> None:
    served = Served()
    answers = 0
    for number in range(10, 30):
        served.origins[peer_number(number)] = Origin("flood", "flood")
        for _ in range(int(QUESTIONS_BURST)):
            said = served.say(Message(kind="ping"), peer_number(number))
            assert said in ([], [Message(kind="ping")])
            answers += len(said)
    assert answers == QUESTIONS_BURST * ORIGIN_FACTOR
    assert served.say(Message(kind="ping")) == [Message(kind="ping")]


def test_a_client_answers_nothing() -> None:
    assert Served("client").say(Message(kind="ping")) == []


def test_a_peer_that_does_not_serve_enters_no_table() -> None:
    served = Served()
    served.node.handle(Command(Identified(peer_number(3), (address("30.0.0.1"),), serves=False)), 0.0)
    assert len(served.node.table) == 0


def test_a_peer_that_serves_no_longer_leaves_the_table() -> None:
    served = Served()
    served.know(3, 4)
    served.node.handle(Command(Identified(peer_number(3), (address("30.0.0.1"),), serves=False)), 0.0)
    assert [each.peer for each in served.node.table] == [peer_number(4)]
