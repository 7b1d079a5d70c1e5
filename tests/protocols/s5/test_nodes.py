"""A node's name, and the URI it is dialled at."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.errors import ProtocolError
from p2pnode.protocols.s5.nodes import (
    URI_MAX,
    NodeId,
    PeerUri,
    node_bytes,
    node_text,
    parse_node,
    parse_node_text,
    parse_peer_uri,
)
from tests.protocols.s5.support import ZERO, nodes

TEXT = node_text(ZERO.node)


@given(nodes)
def test_every_node_comes_back_from_its_text(node: NodeId) -> None:
    assert node_text(node).startswith("z")
    assert parse_node_text(node_text(node)) == node
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
def test_a_peers_uri_is_read_and_written(text: str, uri: PeerUri) -> None:
    assert parse_peer_uri(text) == uri
    assert uri.text() == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "http://x/s5/p2p",
        "tcp://x:1",
        "ws:///s5/p2p",
        "ws://x",
        "ws://x/other",
        "ws://x/s5/p2p?y",
        "ws://x/s5/p2p#y",
        "ws://x:0/s5/p2p",
        "ws://x:65536/s5/p2p",
        "ws://x:y/s5/p2p",
        "ws://[x/s5/p2p",
        "ws://zabc@x/s5/p2p",
        f"ws://{TEXT}:secret@x/s5/p2p",
        "ws://x y/s5/p2p",
        "ws://x\n/s5/p2p",
        "ws://ä/s5/p2p",
        "ws://" + "x" * URI_MAX + "/s5/p2p",
    ],
)
def test_what_is_no_peers_uri_is_refused(text: str) -> None:
    with pytest.raises(ProtocolError):
        parse_peer_uri(text)


@given(st.text(max_size=60) | st.text(max_size=40).map(lambda host: f"ws://{host}/s5/p2p"))
def test_no_text_does_anything_but_parse_or_raise_a_protocol_error(text: str) -> None:
    try:
        uri = parse_peer_uri(text)
    except ProtocolError as error:
        assert str(error)  # noqa: PT017 - any, as long as it says something
    else:
        assert parse_peer_uri(uri.text()) == uri
