"""``Gpu``: the GPUs of this machine and their memory, and whether a model fits into it.

The node's own process has no torch, so another one asks, and writes one line of JSON. A child that has loaded
a model says what it took (:func:`taken`), which holds from then on, whatever was reckoned.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import Any, Final

import trio

from p2pnode.errors import ConfigError
from p2pnode.models.exllama.memory import CacheType, ModelSizes, too_large
from p2pnode.models.exllama.settings import PAGE, pages_for

CHILD_BYTES: Final = 1 << 30
"""What a child takes of the machine's own memory: torch, CUDA's libraries and their buffers. A guess."""
_ASK_S: Final = 60.0
_MODULE: Final = "p2pnode.models.exllama.devices"
_ADVICE: Final = "check that `nvidia-smi` shows the GPU; or serve a GGUF with --engine llamacpp"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A GPU and its memory, in bytes; ``free`` is what nobody took when it was asked."""

    name: str
    total: int
    free: int


async def gpus() -> tuple[Gpu, ...]:
    """Those that torch finds here. Raises ``ConfigError`` where there is none, or torch can't say."""
    command = [sys.executable, "-P", "-m", _MODULE]
    try:
        with trio.fail_after(_ASK_S):
            done = await trio.run_process(
                command, capture_stdout=True, stderr=subprocess.DEVNULL, check=False
            )
        return gpus_in(done.stdout)
    except trio.TooSlowError as error:
        raise ConfigError(f"the GPUs did not say their memory within {_ASK_S:g} s: {_ADVICE}") from error


def gpus_in(answer: bytes) -> tuple[Gpu, ...]:
    """The GPUs in the line of that process. Raises ``ConfigError`` where it names none."""
    try:
        said: dict[str, Any] = json.loads(answer or b"{}")
        found = tuple(Gpu(**each) for each in said.get("gpus", ()))
        reason = str(said.get("error", "torch finds no CUDA device"))
    except (ValueError, TypeError, AttributeError):
        found, reason = (), "torch could not be asked"
    if not found:
        raise ConfigError(f"the memory of the GPUs is not known ({reason}): {_ADVICE}")
    return found


def needed_on_gpu(
    name: str, sizes: ModelSizes, *, n_ctx: int, slots: int, cache: CacheType, room: int
) -> int:
    """The bytes of GPU memory that a model takes with its cache. Raises ``ConfigError`` where ``room`` has
    not so many: it says how much is missing, and which cache or quantisation would fit."""
    tokens = pages_for(n_ctx, slots) * PAGE
    if words := too_large(sizes, tokens=tokens, cache=cache, free=room):
        what, advice = words
        raise ConfigError(f"{name} can't be served on a GPU here: {what}. {advice}")
    return sizes.needed(tokens, cache)


def taken() -> int:
    """The bytes of all GPUs that this process has reserved by torch."""
    import torch

    if not torch.cuda.is_available():
        return 0
    return sum(int(torch.cuda.memory_reserved(each)) for each in range(torch.cuda.device_count()))


def _said() -> dict[str, Any]:
    try:
        import torch

        if not torch.cuda.is_available():
            return {"error": "torch finds no CUDA device"}
        found = []
        for each in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(each)
            found.append(asdict(Gpu(name=torch.cuda.get_device_name(each), total=total, free=free)))
    except Exception as error:  # noqa: BLE001 - whatever it is, who asked must hear of it
        return {"error": str(error)[:200] or type(error).__name__}
    return {"gpus": found}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_said()) + "\n")
