"""Engines by name, imported only when they are made."""

from __future__ import annotations

import subprocess
import sys

import pytest

from p2pnode.errors import ConfigError
from p2pnode.models.engines import EngineSpec, make_engine, parse_engine_name
from p2pnode.models.llamacpp.engine import LlamaCppEngine
from p2pnode.models.local_models import LocalModel
from p2pnode.models.scripted import ScriptedEngine


async def test_engines_are_made_by_name_with_what_was_given(smollm: LocalModel) -> None:
    scripted = make_engine(EngineSpec(name="scripted", n_ctx=99, slots=3, tokens_per_s=5.0))
    assert isinstance(scripted, ScriptedEngine)
    info = await scripted.load()
    assert (info.n_ctx, info.slots) == (99, 3)
    assert isinstance(make_engine(EngineSpec(threads=1), smollm), LlamaCppEngine)


def test_a_name_that_is_none_and_a_missing_model_are_errors() -> None:
    assert parse_engine_name("scripted") == "scripted"
    with pytest.raises(ConfigError, match="use llamacpp or scripted"):
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
