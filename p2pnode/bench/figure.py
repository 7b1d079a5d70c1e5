"""What is promised, and what was measured: the goals, and the figures that meet them or don't.

A goal is known before anything is measured, so that a figure that could not be taken is still
reported, and doesn't hold. What takes time or CPU is judged by its ratio to a baseline of the same run, for
a slower machine makes both slower; what is the same on every machine (gas, counts of tokens, bytes) is
judged by its value. This module measures nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Final, Literal, TypeAlias, get_args

from p2pnode.errors import LocalError

SuiteName: TypeAlias = Literal[
    "stream",
    "dial",
    "gossip",
    "attacks",
    "cli",
    "idle",
    "gas",
    "paid",
    "economy",
    "failover",
    "storage",
    "simulate",
    "engine",
    "gateway",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """A promise. The first part of its ``name`` is its suite; ``baseline`` says what it is compared with.

    ``unit`` is of the value and of the baseline. ``target`` bounds what ``judged`` names: their ratio, or the
    value itself.
    """

    name: str
    unit: str
    bound: Literal["at least", "at most"]
    target: float
    meaning: str
    baseline: str
    judged: Literal["ratio", "value"] = "ratio"

    @property
    def suite(self) -> str:
        """``stream`` of ``stream.fast``."""
        return self.name.partition(".")[0]


GOALS: Final = (
    Goal(
        name="stream.throughput_1",
        unit="ratio",
        bound="at least",
        target=0.95,
        meaning="tokens/s over the network against the engine alone, one stream of the real model",
        baseline="Engine.generate in the host process, paired runs; 1 means as fast",
    ),
    Goal(
        name="stream.leaf",
        unit="tokens/s",
        bound="at least",
        target=0.99,
        meaning="one stream of the real model over the network, receipts that bind starts, text and prompt",
        baseline="the same less the CPU that a leaf takes at both sides over the hash of its ids alone",
    ),
    Goal(
        name="stream.throughput_4",
        unit="ratio",
        bound="at least",
        target=0.95,
        meaning="the same with four streams at once",
        baseline="four Engine.generate at once in the host process, paired runs; 1 means as fast",
    ),
    Goal(
        name="stream.fast",
        unit="ratio",
        bound="at least",
        target=0.97,
        meaning="the same with four streams of a scripted engine at 2,000 tokens/s each",
        baseline="four Engine.generate at once in the host process, paired runs; 1 means as fast",
    ),
    Goal(
        name="stream.parallel_8",
        unit="ratio",
        bound="at least",
        target=0.97,
        meaning="tokens/s of eight turns at once in one session, scripted engine at 100 tokens/s a turn",
        baseline="eight free sessions of one turn each on the same connection, paired runs; 1 means as fast",
    ),
    Goal(
        name="stream.parallel_8_far",
        unit="ratio",
        bound="at least",
        target=0.97,
        meaning="the same over a round trip of 100 ms",
        baseline="the same over a round trip of 100 ms",
    ),
    Goal(
        name="stream.first_token_overhead",
        unit="ms",
        bound="at most",
        target=25.0,
        meaning="the first token in an open session, from asking to holding it (p50)",
        baseline="a TCP echo of the same bytes and the engine's own first token (p50 of each)",
    ),
    Goal(
        name="dial.to_advert",
        unit="ms",
        bound="at most",
        target=4.0,
        meaning="from a fresh network to a host's verified current advert (p50)",
        baseline="the dial alone (p50)",
    ),
    Goal(
        name="gossip.delivery_cpu",
        unit="ms",
        bound="at most",
        target=0.1,
        meaning="CPU for a delivery with all its copies, 20 nodes on one topic",
        baseline="the same with libp2p as it comes",
    ),
    Goal(
        name="gossip.p99",
        unit="s",
        bound="at most",
        target=1.0,
        meaning="from publishing to another node's having it, 20 nodes on one topic (p99)",
        baseline="the same with libp2p as it comes",
    ),
    Goal(
        name="gossip.burst",
        unit="messages",
        bound="at most",
        target=0,
        meaning="of 40 messages at once from one node, those that did not arrive, at 20 nodes in all",
        baseline="the same with libp2p as it comes",
        judged="value",
    ),
    Goal(
        name="gossip.advert_cpu",
        unit="ms",
        bound="at most",
        target=4.0,
        meaning="the same of adverts, each judged as a host judges it",
        baseline="the bare check of its signatures: envelope, advert, and a binding's once at each node",
    ),
    Goal(
        name="attacks.first_token",
        unit="s",
        bound="at most",
        target=2.0,
        meaning="dialling a host and its first token while strangers attack it: the worst attack (p50)",
        baseline="the same before and after that attack (p50)",
    ),
    Goal(
        name="attacks.refused",
        unit="questions",
        bound="at most",
        target=0,
        meaning="questions of an honest client of another origin that got no answer under any attack",
        baseline="questions that were asked",
        judged="value",
    ),
    Goal(
        name="cli.help",
        unit="s",
        bound="at most",
        target=3.0,
        meaning="`p2pnode --help` from start to end (p50)",
        baseline="the interpreter with the libraries that it imports (p50)",
    ),
    Goal(
        name="cli.ask",
        unit="s",
        bound="at most",
        target=3.0,
        meaning="`p2pnode ask` from its start to the first token on stdout, against a running host (p50)",
        baseline="the interpreter with the modules that it imports (p50)",
    ),
    Goal(
        name="cli.ask_beside",
        unit="s",
        bound="at most",
        target=3.0,
        meaning="`p2pnode ask` beside a running gateway, from its start to the first token on stdout (p50)",
        baseline="the interpreter with the modules that it imports (p50)",
    ),
    Goal(
        name="idle.cpu",
        unit="% of a core",
        bound="at most",
        target=3.0,
        meaning="the busiest of three idle hosts on one topic",
        baseline="a node of libp2p as it comes, one of three on one topic",
        judged="value",
    ),
    Goal(
        name="idle.rss",
        unit="MB",
        bound="at most",
        target=150.0,
        meaning="memory of `p2pnode join --client-only`",
        baseline="a process with one node of libp2p as it comes",
        judged="value",
    ),
    Goal(
        name="idle.left_cpu",
        unit="% of a core",
        bound="at most",
        target=3.0,
        meaning="an idle paid host that keeps 1,000 sessions which were left",
        baseline="a host of the same start that keeps none, at the same time",
        judged="value",
    ),
    Goal(
        name="paid.voucher_cpu",
        unit="ms",
        bound="at most",
        target=4.0,
        meaning="CPU of a checkpoint at the dearer side: receipt, voucher and the journal's commits",
        baseline="the bare signatures of a checkpoint at one side (one made, one checked) and one commit",
    ),
    Goal(
        name="paid.throughput",
        unit="ratio",
        bound="at least",
        target=0.97,
        meaning="tokens/s of four paid streams of a scripted engine at 500 tokens/s each",
        baseline="four free streams of another host of the same engine, paired runs; 1 means as fast",
    ),
    Goal(
        name="economy.opens",
        unit="sessions",
        bound="at most",
        target=1.0,
        meaning="sessions opened for fifty questions of one user in a day, with one host and with three",
        baseline="hosts that answered; 1 means one fee a host",
    ),
    Goal(
        name="economy.fee_share",
        unit="ratio",
        bound="at most",
        target=0.75,
        meaning="the part of what these questions cost that was session fees, one host at the demo's prices",
        baseline="the same with a session for each question",
    ),
    Goal(
        name="failover.duplicated",
        unit="tokens",
        bound="at most",
        target=0,
        meaning="output tokens that came twice for one place of an answer whose host was killed by SIGKILL",
        baseline="those held at the kills: they come again to a client that asks again",
        judged="value",
    ),
    Goal(
        name="failover.missing",
        unit="tokens",
        bound="at most",
        target=0,
        meaning="places of these answers for which no token came, or another than the answer holds",
        baseline="those not held at the kills: they are missing to a client that doesn't ask again",
        judged="value",
    ),
    Goal(
        name="failover.billed_twice",
        unit="tokens",
        bound="at most",
        target=0,
        meaning="output tokens of these answers that two hosts' vouchers pay for",
        baseline="those held at the kills: they are billed again to a client that asks again",
        judged="value",
    ),
    Goal(
        name="failover.gap",
        unit="s",
        bound="at most",
        target=1.5,
        meaning="from the last token of the killed host to the first of the next, 40-token prompt (p50)",
        baseline="the opening and the prefill of the same prompt and prefix at a live host (p50)",
    ),
    Goal(
        name="failover.gap_p95",
        unit="s",
        bound="at most",
        target=1.5,
        meaning="the same (p95)",
        baseline="the same (p95)",
    ),
    Goal(
        name="gas.open",
        unit="gas",
        bound="at most",
        target=160_000,
        meaning="opening a session with Circle's USDC, slots warm",
        baseline="what the deployed predecessor documents",
        judged="value",
    ),
    Goal(
        name="gas.settle",
        unit="gas",
        bound="at most",
        target=100_000,
        meaning="settling a session alone, slots warm",
        baseline="what the deployed predecessor documents",
        judged="value",
    ),
    Goal(
        name="gas.settle_in_10",
        unit="gas",
        bound="at most",
        target=50_000,
        meaning="settling a session as one of ten in a transaction",
        baseline="what the deployed predecessor documents for a session: it has no batches",
        judged="value",
    ),
    Goal(
        name="gas.checkpoint",
        unit="gas",
        bound="at most",
        target=0,
        meaning="a checkpoint: two signatures between peers, no transaction",
        baseline="what the deployed predecessor documents",
        judged="value",
    ),
    Goal(
        name="gas.break_even",
        unit="tokens",
        bound="at most",
        target=4_000,
        meaning="output tokens whose price pays for open and settle: 0.01 gwei, 3000 USD an ether, 2 USD "
        "per million tokens, no session fee",
        baseline="the same for the predecessor's open and settle, without its checkpoints",
        judged="value",
    ),
    Goal(
        name="storage.open",
        unit="s",
        bound="at most",
        target=2.0,
        meaning="opening a store of 100,000 blobs and asking it for one (p50)",
        baseline="the same with 10,000 blobs",
    ),
    Goal(
        name="storage.gc_step",
        unit="ms",
        bound="at most",
        target=2.0,
        meaning="one step of the collection in a store of 100,000 blobs: what is due, or folders (p50)",
        baseline="the same with 10,000 blobs",
    ),
    Goal(
        name="storage.checkpoint",
        unit="ms",
        bound="at most",
        target=50.0,
        meaning="a piece of an answer, appended and acknowledged by two nodes that store (p50)",
        baseline="the same bytes written to one local file, synced with its folder (p50)",
    ),
    Goal(
        name="storage.recover_200_turns",
        unit="s",
        bound="at most",
        target=6.0,
        meaning="a client with a fresh data dir has the list and a conversation of 200 turns (p50)",
        baseline="the same read back from the own disk (p50)",
    ),
    Goal(
        name="storage.bytes_per_turn",
        unit="ratio",
        bound="at most",
        target=1.05,
        meaning="bytes a turn writes to a replica, turns 193 to 256 of a conversation against 65 to 128",
        baseline="1: a turn costs the same however long the conversation is",
    ),
    Goal(
        name="simulate.gossip_1k",
        unit="events/s",
        bound="at least",
        target=0.10,
        meaning="1,000 simulated nodes that gossip with the machines of the node",
        baseline="as many events that do nothing, through a bare heapq loop",
    ),
    Goal(
        name="simulate.gossip_10k",
        unit="events/s",
        bound="at least",
        target=0.06,
        meaning="the same of 10,000 nodes",
        baseline="the same",
    ),
    Goal(
        name="simulate.market_1k",
        unit="s/s",
        bound="at least",
        target=20.0,
        meaning="seconds of a market of 1,000 nodes (adverts, lookups, sessions, payments) in a CPU second",
        baseline="real time",
    ),
    Goal(
        name="engine.throughput_1",
        unit="ratio",
        bound="at least",
        target=0.97,
        meaning="tokens/s of our llama.cpp engine, without any network, one stream",
        baseline="llama.cpp's own server with equal settings, paired runs; 1 means as fast",
    ),
    Goal(
        name="engine.throughput_4",
        unit="ratio",
        bound="at least",
        target=0.97,
        meaning="the same with four streams at once",
        baseline="the same",
    ),
    Goal(
        name="engine.throughput_8",
        unit="ratio",
        bound="at least",
        target=0.97,
        meaning="the same with eight streams at once",
        baseline="the same",
    ),
    Goal(
        name="engine.defaults_decode",
        unit="ratio",
        bound="at least",
        target=0.0,
        meaning="output tokens/s of our engine at its defaults, four streams (shown: there is no target)",
        baseline="llama.cpp's own server at its defaults, paired runs; 1 means as fast",
    ),
    Goal(
        name="engine.defaults_prefill",
        unit="ratio",
        bound="at least",
        target=0.0,
        meaning="prompt tokens/s of our engine at its defaults (shown: there is no target)",
        baseline="the same",
    ),
    Goal(
        name="engine.calibrated",
        unit="ratio",
        bound="at least",
        target=0.95,
        meaning="a question with the settings that calibration chooses: how fast, against the fastest",
        baseline="the fastest of the grid of threads and batches; 1 means as fast",
    ),
    Goal(
        name="gateway.throughput_1",
        unit="ratio",
        bound="at least",
        target=0.97,
        meaning="tokens/s of a chat stream through the gateway and a host, from asking to the end",
        baseline="llama.cpp's HTTP server in the process of the host's engine, paired runs; 1 means as fast",
    ),
    Goal(
        name="gateway.throughput_8",
        unit="ratio",
        bound="at least",
        target=0.97,
        meaning="the same with eight streams at once",
        baseline="the same",
    ),
    Goal(
        name="gateway.first_token_overhead",
        unit="ms",
        bound="at most",
        target=2.0,
        meaning="how much later the first text comes through the gateway than of that server, paired (p50)",
        baseline="the first text of a bare Starlette application that answers with its request (p50)",
    ),
    Goal(
        name="gateway.crowded",
        unit="ratio",
        bound="at least",
        target=0.95,
        meaning="tokens/s of a stream beside 64 streams that wait for tokens and 32 that nobody reads",
        baseline="the same stream alone, paired runs; 1 means as fast",
    ),
    Goal(
        name="gateway.second_turn",
        unit="ratio",
        bound="at least",
        target=0.95,
        meaning="the part of an agent's second prompt, after one of 4,000 tokens, that comes from a cache",
        baseline="all of it",
        judged="value",
    ),
)
SUITES: Final[tuple[SuiteName, ...]] = get_args(SuiteName)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What a suite found for one goal. ``ratio`` is value to baseline unless the suite says otherwise."""

    value: float
    baseline: float
    ratio: float
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A goal and its measurement; ``problem`` says why there is none."""

    goal: Goal
    measurement: Measurement | None = None
    problem: str = ""

    @property
    def holds(self) -> bool:
        """Whether the figure meets its goal."""
        if self.measurement is None:
            return False
        found = self.measurement.ratio if self.goal.judged == "ratio" else self.measurement.value
        return found >= self.goal.target if self.goal.bound == "at least" else found <= self.goal.target

    def to_json(self) -> dict[str, Any]:
        """The object that scripts read; ``name`` is stable."""
        found, goal = self.measurement, self.goal
        return {
            "name": goal.name,
            "value": _rounded(found.value) if found else None,
            "unit": goal.unit,
            "baseline": _rounded(found.baseline) if found else None,
            "ratio": _rounded(found.ratio) if found else None,
            "target": goal.target,
            "bound": goal.bound,
            "judged": goal.judged,
            "holds": self.holds,
            "meaning": goal.meaning,
            "baseline_is": goal.baseline,
            "details": dict(found.details) if found else {},
            **({"problem": self.problem} if self.problem else {}),
        }


def compared(value: float, baseline: float, **details: Any) -> Measurement:
    """A cost and its baseline. Raises ``LocalError`` for a baseline of 0, which has no ratio."""
    if not baseline:
        msg = f"its baseline was 0, and it {_rounded(value):g}: measure longer"
        raise LocalError(msg)
    return Measurement(value=value, baseline=baseline, ratio=value / baseline, details=details)


def paired(pairs: list[tuple[float, float]], **details: Any) -> Measurement:
    """Rates taken in pairs of (ours, baseline): the value is the median of their ratios, the baseline 1."""
    ratio = median(ours / baseline for ours, baseline in pairs)
    shown = {
        "ours": [round(ours, 2) for ours, _ in pairs],
        "baseline": [round(baseline, 2) for _, baseline in pairs],
        "ours_p50": round(median(ours for ours, _ in pairs), 2),
        "baseline_p50": round(median(baseline for _, baseline in pairs), 2),
    }
    return Measurement(value=ratio, baseline=1.0, ratio=ratio, details={**shown, **details})


def _rounded(number: float) -> float:
    """Four digits of a measurement; a count is exact."""
    return float(number) if float(number).is_integer() else float(f"{number:.4g}")
