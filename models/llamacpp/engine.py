"""``LlamaCppEngine``, the default engine: llama.cpp (through xllamacpp) in a child process, driven over a
unix socket.

llama.cpp decodes its slots together (continuous batching). We choose the slot and say whether its cache may
be reused, so that no key ever uses another key's cache. ``models/child/engine.py`` has the queue, restarts
and errors.

Weights are loaded from a ``LocalModel`` only, whose hash ``models/pull/pull.py`` has checked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Final

import psutil
import trio

from p2pnode.errors import ConfigError
from p2pnode.extras import MissingExtraError
from p2pnode.models.arithmetic import LIKELIEST
from p2pnode.models.calibration import threads_default
from p2pnode.models.child.engine import ChildEngine
from p2pnode.models.child.process import ChildProcess
from p2pnode.models.context import allocated
from p2pnode.models.engine import EngineInfo, GenerateRequest
from p2pnode.models.gguf import read_header, tokenizer_blob, unusable
from p2pnode.models.llamacpp.run import SAMPLERS, LlamaCppRun
from p2pnode.models.llamacpp.server import BATCH, BATCH_MAX, CACHE_TYPES, Pooling
from p2pnode.models.local_models import LocalModel
from p2pnode.models.prompt import Piece
from p2pnode.models.prompt_maker import Encode, encodes
from p2pnode.models.renderer import ChatTemplate, load_template
from p2pnode.models.tokenizer import load_tokenizer
from p2pnode.models.vocabulary import Vocabulary, load_vocabulary
from p2pnode.platforms import cores_here

_MODULE: Final = "p2pnode.models.llamacpp.server"
_RENDERS_CTX: Final = 64


def _threads_here() -> int:
    return threads_default(cores_here(), psutil.cpu_count(logical=False))


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaCppConfig:
    """``n_ctx`` is the context of one request, in tokens, cut to what the model was trained for."""

    n_ctx: int = 2048
    slots: int = 4
    threads: int = field(default_factory=_threads_here)
    batch: int = BATCH
    """Rows that are computed together, ``BATCH_MAX`` at most."""
    cache: str = "FP16"
    """How keys and values are kept: one of ``CACHE_TYPES``. All but FP16 change what is answered."""
    speculation: bool = False
    """Whether repetitions of the text are guessed and checked together: the same answers, some of them
    sooner."""
    queue_max: int = 32
    runtime_dir: Path | None = None
    """Where the private directory of the socket is made; by default the system's temporary directory."""
    load_deadline_s: float = 300.0
    renders_only: bool = False
    """Whether it makes prompts and ids only, for any context of the model: then it takes little memory."""
    hang_s: float = 60.0
    """An active request that shows no progress for this long means that the child hangs."""

    def __post_init__(self) -> None:
        for name, least, most in (
            ("n_ctx", 64, 1 << 20), ("slots", 1, 64), ("threads", 1, 512), ("queue_max", 0, 4096),
            ("batch", 1, BATCH_MAX),
        ):  # fmt: skip
            if not least <= getattr(self, name) <= most:
                raise ConfigError(
                    f"engine {name} is {getattr(self, name)}; it must be from {least} to {most}"
                )
        if self.cache not in CACHE_TYPES:
            kinds = ", ".join(CACHE_TYPES)
            raise ConfigError(
                f"llama.cpp keeps keys and values as {kinds}, not as {self.cache}: see --kv-cache"
            )


class LlamaCppEngine(ChildEngine):
    """An ``Engine`` (see ``models/engine.py``)."""

    def __init__(self, model: LocalModel, config: LlamaCppConfig | None = None) -> None:
        self._model = model
        self._config = config = config or LlamaCppConfig()
        trained = model.manifest.n_ctx
        super().__init__(
            n_ctx=trained if config.renders_only else min(config.n_ctx, trained),
            slots=config.slots,
            queue_max=config.queue_max,
            hang_s=config.hang_s,
        )
        self._encode_here: Encode | None = None
        """Ids without asking the child, which would take as long as all else of a short prompt."""

    async def load(self) -> EngineInfo:
        """Start the child, load the weights and make a first token."""
        await self._running()
        return EngineInfo(
            engine="llamacpp",
            quantisation=self._model.manifest.quantisation,
            n_ctx=self._n_ctx,
            slots=self._config.slots,
            build=version("xllamacpp") + (" ngram" if self._config.speculation else ""),
            batch=self._config.batch,
            kv_types="/".join([CACHE_TYPES[self._config.cache].lower()] * 2),
            samplers=SAMPLERS,
            features=self._features(),
        )

    async def _read_model(self) -> tuple[ChatTemplate, Vocabulary]:
        template = await trio.to_thread.run_sync(_checked_template, self._model)
        if not self._config.renders_only:  # one that does is asked where ids can't be made without a child
            self._encode_here = await trio.to_thread.run_sync(_encoder, self._model.weights_path)
        return template, await trio.to_thread.run_sync(load_vocabulary, self._model.weights_path)

    async def _start_child(self) -> ChildProcess:
        config = self._config
        return await start_llamacpp(
            model=self._model.weights_path,
            n_ctx=allocated(_RENDERS_CTX if config.renders_only else self._n_ctx),
            renders_only=config.renders_only,
            slots=config.slots,
            threads=config.threads,
            batch=config.batch,
            cache=config.cache,
            speculation=config.speculation,
            runtime_dir=config.runtime_dir,
            deadline_s=config.load_deadline_s,
        )

    def _run(self, request: GenerateRequest, allowed: int, vocabulary: Vocabulary) -> LlamaCppRun:
        return LlamaCppRun(request, allowed, vocabulary, hang_s=self._config.hang_s)

    async def embed_ids(self, texts: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """The ids of texts as an embedder of this model counts them, where it only renders.

        It makes no vectors: ``embedder.py`` does.
        """
        if not self._config.renders_only:
            return await super().embed_ids(texts)
        return await (await self._known_prompts()).embed_ids(texts)

    async def _encode(self, pieces: Sequence[Piece], begins: bool) -> tuple[int, ...]:
        if self._encode_here is not None:
            return await self._encode_here(pieces, begins)
        body = {"content": list(pieces), "add_special": begins, "parse_special": False}
        return tuple((await self._call("/tokenize", body))["tokens"])

    async def _likeliest(self, prompt: tuple[int, ...], slot: int) -> list[tuple[int, float]]:
        body = {
            "prompt": prompt,
            "n_predict": 1,
            "n_probs": LIKELIEST,
            "temperature": 0.0,
            "samplers": ["temperature"],
            "cache_prompt": False,
            "id_slot": slot,
        }
        answer = await self._call("/completion", body)
        likeliest = answer["completion_probabilities"][0]["top_logprobs"]
        return [(each["id"], each["logprob"]) for each in likeliest]


async def start_llamacpp(
    *,
    model: Path,
    n_ctx: int,
    slots: int,
    threads: int,
    runtime_dir: Path | None,
    deadline_s: float,
    renders_only: bool = False,
    batch: int = BATCH,
    cache: str = "FP16",
    speculation: bool = False,
    pooling: Pooling | None = None,
) -> ChildProcess:
    """Start a child that serves llama.cpp's HTTP API. Raises ``EngineError`` that says why it doesn't.

    One that ``renders_only`` reads no weights: it makes ids of texts, and nothing else. One with a
    ``pooling`` makes vectors of texts, each of ``batch`` tokens at most.
    """
    config = {
        "model": str(model),
        "n_ctx": n_ctx,
        "slots": slots,
        "threads": threads,
        "renders_only": renders_only,
        "batch": batch,
        "cache": cache,
        "speculation": speculation,
        "pooling": pooling,
    }
    return await ChildProcess.start(
        _MODULE, config, loads=model.name, runtime_dir=runtime_dir, deadline_s=deadline_s
    )


def _encoder(weights: Path) -> Encode | None:
    """What makes the ids that llama.cpp makes; None where that is not certain.

    Blocks for tenths of a second.
    """
    try:
        tokenizer = load_tokenizer(tokenizer_blob(read_header(weights)))
    except (ConfigError, MissingExtraError):
        return None
    return encodes(tokenizer.encode, tokenizer.begins)


def _checked_template(model: LocalModel) -> ChatTemplate:
    """The chat template, if the files still have the sizes that were hashed. Blocks on the disk."""
    check_sizes(model)
    return load_template(model.weights_path)


def check_sizes(model: LocalModel) -> None:
    """Raise ``ConfigError`` where a file has not the size any more that was hashed. Blocks on the disk."""
    for file, path in zip(model.manifest.files, model.paths.values(), strict=True):
        try:
            size = path.stat().st_size
        except OSError as error:
            raise ConfigError(
                f"{path}: the weights of {model.name!r} are gone; run `p2pnode models pull {model.name}`"
            ) from error
        if size != file.size_bytes:
            raise unusable(path, f"it has {size} bytes instead of {file.size_bytes}")
