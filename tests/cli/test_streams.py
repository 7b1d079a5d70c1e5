"""What can't be written costs no drain and no answer; a stream that was closed is no defect."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.cli.support import DEADLINE_S, LISTEN, Program, run
from tests.cli.terminal import Terminal
from tests.cli.test_processes import DRAIN_S

SLOW = ("--scripted-tokens-per-s", "25")


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "p2pnode", *map(str, arguments)]


def asking(data_dir: Path, host: str, *arguments: object) -> list[str]:
    flags = ("--model", "scripted", "--peer", host, "--data-dir", data_dir, "--no-mdns")
    return command("ask", "hello", *flags, *arguments)


def ended(arguments: list[str], **how: Any) -> subprocess.CompletedProcess[bytes]:
    given = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.run(arguments, timeout=DEADLINE_S, check=False, **{**given, **how})


@contextmanager
def joined(folder: Path, *arguments: object, **how: Any) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A host that is ready, as people start it; its address."""
    ready = folder / "ready"
    flags = ("--model", "scripted", "--no-mdns", "--listen", LISTEN, "--data-dir", folder / "h")
    process = subprocess.Popen(
        command("join", *flags, *SLOW, "--ready-file", ready, *arguments),
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        **how,
    )
    try:
        program = Program(process, folder / "none", folder / "none")
        program.wait_until(ready.exists, "ready file") if not ready.exists() else None
        yield process, json.loads(ready.read_text())["multiaddrs"][0]
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def tokens_of(out: bytes) -> int:
    """Of an answer with ``--json`` that came to its end."""
    (done,) = [event for event in map(json.loads, out.splitlines()) if event["event"] == "done"]
    return int(done["tokens_out"])


@pytest.mark.parametrize(
    ("arguments", "stop"),
    [
        (("--log-level", "debug"), signal.SIGINT),
        pytest.param(("--json",), signal.SIGHUP, marks=pytest.mark.long),
        pytest.param((), signal.SIGINT, marks=pytest.mark.long),
        pytest.param((), signal.SIGHUP, marks=pytest.mark.long),
    ],
)
def test_a_host_whose_screen_has_gone_lets_its_answers_end(
    tmp_path: Path, arguments: tuple[str, ...], stop: signal.Signals
) -> None:
    """As `join 2>&1 | tee log` at a Ctrl-C, which ends tee first; or a terminal that is closed."""
    reading, writing = os.pipe()
    with joined(tmp_path, *arguments, stdout=writing, stderr=writing) as (host, address):
        os.close(writing)
        client = subprocess.Popen(
            asking(tmp_path / "c", address, "--max-tokens", 40, "--json"), stdout=subprocess.PIPE
        )
        with client:
            assert client.stdout is not None
            begun = b""
            while b'"text"' not in begun:
                begun += client.stdout.readline()
            os.close(reading)
            host.send_signal(stop)
            if stop == signal.SIGHUP:
                host.send_signal(stop)  # the shell's, after the kernel's: no second Ctrl-C
            assert tokens_of(begun + client.stdout.read()) == 40
        assert client.returncode == 0
        assert host.wait(DRAIN_S) == 0
    assert not (tmp_path / "ready").exists()


@pytest.mark.long
def test_a_host_whose_log_is_on_a_full_disk_serves(tmp_path: Path) -> None:
    with (
        Path("/dev/full").open("wb") as full,
        joined(tmp_path, "--log-level", "debug", stdout=full, stderr=full) as (host, address),
    ):
        answer = ended(asking(tmp_path / "c", address, "--max-tokens", 5))
        assert (answer.returncode, answer.stdout != b"") == (0, True)
        host.send_signal(signal.SIGINT)
        assert host.wait(DRAIN_S) == 0


@pytest.fixture(params=["full", "closed", "gone"])
def lost(request: pytest.FixtureRequest) -> Iterator[int | None]:
    """A descriptor that can't be written."""
    if request.param == "full":
        with Path("/dev/full").open("wb") as file:
            yield file.fileno()
    elif request.param == "gone":
        reading, writing = os.pipe()
        os.close(reading)
        yield writing
        os.close(writing)
    else:
        yield None


def closing(*numbers: int) -> Callable[[], None]:
    def close() -> None:
        for number in numbers:
            os.close(number)

    return close


def test_an_answer_does_not_depend_on_standard_error(tmp_path: Path, host: Program, lost: int | None) -> None:
    how: dict[str, Any] = {"preexec_fn": closing(2)} if lost is None else {"stderr": lost}
    answer = ended(asking(tmp_path / "c", host.multiaddr, "--max-tokens", 5, "--json"), **how)
    assert (answer.returncode, tokens_of(answer.stdout)) == (0, 5)


@pytest.mark.parametrize(
    "words",
    [
        ("models", "list"),
        pytest.param(("--help",), marks=pytest.mark.long),
        pytest.param(("sessions", "list", "--json"), marks=pytest.mark.long),
    ],
)
def test_nothing_is_a_defect_because_standard_output_can_not_be_written(
    tmp_path: Path, lost: int | None, words: tuple[str, ...]
) -> None:
    flags = () if words == ("--help",) else ("--data-dir", tmp_path / "d")
    how: dict[str, Any] = {"preexec_fn": closing(1)} if lost is None else {"stdout": lost}
    ran = ended(command(*words, *flags), **how)
    assert b"defect" not in ran.stderr
    assert b"Traceback" not in ran.stderr
    assert b"Exception ignored" not in ran.stderr
    assert ran.returncode in (0, 1)


def test_an_answer_that_can_not_be_written_says_so_and_one_that_nobody_reads_does_not(
    tmp_path: Path, host: Program
) -> None:
    with Path("/dev/full").open("wb") as full:
        ran = ended(asking(tmp_path / "c", host.multiaddr), stdout=full)
    assert ran.returncode == 1
    assert b"standard output can't be written (No space left on device): free space" in ran.stderr
    reading, writing = os.pipe()
    os.close(reading)
    ran = ended(asking(tmp_path / "c", host.multiaddr), stdout=writing)
    os.close(writing)
    assert (ran.returncode, ran.stderr) == (0, b"")


def test_closed_streams_never_become_a_file_of_the_data_dir(tmp_path: Path) -> None:
    """The first file that is opened gets the lowest number that is free: what is printed would go into it."""
    data_dir = tmp_path / "d"
    words = ("wallet", "new", "--random", "--show-phrase-to", tmp_path / "words", "--data-dir", data_dir)
    ran = ended(command(*words), stdin=None, stdout=None, stderr=None, preexec_fn=closing(0, 1, 2))
    assert ran.returncode == 0
    assert json.loads((data_dir / "wallet.json").read_text())["version"] == 3
    assert run("wallet", "show", "--data-dir", data_dir).code == 0


@pytest.mark.parametrize(
    "words",
    [
        ("ask", "-"),
        *(
            pytest.param(words, marks=pytest.mark.long)
            for words in (("chat",), ("wallet", "restore"), ("wallet", "new"))
        ),
    ],
)
def test_a_closed_standard_input_is_its_end(tmp_path: Path, words: tuple[str, ...]) -> None:
    flags = (
        ("--data-dir", tmp_path / "d")
        if words[0] == "wallet"
        else ("--data-dir", tmp_path / "d", "--no-mdns")
    )
    ran = ended(command(*words, *flags), stdin=None, preexec_fn=closing(0))
    assert ran.returncode in (0, 2)
    assert b"defect" not in ran.stderr
    assert b"Traceback" not in ran.stderr


# ---- encodings


@pytest.mark.parametrize(
    "environment",
    [
        pytest.param({"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}, marks=pytest.mark.long),
        {"PYTHONIOENCODING": "ascii"},
        pytest.param({"PYTHONIOENCODING": "latin-1"}, marks=pytest.mark.long),
    ],
    ids=["C", "ascii", "latin-1"],
)
def test_what_an_encoding_can_not_show_is_replaced_and_the_answer_goes_on(
    tmp_path: Path, host: Program, environment: dict[str, str]
) -> None:
    env = {**os.environ, **environment}
    question = asking(tmp_path / "c", host.multiaddr, "--max-tokens", 40)
    question[question.index("hello")] = "naïve café, 日本語, 🦊?"
    ran = ended(question, env=env)
    assert ran.returncode == 0, ran
    assert b"Unicode" not in ran.stderr
    listed = ended(
        command(
            "hosts", "--bootstrap", host.multiaddr, "--model", "scripted", "--no-mdns", "--data-dir", tmp_path
        ),
        env=env,
    )  # the table shortens peer ids with an ellipsis
    assert (listed.returncode, b"defect" in listed.stderr) == (0, False)


# ---- a place that can't be used


def limited(words: tuple[object, ...]) -> subprocess.CompletedProcess[bytes]:
    """As on a full disk: no file takes a single byte, whoever runs it."""
    import resource

    def full() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    return ended(command(*words), preexec_fn=full)


@pytest.mark.parametrize(
    "words",
    [
        ("join", "--model", "scripted", "--no-mdns", "--listen", LISTEN),
        ("wallet", "new", "--random", "--show-phrase-to", "words"),
        pytest.param(("storage", "put", "/etc/hostname"), marks=pytest.mark.long),
        pytest.param(("ask", "hello", "--peer"), marks=pytest.mark.long),
    ],
    ids=["join", "wallet", "storage", "ask"],
)
def test_a_full_disk_is_told_as_one(tmp_path: Path, words: tuple[str, ...], host: Program) -> None:
    known = {"words": str(tmp_path / "words"), "--peer": "--peer"}
    line = [known.get(each, each) for each in words] + (
        [host.multiaddr, "--model", "scripted"] if words[0] == "ask" else []
    )
    (tmp_path / "d").mkdir()
    ran = limited((*line, "--data-dir", tmp_path / "d"))
    assert b"defect" not in ran.stderr, ran.stderr
    assert b"Traceback" not in ran.stderr, ran.stderr
    assert (ran.returncode == 0) == (words[0] == "ask"), ran


def test_somebody_without_a_home_is_told_to_name_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(_: int) -> None:
        raise KeyError("getpwuid(): uid not found")

    for name in ("HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)
    for words in (("models", "list"), ("join",), ("chat",), ("wallet", "show")):
        ran = run(*words)
        assert ran.code == 2, ran
        assert "--data-dir: " in ran.err
        assert "no home folder" in ran.err
    assert run("models", "list", "--data-dir", "/nowhere").code == 0


@pytest.mark.parametrize("name", ["~nosuchuser/p2p", "x" * 300, "a" * 5000])
@pytest.mark.parametrize(
    "words",
    [
        ("join", "--model", "scripted", "--no-mdns", "--data-dir"),
        ("sessions", "list", "--data-dir"),
        ("wallet", "new", "--random", "--data-dir"),
        ("wallet", "restore", "--phrase-file"),
        ("wallet", "new", "--passphrase-file"),
        ("models", "pull"),
        ("ask", "hello", "--no-mdns", "--chain"),
        ("storage", "put"),
        ("join", "--model", "scripted", "--ready-file"),
        ("join", "--no-mdns", "--model"),
    ],
    ids=" ".join,
)
def test_a_path_that_can_not_be_is_told_as_one(data_dir: Path, words: tuple[str, ...], name: str) -> None:
    more = () if "--data-dir" in words else ("--data-dir", data_dir)
    if words == ("wallet", "new", "--random", "--data-dir"):
        more = ("--show-phrase-to", data_dir.with_name("words"))
    ran = run(*words, name, *more)
    assert ran.code in (0, 1, 2)
    assert "defect" not in ran.err
    assert ran.code or words[0] == "sessions"
    assert "Errno" not in ran.err


def _directory(path: Path) -> None:
    path.mkdir()


def _not_text(path: Path) -> None:
    path.write_bytes(b"\xff\xfe\x00\x01")


@pytest.mark.parametrize("make", [_directory, _not_text])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("config.toml", ("models", "list")),
        ("wallet.json", ("wallet", "show")),
        ("storage.key", ("wallet", "new", "--random", "--show-phrase-to", "words")),
        ("peers.json", ("join", "--model", "scripted", "--no-mdns", "--listen", "/ip4/192.0.2.1/tcp/4001")),
        ("node.json", ("status",)),
        ("node.lock", ("join", "--model", "scripted", "--no-mdns", "--listen", "/ip4/192.0.2.1/tcp/4001")),
        ("peer.key", ("join", "--model", "scripted", "--no-mdns")),
        (
            "binding.msgpack",
            ("join", "--model", "scripted", "--no-mdns", "--listen", "/ip4/192.0.2.1/tcp/4001"),
        ),
        ("place.json", ("join", "--model", "scripted", "--no-mdns", "--listen", "/ip4/192.0.2.1/tcp/4001")),
        ("journal.sqlite", ("sessions", "list")),
        ("journal.sqlite", ("sessions", "show", "ab")),
        ("store", ("storage", "ls")),
        ("store", ("storage", "put", "/etc/hostname")),
        ("chain.toml", ("funds",)),
        ("models", ("models", "list")),
        ("measured.json", ("hosts", "--no-mdns")),
    ],
)
def test_what_is_no_file_of_ours_in_the_data_dir_is_named(
    data_dir: Path, make: Callable[[Path], None], name: str, words: tuple[str, ...]
) -> None:
    data_dir.mkdir()
    make(data_dir / name)
    line = [str(data_dir.with_name("words")) if each == "words" else each for each in words]
    ran = run(*line, "--data-dir", data_dir)
    assert "defect" not in ran.err, ran.err
    assert "Traceback" not in ran.err


@pytest.mark.long
def test_what_is_typed_need_not_be_text(tmp_path: Path, host: Program) -> None:
    """Bytes of the command line that are no UTF-8, as a file's name may be."""
    data_dir = os.fsencode(tmp_path) + b"/\xff\xfe"
    for words in (
        [b"models", b"list", b"--data-dir", data_dir],
        [
            b"ask",
            b"caf\xe9?",
            b"--peer",
            host.multiaddr.encode(),
            b"--model",
            b"scripted",
            b"--max-tokens",
            b"3",
        ],
        [b"ask", b"hi", b"--model", b"\xff"],
        [b"--\xff"],
    ):
        more = [] if b"--data-dir" in words or words[0].startswith(b"--") else [b"--data-dir", data_dir]
        ran = subprocess.run(
            [sys.executable.encode(), b"-m", b"p2pnode", *words, *more],
            capture_output=True, timeout=DEADLINE_S, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert b"defect" not in ran.stderr, ran.stderr
        assert b"Traceback" not in ran.stderr, ran.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("wallet", "new"),
        pytest.param(("wallet", "restore"), marks=pytest.mark.long),
        pytest.param(("wallet", "import"), marks=pytest.mark.long),
    ],
)
def test_an_end_of_input_at_a_question_is_no_defect(data_dir: Path, words: tuple[str, ...]) -> None:
    with Terminal([*words, "--data-dir", data_dir]) as terminal:
        terminal.expect(": ")
        terminal.type("\x04")
        assert terminal.end() in (1, 2)
        assert "defect" not in terminal.seen
        assert "Traceback" not in terminal.seen
    assert not (data_dir / "wallet.json").exists()
