"""Whom a node dials and asks, decided from what it knows: no network, no clock."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from p2pnode.ids import PeerId
from p2pnode.limits import DEFAULT_LIMITS
from p2pnode.node.peer_selection import UNANSWERED_MAX, PeerSelection
from p2pnode.protocols.adverts.messages import Address, Advert
from tests.protocols.support import Identity

LIMITS = replace(DEFAULT_LIMITS, peers_wanted=2, peers_interval_s=15.0)
OWN, FRIEND, SAVED = PeerId("own"), PeerId("friend"), PeerId("saved")


def selection() -> PeerSelection:
    return PeerSelection(OWN, LIMITS, [(FRIEND, "/ip4/1.2.3.4/tcp/1/p2p/friend")])


def adverts(count: int) -> list[Advert]:
    return [
        Identity(number).advert(addresses=(Address(multiaddr=f"/ip4/8.8.8.{number + 1}/tcp/4001"),))
        for number in range(count)
    ]


def everything(addresses: Iterable[str]) -> tuple[str, ...]:
    return tuple(addresses)


def chosen(
    subject: PeerSelection,
    *connected: PeerId,
    saved: Iterable[tuple[PeerId, tuple[str, ...]]] = (),
    live: Iterable[Advert] = (),
) -> list[PeerId]:
    found = subject.to_dial(connected, saved=saved, adverts=live, dialable=everything)
    return [each.peer for each in found]


def test_those_the_user_named_come_first_then_those_saved_then_hosts_of_adverts() -> None:
    live = adverts(3)
    found = selection().to_dial((), saved=[(SAVED, ("/s",))], adverts=live, dialable=everything)
    assert [each.peer for each in found] == [FRIEND, SAVED, live[0].peer, live[1].peer]
    assert (found[0].told, found[1].told, found[2].told) == (("/ip4/1.2.3.4/tcp/1/p2p/friend",), ("/s",), ())
    assert found[2].heard == ("/ip4/8.8.8.1/tcp/4001",)


def test_nobody_is_dialled_who_is_connected_or_is_this_node_and_nobody_when_there_are_enough() -> None:
    subject, live = selection(), adverts(1)
    assert chosen(subject, FRIEND, saved=[(OWN, ("/s",))], live=live) == [live[0].peer]
    assert chosen(subject, live[0].peer, live=live) == [FRIEND]
    assert chosen(subject, FRIEND, SAVED, live=live) == []


def test_those_who_failed_go_last_so_that_dead_ends_hide_nobody() -> None:
    subject, live = selection(), adverts(5)
    for dead in live[:4]:
        subject.failed(dead.peer)
    assert chosen(subject, FRIEND, live=live)[0] == live[4].peer
    subject.dialled(live[0].peer)  # it came back
    assert chosen(subject, FRIEND, live=live) == [live[0].peer, live[4].peer]


def test_a_host_without_an_address_that_may_be_dialled_counts_as_one_that_failed() -> None:
    subject, live = selection(), adverts(2)

    def second_only(addresses: Iterable[str]) -> tuple[str, ...]:
        return tuple(each for each in addresses if "8.8.8.2" in each)

    found = subject.to_dial([FRIEND], saved=(), adverts=live, dialable=second_only)
    assert [each.peer for each in found] == [live[1].peer]
    assert chosen(subject, FRIEND, live=live) == [live[1].peer, live[0].peer]


def test_rounds_are_close_together_at_first_and_far_apart_with_enough_peers() -> None:
    subject = selection()
    assert [subject.wait_s(0) for _ in range(4)] == [1, 2, 3, 3]
    assert [subject.wait_s(1) for _ in range(3)] == [6, 12, 15]
    assert subject.wait_s(2) == 15


def test_each_peer_is_asked_until_it_answers_and_only_so_often() -> None:
    subject = selection()
    peers = [FRIEND, SAVED]
    for _ in range(UNANSWERED_MAX):
        assert set(subject.to_ask(peers)) == set(peers)
        for peer in peers:
            subject.asked(peer)
    assert subject.to_ask(peers) == []
    assert subject.to_ask([FRIEND]) == []
    assert subject.to_ask(peers) == [SAVED]  # it left and came back
    subject.asked(SAVED)
    subject.answered(SAVED)
    assert subject.to_ask(peers) == []


def test_those_asked_least_and_those_reached_come_first_and_never_too_many() -> None:
    subject = selection()
    peers = [PeerId(f"peer {number}") for number in range(9)]
    subject.asked(peers[0])
    subject.dialled(peers[8])
    asked = subject.to_ask(peers)
    assert (asked[0], len(asked), peers[0] in asked) == (peers[8], 2 * LIMITS.peers_wanted, False)
