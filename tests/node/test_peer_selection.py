"""Whom a node dials and asks, decided from what it knows: no network, no clock."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from p2pnode.ids import PeerId
from p2pnode.limits import DEFAULT_LIMITS
from p2pnode.node.peer_selection import UNANSWERED_MAX, Kind, PeerSelection
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
    saved: Iterable[tuple[PeerId, tuple[str, ...], Kind]] = (),
    live: Iterable[Advert] = (),
) -> list[PeerId]:
    found = subject.to_dial(connected, saved=saved, adverts=live, dialable=everything)
    return [each.peer for each in found]


def test_those_saved_come_first_then_those_the_user_named_then_hosts_of_adverts() -> None:
    live = adverts(3)
    saved: list[tuple[PeerId, tuple[str, ...], Kind]] = [(SAVED, ("/s",), "last session")]
    found = selection().to_dial((), saved=saved, adverts=live, dialable=everything)
    assert [each.peer for each in found] == [SAVED, FRIEND, live[0].peer, live[1].peer]
    assert [each.kind for each in found] == ["last session", "named", "advert", "advert"]
    assert (found[1].told, found[0].told, found[2].told) == (("/ip4/1.2.3.4/tcp/1/p2p/friend",), ("/s",), ())
    assert found[2].heard == ("/ip4/8.8.8.1/tcp/4001",)


def test_however_many_come_by_themselves_half_of_the_peers_are_dialled() -> None:
    subject, live = selection(), adverts(3)
    crowd = [PeerId(f"came by itself {number}") for number in range(100)]
    assert chosen(subject, *crowd, live=live) == [FRIEND, live[0].peer]
    subject.dialled(live[0].peer)
    assert len(chosen(subject, *crowd, live=live)) == 2, "it is not connected any more"
    assert not chosen(subject, *crowd, live[0].peer, live=live)


def test_many_saved_ones_never_keep_those_the_user_named_from_being_dialled() -> None:
    saved: list[tuple[PeerId, tuple[str, ...], Kind]] = [
        (PeerId(f"saved {number}"), ("/s",), "saved") for number in range(50)
    ]
    found = chosen(selection(), saved=saved)
    assert len(found) == 2 * LIMITS.peers_wanted
    assert FRIEND in found


def test_whoever_is_alone_says_which_kind_of_peer_failed_how() -> None:
    subject = selection()
    assert not subject.has_tried
    assert "nobody is known to dial" in subject.alone_words()
    for number in range(3):
        subject.failed(
            PeerId(f"saved {number}"),
            "saved",
            "could not reach x: refused" if number else "no answer within 10 s",
        )
    subject.failed(FRIEND, "named", "another key than expected")
    assert subject.has_tried
    words = subject.alone_words()
    assert "3 saved earlier (2 x refused; 1 x no answer)" in words
    assert "1 of your --bootstrap, configuration or invites (1 x not a node like this)" in words
    assert "ask a friend for an invite" in words
    subject.dialled(FRIEND)
    assert not subject.has_tried


def test_nobody_is_dialled_who_is_connected_or_is_this_node_and_nobody_when_there_are_enough() -> None:
    subject, live = selection(), adverts(1)
    assert chosen(subject, FRIEND, saved=[(OWN, ("/s",), "saved")], live=live) == [live[0].peer]
    assert chosen(subject, live[0].peer, live=live) == [FRIEND]
    subject.dialled(FRIEND)
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
    assert [subject.wait_s(0) for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]
    subject.begin_anew()
    assert [subject.wait_s(1) for _ in range(5)] == [1, 2, 4, 8, 15]
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
