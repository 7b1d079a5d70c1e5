"""Engines by name, imported only when they are made."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from p2pnode.errors import ConfigError
from p2pnode.models.engines import (
    EngineSpec,
    available_engines,
    engine_name_for,
    make_engine,
    parse_engine_name,
    require_engine,
)
from p2pnode.models.exllama import requirements
from p2pnode.models.exllama.engine import ExllamaEngine
from p2pnode.models.llamacpp.engine import LlamaCppEngine
from p2pnode.models.local_models import LocalModel, describe_at
from p2pnode.models.scripted import ScriptedEngine
from tests.models.model_folders import FILES, write


async def test_engines_are_made_by_name_with_what_was_given(smollm: LocalModel) -> None:
    scripted = make_engine(EngineSpec(name="scripted", n_ctx=99, slots=3, tokens_per_s=5.0))
    assert isinstance(scripted, ScriptedEngine)
    info = await scripted.load()
    assert (info.n_ctx, info.slots) == (99, 3)
    assert isinstance(make_engine(EngineSpec(threads=1), smollm), LlamaCppEngine)


def test_a_name_that_is_none_and_a_missing_model_are_errors() -> None:
    assert parse_engine_name("scripted") == "scripted"
    with pytest.raises(ConfigError, match="use llamacpp or exllama or scripted"):
        parse_engine_name("vllm")
    with pytest.raises(ConfigError, match="--model"):
        make_engine(EngineSpec())


def test_importing_the_engines_names_and_the_catalogue_imports_no_engine_and_no_http() -> None:
    program = (
        "import sys, p2pnode.models.engines, p2pnode.models.catalogue\n"
        "print([m for m in ('xllamacpp', 'httpx', 'h11', 'trio') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_engine_in_the_parent_never_imports_the_native_library() -> None:
    program = "import sys, p2pnode.models.llamacpp.engine\nprint('xllamacpp' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_model_is_loaded_by_the_engine_of_its_format(smollm: LocalModel, tmp_path: Path) -> None:
    folder = describe_at("small", write(tmp_path / "m", FILES))
    assert engine_name_for(smollm) == engine_name_for(smollm, "llamacpp") == "llamacpp"
    assert engine_name_for(folder) == engine_name_for(folder, "exllama") == "exllama"
    with pytest.raises(ConfigError, match="safetensors, which llamacpp doesn't load: llamacpp loads gguf"):
        engine_name_for(folder, "llamacpp")
    with pytest.raises(ConfigError, match="format gguf, which exllama doesn't load"):
        engine_name_for(smollm, "exllama")
    assert isinstance(make_engine(EngineSpec(name="exllama", cache="Q4"), folder), ExllamaEngine)


def test_an_engine_that_cannot_be_used_here_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    assert available_engines()["llamacpp"] == ""
    monkeypatch.setattr(requirements, "missing", lambda library: f"no {library}")
    assert available_engines()["exllama"] == "no exllamav2"
    with pytest.raises(ConfigError, match="no exllamav2"):
        require_engine("exllama")
    require_engine("llamacpp")


def test_the_engine_on_a_gpu_never_imports_torch_into_the_node() -> None:
    program = (
        "import sys, p2pnode.models.exllama.engine\n"
        "print([m for m in ('torch', 'exllamav2', 'exllamav3', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
