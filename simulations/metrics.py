"""What a run comes to: figures by name, and the curves that a report draws. Pure.

Every published figure is defined here, once. Means are ``math.fsum`` over values, and a percentile is the
value at its rank (no value between two is made up): a figure is the same bits on every machine. What began
in the warm-up or the cool-down of a scenario counts in no figure.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from p2pnode.percentiles import percentile
from p2pnode.simulations.recorder import Recorder, Table

Figure: TypeAlias = int | float | None
"""None where nothing was there to be measured."""
CurveKind: TypeAlias = Literal["cdf", "line", "bars", "lorenz"]
_SHARES: Final = 100
_TIME_BINS: Final = 60
OUTCOMES: Final = ("done", "failed", "refused", "no_host", "cut")
"""Of a question. Each has a figure, so that a run in which none was cut counts as one with 0."""
_SOON_S: Final = 2.0
"""A first token within so many seconds is soon; who gets none at all counts as not."""


@dataclass(frozen=True, slots=True)
class Curve:
    """What one plot shows of one run.

    ``cdf``: the values at 0, 1, … 100% of the nodes or messages, in ``x``; the shares in ``y``. ``line``:
    over time in seconds. ``bars``: a value for each of ``labels``; ``x`` are their places. ``lorenz``: the
    share of all income (``y``) that the poorest share of earners (``x``) has.
    """

    kind: CurveKind
    title: str
    x_label: str
    y_label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Measures:
    """Figures and curves of one run."""

    figures: dict[str, Figure]
    curves: dict[str, Curve]


def measures_of(recorder: Recorder, *, begin_s: float, end_s: float) -> Measures:
    """All figures and curves of what began from ``begin_s`` to ``end_s``.

    Those of a table without rows are left out.
    """
    figures: dict[str, Figure] = {}
    curves: dict[str, Curve] = {}
    span = _Span(begin_s, end_s)
    for table, measure in _BY_TABLE.items():
        if len(recorder.tables[table]):
            measure(recorder.tables, span, figures, curves)
    return Measures(figures, curves)


def mean(values: Sequence[float]) -> float | None:
    """The mean; None of no values."""
    return math.fsum(values) / len(values) if values else None


def gini(values: Iterable[float]) -> float | None:
    """The Gini coefficient: 0 where all earn the same, towards 1 where one has all, None where nobody earns.

    G = 2 sum(i x_i) / (n sum(x)) - (n + 1) / n, over values in rising order (Gini 1912, Sen 1973).
    """
    ordered = sorted(values)
    total = math.fsum(ordered)
    count = len(ordered)
    if not count or total <= 0:
        return None
    ranked = math.fsum(place * value for place, value in enumerate(ordered, 1))
    return 2 * ranked / (count * total) - (count + 1) / count


# ---- by table


@dataclass(frozen=True, slots=True)
class _Span:
    begin_s: float
    end_s: float

    def holds(self, at_s: float) -> bool:
        return self.begin_s <= at_s <= self.end_s

    def bin_of(self, at_s: float) -> int:
        length = max(self.end_s - self.begin_s, 1e-9)
        return min(_TIME_BINS - 1, max(0, int((at_s - self.begin_s) / length * _TIME_BINS)))

    def middle(self, place: int) -> float:
        return self.begin_s + (place + 0.5) * (self.end_s - self.begin_s) / _TIME_BINS


Tables: TypeAlias = Mapping[str, Table]
Figures: TypeAlias = dict[str, Figure]
Curves: TypeAlias = dict[str, Curve]


def _delivery(tables: Tables, span: _Span, figures: Figures, curves: Curves) -> None:
    published, messages = tables["published"], tables["messages"]
    wanted = {
        int(number): int(audience)
        for number, at_s, audience in _rows(published, "message", "at_s", "audience")
        if span.holds(at_s)
    }
    began = {int(number): at_s for number, at_s in _rows(published, "message", "at_s")}
    delays, hops = [], Counter[int]()
    by_time, wanted_by_time = [0] * _TIME_BINS, [0] * _TIME_BINS
    for each, audience in wanted.items():
        wanted_by_time[span.bin_of(began[each])] += audience
    for number, delay_s, hop in _rows(messages, "message", "delay_s", "hops"):
        if int(number) in wanted:
            delays.append(delay_s)
            hops[int(hop)] += 1
            by_time[span.bin_of(began[int(number)])] += 1
    delays.sort()
    expected = sum(wanted.values())
    figures["published"] = len(wanted)
    figures["deliveries"] = len(delays)
    figures["reliability"] = len(delays) / expected if expected else None
    _spread(figures, "latency", "s", delays)
    all_hops = sum(hop * count for hop, count in hops.items())
    figures["hops_mean"] = all_hops / len(delays) if delays else None
    figures["hops_max"] = max(hops, default=None)
    if delays:
        curves["delivery"] = _cdf("Delivery of messages", "seconds after it was published", delays)
        curves["hops"] = _bars("Hops of a message", "hops", "share of deliveries", _shares(hops))
        curves["reliability"] = _line(
            "Messages that arrived",
            "share of nodes that wanted them",
            span,
            [(got / want if want else None) for got, want in zip(by_time, wanted_by_time, strict=True)],
        )


def _lookups(tables: Tables, span: _Span, figures: Figures, curves: Curves) -> None:
    columns = ("at_s", "seconds", "hops", "asked", "found", "failed")
    rows = [row for row in _rows(tables["lookups"], *columns) if span.holds(row[0])]
    seconds = sorted(row[1] for row in rows if not math.isnan(row[1]))
    figures["lookups"] = len(rows)
    figures["lookup_success"] = sum(row[4] > 0 for row in rows) / len(rows) if rows else None
    figures["lookup_hops_mean"] = mean([row[2] for row in rows])
    figures["lookup_asked_mean"] = mean([row[3] for row in rows])
    _spread(figures, "lookup", "s", seconds)
    if seconds:
        curves["lookups"] = _cdf("Lookups", "seconds", seconds)


def _sessions(tables: Tables, span: _Span, figures: Figures, curves: Curves) -> None:
    table = tables["sessions"]
    columns = ("at_s", "first_token_s", "total_s", "hosts", "gap_s", "tokens_out", "cost")
    kept = [span.holds(at_s) for (at_s,) in _rows(table, "at_s")]
    rows = [row for row, is_in in zip(_rows(table, *columns), kept, strict=True) if is_in]
    outcomes = [each for each, is_in in zip(table["outcome"], kept, strict=True) if is_in]
    frauds = [each for each, is_in in zip(table["fraud"], kept, strict=True) if is_in]
    found = [each for each, is_in in zip(table["found"], kept, strict=True) if is_in]
    done = [each == "done" for each in outcomes]
    figures["sessions"] = len(rows)
    figures["session_success"] = sum(done) / len(rows) if rows else None
    for name in sorted({*OUTCOMES, *map(str, outcomes)}):
        figures[f"sessions_{name}"] = outcomes.count(name)
    firsts = sorted(row[1] for row in rows if not math.isnan(row[1]))
    gaps = sorted(row[4] for row in rows if not math.isnan(row[4]))
    _spread(figures, "first_token", "s", firsts)
    within = sum(value <= _SOON_S for value in firsts)
    figures["first_token_within_2s"] = within / len(rows) if rows else None
    figures["failovers"] = sum(max(0, int(row[3]) - 1) for row in rows)
    _spread(figures, "failover_gap", "s", gaps)
    figures["tokens_out"] = sum(int(row[5]) for row in rows)
    figures["cost"] = sum(int(row[6]) for row in rows)
    figures["fraud"] = sum(each != "" for each in frauds)
    figures["fraud_found"] = sum(
        each != "" and bool(is_found) for each, is_found in zip(frauds, found, strict=True)
    )
    if firsts:
        curves["first_token"] = _cdf("First token", "seconds after the question", firsts)
    if gaps:
        curves["failover_gap"] = _cdf("Gap at a failover", "seconds without a token", gaps)
    all_by_time, done_by_time = [0] * _TIME_BINS, [0] * _TIME_BINS
    for row, is_done in zip(rows, done, strict=True):
        all_by_time[span.bin_of(row[0])] += 1
        done_by_time[span.bin_of(row[0])] += is_done
    shares = [
        (some / whole if whole else None) for some, whole in zip(done_by_time, all_by_time, strict=True)
    ]
    curves["success"] = _line("Questions that were answered", "share of questions", span, shares)
    kinds = sorted({str(each) for each in frauds} - {""})
    if kinds:
        pairs = list(zip(frauds, found, strict=True))
        counts = {
            f"{kind}, {word}": float(pairs.count((kind, is_found)))
            for kind in kinds
            for word, is_found in (("found", True), ("missed", False))
        }
        curves["fraud"] = _bars("Fraud", "what a host did", "sessions", counts)


def _ledger(tables: Tables, span: _Span, figures: Figures, curves: Curves) -> None:
    table = tables["ledger"]
    minted, lost, worst = 0, [], 0
    for kind, (at_s, amount, total) in zip(
        table["kind"], _rows(table, "at_s", "amount", "total"), strict=True
    ):
        minted += int(amount) if kind == "mint" else 0
        worst = max(worst, abs(minted - int(total)))
        lost.append((at_s, float(minted - int(total))))
    figures["ledger_changes"] = len(lost)
    figures["deposits"] = list(table["kind"]).count("deposit")
    figures["money_minted"] = minted
    figures["money_unaccounted_max"] = worst
    figures["fees"] = sum(int(fee) for (fee,) in _rows(table, "fee"))
    by_time: list[float | None] = [None] * _TIME_BINS
    for at_s, missing in lost:
        place = span.bin_of(at_s)
        by_time[place] = max(by_time[place] or 0.0, abs(missing))
    curves["money"] = _line("Money that is not accounted for", "token units", span, by_time)


def _kept(tables: Tables, span: _Span, figures: Figures, curves: Curves) -> None:
    columns = ("at_s", "seconds", "weak")
    rows = [row for row in _rows(tables["kept"], *columns) if span.holds(row[0])]
    kept = [row for row in rows if not math.isnan(row[1])]
    seconds = sorted(row[1] for row in kept)
    figures["turns"] = len(rows)
    figures["turns_kept"] = len(kept) / len(rows) if rows else None
    figures["turns_kept_weakly"] = sum(row[2] for row in kept) / len(kept) if kept else None
    _spread(figures, "kept_after", "s", seconds)
    if seconds:
        curves["kept"] = _cdf("A turn is kept", "seconds after it was said", seconds)


def _recoveries(tables: Tables, span: _Span, figures: Figures, curves: Curves) -> None:
    columns = ("at_s", "seconds", "turns", "lost")
    rows = [row for row in _rows(tables["recoveries"], *columns) if span.holds(row[0])]
    seconds = sorted(row[1] for row in rows)
    figures["recoveries"] = len(rows)
    figures["recovered_whole"] = sum(not row[3] for row in rows) / len(rows) if rows else None
    figures["recovered_nothing"] = sum(row[3] == row[2] for row in rows) / len(rows) if rows else None
    figures["turns_lost"] = sum(int(row[3]) for row in rows)
    _spread(figures, "recovery", "s", seconds)
    if seconds:
        curves["recovery"] = _cdf("Found again on a new machine", "seconds of looking", seconds)


def _nodes(tables: Tables, _span: _Span, figures: Figures, curves: Curves) -> None:
    table = tables["nodes"]
    figures["nodes"] = len(table)
    for name in ("duplicates", "ihave", "iwant", "graft", "prune", "messages_sent", "bytes_sent"):
        figures[name] = sum(int(value) for (value,) in _rows(table, name))
    each = list(_rows(table, "delivered", "duplicates", "cpu_s", "online_s", "earned", "hosts_known_s"))
    ratios = sorted(copies / got for got, copies, *_ in each if got)
    figures["duplicates_per_delivery"] = (
        math.fsum(row[1] for row in each) / sum(row[0] for row in each)
        if any(row[0] for row in each)
        else None
    )
    loads = sorted(row[2] / row[3] for row in each if row[3] > 0)
    if any(loads):
        _spread(figures, "cpu_load", "", loads)
    known = sorted(row[5] for row in each if not math.isnan(row[5]))
    _spread(figures, "hosts_known", "s", known)
    hosts = [row[4] for row, role in zip(each, table["role"], strict=True) if role == "host"]
    figures["income_gini"] = gini(hosts)
    figures["income_mean"] = mean(hosts)
    if hosts:
        columns = {"gas": "gas", "sessions_left": "left", "settlements_postponed": "postponed"}
        for name, column in columns.items():
            figures[name] = sum(int(value) for (value,) in _rows(table, column))
    if ratios:
        curves["duplicates"] = _cdf("Duplicates", "copies for each message delivered", ratios)
    if any(loads):
        curves["cpu_load"] = _cdf("Load", "share of a processor", loads)
    if known:
        curves["hosts_known"] = _cdf(
            "Three verified hosts known", "seconds after the first search began", known
        )
    if figures["income_gini"] is not None:
        curves["income"] = _lorenz(hosts)


def _samples(tables: Tables, span: _Span, figures: Figures, curves: Curves) -> None:
    table = tables["samples"]
    taken: dict[str, list[tuple[float, float]]] = {}
    for name, (at_s, value) in zip(table["name"], _rows(table, "at_s", "value"), strict=True):
        taken.setdefault(str(name), []).append((at_s, value))
    for name, pairs in taken.items():
        bins: list[list[float]] = [[] for _ in range(_TIME_BINS)]
        for at_s, value in pairs:
            if span.holds(at_s):
                bins[span.bin_of(at_s)].append(value)
        title = name.replace("_", " ").capitalize()
        curves[f"sample_{name}"] = _line(title, name.replace("_", " "), span, [mean(each) for each in bins])
        figures[f"{name}_mean"] = mean([value for at_s, value in pairs if span.holds(at_s)])


Measure: TypeAlias = Callable[[Tables, _Span, Figures, Curves], None]
_BY_TABLE: Final[Mapping[str, Measure]] = {
    "published": _delivery,
    "nodes": _nodes,
    "lookups": _lookups,
    "sessions": _sessions,
    "ledger": _ledger,
    "kept": _kept,
    "recoveries": _recoveries,
    "samples": _samples,
}


# ---- pieces


def _rows(table: Table, *columns: str) -> Iterable[tuple[float, ...]]:
    """Columns of numbers, row by row."""
    return zip(*(table[column].values for column in columns), strict=True)


def _spread(figures: Figures, name: str, unit: str, ordered: Sequence[float]) -> None:
    end = f"_{unit}" if unit else ""
    figures[f"{name}_mean{end}"] = mean(ordered)
    for share in (50, 95, 99):
        figures[f"{name}_p{share}{end}"] = percentile(ordered, share / 100)
    figures[f"{name}_max{end}"] = ordered[-1] if ordered else None


def _cdf(title: str, x_label: str, ordered: Sequence[float]) -> Curve:
    shares = [place / _SHARES for place in range(_SHARES + 1)]
    values = [percentile(ordered, share) or 0.0 for share in shares]
    return Curve("cdf", title, x_label, "share", tuple(values), tuple(shares))


def _line(title: str, y_label: str, span: _Span, values: Sequence[float | None]) -> Curve:
    """A value for each of the bins of time; NaN where there was none."""
    places = tuple(span.middle(place) for place in range(len(values)))
    found = tuple(math.nan if value is None else value for value in values)
    return Curve("line", title, "simulated seconds", y_label, places, found)


def _bars(title: str, x_label: str, y_label: str, values: Mapping[str, float]) -> Curve:
    places = tuple(float(place) for place in range(len(values)))
    return Curve("bars", title, x_label, y_label, places, tuple(values.values()), tuple(values))


def _shares(counts: Counter[int]) -> dict[str, float]:
    total = counts.total()
    return {str(value): counts[value] / total for value in range(min(counts), max(counts) + 1)}


def _lorenz(values: Iterable[float]) -> Curve:
    ordered = sorted(values)
    sums, total = [0.0], math.fsum(ordered)
    for value in ordered:
        sums.append(sums[-1] + value)
    shares = [place / _SHARES for place in range(_SHARES + 1)]
    held = [_between(sums, share * len(ordered)) / total for share in shares]
    return Curve(
        "lorenz",
        "Income of hosts",
        "share of hosts, the poorest first",
        "share of income",
        tuple(shares),
        tuple(held),
    )


def _between(values: Sequence[float], place: float) -> float:
    low = min(int(place), len(values) - 1)
    high = min(low + 1, len(values) - 1)
    return values[low] + (values[high] - values[low]) * (place - low)
