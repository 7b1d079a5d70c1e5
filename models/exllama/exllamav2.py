"""``ExLlamaV2Backend``: jobs for the dynamic generator of ExLlamaV2 0.3.2, and the loader of its models.

The only module that imports exllamav2; ``cpu.py`` calls it with a model of its own. The library is no longer
developed, so what is used of it is little, and each call is held against the installed wheel by a test.

- Sampling is the library's, but for what :class:`_Shape` does before it: one draw for each token.
- Its page cache is one for all jobs: ``scopes.py`` keeps the pages of different scopes apart.
- Ids are all that is asked for: its tokenizer is :class:`_Ids`, which has no text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from exllamav2.generator import ExLlamaV2DynamicGenerator, ExLlamaV2DynamicJob, ExLlamaV2Sampler, dynamic
from exllamav2.generator.filters import ExLlamaV2Filter

from p2pnode.models.engine import HiddenStates
from p2pnode.models.exllama.chain import Draws, LogitsChain
from p2pnode.models.exllama.jobs import BackendInfo, Begun, Job, JobEvent, Made, Over, Read
from p2pnode.models.exllama.scopes import PageOwners, Scope, scoped
from p2pnode.models.exllama.settings import PAGE
from p2pnode.models.token_mask import TokenTable

_GREEDY: Final = 1
_COLDEST: Final = 0.01
"""Below it the library takes the likeliest token, too."""

dynamic._tensor_hash_checksum = scoped(dynamic._tensor_hash_checksum)  # noqa: SLF001 - a test holds the name


class _ScopedJob(ExLlamaV2DynamicJob):  # type: ignore[misc] # the library has no types
    """A job whose pages no job of another scope uses."""

    def __init__(self, scope: bytes, owners: PageOwners, **given: Any) -> None:
        super().__init__(**given)
        self._scope = scope
        self._owners = owners
        self._before: dict[int, bytes | None] = {}

    def prepare_for_queue(self, generator: Any, serial_number: int) -> None:
        Scope.now = self._scope
        super().prepare_for_queue(generator, serial_number)

    def receive_sample(self, *given: Any, **named: Any) -> Any:
        Scope.now = self._scope
        return super().receive_sample(*given, **named)

    def allocate_pages(self) -> None:
        super().allocate_pages()
        pages = self._pages()
        self._before = self._owners.take(pages, self._scope)
        if not self.generator.paged and self._before[id(pages[0])] != self._scope:
            # Its one page is compared up to this count: of what another scope left, none.
            pages[0].kv_position_revert = 0

    def prefill(self, results: list[dict[str, Any]]) -> None:
        generator = self.generator
        everybodys = generator.all_pages
        if generator.paged:
            generator.all_pages = self._owners.of(everybodys, self._scope)
        try:
            super().prefill(results)
        finally:
            generator.all_pages = everybodys

    def deallocate_pages(self) -> None:
        if self.generator.paged:
            self._owners.give_back(self._pages(), self._before)
        super().deallocate_pages()

    def _pages(self) -> list[Any]:
        return [page for sequence in self.sequences for page in sequence.allocated_pages or ()]


class _Shape(ExLlamaV2Filter):  # type: ignore[misc]
    """The library's hook before its sampler: hands each token's logits to the job's chain."""

    def __init__(self, model: Any, tokenizer: Any, chain: LogitsChain, *, slow: bool) -> None:
        super().__init__(model, tokenizer)
        self._chain = chain
        self._slow = slow

    def begin(self, prefix_str: str) -> None:
        pass

    def feed(self, token: Any) -> None:
        self._chain.feed(int(token.item()))

    def use_background_worker(self) -> bool:
        return self._slow

    def can_mask_logits(self) -> bool:
        return True

    def prepare_logit_mask(self) -> bool:
        self._chain.prepare()
        return True

    def mask_logits(self, logits: Any) -> Any:
        return self._chain.apply(logits)


class _Ids:
    """A tokenizer for a generator whose text nobody reads: no token has any, so none is held back for it."""

    def __init__(self, vocabulary: int, padded: int, end: int) -> None:
        self._vocabulary = vocabulary
        self._pieces = [""] * padded
        self.eos_token_id = end

    def get_id_to_piece_list(self, include_special_tokens: bool = False) -> list[str]:  # noqa: ARG002
        return self._pieces

    def get_vocab_size(self) -> int:
        return self._vocabulary


class ExLlamaV2Backend:
    """A ``Backend`` (see ``jobs.py``). ``model`` and ``cache`` are the library's, loaded."""

    def __init__(
        self, model: Any, cache: Any, table: TokenTable, info: BackendInfo, *, chunk: int, paged: bool
    ) -> None:
        self.info = info
        self._model = model
        self._table = table
        self._vocabulary = len(table.pieces)
        self._tokenizer = _Ids(self._vocabulary, model.config.vocab_size + PAGE, min(table.ends, default=0))
        self._generator = ExLlamaV2DynamicGenerator(
            model=model,
            cache=cache,
            tokenizer=self._tokenizer,
            max_batch_size=info.slots,
            max_chunk_size=chunk,
            paged=paged,
        )
        self._owners = PageOwners()
        self._jobs: dict[int, _ScopedJob] = {}
        self._chains: dict[int, LogitsChain] = {}

    def submit(self, number: int, job: Job) -> None:
        """See ``Backend``."""
        filters = []
        if job.shaped:
            chain = self._chains[number] = LogitsChain(job, self._table, self._vocabulary)
            filters = [_Shape(self._model, self._tokenizer, chain, slow=job.mask is not None)]
        made = _ScopedJob(
            job.scope,
            self._owners,
            input_ids=torch.tensor([job.prompt], dtype=torch.long),
            max_new_tokens=job.tokens_max,
            gen_settings=_settings(job),
            stop_conditions=list(self._table.ends),
            filters=filters,
            identifier=number,
        )
        made.rng = Draws(job.seed)
        self._jobs[number] = made
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
        results = self._generator.iterate()
        events: list[tuple[int, JobEvent]] = []
        for result in results:
            number = result["identifier"]
            match result["stage"]:
                case "started":
                    # How much of its last page is reused is known only now, after the first of its prompt.
                    job = result["job"]
                    whole = job.cached_pages * self._generator.page_size
                    events.append((number, Begun(int(whole + job.cached_tokens))))
                case "prefill":
                    events.append((number, Read(int(result["curr_progress"]))))
                case _:
                    events += self._streamed(number, result)
        return events

    def _streamed(self, number: int, result: dict[str, Any]) -> list[tuple[int, JobEvent]]:
        events: list[tuple[int, JobEvent]] = []
        if (ids := result.get("token_ids")) is not None:
            chain = self._chains.get(number)
            events += [
                (number, Made(token) if chain is None else chain.told(token)) for token in ids[0].tolist()
            ]
        if result["eos"]:
            self._jobs.pop(number, None)
            self._chains.pop(number, None)
            events.append((number, Over(end_of_turn=result["eos_reason"] == "stop_token")))
        return events

    def hidden_states(self, ids: Sequence[int]) -> HiddenStates:
        """See ``Backend``."""
        _, states = self._model.forward(torch.tensor([list(ids)], dtype=torch.long), return_last_state=True)
        states = states[0].to("cpu", torch.half).contiguous()
        return HiddenStates(len(ids), int(states.shape[-1]), states.numpy().tobytes())


def _settings(job: Job) -> Any:
    """The library's sampler: top_k, top_p, min_p, then the temperature, as llama.cpp orders them."""
    if job.temperature < _COLDEST:
        return ExLlamaV2Sampler.Settings(
            token_repetition_penalty=1.0, temperature=1.0, top_k=_GREEDY, top_p=0.0, min_p=0.0
        )
    return ExLlamaV2Sampler.Settings(
        token_repetition_penalty=1.0,
        temperature=job.temperature,
        temperature_last=True,
        top_k=job.top_k,
        top_p=job.top_p,
        min_p=job.min_p,
    )
