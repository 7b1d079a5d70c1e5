"""What a user is told whose model can't be served: one row for each of docs/engines.md's table of errors.

Each error comes from the code that a user's command runs. Only what no machine here has is replaced: a GPU.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Final, TypeAlias

import pytest
import trio

from p2pnode.errors import ConfigError, EngineError, P2PNodeError
from p2pnode.models.catalogue import DEFAULT_MODEL, Catalogue
from p2pnode.models.context import choose_context, memory_of
from p2pnode.models.engines import EngineSpec, make_engine
from p2pnode.models.exllama.devices import gpus, gpus_in, needed_on_gpu
from p2pnode.models.exllama.loading import check_device
from p2pnode.models.exllama.memory import ModelSizes
from p2pnode.models.exllama.requirements import missing
from p2pnode.models.exllama.settings import LoadError
from p2pnode.models.gguf import read_header
from p2pnode.models.licences import LicenceError
from p2pnode.models.llamacpp.server import why_not_loaded
from p2pnode.models.local_models import LocalModel
from p2pnode.models.pull.pull import pull
from p2pnode.models.upstream.engine import find_server
from tests.models.embedding_model import write_embedding_model
from tests.models.model_folders import CONFIG, text
from tests.models.test_folder import manifest_of

ROOT: Final = Path(__file__).parents[2]
DOCUMENT: Final = (ROOT / "docs" / "engines.md").read_text(encoding="utf-8")


Broken: TypeAlias = Callable[[LocalModel, Path], Awaitable[None]]


async def _no_cuda(_model: LocalModel, _folder: Path) -> None:
    if words := missing("exllamav2", devices=()):
        raise ConfigError(words)


async def _old_gpu(_model: LocalModel, _folder: Path) -> None:
    """torch finds a GPU of 2016."""
    cuda = SimpleNamespace(
        is_available=lambda: True,
        get_arch_list=lambda: ["sm_75", "sm_80", "sm_86"],
        device_count=lambda: 1,
        get_device_name=lambda _device: "GTX 1080",
        get_device_capability=lambda _device: (6, 1),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
        check_device("exllamav2")


async def _no_memory(model: LocalModel, _folder: Path) -> None:
    sizes = memory_of(read_header(model.weights_path))
    choose_context(sizes, asked=0, slots=4, at_hand=150_000_000, quantisation=model.manifest.quantisation)


async def _no_gpu_memory(_model: LocalModel, _folder: Path) -> None:
    sizes = ModelSizes(weights=16_000_000_000, parameters=8_030_000_000, layers=32, kv_heads=8, head_dim=128)
    needed_on_gpu("llama-8b", sizes, n_ctx=4096, slots=1, cache="FP16", room=8_000_000_000)


async def _unknown_architecture(_model: LocalModel, folder: Path) -> None:
    path = write_embedding_model(folder / "new.gguf", pooling=0)
    data = path.read_bytes()
    at = data.index(b"general.architecture") + len("general.architecture") + 4 + 8
    kind = data.index(b"tokenizer.ggml.model") + len("tokenizer.ggml.model") + 4 + 8
    data = data[:at] + b"newt" + data[at + 4 : kind] + b"gpt2" + data[kind + 4 :]
    path.write_bytes(data.replace(b"bert.", b"newt."))
    local = await pull(Catalogue.load().find(str(path)), folder / "models")
    engine = make_engine(EngineSpec(n_ctx=64, slots=1, threads=1), local)
    try:
        await engine.load()
    finally:
        await engine.aclose()


async def _half_a_folder(_model: LocalModel, folder: Path) -> None:
    manifest_of(folder, {"tokenizer.json": None})


async def _wrong_tokenizer(_model: LocalModel, folder: Path) -> None:
    manifest_of(folder, {"config.json": text(CONFIG | {"vocab_size": 32_000})})


async def _licence(_model: LocalModel, folder: Path) -> None:
    entry = Catalogue.load().find(DEFAULT_MODEL)
    assert entry.manifest is not None
    file = replace(entry.manifest.files[0], sha256="ab" * 32)  # weights that are not here
    manifest = replace(entry.manifest, files=(file,))
    elsewhere = replace(entry, licence="Llama-3.1", manifest=manifest)
    await pull(elsewhere, folder / "models")


async def _upstream_gone(_model: LocalModel, _folder: Path) -> None:
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    port = listener.socket.getsockname()[1]
    await listener.aclose()  # nobody listens there any more
    await find_server(f"http://127.0.0.1:{port}", "", "")


ROWS: Final[dict[str, tuple[Broken, type[Exception], str]]] = {
    "no CUDA": (_no_cuda, ConfigError, r"no CUDA device here.*--engine llamacpp"),
    "an old GPU": (_old_gpu, LoadError, r"GTX 1080 has compute capability 6\.1, and exllamav2 needs 7\.5"),
    "too little memory": (
        _no_memory,
        ConfigError,
        r"takes 0\.2 GB with the model, and 0\.1 GB of memory .*: the same model in \w+ would fit",
    ),
    "too little GPU memory": (
        _no_gpu_memory,
        ConfigError,
        r"needs about 17\.1 GB of GPU memory .* 8\.0 GB are free\. The same model quantised to 6 bits",
    ),
    "an unknown architecture": (
        _unknown_architecture,
        EngineError,
        r"can't load .*: this llama.cpp doesn't know the architecture 'newt'\. Update it",
    ),
    "half a folder": (_half_a_folder, ConfigError, r"tokenizer\.json'? is missing.*models pull"),
    "another model's tokenizer": (_wrong_tokenizer, ConfigError, r"do not belong together: .* 32000 tokens"),
    "a licence that was not accepted": (_licence, LicenceError, r"its licence is .*--accept-licence"),
    "an upstream that is gone": (
        _upstream_gone,
        EngineError,
        r"is not to be reached .*is its server running",
    ),
}


@pytest.mark.parametrize("row", ROWS)
async def test_what_can_not_be_served_says_why_and_what_to_do(
    row: str, smollm: LocalModel, tmp_path: Path
) -> None:
    provoke, kind, words = ROWS[row]
    with pytest.raises((P2PNodeError, LoadError)) as told:
        await provoke(smollm, tmp_path)
    assert isinstance(told.value, kind)
    assert re.search(words, str(told.value), re.DOTALL), str(told.value)


def test_each_of_these_errors_has_its_row_in_the_document() -> None:
    table = DOCUMENT[DOCUMENT.index("## What can't be served") :]
    assert [row for row in ROWS if f"| {row} |" not in table] == []


async def test_a_machine_whose_torch_finds_no_gpu_has_no_memory_to_count() -> None:
    if find_spec("torch") is None:
        with pytest.raises(
            ConfigError, match=r"memory of the GPUs is not known \(.*\): check that `nvidia-smi`"
        ):
            await gpus()
    (found,) = gpus_in(b'{"gpus": [{"name": "H200", "total": 150, "free": 140}]}\n')
    assert (found.name, found.total, found.free) == ("H200", 150, 140)
    for answer in (b"", b"[]", b'{"gpus": []}', b'{"gpus": [{"name": "x"}]}', b"x"):
        with pytest.raises(ConfigError, match="is not known"):
            gpus_in(answer)


def test_what_llama_cpp_wrote_is_told_in_words() -> None:
    log = "0.00.017.571 E llama_model_load: error loading model: unknown model architecture: 'brrt'\nx"
    assert why_not_loaded(log)[0] == "this llama.cpp doesn't know the architecture 'brrt'"
    log = "0.04.868.687 E llama_init_from_model: failed to initialize the context: std::bad_alloc\n"
    reason, advice = why_not_loaded(log)
    assert reason == "memory ran out (failed to initialize the context: std::bad_alloc)"
    assert "--n-ctx" in advice
    assert why_not_loaded("nothing\n") == ("", "")
