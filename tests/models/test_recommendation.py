"""Which models fit a machine, by how much others don't, and in which order they are named."""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.ids import ModelId
from p2pnode.models.calibration import Timing
from p2pnode.models.context import ModelMemory, memory_at_hand, memory_of
from p2pnode.models.gguf import read_header
from p2pnode.models.hardware import machine_here
from p2pnode.models.llamacpp import calibrate
from p2pnode.models.local_models import LocalModel, remember
from p2pnode.models.quality import Quality, TaskResult
from p2pnode.models.recommendation import Machine, Option, expected_memory, recommend

GB = 10**9


def machine(memory: int = 16 * GB, cores: int = 4, disk: int = 500 * GB, **more: Any) -> Machine:
    return Machine(memory=memory, cores=cores, disk=disk, **more)


def option(name: str, size: int, **more: Any) -> Option:
    model = ModelId(name.encode().ljust(32, b"."))
    return Option(name=name, model=model, size_bytes=size, n_ctx=32_768, **more)


def quality(of: Option, right: int, **more: Any) -> Quality:
    values: dict[str, Any] = {"task_set": "ab" * 32, "seed": 0, "engine": "x", "measured": "2026-11-30"}
    tasks = (TaskResult(task="all-of-it", right=right, items=100),)
    return Quality(**{**values, "model": of.model, "tasks": tasks, **more})


SMALL, MIDDLE, LARGE = option("small", GB // 10), option("middle", 2 * GB), option("large", 40 * GB)


def test_the_larger_of_those_that_fit_goes_first_and_others_follow_with_what_they_lack() -> None:
    found = recommend([SMALL, LARGE, MIDDLE], machine())
    assert [(each.option.name, each.fits) for each in found] == [
        ("middle", True), ("small", True), ("large", False),
    ]  # fmt: skip
    assert found[0].why == "takes 2.7 GB of memory, about 8.0 tokens/s, reckoned from 4 cores"
    assert found[2].why == (
        "takes 48.3 GB of memory, 32.3 GB more than there is; about 0.4 tokens/s, reckoned from 4 cores: "
        "too slow to wait for"
    )


def test_another_quantisation_that_would_fit_is_named() -> None:
    (found,) = recommend([option("m", 8 * GB, quantisation="Q8_0")], machine(memory=8 * GB, cores=8))
    assert not found.fits
    assert found.would_fit == "Q5_K_M"
    assert found.why == "takes 9.9 GB of memory, 1.9 GB more than there is; in Q5_K_M it would fit"
    # What is left at the quantisation that is named does fit, and the one above it doesn't.
    assert expected_memory(8 * GB) - 8 * GB + 8 * GB * 5.7 / 8.5 <= 8 * GB
    assert expected_memory(8 * GB) - 8 * GB + 8 * GB * 6.6 / 8.5 > 8 * GB


def test_what_no_disk_has_room_for_does_not_fit_unless_it_is_here() -> None:
    (found,) = recommend([MIDDLE], machine(disk=GB))
    assert found.why == "takes 2.0 GB of disk, 1.0 GB more than is free"
    assert recommend([option("middle", 2 * GB, is_here=True)], machine(disk=GB))[0].fits


def test_what_no_engine_loads_says_why_and_nothing_of_memory() -> None:
    (found,) = recommend([option("m", 90 * GB, on_gpu=True, unusable="there is no CUDA device")], machine())
    assert found.why == "there is no CUDA device"


def test_a_model_for_a_gpu_is_held_against_the_gpus_memory() -> None:
    of_gpu = option("m", 10 * GB, on_gpu=True)
    assert recommend([of_gpu], machine(memory=GB, gpu_memory=24 * GB))[0].fits
    (found,) = recommend([of_gpu], machine(memory=99 * GB, gpu_memory=8 * GB))
    assert found.why.startswith("takes 12.3 GB of GPU memory, 4.3 GB more than there is")


def test_a_file_that_is_here_says_what_a_context_takes() -> None:
    need = ModelMemory(fixed=GB, per_token=100_000, n_ctx_max=8192)
    here = option("m", GB, need=need, is_here=True)
    short, long = (recommend([here], machine(), n_ctx=n_ctx)[0].memory for n_ctx in (1000, 100_000))
    assert short == need.needed(1000, 1)
    assert long == need.needed(8192, 1)  # it was trained for no more


def test_what_a_list_says_of_memory_counts_for_its_context_and_is_never_less_than_the_files() -> None:
    assert option("m", GB, hint=(3 * GB, 8192)).memory(4096) == 3 * GB
    assert option("m", GB, hint=(3 * GB, 2048)).memory(4096) == expected_memory(GB)
    assert option("m", GB, hint=(1, 8192)).memory(4096) == GB


def test_a_measured_speed_goes_before_a_reckoned_one() -> None:
    (own,) = recommend([option("m", GB, tokens_per_s=2.5)], machine())
    assert (own.fits, own.tokens_per_s) == (False, 2.5)
    assert own.why == "about 2.5 tokens/s, as measured here: too slow to wait for"
    (by_other,) = recommend([option("m", GB)], machine(weights_per_s=8 * GB))
    assert by_other.why.endswith("about 8.0 tokens/s, by what another model does here")


def test_models_for_the_task_go_first() -> None:
    coder = option("coder", GB // 5, tasks=("code",))
    assert [each.option.name for each in recommend([MIDDLE, coder], machine(), task="code")] == [
        "coder", "middle",
    ]  # fmt: skip
    assert recommend([MIDDLE, coder], machine())[0].option.name == "middle"


def test_figures_decide_only_where_all_were_asked_the_same() -> None:
    better = option("small", GB // 10, quality=quality(SMALL, 60))
    worse = option("middle", 2 * GB, quality=quality(MIDDLE, 40))
    assert recommend([worse, better], machine())[0].option == better
    for other in (quality(MIDDLE, 40, task_set="cd" * 32), quality(MIDDLE, 40, seed=1), None):
        incomparable = option("middle", 2 * GB, quality=other)
        assert recommend([incomparable, better], machine())[0].option == incomparable


@given(
    sizes=st.lists(st.integers(1, 200 * GB), max_size=8),
    memory=st.integers(0, 400 * GB),
    disk=st.integers(0, 400 * GB),
    cores=st.integers(1, 64),
    n_ctx=st.integers(1, 200_000),
)
def test_what_fits_fits_and_everything_has_a_reason(
    sizes: list[int], memory: int, disk: int, cores: int, n_ctx: int
) -> None:
    options = [option(f"m{number}", size, quantisation="Q8_0") for number, size in enumerate(sizes)]
    found = recommend(options, machine(memory, cores, disk), n_ctx=n_ctx)
    assert sorted(each.option.name for each in found) == sorted(each.name for each in options)
    assert [each.fits for each in found] == sorted((each.fits for each in found), reverse=True)
    for each in found:
        assert each.why
        if each.fits:
            assert each.memory <= memory
            assert each.option.size_bytes <= disk
            assert not each.would_fit


async def test_the_machine_is_asked(tmp_path: Path) -> None:
    found = await machine_here(tmp_path, tmp_path / "not" / "made")
    assert 0 < found.memory <= 2 * memory_at_hand()
    assert found.cores >= 1
    assert found.disk > 0
    assert found.weights_per_s is None
    assert (await machine_here(tmp_path, tmp_path, memory=5)).memory == 5


def _not_installed(name: str) -> str:
    raise PackageNotFoundError(name)


async def test_a_calibration_here_says_how_fast_weights_are_read(
    tmp_path: Path, smollm: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    remember(tmp_path, smollm)
    timing = Timing(threads=1, batch=32, prefill_s=1.0, decode_s=0.5)
    calibrate.keep_choice(tmp_path, smollm, [timing])
    assert timing.tokens_per_s == 64
    assert (await machine_here(tmp_path, tmp_path)).weights_per_s == 64 * smollm.manifest.size_bytes
    with monkeypatch.context() as patched:
        patched.setattr(calibrate, "version", _not_installed)
        assert (await machine_here(tmp_path, tmp_path)).weights_per_s is None
        assert calibrate.read_choice(tmp_path, smollm) is None
    text = json.loads((tmp_path / calibrate.FILE).read_text())
    (key,) = text["choices"]
    text["choices"] = {key.replace("m1", "m2"): asdict(timing)}
    (tmp_path / calibrate.FILE).write_text(json.dumps(text))
    assert (await machine_here(tmp_path, tmp_path)).weights_per_s is None


def test_what_is_reckoned_of_the_default_model_is_near_what_its_file_says(smollm: LocalModel) -> None:
    """So that a model is not left out before its file is here, and taken afterwards."""
    exact = memory_of(read_header(smollm.weights_path), smollm.manifest.size_bytes).needed(4096, 1)
    assert expected_memory(smollm.manifest.size_bytes) == pytest.approx(exact, rel=0.5)
