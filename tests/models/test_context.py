"""The context of a host follows from its model and memory, and what it takes is known before it is taken."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.errors import ConfigError
from p2pnode.models.context import (
    N_CTX_DEFAULT_MAX,
    N_CTX_LEAST,
    SHARE,
    ModelMemory,
    allocated,
    choose_context,
    memory_at_hand,
    memory_of,
)
from p2pnode.models.gguf import read_header
from p2pnode.models.llamacpp.engine import start_llamacpp
from p2pnode.models.local_models import LocalModel
from tests.models.gguf_files import gguf, integers, string, u32

GB = 10**9
SMALL = ModelMemory(fixed=GB // 5, per_token=23_040, n_ctx_max=8192)
LARGE = ModelMemory(fixed=5 * GB, per_token=131_072, n_ctx_max=131_072)
"""Eight thousand million parameters in four bits, trained for 128 Ki tokens."""


def test_a_default_is_all_that_the_model_was_trained_for_where_memory_allows() -> None:
    choice = choose_context(SMALL, asked=0, slots=4, at_hand=16 * GB)
    assert (choice.n_ctx, choice.why) == (8192, "model")
    assert choice.memory == SMALL.fixed + 23_040 * 4 * allocated(8192)


def test_a_default_takes_half_of_the_memory_at_hand_at_most() -> None:
    choice = choose_context(LARGE, asked=0, slots=4, at_hand=16 * GB)
    assert choice.why == "memory"
    assert N_CTX_LEAST <= choice.n_ctx < 8192
    assert choice.memory <= 16 * GB * SHARE < LARGE.needed(choice.n_ctx + 256, 4)


def test_a_default_has_an_end_that_only_who_asks_goes_beyond() -> None:
    choice = choose_context(LARGE, asked=0, slots=1, at_hand=100 * GB)
    assert (choice.n_ctx, choice.why) == (N_CTX_DEFAULT_MAX, "default")
    asked = choose_context(LARGE, asked=131_072, slots=1, at_hand=100 * GB)
    assert (asked.n_ctx, asked.why) == (131_072, "asked")


def test_more_than_the_model_was_trained_for_is_cut_and_said() -> None:
    choice = choose_context(SMALL, asked=20_000, slots=1, at_hand=16 * GB)
    assert (choice.n_ctx, choice.why) == (8192, "model")


def test_what_was_asked_and_can_not_fit_is_refused_with_what_does() -> None:
    with pytest.raises(ConfigError, match=r"takes 73\.9 GB with the model, and 30\.0 GB") as refused:
        choose_context(LARGE, asked=131_072, slots=4, at_hand=30 * GB)
    most = int(str(refused.value).partition("--n-ctx ")[2].split()[0])
    assert choose_context(LARGE, asked=most, slots=4, at_hand=30 * GB).n_ctx == most
    with pytest.raises(ConfigError):
        choose_context(LARGE, asked=most + 256, slots=4, at_hand=30 * GB)


@pytest.mark.parametrize(
    ("at_hand", "slots", "remedy"),
    [(5 * GB + 100_000_000, 4, "use --slots 1 with --n-ctx"), (4 * GB, 1, "choose a smaller model")],
)
def test_a_model_that_leaves_no_room_for_a_context_is_refused(at_hand: int, slots: int, remedy: str) -> None:
    with pytest.raises(ConfigError, match=remedy):
        choose_context(LARGE, asked=0, slots=slots, at_hand=at_hand)


@given(
    model=st.builds(
        ModelMemory,
        fixed=st.integers(0, 200 * GB),
        per_token=st.integers(0, 1 << 24),
        n_ctx_max=st.integers(1, 1 << 21),
    ),
    asked=st.just(0) | st.integers(256, 1 << 20),
    slots=st.integers(1, 64),
    at_hand=st.integers(0, 1 << 42),
)
def test_whatever_is_chosen_fits_and_whatever_is_refused_does_not(
    model: ModelMemory, asked: int, slots: int, at_hand: int
) -> None:
    try:
        choice = choose_context(model, asked=asked, slots=slots, at_hand=at_hand)
    except ConfigError:
        least = min(asked or N_CTX_LEAST, model.n_ctx_max)
        assert model.needed(least, slots) > at_hand
    else:
        assert choice.memory == model.needed(choice.n_ctx, slots) <= at_hand
        assert 1 <= choice.n_ctx <= model.n_ctx_max
        assert not asked or choice.n_ctx == min(asked, model.n_ctx_max)


# ---- of files


def test_the_formula_is_that_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    counts = {
        "context_length": 4096,
        "block_count": 32,
        "embedding_length": 4096,
        "attention.head_count": 32,
        "attention.head_count_kv": 8,
        "feed_forward_length": 14_336,
    }
    pairs = {f"llama.{key}": u32(count) for key, count in counts.items()}
    path.write_bytes(gguf({"general.architecture": string("llama"), **pairs}))
    memory = memory_of(read_header(path))
    assert (memory.per_token, memory.n_ctx_max) == (32 * 8 * (128 + 128) * 2, 4096)
    assert memory.fixed > path.stat().st_size


def test_heads_and_widths_that_differ_by_layer_are_added_up(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    pairs = {
        "general.architecture": string("odd"),
        "odd.context_length": u32(4096),
        "odd.block_count": u32(3),
        "odd.embedding_length": u32(512),
        "odd.attention.head_count": u32(8),
        "odd.attention.head_count_kv": integers([2, 0, 1]),
        "odd.attention.key_length": u32(96),
        "odd.attention.value_length": u32(32),
    }
    path.write_bytes(gguf(pairs))
    assert memory_of(read_header(path)).per_token == 3 * (96 + 32) * 2


def test_a_file_that_does_not_say_how_large_its_model_is_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf({"general.architecture": string("llama"), "llama.context_length": u32(9)}))
    with pytest.raises(ConfigError, match="block_count"):
        memory_of(read_header(path))


async def test_what_llama_cpp_takes_is_what_was_reckoned(smollm: LocalModel) -> None:
    memory = memory_of(read_header(smollm.path))
    assert memory.per_token == 23_040
    took = {}
    for n_ctx, slots in ((512, 1), (2048, 4)):
        child = await start_llamacpp(
            model=smollm.path, n_ctx=n_ctx, slots=slots, threads=1, runtime_dir=None, deadline_s=60
        )
        try:
            took[n_ctx * slots] = _resident(child.pid)
        finally:
            await child.kill()
    few, many = sorted(took)
    # A thousandth: the heap has pages of its own.
    assert took[many] - took[few] == pytest.approx(memory.per_token * (many - few), rel=0.02)
    assert 0.7 * took[many] < memory.fixed + memory.per_token * many < 1.3 * took[many]


def _resident(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096


# ---- of the machine


def test_a_containers_limit_counts_and_pages_of_files_that_nobody_uses_do_not(tmp_path: Path) -> None:
    for name, text in (
        ("memory.max", "1000\n"),
        ("memory.current", "900\n"),
        ("memory.stat", "anon 500\ninactive_file 300\n"),
    ):
        (tmp_path / name).write_text(text)
    assert memory_at_hand(tmp_path) == 400
    (tmp_path / "memory.max").write_text("max\n")
    unlimited = memory_at_hand(tmp_path)
    assert unlimited > 1000
    assert memory_at_hand(tmp_path / "none") > 1000
