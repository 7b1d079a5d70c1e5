"""Ten thousand random requests of our own OpenAPI document, right and wrong ones, over real HTTP.

Schemathesis draws them (`make test-random`). Each answer has a status, a type and a form that the document
names; a 500 would have its cause in the log; and when all are over, nothing is left of them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeAlias

import httpx
import jsonschema
import pytest
import structlog
import trio
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.gateway.support import LIMITS, in_thread, stage, until
from tests.gateway.test_app import busy
from tests.gateway.test_openapi import DOCUMENT

schemathesis = pytest.importorskip("schemathesis", reason="`make test-random` installs and runs it")

BODY_MAX = 20_000
SHARES = {
    "/v1/completions": 3_600,
    "/v1/embeddings": 3_200,
    "/v1/responses": 1_800,
    "/v1/chat/completions": 600,
    "/v1/messages": 500,
    "/v1/messages/count_tokens": 200,
    "/v1/models/{name}": 100,
}
"""Ten thousand in all. The larger a schema, the longer it takes to draw from it."""
ODD_BODIES = (
    *(b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b'{"a":"\xff"}', b'{"a":NaN}', b'{"a":1e999}'),
    *(b'{"a":"\\ud800"}', b'{"messages":[],"messages":[]}', b"[" * 19_000, b'{"a":' * 3_000),
    *(b'{"temperature":' + b"9" * 4_000 + b"}", b" " * (BODY_MAX + 1), b'{"a":"' + b"x" * 19_000 + b'"}'),
)
ODD_TYPES = ("application/json", "text/plain", "application/x-www-form-urlencoded", "")

Check: TypeAlias = Callable[[int, str, bytes], None]
"""Looks at the status, the content type and the body of an answer."""


@dataclass
class Seen:
    """What came back, and what was wrong with it."""

    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)

    def check(self, path: str, method: str, status: int, kind: str, body: bytes) -> None:
        """Raise where the document does not know such an answer."""
        self.statuses[path, status] += 1
        told = DOCUMENT["paths"][path][method]["responses"]
        assert str(status) in told, (path, status, body)
        kind, content = kind.partition(";")[0], told[str(status)]["content"]
        assert kind in content, (path, status, kind)
        if kind == "text/event-stream":
            for line in body.decode().splitlines():
                assert not line or line.partition(":")[0] in ("", "data", "event"), line
                if line.startswith("data: {"):
                    json.loads(line[6:])
            return
        schema = {**content[kind]["schema"], "components": DOCUMENT["components"]}
        jsonschema.Draft202012Validator(schema).validate(json.loads(body))


def shorten(case: Any, drawn: int) -> None:
    """Have most requests ask a model that there is, of any host, for few tokens: they go the whole way."""
    body = case.body
    if drawn > 3:
        case.headers = {}
        if isinstance(body, dict):
            body.pop("p2pnode", None)
    if isinstance(body, dict) and drawn:
        body["model"] = "scripted"
        for name in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
            asked = body.get(name)  # null is as good as nothing, and 500.0 as good as 500
            if asked is None or (isinstance(asked, int | float) and asked > 8):
                body[name] = 8


def drawn_requests(url: str, shares: dict[str, int], number: int) -> Seen:
    """So many requests on each route, half of them wrong by the document, from the seed ``number``."""
    seen = Seen()
    schema = schemathesis.openapi.from_dict(DOCUMENT)
    modes = (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE)
    for path, share in shares.items():
        method = "post" if "post" in DOCUMENT["paths"][path] else "get"
        used = modes if method == "post" else modes[:1]  # any name in a path is right by the document
        for mode in used:
            strategy = schema[path][method.upper()].as_strategy(generation_mode=mode)
            check = partial(seen.check, path, method)
            ask_each(strategy, share // len(used), number, url, check)
    return seen


def ask_each(strategy: Any, count: int, number: int, url: str, check: Check) -> None:
    """Send what the strategy draws."""

    @seed(number)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=strategy, drawn=st.integers(0, 9))
    def ask(case: Any, drawn: int) -> None:
        shorten(case, drawn)
        answer = case.call(base_url=url, timeout=60)
        check(answer.status_code, answer.headers["content-type"][0], answer.content)

    ask()


def odd_requests(url: str) -> Seen:
    """Bodies and content types that no document describes, on each route that takes a body."""
    seen = Seen()
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as http:
        for path in (path for path, each in DOCUMENT["paths"].items() if "post" in each):
            for body in ODD_BODIES:
                for kind in ODD_TYPES:
                    answer = http.post(path, content=body, headers={"content-type": kind})
                    told = answer.headers["content-type"]
                    seen.check(path, "post", answer.status_code, told, answer.content)
    return seen


async def ask_all(shares: dict[str, int]) -> tuple[Seen, Seen]:
    """Ask a gateway of two hosts, and look at what is left of it."""
    limits = replace(LIMITS, gateway_body_bytes_max=BODY_MAX)
    async with stage(2, limits=limits) as s:
        with structlog.testing.capture_logs() as logs:
            odd = await in_thread(lambda: odd_requests(s.url))
            await until(lambda: s.server.connections == 0, 5)
            tasks = trio.lowlevel.current_statistics().tasks_living
            drawn = await in_thread(lambda: drawn_requests(s.url, shares, 1))
            await until(lambda: s.gateway.under_way == 0 and s.server.connections == 0 and not busy(s), 5)
        assert [each for each in logs if each["log_level"] in ("error", "critical")] == []
        assert not [status for (_, status) in (odd.statuses + drawn.statuses) if status == 500]
        asked = (odd.statuses + drawn.statuses).total()
        assert len(s.records) == asked, "each request has its record"
        await until(lambda: trio.lowlevel.current_statistics().tasks_living <= tasks + 20, 5)
        async with s.http() as http:
            assert (await http.get("/v1/models/scripted")).status_code == 200
    return odd, drawn


@pytest.mark.long
async def test_ten_thousand_random_requests_crash_nothing_and_leave_nothing() -> None:
    odd, drawn = await ask_all(SHARES)
    assert drawn.statuses.total() >= 9_900  # schemathesis ends early where it has drawn all there is
    for path in SHARES:
        statuses = {status for at, status in drawn.statuses if at == path}
        assert statuses >= ({200, 400} if path.startswith("/v1/") and "{" not in path else {404}), path
    assert {status for _, status in odd.statuses} == {400, 413, 415}
