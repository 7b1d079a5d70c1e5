"""Keys with budgets at the gateway: who has one may ask, as much and of what it allows."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import httpx
import pytest
import trio

from p2pnode.errors import BudgetError
from p2pnode.gateway.access import OpenRing, SingleKey
from p2pnode.gateway.app import AppOptions, Observer, RequestRecord, make_app
from p2pnode.gateway.faults import KeyRefusedError, fault_of
from p2pnode.gateway.gateway import Gateway
from p2pnode.gateway.keys import BudgetRing
from p2pnode.http_server import HttpBounds, HttpServer
from p2pnode.ids import ModelId
from p2pnode.metrics import Metrics
from p2pnode.net.virtual_time import wall_clock
from p2pnode.payments.books import open_journal
from p2pnode.payments.keys import KeyBook, KeyLimits, NewKey
from tests.gateway.support import stage
from tests.host.paid import FEE, PRICE_OUT, paid_world, priced

CHAT = "/v1/chat/completions"


async def make(path: Path, name: str = "codex", limits: KeyLimits | None = None) -> NewKey:
    async with open_journal(path) as journal:
        return await KeyBook(journal, wall=time.time, draw=Random(name).randbytes).new(
            name, limits or KeyLimits()
        )


async def revoke(path: Path, name: str = "codex") -> None:
    async with open_journal(path) as journal:
        await KeyBook(journal, wall=time.time, draw=Random(name).randbytes).revoke(name)


def question(tokens: int = 8) -> dict[str, object]:
    messages = [{"role": "user", "content": "hello"}]
    return {"model": "scripted", "messages": messages, "max_tokens": tokens, "temperature": 0}


async def test_a_key_is_known_from_the_moment_it_is_made_until_it_is_revoked(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    ring = BudgetRing(SingleKey("p2p-owner", where="FILE"), path)
    assert ring.required
    assert (await ring.authorise("p2p-owner")).key_id == "owner"
    assert not path.exists(), "nobody made a key yet"
    made = await make(path)
    caller = await ring.authorise(made.secret)
    assert (caller.key_id, caller.budget) == (made.key.id.hex(), made.key)
    assert (await ring.authorise("p2p-owner")).budget is None
    for wrong in ("", made.secret[:-1], "é"):
        with pytest.raises(KeyRefusedError, match="keys new"):
            await ring.authorise(wrong)
    await revoke(path)
    with pytest.raises(BudgetError) as refused:
        await ring.authorise(made.secret)
    assert refused.value.reason == "revoked"
    ring.close()


async def test_where_nobody_needs_a_key_one_that_is_sent_still_holds(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    made = await make(path, limits=KeyLimits(expires_at=int(time.time()) + 60))
    ring = BudgetRing(OpenRing(), path)
    assert not ring.required
    assert (await ring.authorise("sk-whatever")).budget is None
    assert (await ring.authorise(made.secret)).budget == made.key
    ring.close()
    late = BudgetRing(OpenRing(), path, wall=lambda: time.time() + 61)
    with pytest.raises(BudgetError) as refused:
        await late.authorise(made.secret)
    assert refused.value.reason == "expired"
    late.close()


@pytest.mark.parametrize(
    ("reason", "wait_s", "status"),
    [
        ("expired", None, 401),
        ("revoked", None, 401),
        ("model", None, 403),
        ("price", None, 403),
        ("day", 3600.0, 429),
        ("day", None, 429),
        ("total", None, 402),
        ("total", 10.0, 429),
    ],
)
def test_what_a_key_does_not_pay_for_has_its_status(reason: str, wait_s: float | None, status: int) -> None:
    fault = fault_of(BudgetError("why", reason=reason, retry_after_s=wait_s))  # type: ignore[arg-type]
    assert (fault.status, fault.code, fault.retry_after_s) == (status, f"key_{reason}", wait_s)


async def test_a_key_asks_only_its_models_and_no_one_without_a_key_does(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    other = await make(path, "other", KeyLimits(models=(ModelId(b"\x01" * 32),)))
    good = await make(path, "good")
    ring = BudgetRing(SingleKey("p2p-owner", where="FILE"), path)
    async with stage(ring=ring) as s, s.http() as http:
        for headers, status, code in (
            ({}, 401, "key_missing"),
            ({"Authorization": "Bearer p2p-nobody"}, 401, "key_invalid"),
            ({"x-api-key": other.secret}, 403, "key_model"),
            ({"Authorization": f"Bearer {good.secret}"}, 200, None),
        ):
            answered = await http.post(CHAT, json=question(), headers=headers)
            assert answered.status_code == status
            if code is not None:
                assert answered.json()["error"]["code"] == code
        embedded = await http.post(
            "/v1/embeddings",
            json={"model": "scripted", "input": "hello"},
            headers={"x-api-key": other.secret},
        )
        assert (embedded.status_code, embedded.json()["error"]["code"]) == (403, "key_model")
        assert {record.key_id for record in s.records} == {"", other.key.id.hex(), good.key.id.hex()}
        for secret, names, status in ((other.secret, [], 404), (good.secret, ["scripted"], 200)):
            headers = {"x-api-key": secret}
            listed = (await http.get("/v1/models", headers=headers)).json()
            assert [each["id"] for each in listed["data"]] == names
            assert [each["slug"] for each in listed["models"]] == names
            assert (await http.get("/v1/models/scripted", headers=headers)).status_code == status
    ring.close()


@asynccontextmanager
async def paid_gateway(
    folder: Path, *, observe: Observer | None = None
) -> AsyncIterator[tuple[httpx.AsyncClient, Path]]:
    """A gateway whose client pays one scripted host; and its journal."""
    path = folder / "client.sqlite"
    async with paid_world(folder) as w:
        member, _ = await w.host(model=priced(tokens_per_s=2_000.0))
        async with w.client(member, journal=path) as client:
            await client.hosts("scripted")
            ring = BudgetRing(SingleKey("p2p-owner", where="FILE"), path, wall=wall_clock)
            server = await HttpServer.bind(
                "127.0.0.1", 0, what="a test", option="--x", bounds=HttpBounds(drain_s=1.0)
            )
            app = make_app(Gateway(client), ring, AppOptions(observe=observe))
            async with trio.open_nursery() as nursery:
                url = await nursery.start(server.run, app)
                async with httpx.AsyncClient(base_url=url, timeout=30) as http:
                    yield http, path
                nursery.cancel_scope.cancel()
            ring.close()


async def test_a_key_sees_no_model_that_costs_more_than_it_allows(tmp_path: Path) -> None:
    async with paid_gateway(tmp_path) as (http, path):
        for most, count in ((PRICE_OUT - 1, 0), (PRICE_OUT, 1)):
            made = await make(path, f"most-{most}", KeyLimits(price_out_max=most))
            listed = await http.get("/v1/models", headers={"x-api-key": made.secret})
            assert len(listed.json()["data"]) == count


async def test_prometheus_is_told_what_keys_spent_and_what_they_were_refused(tmp_path: Path) -> None:
    pytest.importorskip("prometheus_client")
    from p2pnode.gateway.metrics import measure_keys, observing

    records: list[RequestRecord] = []
    async with paid_gateway(tmp_path, observe=records.append) as (http, path):
        made = await make(path, "all", KeyLimits(total_max=FEE + 600))
        status = 200
        while status == 200:
            headers = {"Authorization": f"Bearer {made.secret}"}
            status = (await http.post(CHAT, json=question(100), headers=headers)).status_code
        await http.post(CHAT, json=question(), headers={"x-api-key": "p2p-nobody"})
        async with open_journal(path) as journal:
            total = journal.key_usage(made.key.id, int(wall_clock())).total
        ring = BudgetRing(OpenRing(), path, wall=wall_clock)
        metrics = Metrics()
        observe = observing(metrics)
        for each in records:
            observe(each)
        measure_keys(metrics, ring)
        told, label = (await metrics.text()).decode(), f'key_id="{made.key.id.hex()}"'
        assert f"p2pnode_gateway_key_spent_usdc{{{label}}} {total * 1e-6}" in told
        assert f"p2pnode_gateway_key_reserved_usdc{{{label}}} 0.0" in told
        assert f"p2pnode_gateway_key_budget_usdc{{{label}}} {(FEE + 600) * 1e-6}" in told
        assert f'p2pnode_gateway_key_refused_total{{{label},why="total"}} 1.0' in told
        assert 'p2pnode_gateway_key_refused_total{key_id="",why="invalid"} 1.0' in told
        assert made.secret not in told
        ring.close()


async def test_a_budget_that_is_used_up_is_told_with_when_to_come_back_or_what_to_raise(
    tmp_path: Path,
) -> None:
    async with paid_gateway(tmp_path) as (http, path):
        in_all = await make(path, "all", KeyLimits(total_max=FEE + 600))
        by_day = await make(path, "day", KeyLimits(day_max=600))
        for made, status, code in ((in_all, 402, "key_total"), (by_day, 429, "key_day")):
            headers = {"Authorization": f"Bearer {made.secret}"}
            answered = await http.post(CHAT, json=question(100), headers=headers)
            assert answered.status_code == 200, "it can ask at first"
            while answered.status_code == 200:
                answered = await http.post(CHAT, json=question(100), headers=headers)
            assert (answered.status_code, answered.json()["error"]["code"]) == (status, code)
            assert made.key.name in answered.json()["error"]["message"]
            assert ("retry-after" in answered.headers) == (status == 429)
        async with open_journal(path) as journal:
            used = [journal.key_usage(made.key.id, int(wall_clock())) for made in (in_all, by_day)]
            assert [each.claimed for each in used] == [0, 0]
            assert FEE < used[0].total <= FEE + 600
            assert 0 < used[1].day <= 600, "the other key had paid the fee"
