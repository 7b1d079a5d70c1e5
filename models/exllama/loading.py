"""What a child loads: whether its settings can work on this machine, and the backend that they make.

Everything that can't work is a ``LoadError``, in words that say what to do. torch and the libraries are
imported in the functions that need them, so that the node's own process can read the settings.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import distribution, version
from pathlib import Path
from typing import Final

from p2pnode.models.exllama.jobs import Backend, BackendInfo
from p2pnode.models.exllama.memory import CACHE_BITS, ModelSizes, too_large
from p2pnode.models.exllama.settings import PAGE, ChildConfig, Library, LoadError
from p2pnode.models.folder import folder_tokenizer_blob, read_folder
from p2pnode.models.gguf import read_header, tokenizer_blob
from p2pnode.models.token_mask import TokenTable
from p2pnode.models.tokenizer import Tokenizer, load_tokenizer

_NO_CUDA: Final = (
    "Install a torch built for this machine's CUDA (https://pytorch.org/get-started), and check that "
    "`nvidia-smi` shows the GPU; or serve a GGUF with --engine llamacpp"
)


_UNPAGED: Final = (
    "one request at a time: flash-attn 2.5.7 or later is not installed, or the GPU is older than Ampere"
)
_CPU_NOTE: Final = "this is the CPU form of exllama: it is for checks, and slow"


def tokenizer_of(path: Path) -> tuple[Tokenizer, frozenset[int]]:
    """The tokenizer of the GGUF file, or the folder, at ``path``, and the ids that end a turn.

    Blocks on the disk. Raises ``ConfigError``.
    """
    if not path.is_dir():
        tokenizer = load_tokenizer(tokenizer_blob(read_header(path)))
        return tokenizer, tokenizer.vocabulary.ends
    folder = read_folder(path)
    tokenizer = load_tokenizer(folder_tokenizer_blob(folder))
    told = folder.config.get("eos_token_id")
    try:
        generation = json.loads((path / "generation_config.json").read_text(encoding="utf-8"))
        told = generation.get("eos_token_id", told)
    except (OSError, ValueError, AttributeError):
        pass  # there need not be one
    ids = told if isinstance(told, list) else [told]
    ends = tokenizer.vocabulary.ends | {each for each in ids if isinstance(each, int)}
    return tokenizer, frozenset(each for each in ends if 0 <= each < len(tokenizer.vocabulary))


def table_of(config: ChildConfig) -> TokenTable:
    """The vocabulary of the model. Blocks on the disk."""
    tokenizer, ends = tokenizer_of(Path(config.model))
    return TokenTable(tokenizer.vocabulary.pieces, ends)


def load_backend(config: ChildConfig, table: TokenTable) -> Backend:
    """Load the model. Raises ``LoadError`` for what a user can mend, and whatever the libraries raise."""
    if config.device == "cpu":
        return _load_cpu(config, table)
    check_device(config.library)
    check_architecture(Path(config.model), config.library)
    if config.library == "exllamav3":
        from p2pnode.models.exllama.exllamav3 import load_v3

        _check_memory(config)
        return load_v3(config, table)
    return _load_cuda(config, table)


def _load_cpu(config: ChildConfig, table: TokenTable) -> Backend:
    import torch

    from p2pnode.models.exllama import cpu

    torch.set_num_threads(config.threads)
    torch.set_num_interop_threads(1)
    cpu.install_extension()
    import exllamav2
    from exllamav2 import attn

    from p2pnode.models.exllama.exllamav2 import ExLlamaV2Backend

    # The generator asks for flash-attn before it uses pages. Here it is the forward pass in torch that can.
    attn.has_flash_attn_with_paged = True
    try:
        shape, weights = cpu.load_gguf(
            Path(config.model), Path(config.cache_dir) if config.cache_dir else None
        )
    except ValueError as error:
        raise LoadError(str(error), "Serve it with --engine llamacpp") from error
    config = config if config.paged else replace(config, slots=1)
    tokens = config.pages * PAGE
    model = cpu.TorchLlama(shape, weights, n_ctx=tokens, chunk=config.chunk, slots=config.slots)
    cache = exllamav2.ExLlamaV2Cache(model, max_seq_len=tokens, fixed_device="cpu")
    info = BackendInfo(
        build=f"exllamav2 {version('exllamav2')} torch {version('torch')} cpu",
        slots=config.slots,
        batch=config.chunk,
        kv_types="f16/f16",
        note=_CPU_NOTE if config.paged else f"{_CPU_NOTE}; {_UNPAGED}",
    )
    return ExLlamaV2Backend(model, cache, table, info, chunk=config.chunk, paged=config.paged)


def _load_cuda(config: ChildConfig, table: TokenTable) -> Backend:
    import exllamav2
    import torch
    from exllamav2 import attn

    from p2pnode.models.exllama.exllamav2 import ExLlamaV2Backend

    paged = config.paged and bool(attn.has_flash_attn_with_paged)
    if not paged:
        config = replace(config, slots=1)
    tokens = config.pages * PAGE
    _check_memory(config)
    settings = exllamav2.ExLlamaV2Config(config.model)
    settings.max_seq_len = tokens
    settings.max_input_len = config.chunk
    settings.no_flash_attn = not paged
    model = exllamav2.ExLlamaV2(settings)
    kinds = {
        "FP16": exllamav2.ExLlamaV2Cache,
        "Q8": exllamav2.ExLlamaV2Cache_Q8,
        "Q6": exllamav2.ExLlamaV2Cache_Q6,
        "Q4": exllamav2.ExLlamaV2Cache_Q4,
    }
    try:
        if config.tensor_parallel:
            model.load_tp(expect_cache_tokens=tokens, expect_cache_base=kinds[config.cache])
            cache = exllamav2.ExLlamaV2Cache_TP(model, base=kinds[config.cache], max_seq_len=tokens)
        else:
            cache = kinds[config.cache](model, max_seq_len=tokens, lazy=True)
            model.load_autosplit(cache)
    except (torch.cuda.OutOfMemoryError, RuntimeError) as error:
        if "memory" not in str(error).lower() and "vram" not in str(error).lower():
            raise
        raise _out_of_memory(config, tokens) from error
    kv = "f16" if config.cache == "FP16" else config.cache.lower()
    info = BackendInfo(
        build=f"exllamav2 {version('exllamav2')} torch {version('torch')} {torch.cuda.get_device_name(0)}",
        slots=config.slots,
        batch=config.chunk,
        kv_types=f"{kv}/{kv}",
        note="" if paged else _UNPAGED,
    )
    return ExLlamaV2Backend(model, cache, table, info, chunk=config.chunk, paged=paged)


# ---- whether it can work


def check_device(library: Library) -> None:
    """Raise ``LoadError`` where torch has no GPU that it can compute on."""
    import torch

    if not torch.cuda.is_available():
        built = "was built without CUDA" if torch.version.cuda is None else "finds no CUDA device"
        raise LoadError(f"torch {version('torch')} {built}, and {library} computes on a GPU", _NO_CUDA)
    kernels = [int(arch.removeprefix("sm_")) for arch in torch.cuda.get_arch_list() if arch.startswith("sm_")]
    for device in range(torch.cuda.device_count()):
        words = capability_words(
            torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device), kernels, library
        )
        if words:
            raise LoadError(words, "Use another GPU (CUDA_VISIBLE_DEVICES chooses), or --engine llamacpp")


_LEAST: Final[Mapping[Library, int]] = {"exllamav2": 60, "exllamav3": 80}
"""The compute capabilities that the libraries' own pages name as the oldest, times ten."""


def capability_words(name: str, capability: tuple[int, int], kernels: list[int], library: Library) -> str:
    """Why a GPU of this compute capability is of no use; "" where it is. ``kernels``: torch's own, as 86."""
    found = capability[0] * 10 + capability[1]
    least = max(_LEAST[library], min(kernels, default=0))
    if found >= least:
        return ""
    has, needs = (f"{each // 10}.{each % 10}" for each in (found, least))
    return f"the GPU {name} has compute capability {has}, and {library} needs {needs} or more here"


def check_architecture(folder: Path, library: Library) -> None:
    """Raise ``LoadError`` for a model that the library doesn't know: it would load it as another."""
    try:
        said = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        architecture = str(said["architectures"][0])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise LoadError(
            "config.json names no architecture", "Check the folder with `p2pnode models verify`"
        ) from error
    known = known_architectures(library)
    if architecture not in known:
        raise LoadError(
            f"{library} {version(library)} doesn't know the architecture {architecture}",
            f"It knows {', '.join(sorted(known))}. A GGUF of the model may work with --engine llamacpp",
        )


def known_architectures(library: Library) -> frozenset[str]:
    """The names in ``config.json`` that the installed library knows, read from its source.

    ExLlamaV2 compares the name with each that it knows, and has no list of them; ExLlamaV3's models each have
    theirs as ``arch_string``. Importing either needs a GPU.
    """
    files = distribution(library).files or []
    found: set[str] = set()
    for file in files:
        if file.suffix == ".py" and "architecture" in str(file):
            found |= _architectures_in(ast.parse(Path(str(file.locate())).read_text(encoding="utf-8")))
    return frozenset(found)


def _architectures_in(tree: ast.AST) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        named: list[ast.expr] = []
        if (
            isinstance(node, ast.Compare)
            and isinstance(node.left, ast.Name)
            and node.left.id == "arch_string"
        ):
            named = node.comparators
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if (
                any(isinstance(each, ast.Name) and each.id == "arch_string" for each in targets)
                and node.value
            ):
                named = [node.value]
        for each in named:
            found |= {
                value.value
                for value in ast.walk(each)
                if isinstance(value, ast.Constant) and isinstance(value.value, str)
            }
    return found


def _check_memory(config: ChildConfig) -> None:
    """Raise ``LoadError`` where the weights and the cache don't fit into the GPUs' free memory."""
    import torch

    free = [torch.cuda.mem_get_info(device)[0] for device in range(torch.cuda.device_count())]
    sizes, tokens = ModelSizes.of_folder(Path(config.model)), config.pages * PAGE
    words = too_large(sizes, tokens=tokens, cache=config.cache, free=sum(free))
    if words:
        raise LoadError(*words)


def _out_of_memory(config: ChildConfig, tokens: int) -> LoadError:
    sizes = ModelSizes.of_folder(Path(config.model))
    needed = sizes.weights + tokens * sizes.cache_bits_per_token(CACHE_BITS[config.cache]) // 8
    return LoadError(
        f"the GPU's memory ran out: weights and cache take {needed / 1e9:.1f} GB, and kernels more",
        "Take a smaller --n-ctx, fewer slots or a cache of Q4; or end what else uses the GPU",
    )
