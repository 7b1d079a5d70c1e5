"""A host's figures for Prometheus: turns and where their time goes, load, sessions, vouchers, settlement."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from p2pnode.host.host import Host, ServedTurn
from p2pnode.metrics import FIRST_TOKEN_S, TOKEN_S, WHOLE_S, Family, Figure, Metrics
from p2pnode.payments.escrow import EscrowStatistics

_MODEL: Final = ("model",)
TURNS = Family(
    "p2pnode_host_turns", "counter", "Turns that are over, by how they ended.", ("model", "reason")
)
TOKENS = Family(
    "p2pnode_host_tokens",
    "counter",
    "Tokens served: input that was billed, and output.",
    ("model", "direction"),
)
EARNED = Family(
    "p2pnode_host_billed_usdc", "counter", "What turns were billed at, in USDC; settled it is later.", _MODEL
)
FIRST_TOKEN = Family(
    "p2pnode_host_first_token_seconds",
    "histogram",
    "From when a prompt was whole to its first token.",
    _MODEL,
    FIRST_TOKEN_S,
)
PHASE = Family(
    "p2pnode_host_phase_seconds",
    "histogram",
    "What a turn's time goes to: count the prompt, wait for pay, for a slot, prefill, decode.",
    ("model", "phase"),
    WHOLE_S,
)
TOKEN = Family(
    "p2pnode_host_token_seconds",
    "histogram",
    "Between two tokens of an answer: the mean of each turn.",
    _MODEL,
    TOKEN_S,
)
SLOTS = Family("p2pnode_host_slots", "gauge", "Requests that the engine serves at the same time.", _MODEL)
ACTIVE = Family("p2pnode_host_active", "gauge", "Requests that the engine serves now.", _MODEL)
QUEUED = Family("p2pnode_host_queued", "gauge", "Requests that wait for a slot.", _MODEL)
LOADED = Family("p2pnode_host_model_loaded", "gauge", "1 while the model is in memory, else 0.", _MODEL)
SPEED = Family(
    "p2pnode_host_engine_tokens_per_second", "gauge", "An exponentially weighted mean of decoding.", _MODEL
)
RESTARTS = Family(
    "p2pnode_host_engine_restarts", "counter", "Restarts of the engine's process since it was loaded.", _MODEL
)
STREAMS = Family("p2pnode_host_streams", "gauge", "Streams that have, or ask for, a session now.")
LEFT = Family("p2pnode_host_sessions_left", "gauge", "Sessions that clients left, and that are kept.")
SESSIONS = Family("p2pnode_host_sessions", "counter", "Sessions that were taken.")
REFUSED = Family(
    "p2pnode_host_refused", "counter", "Sessions and questions that were not taken, by code.", ("code",)
)
ROOM = Family(
    "p2pnode_host_memory_bytes", "gauge", "What models that aren't pinned may take together.", ("device",)
)
FREE = Family("p2pnode_host_memory_free_bytes", "gauge", "What no model takes.", ("device",))
VOUCHERS = Family("p2pnode_host_vouchers", "counter", "Vouchers that were journalled.")
RECEIPTS = Family("p2pnode_host_receipts", "counter", "Receipts that were journalled.")
DEPOSITS = Family("p2pnode_host_deposits", "gauge", "Deposits that are being brought to the chain.")
EXPOSED = Family(
    "p2pnode_host_exposed_usdc", "gauge", "What could be lost now, and what was lost in the last day."
)
PAID = Family("p2pnode_host_paid_sessions", "gauge", "Paid sessions in the journal, by state.", ("state",))
SETTLED = Family("p2pnode_host_settled", "counter", "Sessions that were settled.")
SETTLED_USDC = Family(
    "p2pnode_host_settled_usdc", "counter", "What was settled, the treasury's tenth included."
)
POSTPONED = Family("p2pnode_host_settlements_postponed", "counter", "Settlements that are tried again.")
LOST = Family("p2pnode_host_sessions_lost", "counter", "Sessions for which nothing can be claimed any more.")
CHAIN = Family("p2pnode_host_chain_reachable", "gauge", "1 while the chain answers, else 0.")
FAMILIES: Final = (
    TURNS, TOKENS, EARNED, FIRST_TOKEN, PHASE, TOKEN, SLOTS, ACTIVE, QUEUED, LOADED, SPEED, RESTARTS, STREAMS,
    LEFT, SESSIONS, REFUSED, ROOM, FREE, VOUCHERS, RECEIPTS, DEPOSITS, EXPOSED, PAID, SETTLED, SETTLED_USDC,
    POSTPONED, LOST, CHAIN,
)  # fmt: skip
_USDC: Final = 1e-6


def measure_host(metrics: Metrics, host: Host) -> None:
    """Have ``metrics`` tell of this host. Its turns are counted from now on."""
    host.observe = _observer(metrics)

    async def read() -> Iterable[Figure]:
        return _figures(host)

    metrics.watch(read)


def _observer(metrics: Metrics) -> Callable[[ServedTurn], None]:
    turns, tokens, earned = (metrics.counter(each) for each in (TURNS, TOKENS, EARNED))
    first, phase, token = (metrics.histogram(each) for each in (FIRST_TOKEN, PHASE, TOKEN))

    def observe(turn: ServedTurn) -> None:
        model, times = turn.model, turn.times
        turns(1, model, turn.reason)
        tokens(turn.tokens_in, model, "in")
        tokens(turn.tokens_out, model, "out")
        earned(turn.cost * _USDC, model)
        if times.first_token_s is not None:
            first(times.first_token_s, model)
        if times.token_s is not None:
            token(times.token_s, model)
        for name, seconds in times.phases.items():
            phase(seconds, model, name)

    return observe


def _figures(host: Host) -> Iterable[Figure]:
    now = host.statistics()
    for each in now.models:
        of_model = {
            SLOTS: each.slots,
            ACTIVE: each.active,
            QUEUED: each.queued,
            LOADED: each.state == "warm",
            SPEED: each.tokens_per_s,
            RESTARTS: each.restarts,
        }
        yield from (Figure(family, value, (each.name,)) for family, value in of_model.items())
    yield Figure(STREAMS, now.streams)
    yield Figure(LEFT, now.sessions_left)
    yield Figure(SESSIONS, now.served.sessions)
    yield from (Figure(REFUSED, count, (code,)) for code, count in now.refused.items())
    for family, memory in ((ROOM, now.memory), (FREE, now.memory_free)):
        yield Figure(family, memory.main, ("main",))
        yield Figure(family, memory.gpu, ("gpu",))
    if now.money is not None:
        yield from _of_money(now.money)


def _of_money(money: EscrowStatistics) -> Iterable[Figure]:
    settled = money.settlement
    yield Figure(VOUCHERS, money.vouchers)
    yield Figure(RECEIPTS, money.receipts)
    yield Figure(DEPOSITS, money.deposits)
    yield Figure(EXPOSED, money.exposed * _USDC)
    yield from (Figure(PAID, count, (state,)) for state, count in money.sessions.items())
    yield Figure(SETTLED, settled.settled)
    yield Figure(SETTLED_USDC, settled.units * _USDC)
    yield Figure(POSTPONED, settled.postponed)
    yield Figure(LOST, settled.lost)
    yield Figure(CHAIN, money.chain_reachable)
