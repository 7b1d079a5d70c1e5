"""S5's SPEC says what the code does, and its vectors hold."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pytest

from p2pnode.errors import ProtocolError
from p2pnode.ids import PeerId
from p2pnode.protocols.crypto import verify_key
from p2pnode.protocols.events import Emit, Received, Send
from p2pnode.protocols.s5 import connection as machine
from p2pnode.protocols.s5 import messages
from p2pnode.protocols.s5.accounts import Purpose, challenge_response
from p2pnode.protocols.s5.commands import Connected, EndReason, S5Command, S5Emission
from p2pnode.protocols.s5.entries import Entry, parse_entry
from p2pnode.protocols.s5.ids import from_multibase, parse_id
from p2pnode.protocols.s5.locations import PART_MAX, PARTS_MAX, StorageLocation
from p2pnode.protocols.s5.nodes import P2P_PATH, URI_MAX, NodeId, node_text, parse_node
from tests.protocols.s5.support import COUNTING, OTHER, ZERO

ROOT = Path(__file__).resolve().parents[3] / "protocols" / "s5"
SPEC = (ROOT / "SPEC.md").read_text(encoding="utf-8")
VECTORS: dict[str, Any] = json.loads((ROOT / "vectors.json").read_text(encoding="utf-8"))
CLASSES = [
    messages.HandshakeOpen,
    messages.Signed,
    messages.HandshakeDone,
    messages.AnnouncePeers,
    messages.KnownPeer,
    messages.HashQuery,
    messages.RegistryQuery,
    StorageLocation,
    Entry,
]
LIMITS = {
    "a message": f"{messages.FRAME_MAX} bytes",
    "messages that wait for the handshake": (
        f"{machine.EARLY_MAX}, an announcement of at most {machine.EARLY_STATEMENT_MAX} bytes; "
        "a longer one is dropped"
    ),
    "blobs asked for at once": str(machine.ASKED_MAX),
    "entries asked for at once": str(machine.ASKED_MAX),
    "blobs being looked up for the peer": str(machine.LOOKUPS_MAX),
    "entries being looked up for the peer": str(machine.LOOKUPS_MAX),
    "locations of one blob that are reported": str(machine.LOCATIONS_MAX),
    "signatures checked for a peer": f"{machine.CHECKS_PER_S:g} a second, burst {machine.CHECKS_BURST:g}",
    "lookups for a peer": f"{machine.LOOKUPS_PER_S:g} a second, burst {machine.LOOKUPS_BURST:g}",
    "peers of an announcement that are read": str(messages.PEERS_MAX),
    "URIs of a node": f"{messages.URIS_MAX} of {URI_MAX} bytes",
}


def chapter(title: str) -> str:
    return re.split(r"^## ", SPEC.split(f"## {title}\n")[1], flags=re.MULTILINE)[0]


def section(title: str) -> str:
    found = re.search(rf"^### `{title}`.*?(?=^##|\Z)", SPEC, re.MULTILINE | re.DOTALL)
    assert found, f"SPEC.md has no section on {title}"
    return found.group()


def rows(text: str) -> list[list[str]]:
    lines = [line.strip("| \n").split("|") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line] for line in lines[2:]]


@pytest.mark.parametrize("cls", CLASSES)
def test_each_message_stands_in_the_spec_with_its_fields(cls: type) -> None:
    assert [row[0].strip("`") for row in rows(section(cls.__name__))] == [each.name for each in fields(cls)]


def test_no_spec_describes_a_message_that_does_not_exist() -> None:
    told = set(re.findall(r"^### `(\w+)`", SPEC, re.MULTILINE))
    assert told == {cls.__name__ for cls in CLASSES}
    union = {*get_args(messages.S5Message), *get_args(messages.Statement)} - {messages.Ignored}
    assert told == {cls.__name__ for cls in union} | {"KnownPeer"}


def test_each_message_begins_with_the_number_in_the_spec() -> None:
    for vector in [*VECTORS["messages"], *VECTORS["statements"]]:
        assert f"`{vector['hex'][:2]} " in section(vector["type"])
    assert {kind.value for kind in messages.Kind} == {
        int(vector["hex"][:2], 16) for vector in [*VECTORS["messages"], *VECTORS["statements"]]
    }


def test_the_bounds_of_fields_stand_in_the_spec() -> None:
    handshake = section("HandshakeOpen")
    assert f"bytes {messages.CHALLENGE_BYTES}..{messages.CHALLENGE_MAX}" in handshake
    assert f"text 0..{messages.NETWORK_MAX}" in handshake
    assert f"0..{messages.URIS_MAX}; each text 0..{URI_MAX}" in section("HandshakeDone")
    assert f"list 0..{messages.TYPES_MAX}" in section("HashQuery")
    assert f"0..{PARTS_MAX} of 0..{PART_MAX} bytes" in section("StorageLocation")


def test_the_limits_are_those_of_the_code() -> None:
    assert {row[0]: row[1] for row in rows(chapter("Limits"))} == LIMITS


def test_every_reason_for_an_end_stands_in_the_spec() -> None:
    assert {row[0].strip("`") for row in rows(chapter("Errors"))} == set(get_args(EndReason))


def test_the_timers_are_those_of_the_code() -> None:
    told = {row[0].strip("`").split()[0]: row[1] for row in rows(chapter("Timers"))}
    waits = {
        "handshake": machine.HANDSHAKE_S,
        "entry": machine.ENTRY_WAIT_S,
        "blob": machine.BLOB_WAIT_S,
    }
    assert set(told) == set(waits)
    assert all(told[name].endswith(f" {wait:g} s") for name, wait in waits.items())


def test_every_command_and_emission_stands_in_the_states() -> None:
    text = chapter("States")
    for cls in (*get_args(S5Command), *get_args(S5Emission)):
        assert f"`{cls.__name__}`" in text


# ---- vectors


@pytest.mark.parametrize("vector", VECTORS["ids"], ids=lambda vector: vector["name"])
def test_every_text_of_an_id_in_the_file_names_the_same_blob(vector: dict[str, Any]) -> None:
    for text in [*vector["texts"], *vector["legacy_texts"]]:
        blob = parse_id(text)
        assert (blob.hash.hex(), blob.size) == (vector["hash"], vector["size"])


@pytest.mark.parametrize("vector", VECTORS["refused_ids"], ids=lambda vector: vector["name"])
def test_the_refused_texts_name_no_blob(vector: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        parse_id(vector["text"])


def test_the_messages_in_the_file_round_trip_and_the_refused_ones_do_not_pass() -> None:
    for vector in VECTORS["messages"]:
        message = messages.decode(bytes.fromhex(vector["hex"]))
        assert type(message).__name__ == vector["type"]
        assert messages.encode(message).hex() == vector["hex"]
    for vector in VECTORS["statements"]:
        statement = messages.decode_statement(bytes.fromhex(vector["hex"]))
        assert type(statement).__name__ == vector["type"]
        assert not isinstance(statement, messages.Ignored)
        assert messages.encode_statement(statement).hex() == vector["hex"]
    for vector in VECTORS["refused_messages"]:
        with pytest.raises(ProtocolError):
            messages.decode(bytes.fromhex(vector["hex"]))


def test_the_entries_in_the_file_hold() -> None:
    for vector in VECTORS["entries"]:
        entry = parse_entry(bytes.fromhex(vector["hex"]))
        assert entry.key == ZERO.entry_key
        assert entry.holds()


def test_the_handshake_in_the_file_is_what_two_machines_say() -> None:
    told = [(each["from"], messages.decode(bytes.fromhex(each["hex"]))) for each in VECTORS["handshake"]]
    sides = {
        "zero": machine.S5Peer(node=ZERO.node, sign=ZERO.sign, challenge=COUNTING, dialled=False),
        "other": machine.S5Peer(node=OTHER.node, sign=OTHER.sign, challenge=COUNTING[::-1], dialled=True),
    }
    said: list[tuple[str, Any]] = []
    met = []
    for name, side in sides.items():
        said += [(name, effect.message) for effect in side.start(0.0) if isinstance(effect, Send)]
    for speaker, message in told:
        listener = "other" if speaker == "zero" else "zero"
        for effect in sides[listener].handle(Received(PeerId(listener), 0, message), 0.0):
            match effect:
                case Send(message=answer):
                    said.append((listener, answer))
                case Emit(value=Connected(node=node)):
                    met.append(node)
                case _:
                    pass
    assert sorted(said, key=repr) == sorted(told, key=repr)
    assert met == [ZERO.node, OTHER.node]


def test_the_other_vectors_are_read_back() -> None:
    node = VECTORS["nodes"]
    assert parse_node(from_multibase(node["text"])) == bytes.fromhex(node["key"])
    assert node_text(NodeId(bytes.fromhex(node["key"]))) == node["text"]
    assert node["uri"] == f"ws://{node['text']}@s5.example:5050{P2P_PATH}"
    for vector in VECTORS["accounts"]:
        response = bytes.fromhex(vector["response"])
        assert challenge_response(Purpose[vector["purpose"].upper()], bytes(32), vector["host"]) == response
        assert verify_key(ZERO.entry_key, response, bytes.fromhex(vector["signature"]))
