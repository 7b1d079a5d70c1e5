"""One model, two engines: what llama.cpp began before its host died, ExLlama ends, from the next token on."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from p2pnode.host.model_pool import HostedModel
from p2pnode.models.catalogue import DEFAULT_MODEL, Catalogue
from p2pnode.models.engine import Engine
from p2pnode.models.exllama.engine import ExllamaEngine
from p2pnode.models.llamacpp.engine import LlamaCppConfig, LlamaCppEngine
from p2pnode.models.local_models import LocalModel
from p2pnode.models.pull.pull import pull
from p2pnode.models.vocabulary import load_vocabulary
from p2pnode.protocols.inference.messages import SamplingParams
from tests.client.failing import ONE_BY_ONE, read
from tests.host.paid import FEE, PRICE_IN, PRICE_OUT, paid_world
from tests.host.test_paid_failover import check_claims
from tests.models.exllama.support import CONFIG, FOLDER, needs_exllama

pytestmark = [*needs_exllama, pytest.mark.skipif(bool(FOLDER), reason="the CPU form loads the same GGUF")]
N_CTX = 256
TOKENS = 40


@pytest.fixture
async def smollm(tmp_path: Path) -> LocalModel:
    return await pull(Catalogue.load().find(DEFAULT_MODEL), tmp_path / "models")


def hosted(model: LocalModel, engine: Engine) -> HostedModel:
    return HostedModel(
        model=model.model_id,
        name=model.name,
        new_engine=lambda: engine,
        quantisation=model.manifest.quantisation,
        n_ctx=N_CTX,
        price_in=PRICE_IN,
        price_out=PRICE_OUT,
        session_fee=FEE,
    )


@pytest.mark.parametrize(("at", "temperature"), [(7, 0.0), (33, 0.0), (12, 0.8)])
async def test_an_answer_that_llama_cpp_began_goes_on_on_exllama_as_one_text_and_one_bill(
    tmp_path: Path,
    smollm: LocalModel,
    at: int,
    temperature: float,
) -> None:
    first = LlamaCppEngine(smollm, LlamaCppConfig(n_ctx=N_CTX, slots=1, threads=1))
    second = ExllamaEngine(smollm, CONFIG)
    try:
        for engine in (first, second):
            await engine.load()
        async with paid_world(tmp_path, limits=ONE_BY_ONE) as w:
            running = [await w.host(model=hosted(smollm, engine)) for engine in (first, second)]
            members = [member for member, _ in running]
            async with w.client(members[0]) as client:
                client.runtime.bootstrap = tuple(member.node.multiaddrs[0] for member in members)
                await client.hosts(smollm.name)
                for rank, member in enumerate(members):
                    client.searches.note_answer(member.node.peer_id, 1.0 * (rank + 1), 10_000.0 / (rank + 1))
                answer = client.chat(
                    "Write a long story about a dog.",
                    model=smollm.name,
                    sampling=SamplingParams(tokens_max=TOKENS, temperature=temperature),
                )
                held: list[int] = []

                def then(count: int) -> None:
                    if count >= at and not held:
                        held.extend(answer.ids)
                        w.kill(*running[0])

                with trio.fail_after(120):
                    shown = await read(answer, then)
                usage = answer.usage
                assert usage is not None
                assert usage.reason in ("length", "stop")
                # One text: what was there stays, and each token is there once.
                assert answer.ids[: len(held)] == held
                assert len(answer.ids) == usage.tokens_out > len(held)
                spelled = b"".join(map(load_vocabulary(smollm.path).piece, answer.ids)).decode()
                assert shown == answer.text == spelled
                # One bill: each token on one host's part of it, and each unit signed once.
                one, other = answer.bill
                assert [one.peer, other.peer] == [member.node.peer_id for member in members]
                assert one.tokens_out + other.tokens_out == usage.tokens_out
                assert one.tokens_out == len(held)
                assert other.tokens_in == one.tokens_in + len(held)
                assert usage.cost == one.cost + other.cost
                check_claims(client, answer, running)
        assert second.statistics().tokens_out == len(answer.ids) - len(held)
    finally:
        await first.aclose()
        await second.aclose()
