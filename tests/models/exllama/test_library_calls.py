"""Every call of our adapters is held against the installed wheels' signatures: names and keywords."""

from __future__ import annotations

import ast
import re
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

import p2pnode.models.exllama.loading as loading_module
from p2pnode.models.exllama.loading import known_architectures
from tests.models.exllama.library_calls import Adapter, Library

pytestmark = pytest.mark.exllama
FOLDER = Path(loading_module.__file__).parent
V2 = [
    Adapter(
        FOLDER / "exllamav2.py",
        "exllamav2",
        {
            "self._generator": "ExLlamaV2DynamicGenerator",
            "generator": "ExLlamaV2DynamicGenerator",
            "self.generator": "ExLlamaV2DynamicGenerator",
            "self._model": "ExLlamaV2",
            "made": "ExLlamaV2DynamicJob",
            "pages[0]": "CachePage",
            "sequence": "Sequence",
            "super()": "ExLlamaV2DynamicJob",
        },
    ),
    Adapter(FOLDER / "scopes.py", "exllamav2", {"page": "CachePage"}),
    Adapter(FOLDER / "loading.py", "exllamav2", {"settings": "ExLlamaV2Config", "model": "ExLlamaV2"}),
]
V3 = [
    Adapter(FOLDER / "scopes.py", "exllamav3", {"page": "CachePage"}),
    Adapter(
        FOLDER / "exllamav3.py",
        "exllamav3",
        {"self._generator": "Generator", "made": "Job", "model": "Model", "self.pagetable": "PageTable"},
        {"model.load": ("Model", "load_gen"), "Cache": ("CacheLayer_quant", "__init__")},
    ),
]


def installed(package: str) -> bool:
    try:
        distribution(package)
    except PackageNotFoundError:
        return False
    return True


_read = cache(Library)


def library(package: str) -> Library:
    if not installed(package):
        pytest.skip(f"{package} is not installed: `make test-exllama` installs it, and runs this")
    return _read(package)


@pytest.mark.parametrize("adapter", [*V2, *V3], ids=lambda each: f"{each.package}-{each.path.stem}")
def test_what_we_ask_of_the_library_is_what_its_wheel_has(adapter: Adapter) -> None:
    assert adapter.faults(library(adapter.package)) == []


@pytest.mark.parametrize(
    ("right", "wrong", "words"),
    [
        ("max_chunk_size=chunk", "max_chunk=chunk", r"has no parameter max_chunk"),
        ("stop_conditions=", "stops=", "has no parameter|needs"),
        ("self._generator.enqueue(made)", "self._generator.push(made)", "has no push"),
        ("self._generator.enqueue(made)", "self._generator.enqueue(made, 1)", "takes 1 positional"),
        ("self._generator.enqueue(made)", "self._generator.enqueue()", "needs job"),
        ("import ExLlamaV2DynamicGenerator", "import ExLlamaV3DynamicGenerator", "has no ExLlamaV3Dyn"),
        ("dynamic._tensor_hash_checksum = ", "dynamic._hash = ", "has no _hash"),
        ("def prefill(self, results", "def prefill(self, wanted", "prefill takes"),
        ("def mask_logits(self, logits", "def mask_logit(self, logits", "has no method mask_logit"),
        ("pages[0].kv_position_revert", "pages[0].kv_position_before", "has no kv_position_before"),
        ("temperature_last=True", "temperature_at_last=True", "has no parameter temperature_at_last"),
    ],
)
def test_each_kind_of_mistake_would_be_found(right: str, wrong: str, words: str) -> None:
    adapter = V2[0]
    source = adapter.path.read_text(encoding="utf-8")
    assert right in source
    faults = adapter.faults(library("exllamav2"), source.replace(right, wrong))
    assert any(re.search(words, fault) for fault in faults), faults


def test_a_wrong_setting_of_the_loader_would_be_found() -> None:
    adapter = V2[2]
    source = adapter.path.read_text(encoding="utf-8").replace("settings.max_input_len", "settings.max_input")
    assert any("has no max_input" in fault for fault in adapter.faults(library("exllamav2"), source))


def test_the_keys_of_results_that_we_read_are_keys_that_the_generator_writes() -> None:
    written = {
        node.value
        for node in ast.walk(library("exllamav2").trees["exllamav2.generator.dynamic"])
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    read = {
        "identifier",
        "stage",
        "started",
        "job",
        "prefill",
        "curr_progress",
        "token_ids",
        "eos",
        "eos_reason",
        "stop_token",
    }
    assert read <= written


def test_what_the_generator_asks_of_a_tokenizer_is_what_ours_has() -> None:
    trees = library("exllamav2").trees
    asked: set[str] = set()
    for name in ("exllamav2.generator.dynamic", "exllamav2.generator.sampler"):
        for node in ast.walk(trees[name]):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value).endswith("tokenizer"):
                asked.add(node.attr)
    ours = {"get_id_to_piece_list", "get_vocab_size", "eos_token_id"}
    # Of texts (encode, decode), of healing, of DRY and XTC, and of biases by text: none of them is used.
    unused = {
        "encode",
        "decode",
        "get_prefix_id_to_ids_dict",
        "extended_id_to_piece",
        "actual_vocab_size",
        "config",
        "single_id",
    }
    assert ours <= asked <= ours | unused


def test_the_architectures_are_those_of_the_wheel() -> None:
    library("exllamav2")
    known = known_architectures("exllamav2")
    assert {
        "LlamaForCausalLM",
        "Qwen3ForCausalLM",
        "MixtralForCausalLM",
        "Qwen2VLForConditionalGeneration",
    } <= known
    assert "LlavaForConditionalGeneration" in known
    assert "MambaForCausalLM" not in known
    assert all(name[0].isupper() for name in known)
