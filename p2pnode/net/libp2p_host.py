"""``NodeHost``: the library's host over our swarm: protocol negotiation and identify, in the swarm's
nursery.

Opening a stream takes one round trip: the header and the protocol are sent together. Identify runs once per
connection, as a task of the nursery.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Final, cast

import trio
from libp2p.abc import INetStream
from libp2p.custom_types import TProtocol
from libp2p.host.basic_host import BasicHost
from libp2p.host.exceptions import StreamFailure
from libp2p.host.ping import ID as PING
from libp2p.host.ping import PingService
from libp2p.identity.identify.identify import ID as IDENTIFY
from libp2p.identity.identify.identify import (
    _mk_identify_protobuf,
    _remote_address_to_multiaddr,
)
from libp2p.identity.identify_push.identify_push import ID_PUSH, identify_push_handler_for
from libp2p.io.exceptions import IOException
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from libp2p.protocol_muxer.multiselect import MULTISELECT_PROTOCOL_ID, PROTOCOL_NOT_FOUND_MSG
from libp2p.stream_muxer.exceptions import MuxedStreamError
from libp2p.utils.varint import encode_delim, encode_varint_prefixed, read_varint_prefixed_bytes_limited
from multiaddr import Multiaddr

from p2pnode.limits import Limits
from p2pnode.net.swarm import NodeSwarm

NEGOTIATION_LINE_MAX: Final = 1024


class ProtocolNotSpokenError(StreamFailure):
    """The peer answered, and doesn't speak the protocol."""


class NodeHost(BasicHost):
    """See the module."""

    _network: NodeSwarm

    def __init__(
        self, swarm: NodeSwarm, limits: Limits, *, addresses: Callable[[], tuple[str, ...]], fast: bool
    ) -> None:
        super().__init__(
            swarm,
            default_protocols=cast("Any", OrderedDict([(TProtocol("/none"), _refuse)])),
            addrs_factory=lambda _: [Multiaddr(address) for address in addresses()],
            disable_identify_address_discovery=True,
            negotiate_timeout=max(1, int(limits.stream_open_deadline_s)),
        )
        self.multiselect.remove_handler(TProtocol("/none"))
        swarm.notifees.clear()  # the library's own identify runs in system tasks
        self.set_stream_handler(IDENTIFY, self._answer_identify)
        self.set_stream_handler(ID_PUSH, identify_push_handler_for(self))
        self.set_stream_handler(PING, PingService(self).handle_ping)
        self._limits = limits
        self._fast = fast

    @property
    def swarm(self) -> NodeSwarm:
        """The swarm below it."""
        return self._network

    async def new_stream(self, peer_id: ID, protocol_ids: Sequence[TProtocol]) -> INetStream:
        """A stream that speaks the first of ``protocol_ids`` that the peer accepts.

        Raises ``ProtocolNotSpokenError``, or ``SwarmException`` when the connection is gone or too slow.
        """
        stream: INetStream | None = None
        done = False
        try:
            with trio.fail_after(self._limits.stream_open_deadline_s):
                stream = await self._network.new_stream(peer_id)
                protocol = await self._negotiate(stream, protocol_ids)
            stream.set_protocol(protocol)
            done = True
        except (MuxedStreamError, IOException) as error:
            if self._network.live(peer_id):
                raise StreamFailure("it reset the stream (at its limit, or shutting down)") from error
            raise SwarmException("it was lost while a stream was opened") from error
        except trio.TooSlowError as error:
            raise SwarmException(
                f"no answer to a new stream within {self._limits.stream_open_deadline_s:g} s"
            ) from error
        finally:
            if stream is not None and not done:
                with trio.move_on_after(1, shield=True):
                    await stream.reset()
        return stream

    async def _negotiate(self, stream: INetStream, protocols: Sequence[TProtocol]) -> TProtocol:
        """multistream-select 1.0, with the header and the first proposal in one write."""
        head = encode_delim(MULTISELECT_PROTOCOL_ID.encode())
        await stream.write(head + encode_delim(protocols[0].encode()))
        if await _read_line(stream) != MULTISELECT_PROTOCOL_ID:
            raise StreamFailure("the peer doesn't speak multistream-select")
        for i, protocol in enumerate(protocols):
            if i:
                await stream.write(encode_delim(protocol.encode()))
            answer = await _read_line(stream)
            if answer == protocol:
                return protocol
            if answer != PROTOCOL_NOT_FOUND_MSG:
                raise StreamFailure(f"unexpected answer to {protocol}")
        raise ProtocolNotSpokenError(f"the peer speaks none of {', '.join(protocols)}")

    async def identify(self, peer_id: ID) -> bool:
        """Ask the peer who it is, once. Returns whether its protocols and addresses are known."""
        if peer_id in self._identify_inflight:
            return False
        self._identify_inflight.add(peer_id)
        try:
            await self._identify_peer(peer_id, reason="connected")
        finally:
            self._identify_inflight.discard(peer_id)
        return peer_id in self._identified_peers

    def forget(self, peer_id: ID) -> None:
        """Forget that the peer was identified: its last connection is gone, and the next one asks again."""
        self._identified_peers.pop(peer_id, None)

    def _schedule_identify(self, peer_id: ID, *, reason: str) -> None:
        """Do nothing: the library would start a system task, and our swarm asks for identify itself."""
        del peer_id, reason

    async def _answer_identify(self, stream: INetStream) -> None:
        observed = _remote_address_to_multiaddr(stream.get_remote_address())
        answer = _mk_identify_protobuf(self, observed).SerializeToString()
        await stream.write(encode_varint_prefixed(answer))
        await stream.close()


async def _read_line(stream: INetStream) -> str:
    line = await read_varint_prefixed_bytes_limited(stream, NEGOTIATION_LINE_MAX)
    return line.removesuffix(b"\n").decode("utf-8", "replace")


async def _refuse(stream: INetStream) -> None:
    await stream.reset()
