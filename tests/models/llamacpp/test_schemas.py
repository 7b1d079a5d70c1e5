"""Fifty schemas with the real model: what ends by itself fits its schema, and what is cut says so."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator, Callable

import jsonschema
import pytest

from p2pnode.models.engine import GenerateRequest, Tokens
from p2pnode.models.llamacpp.engine import LlamaCppConfig, LlamaCppEngine
from p2pnode.models.local_models import LocalModel
from p2pnode.protocols.inference.messages import ResponseFormat, SamplingParams
from p2pnode.protocols.inference.prompt_rules import call_seed
from tests.models.engine_conformance import body, fresh_key
from tests.models.schemas import SCHEMAS

TOKENS_MAX = 160
pytestmark = pytest.mark.long


@pytest.fixture
async def engine(smollm: LocalModel) -> AsyncIterator[LlamaCppEngine]:
    engine = LlamaCppEngine(smollm, LlamaCppConfig(n_ctx=512, slots=2, threads=1))
    yield engine
    await engine.aclose()


async def answered(
    engine: LlamaCppEngine, name: str, prefix: tuple[int, ...]
) -> tuple[tuple[int, ...], str, str]:
    """Ids, the whole text and the reason of an answer under a schema, or of its rest after ``prefix``."""
    form = ResponseFormat(kind="json_schema", body=json.dumps(SCHEMAS[name]))
    asked = body(f"Give me an example of {name} as JSON.", response_format=form, prefix=prefix)
    prompt = await engine.prompt(asked)
    request = GenerateRequest(
        prompt_ids=prompt.ids,
        sampling=SamplingParams(tokens_max=TOKENS_MAX - len(prefix)),
        seed=call_seed(asked.seed, len(prefix)),
        cache_key=fresh_key(),
        text_pending=prompt.text_pending,
        grammar=prompt.grammar,
    )
    ids: tuple[int, ...] = ()
    text = prompt.text
    async with engine.generate(request) as events:
        async for event in events:
            if isinstance(event, Tokens):
                ids, text = ids + event.ids, text + event.text
    return ids, text, event.reason  # type: ignore[union-attr]


async def test_fifty_schemas_are_kept_by_whole_answers_and_by_those_that_go_on_elsewhere(
    engine: LlamaCppEngine, record_property: Callable[[str, object], None]
) -> None:
    reasons: Counter[str] = Counter()
    for number, name in enumerate(SCHEMAS):
        ids, text, reason = await answered(engine, name, ())
        if ids:
            # The same answer, begun by one host and ended by another, cut at another place each time.
            rest, whole, ended = await answered(engine, name, ids[: 1 + number % len(ids)])
            for said, why in ((text, reason), (whole, ended)):
                reasons[why] += 1
                if why == "stop":
                    jsonschema.validate(json.loads(said), SCHEMAS[name])
            assert rest or ended == "stop"
    record_property("answers", dict(reasons))  # 96 stop, 4 length on the machine where this was written
    assert set(reasons) <= {"stop", "length"}
    assert reasons["stop"] >= 80, dict(reasons)
    assert sum(reasons.values()) == 2 * len(SCHEMAS)
