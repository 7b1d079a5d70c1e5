"""Which models fit a machine, by how much others don't, and how fast they would be there.

The node that chooses by itself what to serve (`join --auto`) reckons with the same. All of it is reckoned
before a model's file is here: with the file, what it takes is known to the byte (``models/context.py``), and
with a calibration, how fast it is. Pure: ``models/hardware.py`` asks the machine.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from p2pnode.ids import ModelId
from p2pnode.models.context import ModelMemory, gigabytes, quantisation_that_fits
from p2pnode.models.quality import Quality
from p2pnode.words import count_of

TOKENS_PER_S_LEAST: Final = 3.0
"""Nobody waits for an answer that is made more slowly."""
N_CTX: Final = 4096
"""Tokens of a conversation, where the user names no other number."""
_BYTES_PER_CORE_S: Final = 4e9
_CORES_MOST: Final = 8
"""To make a token, a processor reads all weights once: about so many bytes a second for each core, until
memory can't follow."""
_BESIDE: Final = 256 << 20
_CONTEXT_SHARE: Final = 0.2
"""What a model takes besides its weights, before its file is here and says it: so much, and this share."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What a machine has. Memory and disk are the bytes that can be had now, ``gpu_memory`` is its GPUs'.

    ``weights_per_s``: bytes of weights that its processor was measured to read in a second; None where no
    model was calibrated here.
    """

    memory: int
    cores: int
    disk: int
    gpu_memory: int = 0
    weights_per_s: float | None = None

    def tokens_per_s(self, size_bytes: int) -> float:
        """About how fast its processor makes tokens with a model of this size."""
        reckoned = _BYTES_PER_CORE_S * min(self.cores, _CORES_MOST)
        return (self.weights_per_s or reckoned) / max(1, size_bytes)

    def room(self, *, on_gpu: bool) -> int:
        """The bytes for models on its GPUs, or beside them."""
        return self.gpu_memory if on_gpu else self.memory

    @property
    def words(self) -> str:
        """For people."""
        gpu = f"{gigabytes(self.gpu_memory)} of GPU memory" if self.gpu_memory else "no GPU that can be used"
        cores = count_of(self.cores, "core")
        return f"{gigabytes(self.memory)} of memory, {cores}, {gpu}, {gigabytes(self.disk)} of disk"


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """A model that could be run.

    ``need``: what it takes, where its file is here and says it; ``hint`` what a list says that it takes, in
    bytes, with the context in tokens. ``tokens_per_s`` was measured here. ``unusable`` says why no engine
    here can load it. ``quality`` is what is known of its answers, and who says it, as ``quality_by``.
    """

    name: str
    model: ModelId
    size_bytes: int
    quantisation: str = ""
    licence: str = ""
    n_ctx: int = N_CTX
    on_gpu: bool = False
    unusable: str = ""
    is_here: bool = False
    need: ModelMemory | None = None
    hint: tuple[int, int] | None = None
    tokens_per_s: float | None = None
    tasks: tuple[str, ...] = ()
    quality: Quality | None = None
    quality_by: str = ""

    def memory(self, n_ctx: int) -> int:
        """About the bytes that it takes with one context of so many tokens, or of all that it has."""
        wanted = min(n_ctx, self.n_ctx)
        if self.need is not None:
            return self.need.needed(min(wanted, self.need.n_ctx_max), 1)
        if self.hint is not None and self.hint[1] >= wanted:
            return max(self.hint[0], self.size_bytes)  # a list may say anything
        return expected_memory(self.size_bytes)

    def speed(self, machine: Machine) -> float:
        """About how many tokens it makes in a second there; infinite where a GPU does."""
        if self.tokens_per_s is not None:
            return self.tokens_per_s
        return math.inf if self.on_gpu else machine.tokens_per_s(self.size_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation:
    """A model and what was found: whether it ``fits``, and ``why`` or why not, in words."""

    option: Option
    fits: bool
    memory: int
    tokens_per_s: float
    would_fit: str
    """Another quantisation of the same model that would fit; "" where it fits, or none would."""
    why: str


def expected_memory(size_bytes: int) -> int:
    """About the bytes that a model takes with a context, before its file is here."""
    return int(size_bytes * (1 + _CONTEXT_SHARE)) + _BESIDE


def recommend(
    options: Iterable[Option], machine: Machine, *, n_ctx: int = N_CTX, task: str = ""
) -> tuple[Recommendation, ...]:
    """The models that fit, the most promising first, then the others, the smallest first.

    Those that are said to be good at ``task`` go before the others. Where all that fit were asked the same
    items, the better one goes first; otherwise the larger one, because that says more than figures that can't
    be compared.
    """
    found = [_judged(each, machine, n_ctx) for each in options]
    fitting = [each for each in found if each.fits]
    comparable = _comparable([each.option for each in fitting])

    def order(each: Recommendation) -> tuple[bool, float, str]:
        quality = each.option.quality
        by = quality.overall.score if comparable and quality is not None else each.option.size_bytes
        return task not in each.option.tasks, -by, each.option.name

    others = [each for each in found if not each.fits]
    return (
        *sorted(fitting, key=order),
        *sorted(others, key=lambda each: (each.option.size_bytes, each.option.name)),
    )


def _comparable(options: list[Option]) -> bool:
    asked = {
        (each.quality.task_set, each.quality.seed, tuple((one.task, one.items) for one in each.quality.tasks))
        if each.quality is not None
        else None
        for each in options
    }
    return len(asked) == 1 and None not in asked


def _judged(option: Option, machine: Machine, n_ctx: int) -> Recommendation:
    memory = option.memory(n_ctx)
    at_hand, kind = machine.room(on_gpu=option.on_gpu), "GPU memory" if option.on_gpu else "memory"
    speed = option.speed(machine)
    troubles, would_fit = [], ""
    if option.unusable:
        troubles.append(option.unusable)
    elif memory > at_hand:
        would_fit = "" if option.on_gpu else _smaller(option, at_hand)
        missing = gigabytes(memory - at_hand)
        troubles.append(f"takes {gigabytes(memory)} of {kind}, {missing} more than there is")
        if would_fit:
            troubles.append(f"in {would_fit} it would fit")
    if speed < TOKENS_PER_S_LEAST:
        troubles.append(f"{_speed_words(option, machine, speed)}: too slow to wait for")
    if not option.is_here and option.size_bytes > machine.disk:
        missing = gigabytes(option.size_bytes - machine.disk)
        troubles.append(f"takes {gigabytes(option.size_bytes)} of disk, {missing} more than is free")
    told = f"takes {gigabytes(memory)} of {kind}" + (
        "" if math.isinf(speed) else f", {_speed_words(option, machine, speed)}"
    )
    return Recommendation(
        option=option,
        fits=not troubles,
        memory=memory,
        tokens_per_s=speed,
        would_fit=would_fit,
        why="; ".join(troubles) or told,
    )


def _smaller(option: Option, at_hand: int) -> str:
    """Another quantisation that fits into so many bytes; "" for none."""
    need = option.need or ModelMemory(
        fixed=expected_memory(option.size_bytes),
        per_token=0,
        n_ctx_max=option.n_ctx,
        weights=option.size_bytes,
    )
    return quantisation_that_fits(need, option.quantisation, at_hand)


def _speed_words(option: Option, machine: Machine, speed: float) -> str:
    if option.tokens_per_s is not None:
        how = "as measured here"
    elif machine.weights_per_s is not None:
        how = "by what another model does here"
    else:
        how = f"reckoned from {count_of(machine.cores, 'core')}"
    return f"about {speed:.{0 if speed >= 10 else 1}f} tokens/s, {how}"  # noqa: PLR2004 - digits that say something
