"""The data dir: private, locked by one node, known by its place, its files written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from p2pnode.errors import ConfigError
from p2pnode.files import read_secret_or_none, read_text_or_none, write_atomic, write_private
from p2pnode.ids import PeerId
from p2pnode.node.datadir import INSTANCE_BYTES, STARTS_MAX, DataDir
from p2pnode.node.keys import load_or_create_seed
from p2pnode.payments.journal.journal import Journal
from p2pnode.storage.key_file import save_storage_key
from p2pnode.storage.local.store import LocalStore

PEER = PeerId("12D3KooWPQY1zLBudZbUUReo9sgqqMXnFBx4mB7xZmBkk1tZAyZi")


@pytest.fixture
def data(tmp_path: Path) -> DataDir:
    made = DataDir(tmp_path / "data")
    made.prepare()
    return made


def test_it_is_made_for_its_owner_alone(data: DataDir) -> None:
    assert stat.S_IMODE(data.root.stat().st_mode) == 0o700
    data.prepare()  # again is fine


@pytest.fixture
def no_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_folder_that_was_there_and_its_secrets_are_closed_to_others(tmp_path: Path, no_umask: None) -> None:
    data = DataDir(tmp_path / "data")
    for folder in (data.root, data.models, data.store):
        folder.mkdir(mode=0o777)
    data.config.write_text("slots = 2")
    data.peer_key.write_text("00" * 32)
    with capture_logs() as logs:
        data.prepare()
    assert [mode_of(each) for each in (data.root, data.models, data.store)] == [0o700] * 3
    assert mode_of(data.peer_key) == 0o600
    assert mode_of(data.config) == 0o666  # no secret, and nobody comes by any more
    assert [each["path"] for each in logs] == [str(data.root), str(data.peer_key)]
    assert "make another" in logs[1]["remedy"]
    with capture_logs() as logs:
        data.prepare()
    assert logs == []


def test_what_commands_leave_in_a_folder_does_not_keep_it_open(tmp_path: Path, no_umask: None) -> None:
    data = DataDir(tmp_path / "data")
    for folder in (data.root, data.launch):
        folder.mkdir(mode=0o777)
    for path in (data.blocked, data.gateway_json, data.quality, data.root / "service.log"):
        path.touch()
    data.prepare()
    assert mode_of(data.root) == 0o700


def test_an_empty_folder_that_its_user_made_is_closed_without_a_word(tmp_path: Path, no_umask: None) -> None:
    data = DataDir(tmp_path / "data")
    data.root.mkdir(mode=0o755)
    with capture_logs() as logs:
        data.prepare()
    assert (mode_of(data.root), mode_of(data.models), logs) == (0o700, 0o700, [])


@pytest.mark.parametrize(("mode", "taken"), [(0o777, False), (0o1777, False), (0o755, True), (0o775, True)])
def test_a_folder_with_other_things_is_left_as_it_is_and_refused_where_anybody_may_write(
    tmp_path: Path, no_umask: None, mode: int, taken: bool
) -> None:
    data = DataDir(tmp_path / "home")
    data.root.mkdir()
    (data.root / "letters.txt").write_text("dear")
    data.root.chmod(mode)
    if taken:
        data.prepare()
        assert mode_of(data.models) == 0o700
    else:
        with pytest.raises(ConfigError, match="folder of its own with --data-dir"):
            data.prepare()
        assert not data.models.exists()
    assert mode_of(data.root) == mode


def test_what_a_node_keeps_is_its_owners_alone_whatever_the_umask(tmp_path: Path, no_umask: None) -> None:
    data = DataDir(tmp_path / "data")
    data.prepare()
    load_or_create_seed(data.peer_key)
    save_storage_key(data, bytes(16))
    Journal.open(data.journal).close()
    LocalStore.open(data.store).close()
    folders = [path for path in data.root.rglob("*") if path.is_dir()]
    assert {mode_of(path) for path in (data.root, *folders)} == {0o700}
    assert {mode_of(path) for path in data.secrets if path.exists()} == {0o600}


def test_a_secret_that_others_could_read_is_closed_as_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "storage.key"
    path.write_text("00" * 32)
    path.chmod(0o644)
    with capture_logs() as logs:
        assert read_secret_or_none(path) == "00" * 32
    assert (mode_of(path), [each["event"] for each in logs]) == (0o600, ["private.was_open"])
    assert read_secret_or_none(tmp_path / "none") is None


def test_one_node_holds_the_lock_and_another_is_told_its_pid(data: DataDir) -> None:
    assert not data.is_locked()
    with data.locked():
        assert data.is_locked()
        with (
            pytest.raises(ConfigError, match=rf"another node runs on .* \(pid {os.getpid()}\)"),
            data.locked(),
        ):
            pass
    assert not data.is_locked()
    with data.locked():
        pass


def test_node_json_counts_only_while_the_lock_is_held(data: DataDir) -> None:
    data.write_node_json(PEER, ["/ip4/127.0.0.1/tcp/1"])
    assert data.running_node() is None
    with data.locked():
        running = data.running_node()
        assert running is not None
        assert (running.peer_id, running.pid) == (PEER, os.getpid())
        data.node_json.write_text("{")
        assert data.running_node() is None
        data.node_json.write_text('{"peer_id": 1}')
        assert data.running_node() is None


def test_a_moved_dir_is_refused_until_it_is_accepted_with_moved(data: DataDir) -> None:
    data.check_place()
    data.check_place()
    place = json.loads(data.place.read_text())
    data.place.write_text(json.dumps({**place, "inode": place["inode"] + 1}))
    for _ in range(2):
        with pytest.raises(ConfigError, match="copied, moved or restored"):
            data.check_place()
    data.check_place(moved=True)
    data.check_place()


def test_a_copy_is_refused_even_where_its_folder_has_the_same_inode_on_another_disk(data: DataDir) -> None:
    data.check_place()
    place = json.loads(data.place.read_text())
    data.place.write_text(json.dumps({**place, "file_inode": place["file_inode"] + 1}))
    with pytest.raises(ConfigError, match="copied, moved or restored"):
        data.check_place()


def test_a_place_of_an_earlier_version_opens_whatever_number_the_disk_has_now(data: DataDir) -> None:
    here = data.root.stat()
    data.place.write_text(json.dumps({"device": here.st_dev + 1, "inode": here.st_ino}))
    data.check_place()
    assert set(json.loads(data.place.read_text())) == {"inode", "file_inode"}
    data.check_place()
    data.place.write_text(json.dumps({"device": here.st_dev, "inode": here.st_ino + 1}))
    with pytest.raises(ConfigError, match="copied, moved or restored"):
        data.check_place()


def test_the_instances_of_the_last_starts_are_kept_newest_last(data: DataDir) -> None:
    assert data.known_starts() == ()
    drawn = [number.to_bytes(INSTANCE_BYTES, "big") for number in range(STARTS_MAX + 2)]
    assert data.new_start(lambda _count: drawn[0]) == (drawn[0],)
    data.starts.write_text(json.dumps([each.hex() for each in drawn[:-1]]))
    assert data.new_start(lambda _count: drawn[-1]) == tuple(drawn[2:])
    assert data.known_starts() == tuple(drawn[2:])


@pytest.mark.parametrize("text", ["", "{", "7", "[1]", '["xy"]', "[[]]"])
def test_a_damaged_list_of_starts_begins_anew(data: DataDir, text: str) -> None:
    data.starts.write_text(text)
    assert data.known_starts() == ()
    assert len(data.new_start()) == 1


def test_no_remedy_for_a_copy_loses_an_identity(data: DataDir, tmp_path: Path) -> None:
    data.check_place()
    copy = DataDir(tmp_path / "copy")
    shutil.copytree(data.root, copy.root)
    with pytest.raises(ConfigError, match=r"--moved.*--data-dir") as refused:
        copy.check_place()
    assert "delete" not in str(refused.value)


def test_a_damaged_place_is_recorded_anew(data: DataDir) -> None:
    for damaged in ("{", "[]", "{}", ""):
        data.place.write_text(damaged)
        data.check_place()
        assert "inode" in json.loads(data.place.read_text())


def test_a_write_leaves_the_old_file_or_the_new_one_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")
    write_private(path, b"secret")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600

    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ConfigError, match=r"can't be written \(No space left on device\): choose another"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"secret"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_reading_tells_nothing_there_from_what_can_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("text")
    assert read_text_or_none(tmp_path / "text") == "text"
    assert read_text_or_none(tmp_path / "none") is None
    assert read_text_or_none(tmp_path / "text" / "below") is None
    (tmp_path / "noise").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"noise can't be read .*: save it in UTF-8"):
        read_text_or_none(tmp_path / "noise")
    with pytest.raises(ConfigError, match="is a folder, not a file"):
        read_text_or_none(tmp_path)
