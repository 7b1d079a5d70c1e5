"""One lookup: whom it asks, in what order, when it ends, and what it believes."""

from __future__ import annotations

import random
from collections.abc import Sequence

from p2pnode.ids import PeerId
from p2pnode.protocols.kademlia.lookup import (
    AGREED,
    ALPHA,
    ASKED_MAX,
    OUT_MAX,
    PATHS,
    SLOW_S,
    WIDTH,
    Ask,
    Candidate,
    Lookup,
)
from p2pnode.protocols.kademlia.messages import (
    ADDRESSES_MAX,
    K,
    KadPeer,
    Message,
    point_of,
    point_of_key,
    record_key,
)
from p2pnode.shares import Origin, origin_of
from tests.protocols.kademlia.dht_world import address, ip_in, peer_number

KEY = record_key(b"k" * 32)
OWN = peer_number(0)
PEERS = sorted((peer_number(n) for n in range(1, 400)), key=lambda each: point_of(each) ^ point_of_key(KEY))
"""By their distance from the key, the closest first."""


def at(peer: PeerId) -> bytes:
    """An address in a prefix of its own."""
    index = PEERS.index(peer)
    return address(f"{20 + index // 200}.{index % 200}.1.1")


def origin(peer: PeerId) -> Origin:
    return origin_of(ip_in(at(peer)), peer)


def known(peers: Sequence[PeerId]) -> list[Candidate]:
    return [Candidate(each, (at(each),), origin(each)) for each in peers]


def named(peers: Sequence[PeerId]) -> tuple[KadPeer, ...]:
    return tuple(KadPeer(peer=each, addresses=(at(each),)) for each in peers)


def lookup(peers: Sequence[PeerId], goal: str = "get_providers") -> Lookup:
    return Lookup(
        goal,  # type: ignore[arg-type]
        KEY,
        known(peers),
        own=OWN,
        origin=lambda peer, addresses: origin_of(ip_in(addresses[0]), peer),
        dialable=lambda addresses: tuple(each for each in addresses if ip_in(each) and each[1] != 10),
        draw=random.Random(1).randrange,
    )


def answer(*, closer: Sequence[PeerId] = (), providers: Sequence[KadPeer] = ()) -> Message:
    return Message(kind="get_providers", key=KEY, closer=named(closer), providers=tuple(providers))


def finish(machine: Lookup, asks: list[Ask], closer: Sequence[PeerId] = ()) -> list[PeerId]:
    """Answer all questions until there are none; whom it asked, in order."""
    asked = []
    while asks:
        ask = asks.pop(0)
        asked.append(ask.peer)
        asks += machine.answered(ask.peer, answer(closer=closer), origin(ask.peer), 0.0)
    return asked


def test_it_asks_the_closest_first_three_at_once_on_each_of_three_paths() -> None:
    machine = lookup(PEERS[:30])
    asks = machine.start(0.0)
    assert {each.peer for each in asks} == set(PEERS[: PATHS * ALPHA])
    assert all(each.question == Message(kind="get_providers", key=KEY) for each in asks)
    assert all(each.addresses == (at(each.peer),) for each in asks)


def test_it_ends_when_everybody_on_the_shortlists_was_asked_once() -> None:
    machine = lookup(PEERS[100:109])
    asked = finish(machine, machine.start(0.0), closer=PEERS[:K])
    assert machine.is_over
    assert len(asked) == len(set(asked))
    assert set(PEERS[:K]) <= set(asked)
    assert list(machine.result(5).closest) == [*PEERS[:K], *PEERS[100:104]]


def test_a_lookup_without_anybody_is_over_at_once() -> None:
    machine = lookup([])
    assert machine.start(0.0) == []
    assert machine.is_over
    assert machine.result(5).closest == ()


def test_what_a_peer_says_counts_on_its_own_path_only() -> None:
    first, second, third = PEERS[100:103]
    machine = lookup([first, second, third])
    machine.start(0.0)
    asks = machine.answered(first, answer(closer=PEERS[:5]), origin(first), 0.0)
    assert [each.peer for each in asks] == PEERS[:ALPHA]
    # The other paths are idle: nobody told them of these peers, and nobody is asked twice.
    assert machine.answered(second, answer(), origin(second), 0.0) == []
    again = machine.answered(third, answer(closer=PEERS[:5]), origin(third), 0.0)
    assert not {each.peer for each in again} & set(PEERS[:ALPHA])


def test_a_slow_peer_holds_nobody_up_and_its_answer_still_counts() -> None:
    machine = lookup(PEERS[:20])
    asks = machine.start(0.0)
    assert machine.slow_at(0.0) == SLOW_S
    assert machine.advance(SLOW_S - 0.01) == []
    more = machine.advance(SLOW_S)
    assert len(more) == PATHS * ALPHA
    machine.answered(asks[0].peer, answer(), origin(asks[0].peer), 2.0)
    assert machine.result(5).answered == 1


def test_a_peer_that_fails_is_no_longer_among_the_closest() -> None:
    machine = lookup(PEERS[:6])
    for ask in machine.start(0.0):
        machine.failed(ask.peer, 0.0)
    assert machine.is_over
    assert machine.result(5).closest == ()


def test_it_never_asks_itself_nor_where_nobody_may_be_dialled() -> None:
    machine = lookup(PEERS[:1])
    machine.start(0.0)
    said = Message(
        kind="get_providers",
        closer=(
            KadPeer(peer=OWN, addresses=(address("20.0.0.1"),)),
            KadPeer(peer=PEERS[1], addresses=(address("10.0.0.1"),)),
            KadPeer(peer=PEERS[2], addresses=(b"junk",)),
            KadPeer(peer=PEERS[3]),
        ),
        providers=(KadPeer(peer=OWN), KadPeer(peer=PEERS[4], addresses=(b"junk", address("10.0.0.1")))),
    )
    assert machine.answered(PEERS[0], said, origin(PEERS[0]), 0.0) == []
    (found,) = machine.result(5).providers
    assert found.peer == PEERS[4]
    assert found.addresses == ()


def test_an_answer_of_another_kind_or_of_somebody_not_asked_tells_nothing() -> None:
    machine = lookup(PEERS[:1])
    machine.start(0.0)
    assert machine.answered(PEERS[9], answer(closer=PEERS[1:3]), origin(PEERS[9]), 0.0) == []
    other = Message(kind="find_node", closer=named(PEERS[1:3]))
    assert machine.answered(PEERS[0], other, origin(PEERS[0]), 0.0) == []
    assert machine.is_over


def test_made_up_peers_near_the_key_cost_their_teller_its_word() -> None:
    """One liar names forty peers that don't exist, nearer than all others and each from another prefix."""
    made_up, liar, honest = PEERS[:40], PEERS[100], PEERS[101:103]
    machine = lookup([liar, *honest])
    asks = machine.start(0.0)
    asked = []
    while asks:
        ask = asks.pop(0)
        asked.append(ask.peer)
        if ask.peer in made_up:
            asks += machine.failed(ask.peer, 0.0)
        else:
            closer = made_up if ask.peer == liar else PEERS[50:70]
            asks += machine.answered(ask.peer, answer(closer=closer), origin(ask.peer), 0.0)
    assert set(PEERS[50:70]) <= set(asked)
    assert list(machine.result(5).closest)[:20] == PEERS[50:70]


def test_a_crowd_that_one_liar_names_is_asked_last() -> None:
    """Nearer than anybody, and each from a prefix of its own: first comes whom others name."""
    liar, honest = PEERS[100], PEERS[101]
    machine = lookup([liar, honest])
    asks = machine.start(0.0)
    asks = machine.answered(liar, answer(closer=PEERS[:20]), origin(liar), 0.0)
    assert [each.peer for each in asks] == PEERS[:ALPHA]
    asks = machine.answered(honest, answer(closer=PEERS[40:60]), origin(honest), 0.0)
    asked = []
    while asks:
        ask = asks.pop(0)
        asked.append(ask.peer)
        asks += machine.answered(ask.peer, answer(closer=PEERS[40:60]), origin(ask.peer), 0.0)
    assert asked[:18] == PEERS[40:58]


def test_no_origin_is_asked_twice_while_there_are_others() -> None:
    crowd = [KadPeer(peer=each, addresses=(address(f"99.9.9.{n}"),)) for n, each in enumerate(PEERS[:30])]
    machine = lookup([PEERS[100]])
    machine.start(0.0)
    tellers = [crowd, *[named(PEERS[200 + 3 * n : 203 + 3 * n]) for n in range(40)]]
    asks, asked = (
        machine.answered(
            PEERS[100],
            Message(kind="get_providers", closer=(*crowd[:20], *tellers[1])),
            origin(PEERS[100]),
            0.0,
        ),
        [],
    )
    count = 2
    while asks:
        ask = asks.pop(0)
        asked.append(ask.peer)
        where = Origin("99.9.9.0/24", "99.9.9.0/24") if ask.peer in PEERS[:30] else origin(ask.peer)
        more = tellers[count] if count < len(tellers) else ()
        count += 1
        asks += machine.answered(ask.peer, Message(kind="get_providers", closer=tuple(more)), where, 0.0)
    closest = machine.result(5).closest
    assert len(closest) == WIDTH
    assert sum(each in PEERS[:30] for each in closest) == 1


def test_questions_are_bounded_in_all_and_at_once() -> None:
    machine = lookup(PEERS[:60])
    out = machine.start(0.0)
    for step in range(20):
        out += machine.advance(step * SLOW_S)
    assert len(out) == OUT_MAX
    machine = lookup(PEERS[:3])
    asked = 0
    asks = machine.start(0.0)
    while asks:
        ask = asks.pop(0)
        asked += 1
        fresh = PEERS[3 * asked : 3 * asked + 40]
        asks += machine.answered(ask.peer, answer(closer=fresh), origin(ask.peer), 0.0)
    assert asked <= ASKED_MAX


def test_providers_named_by_most_origins_come_first_and_the_rest_is_drawn() -> None:
    machine = lookup(PEERS[:6])
    everybody, made_up = PEERS[300], PEERS[301:340]
    for index, ask in enumerate(machine.start(0.0)):
        said = [everybody, *made_up[3 * index : 3 * index + 3]]
        machine.answered(ask.peer, answer(providers=named(said)), origin(ask.peer), 0.0)
    result = machine.result(4)
    assert result.providers[0].peer == everybody
    assert len(result.providers[0].tellers) == 6
    assert len(result.providers) == 4


def answered_by(count: int, odd_ones_out: int = 0) -> Lookup:
    """A lookup that so many origins answered with the same two providers, and then some with another."""
    machine = lookup(PEERS[:24])
    asks = machine.start(0.0)
    for index in range(count):
        said = PEERS[300:302] if index >= odd_ones_out else PEERS[302:303]
        ask = asks.pop(0)
        asks += machine.answered(ask.peer, answer(providers=named(said)), origin(ask.peer), 0.0)
    return machine


def test_it_is_over_once_twelve_origins_named_the_very_same_providers() -> None:
    assert not answered_by(AGREED - 1).is_over
    assert answered_by(AGREED).is_over


def test_it_goes_on_where_one_origin_differs() -> None:
    assert not answered_by(AGREED + 3, odd_ones_out=1).is_over


def test_ten_ids_of_one_prefix_count_as_one_teller() -> None:
    machine = lookup(PEERS[:6])
    same, honest = Origin("a", "a"), PEERS[301]
    for index, ask in enumerate(machine.start(0.0)):
        mine = index < 2
        said = named([honest if mine else PEERS[300]])
        machine.answered(ask.peer, answer(providers=said), origin(ask.peer) if mine else same, 0.0)
    assert [each.peer for each in machine.result(1).providers] == [honest]


def test_a_liar_cannot_hide_a_providers_address_behind_others() -> None:
    machine = lookup(PEERS[:3])
    wanted, right = PEERS[300], address("30.1.1.1")
    wrong = tuple(address(f"40.1.1.{n}") for n in range(ADDRESSES_MAX))
    for index, ask in enumerate(machine.start(0.0)):
        told = KadPeer(peer=wanted, addresses=wrong if index == 0 else (right,))
        machine.answered(ask.peer, answer(providers=[told]), origin(ask.peer), 0.0)
    (found,) = machine.result(1).providers
    assert found.addresses[0] == right
    assert len(found.addresses) == ADDRESSES_MAX


def test_a_liar_cannot_hide_where_a_peer_is_that_others_name() -> None:
    decoy, wanted, liar, honest = PEERS[0], PEERS[1], PEERS[100], PEERS[103]
    machine = lookup(PEERS[100:109])  # these two share a path with one more, and all three are asked
    machine.start(0.0)
    wrong = tuple(address(f"40.1.1.{n}") for n in range(8))
    told = (*named([decoy]), KadPeer(peer=wanted, addresses=wrong))
    asks = machine.answered(liar, Message(kind="get_providers", closer=told), origin(liar), 0.0)
    assert [each.peer for each in asks] == [decoy]
    (ask,) = machine.answered(honest, answer(closer=[wanted]), origin(honest), 0.0)
    assert ask.peer == wanted
    assert ask.addresses == (wrong[0], at(wanted), *wrong[1:4])


def test_a_crowd_of_made_up_providers_is_bounded() -> None:
    machine = lookup(PEERS[:3])
    for ask in machine.start(0.0):
        crowd = [KadPeer(peer=peer_number(10_000 + n)) for n in range(5000)]
        machine.answered(ask.peer, answer(providers=crowd), origin(ask.peer), 0.0)
    assert len(machine.result(10_000).providers) <= 1024
