"""A gateway's figures for Prometheus, beside those of its client and node; ``/metrics`` has them all."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from p2pnode.client.client import Client
from p2pnode.client.metrics import measure_client
from p2pnode.extras import why_missing
from p2pnode.gateway.app import Observer, RequestRecord
from p2pnode.gateway.faults import KEY_FAULT
from p2pnode.gateway.gateway import Gateway
from p2pnode.gateway.keys import BudgetRing
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
_KEY: Final = ("key_id",)
KEY_SPENT = Family("p2pnode_gateway_key_spent_usdc", "gauge", "What was spent on a key, by its id.", _KEY)
KEY_RESERVED = Family(
    "p2pnode_gateway_key_reserved_usdc", "gauge", "What answers under way may still take of a key.", _KEY
)
KEY_BUDGET = Family(
    "p2pnode_gateway_key_budget_usdc",
    "gauge",
    "What may be spent on a key in all, if that is bounded.",
    _KEY,
)
KEY_REFUSED = Family(
    "p2pnode_gateway_key_refused",
    "counter",
    "Requests that a key did not allow, by why; of one that ended the id is not told.",
    ("key_id", "why"),
)
FAMILIES: Final = (
    REQUESTS,
    TOKENS,
    FIRST_TOKEN,
    WHOLE,
    UNDER_WAY,
    CONVERSATIONS,
    KEY_SPENT,
    KEY_RESERVED,
    KEY_BUDGET,
    KEY_REFUSED,
)
_USDC: Final = 1e-6


def measured(options: GatewayOptions, client: Client) -> tuple[GatewayOptions, Metrics | None]:
    """``options`` with ``/metrics``, where Prometheus' library is installed; and what to measure with."""
    if why_missing("metrics", "metrics"):
        return options, None
    metrics = Metrics()
    measure_client(metrics, client)
    measure_node(metrics, client.node)
    return replace(options, metrics=MetricsApp(metrics), observe=observing(metrics)), metrics


def measure_gateway(metrics: Metrics, gateway: Gateway) -> None:
    """Have ``metrics`` tell of this gateway, too."""

    async def read() -> Iterable[Figure]:
        now = gateway.statistics()
        return [Figure(UNDER_WAY, now.under_way), Figure(CONVERSATIONS, now.conversations)]

    metrics.watch(read)


def measure_keys(metrics: Metrics, ring: BudgetRing) -> None:
    """Have ``metrics`` tell of the keys that a gateway's ring knows."""

    async def read() -> Iterable[Figure]:
        found = []
        for key, used in await ring.usages():
            label, budget = (key.id.hex(),), key.limits.total_max
            found += [
                Figure(KEY_SPENT, used.total * _USDC, label),
                Figure(KEY_RESERVED, used.claimed * _USDC, label),
                *([] if budget is None else [Figure(KEY_BUDGET, budget * _USDC, label)]),
            ]
        return found

    metrics.watch(read)


def observing(metrics: Metrics) -> Observer:
    """What is to be told of each request, so that ``metrics`` count it."""
    requests, tokens = metrics.counter(REQUESTS), metrics.counter(TOKENS)
    first, whole = metrics.histogram(FIRST_TOKEN), metrics.histogram(WHOLE)
    refused = metrics.counter(KEY_REFUSED)

    def observe(record: RequestRecord) -> None:
        requests(1, record.face, record.outcome)
        if record.outcome.startswith(KEY_FAULT):
            refused(1, record.key_id, record.outcome.removeprefix(KEY_FAULT))
        tokens(record.tokens_in, record.face, "in")
        tokens(record.tokens_out, record.face, "out")
        if record.ttft_s is not None:
            first(record.ttft_s, record.face)
        whole(record.total_s, record.face)

    return observe
