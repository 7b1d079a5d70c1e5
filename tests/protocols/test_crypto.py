"""Keys, digests and signatures against vectors that other implementations made."""

from __future__ import annotations

import base58
import pytest
from Crypto.Hash import keccak
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.errors import ProtocolError
from p2pnode.ids import PeerId
from p2pnode.protocols.adverts.signatures import BindingTerms, binding_digest
from p2pnode.protocols.crypto import (
    abi_encode,
    keccak256,
    peer_id_of,
    public_key_of,
    recover_address,
    sign_digest,
    verify_again,
    verify_key,
    verify_peer,
)
from tests.protocols.support import Identity

# libp2p 0.8.1: create_new_key_pair(bytes(range(32)))
PUBLIC_KEY = bytes.fromhex("03a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8")
PEER = PeerId("12D3KooWA4Xop1JaT3MHxwYMkCepYsv4iPVopMXwCz5iHYdBfeSB")

# eth_account 0.14.0: encode_typed_data of the HostBinding below, signed with the key 0x0101…01
BINDING_PEER = PeerId("12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN")
BINDING = BindingTerms(
    receipt_key=b"\x11" * 20, chain_id=84532, node_registry=b"\x22" * 20, seq=7, expires_at=1_700_086_400
)
BINDING_DIGEST = bytes.fromhex("bcc3dc179589d7bdd782a7260458df8b2ae51b2e447f603f1b512d5f0fd9440d")
BINDING_SIGNATURE = bytes.fromhex(
    "d11954f3830326a11a2ae856126242e388af2455524f7851e4dc0847f7504766"
    "6d6758580804cf3ff9666be6cfb1eb92ec6375ce83d45faacf55a2eb97ffb239"
    "1c"
)
BINDING_WALLET = bytes.fromhex("1a642f0E3c3aF545E7AcBD38b07251B3990914F1")
ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141


def test_a_peer_id_is_the_one_libp2p_gives() -> None:
    ed25519 = pytest.importorskip("libp2p.crypto.ed25519")
    peer_id = pytest.importorskip("libp2p.peer.id")
    pair = ed25519.create_new_key_pair(bytes(range(32)))
    assert peer_id.ID.from_pubkey(pair.public_key).to_base58() == PEER
    assert peer_id_of(PUBLIC_KEY) == PEER
    assert public_key_of(PEER) == PUBLIC_KEY


@pytest.mark.parametrize(
    "peer",
    [
        pytest.param("", id="empty"),
        pytest.param("not base58: 0OIl", id="not base58"),
        pytest.param("é" * 20, id="not ascii"),
        pytest.param("QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N", id="an RSA peer"),
        pytest.param(str(PEER)[:-1], id="cut"),
        pytest.param("1" + str(PEER), id="a leading zero"),
        pytest.param(str(PEER) + " ", id="a second name by a space"),
        pytest.param(str(PEER) + "\n", id="a second name by a new line"),
        pytest.param(
            base58.b58encode(b"\x00\x24\x08\x02\x12\x20" + PUBLIC_KEY).decode(), id="other key type"
        ),
    ],
)
def test_anything_but_the_one_form_of_an_ed25519_peer_id_is_refused(peer: str) -> None:
    with pytest.raises(ProtocolError):
        public_key_of(peer)
    assert not verify_peer(peer, b"message", bytes(64))


@given(st.text(max_size=64))
def test_a_random_peer_id_raises_nothing_but_a_protocol_error(peer: str) -> None:
    try:
        assert peer_id_of(public_key_of(peer)) == peer
    except ProtocolError:
        return


def test_a_peer_signature_holds_for_its_message_and_peer_only() -> None:
    alice, bob = Identity("alice"), Identity("bob")
    signature = alice.sign(b"message")
    assert verify_peer(alice.peer, b"message", signature)
    assert not verify_peer(alice.peer, b"massage", signature)
    assert not verify_peer(bob.peer, b"message", signature)
    assert not verify_peer(alice.peer, b"message", signature[:-1])
    assert not verify_peer(alice.peer, b"message", bytes(64))


def test_a_key_that_comes_again_is_checked_like_any_other() -> None:
    signers = [Identity(number) for number in range(300)]  # more keys than are kept
    keys = [public_key_of(each.peer) for each in signers]
    for _ in range(2):
        for each, key, other in zip(signers, keys, keys[1:], strict=False):
            signature = each.sign(b"message")
            assert verify_again(key, b"message", signature)
            assert not verify_again(key, b"another", signature)
            assert not verify_again(other, b"message", signature)
    signature = signers[0].sign(b"message")
    for key, tried in ((b"", signature), (keys[0][:31], signature), (keys[0], b""), (bytes(32), bytes(64))):
        assert verify_again(key, b"message", tried) == verify_key(key, b"message", tried)
    assert not verify_again(keys[0], b"message", b"")


def test_keccak_is_the_one_of_ethereum() -> None:
    empty = "c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470"
    assert keccak256(b"").hex() == empty
    for size in (1, 31, 32, 135, 136, 137, 300, 5000):  # a block has 136 bytes
        data = bytes(range(251)) * 20
        assert keccak256(data[:size]) == keccak.new(digest_bits=256, data=data[:size]).digest()
    assert abi_encode(1, b"\xff" * 20) == bytes(31) + b"\x01" + bytes(12) + b"\xff" * 20


def test_the_digest_of_a_binding_is_the_one_eth_account_signs() -> None:
    assert binding_digest(BINDING_PEER, BINDING) == BINDING_DIGEST
    assert recover_address(BINDING_DIGEST, BINDING_SIGNATURE) == BINDING_WALLET


def test_eth_account_gives_the_same_digest_here() -> None:
    messages = pytest.importorskip("eth_account.messages", reason="eth_account is not a dependency yet")
    fields = {
        "peerId": "string", "receiptKey": "address", "chainId": "uint256", "nodeRegistry": "address",
        "seq": "uint256", "expiresAt": "uint256",
    }  # fmt: skip
    typed = {
        "types": {
            "EIP712Domain": [{"name": "name", "type": "string"}, {"name": "version", "type": "string"}],
            "HostBinding": [{"name": name, "type": kind} for name, kind in fields.items()],
        },
        "primaryType": "HostBinding",
        "domain": {"name": "p2pnode", "version": "1"},
        "message": {
            "peerId": BINDING_PEER,
            "receiptKey": "0x" + BINDING.receipt_key.hex(),
            "chainId": BINDING.chain_id,
            "nodeRegistry": "0x" + BINDING.node_registry.hex(),
            "seq": BINDING.seq,
            "expiresAt": BINDING.expires_at,
        },
    }
    signable = messages.encode_typed_data(full_message=typed)
    assert keccak256(b"\x19" + signable.version + signable.header + signable.body) == BINDING_DIGEST


def test_what_is_signed_recovers_to_the_signer_only_for_that_digest() -> None:
    alice = Identity("alice")
    digest = keccak256(b"digest")
    signature = alice.sign_wallet(digest)
    assert recover_address(digest, signature) == alice.wallet
    assert recover_address(keccak256(b"other"), signature) != alice.wallet


def test_a_malleated_signature_is_refused() -> None:
    s = int.from_bytes(BINDING_SIGNATURE[32:64], "big")
    high = BINDING_SIGNATURE[:32] + (ORDER - s).to_bytes(32, "big") + b"\x1b"
    assert recover_address(BINDING_DIGEST, high) is None


@pytest.mark.parametrize(
    "signature",
    [
        pytest.param(b"", id="empty"),
        pytest.param(BINDING_SIGNATURE[:-1], id="64 bytes"),
        pytest.param(BINDING_SIGNATURE[:-1] + b"\x01", id="v of another convention"),
        pytest.param(bytes(32) + BINDING_SIGNATURE[32:], id="r of zero"),
        pytest.param(BINDING_SIGNATURE[:32] + bytes(32) + b"\x1b", id="s of zero"),
        pytest.param(b"\xff" * 32 + BINDING_SIGNATURE[32:], id="r beyond the order"),
    ],
)
def test_a_malformed_signature_recovers_to_nobody(signature: bytes) -> None:
    assert recover_address(BINDING_DIGEST, signature) is None


@given(st.binary(min_size=64, max_size=66), st.binary(min_size=32, max_size=32))
def test_random_signatures_raise_nothing(signature: bytes, digest: bytes) -> None:
    recover_address(digest, signature)


def test_signing_gives_low_s_and_v_27_or_28() -> None:
    for number in range(20):
        signature = sign_digest(b"\x01" * 32, keccak256(bytes([number])))
        assert int.from_bytes(signature[32:64], "big") <= ORDER // 2
        assert signature[64] in (27, 28)
