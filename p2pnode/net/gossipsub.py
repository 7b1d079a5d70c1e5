"""The library's GossipSub with its faults mended, and its publish path without what adverts don't need.

Mended: GRAFTs for one peer's topics went to every later peer of the same heartbeat, and a pruned peer was
grafted again at the next one, which its side takes for a flood. Left out when fast: IDONTWANT for small
messages (it doubles the traffic), the signed record with every message, queues for peers off the topic.
"""

from __future__ import annotations

from typing import Any, Final

from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pb import rpc_pb2

IDONTWANT_FROM_BYTES: Final = 1024
"""go-libp2p-pubsub's ``IDontWantMessageThreshold``."""


class NodeGossipSub(GossipSub):
    """See the module docstring."""

    def __init__(self, *, fast: bool, **settings: Any) -> None:
        super().__init__(**settings)
        self._fast = fast
        # Every weight of the library's scorer is zero; all it still does is graft peers that were pruned.
        self.scorer = None

    async def publish(self, msg_forwarder: ID, pubsub_msg: rpc_pb2.Message) -> None:
        """Forward a message that has been validated."""
        if not self._fast:
            await super().publish(msg_forwarder, pubsub_msg)
            return
        pubsub = self.pubsub
        if pubsub is None or not self._check_spam_protection(msg_forwarder, pubsub_msg):
            return
        self.mcache.put(pubsub_msg)
        message_id = pubsub.get_message_id(pubsub_msg)
        if len(pubsub_msg.data) >= IDONTWANT_FROM_BYTES:
            await self._emit_idontwant_for_message(message_id, pubsub_msg.topicIDs)
        rpc = rpc_pb2.RPC(publish=[pubsub_msg])
        receivers = self._get_peers_to_send(
            pubsub_msg.topicIDs, msg_forwarder=msg_forwarder, origin=ID(pubsub_msg.from_id), msg_id=message_id
        )
        for peer in sorted(receivers, key=ID.to_bytes):
            if peer in pubsub.peers:
                self.send_rpc(peer, rpc)

    async def _emit_control_msgs(
        self,
        peers_to_graft: dict[ID, list[str]],
        peers_to_prune: dict[ID, list[str]],
        peers_to_gossip: dict[ID, dict[str, list[bytes]]],
    ) -> None:
        """Send one control message to each peer, with its own topics only."""
        for peer, topics in peers_to_prune.items():
            for topic in topics:
                self._add_back_off(peer, topic, False)
        peers = {*peers_to_graft, *peers_to_prune, *peers_to_gossip}
        for peer in sorted(peers, key=ID.to_bytes):
            control = self.pack_control_msgs(
                [
                    rpc_pb2.ControlIHave(topicID=topic, messageIDs=message_ids)
                    for topic, message_ids in peers_to_gossip.get(peer, {}).items()
                ],
                [rpc_pb2.ControlGraft(topicID=topic) for topic in peers_to_graft.get(peer, ())],
                [
                    rpc_pb2.ControlPrune(topicID=topic, backoff=self.prune_back_off)
                    for topic in peers_to_prune.get(peer, ())
                ],
            )
            await self.emit_control_message(control, peer)
