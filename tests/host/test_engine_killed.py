"""llama.cpp is killed in the middle of an answer that is paid for: its host starts it again and goes on."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from p2pnode.host.model_pool import HostedModel
from p2pnode.models.catalogue import DEFAULT_MODEL, Catalogue
from p2pnode.models.llamacpp.engine import LlamaCppConfig, LlamaCppEngine
from p2pnode.models.local_models import LocalModel
from p2pnode.models.pull.pull import pull
from p2pnode.models.vocabulary import load_vocabulary
from p2pnode.protocols.inference.messages import SamplingParams
from tests.client.support import Events
from tests.host.paid import FEE, PRICE_IN, PRICE_OUT, paid_world
from tests.host.test_paid import due, settled
from tests.net.support import eventually

N_CTX = 512
TOKENS = 120


@pytest.fixture
async def model(tmp_path: Path) -> LocalModel:
    return await pull(Catalogue.load().find(DEFAULT_MODEL), tmp_path / "models")


@pytest.fixture
async def engine(model: LocalModel) -> AsyncIterator[LlamaCppEngine]:
    made = LlamaCppEngine(model, LlamaCppConfig(n_ctx=N_CTX, slots=1, threads=1))
    await made.load()
    yield made
    await made.aclose()


@pytest.mark.long  # a real model, twice
@pytest.mark.parametrize("at", [1, 33, 70])
async def test_an_engine_that_is_killed_in_a_paid_answer_costs_neither_a_token_nor_another_bill(
    tmp_path: Path, model: LocalModel, engine: LlamaCppEngine, at: int
) -> None:
    hosted = HostedModel(
        model=model.model_id,
        name=model.name,
        new_engine=lambda: engine,
        quantisation=model.manifest.quantisation,
        n_ctx=N_CTX,
        price_in=PRICE_IN,
        price_out=PRICE_OUT,
        session_fee=FEE,
    )
    vocabulary, shown, killed = load_vocabulary(model.path), "", 0
    before: list[int] = []
    async with paid_world(tmp_path) as w:
        member, money = await w.host(model=hosted)
        async with w.client(member) as client:
            events = Events()
            events.of(client)
            answer = client.chat(
                "Write a long story about a dog.",
                model=model.name,
                sampling=SamplingParams(tokens_max=TOKENS, temperature=0),
            )
            with trio.fail_after(120):
                async for piece in answer:
                    shown += piece
                    if not killed and len(answer.ids) >= at:
                        before, child = list(answer.ids), engine.child_pid
                        assert child is not None
                        killed = child
                        os.kill(child, signal.SIGKILL)
        usage = answer.usage
        assert usage is not None
        assert killed
        assert (engine.statistics().restarts, engine.child_pid != killed) == (1, True)
        assert [event["peer"] for event in events.named("engine.restarted")] == [member.node.peer_id]
        # One text: what was there stays, and each token comes once.
        assert len(answer.ids) == usage.tokens_out
        assert answer.ids[: len(before)] == before
        text = b"".join(map(vocabulary.piece, answer.ids)).decode()
        assert shown == answer.text == text
        assert usage.reason in ("length", "stop")
        assert at < usage.tokens_out <= TOKENS
        # One bill, which is what the host has.
        (item,) = answer.bill
        assert (item.peer, item.tokens_out, item.reason) == (
            member.node.peer_id, usage.tokens_out, usage.reason,
        )  # fmt: skip
        amount = due(item.tokens_in - item.reused, item.tokens_out)
        assert item.cost == usage.cost == amount
        await eventually(lambda: money.journal.hosted()[0].state == "settled", seconds=30)
        settled(w, amount)
        assert len(money.journal.hosted()) == 1
