"""What a child of this engine is asked for, and what it tells: jobs, events, and the ``Backend`` seam. Pure.

A backend is one library with a model loaded: ExLlamaV2 (``exllamav2.py``), ExLlamaV3 (``exllamav3.py``). Only
one thread uses it (``worker.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, TypeAlias

from p2pnode.models.engine import HiddenStates
from p2pnode.models.token_mask import TokenMask


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One completion. Pages of the cache are shared by jobs of one ``scope``, and by no others."""

    prompt: tuple[int, ...]
    tokens_max: int
    scope: bytes
    seed: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    bias: tuple[tuple[int, float], ...] = ()
    mask: TokenMask | None = None
    """What may follow; None where all may."""
    logprobs: int = -1
    """How many likely tokens are told beside each; -1: not even its own log-probability."""

    @property
    def shaped(self) -> bool:
        """Whether logits are needed or changed before a sampler sees them."""
        penalised = self.repeat_penalty != 1 or self.presence_penalty or self.frequency_penalty
        return bool(penalised or self.bias or self.mask is not None or self.logprobs >= 0)


@dataclass(frozen=True, slots=True)
class Begun:
    """The job has its pages; ``reused`` tokens of its prompt were in them."""

    reused: int


@dataclass(frozen=True, slots=True)
class Read:
    """So many tokens of the prompt are read, the reused ones among them."""

    processed: int


@dataclass(frozen=True, slots=True)
class Made:
    """A token, with its log-probability and the likeliest ids with theirs, where asked for."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Over:
    """The last event. ``end_of_turn``: the model said so; else the tokens are used up."""

    end_of_turn: bool


JobEvent: TypeAlias = Begun | Read | Made | Over


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendInfo:
    """What was loaded. ``slots`` may be fewer than asked for: ``note`` says why, for people."""

    build: str
    slots: int
    batch: int
    kv_types: str
    note: str = ""
    inspects: bool = True
    """Whether it tells hidden states."""

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


class Backend(Protocol):
    """A model that makes tokens, an iteration at a time. Whatever a method raises leaves it unusable."""

    info: BackendInfo

    def submit(self, number: int, job: Job) -> None:
        """Put a job into its queue, under a number that no other has."""
        ...

    def cancel(self, number: int) -> None:
        """Take a job out, wherever it is. One that is over is no error."""
        ...

    @property
    def busy(self) -> bool:
        """Whether there is any job."""
        ...

    def iterate(self) -> list[tuple[int, JobEvent]]:
        """Go one step on with each job: some of its prompt, or one token. Events by the jobs' numbers."""
        ...

    def hidden_states(self, ids: Sequence[int]) -> HiddenStates:
        """Compute ``ids`` by themselves, beside the jobs."""
        ...
