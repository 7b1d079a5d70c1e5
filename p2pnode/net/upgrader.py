"""From a bare connection to an encrypted, multiplexed one: Noise, then yamux, and nothing else.

A peer that offers plaintext, TLS or another muxer is refused by the negotiation itself.
"""

from __future__ import annotations

from typing import Any, cast

from libp2p.abc import IMuxedConn, IRawConnection, ISecureConn
from libp2p.crypto.keys import KeyPair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.stream_muxer.yamux.yamux import Yamux as LibraryYamux
from libp2p.transport.upgrader import TransportUpgrader

from p2pnode.errors import UnreachableError
from p2pnode.limits import Limits
from p2pnode.net.multiaddrs import from_id
from p2pnode.net.yamux import Yamux

LIBRARY_STREAMS = 32
"""Streams that gossip, the DHT, identify and ping may have open, besides the node's own streams."""


class Upgrader(TransportUpgrader):
    """``fast`` selects our muxer; the library's one serves as the baseline of ``bench gossip``."""

    def __init__(self, key_pair: KeyPair, limits: Limits, *, fast: bool) -> None:
        noise = NoiseTransport(key_pair, noise_privkey=create_noise_key_pair().private_key)
        super().__init__(
            secure_transports_by_protocol={NOISE: noise},
            muxer_transports_by_protocol={TProtocol(YAMUX): LibraryYamux},
            negotiate_timeout=max(1, int(limits.handshake_deadline_s)),
        )
        self._limits = limits
        self._fast = fast

    async def upgrade_outbound(self, raw: IRawConnection, peer: ID) -> IMuxedConn:
        """Secure a connection that we dialled. Raises ``UnreachableError`` when another peer answers."""
        # Checked here, because the library's own check doesn't say which peer answered.
        nobody = cast("ID", None)
        secured = await self.security_multistream.secure_outbound(raw, nobody)
        actual = secured.get_remote_peer()
        if actual != peer:
            raise UnreachableError(
                f"peer id mismatch: expected {from_id(peer)}, but {from_id(actual)} answers there. "
                "The address belongs to another node now; ask for a fresh multiaddr."
            )
        return await self.upgrade_connection(secured, peer)

    async def upgrade_inbound(self, raw: IRawConnection) -> IMuxedConn:
        """Secure a connection that was accepted, from whichever peer it comes."""
        secured = await self.security_multistream.secure_inbound(raw)
        return await self.upgrade_connection(secured, secured.get_remote_peer())

    async def upgrade_connection(self, conn: ISecureConn, peer_id: ID) -> IMuxedConn:
        """Negotiate yamux."""
        selector: Any = self.muxer_multistream._selector  # noqa: SLF001  no public way to choose the class
        await selector.select(conn, conn.is_initiator, self.muxer_multistream.negotiate_timeout)
        if self._fast:
            return Yamux(
                conn,
                peer_id,
                streams_inbound_max=self._limits.streams_per_peer + LIBRARY_STREAMS,
                window_max=self._limits.stream_window_bytes,
            )
        return LibraryYamux(conn, peer_id, is_initiator=conn.is_initiator)
