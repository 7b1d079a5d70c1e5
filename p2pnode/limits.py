"""Every number that bounds something, in one frozen object.

Names end in their unit. What both sides of a protocol must agree on is not here, but in the protocol's
``SPEC.md`` and ``messages.py``.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds and deadlines of one node. Only tests use others than the defaults."""

    # network
    connections_max: int = 256
    connection_idle_s: float = 300.0
    inbound_handshakes_max: int = 16
    handshake_deadline_s: float = 10.0
    dial_deadline_s: float = 10.0
    streams_per_peer: int = 32
    streams_max: int = 512
    streams_per_protocol: int = 256
    stream_window_bytes: int = 1 << 20
    stream_open_deadline_s: float = 10.0
    first_frame_deadline_s: float = 10.0
    request_deadline_s: float = 10.0
    address_interval_s: float = 5.0
    binding_interval_s: float = 60.0

    # adverts
    gossip_queue: int = 256
    gossip_heartbeat_s: float = 1.0
    gossip_send_bytes: int = 512 * 1024
    gossip_retry_s: float = 60.0
    book_max: int = 4096
    peers_saved_max: int = 256

    # lookup
    dials_per_lookup: int = 16
    dials_at_once: int = 4
    lookup_deadline_s: float = 10.0
    exchange_deadline_s: float = 5.0
    dht_wait_s: float = 1.0
    dht_deadline_s: float = 8.0
    mdns_wait_s: float = 1.0
    found_grace_s: float = 0.1
    peers_wanted: int = 8
    peers_interval_s: float = 15.0
    provide_first_s: float = 1.0
    provide_interval_s: float = 600.0

    # failover
    hosts_per_answer: int = 12
    reconnect_patience_s: float = 1.0
    standby_after_s: float = 0.1
    """After the first token, which has left by then: an answer that ends sooner needs no second host."""
    standby_check_s: float = 1.0
    standby_reach_s: float = 3.0
    standby_probe_s: float = 10.0
    standby_look_s: float = 15.0
    pace_window_s: float = 60.0
    pace_floor: float = 0.2
    pace_ceiling: float = 2.0

    # inference
    sessions_max: int = 64
    sessions_per_peer: int = 8
    turns_per_session: int = 8
    """Turns of one session under way at once; no more than the engine has slots."""
    turns_per_origin: int = 16
    """Turns under way of one payer or, in free sessions, of one origin, besides the first of each session:
    whoever asks one question at a time is never refused because of neighbours."""
    engine_queue: int = 32
    flush_interval_s: float = 0.06
    flush_tokens: int = 16
    first_token_deadline_s: float = 120.0
    stall_s: float = 30.0
    idle_session_s: float = 900.0
    sleep_beat_s: float = 5.0
    sleep_least_s: float = 5.0

    # money
    linger_s: float = 300.0
    dormant_s: float = 240.0
    dormant_retry_s: float = 10.0
    escrow_deadline_s: float = 90.0
    chain_deadline_s: float = 10.0
    chain_poll_s: float = 5.0
    settle_batch_s: float = 2.0
    settle_deadline_s: float = 10.0
    settle_retry_s: float = 5.0
    settle_retry_max_s: float = 300.0
    expiry_margin_s: float = 900.0
    redeliveries_max: int = 32
    redeliveries_at_once: int = 4
    redelivery_deadline_s: float = 30.0

    # storage
    replicas_max: int = 16
    replica_grace_s: float = 2.0
    replica_ask_s: float = 3.0
    replica_write_s: float = 10.0
    replica_lag_s: float = 1.0
    replica_backoff_s: float = 2.0
    replica_backoff_max_s: float = 120.0
    fetches_at_once: int = 8
    archive_pushes_at_once: int = 4
    archive_retry_s: float = 5.0
    archive_retry_max_s: float = 300.0
    keep_deadline_s: float = 5.0
    renew_interval_s: float = 3600.0
    renew_at_end_s: float = 2.0
    share_bytes_per_s: float = 8.0 * (1 << 20)
    list_read_s: float = 60.0
    list_refresh_deadline_s: float = 180.0
    lists_check_s: float = 600.0
    lists_refresh_s: float = 86_400.0
    store_streams_max: int = 64
    store_streams_per_peer: int = 4
    announce_interval_s: float = 3000.0
    announce_soon_s: float = 2.0
    announce_keys_max: int = 128
    store_gc_interval_s: float = 60.0
    store_gc_settle_s: float = 600.0
    store_gc_items: int = 128

    # the S5 server
    s5_connections_max: int = 128
    s5_stall_s: float = 30.0
    s5_linger_s: float = 5.0
    s5_partials_max: int = 16
    s5_partial_age_max_s: float = 86_400.0
    s5_accounts_max: int = 1024
    s5_account_tokens_max: int = 16
    s5_challenges_max: int = 256
    s5_challenge_s: float = 300.0
    s5_watches_max: int = 256
    s5_peers_max: int = 32

    # the gateway
    gateway_connections_max: int = 256
    gateway_body_bytes_max: int = 16 << 20
    """Of one request; a prompt has at most 8 bytes per token of context, and pictures."""
    gateway_bodies_bytes_max: int = 64 << 20
    """Of all requests that are being read."""
    gateway_body_bytes_per_s: int = 16 << 10
    """How fast a body has to come, after the first ``gateway_stall_s``."""
    gateway_stall_s: float = 30.0
    gateway_idle_s: float = 5.0
    """After so much silence in a stream a frame shows that it lives: programs give up after 10 s or more."""

    # shutdown
    drain_deadline_s: float = 10.0
    close_deadline_s: float = 3.0


DEFAULT_LIMITS = Limits()
