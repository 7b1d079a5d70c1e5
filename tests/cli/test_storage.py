"""``p2pnode storage``: what is kept by hand, what is shown, and what goes wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from p2pnode.config import load_config
from p2pnode.node.datadir import DataDir
from p2pnode.protocols.s5.entries import pointer_to
from p2pnode.protocols.s5.ids import BlobId
from p2pnode.storage.local.store import LocalStore
from p2pnode.storage.node_store import LOCAL_OWNER, quotas_of
from tests.cli.support import Ran, run
from tests.storage.store_conformance import ALICE, Writer

DATA = b"Hello, world!"
ID = "blobb53pfycyq6lwes6ogtnjpmhsc75nucnizzye34dyu2cmnz7s7n6mnbu"
ID_DATA = BlobId.of(DATA)
ABSENT = BlobId.of(b"another").text()
DAY_S = 86_400


def storage(data_dir: Path, *words: object, stdin: str | bytes = "") -> Ran:
    return run("storage", *words, "--data-dir", data_dir, stdin=stdin)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "hello"
    path.write_bytes(DATA)
    return path


@pytest.fixture
def data_dir(tmp_path: Path, file: Path) -> Path:
    """With one blob."""
    assert storage(tmp_path / "data", "put", file).code == 0
    return tmp_path / "data"


# ---- put and get


def test_what_is_put_is_named_by_its_content_id(tmp_path: Path, file: Path) -> None:
    ran = storage(tmp_path / "data", "put", file)
    assert (ran.code, ran.out, ran.err) == (0, ID + "\n", "")
    stored = storage(tmp_path / "data", "put", "-", "--json", stdin=DATA).named("stored")
    assert [(each["id"], each["size"]) for each in stored] == [(ID, len(DATA))]


@pytest.mark.parametrize(
    "name",
    [ID_DATA.text(base) for base in "zfbu"] + [ID_DATA.legacy_text(base) for base in "zfbu"],  # type: ignore[arg-type]
)
def test_it_is_got_by_its_id_in_any_dialect_and_base(data_dir: Path, tmp_path: Path, name: str) -> None:
    assert storage(data_dir, "get", name).out == DATA.decode()
    ran = storage(data_dir, "get", name, tmp_path / "copy", "--json")
    assert ran.named("got") == [{"event": "got", "id": ID, "size": len(DATA), "path": str(tmp_path / "copy")}]
    assert (tmp_path / "copy").read_bytes() == DATA


def test_bytes_that_are_no_text_go_through_pipes_unchanged(tmp_path: Path) -> None:
    data = bytes(range(256)) * 2000
    name = storage(tmp_path, "put", "-", stdin=data).out.strip()
    assert storage(tmp_path, "get", name, tmp_path / "copy").code == 0
    assert (tmp_path / "copy").read_bytes() == data


# ---- show


def test_ls_shows_blobs_leases_and_entries(data_dir: Path) -> None:
    async def more() -> None:
        store = LocalStore.open(DataDir(data_dir).store)
        await store.pin(ID_DATA.hash, owner=ALICE)
        await store.set(Writer().entry(4, pointer_to(ID_DATA.hash)), owner=ALICE)
        store.close()

    trio.run(more)
    events = storage(data_dir, "ls", "--json").events
    key = Writer().key.hex()
    blob, entry = events
    assert (blob["event"], blob["id"], blob["size"], blob["entries"]) == ("blob", ID, len(DATA), [key])
    assert {lease["owner"]: lease["pointed"] for lease in blob["leases"]} == {
        LOCAL_OWNER.hex(): False, ALICE.hex(): True,
    }  # fmt: skip
    assert (entry["event"], entry["key"], entry["revision"]) == ("entry", key, 4)
    summary = storage(data_dir, "ls")
    assert summary.out.startswith("1 blob (13 bytes) and 1 registry entry\n")
    assert all(len(line) <= 80 for line in summary.out.splitlines())
    assert ID not in summary.out
    assert "--all lists each" in summary.err
    shown = storage(data_dir, "ls", "--all").out
    for words in (ID, "local until 2", ALICE.hex()[:8] + "… by entry", key):
        assert words in shown


def test_stats_show_what_counts_for_whom(data_dir: Path) -> None:
    store, owner = storage(data_dir, "stats", "--json").events
    assert (store["blobs"], store["bytes"], store["charged"], store["leases"]) == (1, 13, 4096, 1)
    assert store["bytes_max"] == 10 << 30
    assert owner == {
        "event": "owner", "owner": LOCAL_OWNER.hex(), "charged": 4096, "leases": 1, "keys": 0
    }  # fmt: skip
    shown = storage(data_dir, "stats").out
    assert "4 KiB of 10 GiB" in shown
    assert "local" in shown


@pytest.mark.parametrize("command", ["ls", "stats", "gc"])
@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_where_nothing_is_stored_nothing_is_made(
    tmp_path: Path, command: str, flags: tuple[str, ...]
) -> None:
    ran = storage(tmp_path / "data", command, *flags)
    assert (ran.code, ran.out) == (0, "" if flags else "nothing is stored here yet\n")
    assert not (tmp_path / "data").exists()


# ---- keep and sweep


def test_pin_makes_a_lease_longer_and_unpin_ends_it(data_dir: Path) -> None:
    def until() -> list[int]:
        return [lease["until"] for lease in storage(data_dir, "ls", "--json").events[0]["leases"]]

    (first,) = until()
    pinned = storage(data_dir, "pin", ID, "--days", "90", "--json").named("pinned")[0]
    assert abs(pinned["until"] - first - 59 * DAY_S) < 60
    assert abs(until()[0] - pinned["until"]) < 60
    storage(data_dir, "pin", ID, "--days", "1")
    assert abs(until()[0] - pinned["until"]) < 60
    assert storage(data_dir, "unpin", ID, "--json").named("unpinned")
    assert until() == []


def test_gc_sweeps_what_a_crash_left_and_keeps_the_rest(data_dir: Path) -> None:
    orphan = DataDir(data_dir).store / "blobs" / "ab" / "cd" / ("abcd" + "0" * 60)
    orphan.parent.mkdir(parents=True)
    orphan.write_bytes(b"left behind")
    ran = storage(data_dir, "gc", "--json")
    assert ran.code == 0
    assert ran.events[-1] == {
        "event": "collected", "leases": 0, "blobs": 0, "bytes": 0, "files": 1, "lost": 0
    }  # fmt: skip
    assert ran.named("gc.progress")[-1]["folders"] == 65_536
    assert not orphan.exists()
    assert storage(data_dir, "get", ID).code == 0
    assert "swept 0 blobs" in storage(data_dir, "gc").err


def test_gc_tells_what_is_lost(data_dir: Path) -> None:
    _file_of(data_dir).unlink()
    ran = storage(data_dir, "gc")
    assert ran.code == 0
    assert "LOST: the files of 1 blobs" in ran.err


# ---- what goes wrong


def _file_of(data_dir: Path) -> Path:
    (path,) = (path for path in (DataDir(data_dir).store / "blobs").rglob("*") if path.is_file())
    return path


@pytest.mark.parametrize("command", ["get", "pin", "unpin"])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("blob", "no text of base 'b'"),
        (ID[:-4], "no text of base 'b'"),
        (ID_DATA.text("f")[:-20], "is it cut?"),
        ("x" + ID[1:], "begins with z, f, b or u"),
        (BlobId.of(DATA).text("f").replace("5b821e", "5b8212"), "SHA-256"),
        ("/etc/passwd", "begins with"),
        (BlobId(ID_DATA.hash, 14).text(), "the blob with this hash has 13"),
    ],
)
def test_an_id_that_makes_no_sense_is_a_usage_error(
    data_dir: Path, command: str, name: str, words: str
) -> None:
    ran = storage(data_dir, command, name, "--json", *(["copy"] if command == "get" else []))
    assert ran.code == 2
    assert ran.events[-1]["error"] == "UsageError"
    assert words in ran.events[-1]["message"]


@pytest.mark.parametrize("command", ["get", "pin", "unpin"])
@pytest.mark.parametrize("there", [False, True])
def test_a_blob_that_is_not_here_is_told_with_where_to_look(
    tmp_path: Path, data_dir: Path, command: str, there: bool
) -> None:
    ran = storage(data_dir if there else tmp_path / "empty", command, ABSENT)
    assert (ran.code, ran.out) == (1, "")
    assert f"{ABSENT} is not in the store" in ran.err
    assert "p2pnode storage ls" in ran.err
    assert not (tmp_path / "empty").exists()


def test_a_blob_that_is_damaged_is_not_handed_out(data_dir: Path, tmp_path: Path) -> None:
    _file_of(data_dir).write_bytes(b"Hello, w0rld!")
    ran = storage(data_dir, "get", ID, tmp_path / "copy")
    assert ran.code == 1
    assert "damaged" in ran.err
    assert not (tmp_path / "copy").exists()


def test_a_full_quota_is_told_with_the_remedy(tmp_path: Path, file: Path) -> None:
    (tmp_path / "data").mkdir()
    for setting, words in (
        ("store_owner_bytes_max = 4000", "raise store_owner_bytes_max"),
        ("store_bytes_max = 4000", "raise store_bytes_max"),
    ):
        (tmp_path / "data" / "config.toml").write_text(setting)
        ran = storage(tmp_path / "data", "put", file)
        assert (ran.code, ran.out) == (1, "")
        assert words in ran.err
    (tmp_path / "data" / "config.toml").write_text("store_bytes_max = 4096")
    assert storage(tmp_path / "data", "put", file).code == 0


def test_files_that_can_not_be_read_or_written_are_named(data_dir: Path, tmp_path: Path) -> None:
    for words in (
        ("put", tmp_path / "nothing here"), ("put", tmp_path),
        ("get", ID, tmp_path / "no folder" / "copy"), ("get", ID, tmp_path),
    ):  # fmt: skip
        ran = storage(data_dir, *words)
        assert ran.code == 2, ran
        assert any(said in ran.err for said in (f"{words[-1]} can't be", "make it first", "is a folder"))
    ran = storage(data_dir, "get", ID, "--json")
    assert (ran.code, ran.events[-1]["error"]) == (2, "UsageError")


def test_a_store_that_can_not_be_opened_is_an_error(data_dir: Path) -> None:
    (DataDir(data_dir).store / "index.sqlite").unlink()
    ran = storage(data_dir, "ls")
    assert ran.code == 1
    assert "restore the file from your backup" in ran.err


def test_the_configuration_says_how_much_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("store_bytes_max = 1000\nstore_owner_bytes_max = 100")
    quotas = quotas_of(load_config(path, {}))
    assert (quotas.node_bytes, quotas.owner_bytes, quotas.owner_keys) == (1000, 100, 256)
