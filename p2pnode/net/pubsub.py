"""The library's pubsub with four things changed: delivery goes to us, an RPC's messages are handled in the
reader's own task, a peer's signed record is verified when it changes, not with every RPC, and of what a peer
asks or tells about topics only as much is handed on as an honest one has use for.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final

from libp2p.abc import INetStream
from libp2p.exceptions import ParseError
from libp2p.io.exceptions import IOException, MessageTooLarge
from libp2p.network.stream.exceptions import StreamError
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub
from libp2p.pubsub.utils import maybe_consume_signed_record
from libp2p.utils.varint import read_varint_prefixed_bytes_limited

from p2pnode.ids import PeerId
from p2pnode.net.libp2p_host import NodeHost
from p2pnode.net.multiaddrs import from_id

RPC_MAX_BYTES: Final = 256 * 1024
TOPICS_PER_PEER_MAX: Final = 128
TOPIC_MAX_BYTES: Final = 100
"""Of a topic's name; an adverts topic has 84."""
MESSAGE_IDS_MAX: Final = 512
"""That one RPC may offer or want."""
SEEN_S: Final = 120


class NodePubsub(Pubsub):
    """See the module docstring. With ``fast`` off it reads as the library does."""

    def __init__(
        self,
        host: NodeHost,
        router: GossipSub,
        *,
        deliver: Callable[[str, PeerId, bytes], None],
        fast: bool,
    ) -> None:
        super().__init__(
            host,
            router,
            strict_signing=True,
            seen_ttl=SEEN_S,
            max_inbound_rpc_size=RPC_MAX_BYTES,
            max_subscriptions_per_peer=TOPICS_PER_PEER_MAX,
            max_subscriptions_per_rpc=TOPICS_PER_PEER_MAX,
        )
        self._deliver = deliver
        self._fast = fast
        self._records: dict[ID, bytes] = {}

    def notify_subscriptions(self, publish_message: rpc_pb2.Message) -> None:
        """Deliver to our subscriptions: the library's own hold 32 messages and drop the others silently."""
        author = from_id(ID(publish_message.from_id))
        for topic in publish_message.topicIDs:
            self._deliver(topic, author, publish_message.data)

    async def continuously_read_stream(self, stream: INetStream) -> None:
        """Read RPCs until the stream ends."""
        if not self._fast:
            await super().continuously_read_stream(stream)
            return
        peer = stream.muxed_conn.peer_id
        try:
            while self.manager.is_running:
                rpc = rpc_pb2.RPC()
                try:
                    rpc.ParseFromString(
                        await read_varint_prefixed_bytes_limited(stream, self.max_inbound_rpc_size)
                    )
                except (MessageTooLarge, ParseError, ValueError):
                    await stream.reset()
                    self._handle_dead_peer(peer)
                    return
                await self._handle(rpc, peer)
        except (StreamError, IOException):
            return  # the peer left; the notifee cleans up

    async def _handle(self, rpc: rpc_pb2.RPC, peer: ID) -> None:
        if rpc.senderRecord and self._records.get(peer) != rpc.senderRecord:
            if not maybe_consume_signed_record(rpc, self.host, peer):
                return
            self._records[peer] = rpc.senderRecord
        for message in rpc.publish:
            if self._is_subscribed_to_msg(message):
                await self.push_msg(peer, message)
        if len(rpc.subscriptions) <= self.max_subscriptions_per_rpc:
            for subscription in rpc.subscriptions:
                if len(subscription.topicid.encode()) <= TOPIC_MAX_BYTES:
                    self.handle_subscription(peer, subscription)
        if rpc.HasField("control"):
            rpc.control.CopyFrom(bounded(rpc.control, frozenset(self.topic_ids)))
            await self.router.handle_rpc(rpc, peer)

    def _handle_dead_peer(self, peer_id: ID) -> None:
        self._records.pop(peer_id, None)
        super()._handle_dead_peer(peer_id)


def bounded(control: rpc_pb2.ControlMessage, topics: Collection[str]) -> rpc_pb2.ControlMessage:
    """The part of ``control`` that concerns ``topics``: each topic and each message once, no peer
    exchange.

    The library answers every entry, keeps state for any name of a topic, sends a message as often as it is
    asked for in one RPC, and dials any peer that is named.
    """
    kept = rpc_pb2.ControlMessage()
    wanted = dict.fromkeys(each for iwant in control.iwant for each in iwant.messageIDs)
    if wanted:
        kept.iwant.add(messageIDs=list(wanted)[:MESSAGE_IDS_MAX])
    unwanted = dict.fromkeys(each for idontwant in control.idontwant for each in idontwant.messageIDs)
    if unwanted:
        kept.idontwant.add(messageIDs=list(unwanted)[:MESSAGE_IDS_MAX])
    offered = {each.topicID: each for each in control.ihave if each.topicID in topics}
    for topic, ihave in offered.items():
        kept.ihave.add(topicID=topic, messageIDs=list(dict.fromkeys(ihave.messageIDs))[:MESSAGE_IDS_MAX])
    for topic in dict.fromkeys(each.topicID for each in control.graft if each.topicID in topics):
        kept.graft.add(topicID=topic)
    for topic, backoff in {
        each.topicID: each.backoff for each in control.prune if each.topicID in topics
    }.items():
        kept.prune.add(topicID=topic, backoff=backoff)
    return kept
