"""Keys of a user's storage, all from the 16 bytes behind the recovery phrase's twelve words.

::

    root           HKDF-SHA256(entropy, salt "p2pnode/v1", info "storage-root")
    conversation   HKDF(root, "session-enc" | sid) seals, HKDF(root, "session-reg" | sid) signs its pointer
    index          HKDF(root, "index") seals, HKDF(root, "index-reg") signs; its sid is 16 zero bytes
    owner          HKDF(root, "owner"): the Ed25519 key that a store counts the user's blobs by
    model list     HKDF(root, "model-list" | its name) signs the pointer of a list that the user publishes

Each HKDF is SHA-256 with the salt above, and gives 32 bytes. Nothing here is derived from an address or from
a signature of a wallet. Words and files are not known here; a ``repr`` shows nothing secret.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from p2pnode.protocols.s5.entries import Entry, EntryKey, make_entry
from p2pnode.storage.store import OwnerKey

SID_BYTES: Final = 16
INDEX_SID: Final = bytes(SID_BYTES)
_ENTROPY_BYTES: Final = 16
_KEY_BYTES: Final = 32
_SALT: Final = b"p2pnode/v1"


@dataclass(frozen=True, slots=True)
class LogKeys:
    """What one sealed log needs: the key that seals it, and the one that signs its pointer."""

    sid: bytes
    entry_key: EntryKey
    sealing: bytes = field(repr=False)
    _signing: Ed25519PrivateKey = field(repr=False, compare=False)

    def entry(self, revision: int, data: bytes) -> Entry:
        """A signed pointer. Raises ``ProtocolError`` out of the registry's bounds."""
        return make_entry(self.entry_key, revision, data, self._signing.sign)


@dataclass(frozen=True, slots=True)
class ListKey:
    """What publishes one list of models: the key that is the list's for everybody, and signs its pointer."""

    entry_key: EntryKey
    _signing: Ed25519PrivateKey = field(repr=False, compare=False)

    def entry(self, revision: int, data: bytes) -> Entry:
        """A signed pointer. Raises ``ProtocolError`` out of the registry's bounds."""
        return make_entry(self.entry_key, revision, data, self._signing.sign)


class StorageKeys:
    """All keys of one user. Only the root is kept; the others are derived when they are needed."""

    def __init__(self, root: bytes) -> None:
        if len(root) != _KEY_BYTES:
            msg = f"the root secret of a storage has {_KEY_BYTES} bytes, not {len(root)}"
            raise ValueError(msg)
        self._root = root

    @classmethod
    def from_entropy(cls, entropy: bytes) -> StorageKeys:
        """From the 16 bytes of a recovery phrase."""
        if len(entropy) != _ENTROPY_BYTES:
            msg = f"a recovery phrase stands for {_ENTROPY_BYTES} bytes, not {len(entropy)}"
            raise ValueError(msg)
        return cls(_derive(entropy, b"storage-root"))

    @property
    def root(self) -> bytes:
        """The secret, to be kept in a private file."""
        return self._root

    @property
    def owner(self) -> OwnerKey:
        """The key that stores count the user's blobs by."""
        return OwnerKey(self.owner_signing.public_key().public_bytes_raw())

    @property
    def owner_signing(self) -> Ed25519PrivateKey:
        """The private key that proves to a store who the owner is."""
        return Ed25519PrivateKey.from_private_bytes(_derive(self._root, b"owner"))

    @property
    def index(self) -> LogKeys:
        """The keys of the index: the list of conversations and paid sessions."""
        return self._log(INDEX_SID, b"index", b"index-reg")

    def model_list(self, name: str) -> ListKey:
        """The key of the list of models that this user publishes under ``name``."""
        signing = Ed25519PrivateKey.from_private_bytes(_derive(self._root, b"model-list" + name.encode()))
        return ListKey(EntryKey(signing.public_key().public_bytes_raw()), signing)

    def conversation(self, sid: bytes) -> LogKeys:
        """The keys of one conversation."""
        if len(sid) != SID_BYTES:
            msg = f"the id of a conversation has {SID_BYTES} bytes, not {len(sid)}"
            raise ValueError(msg)
        return self._log(sid, b"session-enc" + sid, b"session-reg" + sid)

    def _log(self, sid: bytes, sealing: bytes, registry: bytes) -> LogKeys:
        signing = Ed25519PrivateKey.from_private_bytes(_derive(self._root, registry))
        key = EntryKey(signing.public_key().public_bytes_raw())
        return LogKeys(sid, key, _derive(self._root, sealing), signing)

    def __repr__(self) -> str:
        return f"StorageKeys(owner={self.owner.hex()[:16]}…)"


def _derive(secret: bytes, info: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=_KEY_BYTES, salt=_SALT, info=info).derive(secret)
