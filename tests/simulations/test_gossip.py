"""What simulated machines share is what each would have read by itself."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.errors import ProtocolError
from p2pnode.protocols.gossipsub.messages import ID_MAX, Control, Rpc, decode_rpc
from p2pnode.simulations.gossip_service import SharedCodec
from tests.protocols.gossipsub.mesh import message_from, subscription

TOPICS = st.binary(min_size=1, max_size=200)
IDS = st.lists(st.binary(min_size=1, max_size=ID_MAX), min_size=1, max_size=4)


def told(rpc: Rpc) -> dict[str, Any]:
    """All that an RPC says."""
    control = rpc.control
    assert control is not None
    return {
        "entries": rpc.entries,
        "graft": [each.topic for each in control.graft],
        "prune": [(each.topic, each.backoff) for each in control.prune],
        "ihave": [(each.topic, list(each.ids)) for each in control.ihave],
        "iwant": [list(each.ids) for each in control.iwant],
        "idontwant": [list(each.ids) for each in control.idontwant],
    }


@given(
    graft=st.dictionaries(TOPICS, st.none(), max_size=3),
    prune=st.dictionaries(TOPICS, st.integers(0, 2**63), max_size=3),
    ihave=st.dictionaries(TOPICS, IDS, max_size=3),
    iwant=IDS | st.just([]),
    idontwant=IDS | st.just([]),
)
def test_a_control_message_is_known_as_its_bytes_say_it(
    graft: dict[bytes, None],
    prune: dict[bytes, int],
    ihave: dict[bytes, list[bytes]],
    iwant: list[bytes],
    idontwant: list[bytes],
) -> None:
    control = Control(graft=graft, prune=prune, ihave=dict(ihave), iwant=iwant, idontwant=idontwant)
    codec = SharedCodec()
    payload = codec.encode(control)
    assert len(payload) == len(control.encode())
    expected = decode_rpc(control.encode())
    if expected.control is not None and (graft or prune or ihave or iwant or idontwant):
        assert told(codec.decode(payload)) == told(expected) == told(SharedCodec().decode(control.encode()))


def test_a_message_is_read_once_and_is_what_it_was() -> None:
    codec, payload = SharedCodec(), message_from("somebody", b"data").encode()
    first, again = codec.decode(payload), codec.decode(payload)
    assert first is again
    assert first.is_one_message
    message, plain = first.publish[0].message(), decode_rpc(payload).publish[0].message()
    assert first.entries == decode_rpc(payload).entries
    assert (message.id, message.data, message.topic, message.signature) == (
        plain.id, plain.data, plain.topic, plain.signature
    )  # fmt: skip
    assert message.signed() == plain.signed()
    assert message.encode() == payload
    assert first.publish[0].message() is message


def test_a_subscription_is_read_as_it_is_and_what_is_no_rpc_is_refused_each_time() -> None:
    codec = SharedCodec()
    [change] = codec.decode(subscription(b"topic").SerializeToString()).subscriptions
    assert (change.topic, change.subscribe) == (b"topic", True)
    for _ in range(2):
        with pytest.raises(ProtocolError, match="not a RPC"):
            codec.decode(b"\xff\xff")
