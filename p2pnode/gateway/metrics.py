"""A gateway's figures for Prometheus, beside those of its client and node; ``/metrics`` has them all."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from p2pnode.client.client import Client
from p2pnode.client.metrics import measure_client
from p2pnode.extras import why_missing
from p2pnode.gateway.app import Observer, RequestRecord
from p2pnode.gateway.gateway import Gateway
from p2pnode.gateway.server import GatewayOptions
from p2pnode.metrics import FIRST_TOKEN_S, WHOLE_S, Family, Figure, Metrics, MetricsApp
from p2pnode.node.metrics import measure_node

_FACE: Final = ("face",)
REQUESTS = Family("p2pnode_gateway_requests", "counter", "Requests, by how they ended.", ("face", "outcome"))
TOKENS = Family("p2pnode_gateway_tokens", "counter", "Tokens of requests.", ("face", "direction"))
FIRST_TOKEN = Family(
    "p2pnode_gateway_first_token_seconds",
    "histogram",
    "From a request to its first token.",
    _FACE,
    FIRST_TOKEN_S,
)
WHOLE = Family("p2pnode_gateway_request_seconds", "histogram", "From a request to its end.", _FACE, WHOLE_S)
UNDER_WAY = Family("p2pnode_gateway_under_way", "gauge", "Answers that are under way.")
CONVERSATIONS = Family("p2pnode_gateway_conversations", "gauge", "Conversations whose host is remembered.")
FAMILIES: Final = (REQUESTS, TOKENS, FIRST_TOKEN, WHOLE, UNDER_WAY, CONVERSATIONS)


def measured(options: GatewayOptions, client: Client) -> tuple[GatewayOptions, Metrics | None]:
    """``options`` with ``/metrics``, where Prometheus' library is installed; and what to measure with."""
    if why_missing("metrics", "metrics"):
        return options, None
    metrics = Metrics()
    measure_client(metrics, client)
    measure_node(metrics, client.node)
    return replace(options, metrics=MetricsApp(metrics), observe=_observer(metrics)), metrics


def measure_gateway(metrics: Metrics, gateway: Gateway) -> None:
    """Have ``metrics`` tell of this gateway, too."""

    async def read() -> Iterable[Figure]:
        now = gateway.statistics()
        return [Figure(UNDER_WAY, now.under_way), Figure(CONVERSATIONS, now.conversations)]

    metrics.watch(read)


def _observer(metrics: Metrics) -> Observer:
    requests, tokens = metrics.counter(REQUESTS), metrics.counter(TOKENS)
    first, whole = metrics.histogram(FIRST_TOKEN), metrics.histogram(WHOLE)

    def observe(record: RequestRecord) -> None:
        requests(1, record.face, record.outcome)
        tokens(record.tokens_in, record.face, "in")
        tokens(record.tokens_out, record.face, "out")
        if record.ttft_s is not None:
            first(record.ttft_s, record.face)
        whole(record.total_s, record.face)

    return observe
