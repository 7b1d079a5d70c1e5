"""Whom a message goes to, who is in a mesh, and what is asked of whom: one machine among scripted peers."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from p2pnode.ids import PeerId
from p2pnode.protocols.events import CancelTimer, Closed, Effect, HalfClosed, Send, SetTimer, TimerFired
from p2pnode.protocols.gossipsub.commands import (
    ACCEPT,
    IGNORE,
    REJECT,
    Leave,
    PeerDown,
    PeerPaused,
    PeerUp,
    Publish,
    Verdict,
)
from p2pnode.protocols.gossipsub.messages import IDONTWANT_FROM, TOPIC_MAX, encode_publish, signed_bytes
from p2pnode.protocols.gossipsub.parameters import Parameters, ScoreParameters
from p2pnode.simulations.signatures import sign_with
from tests.protocols.gossipsub.mesh import (
    NAME,
    TOPIC,
    Subject,
    changed,
    control,
    deliveries,
    faults,
    key_of,
    message_from,
    peer_of,
    sends,
    subscription,
)

DEFAULT = Parameters()
OFFERED_S = DEFAULT.heartbeat_s * (DEFAULT.gossip_window + DEFAULT.promise_heartbeats + 1)
"""For so long a message that was published keeps the heartbeat going; it forgets what is over."""
OTHER = b"/p2pnode/adverts/1/" + b"cd" * 32


def joined(peers: int = 0, **more: Any) -> tuple[Subject, list[PeerId]]:
    """A subject on the topic, with so many peers on it."""
    subject = Subject(**more)
    subject.join()
    return subject, [subject.connect(number) for number in range(peers)]


def receivers(effects: list[Effect], data: bytes) -> set[PeerId]:
    return {
        each.peer
        for each in effects
        if isinstance(each, Send) and any(m.data == data for m in sends([each])[0].publish)
    }


def told(effects: list[Effect], kind: str) -> dict[PeerId, list[Any]]:
    """By peer, the entries of one kind of control message."""
    found: dict[PeerId, list[Any]] = {}
    for each in effects:
        if isinstance(each, Send):
            found.setdefault(each.peer, []).extend(getattr(sends([each])[0].control, kind))
    return {peer: entries for peer, entries in found.items() if entries}


def wants(effects: list[Effect]) -> dict[PeerId, list[bytes]]:
    return {
        peer: [each for entry in entries for each in entry.ids]
        for peer, entries in told(effects, "iwant").items()
    }


def graft(*topics: bytes) -> Any:
    return control(graft=[{"topic": topic} for topic in topics])


def prune(topic: bytes = NAME, backoff: int = 60) -> Any:
    return control(prune=[{"topic": topic, "backoff": backoff}])


def ihave(*ids: bytes, topic: bytes = NAME) -> Any:
    return control(ihave=[{"topic": topic, "ids": ids}])


def iwant(*ids: bytes) -> Any:
    return control(iwant=[{"ids": ids}])


# ---- topics and subscriptions


def test_a_new_peer_is_told_all_our_topics_and_the_others_each_change() -> None:
    subject, [first] = joined(1)
    effects = subject.command(PeerUp(peer_of("new")))
    [hello] = sends(effects, peer_of("new"))
    assert [(each.topic, each.subscribe) for each in hello.subscriptions] == [(NAME, True)]
    [change] = sends(subject.join(topic="second"), first)
    assert [(each.topic, each.subscribe) for each in change.subscriptions] == [(b"second", True)]
    assert not any(rpc.subscriptions for rpc in sends(subject.join(topic="second")))
    last = sends(subject.command(Leave("second")), first)
    assert [(each.topic, each.subscribe) for rpc in last for each in rpc.subscriptions] == [
        (b"second", False)
    ]
    assert sends(subject.command(Leave("second"))) == []


def test_without_a_topic_there_is_no_hello() -> None:
    assert sends(Subject().command(PeerUp(peer_of(1)))) == []


def test_what_a_peer_said_before_we_joined_counts() -> None:
    subject = Subject()
    peer = subject.connect(1)
    assert subject.router.topic_peers(TOPIC) == (peer,)
    assert told(subject.join(), "graft").keys() == {peer}
    subject.hear(peer, subscription(NAME, on=False))
    assert subject.router.topic_peers(TOPIC) == subject.router.mesh(TOPIC) == ()


def test_of_a_peer_64_names_are_remembered_the_oldest_goes_and_ours_stay() -> None:
    subject, [peer] = joined(1)
    names = [b"name %d" % number for number in range(100)]
    subject.hear(peer, subscription(*names))
    kept = [name for name in names if subject.router.topic_peers(name.decode())]
    assert kept == names[-63:]
    assert subject.router.topic_peers(TOPIC) == (peer,)
    assert subject.router.held()["names"] == 64


def test_of_one_rpc_128_subscriptions_are_looked_at() -> None:
    subject = Subject(parameters=Parameters(topics_per_peer=1000))
    peer = subject.connect(1, on=None)
    subject.hear(peer, subscription(*[b"%d" % number for number in range(1000)]))
    assert subject.router.held()["names"] == 128


@pytest.mark.parametrize("name", [b"", b"x" * (TOPIC_MAX + 1), b"unknown"])
def test_a_name_that_is_no_topic_is_not_remembered(name: bytes) -> None:
    subject = Subject(known_topic=lambda each: each.startswith(b"/p2pnode/"))
    peer = subject.connect(1, on=None)
    subject.hear(peer, subscription(name, OTHER))
    assert subject.router.held()["names"] == 1
    assert subject.router.topic_peers(OTHER.decode()) == (peer,)


def test_a_topic_that_we_are_on_is_known_whatever_its_name() -> None:
    subject = Subject(known_topic=lambda _name: False)
    subject.join()
    assert subject.connect(1) in subject.router.topic_peers(TOPIC)


@pytest.mark.parametrize("name", ["", "x" * (TOPIC_MAX + 1)])
def test_we_join_no_topic_whose_name_others_would_not_take(name: str) -> None:
    with pytest.raises(ValueError, match="1 to 100 bytes"):
        Subject().join(topic=name)


# ---- publishing and forwarding


def test_our_own_message_is_flooded_signed_and_delivered_to_us() -> None:
    subject, peers = joined(20)
    assert len(subject.router.mesh(TOPIC)) < 20
    effects = subject.command(Publish(TOPIC, b"mine"))
    assert receivers(effects, b"mine") == set(peers)
    assert deliveries(effects) == [b"mine"]
    [sent] = sends(effects, peers[0])[0].publish
    assert sent.signature == sign_with(key_of("subject"))(
        signed_bytes(sent.author, b"mine", sent.seqno, NAME)
    )
    [later] = sends(subject.command(Publish(TOPIC, b"next")), peers[0])[0].publish
    assert later.seqno > sent.seqno


def test_one_publishes_to_a_topic_without_joining_it() -> None:
    subject = Subject()
    peers = {subject.connect(number) for number in range(3)}
    effects = subject.command(Publish(TOPIC, b"from outside"))
    assert receivers(effects, b"from outside") == peers
    assert deliveries(effects) == []


@pytest.mark.parametrize("verdict", [REJECT, IGNORE])
def test_our_own_validator_holds_for_us(verdict: Verdict) -> None:
    subject = Subject()
    subject.join(lambda _author, _data: verdict)
    subject.connect(1)
    effects = subject.command(Publish(TOPIC, b"mine"))
    assert (deliveries(effects), receivers(effects, b"mine")) == ([], set())


def test_an_accepted_message_goes_to_the_mesh_but_not_back() -> None:
    subject, peers = joined(4)
    author = subject.connect("author")
    effects = subject.hear(peers[0], message_from("author").encode())
    assert deliveries(effects) == [b"data"]
    assert receivers(effects, b"data") == set(subject.router.mesh(TOPIC)) - {peers[0], author}


def fired(subject: Subject, effects: list[Effect]) -> list[Effect]:
    """What follows when the timer for forwarding is due."""
    [at] = [each.at for each in effects if isinstance(each, SetTimer) and each.key == "forward"]
    assert subject.now <= at <= subject.now + Parameters().forward_delay_s
    subject.now = at
    return list(subject.router.handle(TimerFired("forward"), at))


def test_a_neighbour_that_brings_a_message_before_it_is_forwarded_is_spared_it() -> None:
    subject, peers = joined(4, parameters=Parameters())
    message = message_from("author").encode()
    effects = subject.hear(peers[0], message)
    assert deliveries(effects) == [b"data"]
    assert receivers(effects, b"data") == set()
    subject.hear(peers[1], message)
    assert receivers(fired(subject, effects), b"data") == set(peers[2:])
    assert list(subject.router.handle(TimerFired("forward"), subject.now + 1)) == []


def test_the_same_bytes_again_are_not_decoded_again() -> None:
    subject, peers = joined(4, parameters=Parameters())
    message = message_from("author").encode()
    effects = subject.hear(peers[0], message)
    counts = Counter(subject.router.counts)
    for peer in peers[1:3]:
        assert subject.hear(peer, message) == []
    spent = Counter(subject.router.counts) - counts
    assert (spent["duplicates"], spent["entries"]) == (2, 0)
    assert receivers(fired(subject, effects), b"data") == {peers[3]}
    other = message_from("author", b"other", seqno=8).encode()
    both = subject.hear(peers[1], message + other)  # not the same bytes: what is new in them counts
    assert deliveries(both) == [b"other"]
    subject.rest(121)
    again = subject.hear(peers[0], message)  # forgotten by now
    assert deliveries(again) == [b"data"]


def test_what_all_neighbours_have_brought_waits_no_longer_and_needs_no_timer() -> None:
    subject, peers = joined(4, parameters=Parameters())
    first, second = (message_from("author", b"%d" % number, seqno=number).encode() for number in range(2))
    fired_later = subject.hear(peers[0], first)
    subject.hear(peers[0], second)
    for peer in peers[1:]:
        assert subject.hear(peer, first) == []  # the other one still waits
    assert subject.router.held()["forwards"] == 1
    assert subject.hear(peers[1], second) == subject.hear(peers[2], second) == []
    assert subject.hear(peers[3], second) == [CancelTimer("forward")]
    assert subject.router.held()["forwards"] == 0
    assert any(each.key == "forward" for each in fired_later if isinstance(each, SetTimer))
    assert list(subject.router.handle(TimerFired("forward"), subject.now + 1)) == []


def test_what_its_author_brings_to_a_node_without_other_neighbours_sets_no_timer() -> None:
    subject = Subject(parameters=Parameters())
    author = subject.connect("author")
    subject.join()
    effects = subject.hear(author, message_from("author").encode())
    assert deliveries(effects) == [b"data"]
    assert not any(isinstance(each, SetTimer) and each.key == "forward" for each in effects)


def test_what_waits_to_be_forwarded_is_bounded_and_goes_to_the_mesh_as_it_is_then() -> None:
    subject, peers = joined(4, parameters=Parameters(forwards_max=2))
    *_, last = [
        subject.hear(peers[0], message_from("author", b"%d" % number, seqno=number).encode())
        for number in range(3)
    ]
    assert receivers(last, b"2") == set(peers[1:])  # there was no room: it went at once
    assert subject.router.held()["forwards"] == 2
    subject.command(PeerDown(peers[1]))
    subject.now += 1
    late = list(subject.router.handle(TimerFired("forward"), subject.now))
    assert receivers(late, b"0") == receivers(late, b"1") == set(peers[2:])
    assert subject.router.held()["forwards"] == 0


def test_what_waits_is_not_forwarded_on_a_topic_that_was_left() -> None:
    subject, peers = joined(4, parameters=Parameters())
    effects = subject.hear(peers[0], message_from("author").encode())
    subject.command(Leave(TOPIC))
    assert receivers(fired(subject, effects), b"data") == set()


def test_a_message_is_delivered_once_whoever_brings_it() -> None:
    subject, peers = joined(4)
    message = message_from("author").encode()
    assert deliveries(subject.hear(peers[0], message)) == [b"data"]
    for peer in peers:
        effects = subject.hear(peer, message)
        assert (deliveries(effects), sends(effects), faults(effects)) == ([], [], [])
    assert subject.router.counts["checks"] == 1
    assert subject.router.counts["duplicates"] == 4


def test_several_messages_in_one_rpc_are_each_delivered() -> None:
    subject, [peer] = joined(1)
    messages = [message_from("author", b"%d" % number, seqno=number) for number in range(40)]
    assert len(deliveries(subject.hear(peer, encode_publish(messages)))) == 40


def test_a_message_of_a_topic_that_we_are_not_on_is_not_even_checked() -> None:
    subject, [peer] = joined(1)
    effects = subject.hear(peer, message_from("author", topic=OTHER).encode())
    assert (deliveries(effects), faults(effects)) == ([], [])
    assert subject.router.counts["checks"] == 0


def test_rpcs_of_no_bytes_are_counted_and_their_flood_is_a_fault() -> None:
    subject, [flooder] = joined(1)
    effects = [subject.hear(flooder, b"") for _ in range(20_000)]
    assert [fault for each in effects for fault in faults(each)] == [(flooder, "flood")]
    assert subject.router.counts["dropped"] >= 20_000 - Parameters().entries_burst


def test_a_stranger_who_is_not_connected_is_not_heard() -> None:
    subject, _ = joined()
    assert subject.hear(peer_of("nobody"), message_from("author").encode()) == []


@pytest.mark.parametrize("event", [Closed(peer_of(1), 0), HalfClosed(peer_of(1), 0), TimerFired("another")])
def test_streams_are_not_its_business(event: Any) -> None:
    assert list(Subject().router.handle(event, 1.0)) == []


# ---- the table of accept, reject and ignore (the rows about adverts: tests/node/test_advert_exchange.py)


def envelope(**changes: Any) -> bytes:
    """An RPC whose message has been changed after it was signed."""
    return changed(message_from("author"), **changes).encode()


@pytest.mark.parametrize(
    ("case", "payload"),
    [
        ("no signature", envelope(signature=b"")),
        ("a false signature", envelope(signature=bytes(64))),
        ("other data", envelope(data=b"other")),
        ("a sequence number of seven bytes", envelope(seqno=b"1234567")),
        ("no author", envelope(author=b"")),
        ("an author that is too long", envelope(author=b"x" * 200)),
        ("too much data", envelope(data=b"x" * 70_000)),
        ("two topics", envelope(topic=NAME) + b""),
    ],
)
def test_reject(case: str, payload: bytes) -> None:
    subject, peers = joined(6)
    if case == "two topics":
        sent = sends([Send(peers[0], 0, payload)])[0]
        sent.publish[0].topics.append(b"another")
        payload = sent.SerializeToString()
    effects = subject.hear(peers[0], payload)
    assert (deliveries(effects), faults(effects)) == ([], [(peers[0], "refused")])
    assert subject.router.score(peers[0], subject.now) < 0
    assert deliveries(subject.hear(peers[1], message_from("author").encode())) == [b"data"]


@pytest.mark.parametrize(
    ("case", "payload"),
    [
        ("an author whose key is of another kind", envelope(author=b"\x12\x20" + bytes(32))),
        ("a key that is not the author's", envelope(key=b"\x08\x01\x12\x20" + bytes(32))),
        ("we as the author", message_from("subject").encode()),
        ("a topic that we are not on", message_from("author", topic=OTHER).encode()),
    ],
)
def test_ignore(case: str, payload: bytes) -> None:
    subject, peers = joined(6)
    effects = subject.hear(peers[0], payload)
    assert (deliveries(effects), sends(effects), faults(effects)) == ([], [], [])
    assert subject.router.score(peers[0], subject.now) == 0


def test_the_validator_s_verdict_decides_who_is_charged() -> None:
    verdicts = {b"good": ACCEPT, b"bad": REJECT, b"late": IGNORE}
    subject = Subject()
    subject.join(lambda _author, data: verdicts[data])
    peers = [subject.connect(number) for number in range(6)]
    outcome = {}
    for number, data in enumerate(verdicts):
        effects = subject.hear(peers[number], message_from("author", data, seqno=number).encode())
        outcome[data] = (deliveries(effects), len(receivers(effects, data)) > 0, faults(effects))
    assert outcome == {
        b"good": ([b"good"], True, []),
        b"bad": ([], False, [(peers[1], "refused")]),
        b"late": ([], False, []),
    }
    again = subject.hear(peers[5], message_from("author", b"bad", seqno=1).encode())
    assert faults(again) == []  # its id is known: it is not looked at, and nobody is charged twice


def test_what_a_message_says_is_forwarded_once_in_five_minutes_under_whatever_id() -> None:
    subject = Subject()
    subject.join(lambda _author, data: Verdict("accept", key=data))
    subject.join(lambda _author, data: Verdict("accept", key=data), topic=OTHER.decode())
    peers = [subject.connect(number) for number in range(4)]
    seqnos = iter(range(1000))

    def replay(peer: PeerId, **more: Any) -> list[Effect]:
        return subject.hear(peer, message_from("replayer", b"advert", seqno=next(seqnos), **more).encode())

    first = replay(peers[0])
    assert len(receivers(first, b"advert")) == 3
    for peer in peers[1:]:
        again = replay(peer)
        assert (deliveries(again), sends(again), faults(again)) == ([], [], [])
    assert faults(replay(peers[1])) == []  # it may have started anew
    assert faults(replay(peers[1])) == [(peers[1], "replay")]
    assert deliveries(replay(peers[2], topic=OTHER)) == [b"advert"]  # on another topic it is new
    subject.rest(299)
    assert deliveries(replay(peers[3])) == []
    subject.rest(2)
    assert deliveries(replay(peers[0])) == [b"advert"]


def test_a_stranger_that_replays_adverts_through_an_honest_node_has_nobody_else_charged() -> None:
    """Just after the node's own 300 s, while its neighbour's are not over yet; and after it starts anew."""

    def said(_author: PeerId, data: bytes) -> Verdict:
        return Verdict("accept", key=data)

    honest, neighbour = Subject(), Subject()
    for each in (honest, neighbour):
        each.join(said)
    there, here = honest.connect("neighbour"), neighbour.connect("honest")
    stranger = honest.connect("stranger")

    def bring(number: int, author: str, at: float) -> list[Effect]:
        honest.now, neighbour.now = at, at + 0.1
        message = message_from(author, b"advert %d" % number, seqno=number)
        forwarded = [
            each.message
            for each in honest.hear(stranger, message.encode())
            if isinstance(each, Send) and each.peer == there
        ]
        assert forwarded, "the honest node didn't forward it: the test shows nothing"
        return [effect for payload in forwarded for effect in neighbour.hear(here, payload)]

    effects = [bring(number, "host", 100.0 + number) for number in range(20)]
    effects += [bring(number, "nobody", 400.05 + number) for number in range(20)]
    honest = Subject()
    honest.join(said)
    stranger = honest.connect("stranger")
    honest.connect("neighbour")
    effects += [bring(number, "somebody", 420.0) for number in range(20)]
    assert [fault for each in effects for fault in faults(each)] == []
    assert neighbour.router.counts["replays"] == 20


def test_whoever_brings_refused_messages_is_not_checked_any_more_for_a_minute() -> None:
    subject, [liar, honest] = joined(2)
    for number in range(40):
        subject.hear(liar, envelope(seqno=number.to_bytes(8, "big"), signature=b"x"))
    assert subject.router.counts["checks"] == Parameters().forgeries_max
    assert deliveries(subject.hear(honest, message_from("author").encode())) == [b"data"]
    subject.rest(61)
    subject.hear(liar, envelope(signature=b"x", seqno=b"12345678"))
    assert subject.router.counts["checks"] == Parameters().forgeries_max + 2


# ---- the mesh


def test_a_mesh_is_filled_to_its_degree_and_takes_grafts_up_to_its_limit() -> None:
    subject, peers = joined(30)
    assert len(subject.router.mesh(TOPIC)) == 4  # whoever comes is grafted until there are enough
    others = [peer for peer in peers if peer not in subject.router.mesh(TOPIC)]
    for peer in others[:8]:
        assert sends(subject.hear(peer, graft(NAME))) == []
    assert len(subject.router.mesh(TOPIC)) == 12
    effects = subject.hear(others[8], graft(NAME))
    [refusal] = told(effects, "prune")[others[8]]
    assert (refusal.topic, refusal.backoff) == (NAME, 60)
    assert len(subject.router.mesh(TOPIC)) == 12


def test_who_joins_grafts_six_of_those_that_are_there() -> None:
    subject = Subject()
    for number in range(30):
        subject.connect(number)
    assert len(told(subject.join(), "graft")) == len(subject.router.mesh(TOPIC)) == 6


def test_a_peer_that_we_dialled_gets_in_where_the_mesh_is_full_and_the_heartbeat_cuts_it() -> None:
    subject, peers = joined(12)
    for peer in peers:
        subject.hear(peer, graft(NAME))
    dialled = [subject.connect(f"dialled {number}", dialled=True) for number in range(3)]
    for peer in dialled:
        assert told(subject.hear(peer, graft(NAME)), "prune") == {}
    assert len(subject.router.mesh(TOPIC)) == 15
    effects = subject.beat()
    assert len(subject.router.mesh(TOPIC)) == 6
    assert len(told(effects, "prune")) == 9
    assert len(set(dialled) & set(subject.router.mesh(TOPIC))) >= 2


def test_a_mesh_has_peers_that_we_dialled_where_there_are_any() -> None:
    subject, _ = joined(6)
    dialled = {subject.connect(f"dialled {number}", dialled=True) for number in range(3)}
    assert not dialled & set(subject.router.mesh(TOPIC))
    subject.beat()
    assert len(dialled & set(subject.router.mesh(TOPIC))) == 2


def test_when_a_neighbour_goes_another_takes_its_place_at_the_next_heartbeat() -> None:
    subject, _ = joined(10)
    gone = subject.router.mesh(TOPIC)[0]
    subject.command(PeerDown(gone))
    assert len(subject.router.mesh(TOPIC)) == 3
    subject.beat()
    assert len(subject.router.mesh(TOPIC)) == 6
    assert gone not in subject.router.topic_peers(TOPIC)


def test_a_graft_without_a_subscription_says_that_the_peer_is_on_the_topic() -> None:
    subject, _ = joined()
    peer = subject.connect(1, on=None)
    subject.hear(peer, graft(NAME))
    assert subject.router.mesh(TOPIC) == subject.router.topic_peers(TOPIC) == (peer,)


def test_who_prunes_us_is_left_alone_until_its_back_off_is_over() -> None:
    subject, [peer] = joined(1)
    effects = subject.hear(peer, prune(backoff=30))
    assert (sends(effects), subject.router.mesh(TOPIC)) == ([], ())
    assert told(subject.rest(29), "graft") == {}
    assert told(subject.rest(2), "graft").keys() == {peer}


@pytest.mark.parametrize(("asked", "kept"), [(0, 60), (2**64 - 1, 600)])
def test_a_back_off_has_a_default_and_a_limit(asked: int, kept: int) -> None:
    subject, [peer] = joined(1)
    subject.hear(peer, prune(backoff=asked))
    assert told(subject.rest(kept - 1), "graft") == {}
    assert told(subject.rest(2), "graft").keys() == {peer}


def test_a_graft_within_the_back_off_is_a_fault_and_refused() -> None:
    subject, [peer] = joined(1)
    subject.hear(peer, prune())
    effects = subject.hear(peer, graft(NAME))
    assert faults(effects) == [(peer, "graft")]
    assert told(effects, "prune").keys() == {peer}
    assert subject.router.mesh(TOPIC) == ()


def test_a_node_on_many_topics_that_starts_anew_is_charged_once() -> None:
    subject, _ = joined(5)
    names = [b"/p2pnode/adverts/1/%064x" % number for number in range(20)]
    for name in names:
        subject.join(topic=name.decode())
    for number in range(5):
        subject.hear(peer_of(number), subscription(*names))
    node = subject.connect("node", on=None)
    subject.hear(node, subscription(*names))
    subject.hear(node, control(prune=[{"topic": name, "backoff": 10} for name in names]))
    subject.command(PeerDown(node))
    subject.rest(3)
    subject.command(PeerUp(node))
    subject.hear(node, subscription(*names))
    effects = subject.hear(node, graft(*names))
    assert faults(effects) == [(node, "graft")]
    assert len(told(effects, "prune")[node]) == 20
    assert subject.router.score(node, subject.now) == 0


def test_a_graft_that_comes_before_our_own_stream_is_judged_when_that_is_there() -> None:
    subject, peers = joined(5)
    early, late = peer_of("early"), peer_of("late")
    for peer in (early, late):
        subject.command(PeerUp(peer, takes=False))
        assert sends(subject.hear(peer, graft(NAME))) == []
    subject.hear(late, prune())  # it has changed its mind
    for peer in (early, late):
        subject.command(PeerUp(peer))
    assert early in subject.router.mesh(TOPIC)
    assert late not in subject.router.mesh(TOPIC)
    for peer in peers:
        subject.hear(peer, graft(NAME))
    for number in range(6):
        subject.hear(subject.connect(f"more {number}"), graft(NAME))
    assert len(subject.router.mesh(TOPIC)) == 12
    refused = peer_of("refused")
    subject.command(PeerUp(refused, takes=False))
    subject.hear(refused, graft(NAME))
    assert told(subject.command(PeerUp(refused)), "prune").keys() == {refused}


def test_who_comes_and_goes_is_not_grafted_each_time() -> None:
    subject, [peer] = joined(1)
    for _ in range(10):
        subject.hear(peer, subscription(NAME, on=False))
        assert told(subject.hear(peer, subscription(NAME)), "graft") == {}
    assert told(subject.rest(11), "graft").keys() == {peer}


def test_who_leaves_a_topic_prunes_its_neighbours_for_a_short_time() -> None:
    subject, [peer] = joined(1)
    [left] = told(subject.command(Leave(TOPIC)), "prune")[peer]
    assert (left.topic, left.backoff) == (NAME, 10)
    assert told(subject.join(), "graft") == {}
    assert told(subject.rest(11), "graft").keys() == {peer}


def test_back_offs_are_bounded_and_expire() -> None:
    subject, peers = joined(3, parameters=Parameters(backoffs_max=8))
    names = [b"/p2pnode/adverts/1/%064x" % number for number in range(20)]
    for name in names:
        subject.join(topic=name.decode())
        for peer in peers:
            subject.hear(peer, prune(name, 5))
    assert subject.router.held()["backoffs"] == 3 * 8
    subject.rest(120)
    subject.command(Publish(TOPIC, b"a heartbeat's reason"))
    subject.rest(OFFERED_S)
    assert subject.router.held()["backoffs"] == 0


def test_nobody_pushes_out_the_back_off_that_another_asked_for() -> None:
    subject, [peer] = joined(1)
    subject.hear(peer, prune(backoff=600))
    for number in range(5000):
        stranger = subject.connect(1 + number)
        subject.hear(stranger, prune(backoff=600))
        subject.command(PeerDown(stranger))
    assert told(subject.rest(500), "graft") == {}
    assert told(subject.rest(120), "graft").keys() == {peer}


def test_a_back_off_outlives_the_connection() -> None:
    subject, [peer] = joined(1)
    subject.hear(peer, prune(backoff=30))
    subject.command(PeerDown(peer))
    subject.connect(0)
    assert told(subject.rest(28), "graft") == {}
    assert faults(subject.hear(peer, graft(NAME))) == [(peer, "graft")]


@pytest.mark.parametrize(
    "rpc",
    [
        graft(OTHER), prune(OTHER), ihave(b"id", topic=OTHER), iwant(b"id"),
        control(idontwant=[{"ids": [b""]}]), control(),
    ],
    ids=["graft", "prune", "ihave", "iwant", "idontwant", "nothing"],
)  # fmt: skip
def test_control_of_a_topic_that_we_are_not_on_leaves_no_trace(rpc: Any) -> None:
    subject, [peer] = joined(1)
    before = subject.router.held()
    effects = subject.hear(peer, rpc)
    assert (effects, subject.router.held()) == ([], before)


def test_a_peer_that_takes_nothing_is_out_of_the_mesh_and_comes_back_with_its_topics() -> None:
    subject, [peer] = joined(1)
    subject.command(PeerPaused(peer))
    assert subject.router.mesh(TOPIC) == ()
    effects = [
        *subject.command(Publish(TOPIC, b"unheard")),
        *subject.hear(peer, graft(NAME)),
        *subject.hear(peer, iwant(b"id")),
        *subject.hear(peer, subscription(NAME)),
        *subject.rest(10),
    ]
    assert sends(effects) == []
    assert subject.router.topic_peers(TOPIC) == (peer,)
    effects = subject.command(PeerUp(peer))
    assert [each.topic for rpc in sends(effects) for each in rpc.subscriptions] == [NAME]
    assert subject.router.mesh(TOPIC) == (peer,)  # its GRAFT was kept


# ---- gossip


def test_peers_outside_the_mesh_are_offered_what_we_have_for_three_heartbeats() -> None:
    subject, _ = joined(16)
    mesh = set(subject.router.mesh(TOPIC))
    subject.hear(min(mesh), message_from("author").encode())
    for _ in range(3):
        offered = told(subject.beat(), "ihave")
        assert len(offered) == 6
        assert not mesh & offered.keys()
        assert [list(each.ids) for each in offered[min(offered)]] == [[message_from("author").id]]
    assert told(subject.rest(60), "ihave") == {}


def test_nothing_is_offered_to_who_has_it() -> None:
    subject, peers = joined(9)
    outside = [peer for peer in peers if peer not in subject.router.mesh(TOPIC)]
    message = message_from("author")
    subject.hear(outside[0], message.encode())
    subject.hear(outside[1], message.encode())
    subject.command(Publish(TOPIC, b"flooded to all"))
    offered = told(subject.rest(5), "ihave")
    assert offered.keys() == set(outside[2:])
    assert {tuple(each.ids) for entries in offered.values() for each in entries} == {(message.id,)}


def test_nothing_is_offered_to_who_offers_it() -> None:
    subject, peers = joined(9)
    outside = [peer for peer in peers if peer not in subject.router.mesh(TOPIC)]
    message = message_from("author")
    subject.hear(subject.router.mesh(TOPIC)[0], message.encode())
    unknown = message_from("author", seqno=99).id
    effects = subject.hear(outside[0], ihave(message.id, unknown, b""))
    assert [list(each.ids) for each in told(effects, "iwant")[outside[0]]] == [[unknown]]
    assert told(subject.beat(), "ihave").keys() == set(outside[1:])


def with_one_outside() -> tuple[Subject, PeerId, PeerId]:
    """A subject that has nothing to do, one of its mesh, and the only peer outside of it."""
    subject, peers = joined(5)
    subject.rest(5)
    [outside] = set(peers) - set(subject.router.mesh(TOPIC))
    return subject, subject.router.mesh(TOPIC)[0], outside


def test_of_two_peers_outside_of_one_anothers_mesh_one_offers() -> None:
    subject, neighbour, outside = with_one_outside()
    beats = subject.router.counts["heartbeats"]
    for number in range(4):  # one a second: the other side's heartbeat comes first each time
        message = message_from("author", seqno=number)
        assert told(subject.hear(neighbour, message.encode()), "ihave") == {}
        subject.rest(0.5)
        subject.hear(outside, ihave(message.id))
        assert told(subject.rest(0.5), "ihave") == {}
    assert subject.router.counts["heartbeats"] == beats
    unheard = message_from("author", seqno=9)
    subject.hear(neighbour, unheard.encode())
    offered = told(subject.beat(), "ihave")
    assert [list(each.ids) for each in offered[outside]] == [[unheard.id]]
    subject.rest(20)
    assert (subject.router.held()["messages"], subject.timer) == (0, None)


def test_no_other_work_is_put_off_with_offers() -> None:
    subject, neighbour, outside = with_one_outside()
    message = message_from("author")
    subject.hear(neighbour, message.encode())
    due = subject.timer
    subject.command(PeerDown(neighbour))
    subject.hear(outside, ihave(message.id))
    assert (subject.timer, due) == (due, subject.now + DEFAULT.heartbeat_s)
    assert told(subject.beat(), "graft").keys() == {outside}


def test_an_offer_of_some_messages_puts_off_no_offer_of_the_others() -> None:
    subject, neighbour, outside = with_one_outside()
    first, second = (message_from("author", seqno=number) for number in range(2))
    subject.hear(neighbour, first.encode())
    subject.hear(neighbour, second.encode())
    subject.hear(outside, ihave(second.id))
    offered = told(subject.beat(), "ihave")
    assert [list(each.ids) for each in offered[outside]] == [[first.id]]


def test_a_peer_that_asked_for_a_message_is_not_offered_it_again() -> None:
    subject, neighbour, outside = with_one_outside()
    message = message_from("author")
    subject.hear(neighbour, message.encode())
    assert told(subject.beat(), "ihave").keys() == {outside}
    subject.hear(outside, control(iwant=[{"ids": [message.id]}]))
    assert told(subject.rest(20), "ihave") == {}


def test_where_all_are_in_the_mesh_no_heartbeat_offers_anything() -> None:
    subject, peers = joined(4)
    assert len(subject.router.mesh(TOPIC)) == 4
    subject.rest(5)
    before = subject.router.counts["heartbeats"]
    for number in range(20):
        subject.hear(peers[0], message_from("author", seqno=number).encode())
        subject.rest(0.5)
    assert subject.router.counts["heartbeats"] - before <= 2
    subject.rest(8)
    assert subject.router.held()["messages"] == 0
    assert subject.timer is None


def test_who_comes_while_a_message_is_offered_is_offered_it() -> None:
    subject, peers = joined(4)
    subject.rest(5)
    message = message_from("author")
    subject.hear(peers[0], message.encode())
    subject.rest(1.5)
    late = subject.connect("late")
    assert late not in subject.router.mesh(TOPIC)
    assert told(subject.beat(), "ihave").keys() == {late}


def test_what_is_offered_is_served_for_five_heartbeats_more_to_each_peer_once() -> None:
    subject, [peer, other] = joined(2)
    message = message_from("author")
    subject.hear(other, message.encode())
    subject.rest(3.5)  # the last offer was half a second ago
    subject.rest(4.4)
    effects = subject.hear(peer, iwant(*[message.id] * 5000))
    assert receivers(effects, b"data") == {peer}
    assert sum(len(rpc.publish) for rpc in sends(effects)) == 1
    assert sends(subject.hear(peer, iwant(message.id))) == []
    subject.rest(1)
    assert sends(subject.hear(other, iwant(message.id))) == []


def test_an_iwant_is_answered_up_to_256_ids_and_so_many_bytes_a_heartbeat() -> None:
    limits = Parameters(answer_bytes_per_heartbeat=5000)
    subject, [peer, other] = joined(2, parameters=limits)
    messages = [message_from("author", bytes(1000), seqno=number) for number in range(20)]
    for message in messages:
        subject.hear(other, message.encode())
    effects = subject.hear(peer, iwant(*[message.id for message in messages]))
    assert sum(len(rpc.publish) for rpc in sends(effects)) == 5
    assert sends(subject.hear(peer, iwant(*[message.id for message in messages]))) == []
    subject.rest(1.1)
    effects = subject.hear(peer, iwant(*[message.id for message in messages]))
    assert sum(len(rpc.publish) for rpc in sends(effects)) == 5
    late = iwant(*[b"%d" % number for number in range(256)], messages[-1].id)
    subject.rest(1.1)
    assert sends(subject.hear(peer, late)) == []


def test_a_cache_that_is_full_offers_less_and_breaks_no_promise() -> None:
    subject, peers = joined(16, parameters=Parameters(cache_bytes_max=3 * 1256))
    messages = [message_from("author", bytes(1000), seqno=number) for number in range(5)]
    mesh = subject.router.mesh(TOPIC)
    for message in messages:
        assert deliveries(subject.hear(mesh[0], message.encode())) == [bytes(1000)]  # forwarded all the same
    offered = told(subject.beat(), "ihave")
    assert {tuple(each.ids) for entries in offered.values() for each in entries} == {
        tuple(message.id for message in messages[:3])
    }
    assert len(sends(subject.hear(min(offered), iwant(*[m.id for m in messages])))[0].publish) == 3
    assert subject.router.held()["message_bytes"] <= 3 * 1256
    del peers


def test_what_is_new_to_us_is_asked_for_once_a_peer_and_three_times_in_all() -> None:
    subject, peers = joined(6)
    subject.hear(peers[0], message_from("author").encode())
    ids = [message_from("author").id, b"new", b"new", b""]
    assert wants(subject.hear(peers[0], ihave(*ids))) == {peers[0]: [b"new"]}
    assert wants(subject.hear(peers[0], ihave(*ids))) == {}
    for peer in peers[1:3]:
        assert wants(subject.hear(peer, ihave(*ids))) == {peer: [b"new"]}
    assert wants(subject.hear(peers[3], ihave(*ids))) == {}


def test_liars_that_offer_an_id_first_do_not_keep_it_from_being_asked_of_others() -> None:
    subject, [*liars, honest] = joined(4)
    coming = message_from("author").id
    for liar in liars:
        assert wants(subject.hear(liar, ihave(coming))) == {liar: [coming]}
    assert wants(subject.hear(honest, ihave(coming))) == {}
    subject.rest(3)
    assert wants(subject.hear(honest, ihave(coming))) == {honest: [coming]}
    assert wants(subject.hear(liars[0], ihave(coming))) == {}


def test_of_offers_256_ids_are_asked_for_and_ten_rpcs_are_looked_at_in_a_heartbeat() -> None:
    subject, [peer] = joined(1)
    many = [b"id %d" % number for number in range(600)]
    assert len(wants(subject.hear(peer, ihave(*many)))[peer]) == 256
    assert wants(subject.hear(peer, ihave(b"one more"))) == {}
    subject.rest(1.1)
    assert wants(subject.hear(peer, ihave(b"one more"))) == {peer: [b"one more"]}
    for number in range(9):
        subject.hear(peer, ihave(b"%d" % number))
    assert wants(subject.hear(peer, ihave(b"the eleventh"))) == {}


def test_a_promise_that_nobody_keeps_is_a_fault_after_three_seconds() -> None:
    subject, peers = joined(6)
    message = message_from("author")
    for peer in peers[:2]:
        subject.hear(peer, ihave(message.id))
    subject.hear(peers[2], ihave(b"never comes"))
    subject.hear(peers[5], message.encode())  # whoever brings it
    assert faults(subject.rest(2.9)) == []
    assert faults(subject.rest(1.1)) == [(peers[2], "promise")]
    assert subject.router.held()["promises"] == 0


def test_of_one_offer_one_promise_is_watched() -> None:
    subject, [peer] = joined(1)
    subject.hear(peer, ihave(*[b"%d" % number for number in range(200)]))
    assert len(faults(subject.rest(5))) == 1


def test_a_peer_that_left_owes_nothing() -> None:
    subject, [peer] = joined(1)
    subject.hear(peer, ihave(b"never comes"))
    subject.command(PeerDown(peer))
    assert faults(subject.rest(10)) == []
    assert subject.router.held()["promises"] == 0


# ---- what version 1.2 adds: IDONTWANT


def test_from_1_kib_on_the_neighbours_that_speak_1_2_are_told_not_to_send_it() -> None:
    subject, peers = joined(3)
    old = subject.connect("old", idontwant=False)
    big = message_from("author", bytes(IDONTWANT_FROM))
    spared = told(subject.hear(peers[0], big.encode()), "idontwant")
    assert spared.keys() == set(peers[1:])
    assert old in subject.router.mesh(TOPIC)
    assert [list(each.ids) for each in spared[peers[1]]] == [[big.id]]
    small = message_from("author", bytes(IDONTWANT_FROM - 1), seqno=8)
    assert told(subject.hear(peers[0], small.encode()), "idontwant") == {}


def test_a_large_message_is_spared_whom_it_is_unwanted_by_and_a_small_one_never() -> None:
    subject, peers = joined(4)
    big = message_from("author", bytes(IDONTWANT_FROM), seqno=1)
    small = message_from("author", b"small", seqno=2)
    subject.hear(peers[0], control(idontwant=[{"ids": [big.id, small.id]}]))
    assert receivers(subject.hear(peers[1], big.encode()), big.data) == set(peers[2:])
    assert receivers(subject.hear(peers[1], small.encode()), b"small") == {peers[0], *peers[2:]}


def test_what_is_unwanted_is_bounded_and_forgotten() -> None:
    subject, [peer] = joined(1)
    for start in range(0, 2000, 500):
        ids = [b"%d" % number for number in range(start, start + 500)]
        subject.hear(peer, control(idontwant=[{"ids": ids}]))
    assert subject.router.held()["unwanted"] == DEFAULT.unwanted_max
    subject.rest(DEFAULT.promise_s + 1)
    subject.command(Publish(TOPIC, b"a heartbeat's reason"))
    subject.rest(OFFERED_S)
    assert subject.router.held()["unwanted"] == 0


# ---- scores


def refuse(subject: Subject, peer: PeerId, times: int) -> None:
    for number in range(times):
        subject.hear(peer, envelope(seqno=(900 + number).to_bytes(8, "big"), signature=b"x"))


def test_a_liar_is_pruned_then_not_heard_and_in_minutes_forgiven() -> None:
    subject, peers = joined(8)
    liar = subject.router.mesh(TOPIC)[0]
    refuse(subject, liar, 1)
    subject.beat()
    assert liar not in subject.router.mesh(TOPIC)
    assert told(subject.hear(liar, graft(NAME)), "prune").keys() == {liar}
    refuse(subject, liar, 3)
    subject.hear(liar, message_from("author").encode())
    assert subject.router.counts["graylisted"] >= 1
    assert deliveries(subject.hear(peers[-1], message_from("author", seqno=8).encode())) == [b"data"]
    subject.rest(15 * 60)
    assert subject.router.score(liar, subject.now) == 0
    assert deliveries(subject.hear(liar, message_from("author", seqno=9).encode())) == [b"data"]


@pytest.mark.parametrize(("others", "heard"), [(3, True), (4, False)])
def test_nobody_is_graylisted_or_pruned_while_fewer_than_four_others_are_on_the_topic(
    others: int, heard: bool
) -> None:
    subject, peers = joined(others + 1)
    refuse(subject, peers[0], 5)
    subject.beat()
    assert (peers[0] in subject.router.mesh(TOPIC)) == heard
    assert (deliveries(subject.hear(peers[0], message_from("author").encode())) == [b"data"]) == heard


def test_a_liar_that_comes_back_has_the_score_it_left_with() -> None:
    subject, peers = joined(8)
    refuse(subject, peers[0], 4)
    score = subject.router.score(peers[0], subject.now)
    subject.command(PeerDown(peers[0]))
    assert subject.router.score(peers[0], subject.now) == 0
    subject.connect(0)
    assert subject.router.score(peers[0], subject.now) == score < 0


def test_our_own_messages_are_not_flooded_to_liars() -> None:
    subject, peers = joined(8)
    refuse(subject, peers[0], 3)
    assert receivers(subject.command(Publish(TOPIC, b"mine")), b"mine") == set(peers[1:])


def test_below_the_gossip_threshold_nothing_is_offered_asked_or_answered() -> None:
    subject, peers = joined(8)
    message = message_from("author")
    subject.hear(peers[1], message.encode())
    refuse(subject, peers[0], 2)
    assert (
        sends(subject.hear(peers[0], ihave(b"new"))) == sends(subject.hear(peers[0], iwant(message.id))) == []
    )
    assert peers[0] not in told(subject.rest(5), "ihave")
    assert sends(subject.hear(peers[1], ihave(b"new"))) != []


def test_where_the_mesh_serves_badly_better_peers_are_grafted() -> None:
    limits = Parameters(score=ScoreParameters(first_weight=0.5, opportunistic_graft_threshold=0.3))
    subject, peers = joined(12, parameters=limits)
    good = [peer for peer in peers if peer not in subject.router.mesh(TOPIC)][:3]
    for number, peer in enumerate(good):
        subject.hear(peer, message_from("author", seqno=number, data=b"%d" % number).encode())
    before = set(subject.router.mesh(TOPIC))
    subject.beat()
    grafted = set(subject.router.mesh(TOPIC)) - before
    assert len(grafted) == 2
    assert grafted < set(good)


def test_among_equals_a_mesh_takes_one_of_each_group_first() -> None:
    subject = Subject()
    crowd = [subject.connect(number, group="203.0.113.0/24") for number in range(50)]
    few = {subject.connect(f"far {number}", group=f"net {number}") for number in range(5)}
    subject.join()
    mesh = set(subject.router.mesh(TOPIC))
    assert few < mesh
    assert len(mesh & set(crowd)) == 1


def test_a_mesh_full_of_one_group_takes_grafts_from_elsewhere_up_to_fair_shares() -> None:
    subject, _ = joined()
    crowd = [subject.connect(number, group="203.0.113.0/24") for number in range(12)]
    for peer in crowd:
        subject.hear(peer, graft(NAME))
    assert len(subject.router.mesh(TOPIC)) == 12
    refuse(subject, crowd[5], 1)
    pruned: list[PeerId] = []
    for number in range(6):
        far = subject.connect(f"far {number}", group=f"net {number}")
        effects = subject.hear(far, graft(NAME))
        assert far in subject.router.mesh(TOPIC)
        pruned += told(effects, "prune")
    assert pruned[0] == crowd[5]  # the worst one first
    assert set(pruned) < set(crowd)
    assert len(subject.router.mesh(TOPIC)) == 12
    near = subject.connect("one more of them", group="203.0.113.0/24")
    assert told(subject.hear(near, graft(NAME)), "prune").keys() == {near}


def test_nobody_takes_turns_for_a_place() -> None:
    subject, _ = joined()
    peers = [subject.connect(number, group=f"net {number}") for number in range(12)]
    for peer in peers:
        subject.hear(peer, graft(NAME))
    new = subject.connect("new", group="another net")
    assert told(subject.hear(new, graft(NAME)), "prune").keys() == {new}
    alone, others = joined()[0], [f"lan {number}" for number in range(12)]
    for name in others:  # no group: nobody of them gives way
        alone.hear(alone.connect(name), graft(NAME))
    late = alone.connect("late", group="a net")
    assert told(alone.hear(late, graft(NAME)), "prune").keys() == {late}


def test_a_mesh_that_is_cut_keeps_peers_of_many_groups_among_equals() -> None:
    subject, _ = joined()
    crowd = [subject.connect(number, group="203.0.113.0/24", dialled=True) for number in range(14)]
    few = {subject.connect(f"far {number}", group=f"net {number}", dialled=True) for number in range(5)}
    for peer in [*crowd, *few]:
        subject.hear(peer, graft(NAME))
    assert len(subject.router.mesh(TOPIC)) == 19
    subject.beat()
    assert few < set(subject.router.mesh(TOPIC))
    assert len(subject.router.mesh(TOPIC)) == 6


def test_who_is_in_the_mesh_for_long_and_brings_nothing_is_no_better_than_who_brings_something() -> None:
    subject, peers = joined(12)
    silent = set(subject.router.mesh(TOPIC))
    subject.rest(3600)
    good = [peer for peer in peers if peer not in silent][:2]
    for number in range(6):
        message = message_from("author", b"%d" % number, seqno=number)
        subject.hear(good[number % 2], message.encode())
    subject.rest(70)
    assert set(good) <= set(subject.router.mesh(TOPIC))


def test_peers_without_a_group_are_never_held_against_one_another() -> None:
    subject = Subject()
    for number in range(20):
        subject.connect(number)
    subject.join()
    assert len(subject.router.mesh(TOPIC)) == 6
    assert all(subject.router.score(peer, subject.now) >= 0 for peer in subject.router.mesh(TOPIC))


# ---- the heartbeat


def test_an_idle_node_has_no_heartbeat() -> None:
    subject, peers = joined(8)
    subject.rest(30)
    assert subject.timer is None
    assert subject.router.counts["heartbeats"] <= 1
    subject.hear(peers[0], message_from("author").encode())
    assert subject.timer is not None
    subject.rest(60)
    assert subject.timer is None
    assert subject.router.counts["heartbeats"] <= 6


def test_a_node_alone_has_none_and_one_in_back_off_waits_for_its_end() -> None:
    subject, _ = joined()
    subject.rest(10)
    assert subject.timer is None
    peer = subject.connect(1)
    subject.hear(peer, prune(backoff=500))
    subject.rest(5)
    assert subject.router.counts["heartbeats"] <= 3
    assert subject.timer is not None
    assert subject.timer > subject.now + 400


def test_a_heartbeat_that_was_not_asked_for_does_nothing() -> None:
    subject = Subject()
    assert list(subject.router.handle(TimerFired("heartbeat"), 5.0)) == []


def test_no_timer_is_ever_set_in_the_past() -> None:
    subject, peers = joined(4)
    effects = subject.hear(peers[0], message_from("author").encode())
    assert all(each.at > subject.now for each in effects if isinstance(each, SetTimer))


# ---- the published form


def test_version_1_0_sends_to_the_mesh_only_and_beats_each_second() -> None:
    subject, peers = joined(20, parameters=Parameters.v1_0())
    assert subject.router.mesh(TOPIC) == ()  # it fills at the heartbeat, not before
    subject.beat()
    mesh = set(subject.router.mesh(TOPIC))
    assert len(mesh) == 6
    assert receivers(subject.command(Publish(TOPIC, b"mine")), b"mine") == mesh
    subject.rest(60)
    assert subject.router.counts["heartbeats"] == 61
    subject.hear(peers[0], prune(backoff=0))
    assert subject.router.held()["backoffs"] == 0
    refuse(subject, peers[0], 5)
    assert subject.router.score(peers[0], subject.now) == 0


def test_version_1_0_takes_in_whoever_grafts_and_cuts_its_mesh_at_the_heartbeat() -> None:
    subject, peers = joined(14, parameters=Parameters.v1_0())
    for peer in peers[:13]:
        assert told(subject.hear(peer, graft(NAME)), "prune") == {}
    assert len(subject.router.mesh(TOPIC)) == 13
    assert len(told(subject.beat(), "prune")) == 7
    assert len(subject.router.mesh(TOPIC)) == 6


def test_version_1_0_publishes_from_outside_to_six() -> None:
    subject = Subject(parameters=Parameters.v1_0())
    for number in range(20):
        subject.connect(number)
    assert len(receivers(subject.command(Publish(TOPIC, b"x")), b"x")) == 6
