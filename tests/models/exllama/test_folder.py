"""The folder for tests on a GPU: its ids are those of the GGUF, and ExLlamaV2 finds all that it needs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import trio

from p2pnode.models.exllama.loading import check_architecture, tokenizer_of
from p2pnode.models.exllama.memory import ModelSizes
from p2pnode.models.exllama.settings import Library, LoadError
from p2pnode.models.local_models import LocalModel, describe_at
from tests.models.exllama.make_folder import make_folder
from tests.models.exllama.support import needs_exllama

pytestmark = needs_exllama
TEXTS = (
    "Hi",
    "  two blanks ",
    "\n\nlines\n",
    "你好 🙂",
    "if x < 3 | y > 2: pass",
    "\ttab",
    "1234 in 2026",
    "<|im_end|>",
)


@pytest.fixture(scope="module")
def folder(smollm: LocalModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(smollm.path, tmp_path_factory.mktemp("folder"))


async def test_it_is_a_model_of_its_own_with_the_same_tokens(smollm: LocalModel, folder: Path) -> None:
    model = await trio.to_thread.run_sync(describe_at, "folder", folder)
    assert model.manifest.format == "safetensors"
    assert model.model_id != smollm.model_id
    ours, ends = tokenizer_of(folder)
    theirs, their_ends = tokenizer_of(smollm.path)
    assert ends == their_ends
    assert ours.vocabulary.pieces == theirs.vocabulary.pieces
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text), text


def test_its_sizes_are_read_and_its_architecture_is_known(folder: Path) -> None:
    check_architecture(folder, "exllamav2")
    sizes = ModelSizes.of_folder(folder)
    assert sizes.parameters == pytest.approx(134_500_000, rel=0.01)
    assert sizes.weights == pytest.approx(2 * sizes.parameters, rel=0.01)
    assert (sizes.layers, sizes.kv_heads, sizes.head_dim) == (30, 3, 64)


@pytest.mark.parametrize("library", ["exllamav2", "exllamav3"])
@pytest.mark.parametrize(
    ("config", "words", "advice"),
    [
        ('{"architectures": ["NewForCausalLM"]}', "doesn't know the architecture New", "It knows "),
        ('{"architectures": []}', "names no architecture", "models verify"),
        ("{}", "names no architecture", "models verify"),
    ],
)
def test_an_architecture_that_the_library_does_not_know_is_refused_with_those_it_knows(
    tmp_path: Path, library: Library, config: str, words: str, advice: str
) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(LoadError, match=words) as refused:
        check_architecture(tmp_path, library)
    assert advice in refused.value.advice
    assert ("LlamaForCausalLM" in refused.value.advice) == ("New" in config)


def test_the_library_reads_its_config_and_finds_each_tensor(folder: Path) -> None:
    """In a process of its own, with the stand-in for the extension: its own code looks for what it needs."""
    program = (
        "import sys\n"
        "from p2pnode.models.exllama import cpu\n"
        "cpu.install_extension()\n"
        "import exllamav2\n"
        "config = exllamav2.ExLlamaV2Config(sys.argv[1])\n"
        "print(config.architecture, config.num_hidden_layers, config.head_dim, len(config.tensor_file_map))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "LlamaForCausalLM 30 64 272"
