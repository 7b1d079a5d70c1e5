"""Messages of Kademlia: what libp2p's generated code writes is read, and whatever is too long is cut."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from libp2p.kad_dht.pb import kademlia_pb2
from libp2p.kad_dht.utils import sort_peer_ids_by_distance
from libp2p.peer.id import ID

from p2pnode.errors import ProtocolError
from p2pnode.protocols.kademlia import lookup, node, records, server, table
from p2pnode.protocols.kademlia import messages as m
from tests.protocols.kademlia.dht_world import address, peer_number

FOLDER = Path(__file__).resolve().parents[3] / "protocols" / "kademlia"
VECTORS: dict[str, Any] = json.loads((FOLDER / "vectors.json").read_text(encoding="utf-8"))
ONE, OTHER = peer_number(1), peer_number(2)
KEY = m.record_key(bytes(32))
KINDS = kademlia_pb2.Message.MessageType


def test_the_vectors_are_read_and_written_alike_by_us_and_by_the_library() -> None:
    for each in VECTORS["messages"]:
        data = bytes.fromhex(each["hex"])
        ours, theirs = m.decode(data), kademlia_pb2.Message.FromString(data)
        assert m.encode(ours) == theirs.SerializeToString(deterministic=True) == data
        assert kademlia_pb2.Message.MessageType.Name(theirs.type).lower() == ours.kind == each["kind"]
        assert theirs.key == ours.key == bytes.fromhex(each["key"])
        for name, peers, entries in (
            ("closer", ours.closer, theirs.closerPeers),
            ("providers", ours.providers, theirs.providerPeers),
        ):
            assert [ID(entry.id).to_base58() for entry in entries] == [peer.peer for peer in peers]
            assert [list(entry.addrs) for entry in entries] == [list(peer.addresses) for peer in peers]
            assert [bool(entry.connection) for entry in entries] == [peer.connected for peer in peers]
            assert [peer["id"] for peer in each[name]] == [peer.peer for peer in peers]
    assert {each["kind"] for each in VECTORS["messages"]} == set(m.KINDS)


def test_distances_are_those_of_the_library() -> None:
    peers = [peer_number(number) for number in range(50)]
    ours = sorted(peers, key=lambda peer: m.point_of(peer) ^ m.point_of_key(KEY))
    theirs = sort_peer_ids_by_distance(KEY, [ID.from_base58(peer) for peer in peers])
    assert ours == [each.to_base58() for each in theirs]
    for each in VECTORS["distances"]:
        found = m.point_of(each["peer"]) ^ m.point_of_key(bytes.fromhex(each["key"]))
        assert f"{found:064x}" == each["distance"]


def test_a_key_of_32_bytes_is_a_digest_and_any_other_is_hashed() -> None:
    assert m.record_key(bytes(32)) == b"\x12\x20" + bytes(32)
    for each in VECTORS["keys"]:
        assert m.record_key(bytes.fromhex(each["of"])).hex() == each["record_key"]


def test_what_the_library_signs_and_we_do_not_know_is_passed_over() -> None:
    peer = kademlia_pb2.Message.Peer(id=m.bytes_of(ONE), addrs=[address("20.0.0.1")], signedRecord=b"s" * 200)
    kind = kademlia_pb2.Message.MessageType.GET_PROVIDERS
    theirs = kademlia_pb2.Message(
        type=kind, key=KEY, providerPeers=[peer], senderRecord=b"r" * 200, record={"key": b"k"}
    )
    found = m.decode(theirs.SerializeToString())
    assert found.providers == (m.KadPeer(peer=ONE, addresses=(address("20.0.0.1"),)),)


@pytest.mark.parametrize("field", ["closerPeers", "providerPeers"])
def test_a_list_of_peers_is_cut_and_each_is_there_once(field: str) -> None:
    entries = [kademlia_pb2.Message.Peer(id=m.bytes_of(peer_number(number))) for number in range(60)]
    entries[1] = entries[0]
    theirs = kademlia_pb2.Message(type=KINDS.FIND_NODE)
    getattr(theirs, field).extend(entries)
    found = m.decode(theirs.SerializeToString())
    assert len(found.closer or found.providers) == m.PEERS_READ - 1


def test_of_thirty_thousand_addresses_eight_are_kept_or_the_message_is_refused() -> None:
    many = [address(f"20.0.{number // 250}.{number % 250}") for number in range(4000)]
    theirs = kademlia_pb2.Message(
        type=KINDS.ADD_PROVIDER, providerPeers=[{"id": m.bytes_of(ONE), "addrs": many}]
    )
    assert m.decode(theirs.SerializeToString()).providers[0].addresses == tuple(many[: m.ADDRESSES_MAX])
    theirs.providerPeers[0].addrs.extend(many * 7)
    with pytest.raises(ProtocolError, match="more than 4096 entries"):
        m.decode(theirs.SerializeToString())


def test_long_addresses_are_left_out_and_a_record_stays_below_a_kibibyte() -> None:
    long, longest = b"\x01" * m.ADDRESS_BYTES_MAX, b"\x02" * (m.ADDRESS_BYTES_MAX + 1)
    kept = m.fit([longest, *(long[:-1] + bytes([number]) for number in range(8)), b"", b"s", b"s"])
    assert kept[-1] == b"s"
    assert sum(map(len, kept)) + m.ID_BYTES_MAX <= m.RECORD_BYTES_MAX
    assert longest not in kept
    assert kept.count(b"s") == 1


@pytest.mark.parametrize(
    "raw",
    [b"", b"\x00", b"\xff" * 5000, b"\x12\x20" + bytes(31), b"\x00\x05abcd", b"\x00\x2b" + bytes(43)],
)
def test_a_peer_whose_id_is_none_is_left_out(raw: bytes) -> None:
    theirs = kademlia_pb2.Message(type=KINDS.FIND_NODE, closerPeers=[{"id": raw}, {"id": m.bytes_of(ONE)}])
    assert [each.peer for each in m.decode(theirs.SerializeToString()).closer] == [ONE]


def test_an_rsa_peer_has_an_id_too() -> None:
    assert m.peer_of(b"\x12\x20" + bytes(32)) == ID(b"\x12\x20" + bytes(32)).to_base58()


@pytest.mark.parametrize(
    "data", [b"\x08\x06", b"\xff" * 64, b"\x12\x51" + bytes(81), b"\x08\xff\xff\xff\xff\x0f"]
)
def test_an_unknown_kind_a_long_key_and_no_message_are_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        m.decode(data)


def test_an_answer_that_does_not_hold_all_is_cut_and_stays_an_answer() -> None:
    def heavy(first: int) -> tuple[m.KadPeer, ...]:
        addresses = tuple(bytes([number]) * 240 for number in range(1, 5))
        return tuple(m.KadPeer(peer=peer_number(first + n), addresses=addresses) for n in range(40))

    said = m.Message(kind="get_providers", key=KEY, closer=heavy(100), providers=heavy(0))
    data = m.encode(said)
    assert m.ANSWER_SENT_MAX - 1100 < len(data) <= m.ANSWER_SENT_MAX
    found = m.decode(data)
    assert found.providers == said.providers
    assert 0 < len(found.closer) < 40
    assert found.closer == said.closer[: len(found.closer)]


@given(st.binary(max_size=600))
def test_any_bytes_are_a_message_within_its_bounds_or_refused(data: bytes) -> None:
    try:
        found = m.decode(data)
    except ProtocolError:
        return
    assert len(found.key) <= m.KEY_MAX
    for each in (*found.closer, *found.providers):
        assert len(each.addresses) <= m.ADDRESSES_MAX
    assert m.decode(m.encode(found)) == found


def test_the_limits_and_timers_of_the_spec_are_those_of_the_code() -> None:
    text = (FOLDER / "SPEC.md").read_text(encoding="utf-8")
    said = dict(re.findall(r"^\| ([^|]+?) \| ([^|]+?) \|$", text, re.MULTILINE))
    wanted = {
        "bytes of a question": f"{m.QUESTION_MAX // 1024} KiB",
        "bytes of an answer that is read, that is sent": (
            f"{m.ANSWER_MAX // 1024} KiB, {m.ANSWER_SENT_MAX // 1024} KiB"
        ),
        "fields of a message, those of nested ones included": f"{m.ENTRIES_MAX:,}",
        "bytes of a key": str(m.KEY_MAX),
        "closer peers, and providers, of a message that are looked at": str(m.PEERS_READ),
        "addresses of a peer, bytes of one, bytes of a record": (
            f"{m.ADDRESSES_MAX}, {m.ADDRESS_BYTES_MAX}, {m.RECORD_BYTES_MAX // 1024} KiB"
        ),
        "closer peers of an answer, providers of an answer": f"{m.K}, {m.K}",
        "peers of a bucket, that wait for a place in it": f"{m.K}, {table.WAITING_MAX}",
        "records of a key, of these of one origin": f"{records.PROVIDERS_MAX}, {records.ORIGIN_MAX}",
        "places among these that are kept for providers this node dialled": str(records.REACHED_PLACES),
        "records in all": f"{records.RECORDS_MAX:,}, shared out by origin",
        "questions of a lookup, of these out at once": f"{lookup.ASKED_MAX}, {lookup.OUT_MAX}",
        "questions of one peer": (
            f"{server.QUESTIONS_PER_S:g} a second, {server.QUESTIONS_BURST:g} at once; "
            "of one origin four times as many"
        ),
        "a record lives": f"{records.LIFETIME_S / 60:g} min",
        "an answer is waited for, with the dial that it takes": f"{lookup.ANSWER_S:g} s",
        "a lookup lasts at most": (
            f"{node.LOOKUP_S:g} s; before a record is stored {node.STORE_AFTER_S:g} s"
        ),
        "a stream without a question is ended": f"{server.IDLE_S:g} s",
        "a server looks for its neighbours, and every second time for those of a random key": (
            f"{node.REFRESH_FIRST_S:g} s after its start, then {node.REFRESH_S / 60:g} min"
        ),
    }
    assert {name: said.get(name) for name in wanted} == wanted
    assert {
        name for name in (server.FLOOD, server.FOREIGN_RECORD, server.MALFORMED) if f"`{name}`" in text
    } == {
        "kad_flood",
        "kad_foreign_record",
        "kad_malformed",
    }
