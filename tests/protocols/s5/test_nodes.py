"""A node's name, and the URI it is dialled at."""

from __future__ import annotations

import pytest
from hypothesis import given

from p2pnode.errors import ProtocolError
from p2pnode.protocols.s5.ids import from_multibase
from p2pnode.protocols.s5.nodes import (
    NodeId,
    PeerUri,
    node_bytes,
    node_text,
    parse_node,
)
from tests.protocols.s5.support import ZERO, nodes

TEXT = node_text(ZERO.node)


@given(nodes)
def test_every_node_comes_back_from_its_text(node: NodeId) -> None:
    assert node_text(node).startswith("z")
    assert parse_node(from_multibase(node_text(node))) == node
    assert parse_node(node_bytes(node)) == node


@pytest.mark.parametrize("raw", [b"", bytes(33), b"\xed" + bytes(31), b"\xed" + bytes(33)])
def test_what_is_no_node_is_refused(raw: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse_node(raw)


@pytest.mark.parametrize(
    ("text", "uri"),
    [
        ("wss://s5.example/s5/p2p", PeerUri(host="s5.example", port=443, tls=True)),
        ("ws://127.0.0.1:5050/s5/p2p", PeerUri(host="127.0.0.1", port=5050, tls=False)),
        (f"ws://{TEXT}@[::1]:5050/s5/p2p", PeerUri(host="::1", port=5050, tls=False, node=ZERO.node)),
        (f"wss://{TEXT}@s5.example/s5/p2p", PeerUri(host="s5.example", port=443, tls=True, node=ZERO.node)),
    ],
)
def test_a_peers_uri_is_written_with_the_port_that_its_scheme_does_not_say(text: str, uri: PeerUri) -> None:
    assert uri.text() == text
