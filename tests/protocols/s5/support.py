"""Keys, messages and strategies for the tests of S5. Keys here guard nothing."""

from __future__ import annotations

from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import strategies as st

from p2pnode.protocols.crypto import Signer
from p2pnode.protocols.s5.entries import Entry, EntryKey, make_entry
from p2pnode.protocols.s5.ids import BlobHash, hash_of
from p2pnode.protocols.s5.locations import StorageLocation
from p2pnode.protocols.s5.messages import (
    AnnouncePeers,
    HandshakeDone,
    HandshakeOpen,
    HashQuery,
    KnownPeer,
    RegistryQuery,
    Signed,
)
from p2pnode.protocols.s5.nodes import NodeId

HELLO: Final = b"Hello, world!"
HELLO_HASH: Final = hash_of(HELLO)
COUNTING: Final = bytes(range(32))


class Key:
    """An Ed25519 key from a seed."""

    def __init__(self, seed: bytes = bytes(32)) -> None:
        private = Ed25519PrivateKey.from_private_bytes(seed)
        self.sign: Signer = private.sign
        self.public: bytes = private.public_key().public_bytes_raw()
        self.node, self.entry_key = NodeId(self.public), EntryKey(self.public)

    def entry(self, revision: int = 1, data: bytes = b"data") -> Entry:
        """A signed entry of this key."""
        return make_entry(self.entry_key, revision, data, self.sign)


ZERO: Final = Key()
OTHER: Final = Key(b"\x01" * 32)

hashes: Final = st.binary(min_size=32, max_size=32).map(BlobHash)
keys: Final = st.binary(min_size=32, max_size=32).map(EntryKey)
nodes: Final = st.binary(min_size=32, max_size=32).map(NodeId)
signatures: Final = st.binary(min_size=64, max_size=64)
challenges: Final = st.binary(min_size=32, max_size=64)
uri_lists: Final = st.lists(st.text(max_size=20), max_size=8).map(tuple)
entries: Final = st.builds(
    Entry,
    key=keys,
    revision=st.integers(0, 2**48),
    data=st.binary(max_size=64),
    signature=signatures,
)
locations: Final = st.builds(
    StorageLocation,
    digest=hashes,
    type=st.integers(0, 255),
    expires_at=st.integers(0, 2**32 - 1),
    parts=st.lists(st.text(max_size=20), max_size=8).map(tuple),
    node=nodes,
    signature=signatures,
    old=st.booleans(),
)
messages: Final[st.SearchStrategy[Any]] = st.one_of(
    st.builds(HandshakeOpen, challenge=challenges, network=st.text(max_size=16)),
    st.builds(Signed, node=nodes, signature=signatures, inner=st.binary(min_size=1, max_size=300)),
    st.builds(
        HashQuery,
        digest=hashes,
        types=st.lists(st.integers(0, 255), max_size=16).map(tuple),
        old=st.booleans(),
    ),
    st.builds(RegistryQuery, key=keys),
    locations,
    entries,
)
statements: Final[st.SearchStrategy[Any]] = st.one_of(
    st.builds(HandshakeDone, challenge=challenges, features=st.integers(0, 2**32 - 1), uris=uri_lists),
    st.builds(
        AnnouncePeers,
        peers=st.lists(
            st.builds(KnownPeer, node=nodes, connected=st.booleans(), uris=uri_lists), max_size=8
        ).map(tuple),
    ),
)
