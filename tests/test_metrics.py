"""Figures follow Prometheus' conventions, their labels are bounded, and each query of the dashboard that we
ship names a metric that exists."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from p2pnode.client import metrics as of_client
from p2pnode.errors import ConfigError
from p2pnode.gateway import metrics as of_gateway
from p2pnode.host import metrics as of_host
from p2pnode.metrics import LABELS_MAX, OTHER, Family, Figure, Metrics, MetricsApp, serving_metrics
from p2pnode.node import metrics as of_node
from p2pnode.storage import metrics as of_storage

FAMILIES: tuple[Family, ...] = (
    *of_host.FAMILIES,
    *of_node.FAMILIES,
    *of_client.FAMILIES,
    *of_storage.FAMILIES,
    *of_gateway.FAMILIES,
)
DASHBOARD = Path(__file__).parent.parent / "docs" / "grafana" / "p2pnode.json"
PRIVATE = {"peer", "host", "address", "session", "key", "wallet", "prompt", "ip", "url"}
UNITS = ("_seconds", "_bytes", "_usdc", "_per_second")
COUNT = Family("p2pnode_x_things", "counter", "Things.", ("kind",))
NOW = Family("p2pnode_x_now", "gauge", "Now.", ("kind",))
WAIT = Family("p2pnode_x_wait_seconds", "histogram", "A wait.", (), (0.1, 1))


async def _parsed(metrics: Metrics) -> dict[str, Any]:
    text = (await metrics.text()).decode()
    return {family.name: family for family in text_string_to_metric_families(text)}


def _values(family: Any) -> dict[tuple[str, ...], float]:
    return {tuple(each.labels.values()): each.value for each in family.samples}


# ---- conventions


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_metric_is_named_and_described_as_prometheus_has_it(family: Family) -> None:
    assert re.fullmatch(r"p2pnode_(host|node|client|storage|gateway)_[a-z0-9_]+", family.name)
    assert not family.name.endswith(("_total", "_count", "_sum", "_bucket"))
    assert family.text[0].isupper() or family.text[0].isdigit()
    assert family.text.endswith(".")
    assert not set(family.labels) & PRIVATE  # no stranger and no secret in a label
    if family.kind == "histogram":
        assert family.name.endswith("_seconds")
        assert list(family.buckets) == sorted(set(family.buckets))
    else:
        assert not family.buckets
    for word, unit in (("bytes", "_bytes"), ("usdc", "_usdc"), ("seconds", "_seconds")):
        assert word not in family.name or family.name.endswith(unit)


def test_no_two_metrics_have_one_name() -> None:
    names = [family.name for family in FAMILIES]
    assert len(names) == len(set(names))


# ---- the dashboard


def _queries() -> list[str]:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel.get("targets", ())]


def test_each_query_of_the_dashboard_names_metrics_that_exist_and_labels_that_they_have() -> None:
    labels_of = {name: set(family.labels) for family in FAMILIES for name in family.series}
    assert len(_queries()) > 50
    for query in _queries():
        named = re.findall(r"p2pnode_\w+", query)
        assert named, query
        known: set[str] = {"instance"}
        for name in named:
            assert name in labels_of, query
            known |= labels_of[name] | ({"le"} if name.endswith("_bucket") else set())
        asked = [each.strip() for group in re.findall(r"by \(([^)]*)\)", query) for each in group.split(",")]
        asked += re.findall(r"(\w+)=~?\"", query)
        assert set(asked) <= known, query


def test_each_metric_is_on_the_dashboard() -> None:
    shown = {name for query in _queries() for name in re.findall(r"p2pnode_\w+", query)}
    assert [family.name for family in FAMILIES if not shown & set(family.series)] == []


def test_legends_name_labels_that_their_query_leaves() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    for target in (target for panel in panels for target in panel.get("targets", ())):
        for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
            named = set(re.findall(r"p2pnode_\w+", target["expr"]))
            family = next(each for each in FAMILIES if named & set(each.series))
            assert label in family.labels, target


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells


# ---- what is counted


async def test_counters_histograms_and_what_is_read_come_out_in_the_text_format() -> None:
    metrics = Metrics()
    add, wait = metrics.counter(COUNT), metrics.histogram(WAIT)
    add(2, "a")
    add(1, "a")
    wait(0.5)

    async def read() -> Iterable[Figure]:
        return [Figure(NOW, 3, ("b",)), Figure(NOW, 4, ("b",)), Figure(NOW, True, ('say "hi"\n',))]

    metrics.watch(read)
    found = await _parsed(metrics)
    assert _values(found["p2pnode_x_things"]) == {("a",): 3}
    assert _values(found["p2pnode_x_now"]) == {("b",): 7, ('say "hi"\n',): 1}
    buckets = {
        each.labels["le"]: each.value for each in found["p2pnode_x_wait_seconds"].samples if each.labels
    }
    assert buckets == {"0.1": 0, "1.0": 1, "+Inf": 1}


async def test_what_a_stranger_names_is_counted_under_other_beyond_a_bound() -> None:
    metrics = Metrics()
    add = metrics.counter(COUNT)
    for number in range(10 * LABELS_MAX):
        add(1, f"kind{number}")

    async def read() -> Iterable[Figure]:
        return [Figure(NOW, number, (f"kind{number}",)) for number in range(10 * LABELS_MAX)]

    metrics.watch(read)
    found = await _parsed(metrics)
    counted = _values(found["p2pnode_x_things"])
    assert len(counted) == LABELS_MAX + 1
    assert counted[(OTHER,)] == 9 * LABELS_MAX
    now = _values(found["p2pnode_x_now"])
    assert len(now) == LABELS_MAX
    assert now[(f"kind{10 * LABELS_MAX - 1}",)] == 10 * LABELS_MAX - 1  # the largest ones stay
    assert sum(now.values()) == sum(range(10 * LABELS_MAX))


async def test_a_part_that_can_not_be_read_hides_no_other() -> None:
    metrics = Metrics()

    async def broken() -> Iterable[Figure]:
        raise ZeroDivisionError

    async def read() -> Iterable[Figure]:
        return [Figure(NOW, 1, ("a",))]

    metrics.watch(broken)
    metrics.watch(read)
    with capture_logs() as logs:
        assert "p2pnode_x_now" in await _parsed(metrics)
    assert [each["event"] for each in logs] == ["metrics.not_read"]


# ---- HTTP


async def test_metrics_are_served_to_this_machine_and_to_no_page_that_names_another() -> None:
    metrics = Metrics()
    metrics.counter(COUNT)(1, "a")
    async with serving_metrics("127.0.0.1:0", metrics) as url, httpx.AsyncClient() as client:
        with trio.fail_after(10):
            answer = await client.get(url)
            assert answer.status_code == 200
            assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
            assert 'p2pnode_x_things_total{kind="a"} 1.0' in answer.text
            assert (await client.head(url)).text == ""
            assert (await client.post(url)).status_code == 405
            assert (await client.get(url.replace("/metrics", "/secrets"))).status_code == 404
            assert (await client.get(url, headers={"host": "evil.example"})).status_code == 403


async def test_where_it_listens_for_others_any_name_is_taken() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "path": "/metrics", "method": "GET", "headers": [(b"host", b"node.example")]}
    for loopback, status in ((False, 200), (True, 403)):
        await MetricsApp(Metrics(), loopback=loopback)(scope, send, send)  # type: ignore[arg-type]
        assert sent[-2]["status"] == status


@pytest.mark.parametrize("listen", ["", "9464", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:99999", "::1:9464"])
async def test_an_address_that_is_none_is_told(listen: str) -> None:
    with pytest.raises(ConfigError, match=r"HOST:PORT|brackets|no address"):
        async with serving_metrics(listen, Metrics()):
            pass


async def test_an_address_that_is_taken_is_told_with_what_to_do() -> None:
    async with serving_metrics("127.0.0.1:0", Metrics()) as url:
        port = url.rpartition(":")[2].split("/")[0]
        with pytest.raises(ConfigError, match="choose another with --metrics"):
            async with serving_metrics(f"127.0.0.1:{port}", Metrics()):
                pass


def test_the_document_has_each_metric_as_the_code_has_it() -> None:
    rows = (DASHBOARD.parent.parent / "metrics.md").read_text().splitlines()
    for family in FAMILIES:
        name = family.name + ("_total" if family.kind == "counter" else "")
        row = next(each for each in rows if each.startswith(f"| `{name}` "))
        assert f"| {', '.join(family.labels)} | {family.text}" in row
