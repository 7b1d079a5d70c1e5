"""A client's figures for Prometheus: answers, tokens, cost, failovers, and how long readers wait."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from p2pnode.client.bill import AnswerRecord
from p2pnode.client.client import Client
from p2pnode.metrics import FIRST_TOKEN_S, WHOLE_S, Family, Figure, Metrics

_MODEL: Final = ("model",)
ANSWERS = Family(
    "p2pnode_client_answers", "counter", "Answers that are over, by how they ended.", ("model", "outcome")
)
TOKENS = Family(
    "p2pnode_client_tokens",
    "counter",
    "Tokens: input that was billed, input that a host had cached, and output.",
    ("model", "kind"),
)
COST = Family("p2pnode_client_cost_usdc", "counter", "What hosts may claim for answers, in USDC.", _MODEL)
FAILOVERS = Family(
    "p2pnode_client_failovers", "counter", "Sessions that answers went to after their first.", _MODEL
)
HEDGES = Family(
    "p2pnode_client_hedges",
    "counter",
    "Answers for which a second host was asked, by what it was good for: won, lost, failed.",
    ("model", "outcome"),
)
FIRST_TOKEN = Family(
    "p2pnode_client_first_token_seconds",
    "histogram",
    "From a question to its first token, the search for a host included.",
    _MODEL,
    FIRST_TOKEN_S,
)
WHOLE = Family("p2pnode_client_answer_seconds", "histogram", "From a question to its end.", _MODEL, WHOLE_S)
SESSIONS = Family("p2pnode_client_sessions", "gauge", "Sessions with hosts that are open now.")
HOSTS = Family("p2pnode_client_hosts_remembered", "gauge", "Hosts of which something is remembered.")
FAMILIES: Final = (ANSWERS, TOKENS, COST, FAILOVERS, HEDGES, FIRST_TOKEN, WHOLE, SESSIONS, HOSTS)
_USDC: Final = 1e-6


def measure_client(metrics: Metrics, client: Client) -> None:
    """Have ``metrics`` tell of this client. Its answers are counted from now on."""
    answers, tokens, cost, failovers = (metrics.counter(each) for each in (ANSWERS, TOKENS, COST, FAILOVERS))
    hedges = metrics.counter(HEDGES)
    first, whole = metrics.histogram(FIRST_TOKEN), metrics.histogram(WHOLE)

    def observe(record: AnswerRecord) -> None:
        model = record.model
        answers(1, model, record.outcome)
        tokens(record.tokens_in - record.reused, model, "in")
        tokens(record.reused, model, "cached")
        tokens(record.tokens_out, model, "out")
        cost(record.cost * _USDC, model)
        failovers(max(0, record.attempts - 1), model)
        if record.hedge:
            hedges(1, model, record.hedge)
        if record.ttft_s is not None:
            first(record.ttft_s, model)
        whole(record.total_s, model)

    async def read() -> Iterable[Figure]:
        return [
            Figure(SESSIONS, client.pool.open_sessions),
            Figure(HOSTS, len(client.searches.measured)),
        ]

    client.runtime.observe = observe
    metrics.watch(read)
