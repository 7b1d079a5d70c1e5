"""Known keys and small makers for the protocols' tests. Keys here guard nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, Final, TypeVar

import coincurve
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pnode.ids import ModelId, PeerId
from p2pnode.protocols.adverts.messages import Address, Advert, Binding, Load, Offer, SignedAdvert
from p2pnode.protocols.adverts.signatures import BindingTerms, bind, seal
from p2pnode.protocols.crypto import Signer, address_of, peer_id_of, sign_digest
from p2pnode.protocols.events import Effect, Emit, Send

T = TypeVar("T")
MODEL: Final = ModelId(hashlib.sha256(b"model").digest())
OTHER_MODEL: Final = ModelId(hashlib.sha256(b"other model").digest())
WALL: Final = 1_700_000_000.0


def secret(name: object) -> bytes:
    """32 bytes that are the same in every run."""
    return hashlib.sha256(f"test key {name}".encode()).digest()


class Identity:
    """A peer key and a wallet made from a name."""

    def __init__(self, name: object) -> None:
        key = Ed25519PrivateKey.from_private_bytes(secret(name))
        self.sign: Signer = key.sign
        self.peer: PeerId = peer_id_of(key.public_key().public_bytes_raw())
        self.wallet_secret = secret(f"wallet of {name}")
        public = coincurve.PrivateKey(self.wallet_secret).public_key.format(compressed=False)
        self.wallet = address_of(public)

    def sign_wallet(self, digest: bytes) -> bytes:
        """The wallet's signature."""
        return sign_digest(self.wallet_secret, digest)

    def binding(self, *, seq: int = 1, expires_at: int = int(WALL) + 86_400) -> Binding:
        """This wallet's word for this peer."""
        terms = BindingTerms(receipt_key=self.wallet, seq=seq, expires_at=expires_at)
        return bind(self.peer, self.wallet, terms, self.sign_wallet)

    def advert(self, **changes: Any) -> Advert:
        """A plain advert of MODEL, live for 90 s from WALL."""
        fields: dict[str, Any] = {
            "peer": self.peer,
            "instance": b"instance",
            "seq": 1,
            "issued_at": int(WALL),
            "expires_at": int(WALL) + 90,
            "binding": self.binding(),
            "addresses": (Address(multiaddr="/ip4/192.0.2.1/tcp/4001"),),
            "offers": (offer(),),
            "load": Load(slots=4),
        }
        return Advert(**{**fields, **changes})

    def signed(self, **changes: Any) -> SignedAdvert:
        """The same, sealed."""
        return seal(self.advert(**changes), self.sign)


def high_s(signature: bytes) -> bytes:
    """The other signature of the same key and digest, which a careless verifier takes."""
    order = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
    s = order - int.from_bytes(signature[32:64], "big")
    return signature[:32] + s.to_bytes(32, "big") + bytes([55 - signature[64]])


def offer(model: ModelId = MODEL, price_out: int = 10) -> Offer:
    """An offer."""
    return Offer(model=model, n_ctx=8192, price_out=price_out)


def sent(effects: Iterable[Effect]) -> list[Any]:
    """The messages among effects."""
    return [effect.message for effect in effects if isinstance(effect, Send)]


def emitted(effects: Iterable[Effect]) -> list[Any]:
    """The emissions among effects."""
    return [effect.value for effect in effects if isinstance(effect, Emit)]


def only(kind: type[T], values: Sequence[object]) -> T:
    """The one value of this kind."""
    (found,) = (value for value in values if isinstance(value, kind))
    return found
