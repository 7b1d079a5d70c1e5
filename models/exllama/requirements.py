"""What this engine needs of a machine, as far as it can be seen without importing torch, which takes seconds.

The child looks closer (``loading.py``): what torch was built for, the GPU's compute capability, its memory.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Final

from p2pnode.models.exllama.settings import Device, Library

_DEVICES: Final = (Path("/dev/nvidia0"), Path("/dev/nvidiactl"), Path("/dev/dxg"), Path("/dev/kfd"))
"""NVIDIA's driver, that of WSL, and AMD's."""


def missing(library: Library, device: Device = "cuda", devices: tuple[Path, ...] = _DEVICES) -> str:
    """Why ``library`` can't run here, and what to do; "" where nothing is seen to be missing."""
    modules = ("torch", library, *(("gguf", "safetensors") if device == "cpu" else ()))
    lacking = [name for name in modules if find_spec(name) is None]
    extra = "exllama" if library == "exllamav2" else "exllama3"
    found = device == "cpu" or any(path.exists() for path in devices)
    words = []
    if not found:
        words.append(
            "there is no CUDA device here (no GPU, or its driver is not installed: `nvidia-smi` must show it)"
        )
    if lacking:
        words.append(
            f"packages are not installed ({', '.join(lacking)}): first install a torch for your CUDA "
            f"(https://pytorch.org/get-started), then `pip install 'p2pnode[{extra}]'`"
        )
    if not words:
        return ""
    instead = "" if found else ". Without a GPU serve a GGUF with --engine llamacpp"
    return f"the {library} engine can't run: {'; and '.join(words)}{instead}"
