"""``Parameters``: every number that GossipSub turns on, in one frozen record.

Names are those of the specifications, with units last; the defaults are ours, and ``SPEC.md`` says why each
differs from the published one. ``v1_0`` is the published form of GossipSub 1.0, for simulations that are
compared with others' figures.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreParameters:
    """Weights of a peer's score (v1.1, section "Peer Scoring"), and the thresholds it is held against.

    P3 and P3b (too few messages in the mesh) are off: a topic of ours may carry one message in a minute. P6
    (peers of one address) is no part of the score: it chooses among equals.
    """

    mesh_weight: float = 0.01
    """P1, for each minute in a mesh of ours."""
    mesh_minutes_max: float = 5.0
    first_weight: float = 0.02
    """P2, for each message that the peer was the first to bring."""
    first_max: float = 20.0
    invalid_weight: float = -5.0
    """P4, for the square of the messages that every node refuses alike."""
    behaviour_weight: float = -2.0
    """P7, for the square of broken promises, grafts in back-off and floods above the tolerance."""
    behaviour_tolerance: float = 2.0
    half_life_s: float = 120.0
    """In which P2, P4 and P7 halve."""
    gossip_threshold: float = -10.0
    """Below it a peer is neither offered messages nor asked for any."""
    publish_threshold: float = -20.0
    """Below it our own messages aren't flooded to it."""
    graylist_threshold: float = -40.0
    """Below it all that the peer sends is ignored."""
    opportunistic_graft_threshold: float = 0.1
    """Where the median of a mesh is below it, better peers are grafted. P1 alone never reaches it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """See the module."""

    degree: int = 6
    degree_low: int = 4
    degree_high: int = 12
    degree_score: int = 4
    """Of the peers that stay when a mesh is cut, so many are the best ones."""
    degree_out: int = 2
    """Of a mesh's peers, so many are ones that we dialled, where there are any."""
    degree_lazy: int = 6
    gossip_factor: float = 0.25
    heartbeat_s: float = 1.0
    always_beat: bool = False
    """Whether the heartbeat goes on where there is nothing to do, as the published form has it."""

    graft_at_once: bool = True
    """Whether a mesh that is too small takes in a peer as soon as it subscribes, and not at the heartbeat."""
    refuse_when_full: bool = True
    """Whether a mesh of ``degree_high`` takes in only peers that we dialled. The published form takes in all,
    and is cut at the heartbeat."""

    flood_publish: bool = True
    forward_delay_s: float = 0.05
    """A message is forwarded after a random part of it: neighbours that bring it meanwhile are spared."""
    forwards_max: int = 256
    """Messages that wait for it; more are forwarded at once."""
    idontwant: bool = True
    opportunistic_s: float = 60.0
    opportunistic_peers: int = 2

    prune_backoff_s: int = 60
    unsubscribe_backoff_s: int = 10
    backoff_max_s: int = 600
    """A longer one that a peer asks for is cut to this."""
    backoffs_max: int = 64
    """Topics of one peer, connected or among ``scores_kept_max``."""

    offer_to_holders: bool = False
    """Whether a message is also offered to peers that are known to have it, as the published form has it."""
    gossip_window: int = 3
    """Heartbeats for which a message is offered."""
    promise_heartbeats: int = 5
    """Heartbeats after its last offer for which a message is served."""
    cache_bytes_max: int = 2 << 20
    cache_messages_max: int = 4096
    seen_s: float = 120.0
    seen_max: int = 16384
    duplicate_s: float = 300.0
    duplicates_max: int = 4096
    promise_s: float = 3.0
    promises_max: int = 1024
    asked_max: int = 4096
    """Message ids of which it is remembered whom they were asked of."""
    asks_per_message: int = 3
    """Peers that one message is asked of within ``promise_s``."""

    topics_per_peer: int = 64
    """Names of topics that are remembered of one peer."""
    entries_per_list: int = 128
    """Of a list in one RPC so many are looked at; of message ids, see below."""
    ids_per_rpc: int = 512
    wants_per_rpc: int = 256
    offers_per_heartbeat: int = 10
    """RPCs with IHAVE of one peer that are looked at in one heartbeat."""
    wants_per_heartbeat: int = 256
    """Message ids that are asked of one peer in one heartbeat."""
    answer_bytes_per_heartbeat: int = 128 * 1024
    """Of messages sent to one peer because it asked."""
    unwanted_max: int = 512
    """Message ids that one peer said it doesn't want; each is kept for ``promise_s``."""

    bytes_per_s: float = 256 * 1024.0
    bytes_burst: float = 2.0 * (1 << 20)
    entries_per_s: float = 2048.0
    entries_burst: float = 16384.0
    refused_graft_entries: float = 16.0
    """What a GRAFT counts besides that is answered by PRUNE."""
    checks_per_s: float = 16.0
    checks_burst: float = 256.0
    """Signatures checked for one peer that led to no accepted message."""
    forgeries_max: int = 16
    forgery_window_s: float = 60.0
    """A peer that brought so many refused messages in this time is not listened to for the rest of it."""
    scores_kept_max: int = 1024
    """Peers that left and whose faults and back-offs are remembered."""

    score: ScoreParameters = field(default_factory=ScoreParameters)

    @classmethod
    def v1_0(cls) -> Parameters:
        """GossipSub 1.0 as published: no scores, no flooding, no back-off, and a heartbeat in each second."""
        return cls(
            degree_score=0,
            degree_out=0,
            gossip_factor=0.0,
            always_beat=True,
            graft_at_once=False,
            refuse_when_full=False,
            offer_to_holders=True,
            flood_publish=False,
            forward_delay_s=0.0,
            idontwant=False,
            opportunistic_peers=0,
            prune_backoff_s=0,
            unsubscribe_backoff_s=0,
            score=ScoreParameters(
                mesh_weight=0.0, first_weight=0.0, invalid_weight=0.0, behaviour_weight=0.0
            ),
        )
