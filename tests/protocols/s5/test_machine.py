"""A connection between two S5 nodes: who they are is proved, questions are answered, and nothing grows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pnode.errors import ProtocolError
from p2pnode.ids import PeerId
from p2pnode.protocols.events import Closed, Command, Effect, Emit, Received, Send, SetTimer, TimerFired
from p2pnode.protocols.s5.commands import (
    Announce,
    AskEntry,
    BlobHeld,
    Connected,
    Ended,
    EntryHeard,
    EntryHeld,
    FindBlob,
    LocationHeard,
    NewEntry,
    PeersHeard,
    PushEntry,
    SearchOver,
    WantedBlob,
    WantedEntry,
)
from p2pnode.protocols.s5.connection import (
    ASKED_MAX,
    CHECKS_BURST,
    CHECKS_PER_S,
    EARLY_MAX,
    ENTRY_WAIT_S,
    HANDSHAKE_S,
    LOCATIONS_MAX,
    LOOKUPS_BURST,
    LOOKUPS_MAX,
    S5Peer,
)
from p2pnode.protocols.s5.entries import Entry, EntryKey
from p2pnode.protocols.s5.ids import BlobHash, hash_of
from p2pnode.protocols.s5.locations import ARCHIVE, FULL, StorageLocation, make_location
from p2pnode.protocols.s5.messages import (
    FRAME_MAX,
    PEERS_MAX,
    URIS_MAX,
    AnnouncePeers,
    HandshakeDone,
    HandshakeOpen,
    HashQuery,
    Ignored,
    KnownPeer,
    RegistryQuery,
    Signed,
    decode,
    decode_statement,
    encode,
    sign_statement,
)
from p2pnode.protocols.s5.nodes import NodeId
from tests.protocols.s5.support import HELLO_HASH, OTHER, ZERO, Key, messages, statements

US, THEM = ZERO, OTHER
CHALLENGE, THEIRS = b"\xc0" * 32, b"\xc1" * 64
THIRD = Key(b"\x02" * 32)
PEER = PeerId("the other side")


class Side:
    """A machine, and what it said: ``sent`` and ``told``."""

    def __init__(self, key: Key = US, challenge: bytes = CHALLENGE, **options: Any) -> None:
        options = {"dialled": True, **options}
        self.machine = S5Peer(node=key.node, sign=key.sign, challenge=challenge, peer=PEER, **options)
        self.now = 0.0
        self.sent: list[Any] = []
        self.told: list[Any] = []
        self.timers: dict[str, float] = {}
        self.note(self.machine.start(0.0))

    def note(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(message=message):
                    self.sent.append(message)
                case Emit(value=value):
                    self.told.append(value)
                case SetTimer(key=key, at=at):
                    self.timers[key] = at
                case _:
                    self.timers.pop(effect.key, None)

    def hear(self, message: Any) -> None:
        self.note(self.machine.handle(Received(PEER, 0, message), self.now))

    def say(self, command: Any) -> None:
        self.note(self.machine.handle(Command(command), self.now))

    def pass_time(self, until: float) -> None:
        for key, at in sorted(self.timers.items(), key=lambda item: item[1]):
            if at <= until:
                del self.timers[key]
                self.now = at
                self.note(self.machine.handle(TimerFired(key), at))
        self.now = until

    def clear(self) -> None:
        self.sent.clear()
        self.told.clear()

    def end(self) -> Ended:
        (ended,) = [each for each in self.told if isinstance(each, Ended)]
        assert isinstance(ended, Ended)
        return ended


def done(key: Key = THEM, challenge: bytes = CHALLENGE, **fields: Any) -> Signed:
    return sign_statement(HandshakeDone(challenge=challenge, **fields), key.node, key.sign)


def opened(**options: Any) -> Side:
    """Ours, after the handshake, with what it said then forgotten."""
    side = Side(**options)
    side.hear(HandshakeOpen(challenge=THEIRS))
    side.hear(done())
    side.clear()
    return side


def location(key: Key = THEM, digest: BlobHash = HELLO_HASH, **fields: Any) -> StorageLocation:
    told: dict[str, Any] = {"parts": ("http://x/",), "expires_at": 10, **fields}
    return make_location(digest, node=key.node, sign=key.sign, **told)


# ---- the handshake


def test_two_sides_prove_who_they_are_to_each_other() -> None:
    one, two = Side(US, dialled=False, uris=("ws://one/s5/p2p",)), Side(THEM, THEIRS[:32], expected=US.node)
    exchange(one, two)
    assert one.told == [Connected(THEM.node, ())]
    assert two.told == [Connected(US.node, ("ws://one/s5/p2p",))]
    assert (one.machine.node, two.machine.node) == (THEM.node, US.node)
    assert not one.timers
    assert not two.timers


def exchange(one: Side, two: Side) -> None:
    """Each says all to the other, over the wire's bytes, until both are silent."""
    while one.sent or two.sent:
        for speaker, listener in ((one, two), (two, one)):
            said, speaker.sent = speaker.sent, []
            for message in said:
                listener.hear(decode(encode(message)))


def test_who_was_dialled_waits_until_the_dialler_has_spoken() -> None:
    """libs5 misses what it is told before that."""
    side = Side(dialled=False)
    assert side.sent == []
    side.hear(HandshakeOpen(challenge=THEIRS))
    assert [type(each) for each in side.sent] == [HandshakeOpen, Signed]
    side.pass_time(HANDSHAKE_S)
    assert side.end().reason == "handshake_timeout"


def test_the_challenge_of_s5js_is_signed_as_it_expects() -> None:
    side = Side()
    assert encode(side.sent[0]) == bytes.fromhex("01c420") + CHALLENGE
    side.hear(HandshakeOpen(challenge=THEIRS))
    answer = side.sent[1]
    assert answer.holds()
    assert answer.inner == bytes.fromhex("02c440") + THEIRS + bytes.fromhex("0300")


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (done(challenge=THEIRS), "wrong_challenge"),
        (done(features=1), "wrong_features"),
        (done(THIRD), "wrong_node"),
        (done(US), "wrong_node"),
        (Signed(node=THEM.node, signature=bytes(64), inner=done().inner), "bad_signature"),
        (Signed(node=THEM.node, signature=bytes(64), inner=b"\x02\xc0"), "bad_statement"),
    ],
)
def test_a_peer_that_does_not_prove_itself_is_not_connected(message: Signed, reason: str) -> None:
    side = Side(expected=THEM.node)
    side.hear(message)
    assert side.end().reason == reason
    assert len(side.told) == 1
    assert side.machine.node is None
    side.hear(done())
    assert len(side.told) == 1


def test_a_peer_of_a_closed_network_is_not_answered() -> None:
    side = Side()
    side.hear(HandshakeOpen(challenge=THEIRS, network="closed"))
    assert side.end().reason == "other_network"
    assert len(side.sent) == 1


@pytest.mark.parametrize("message", [HandshakeOpen(challenge=THEIRS), done()])
def test_the_handshake_happens_once(message: Any) -> None:
    side = opened()
    side.hear(message)
    assert side.end().reason == "out_of_order"
    assert side.sent == []


def test_a_peer_that_never_answers_is_given_up() -> None:
    side = Side()
    side.pass_time(HANDSHAKE_S - 0.1)
    assert side.told == []
    side.pass_time(HANDSHAKE_S)
    assert side.end().reason == "handshake_timeout"


def test_questions_that_overtake_the_handshake_wait_for_it() -> None:
    side = Side()
    side.hear(HashQuery(digest=HELLO_HASH))
    side.hear(location())
    assert side.told == []
    side.hear(done())
    assert side.told == [Connected(THEM.node, ()), WantedBlob(HELLO_HASH)]


def test_an_announcement_that_overtakes_the_handshake_is_heard_after_it() -> None:
    """libs5 announces as soon as it has our answer, while it is still signing its own."""
    peers = (KnownPeer(node=THIRD.node, connected=True, uris=("ws://x/s5/p2p",)),)
    side = Side()
    side.hear(sign_statement(AnnouncePeers(peers=peers), THEM.node, THEM.sign))
    long = KnownPeer(node=THIRD.node, connected=True, uris=("y" * 200,) * 8)
    side.hear(sign_statement(AnnouncePeers(peers=(long,) * 10), THEM.node, THEM.sign))
    assert side.told == []
    side.hear(done())
    assert side.told == [Connected(THEM.node, ()), PeersHeard(peers)]


def test_an_early_announcement_of_another_ends_the_connection_it_opened() -> None:
    side = Side()
    side.hear(sign_statement(AnnouncePeers(peers=()), THIRD.node, THIRD.sign))
    side.hear(HashQuery(digest=HELLO_HASH))
    side.hear(done())
    assert side.end().reason == "wrong_node"
    assert WantedBlob(HELLO_HASH) not in side.told


def test_who_only_asks_and_never_proves_itself_is_cut_off() -> None:
    side = Side()
    for _ in range(EARLY_MAX):
        side.hear(RegistryQuery(key=THEM.entry_key))
    assert side.told == []
    side.hear(THEM.entry())
    assert side.end().reason == "out_of_order"


def test_a_challenge_of_ours_is_32_bytes() -> None:
    with pytest.raises(ValueError, match="32 random bytes"):
        Side(challenge=bytes(64))


# ---- blobs


@pytest.mark.parametrize("old", [True, False])
def test_a_blob_that_is_held_is_located_as_it_was_asked_for(old: bool) -> None:
    side = opened()
    side.hear(HashQuery(digest=HELLO_HASH, old=old))
    assert side.told == [WantedBlob(HELLO_HASH)]
    side.say(BlobHeld(digest=HELLO_HASH, urls=("http://here/",), expires_at=2_000_000_000))
    (answer,) = side.sent
    assert answer == location(US, parts=("http://here/",), expires_at=2_000_000_000, old=old)
    assert answer.holds()


def test_a_blob_that_is_not_held_or_not_asked_for_is_not_located() -> None:
    side = opened()
    side.hear(HashQuery(digest=HELLO_HASH))
    side.say(BlobHeld(digest=HELLO_HASH))
    side.say(BlobHeld(digest=HELLO_HASH, urls=("http://here/",), expires_at=5))
    assert side.sent == []


def test_only_whole_files_are_looked_up_and_each_once_at_a_time() -> None:
    side = opened()
    side.hear(HashQuery(digest=HELLO_HASH, types=(ARCHIVE, FULL)))
    assert side.told == []
    side.hear(HashQuery(digest=HELLO_HASH))
    side.hear(HashQuery(digest=HELLO_HASH))
    assert side.told == [WantedBlob(HELLO_HASH)]


def test_a_search_reports_signed_locations_of_anybody_until_its_time_is_up() -> None:
    side = opened()
    side.say(FindBlob(HELLO_HASH))
    side.say(FindBlob(HELLO_HASH))
    assert side.sent == [HashQuery(digest=HELLO_HASH)]
    good, forwarded = location(), location(THIRD)
    side.hear(good)
    side.hear(forwarded)
    side.pass_time(60)
    assert side.told == [LocationHeard(good), LocationHeard(forwarded), SearchOver(HELLO_HASH)]
    side.hear(good)
    assert len(side.told) == 3


def test_locations_nobody_can_use_and_false_ones_are_not_reported() -> None:
    side = opened()
    side.say(FindBlob(HELLO_HASH))
    honest = location()
    side.hear(location(digest=hash_of(b"another")))
    side.hear(location(type_=ARCHIVE))
    side.hear(location(parts=()))
    side.hear(make_location(HELLO_HASH, parts=("http://evil/",), expires_at=9, node=THEM.node, sign=US.sign))
    assert side.told == []
    side.hear(honest)
    assert side.told == [LocationHeard(honest)]


def test_a_search_ends_early_when_it_has_enough() -> None:
    side = opened()
    side.say(FindBlob(HELLO_HASH))
    for _ in range(LOCATIONS_MAX + 2):
        side.hear(location())
    assert [type(each) for each in side.told] == [LocationHeard] * LOCATIONS_MAX + [SearchOver]
    assert not side.timers


# ---- entries


def test_a_question_for_an_entry_is_answered_with_the_one_that_is_held() -> None:
    side, held = opened(), THIRD.entry(5)
    side.hear(RegistryQuery(key=THIRD.entry_key))
    assert side.told == [WantedEntry(THIRD.entry_key)]
    side.say(EntryHeld(THIRD.entry_key, held))
    side.say(EntryHeld(THIRD.entry_key, held))
    assert side.sent == [held]


def test_a_question_for_an_entry_that_is_not_held_is_not_answered() -> None:
    side = opened()
    side.hear(RegistryQuery(key=THIRD.entry_key))
    side.say(EntryHeld(THIRD.entry_key, None))
    assert side.sent == []


@pytest.mark.parametrize("held", [None, THIRD.entry(4)])
def test_a_newer_entry_is_told(held: Entry | None) -> None:
    side = opened()
    side.hear(THIRD.entry(5))
    side.say(EntryHeld(THIRD.entry_key, held))
    assert side.told == [WantedEntry(THIRD.entry_key), NewEntry(THIRD.entry(5))]
    assert side.sent == []


def test_an_older_entry_is_answered_with_ours() -> None:
    side, held = opened(), THIRD.entry(6)
    side.hear(THIRD.entry(5))
    side.say(EntryHeld(THIRD.entry_key, held))
    assert side.told == [WantedEntry(THIRD.entry_key)]
    assert side.sent == [held]


def test_an_equal_entry_is_ignored() -> None:
    side = opened()
    side.hear(THIRD.entry(5))
    side.say(EntryHeld(THIRD.entry_key, THIRD.entry(5)))
    assert side.told == [WantedEntry(THIRD.entry_key)]
    assert side.sent == []


def test_a_newer_entry_with_a_wrong_signature_is_not_told() -> None:
    side = opened()
    forged = Entry(key=THIRD.entry_key, revision=9, data=b"x", signature=bytes(64))
    side.hear(forged)
    side.say(EntryHeld(THIRD.entry_key, None))
    assert side.told == [WantedEntry(THIRD.entry_key)]


def test_of_two_entries_at_one_revision_both_nodes_keep_the_same() -> None:
    entries = [THIRD.entry(5, b"one"), THIRD.entry(5, b"two")]
    kept = []
    for first, second in (entries, entries[::-1]):
        side = opened()
        side.hear(second)
        side.say(EntryHeld(THIRD.entry_key, first))
        kept.append(second if NewEntry(second) in side.told else first)
        assert side.sent == ([] if NewEntry(second) in side.told else [first])
    assert kept[0] == kept[1]


def test_an_entry_is_asked_for_and_heard() -> None:
    side, entry = opened(), THIRD.entry(5)
    side.say(AskEntry(THIRD.entry_key))
    side.say(AskEntry(THIRD.entry_key))
    assert side.sent == [RegistryQuery(key=THIRD.entry_key)]
    side.hear(Entry(key=THIRD.entry_key, revision=99, data=b"", signature=bytes(64)))
    side.hear(entry)
    assert side.told == [EntryHeard(THIRD.entry_key, entry)]
    side.pass_time(60)
    assert len(side.told) == 1


def test_an_entry_nobody_has_costs_its_wait_and_no_more() -> None:
    side = opened()
    side.say(AskEntry(THIRD.entry_key))
    side.pass_time(ENTRY_WAIT_S - 0.1)
    assert side.told == []
    side.pass_time(ENTRY_WAIT_S)
    assert side.told == [EntryHeard(THIRD.entry_key, None)]


def test_a_new_entry_is_handed_on_only_while_connected() -> None:
    side, early = opened(), Side()
    side.say(PushEntry(THIRD.entry()))
    early.say(PushEntry(THIRD.entry()))
    assert side.sent == [THIRD.entry()]
    assert len(early.sent) == 1


# ---- peers


def test_an_announcement_is_signed_bounded_and_heard() -> None:
    one, two = Side(US), Side(THEM, THEIRS[:32], dialled=False)
    exchange(one, two)
    known = KnownPeer(node=THIRD.node, connected=True, uris=("ws://x/s5/p2p",) * 20 + ("y" * 300,))
    one.say(Announce((known,) * (PEERS_MAX + 1)))
    assert len(encode(one.sent[0])) <= FRAME_MAX
    exchange(one, two)
    told = KnownPeer(node=THIRD.node, connected=True, uris=known.uris[:URIS_MAX])
    assert two.told[-1] == PeersHeard((told,) * PEERS_MAX)


@pytest.mark.parametrize(
    ("signer", "signature", "reason"), [(THIRD, None, "wrong_node"), (THEM, bytes(64), "bad_signature")]
)
def test_an_announcement_of_another_or_a_forged_one_ends_it(
    signer: Key, signature: bytes | None, reason: str
) -> None:
    side = opened()
    said = sign_statement(AnnouncePeers(peers=()), signer.node, signer.sign)
    side.hear(Signed(node=said.node, signature=signature or said.signature, inner=said.inner))
    assert side.end().reason == reason


def test_unknown_messages_and_statements_change_nothing() -> None:
    side = opened()
    side.hear(Ignored(0x49))
    side.hear(Signed(node=THIRD.node, signature=bytes(64), inner=b"\x63"))
    assert side.told == []
    assert side.sent == []


# ---- ends and bounds


def test_at_the_end_everything_asked_is_answered_and_nothing_more_is_said() -> None:
    side = opened()
    side.say(FindBlob(HELLO_HASH))
    side.say(AskEntry(THIRD.entry_key))
    side.clear()
    side.note(side.machine.handle(Closed(PEER, 0, "gone"), 1.0))
    assert side.told == [
        SearchOver(HELLO_HASH),
        EntryHeard(THIRD.entry_key, None),
        Ended("closed", "gone"),
    ]
    assert not side.timers
    side.clear()
    side.note(side.machine.handle(Closed(PEER, 0), 1.0))
    side.hear(HashQuery(digest=HELLO_HASH))
    side.say(PushEntry(THIRD.entry()))
    assert side.told == []
    side.say(FindBlob(HELLO_HASH))
    side.say(AskEntry(THIRD.entry_key))
    assert side.told == [SearchOver(HELLO_HASH), EntryHeard(THIRD.entry_key, None)]
    assert side.sent == []


def test_before_the_handshake_nothing_is_asked() -> None:
    side = Side()
    side.say(FindBlob(HELLO_HASH))
    side.say(AskEntry(THIRD.entry_key))
    assert side.told == [SearchOver(HELLO_HASH), EntryHeard(THIRD.entry_key, None)]


def test_so_many_questions_of_ours_are_open_and_no_more() -> None:
    side = opened()
    for number in range(ASKED_MAX + 1):
        side.say(FindBlob(hash_of(bytes([number]))))
        side.say(AskEntry(EntryKey(bytes([number]) * 32)))
    assert len(side.sent) == 2 * ASKED_MAX
    assert len(side.told) == 2


def test_a_flood_of_questions_is_looked_up_at_a_rate_and_never_beyond_the_table() -> None:
    side = opened()
    for number in range(1000):
        side.hear(HashQuery(digest=hash_of(number.to_bytes(2, "big"))))
        side.hear(RegistryQuery(key=EntryKey(number.to_bytes(32, "big"))))
    assert len(side.told) == 2 * LOOKUPS_MAX
    side = opened()
    for number in range(1000):
        side.hear(HashQuery(digest=hash_of(number.to_bytes(2, "big"))))
        side.say(BlobHeld(digest=hash_of(number.to_bytes(2, "big"))))
    assert len(side.told) == LOOKUPS_BURST


def test_a_flood_of_forgeries_costs_only_so_many_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[Entry] = []

    def refuse(entry: Entry) -> bool:
        checked.append(entry)
        return False

    monkeypatch.setattr(Entry, "holds", refuse)
    side = opened()
    side.say(AskEntry(THIRD.entry_key))
    forged = Entry(key=THIRD.entry_key, revision=9, data=b"x", signature=bytes(64))
    for _ in range(500):
        side.hear(forged)
    assert len(checked) == CHECKS_BURST
    side.now = 1.0
    for _ in range(500):
        side.hear(forged)
    assert len(checked) == CHECKS_BURST + CHECKS_PER_S


def test_a_location_nobody_asked_for_costs_no_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StorageLocation, "holds", lambda _: pytest.fail("checked"))
    side = opened()
    side.hear(location())
    assert side.told == []


KEYS = [US, THEM, THIRD]
DIGESTS = [hash_of(bytes([number])) for number in range(4)]
heard = st.one_of(
    messages,
    st.builds(HashQuery, digest=st.sampled_from(DIGESTS), types=st.sampled_from([(3, 5), (5,)])),
    st.builds(lambda key: RegistryQuery(key=key.entry_key), st.sampled_from(KEYS)),
    st.builds(Key.entry, st.sampled_from(KEYS), st.integers(0, 3), st.binary(max_size=2)),
    st.builds(location, st.sampled_from(KEYS), st.sampled_from(DIGESTS)),
    st.builds(sign_statement, statements, st.just(THEM.node), st.just(THEM.sign)),
    st.just(done()),
    st.builds(Ignored, st.integers(0, 300)),
)
commands = st.one_of(
    st.builds(FindBlob, st.sampled_from(DIGESTS)),
    st.builds(AskEntry, st.sampled_from([key.entry_key for key in KEYS])),
    st.builds(PushEntry, st.builds(Key.entry, st.sampled_from(KEYS))),
    st.builds(
        BlobHeld,
        digest=st.sampled_from(DIGESTS),
        urls=st.sampled_from([(), ("http://x/",)]),
        expires_at=st.integers(0, 2**32 - 1),
    ),
    st.builds(
        lambda key, revision: EntryHeld(key.entry_key, key.entry(revision)),
        st.sampled_from(KEYS),
        st.integers(0, 3),
    ),
)
timers = st.sampled_from(["handshake", "junk", *[f"blob {d.hex()}" for d in DIGESTS]])
steps = st.one_of(
    st.tuples(st.just("hear"), heard),
    st.tuples(st.just("say"), commands),
    st.tuples(st.just("fire"), timers),
)


@settings(max_examples=60)
@given(st.booleans(), st.lists(steps, max_size=40))
def test_whatever_comes_it_neither_raises_nor_grows_and_ends_once(
    after_handshake: bool, script: list[tuple[str, Any]]
) -> None:
    side = opened() if after_handshake else Side()
    asked = 0
    for kind, value in script:
        match kind:
            case "hear":
                side.hear(value)
            case "say":
                asked += isinstance(value, FindBlob | AskEntry)
                side.say(value)
            case _:
                side.note(side.machine.handle(TimerFired(value), side.now))
    assert len(side.timers) <= 1 + len(DIGESTS) + len(KEYS)
    side.note(side.machine.handle(Closed(PEER, 0), side.now))
    side.end()
    assert not side.timers
    assert sum(isinstance(each, SearchOver | EntryHeard) for each in side.told) <= asked
    for message in side.sent:
        assert decode(encode(message)) == message


@given(st.binary(max_size=300))
def test_any_bytes_at_all_are_refused_or_handled(frame: bytes) -> None:
    side = opened()
    try:
        side.hear(decode(frame))
    except ProtocolError as error:
        assert str(error)  # noqa: PT017 - any, as long as it says something
    assert len(side.sent) + len(side.told) <= 2


def test_what_is_announced_can_be_read_back() -> None:
    side = opened()
    side.say(Announce((KnownPeer(node=NodeId(bytes(32)), connected=False, uris=()),)))
    (said,) = side.sent
    assert decode_statement(said.inner) == AnnouncePeers(
        peers=(KnownPeer(node=NodeId(bytes(32)), connected=False, uris=()),)
    )
