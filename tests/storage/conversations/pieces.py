"""Any pieces of a conversation, for property tests."""

from __future__ import annotations

from hypothesis import strategies as st

from p2pnode.ids import PeerId
from p2pnode.storage.conversations.records import Piece

PIECES = st.lists(
    st.builds(
        Piece,
        role=st.sampled_from(["user", "assistant", "assistant", "system"]),
        text=st.text(alphabet="abé ", max_size=6),
        ids=st.lists(st.integers(0, 99), max_size=3).map(tuple),
        finish=st.sampled_from([None, None, "stop"]),
        host=st.sampled_from([None, PeerId("a"), PeerId("b")]),
        tokens_out=st.integers(0, 9),
        cost=st.integers(0, 9),
    ),
    max_size=30,
)
