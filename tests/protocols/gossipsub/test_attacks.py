"""Every field of every RPC as the one that floods: what an attack costs, counted in virtual time.

A node with six honest neighbours is attacked by 1, 2 or 20 peers of one address prefix, each with what the
case makes, ten times a second. Judged are the fields that are decoded, the signatures that are checked, what
is kept and what is sent back, each against a bound that follows from ``Parameters``; and that no honest
message is lost, no honest peer is charged, and who attacks is left by the name of a fault.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from p2pnode.ids import PeerId
from p2pnode.net.conduct import SLOW_S, Conduct
from p2pnode.protocols.events import Effect, Emit, Fault, Send
from p2pnode.protocols.gossipsub.commands import Delivered, PeerDown, PeerUp, Publish, Verdict
from p2pnode.protocols.gossipsub.messages import ENTRIES_MAX, RPC, encode_publish
from p2pnode.shares import Origin
from tests.protocols.gossipsub.mesh import (
    AT_ONCE,
    NAME,
    Subject,
    changed,
    control,
    message_from,
    peer_of,
    subscription,
)

LIMITS = AT_ONCE
SECONDS, LEFT_WITHIN_S, TIMES_A_SECOND = 5, 15, 10
HONEST = 6
ADVERT = b"a live advert"
PREFIX = "203.0.113.0/24"
NUMBERS = itertools.count(1)
Make = Callable[[int], Any] | bytes | Any
"""An RPC, as bytes or to be serialised; or what makes one of a number that is new each time."""


def names(number: int, count: int) -> list[bytes]:
    return [b"/p2pnode/adverts/1/%064x" % (number * count + each) for each in range(count)]


def ids(number: int, count: int) -> list[bytes]:
    return [b"%046d" % (number * count + each) for each in range(count)]


def messages(number: int, count: int, **changes: Any) -> bytes:
    """Messages of an author of its own, changed after they were signed."""
    made = [message_from("mallory", ADVERT, seqno=number * count + each) for each in range(count)]
    return encode_publish([changed(message, **changes) for message in made])


def several_topics(number: int) -> Any:
    rpc = RPC.parse(messages(number, 20))
    for sent in rpc.publish:
        sent.topics.append(b"another")
    return rpc


def px(number: int) -> bytes:
    """PRUNEs of our topic that name sixteen peers each, as ``ControlPrune.peers`` (field 2)."""
    named = b"\x12\x06\x0a\x04%04d" % (number % 10_000)
    prune = b"\x0a" + bytes([len(NAME)]) + NAME + named * 16
    entry = b"\x22" + varint(len(prune)) + prune
    return b"\x1a" + varint(len(entry) * 20) + entry * 20


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


@dataclass(frozen=True)
class Attack:
    """What becomes of its sender in time. Who costs next to nothing is let be."""

    make: Make
    then: Literal["left", "unread", "let be"] = "left"


def quiet(make: Make) -> Attack:
    return Attack(make, then="let be")


KNOWN = message_from("subject", b"known", seqno=2).id
"""Of a message that the node has published itself."""
ATTACKS: dict[str, Attack] = {
    # ---- subscriptions
    "names of made-up topics": quiet(lambda n: subscription(*names(n, 60))),
    "names of 6 kB": quiet(lambda n: subscription(b"%06000d" % n)),
    "coming and going": quiet(lambda n: subscription(*[NAME] * 60, on=n % 2 == 0)),
    "a list of empty subscriptions": Attack(b"\x0a\x00" * 3000),
    # ---- publish
    "messages of topics we aren't on": quiet(lambda n: messages(n, 20, topic=b"another")),
    "messages without a signature": Attack(lambda n: messages(n, 20, signature=b"")),
    "messages with a false signature": Attack(lambda n: messages(n, 20, signature=bytes(64))),
    "messages of several topics": Attack(several_topics),
    "messages of 70 kB": Attack(lambda n: messages(n, 1, data=bytes(70_000))),
    "messages without an author": Attack(lambda n: messages(n, 20, author=b"")),
    "messages of authors of another kind": quiet(lambda n: messages(n, 20, author=b"\x12\x20" + bytes(32))),
    "messages with a foreign key": quiet(lambda n: messages(n, 20, key=b"\x08\x01\x12\x20" + bytes(32))),
    "one message again and again": quiet(messages(1, 1) * 20),
    "a live advert under fresh ids": Attack(lambda n: messages(n, 20), then="unread"),
    "a list of empty messages": Attack(b"\x12\x00" * 3000),
    # ---- control
    "GRAFT of unknown topics": Attack(lambda n: control(graft=[{"topic": b"%d" % n}] * 1200)),
    "GRAFT in the back-off": Attack(
        control(graft=[{"topic": NAME}] * 50, prune=[{"topic": NAME, "backoff": 1}]), then="unread"
    ),
    "PRUNE of made-up topics": quiet(
        lambda n: control(prune=[{"topic": each, "backoff": 2**60} for each in names(n, 60)])
    ),
    "PRUNE of ours": quiet(control(prune=[{"topic": NAME, "backoff": 2**64 - 1}] * 50)),
    "PRUNE with peers to dial": quiet(px),
    "IHAVE of unknown topics": quiet(lambda n: control(ihave=[{"topic": b"u", "ids": ids(n, 120)}])),
    "IHAVE of what never comes": quiet(lambda n: control(ihave=[{"topic": NAME, "ids": ids(n, 120)}])),
    "IHAVE with ids of 6 kB": quiet(lambda n: control(ihave=[{"topic": NAME, "ids": [b"%06000d" % n]}])),
    "a list of empty IHAVEs": Attack(control(ihave=[{}] * 3000)),
    "IWANT of one id 120 times": quiet(control(iwant=[{"ids": [KNOWN] * 120}])),
    "IWANT of what we don't have": quiet(lambda n: control(iwant=[{"ids": ids(n, 120)}])),
    "IDONTWANT": quiet(lambda n: control(idontwant=[{"ids": ids(n, 120)}])),
    # ---- what is none of these
    "fields that nobody knows": Attack(b"\xa2\x06\x00" * 2000),
    "a signed record of 6 kB": quiet(b"\x22\xf0\x2e" + bytes(6000)),
    "no protocol buffer": Attack(b"\xff" * 6000),
    "RPCs of no bytes": quiet(b""),
    "groups in one another": Attack(b"\x0b" * 6000),
}


@dataclass
class Siege:
    """The node, its honest neighbours, and the attackers, who share one prefix."""

    subject: Subject = field(default_factory=lambda: Subject(parameters=LIMITS))
    conduct: Conduct = field(default_factory=Conduct)
    slow_until: dict[PeerId, float] = field(default_factory=dict)
    left: dict[PeerId, str] = field(default_factory=dict)
    charged: Counter[PeerId] = field(default_factory=Counter)
    delivered: list[bytes] = field(default_factory=list)
    sent_back: Counter[PeerId] = field(default_factory=Counter)
    attack_bytes: int = 0
    seconds: int = 0
    """That it took."""

    def __post_init__(self) -> None:
        self.subject.join(lambda _author, data: Verdict("accept", key=data if data == ADVERT else None))
        self.honest = [self.subject.connect(f"honest {number}") for number in range(HONEST)]
        self.note(self.subject.command(Publish(NAME.decode(), b"known")))

    def note(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Emit(value=Fault(peer=peer, name=name, weight=weight)):
                    self.charged[peer] += 1
                    origin = (
                        Origin("203.0.113.0/24", "203.0.113.0/24")
                        if peer not in self.honest
                        else honest_of(peer)
                    )
                    verdict = self.conduct.charge(peer, origin, name, weight, self.subject.now)
                    if verdict == "slow":
                        self.slow_until[peer] = self.subject.now + SLOW_S
                    elif verdict == "leave":
                        self.left[peer] = name
                case Emit(value=Delivered(data=data)):
                    self.delivered.append(data)
                case Send(peer=peer, message=payload):
                    self.sent_back[peer] += len(payload)
                case _:
                    pass

    def run(self, attack: Attack, attackers: list[PeerId]) -> None:
        """For some seconds; in each, an honest neighbour brings an honest message."""
        gone = set[PeerId]()
        for second in range(SECONDS if attack.then == "let be" else LEFT_WITHIN_S):
            if gone == set(attackers):
                return
            self.seconds += 1
            for _ in range(TIMES_A_SECOND):
                for peer in attackers:
                    if peer in self.left or self.slow_until.get(peer, 0) > self.subject.now:
                        continue
                    made = attack.make(next(NUMBERS)) if callable(attack.make) else attack.make
                    payload = made if isinstance(made, bytes) else made.SerializeToString()
                    self.attack_bytes += len(payload)
                    self.note(self.subject.hear(peer, payload))
                for peer in self.left.keys() - gone:
                    gone.add(peer)
                    self.note(self.subject.command(PeerDown(peer)))
                self.note(self.subject.rest(1 / TIMES_A_SECOND))
            number = next(NUMBERS)
            honest = message_from("honest", b"honest %d" % number, seqno=number)
            self.note(self.subject.hear(self.honest[second % HONEST], honest.encode()))

    def connect(self, count: int) -> list[PeerId]:
        peers = [peer_of(f"attacker {next(NUMBERS)}") for _ in range(count)]
        for peer in peers:
            self.note(self.subject.command(PeerUp(peer, group=PREFIX)))
            self.note(self.subject.hear(peer, subscription(NAME)))
        return peers

    def disconnect(self, peers: list[PeerId]) -> None:
        for peer in peers:
            self.note(self.subject.command(PeerDown(peer)))
        self.note(self.subject.rest(700))


def honest_of(peer: PeerId) -> Origin:
    return Origin(f"peer/{peer}", f"peer/{peer}")


def cases() -> Iterator[Any]:
    """Each attack by one and two peers, and by twenty; of these some in the short suite."""
    for name in ATTACKS:
        for count in (1, 2, 20):
            marks = [pytest.mark.long] if count == 20 and name not in IN_SHORT else []
            yield pytest.param(name, count, marks=marks, id=f"{name} by {count}")


IN_SHORT = ("GRAFT of unknown topics", "messages with a false signature", "IWANT of one id 120 times")


@pytest.mark.parametrize(("name", "count"), list(cases()))
def test_what_an_attack_costs_is_bounded(name: str, count: int) -> None:
    attack, siege = ATTACKS[name], Siege()
    router, before = siege.subject.router, siege.subject.router.held()
    attackers = siege.connect(count)
    counted = Counter(router.counts)
    siege.run(attack, attackers)
    spent = Counter(router.counts) - counted

    # Work: fields decoded and signatures checked, by each attacker's allowance; and of each attack byte.
    seconds = siege.seconds
    entries_max = LIMITS.entries_burst + LIMITS.entries_per_s * seconds
    assert spent["entries"] <= count * (entries_max + ENTRIES_MAX) + 10 * seconds
    assert spent["entries"] <= siege.attack_bytes / 2 + 10 * (seconds + count)
    checks = spent["checks"] - seconds
    assert checks <= count * (LIMITS.checks_burst + LIMITS.checks_per_s * seconds)
    assert checks <= siege.attack_bytes / 100

    # What is sent back is less than half of what came, but for what every neighbour is sent.
    told = seconds * len(message_from("honest", b"honest 000000").encode()) + 4000
    assert sum(siege.sent_back[peer] for peer in attackers) <= siege.attack_bytes / 2 + count * told

    # Nothing honest is lost, and nobody honest is charged.
    assert sum(data.startswith(b"honest") for data in siege.delivered) == seconds
    assert siege.delivered.count(ADVERT) <= 1
    assert not siege.charged.keys() & set(siege.honest)

    # Whoever costs us something is left, or not read any more, by the name of its fault. Of twenty from one
    # prefix some are left earlier, since their prefix has used up its patience.
    assert siege.left.keys() <= set(attackers)
    staying = [peer for peer in attackers if peer not in siege.left]
    if attack.then == "left":
        assert staying == [], siege.charged.values()
    elif attack.then == "unread":
        worst = LIMITS.score.graylist_threshold
        assert all(router.score(peer, siege.subject.now) < worst for peer in staying)
    else:
        assert staying == attackers, siege.charged.values()

    # What is kept is bounded, is forgotten, and a second attack adds nothing to the first.
    held = router.held()
    assert held["names"] - before["names"] <= count * LIMITS.topics_per_peer
    assert held["message_bytes"] <= LIMITS.cache_bytes_max
    siege.disconnect([peer for peer in attackers if peer not in siege.left])
    first = router.held()
    again = siege.connect(count)
    siege.left.clear()
    siege.run(attack, again)
    siege.disconnect([peer for peer in again if peer not in siege.left])
    second = router.held()
    lasting = {"scores", "seen", "asked", "said"}  # bounded by number and time, see test_properties.py
    assert {key: second[key] for key in second.keys() - lasting} == {
        key: first[key] for key in first.keys() - lasting
    }
    assert sum(second.values()) - sum(first.values()) <= 20_000
