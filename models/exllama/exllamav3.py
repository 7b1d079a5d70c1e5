"""``ExLlamaV3Backend``: jobs for the generator of ExLlamaV3 1.6, and the loader of its models.

Written by its documented interface, and held against its wheel by a test of names and keywords. **It was
never run by whoever wrote it, for lack of a GPU**: ``make test-gpu`` runs the conformance suite on it.

Sampling is ours (:func:`chain.sample`), since its own draws cannot be given: the logits of each token come to
the CPU. Pages of different scopes are kept apart as with ExLlamaV2 (``scopes.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, Final

import torch
from exllamav3 import Cache, CacheLayer_fp16, CacheLayer_quant, Config, Generator, Job, Model
from exllamav3.generator import job as job_module
from exllamav3.generator import pagetable as pagetable_module
from exllamav3.generator.sampler.sampler import Sampler

from p2pnode.models.engine import HiddenStates
from p2pnode.models.exllama import jobs
from p2pnode.models.exllama.chain import Draws, LogitsChain, sample
from p2pnode.models.exllama.jobs import BackendInfo, Begun, JobEvent, Over, Read
from p2pnode.models.exllama.scopes import PageOwners, Scope, scoped
from p2pnode.models.exllama.settings import PAGE, ChildConfig
from p2pnode.models.token_mask import TokenTable

_BITS: Final = {"Q8": (8, 8), "Q6": (6, 6), "Q4": (4, 4)}
_hashed = scoped(pagetable_module.tensor_hash_checksum)
pagetable_module.tensor_hash_checksum = _hashed
job_module.tensor_hash_checksum = _hashed


class _ScopedJob(Job):  # type: ignore[misc] # the library's types are not installed with ours
    """A job whose pages no job of another scope uses."""

    def __init__(self, scope: bytes, owners: PageOwners, **given: Any) -> None:
        super().__init__(**given)
        self._scope = scope
        self._owners = owners
        self._before: dict[int, bytes | None] = {}

    def prepare_for_queue(self, generator: Any, serial_number: int, rq: bool = False) -> None:
        Scope.now = self._scope
        super().prepare_for_queue(generator, serial_number, rq)

    def receive_sample(self, *given: Any, **named: Any) -> Any:
        Scope.now = self._scope
        return super().receive_sample(*given, **named)

    def allocate_pages(self) -> None:
        super().allocate_pages()
        self._before = self._owners.take(self._pages(), self._scope)

    def prefill(self, results: list[dict[str, Any]], chunk_size: int | None = None) -> None:
        Scope.now = self._scope
        everybodys = self.pagetable.all_pages
        self.pagetable.all_pages = self._owners.of(everybodys, self._scope)
        try:
            super().prefill(results, chunk_size)
        finally:
            self.pagetable.all_pages = everybodys

    def deallocate_pages(self) -> None:
        self._owners.give_back(self._pages(), self._before)
        super().deallocate_pages()

    def _pages(self) -> list[Any]:
        return [page for sequence in self.sequences for page in sequence.allocated_pages or ()]


class _Chain(Sampler):  # type: ignore[misc]
    """The library's seam for samplers: one job's chain and draws."""

    def __init__(self, job: jobs.Job, table: TokenTable) -> None:
        super().__init__()
        self._job = job
        self._draws = Draws(job.seed)
        self._vocabulary = len(table.pieces)
        self.chain: Final = LogitsChain(job, table, self._vocabulary)

    def forward(self, logits: Any, *_: Any, **__: Any) -> Any:
        """The next token, of shape (1, 1), on the device of the logits."""
        shaped = self.chain.apply(logits.view(-1).float().cpu())[: self._vocabulary]
        token = sample(shaped, self._job, self._draws.random())
        self.chain.feed(token)
        return torch.tensor([[token]], dtype=torch.long, device=logits.device)


class _Ids:
    """A tokenizer for a generator whose text nobody reads: no token has any, so none is held back for it."""

    def __init__(self, vocabulary: int) -> None:
        self.actual_vocab_size = vocabulary
        self._pieces = [""] * (vocabulary + PAGE)

    def get_id_to_piece_list(self, include_special_tokens: bool = False) -> list[str]:  # noqa: ARG002
        return self._pieces


class ExLlamaV3Backend:
    """A ``Backend`` (see ``jobs.py``). ``model`` and ``cache`` are the library's, loaded."""

    def __init__(self, model: Any, cache: Any, table: TokenTable, info: BackendInfo, *, chunk: int) -> None:
        self.info = info
        self._table = table
        self._generator = Generator(
            model=model,
            cache=cache,
            tokenizer=_Ids(len(table.pieces)),
            max_batch_size=info.slots,
            max_chunk_size=chunk,
        )
        self._owners = PageOwners()
        self._jobs: dict[int, _ScopedJob] = {}
        self._chains: dict[int, LogitsChain] = {}

    def submit(self, number: int, job: jobs.Job) -> None:
        """See ``Backend``."""
        sampler = _Chain(job, self._table)
        made = _ScopedJob(
            job.scope,
            self._owners,
            input_ids=torch.tensor([job.prompt], dtype=torch.long),
            max_new_tokens=job.tokens_max,
            sampler=sampler,
            stop_conditions=list(self._table.ends),
            identifier=number,
        )
        self._jobs[number] = made
        self._chains[number] = sampler.chain
        self._generator.enqueue(made)

    def cancel(self, number: int) -> None:
        """See ``Backend``."""
        job = self._jobs.pop(number, None)
        self._chains.pop(number, None)
        if job is not None:
            self._generator.cancel(job)

    @property
    def busy(self) -> bool:
        """See ``Backend``."""
        return bool(self._generator.num_remaining_jobs())

    def iterate(self) -> list[tuple[int, JobEvent]]:
        """See ``Backend``."""
        events: list[tuple[int, JobEvent]] = []
        for result in self._generator.iterate():
            match result["stage"]:
                case "started":
                    # How much of its last page is reused is known only now, after the first of its prompt.
                    job = result["job"]
                    reused = job.cached_pages * PAGE + job.cached_tokens
                    events.append((result["identifier"], Begun(int(reused))))
                case "prefill":
                    events.append((result["identifier"], Read(int(result["curr_progress"]))))
                case "error":
                    raise result["error"]
                case _:
                    events += self._streamed(result["identifier"], result)
        return events

    def _streamed(self, number: int, result: dict[str, Any]) -> list[tuple[int, JobEvent]]:
        events: list[tuple[int, JobEvent]] = []
        if (ids := result.get("token_ids")) is not None and number in self._chains:
            chain = self._chains[number]
            events += [(number, chain.told(token)) for token in ids.view(-1).tolist()]
        if result["eos"]:
            self._jobs.pop(number, None)
            self._chains.pop(number, None)
            events.append((number, Over(end_of_turn=result["eos_reason"] == "stop_token")))
        return events

    def hidden_states(self, ids: Sequence[int]) -> HiddenStates:
        """It tells none: ``info`` says so."""
        raise NotImplementedError


def load_v3(config: ChildConfig, table: TokenTable) -> ExLlamaV3Backend:
    """Load an EXL3 or safetensors folder."""
    tokens = config.pages * PAGE
    model = Model.from_config(Config.from_directory(config.model))
    if config.cache == "FP16":
        cache = Cache(model, max_num_tokens=tokens, layer_type=CacheLayer_fp16, max_batch_size=config.slots)
    else:
        keys, values = _BITS[config.cache]
        cache = Cache(
            model,
            max_num_tokens=tokens,
            layer_type=CacheLayer_quant,
            max_batch_size=config.slots,
            k_bits=keys,
            v_bits=values,
        )
    model.load(tensor_p=config.tensor_parallel, max_chunk_size=config.chunk)
    kv = "f16" if config.cache == "FP16" else config.cache.lower()
    info = BackendInfo(
        build=f"exllamav3 {version('exllamav3')} torch {version('torch')} {torch.cuda.get_device_name(0)}",
        slots=config.slots,
        batch=config.chunk,
        kv_types=f"{kv}/{kv}",
        inspects=False,
    )
    return ExLlamaV3Backend(model, cache, table, info, chunk=config.chunk)
