"""``ExllamaEngine``: ExLlamaV2, or ExLlamaV3, in a child process on a GPU.

``models/child/engine.py`` has the queue, restarts and errors; ``server.py`` here is the child. Where
flash-attn is there, the generator decodes its slots together over one paged cache; without it there is one
slot, and :class:`EngineInfo` says so. No key ever uses another key's pages.

This module imports neither torch nor the libraries.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import structlog
import trio

from p2pnode.errors import ConfigError
from p2pnode.models.arithmetic import LIKELIEST
from p2pnode.models.child.engine import ChildEngine
from p2pnode.models.child.process import ChildProcess
from p2pnode.models.engine import EngineInfo, GenerateRequest, HiddenStates
from p2pnode.models.exllama.loading import tokenizer_of
from p2pnode.models.exllama.memory import CACHE_TYPES, CacheType
from p2pnode.models.exllama.requirements import missing
from p2pnode.models.exllama.run import ExllamaRun
from p2pnode.models.exllama.settings import LIBRARIES, PAGE, ChildConfig, Device, Library
from p2pnode.models.folder import read_folder
from p2pnode.models.local_models import LocalModel
from p2pnode.models.prompt import Piece
from p2pnode.models.renderer import CHATML, ChatTemplate, load_template
from p2pnode.models.slots import SlotQueue
from p2pnode.models.tokenizer import Tokenizer
from p2pnode.models.vocabulary import Vocabulary
from p2pnode.protocols.inference.messages import SamplingParams

SAMPLERS: Final = ("penalties", "top_k", "top_p", "min_p", "temperature")
_MODULE: Final = "p2pnode.models.exllama.server"
_STEP_ROWS: Final = 8
"""The generator reserves so many rows for each slot."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExllamaConfig:
    """``n_ctx`` is the context of one request, in tokens, cut to what the model was trained for."""

    n_ctx: int = 4096
    slots: int = 4
    queue_max: int = 32
    library: Library = "exllamav2"
    device: Device = "cuda"
    cache: CacheType = "FP16"
    """How keys and values are kept."""
    tensor_parallel: bool = False
    """Whether each layer is split over all GPUs, and not the layers among them."""
    chunk: int = 1024
    """Tokens of a prompt that are read at once: a cancel waits for so many."""
    paged: bool = True
    """Whether slots are decoded together, where flash-attn is there."""
    threads: int = 1
    """Of the CPU form."""
    cache_dir: Path | None = None
    """Where the CPU form keeps dequantised weights."""
    runtime_dir: Path | None = None
    load_deadline_s: float = 600.0
    """Loading compiles the library's kernels the first time."""
    hang_s: float = 60.0

    def __post_init__(self) -> None:
        for name, least, most in (
            ("n_ctx", 64, 1 << 20), ("slots", 1, 64), ("queue_max", 0, 4096), ("chunk", PAGE, 1 << 14),
            ("threads", 1, 512),
        ):  # fmt: skip
            if not least <= getattr(self, name) <= most:
                raise ConfigError(
                    f"engine {name} is {getattr(self, name)}; it must be from {least} to {most}"
                )
        if self.chunk % PAGE or self.chunk < _STEP_ROWS * self.slots:
            raise ConfigError(
                f"engine chunk is {self.chunk}; it must be a multiple of {PAGE}, and at least "
                f"{_STEP_ROWS * self.slots} for {self.slots} slots"
            )
        for name, known in (("library", LIBRARIES), ("cache", CACHE_TYPES), ("device", ("cuda", "cpu"))):
            if getattr(self, name) not in known:
                raise ConfigError(
                    f"engine {name} is {getattr(self, name)!r}; it must be {' or '.join(known)}"
                )


class ExllamaEngine(ChildEngine):
    """An ``Engine`` (see ``models/engine.py``), and an ``InspectableEngine``."""

    def __init__(self, model: LocalModel, config: ExllamaConfig | None = None) -> None:
        self._model = model
        self._config = config = config or ExllamaConfig()
        super().__init__(
            n_ctx=min(config.n_ctx, model.manifest.n_ctx),
            slots=config.slots,
            queue_max=config.queue_max,
            hang_s=config.hang_s,
        )
        self._tokenizer: Tokenizer | None = None
        self._loaded: dict[str, Any] = {}

    async def load(self) -> EngineInfo:
        """Start the child and load the weights."""
        await self._running()
        if self._loaded["note"]:
            log.warning("engine.note", model=self._model.name, note=self._loaded["note"])
        return EngineInfo(
            engine="exllama",
            quantisation=self._model.manifest.quantisation,
            n_ctx=self._n_ctx,
            slots=self._loaded["slots"],
            build=self._loaded["build"],
            batch=self._loaded["batch"],
            kv_types=self._loaded["kv_types"],
            samplers=SAMPLERS,
            features=self._features(),
            note=self._loaded["note"],
            gpu_memory=self._loaded["gpu_memory"],
        )

    async def hidden_states(self, prompt_ids: Sequence[int]) -> HiddenStates:
        """The last hidden state of each token of a text, computed by itself. It takes no slot."""
        answer = await self._call("/hidden_states", {"prompt": list(prompt_ids)})
        return HiddenStates(answer["rows"], answer["width"], base64.b64decode(answer["data"]))

    async def bare(self, requests: Sequence[GenerateRequest]) -> list[tuple[int, float, float]]:
        """Run requests by the library alone, all at once, for a comparison.

        Of each: its tokens, and the seconds to the first and to the last one. Stop strings count for nothing,
        and requests that are under way wait.
        """
        completions = [ExllamaRun.body_of(each, each.sampling.tokens_max) for each in requests]
        answer = await self._call("/bare", {"completions": completions})
        return [(int(made), float(first), float(last)) for made, first, last in answer["jobs"]]

    async def _read_model(self) -> tuple[ChatTemplate, Vocabulary]:
        if words := missing(self._config.library, self._config.device):
            raise ConfigError(words)
        path = self._model.path
        if path.is_dir() == (self._config.device == "cpu"):
            raise ConfigError(
                f"{path}: exllama loads folders (EXL2, GPTQ, safetensors); a GGUF is for --engine llamacpp"
            )
        tokenizer, _ = await trio.to_thread.run_sync(tokenizer_of, path)
        self._tokenizer = tokenizer
        return await trio.to_thread.run_sync(_template_of, path), tokenizer.vocabulary

    async def _start_child(self) -> ChildProcess:
        config = self._config
        given = ChildConfig(
            library=config.library,
            device=config.device,
            model=str(self._model.path),
            n_ctx=self._n_ctx,
            slots=config.slots,
            chunk=config.chunk,
            cache=config.cache,
            threads=config.threads,
            tensor_parallel=config.tensor_parallel,
            paged=config.paged,
            cache_dir="" if config.cache_dir is None else str(config.cache_dir),
        )
        child = await ChildProcess.start(
            _MODULE,
            given.plain(),
            loads=self._model.name,
            runtime_dir=config.runtime_dir,
            deadline_s=config.load_deadline_s,
        )
        self._loaded = {**child.answer["info"], "gpu_memory": child.answer["gpu_memory"]}
        if not self._starts and self._loaded["slots"] != config.slots:
            # Nobody can have entered it: each request waits for the first child.
            self._queue = SlotQueue(self._loaded["slots"], config.queue_max)
        return child

    def _run(self, request: GenerateRequest, allowed: int, vocabulary: Vocabulary) -> ExllamaRun:
        return ExllamaRun(request, allowed, vocabulary, hang_s=self._config.hang_s)

    async def _encode(self, pieces: Sequence[Piece], begins: bool) -> tuple[int, ...]:
        tokenizer = self._tokenizer
        assert tokenizer is not None  # noqa: S101 - read with the vocabulary
        await trio.lowlevel.checkpoint()
        return (tokenizer.begins if begins else ()) + tokenizer.encode_pieces(pieces)

    async def _likeliest(self, prompt: tuple[int, ...], slot: int) -> list[tuple[int, float]]:  # noqa: ARG002
        # Under a key that nobody had before, so that none of it comes out of a cache.
        request = GenerateRequest(
            prompt_ids=prompt,
            sampling=SamplingParams(tokens_max=1, temperature=0.0),
            seed=0,
            cache_key=secrets.token_bytes(16),
            logprobs=LIKELIEST,
        )
        body = ExllamaRun.body_of(request, 1)
        child = await self._running()
        told: list[tuple[int, float]] = []
        async with aclosing(child.http.stream("/completion", body, stall_s=self._hang_s)) as bulks:
            async for bulk in bulks:
                for frame in bulk:
                    for each in frame.get("completion_probabilities", ()):
                        told = [(other["id"], other["logprob"]) for other in each["top_logprobs"]]
        return told


def _template_of(path: Path) -> ChatTemplate:
    if not path.is_dir():
        return load_template(path)
    folder = read_folder(path)
    return ChatTemplate(folder.chat_template or CHATML, folder.bos, folder.eos)
