"""The folder of ``p2pnode chain dev --with-wallets``: a chain, and data dirs of a host and of a client.

Each of the two has a wallet. They are strangers to each other but for the client's first peer, and neither is
looked for on the local network: what is tried here disturbs nobody. What is there already stays as it is.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from p2pnode.node.datadir import DataDir

DEV_FOLDER: Final = Path("p2pnode-dev")
"""In the current folder, so that its name is short to type."""
_LISTEN: Final = "/ip4/127.0.0.1/tcp/{port}"
_USUAL_PORT: Final = 4011
_HOST_CONFIG: Final = """\
# Made by `p2pnode chain dev --with-wallets`. Prices are USDC per million tokens, the fee is USDC a session.
price_in = 0.50
price_out = 1.50
session_fee = 0.01
listen = ["{listen}"]
mdns = false
"""
_CLIENT_CONFIG: Final = """\
# Made by `p2pnode chain dev --with-wallets`.
bootstrap = ["{listen}/p2p/{peer}"]
mdns = false
"""


@dataclass(frozen=True, slots=True)
class DevFolder:
    """See the module. Nothing is made until :meth:`make`."""

    root: Path

    @property
    def profile(self) -> Path:
        return self.root / "chain.toml"

    @property
    def host(self) -> DataDir:
        from p2pnode.node.datadir import DataDir

        return DataDir(self.root / "host")

    @property
    def client(self) -> DataDir:
        from p2pnode.node.datadir import DataDir

        return DataDir(self.root / "client")

    def make(self) -> None:
        """Make what is missing. Blocks for some seconds. Raises ``ConfigError``, ``ChainError``."""
        from p2pnode.files import write_atomic
        from p2pnode.node.keys import PeerKey, load_or_create_seed
        from p2pnode.storage.key_file import ensure_storage_key

        for data in (self.host, self.client):
            data.prepare()
            self.wallet_address(data)
            ensure_storage_key(data)
        if not self.host.config.exists():
            listen = _LISTEN.format(port=_free_port())
            peer = PeerKey(load_or_create_seed(self.host.peer_key)).peer_id
            write_atomic(self.client.config, _CLIENT_CONFIG.format(listen=listen, peer=peer).encode())
            write_atomic(self.host.config, _HOST_CONFIG.format(listen=listen).encode())

    @property
    def shown(self) -> Path:
        """As short as it can be typed from here."""
        here = Path.cwd()
        return self.root.relative_to(here) if self.root.is_relative_to(here) else self.root

    @staticmethod
    def wallet_address(data: DataDir) -> bytes:
        """Of a data dir, whose wallet is made where there is none."""
        from p2pnode.chain.wallet.wallet import open_or_make_wallet
        from p2pnode.node.identity import wallet_files

        return open_or_make_wallet(wallet_files(data)).address


def _free_port() -> int:
    from p2pnode.net.transports import is_free

    if is_free(_LISTEN.format(port=_USUAL_PORT)):
        return _USUAL_PORT
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
