"""Files of ours and files of the user: written whole, never over what is none of ours."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from p2pnode.errors import ConfigError, UsageError
from p2pnode.files import refuse_folder, user_path, write_atomic, write_folder, write_new, write_private
from tests.file_size import file_size_limit


def _device(path: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))  # as /dev/null
    except PermissionError:
        path.symlink_to("/dev/null")  # who isn't root can't make one: the next best


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def _link(path: Path) -> None:
    path.symlink_to(path.with_name("theirs"))
    path.with_name("theirs").write_text("theirs")


SPECIAL: dict[str, Callable[[Path], None]] = {
    "device": _device,
    "pipe": os.mkfifo,
    "socket": _socket,
    "link": _link,
    "dangling link": lambda path: path.symlink_to(path.with_name("nowhere")),
    "folder": Path.mkdir,
}


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.mark.parametrize("kind", SPECIAL)
def test_what_is_no_regular_file_is_never_replaced(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "it"
    SPECIAL[kind](path)
    before = path.lstat()
    with pytest.raises(ConfigError, match=r"move it away"):
        write_atomic(path, b"new")
    for force in (False, True):
        with pytest.raises(UsageError, match=r"never replaced"):
            write_new(path, b"new", force=force)
    after = path.lstat()
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
    assert kind != "link" or path.read_text() == "theirs"
    assert not (tmp_path / "nowhere").exists()


def test_a_new_file_is_made_whole_and_a_second_one_does_not_take_its_place(tmp_path: Path) -> None:
    path = tmp_path / "it"
    write_new(path, b"first")
    with pytest.raises(UsageError, match="exists: name another file, or overwrite this one with --force"):
        write_new(path, b"second")
    assert path.read_bytes() == b"first"
    write_new(path, b"third", force=True)
    assert path.read_bytes() == b"third"
    assert [each.name for each in tmp_path.iterdir()] == ["it"]


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o027, 0o640)])
def test_the_users_umask_holds(tmp_path: Path, mask: int, mode: int) -> None:
    with umask(mask):
        write_new(tmp_path / "new", b"")
        write_atomic(tmp_path / "ours", b"")
        write_private(tmp_path / "secret", b"")
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == mode
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == mode
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600


@pytest.mark.parametrize("length", [200, 255])
def test_a_long_name_has_room_for_its_temporary_file(tmp_path: Path, length: int) -> None:
    write_new(tmp_path / ("é" * (length // 2)), b"x")
    write_atomic(tmp_path / ("x" * length), b"x")
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("name", ["x" * 300, "none/it"])
def test_a_path_that_can_not_be_is_an_error_of_what_was_typed(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"name another file|make it first"):
        write_new(tmp_path / name, b"x")
    with pytest.raises(ConfigError, match="can't be written"):
        write_atomic(tmp_path / name, b"x")
    assert not list(tmp_path.iterdir())


def test_a_file_system_without_hard_links_still_replaces_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    write_new(tmp_path / "it", b"first")
    with pytest.raises(UsageError):
        write_new(tmp_path / "it", b"second")
    assert (tmp_path / "it").read_bytes() == b"first"
    assert [each.name for each in tmp_path.iterdir()] == ["it"]


def test_a_user_that_is_not_there_is_named() -> None:
    with pytest.raises(UsageError, match="there is no such user"):
        user_path("~nosuchuser/data")
    assert user_path("data") == Path.cwd() / "data"


def test_a_folder_is_written_with_all_its_files(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "one"
    write_folder(path, {"a": b"1", "b": b"2"})
    assert {each.name: each.read_bytes() for each in path.iterdir()} == {"a": b"1", "b": b"2"}
    assert [each.name for each in path.parent.iterdir()] == ["one"]


def test_a_folder_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "one"
    write_folder(path, {"a": b"1"})
    with pytest.raises(UsageError, match=r"one exists: name another folder"):
        write_folder(path, {"a": b"2"})
    assert (path / "a").read_bytes() == b"1"
    (tmp_path / "file").write_text("theirs")
    with pytest.raises(UsageError, match=r"file exists: name another folder"):
        write_folder(tmp_path / "file", {"a": b"2"})
    assert sorted(each.name for each in tmp_path.iterdir()) == ["file", "one"]


def test_a_mounted_file_system_is_no_folder_to_write() -> None:
    for refuse in (lambda path: write_folder(path, {"a": b"1"}), refuse_folder):
        with pytest.raises(UsageError, match=r"mounted at /proc: name a folder in it, such as /proc/results"):
            refuse(Path("/proc"))


def test_a_folder_is_not_there_when_one_of_its_files_finds_no_room(tmp_path: Path) -> None:
    with file_size_limit(1000), pytest.raises(UsageError, match=r"can't be written \(File too large\)"):
        write_folder(tmp_path / "one", {"a": b"1", "b": b"2" * 1001})
    assert list(tmp_path.iterdir()) == []
