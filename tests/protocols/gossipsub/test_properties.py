"""Whatever peers send, in whatever order: the machine never raises, and stays within every bound."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from p2pnode.protocols.events import CancelTimer, Command, Emit, Fault, Received, Send, SetTimer, TimerFired
from p2pnode.protocols.gossipsub.cache import OVERHEAD
from p2pnode.protocols.gossipsub.commands import (
    ACCEPT,
    FAULT_WEIGHTS,
    IGNORE,
    REJECT,
    Delivered,
    Join,
    Leave,
    PeerDown,
    PeerPaused,
    PeerUp,
    Publish,
    Verdict,
)
from p2pnode.protocols.gossipsub.messages import RPC, RPC_MAX, Message, message_of
from p2pnode.protocols.gossipsub.parameters import Parameters
from p2pnode.simulations.signatures import sign_with
from tests.protocols.gossipsub.mesh import holds, key_of, message_from, peer_of, router_of

PEERS = 6
TOPICS = ["one", "two", "three"]
NAMES = [*(each.encode() for each in TOPICS), b"four", b"five", b"six", b"", b"x" * 200, b"\xff\xfe"]
LIMITS = Parameters(
    topics_per_peer=4, backoffs_max=2, seen_max=7, duplicates_max=6, promises_max=5, asked_max=6,
    cache_messages_max=5, cache_bytes_max=5 * (OVERHEAD + 40), unwanted_max=4, entries_per_list=6,
    ids_per_rpc=8,
    wants_per_rpc=4, wants_per_heartbeat=6, answer_bytes_per_heartbeat=200, scores_kept_max=3,
    degree=2, degree_low=1, degree_high=3, degree_score=1, degree_out=1, degree_lazy=2,
    bytes_per_s=20_000.0, bytes_burst=60_000.0, entries_per_s=300.0, entries_burst=1000.0, checks_burst=8.0,
    forwards_max=2,
)  # fmt: skip
KNOWN = PEERS + LIMITS.scores_kept_max
BOUNDS = {
    "peers": PEERS, "topics": len(TOPICS), "names": PEERS * LIMITS.topics_per_peer,
    # A peer grafts itself up to the high mark, one that we dialled beyond it, until the next heartbeat.
    "mesh": len(TOPICS) * PEERS,
    "unwanted": PEERS * LIMITS.unwanted_max, "backoffs": KNOWN * LIMITS.backoffs_max, "seen": LIMITS.seen_max,
    "said": LIMITS.duplicates_max, "forwards": LIMITS.forwards_max, "messages": LIMITS.cache_messages_max,
    "message_bytes": LIMITS.cache_bytes_max, "promises": LIMITS.promises_max, "asked": LIMITS.asked_max,
    "scores": LIMITS.scores_kept_max,
}  # fmt: skip
VERDICTS = [ACCEPT, ACCEPT, REJECT, IGNORE, Verdict("accept", b"k"), Verdict("accept", b"l")]

IDS = [
    *(message_from(number, b"%d" % seq, seqno=seq).id for number in range(3) for seq in range(4)),
    b"", b"x" * 300, None,
]  # fmt: skip
"""Those of the messages that ``Hostile`` makes, and others; None stands for one that nobody has."""
KINDS = ["subscriptions", "publish", "ihave", "iwant", "graft", "prune", "idontwant"]


class Hostile:
    """Makes events from a random source; what it makes is often valid, since only that gets deep."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng

    def event(self) -> Any:
        makers: list[tuple[int, Callable[[], Any]]] = [
            (20, self.received), (6, self.up), (2, self.down), (2, self.paused), (4, self.join),
            (2, self.leave), (3, self.publish), (6, lambda: TimerFired("heartbeat")),
            (4, lambda: TimerFired("forward")),
        ]  # fmt: skip
        return self.rng.choices([make for _, make in makers], [weight for weight, _ in makers])[0]()

    def peer(self) -> Any:
        return peer_of(self.rng.randrange(PEERS))

    def up(self) -> Any:
        flip = self.rng.random
        return Command(PeerUp(self.peer(), flip() < 0.7, flip() < 0.3, self.rng.choice([None, "a", "b"])))

    def down(self) -> Any:
        return Command(PeerDown(self.peer()))

    def paused(self) -> Any:
        return Command(PeerPaused(self.peer()))

    def join(self) -> Any:
        verdicts = self.rng.choices(VERDICTS, k=3)
        return Command(Join(self.rng.choice(TOPICS), lambda _author, data: verdicts[len(data) % 3]))

    def leave(self) -> Any:
        return Command(Leave(self.rng.choice(TOPICS)))

    def publish(self) -> Any:
        return Command(
            Publish(self.rng.choice([*TOPICS, "four"]), self.rng.randbytes(self.rng.randrange(60)))
        )

    def received(self) -> Any:
        return Received(self.peer(), 0, self.payload())

    def payload(self) -> bytes:
        rng = self.rng
        raw = bytes(RPC.make(**self.fields()).SerializeToString())
        if rng.random() < 0.15:
            at = rng.randrange(len(raw) + 1)
            raw = raw[:at] + rng.randbytes(rng.randrange(4)) + raw[at + rng.randrange(4) :]
        return rng.randbytes(rng.randrange(64)) if rng.random() < 0.05 else raw * rng.choice([1, 1, 1, 2, 30])

    def fields(self) -> dict[str, Any]:
        rng = self.rng
        made: dict[str, Any] = {"control": {}}
        for kind in rng.sample(
            ["subscriptions", "publish", "ihave", "iwant", "graft", "prune", "idontwant"], 2
        ):
            count = rng.choice([1, 1, 2, 20])
            entries = [getattr(self, f"{kind}_entry")() for _ in range(count)]
            (made if kind in ("subscriptions", "publish") else made["control"])[kind] = entries
        return made

    def name(self) -> bytes:
        return self.rng.choice(NAMES)

    def some_ids(self) -> list[bytes]:
        rng = self.rng
        chosen = [rng.choice(IDS) for _ in range(rng.randrange(13))]
        return [rng.randbytes(8) if each is None else each for each in chosen]

    def subscriptions_entry(self) -> dict[str, Any]:
        return {"subscribe": self.rng.random() < 0.8, "topic": self.name()}

    def ihave_entry(self) -> dict[str, Any]:
        return {"topic": self.name(), "ids": self.some_ids()}

    def iwant_entry(self) -> dict[str, Any]:
        return {"ids": self.some_ids()}

    def idontwant_entry(self) -> dict[str, Any]:
        return {"ids": self.some_ids()}

    def graft_entry(self) -> dict[str, Any]:
        return {"topic": self.name()}

    def prune_entry(self) -> dict[str, Any]:
        return {"topic": self.name(), "backoff": self.rng.choice([0, 1, 60, 2**64 - 1])}

    def publish_entry(self) -> dict[str, Any]:
        rng = self.rng
        seq = rng.randrange(4)
        data = b"%d" % seq if rng.random() < 0.8 else rng.randbytes(rng.choice([0, 40, 1100, 70_000]))
        message = message_from(rng.randrange(3), data, seqno=seq, topic=rng.choice(NAMES[:5]))
        made = {
            "author": message.author, "data": message.data, "seqno": message.seqno,
            "topics": [message.topic], "signature": message.signature,
        }  # fmt: skip
        if rng.random() < 0.3:
            made.update(
                rng.choice(
                    [
                        {"signature": b""}, {"signature": bytes(64)}, {"topics": []},
                        {"topics": [b"one", b"two"]}, {"seqno": b""}, {"author": b""},
                        {"author": rng.randbytes(38)}, {"key": b"key"},
                        {"author": b"\x00\x24\x08\x01\x12\x20" + key_of("subject")},
                    ]
                )
            )  # fmt: skip
        return made


def run(steps: list[tuple[int, int]]) -> None:
    """All of these, each after some time; every effect and every count is looked at."""
    checked = 0

    def counting(public_key: bytes, message: Message) -> bool:
        nonlocal checked
        checked += 1
        return holds(public_key, message)

    router = router_of("subject", parameters=LIMITS, check=counting, known_topic=lambda name: len(name) < 50)
    connected, now, own = set(), 50.0, sign_with(key_of("subject"))
    for passed_ms, seed in steps:
        now += passed_ms / 1000
        hostile = Hostile(random.Random(seed))
        event = hostile.event()
        if isinstance(event, Command) and isinstance(event.value, PeerUp):
            connected.add(event.value.peer)
        if isinstance(event, Command) and isinstance(event.value, PeerDown):
            connected.discard(event.value.peer)
        before, effects = checked, router.handle(event, now)
        for effect in effects:
            match effect:
                case Send(peer=peer, message=payload):
                    assert peer in connected
                    assert 0 < len(payload) <= RPC_MAX
                    for sent in RPC.parse(payload).publish:
                        message = message_of(sent)  # nothing malformed is passed on
                        assert len(message.signature) == len(own(b""))
                case SetTimer(key=key, at=at):
                    assert at > now if key == "heartbeat" else (key, at >= now) == ("forward", True)
                case CancelTimer(key=key):
                    assert key == "forward"
                case Emit(value=Fault(peer=peer, name=name, weight=weight)):
                    assert isinstance(event, Received | TimerFired)
                    assert peer in connected
                    assert dict(FAULT_WEIGHTS)[name] == weight  # type: ignore[index]
                case Emit(value=Delivered(topic=topic)):
                    assert topic in TOPICS
                case _:
                    raise AssertionError(effect)
        assert checked - before <= LIMITS.checks_burst + 1 + len(TOPICS) * 8
        held = router.held()
        assert held.keys() == BOUNDS.keys()
        over = {name: count for name, count in held.items() if count > BOUNDS[name]}
        assert not over
        for topic in TOPICS:
            assert set(router.mesh(topic)) <= set(router.topic_peers(topic)) <= connected


STEP = st.tuples(st.sampled_from([0, 0, 10, 300, 1500, 70_000]), st.integers(0, 2**32 - 1))
STEPS = st.lists(STEP, min_size=8, max_size=60)


@given(STEPS)
@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
def test_some_hostile_sequences_leave_every_bound_whole(steps: list[tuple[int, int]]) -> None:
    run(steps)


@pytest.mark.long
@given(STEPS)
@settings(max_examples=10_000, suppress_health_check=[HealthCheck.too_slow])
def test_ten_thousand_hostile_sequences_leave_every_bound_whole(steps: list[tuple[int, int]]) -> None:
    run(steps)


def test_the_sequences_reach_what_they_are_meant_to_try() -> None:
    """Else they would prove little: every fault and every kind of work comes up in some of them."""
    counts: Counter[str] = Counter()
    for start in range(0, 6000, 100):
        router, now = router_of("subject", parameters=LIMITS), 50.0
        for seed in range(start, start + 100):
            now += random.Random(seed).choice([0.0, 0.01, 0.3, 1.5])
            router.handle(Hostile(random.Random(seed)).event(), now)
        counts += router.counts
    work = ["delivered", "published", "duplicates", "ignored", "served", "heartbeats", "replays", "unchecked"]
    assert {*work, *(f"fault.{name}" for name in FAULT_WEIGHTS)} <= counts.keys()
