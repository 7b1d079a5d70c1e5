"""Nothing that is typed by mistake destroys anything: empty words, ambiguous ids, files of the user's."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import typer

from p2pnode.cli.options import one_meant
from p2pnode.errors import UsageError
from tests.cli.support import LISTEN, Program, Ran, join, run
from tests.cli.test_help import COMMANDS

CHECKED_BY_ITS_COMMAND = {"question", "system", "stop", "name"}
NOT_CHECKED_HERE = CHECKED_BY_ITS_COMMAND | {"arguments"}  # these go on to a program, as they stand


def _words() -> list[tuple[str, str]]:
    """Every argument and option that takes text: its command and how it is given."""
    found = []
    for name, command in COMMANDS.items():
        for each in command.params:
            is_text = not getattr(each, "is_flag", False) and each.name not in NOT_CHECKED_HERE
            if is_text and each.param_type_name == "option":
                found.append((name, each.opts[0]))
            elif is_text and each.param_type_name == "argument" and each is _first_argument(command):
                found.append((name, ""))
    return found


def _first_argument(command: Any) -> Any:
    return next(each for each in command.params if each.param_type_name == "argument")


WORDS = _words()


def _given(name: str, flag: str, value: str) -> list[str]:
    """A command line with one empty word; the arguments that it needs besides are there."""
    command: Any = COMMANDS[name]
    needed = [each for each in command.params if each.param_type_name == "argument" and each.required]
    rest = ["x"] * len(needed) if flag else [value, *["x"] * (len(needed) - 1)]
    options = [flag, value] if flag else []
    for each in command.params:
        if each.param_type_name == "option" and each.required and each.opts[0] != flag:
            options += [each.opts[0], "x"]
    return [*rest, *options]


@pytest.mark.parametrize("value", ["", "  "])
def test_an_empty_word_is_an_error_wherever_text_is_taken(value: str) -> None:
    assert ("sessions forget", "") in WORDS
    assert ("join", "--data-dir") in WORDS
    for name, flag in WORDS:
        with pytest.raises(typer.BadParameter, match=r"it is empty|not a valid") as refused:
            COMMANDS[name].make_context(name, _given(name, flag, value))
        assert refused.value.exit_code == 2


def test_nothing_is_made_in_the_current_folder_for_an_empty_data_dir(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = run("wallet", "new", "--random", "--data-dir", "")
    assert (ran.code, "--data-dir" in ran.err) == (2, True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("begins", ["", " ", "0x"])
def test_an_empty_beginning_of_an_id_means_nobody(begins: str) -> None:
    with pytest.raises(UsageError, match="the id is empty"):
        one_meant(["ab"], begins, str, "conversation")


def test_a_beginning_means_one_or_is_an_error() -> None:
    known = ["abc1", "abd2"]
    assert one_meant(known, "0xABC", str, "conversation") == "abc1"
    with pytest.raises(UsageError, match="2 conversations begin with 'ab': give more of the id"):
        one_meant(known, "ab", str, "conversation")
    with pytest.raises(UsageError, match="no conversation begins with 'f'"):
        one_meant(known, "f", str, "conversation")


# ---- files of the user's


def _put(data_dir: Path, tmp_path: Path) -> str:
    (tmp_path / "hello").write_text("hello")
    return run("storage", "put", tmp_path / "hello", "--data-dir", data_dir).out.strip()


def test_a_blob_is_written_to_a_new_file_and_over_another_one_only_by_force(
    data_dir: Path, tmp_path: Path
) -> None:
    blob, mine = _put(data_dir, tmp_path), tmp_path / "mine"
    mine.write_text("mine")
    ran = run("storage", "get", blob, mine, "--data-dir", data_dir)
    assert (ran.code, mine.read_text()) == (2, "mine")
    assert "exists: name another file, or overwrite this one with --force" in ran.err
    assert run("storage", "get", blob, mine, "--force", "--data-dir", data_dir).code == 0
    assert mine.read_text() == "hello"


@pytest.mark.parametrize("force", [(), ("--force",)])
def test_a_pipe_is_not_replaced_by_a_blob(data_dir: Path, tmp_path: Path, force: tuple[str, ...]) -> None:
    blob, pipe = _put(data_dir, tmp_path), tmp_path / "pipe"
    os.mkfifo(pipe)
    ran = run("storage", "get", blob, pipe, *force, "--data-dir", data_dir)
    assert (ran.code, "is a pipe, which is never replaced" in ran.err) == (2, True)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def _join(data_dir: Path, ready: Path, *arguments: object) -> Ran:
    flags = ("--model", "scripted", "--no-mdns", "--data-dir", data_dir, "--ready-file", ready)
    return run("join", *flags, *arguments)


@pytest.mark.parametrize("content", ["mine", '{"peer_id": "x"}', ""])
def test_a_file_of_the_users_is_no_ready_file(data_dir: Path, tmp_path: Path, content: str) -> None:
    ready = tmp_path / "ready"
    ready.write_text(content)
    ran = _join(data_dir, ready)
    assert (ran.code, ready.read_text()) == (2, content)
    assert "no node wrote it: name another file" in ran.err
    assert not data_dir.exists()


def test_a_device_is_no_ready_file(data_dir: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)  # reading it would wait for ever
    assert _join(data_dir, pipe).code == 2
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert _join(data_dir, Path("/dev/null")).code == 2
    ran = run("chain", "dev", "--profile", tmp_path / "chain.toml", "--port", 0, "--ready-file", pipe)
    assert (ran.code, stat.S_ISFIFO(pipe.stat().st_mode)) == (2, True)


def test_a_start_that_fails_leaves_the_ready_file_of_another_node(
    data_dir: Path, tmp_path: Path, host: Program
) -> None:
    theirs = host.out_path.parent / "h.ready"
    before = theirs.read_bytes()
    taken = host.multiaddr.partition("/p2p/")[0]
    assert _join(data_dir, theirs, "--listen", taken).code == 1
    assert theirs.read_bytes() == before


@pytest.mark.long
def test_a_node_removes_its_own_ready_file_and_no_other(tmp_path: Path) -> None:
    ready = tmp_path / "h.ready"
    with join(tmp_path, "h") as node:
        left = json.loads(ready.read_text())
        ready.write_text(json.dumps({**left, "pid": 1}))  # another node's meanwhile
        node.interrupt()
        assert node.wait() == 0
    assert json.loads(ready.read_text())["pid"] == 1
    # The same node's, of a start that was killed: the next one clears it before it can be taken for ready.
    ran = _join(tmp_path / "h", ready, "--listen", "/ip4/192.0.2.1/tcp/4001")
    assert ran.code == 1
    assert not ready.exists()
    with join(tmp_path, "h", "--listen", LISTEN) as node:
        node.interrupt()
        assert node.wait() == 0
    assert not ready.exists()


def test_a_pipe_is_no_chain_profile_to_be_written(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    ran = run("chain", "dev", "--profile", pipe, "--port", 0)
    assert (ran.code, "is a pipe" in ran.err) == (2, True)
    assert [each.name for each in tmp_path.iterdir()] == ["pipe"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)
