"""Ids made from a tokenizer's blob alone are those that llama.cpp makes of the same text."""

from __future__ import annotations

import os
import random
import struct
import sys
import unicodedata
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import pytest
import trio

from p2pnode.models.child.process import ChildProcess
from p2pnode.models.gguf import read_header, tokenizer_blob
from p2pnode.models.llamacpp.engine import LlamaCppConfig, LlamaCppEngine, start_llamacpp
from p2pnode.models.local_models import LocalModel
from p2pnode.models.prompt_files import read_prompt_files
from p2pnode.models.prompt_maker import prompt_maker
from p2pnode.models.tokenizer import CUTS, Tokenizer, load_tokenizer
from p2pnode.models.vocabulary import vocabulary_of
from p2pnode.protocols.inference.messages import ChatMessage, PromptBody, Tool
from tests.models.gguf_files import gguf, integers, string, strings

CORPUS: Final = (
    "Hello, world!",
    "  leading, trailing and   inner   blanks   ",
    "tabs\tand\t\tmore \t mixed\n\n\nlines\r\n\r\n end\n",
    "\n",
    " ",
    "   ",
    "\t",
    " \n \n ",
    "It's they're we've I'm you'll he'd DON'T CAN'T 'sure 'TIS",
    "1 12 123 1234 12345 1,234.56 0x1F 2²³ ٣٤٥ Ⅷ ½",
    "naïve café Zürich Straße ÅNGSTRÖM e\u0301 n\u0303",
    "你好，世界！ 今天天气很好。 こんにちは世界 カタカナ 안녕하세요 세계",
    "مرحبا بالعالم שלום עולם नमस्ते दुनिया สวัสดีชาวโลก Привет, мир Γειά",
    "🙂👍🏽👨‍👩‍👧‍👦🏳️‍🌈 ❤️ ☃ ♥ → ∑ √ ≠ € £ ¥",
    'def f(x: int) -> str:\n    return f"{x!r:>10}"  # comment\n\n\nclass A:\n\tpass\n',
    '<div class="a">&nbsp;</div>{\'a\': [1, 2, {"b": null}]}',
    "https://example.org/a/b?c=d&e=%20#frag user@example.org ../../x C:\\Windows\\",
    "<|im_start|>user\nno special token<|im_end|> <|endoftext|> [INST] <s></s> <0x0A> ▁",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" * 4,
    "!?!?!?...---***___===+++///\\\\\\|||~~~```'''\"\"\"",
    "\u00a0nbsp\u2003em\u200bzero\u3000ideographic\ufeff\u2028line\u2029para\u0085nel",
    "control \x01\x02\x1b[0m\x7f and \x0b\x0c",
    "camelCaseHTTPServerXMLParser snake_case SCREAMING_SNAKE kebab-case",
)
BLANKS: Final = (" ", "  ", "\n", "\t", "\r\n", "\u00a0", "\u3000")
WORDS: Final = tuple(word for text in CORPUS for word in text.split(" "))


def mixtures(seed: int, count: int) -> list[str]:
    """Texts of words and blanks of the corpus, and of letters of all of Unicode."""
    draw = random.Random(seed)
    assigned = [
        chr(code)
        for code in range(sys.maxunicode + 1)
        if unicodedata.category(chr(code)) not in ("Cn", "Cs", "Co")
    ]
    made = []
    for _ in range(count):
        words = [draw.choice(WORDS) + draw.choice(BLANKS) for _ in range(draw.randrange(1, 20))]
        letters = "".join(draw.choices(assigned, k=draw.randrange(0, 12)))
        made.append("".join([*words, letters]) if draw.random() < 0.7 else letters)
    return made


@asynccontextmanager
async def llama_cpp(path: Path) -> AsyncIterator[ChildProcess]:
    child = await start_llamacpp(
        model=path, n_ctx=64, slots=1, threads=1, runtime_dir=None, deadline_s=60, renders_only=True
    )
    try:
        yield child
    finally:
        await child.stop()


async def theirs(
    child: ChildProcess, pieces: Sequence[str | int], *, begins: bool = False
) -> tuple[int, ...]:
    body = {"content": list(pieces), "add_special": begins, "parse_special": False}
    return tuple((await child.http.call("/tokenize", body, deadline_s=60))["tokens"])


async def require_equal(child: ChildProcess, ours: Tokenizer, texts: Sequence[str]) -> None:
    assert await theirs(child, ["", "a"], begins=True) == ours.begins + ours.encode("a")
    for text in texts:
        assert ours.encode(text) == await theirs(child, [text]), text


def file_of(path: Path, smollm: LocalModel, pairs: Mapping[str, bytes]) -> Path:
    """The model with other metadata. Its weights are a hole: who only renders reads none."""
    old = read_header(smollm.path)
    keys = 24 + sum(8 + len(key.encode()) + len(raw) for key, raw in old.raw.items())
    with smollm.path.open("rb") as file:
        tensors = int.from_bytes(file.read(16)[8:], "little")
        file.seek(keys)
        infos = file.read(1 << 16)  # what of it is no more of the tensors' is in the hole
    head = bytearray(gguf(dict(pairs)))
    head[8:16] = tensors.to_bytes(8, "little")
    path.write_bytes(bytes(head) + infos)
    os.truncate(path, old.size_bytes + len(head))
    return path


def tokenizer_at(path: Path) -> Tokenizer:
    return load_tokenizer(tokenizer_blob(read_header(path)))


async def test_ids_of_texts_are_those_of_llama_cpp(smollm: LocalModel) -> None:
    ours = await trio.to_thread.run_sync(tokenizer_at, smollm.path)
    async with llama_cpp(smollm.path) as child:
        await require_equal(child, ours, CORPUS)


@pytest.mark.long
@pytest.mark.parametrize("pre", sorted(CUTS))
async def test_ids_are_those_of_llama_cpp_however_words_are_cut(
    smollm: LocalModel, tmp_path: Path, pre: str
) -> None:
    """The vocabulary of one model, cut as others are: words differ, and so do the ids."""
    pairs = {**read_header(smollm.path).raw, "tokenizer.ggml.pre": string(pre)}
    path = file_of(tmp_path / "cut.gguf", smollm, pairs)
    async with llama_cpp(path) as child:
        await require_equal(child, tokenizer_at(path), [*CORPUS, *mixtures(1, 400)])


def floats(values: Sequence[float]) -> bytes:
    return struct.pack("<IIQ", 9, 6, len(values)) + struct.pack(f"<{len(values)}f", *values)


def sentence_piece(smollm: LocalModel, **more: bytes) -> dict[str, bytes]:
    """A vocabulary of SentencePiece's kind, of the words of a byte-level one."""
    header = read_header(smollm.path)
    words = dict[bytes, None]()
    for piece in vocabulary_of(header).pieces[:20_000]:
        try:
            word = piece.decode().replace(" ", "\u2581")
        except UnicodeDecodeError:
            continue
        if word and not word.startswith("<") and len(word) < 17:
            words |= dict.fromkeys([letter.encode() for letter in word])
            words[word.encode()] = None
    extra = [b"<unk>", b"<s>", b"</s>", b"<|tool|>"]
    hexes = [f"<0x{byte:02X}>".encode() for byte in range(256)]
    tokens = [*extra, *hexes, *(word for word in words if word not in hexes)]
    kinds = [2, 3, 3, 4, *([6] * 256), *([1] * (len(tokens) - 260))]
    rows = header.array("tokenizer.ggml.tokens").count  # as many as the model has embeddings
    kinds += [5] * (rows - len(tokens))
    tokens += [f"<unused{number}>".encode() for number in range(rows - len(tokens))]
    scores = [0.0] * 260 + [-float(index) for index in range(len(tokens) - 260)]
    return {
        **{key: raw for key, raw in header.raw.items() if not key.startswith("tokenizer.")},
        "tokenizer.ggml.model": string("llama"),
        "tokenizer.ggml.tokens": strings(tokens),
        "tokenizer.ggml.token_type": integers(kinds),
        "tokenizer.ggml.scores": struct.pack("<IIQ", 9, 6, len(scores))
        + struct.pack(f"<{len(scores)}f", *scores),
        "tokenizer.ggml.bos_token_id": struct.pack("<II", 4, 1),
        "tokenizer.ggml.eos_token_id": struct.pack("<II", 4, 2),
        "tokenizer.ggml.unknown_token_id": struct.pack("<II", 4, 0),
        **more,
    }


@pytest.mark.long
@pytest.mark.parametrize("space", [True, False])
async def test_ids_of_sentence_pieces_are_those_of_llama_cpp(
    smollm: LocalModel, tmp_path: Path, space: bool
) -> None:
    more = {} if space else {"tokenizer.ggml.add_space_prefix": struct.pack("<I?", 7, False)}
    path = file_of(tmp_path / "pieces.gguf", smollm, sentence_piece(smollm, **more))
    texts = [*CORPUS, "a<|tool|> b<|tool|><|tool|>c", *mixtures(2, 400)]
    async with llama_cpp(path) as child:
        await require_equal(child, tokenizer_at(path), texts)


async def test_prompts_made_of_tokenizer_and_template_alone_are_those_of_the_engine(
    smollm: LocalModel,
) -> None:
    files = await trio.to_thread.run_sync(read_prompt_files, smollm)
    maker = await prompt_maker(files, smollm.manifest.n_ctx)
    engine = LlamaCppEngine(smollm, LlamaCppConfig(slots=1, threads=1, renders_only=True))
    tool = Tool(name="add", description="adds <|im_end|>", parameters='{"type": "object"}')
    bodies = [
        PromptBody(messages=tuple(ChatMessage.of("user", text) for text in CORPUS), seed=bytes(16)),
        PromptBody(messages=(ChatMessage.of("system", " "), ChatMessage.of("user", "hi")), seed=bytes(16)),
        PromptBody(messages=(ChatMessage.of("user", "2+2?"),), tools=(tool,), seed=bytes(16)),
        PromptBody(messages=(ChatMessage.of("user", "go on"),), prefix=(19556, 28, 665), seed=bytes(16)),
    ]
    try:
        for body in bodies:
            assert await maker.prompt(body) == await engine.prompt(body)
    finally:
        await maker.aclose()
        await engine.aclose()
