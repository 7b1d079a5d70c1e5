"""What can't be loaded, in words: no GPU, an old one, too little memory, another library's model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from p2pnode.config import KV_CACHES
from p2pnode.errors import ConfigError
from p2pnode.models.exllama import requirements
from p2pnode.models.exllama.engine import ExllamaConfig
from p2pnode.models.exllama.loading import capability_words
from p2pnode.models.exllama.memory import CACHE_TYPES, SPARE_BYTES, ModelSizes, too_large
from p2pnode.models.exllama.requirements import missing
from p2pnode.models.exllama.settings import ChildConfig

GB = 1_000_000_000
LLAMA_8B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_hidden_layers": 32,
    "vocab_size": 128256,
}


def sizes(weights: int) -> ModelSizes:
    return ModelSizes(weights=weights, parameters=8_030_000_000, layers=32, kv_heads=8, head_dim=128)


def test_the_sizes_of_a_folder_are_read_from_its_config_and_its_files(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    (tmp_path / "model-1.safetensors").write_bytes(bytes(1000))
    (tmp_path / "model-2.safetensors").write_bytes(bytes(500))
    (tmp_path / "leftover.bin").write_bytes(bytes(9))
    read = ModelSizes.of_folder(tmp_path)
    assert (read.weights, read.layers, read.kv_heads, read.head_dim) == (1500, 32, 8, 128)
    assert read.parameters == pytest.approx(8.03e9, rel=0.001)
    # 32 layers x 8 heads x 128 numbers, keys and values, 2 bytes each
    assert read.cache_bits_per_token(16) == 8 * 131_072


def test_a_model_that_fits_is_not_complained_of() -> None:
    model = sizes(5 * GB)
    exactly = model.needed(8192, "FP16")
    assert exactly == 5 * GB + 8192 * 131_072 + SPARE_BYTES
    assert too_large(model, tokens=8192, cache="FP16", free=exactly) is None
    assert too_large(model, tokens=8192, cache="FP16", free=exactly - 1) is not None


def test_what_is_too_large_says_how_much_and_what_would_fit() -> None:
    found = too_large(sizes(5 * GB), tokens=65536, cache="FP16", free=10 * GB)
    assert found is not None
    assert found[0] == (
        "it needs about 14.1 GB of GPU memory (5.0 GB of weights, 8.6 GB for the FP16 cache of 65536 "
        "tokens), and 10.0 GB are free"
    )
    assert found[1].startswith("A Q6 cache would fit")
    few = too_large(sizes(5 * GB), tokens=65536, cache="Q4", free=6 * GB)
    assert few is not None
    assert few[1] == "Take fewer slots, or a smaller --n-ctx"
    weights = too_large(sizes(16 * GB), tokens=4096, cache="FP16", free=8 * GB)
    assert weights is not None
    assert weights[1] == "The same model quantised to 6 bits a weight or fewer would fit, with a Q4 cache"
    hopeless = too_large(sizes(16 * GB), tokens=4096, cache="FP16", free=2 * GB)
    assert hopeless is not None
    assert hopeless[1].startswith("No quantisation of it would fit")


@pytest.mark.parametrize(
    ("capability", "kernels", "library", "words"),
    [
        ((8, 6), [75, 80, 86], "exllamav2", ""),
        ((12, 0), [75, 80, 86], "exllamav2", ""),
        ((6, 1), [75, 80, 86], "exllamav2", "the GPU X has compute capability 6.1, and exllamav2 needs 7.5"),
        ((5, 2), [], "exllamav2", "has compute capability 5.2, and exllamav2 needs 6.0"),
        ((7, 5), [70, 75], "exllamav3", "has compute capability 7.5, and exllamav3 needs 8.0"),
    ],
)
def test_a_gpu_that_is_too_old_is_told_by_its_number(
    capability: tuple[int, int], kernels: list[int], library: str, words: str
) -> None:
    found = capability_words("X", capability, kernels, library)  # type: ignore[arg-type]
    assert found.startswith(words) if words.startswith("the") else words in found
    assert bool(found) == bool(words)


def test_a_machine_without_a_gpu_or_packages_is_told_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    here = (tmp_path,)
    nothing = (tmp_path / "none",)
    monkeypatch.setattr(requirements, "find_spec", lambda _name: None)
    words = missing("exllamav2", devices=nothing)
    assert "no CUDA device" in words
    assert "packages are not installed (torch, exllamav2)" in words
    assert "`pip install 'p2pnode[exllama]'`" in words
    assert "--engine llamacpp" in words
    assert "p2pnode[exllama3]" in missing("exllamav3", devices=here)
    assert "CUDA device" not in missing("exllamav3", devices=here)
    monkeypatch.setattr(requirements, "find_spec", lambda _name: object())
    assert missing("exllamav2", devices=here) == ""
    assert missing("exllamav2", "cpu", devices=nothing) == ""


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"slots": 0}, "slots is 0; it must be from 1 to 64"),
        ({"chunk": 300}, "chunk is 300; it must be a multiple of 256"),
        ({"chunk": 256, "slots": 33}, "at least 264 for 33 slots"),
        ({"cache": "Q5"}, "cache is 'Q5'; it must be FP16 or Q8 or Q6 or Q4"),
        ({"library": "exllama"}, "library is 'exllama'"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(wrong: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ExllamaConfig(**wrong)  # type: ignore[arg-type]


def test_a_cache_has_pages_for_all_slots_and_one_more_each() -> None:
    config = ChildConfig(
        library="exllamav2", device="cpu", model="x", n_ctx=257, slots=3, chunk=256, cache="Q4", threads=1
    )
    assert config.pages == 3 * (2 + 1)
    assert ChildConfig.of_plain(json.loads(json.dumps(config.plain()))) == config


def test_the_command_line_names_the_same_caches() -> None:
    assert KV_CACHES == CACHE_TYPES
