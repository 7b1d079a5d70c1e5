"""Storage keys come from the phrase's entropy by fixed rules."""

from __future__ import annotations

import hashlib
import hmac

import pytest

from p2pnode.storage.keys import INDEX_SID, StorageKeys

ENTROPY = bytes(range(16))
SID = bytes(range(16, 32))
ROOT = "353c54edb049f67393c439a0fab455602dcc780b6adec5a20ef084c88da41788"
OWNER = "4193ae644a32c48a7798312d998f00e2a7b738362c7c469eb9e0054e7aa6932f"
INDEX = (
    "8ce0b4c132bf442152f19b4ea15751f5be270bd024f1f532910d9660acdf7a32",
    "39a5055e3fda65c56466a2a0f4fa443bd6b2542fd9dca38ba8c4c24399349bb3",
)
CONVERSATION = (
    "cc979ef00dfd985ae3b1663d77e6b867bfda7d88b92358b6be76b1b06f00cc22",
    "d5fa3d7ca654ea82299b503d964231aad17a81badcb35fd82190a01bc172386e",
)


def hkdf(secret: bytes, info: bytes) -> bytes:
    """RFC 5869 by hand, for one block."""
    extracted = hmac.new(b"p2pnode/v1", secret, hashlib.sha256).digest()
    return hmac.new(extracted, info + b"\x01", hashlib.sha256).digest()


def test_the_vectors_hold() -> None:
    keys = StorageKeys.from_entropy(ENTROPY)
    assert keys.root.hex() == ROOT
    assert keys.owner.hex() == OWNER
    assert (keys.index.sealing.hex(), keys.index.entry_key.hex()) == INDEX
    conversation = keys.conversation(SID)
    assert (conversation.sealing.hex(), conversation.entry_key.hex()) == CONVERSATION


def test_they_are_what_rfc_5869_says() -> None:
    keys = StorageKeys.from_entropy(ENTROPY)
    assert keys.root == hkdf(ENTROPY, b"storage-root")
    assert keys.conversation(SID).sealing == hkdf(keys.root, b"session-enc" + SID)
    assert keys.index.sealing == hkdf(keys.root, b"index")
    assert keys.owner_signing.private_bytes_raw() == hkdf(keys.root, b"owner")


def test_the_root_alone_makes_the_same_keys() -> None:
    keys = StorageKeys.from_entropy(ENTROPY)
    again = StorageKeys(keys.root)
    assert again.owner == keys.owner
    assert again.conversation(SID) == keys.conversation(SID)


def test_conversations_share_no_key_with_each_other_nor_with_the_index() -> None:
    keys = StorageKeys.from_entropy(ENTROPY)
    logs = [keys.index, keys.conversation(SID), keys.conversation(INDEX_SID), keys.conversation(b"\x01" * 16)]
    assert len({log.sealing for log in logs} | {log.entry_key for log in logs}) == 8


def test_a_pointer_is_signed_by_its_own_key() -> None:
    log = StorageKeys.from_entropy(ENTROPY).conversation(SID)
    entry = log.entry(3, bytes(33))
    assert entry.holds()
    assert (entry.key, entry.revision) == (log.entry_key, 3)


def test_nothing_secret_is_printed() -> None:
    keys = StorageKeys.from_entropy(ENTROPY)
    log = keys.conversation(SID)
    for shown in (repr(keys), str(keys), repr(log), f"{log}"):
        for secret in (keys.root, log.sealing, keys.owner_signing.private_bytes_raw(), ENTROPY):
            assert secret.hex() not in shown
            assert repr(secret) not in shown


def test_other_lengths_are_refused_without_showing_what_came() -> None:
    with pytest.raises(ValueError, match="16 bytes, not 15"):
        StorageKeys.from_entropy(bytes(15))
    with pytest.raises(ValueError, match="32 bytes"):
        StorageKeys(bytes(16))
    with pytest.raises(ValueError, match="16 bytes"):
        StorageKeys.from_entropy(ENTROPY).conversation(bytes(15))
