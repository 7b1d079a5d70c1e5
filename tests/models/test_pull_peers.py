"""Files from peers: a liar costs one chunk, the dead are done without, and what came is kept."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import trio

from p2pnode.errors import ConfigError, ProtocolError, StorageError, StoreRefusedError, UnreachableError
from p2pnode.models.catalogue_entry import CatalogueEntry
from p2pnode.models.local_models import describe_at, installed, sha256_of
from p2pnode.models.manifest import CHUNK_BYTES, FileHashes, ModelFile
from p2pnode.models.pull.peers import FilePeer, pull_from_peers
from p2pnode.models.pull.pull import PullConfig, pull
from p2pnode.models.pull.target import Target
from tests.models import model_folders

CHUNKS = 12
CONTENT = b"".join(bytes([number]) * CHUNK_BYTES for number in range(CHUNKS)) + b"the rest"
CONFIG = PullConfig(in_thread=False)


def chunk_list(data: bytes) -> bytes:
    pieces = (data[at : at + CHUNK_BYTES] for at in range(0, len(data), CHUNK_BYTES))
    return b"".join(hashlib.sha256(piece).digest() for piece in pieces)


def public(*contents: bytes) -> dict[bytes, bytes]:
    """What an honest peer gives, by hash."""
    given: dict[bytes, bytes] = {}
    for data in contents:
        pieces = [data[at : at + CHUNK_BYTES] for at in range(0, len(data), CHUNK_BYTES)]
        given |= {hashlib.sha256(piece).digest(): piece for piece in [*pieces, chunk_list(data)]}
    return given


@dataclass
class Peer:
    """A peer with these blobs, each of which takes ``takes_s``."""

    name: str
    blobs: dict[bytes, bytes]
    takes_s: float = 1.0
    lies_after: int = 1 << 30
    dies_after: int = 1 << 30
    silent_after: int = 1 << 30
    busy: int = 0
    """So many questions are refused first."""
    asked: list[bytes] = field(default_factory=list)
    gave: int = 0

    async def fetch(self, sha256: bytes) -> bytes:
        self.asked.append(sha256)
        number = len(self.asked)
        await trio.sleep(self.takes_s)
        if number <= self.busy:
            raise StoreRefusedError("rate_limited", "busy", retry_after_s=2.0)
        if number > self.silent_after:
            await trio.sleep_forever()
        if number > self.dies_after:
            raise UnreachableError(f"{self.name} is gone")
        if number > self.lies_after:
            raise ProtocolError(f"{self.name} sent other bytes than the hash says")
        if sha256 not in self.blobs:
            raise StoreRefusedError("not_found", "no such blob")
        self.gave += 1
        return self.blobs[sha256]


def target_at(tmp_path: Path, data: bytes = CONTENT, **change: str) -> Target:
    hashes = FileHashes(
        sha256=hashlib.sha256(data).hexdigest(), chunks=hashlib.sha256(chunk_list(data)).hexdigest()
    )
    file = ModelFile(path="model.gguf", size_bytes=len(data), sha256=hashes.sha256, chunks=hashes.chunks)
    return Target(name="big", path=tmp_path / "big.gguf", file=replace(file, **change))  # type: ignore[arg-type]


def whole(tmp_path: Path) -> bool:
    return {path.name for path in tmp_path.iterdir()} == {"big.gguf"} and (
        (tmp_path / "big.gguf").read_bytes() == CONTENT
    )


async def test_several_peers_give_it_at_once(tmp_path: Path, autojump_clock: object) -> None:
    peers = [Peer(name, public(CONTENT)) for name in "abc"]
    began = trio.current_time()
    await pull_from_peers(peers, [target_at(tmp_path)], CONFIG)
    assert whole(tmp_path)
    # 13 chunks from three peers, two at a time each: three rounds, and one for the list.
    assert trio.current_time() - began == pytest.approx(4.0)
    assert all(each.gave >= 4 for each in peers)
    assert sum(each.gave for each in peers) == CHUNKS + 2


async def test_one_that_lies_costs_its_chunks_and_one_that_dies_is_done_without(
    tmp_path: Path, autojump_clock: object
) -> None:
    liar, dying = Peer("liar", public(CONTENT), lies_after=3), Peer("dying", public(CONTENT), dies_after=4)
    honest = Peer("honest", public(CONTENT))
    progress: list[int] = []
    target = replace(target_at(tmp_path), progress=lambda done, _total: progress.append(done))
    await pull_from_peers([liar, dying, honest], [target], CONFIG)
    assert whole(tmp_path)
    assert len(liar.asked) <= 3 + 2  # two were under way when it lied
    assert dying.gave == 4
    asked = liar.asked + dying.asked + honest.asked
    assert len(asked) <= CHUNKS + 2 + 2 + CONFIG.attempts + 1  # nothing that was right was asked for twice
    assert progress == sorted(progress)
    assert progress[-1] == len(CONTENT)


async def test_one_that_falls_silent_is_not_waited_for_without_end(
    tmp_path: Path, autojump_clock: object
) -> None:
    silent, honest = Peer("silent", public(CONTENT), silent_after=1), Peer("honest", public(CONTENT))
    began = trio.current_time()
    await pull_from_peers([silent, honest], [target_at(tmp_path)], CONFIG)
    assert whole(tmp_path)
    assert trio.current_time() - began < 2 * CONFIG.stall_s


async def test_one_that_is_busy_is_asked_again(tmp_path: Path, autojump_clock: object) -> None:
    await pull_from_peers([Peer("busy", public(CONTENT), busy=3)], [target_at(tmp_path)], CONFIG)
    assert whole(tmp_path)


async def test_what_came_is_kept_and_checked_when_it_goes_on(tmp_path: Path, autojump_clock: object) -> None:
    dying = Peer("dying", public(CONTENT), dies_after=6)
    with pytest.raises(ConfigError, match=r"5242880 of \d+ bytes of model\.gguf are here.*where it stopped"):
        await pull_from_peers([dying], [target_at(tmp_path)], CONFIG)
    assert not (tmp_path / "big.gguf").exists()
    left = tmp_path / "big.gguf.peers"
    data = bytearray(left.read_bytes())
    data[CHUNK_BYTES] ^= 1  # a bit of the disk that flipped
    left.write_bytes(data)
    honest = Peer("honest", public(CONTENT))
    await pull_from_peers([honest], [target_at(tmp_path)], CONFIG)
    assert whole(tmp_path)
    assert honest.gave == 1 + CHUNKS + 1 - 5 + 1


async def test_nobody_who_has_it_is_told_in_words(tmp_path: Path, autojump_clock: object) -> None:
    with pytest.raises(ConfigError, match=r"no peer shares it.*without --from-peers"):
        await pull_from_peers([], [target_at(tmp_path)], CONFIG)
    with pytest.raises(ConfigError, match="2 peers asked, and 0 of"):
        await pull_from_peers([Peer("a", {}), Peer("b", {})], [target_at(tmp_path)], CONFIG)


async def test_a_manifest_that_contradicts_itself_is_no_peers_fault(
    tmp_path: Path, autojump_clock: object
) -> None:
    peer = Peer("honest", public(CONTENT, b"other"))
    wrong = target_at(tmp_path, chunks=hashlib.sha256(chunk_list(b"other")).hexdigest())
    with pytest.raises(ConfigError, match="contradicts itself"):
        await pull_from_peers([peer], [wrong], CONFIG)
    with pytest.raises(ConfigError, match="not what its manifest says"):
        await pull_from_peers([peer], [target_at(tmp_path, sha256="0" * 64)], CONFIG)
    assert not (tmp_path / "big.gguf").exists()


async def test_a_full_disk_under_way_is_the_owners_error(
    tmp_path: Path, autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int, _data: bytes, _offset: int) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.pwrite", full)
    with pytest.raises(OSError, match="No space left"):
        await pull_from_peers([Peer("honest", public(CONTENT))], [target_at(tmp_path)], CONFIG)


# as a source of `pull`


@pytest.fixture
def folder(tmp_path: Path) -> tuple[CatalogueEntry, Callable[[], list[FilePeer]]]:
    content = model_folders.FILES | {"model.safetensors": model_folders.safetensors(3 * CHUNK_BYTES)}
    made = describe_at("tiny", model_folders.write(tmp_path / "made", content))
    entry = CatalogueEntry(name="tiny", licence="MIT", manifest=made.manifest)
    return entry, lambda: [Peer(name, public(*content.values()), takes_s=0.0) for name in "ab"]


async def test_a_folder_is_pulled_from_peers_and_used(
    tmp_path: Path, folder: tuple[CatalogueEntry, Callable[[], list[FilePeer]]]
) -> None:
    entry, peers = folder
    models = tmp_path / "models"
    model = await pull(entry, models, peers=peers())
    assert installed(models) == [model]
    hashes = {path: sha256_of(place) for path, place in model.paths.items()}
    assert hashes == {file.path: file.sha256 for file in model.manifest.files}
    with pytest.raises(ConfigError, match="has no source: pull it with --from-peers"):
        await pull(entry, tmp_path / "other")


async def test_a_host_without_room_says_so_before_it_begins(
    tmp_path: Path, folder: tuple[CatalogueEntry, Callable[[], list[FilePeer]]]
) -> None:
    entry, peers = folder
    asked = peers()
    config = PullConfig(free_bytes=lambda _directory: 2 << 20)
    with pytest.raises(StorageError, match=r"needs 20 MiB .* has 2 MiB free: 18 MiB are missing"):
        await pull(entry, tmp_path / "models", config=config, peers=asked)
    assert [each.asked for each in asked] == [[], []]  # type: ignore[attr-defined]
