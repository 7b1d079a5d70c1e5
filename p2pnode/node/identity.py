"""A host's identity on disk: peer key, receipt key, wallet, and the wallet's binding of the two.

The wallet is opened only when a new binding is due, once a month: decrypting its key takes a second, and the
key should be in memory only as long as signing takes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import trio

from p2pnode.chain.wallet.files import WalletFiles
from p2pnode.chain.wallet.passphrase import terminal_kept
from p2pnode.chain.wallet.wallet import Wallet, open_or_make_wallet
from p2pnode.errors import ProtocolError
from p2pnode.files import write_private
from p2pnode.node.datadir import DataDir
from p2pnode.node.keys import PeerKey, load_or_create_seed
from p2pnode.protocols.adverts.messages import Binding
from p2pnode.protocols.adverts.signatures import BINDING_TTL_MAX_S, BindingTerms, bind, binding_holds
from p2pnode.protocols.crypto import key_address, public_key_of
from p2pnode.protocols.wire import decode_record, encode

_RENEW_BEFORE_S: Final = 5 * 24 * 3600


@dataclass(frozen=True, slots=True)
class HostIdentity:
    """The keys that a host signs with, except for its wallet's, which stays closed."""

    key: PeerKey
    receipt_secret: bytes
    binding: Binding

    def __repr__(self) -> str:
        return f"HostIdentity({self.key.peer_id})"


@dataclass(frozen=True, slots=True)
class BoundChain:
    """The chain that a host is paid on, as the binding names it; both are zero for a free host."""

    chain_id: int = 0
    node_registry: bytes = bytes(20)


def load_or_create_identity(
    data: DataDir,
    wall: Callable[[], float],
    chain: BoundChain = BoundChain(),
    passphrase: bytes | None = None,
) -> HostIdentity:
    """Read the identity of a data dir, making what is missing. Blocks for up to two seconds.

    ``passphrase`` is the wallet's, where its source would have to be asked.
    """
    key = PeerKey(load_or_create_seed(data.peer_key))
    receipt_secret = load_or_create_seed(data.receipt_key)
    wallet = open_or_make_wallet(wallet_files(data))
    held = _stored(data)
    now = int(wall())
    wanted = BindingTerms(
        receipt_key=key_address(receipt_secret),
        chain_id=chain.chain_id,
        node_registry=chain.node_registry,
        # Above the last number also where the clock was ahead then: readers refuse a lower one.
        seq=max(now, held.seq + 1 if held is not None else 0),
        expires_at=now + BINDING_TTL_MAX_S,
    )
    if held is not None and _good(held, key, wallet.address, wanted, now):
        return HostIdentity(key, receipt_secret, held)
    made = bind(key.peer_id, wallet.address, wanted, wallet.unlock(passphrase))
    write_private(data.binding, encode(made))
    return HostIdentity(key, receipt_secret, made)


async def passphrase_of(wallet: Wallet) -> bytes:
    """The wallet's passphrase from its source, read in a thread: a person may take minutes to type it.

    Ctrl-C leaves the thread behind, and the terminal as it was.
    """
    with terminal_kept():
        return await trio.to_thread.run_sync(wallet.passphrase, abandon_on_cancel=True)


def wallet_files(data: DataDir) -> WalletFiles:
    """Where a data dir keeps its wallet."""
    return WalletFiles(keystore=data.wallet, phrase=data.phrase, passphrase=data.wallet_passphrase)


def host_keys(data: DataDir) -> tuple[bytes, bytes]:
    """What a stake is registered for: the 32-byte peer key and the receipt key's address. Makes what is
    missing."""
    data.prepare()
    peer = PeerKey(load_or_create_seed(data.peer_key)).peer_id
    return public_key_of(peer), key_address(load_or_create_seed(data.receipt_key))


def known_host_keys(data: DataDir) -> tuple[bytes, bytes] | None:
    """The same where both are there; None otherwise."""
    if not (data.peer_key.exists() and data.receipt_key.exists()):
        return None
    return host_keys(data)


def is_due(identity: HostIdentity, now: float) -> bool:
    """Whether the binding expires soon, or does not hold now, as after the clock was corrected."""
    binding = identity.binding
    return binding.expires_at - now <= _RENEW_BEFORE_S or not binding_holds(
        identity.key.peer_id, binding, now
    )


def _good(held: Binding, key: PeerKey, wallet: bytes, wanted: BindingTerms, now: int) -> bool:
    """Whether a stored binding has the terms that are wanted now, and holds for long enough."""
    terms = (held.wallet, held.receipt_key, held.chain_id, held.node_registry)
    return (
        terms == (wallet, wanted.receipt_key, wanted.chain_id, wanted.node_registry)
        and held.expires_at - now > _RENEW_BEFORE_S
        and binding_holds(key.peer_id, held, now)
    )


def _stored(data: DataDir) -> Binding | None:
    try:
        return decode_record(Binding, data.binding.read_bytes())
    except (OSError, ProtocolError):
        return None
