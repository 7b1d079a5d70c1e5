"""Figures of one node for Prometheus: what is counted as it happens, and what is read when it is asked for.

A ``Family`` is declared once, by whoever knows it, with Prometheus' conventions: names begin with
``p2pnode_``, end in their unit, counters in ``_total``, and help is a sentence. Values of labels are bounded:
beyond 64 sets of them for one family the rest is counted under ``other``, so that no stranger fills a
dashboard or this memory. A label never holds a peer, an address, a session, a secret or a text.

``/metrics`` is a small ASGI application: the gateway has it among its routes, and a host without one serves
it on an address of its own (``join --metrics``).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import structlog
import trio

from p2pnode.extras import need
from p2pnode.scopes import is_loopback

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from prometheus_client import Counter, Histogram

    from p2pnode.http_server import Message, Receive, Send

log = structlog.get_logger()
LABELS_MAX: Final = 64
"""Sets of labels of one family; all others are counted together."""
OTHER: Final = "other"
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
FIRST_TOKEN_S: Final = (0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
"""Buckets for what a reader waits for, in seconds."""
TOKEN_S: Final = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 5)
"""Buckets for the time between two tokens, in seconds."""
WHOLE_S: Final = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900)
"""Buckets for whole turns, in seconds."""
_CONNECTIONS_MAX: Final = 16


@dataclass(frozen=True, slots=True)
class Family:
    """One metric. A counter's ``name`` has no ``_total``: that is added. ``buckets``: of a histogram."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    text: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    @property
    def series(self) -> tuple[str, ...]:
        """The names that a query may use."""
        if self.kind == "histogram":
            return tuple(f"{self.name}_{end}" for end in ("bucket", "sum", "count"))
        return (f"{self.name}_total",) if self.kind == "counter" else (self.name,)


@dataclass(frozen=True, slots=True)
class Figure:
    """The value of a family now, for values of its labels in their order."""

    family: Family
    value: float
    labels: tuple[str, ...] = ()


Read: TypeAlias = Callable[[], Awaitable[Iterable[Figure]]]


class Metrics:
    """Of one node. Raises ``MissingExtraError`` where Prometheus' library is not installed."""

    def __init__(self) -> None:
        need("metrics for Prometheus", "metrics")
        from prometheus_client import CollectorRegistry, disable_created_metrics

        # A series more for each one, which nothing here asks for.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        self._reads: list[Read] = []
        self._seen: dict[str, set[tuple[str, ...]]] = {}

    def counter(self, family: Family) -> Callable[..., None]:
        """Returns a function that adds: ``add(2, "smollm2", "stop")``, with the values of its labels."""
        from prometheus_client import Counter

        made = Counter(family.name, family.text, family.labels, registry=self._registry)

        def add(amount: float, *labels: str) -> None:
            self._of(made, family, labels).inc(amount)

        return add

    def histogram(self, family: Family) -> Callable[..., None]:
        """Returns a function that observes: ``observe(0.3, "smollm2")``."""
        from prometheus_client import Histogram

        made = Histogram(
            family.name, family.text, family.labels, registry=self._registry, buckets=family.buckets
        )

        def observe(value: float, *labels: str) -> None:
            self._of(made, family, labels).observe(value)

        return observe

    def watch(self, read: Read) -> None:
        """Have this read whenever the metrics are asked for."""
        self._reads.append(read)

    async def text(self) -> bytes:
        """All figures in Prometheus' text format. What can't be read now is left out, and logged."""
        from prometheus_client import generate_latest

        figures: list[Figure] = []
        for read in self._reads:
            try:
                figures.extend(await read())
            except Exception as error:  # noqa: BLE001 - one part that fails must not hide all others
                log.warning("metrics.not_read", reason=f"{type(error).__name__}: {error}")
        gauges = list(_families(figures))
        collected = [*self._registry.collect(), *gauges]
        return generate_latest(_Collected(collected))

    def _of(self, made: Counter | Histogram, family: Family, labels: tuple[str, ...]) -> Any:
        if not family.labels:
            return made
        seen = self._seen.setdefault(family.name, set())
        if labels not in seen:
            if len(seen) >= LABELS_MAX:
                labels = (OTHER,) * len(labels)
            seen.add(labels)
        return made.labels(*labels)


@dataclass(frozen=True, slots=True)
class _Collected:
    """What has been collected, as ``generate_latest`` takes it."""

    families: list[Any]

    def collect(self) -> list[Any]:
        """All of it."""
        return self.families


def _families(figures: Iterable[Figure]) -> Iterator[Any]:
    """Figures as the library's families, sorted by name and by labels."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    found: dict[Family, dict[tuple[str, ...], float]] = {}
    for each in figures:
        values = found.setdefault(each.family, {})
        values[each.labels] = values.get(each.labels, 0.0) + each.value
    for family in sorted(found, key=lambda one: one.name):
        kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
        made = kind(family.name, family.text, labels=family.labels)
        for labels, value in sorted(_bounded(found[family]).items()):
            made.add_metric(labels, value)
        yield made


def _bounded(values: Mapping[tuple[str, ...], float]) -> dict[tuple[str, ...], float]:
    """The largest ones, and the sum of all others."""
    if len(values) <= LABELS_MAX:
        return dict(values)
    ordered = sorted(values, key=lambda labels: (-values[labels], labels))
    kept = {labels: values[labels] for labels in ordered[: LABELS_MAX - 1]}
    rest = (OTHER,) * len(ordered[0])
    kept[rest] = kept.get(rest, 0.0) + sum(values[labels] for labels in ordered[LABELS_MAX - 1 :])
    return kept


# ---- HTTP


class MetricsApp:
    """``GET /metrics`` (and ``/``). ``loopback``: only for what names this machine in its ``Host`` header."""

    def __init__(self, metrics: Metrics, *, loopback: bool = False) -> None:
        self._metrics, self._loopback = metrics, loopback

    async def __call__(self, scope: Message, _receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        status, body = await self._answer(scope)
        headers = [(b"content-type", CONTENT_TYPE.encode()), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    async def _answer(self, scope: Message) -> tuple[int, bytes]:
        host = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"host"), "")
        from p2pnode.http_server import names_this_machine  # here: it needs packages that not all have

        if self._loopback and not names_this_machine(host):
            return 403, b"this address is for programs of this machine\n"
        if scope["path"] not in ("/", "/metrics"):
            return 404, b"the metrics are at /metrics\n"
        if scope["method"] not in ("GET", "HEAD"):
            return 405, b"the metrics can only be read\n"
        return 200, await self._metrics.text()


@asynccontextmanager
async def serving_metrics(listen: str, metrics: Metrics) -> AsyncIterator[str]:
    """Serve ``/metrics`` on ``HOST:PORT`` for the block; gives the url. Raises ``ConfigError``."""
    from p2pnode.http_server import HttpBounds, HttpServer, parse_listen

    host, port = parse_listen(listen)
    bounds = HttpBounds(connections_max=_CONNECTIONS_MAX)
    server = await HttpServer.bind(host, port, what="the metrics", option="--metrics", bounds=bounds)
    async with trio.open_nursery() as nursery:
        url = await nursery.start(server.run, MetricsApp(metrics, loopback=is_loopback(host)))
        try:
            yield f"{url}/metrics"
        finally:
            nursery.cancel_scope.cancel()
