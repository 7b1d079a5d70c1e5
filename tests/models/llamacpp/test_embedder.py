"""llama.cpp's embedder with the real default model: vectors, turns side by side, crashes, refusals."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from p2pnode.errors import ConfigError, EngineError, EngineLostError
from p2pnode.models.catalogue import Catalogue
from p2pnode.models.context import memory_of
from p2pnode.models.engine import Embedding, EmbedRequest, Prefill
from p2pnode.models.gguf import read_header
from p2pnode.models.llamacpp.embedder import EmbedderConfig, LlamaCppEmbedder, pooling_in
from p2pnode.models.local_models import LocalModel
from p2pnode.models.prompt_files import read_prompt_files
from p2pnode.models.prompt_maker import prompt_maker
from p2pnode.models.pull.pull import pull
from p2pnode.protocols.inference.messages import EMBED_TOKENS_AROUND, VECTOR_MAX
from tests.models.embedding_model import CONTEXT, RANK, WIDTH, write_embedding_model
from tests.models.engine_conformance import QUESTION

N_CTX = 248
TEXTS = ("The cat sat on the mat.", "A kitten rests on the rug.", "Interest rates rose by two percent.")


@pytest.fixture(scope="module")
def embedder(smollm: LocalModel) -> Iterator[LlamaCppEmbedder]:
    made = LlamaCppEmbedder(smollm, EmbedderConfig(n_ctx=N_CTX, threads=1))
    yield made
    trio.run(made.aclose)


async def vectors_of(embedder: LlamaCppEmbedder, *texts: str) -> list[tuple[float, ...]]:
    found, read, ids = [], 0, await embedder.embed_ids(texts)
    async with embedder.embed(EmbedRequest(texts=ids)) as events:
        async for event in events:
            if isinstance(event, Embedding):
                found.append(event.numbers)
            else:
                assert isinstance(event, Prefill)
                read += 1
                assert (event.processed, event.total) == (sum(map(len, ids[:read])), sum(map(len, ids)))
    return found


def close(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


async def test_vectors_have_length_one_and_those_of_like_texts_are_near(embedder: LlamaCppEmbedder) -> None:
    assert (await embedder.load()).features == {"embeddings"}
    cat, kitten, rates = await vectors_of(embedder, *TEXTS)
    assert len(cat) == 576
    assert 4 * len(cat) <= VECTOR_MAX
    assert all(math.isclose(close(each, each), 1, rel_tol=1e-5) for each in (cat, kitten, rates))
    assert close(cat, kitten) > max(close(cat, rates), close(kitten, rates)) + 0.1


@pytest.mark.long
async def test_a_vector_depends_on_its_text_alone_whoever_else_embeds_meanwhile(
    embedder: LlamaCppEmbedder,
) -> None:
    alone = [(await vectors_of(embedder, text))[0] for text in TEXTS]
    found: dict[int, list[tuple[float, ...]]] = {}

    async def one(number: int) -> None:
        found[number] = await vectors_of(embedder, *TEXTS[number:], *TEXTS[:number])

    async with trio.open_nursery() as nursery:
        for number in range(len(TEXTS)):
            nursery.start_soon(one, number)
    for number, vectors in found.items():
        assert vectors == alone[number:] + alone[:number]
    assert embedder.statistics().active == 0


@pytest.mark.long
async def test_the_longest_text_is_embedded_and_a_longer_one_is_refused_before_it_is_paid(
    embedder: LlamaCppEmbedder,
) -> None:
    word, _ = await embedder.embed_ids(["sea", " sea"])
    longest = " sea" * (N_CTX - EMBED_TOKENS_AROUND)
    assert len((await embedder.embed_ids([longest]))[0]) <= N_CTX
    (vector,) = await vectors_of(embedder, longest)
    assert math.isclose(close(vector, vector), 1, rel_tol=1e-5)
    with pytest.raises(EngineError, match=r"the context is 248; cut it") as refused:
        await embedder.embed_ids([" sea" * (N_CTX + 1)])
    assert refused.value.code == "context_overflow"
    with pytest.raises(EngineError, match="the context is 248"):
        async with embedder.embed(EmbedRequest(texts=(word * 300,))):
            pass


async def test_it_counts_as_a_client_counts_with_the_tokenizer_alone(
    embedder: LlamaCppEmbedder, smollm: LocalModel
) -> None:
    maker = await prompt_maker(read_prompt_files(smollm), N_CTX)
    texts = [*TEXTS, "<|im_end|>", " ", "你好 🙂", "x"]
    assert await maker.embed_ids(texts) == await embedder.embed_ids(texts)
    await maker.aclose()


async def test_it_writes_no_answers_and_says_what_it_is_for(embedder: LlamaCppEmbedder) -> None:
    with pytest.raises(EngineError, match="makes vectors of texts and writes no answers") as refused:
        await embedder.prompt(QUESTION)
    assert refused.value.code == "bad_request"
    assert await embedder.arithmetic() == b""


@pytest.mark.long
async def test_a_crash_is_an_error_for_its_texts_and_the_next_ones_get_a_new_process(
    smollm: LocalModel,
) -> None:
    own = LlamaCppEmbedder(smollm, EmbedderConfig(n_ctx=N_CTX, threads=1))
    try:
        ids, killed = await own.embed_ids(TEXTS), own.child_pid
        assert killed is not None

        async def embed_and_kill(pid: int) -> None:
            async with own.embed(EmbedRequest(texts=ids)) as events:
                async for event in events:
                    if isinstance(event, Prefill):
                        os.kill(pid, signal.SIGKILL)

        with pytest.raises(EngineLostError, match="crashed and is being restarted") as lost:
            await embed_and_kill(killed)
        assert lost.value.retry_after_s is not None
        assert len(await vectors_of(own, *TEXTS)) == 3
        assert (own.statistics().restarts, own.child_pid != killed) == (1, True)
        assert own.statistics().active == 0
    finally:
        await own.aclose()
    with pytest.raises(EngineError, match="closed") as closed:
        await own.embed_ids(TEXTS)
    assert closed.value.code == "shutting_down"


def test_what_it_takes_grows_with_the_longest_text_and_a_short_one_fits_into_little(
    smollm: LocalModel,
) -> None:
    model = memory_of(read_header(smollm.path))
    assert model.embedder_context(1 << 40) == 1016
    for n_ctx in (248, 504, 1016):
        assert model.embedder_context(model.embedder(n_ctx)) == n_ctx
        assert model.embedder_context(model.embedder(n_ctx) - 1) in (0, n_ctx - 256, n_ctx - 512)
    assert model.embedder_context(model.fixed) == 0
    # Measured: 161 MB when it is loaded for 512 tokens, 371 MB after a text of as many.
    assert 371e6 < model.embedder(504) < 480e6


@pytest.mark.long
async def test_a_model_that_is_made_to_embed_does_so_by_the_pooling_of_its_file(tmp_path: Path) -> None:
    path = write_embedding_model(tmp_path / "tiny.gguf")
    local = await pull(Catalogue.load().find(str(path)), tmp_path / "models")
    assert pooling_in(read_header(path)) == "mean"
    made = LlamaCppEmbedder(local, EmbedderConfig(threads=1))
    counter = LlamaCppEmbedder(local, EmbedderConfig(threads=1, renders_only=True))
    try:
        info = await made.load()
        assert (info.n_ctx, info.features) == (CONTEXT, frozenset({"embeddings"}))
        ids = await made.embed_ids(["the cat", "sea"])
        assert [len(each) for each in ids] == [4, 3]
        assert await counter.embed_ids(["the cat", "sea"]) == ids
        cat, sea = await vectors_of(made, "the cat", "sea")
        assert len(cat) == len(sea) == WIDTH
        assert cat != sea
    finally:
        await made.aclose()
        await counter.aclose()


def test_a_model_that_judges_pairs_of_texts_is_refused_and_one_that_writes_names_no_pooling(
    tmp_path: Path, smollm: LocalModel
) -> None:
    ranks = write_embedding_model(tmp_path / "ranks.gguf", pooling=RANK)
    with pytest.raises(ConfigError, match="a reranker"):
        pooling_in(read_header(ranks))
    assert pooling_in(read_header(smollm.path)) is None
