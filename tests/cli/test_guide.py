"""The questions of a first start, at a real terminal; and that a script is never asked."""

from __future__ import annotations

import contextlib
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from p2pnode.config import load_config
from p2pnode.protocols.crypto import key_address
from tests.cli.support import DEADLINE_S, LISTEN
from tests.cli.terminal import Terminal

QUIET = ("--no-mdns",)
FIRST = "This is the first start on"


@pytest.mark.long
def test_a_first_time_host_is_led_to_a_running_node_and_not_asked_again(data_dir: Path) -> None:
    words = ("join", *QUIET, "--listen", LISTEN, "--data-dir", data_dir)
    with Terminal(words) as terminal:
        terminal.expect("of memory")
        terminal.answer("Which to serve", "scripted")
        terminal.answer("On which chain are you paid?", "")
        terminal.expect("Write this and start? [yes]")
        assert not data_dir.exists()
        terminal.type("\n")
        terminal.expect("wrote ")
        terminal.expect("serving    scripted, free")
        terminal.expect("ready")
        terminal.type("\x03")
        assert terminal.end() == 0
    settings = (data_dir / "config.toml").read_text()
    assert load_config(data_dir / "config.toml", {"data_dir": data_dir}).models == ("scripted",)
    with Terminal(words) as terminal:
        terminal.expect("ready")
        terminal.type("\x03")
        assert terminal.end() == 0
    assert FIRST not in terminal.seen
    assert (data_dir / "config.toml").read_text() == settings


def test_each_answer_is_checked_at_once_on_a_narrow_terminal_and_no_writes_nothing(data_dir: Path) -> None:
    with Terminal(["join", *QUIET, "--data-dir", data_dir], columns=40, term="xterm") as terminal:
        terminal.answer("Which to serve", "\x01nonsense\u202e")
        terminal.answer("Once more", "0")
        terminal.answer("Once more", "scripted")
        terminal.answer("On which chain", str(data_dir))
        terminal.answer("Once more", "none")
        terminal.answer("router", "127.0.0.1")
        terminal.answer("Once more", "203.0.113.7")
        terminal.expect("/ip4/203.0.113.7/tcp/4001")
        terminal.answer("[yes]", "perhaps")
        terminal.answer("Once more", "no")
        assert terminal.end() == 1
    assert "Traceback" not in terminal.seen
    assert "nothing was written" in terminal.seen
    assert not data_dir.exists()


@pytest.mark.long
@pytest.mark.parametrize("key", ["\x03", "\x04"])
def test_ctrl_c_and_ctrl_d_leave_nothing(data_dir: Path, key: str) -> None:
    with Terminal(["join", *QUIET, "--listen", LISTEN, "--data-dir", data_dir]) as terminal:
        terminal.answer("Which to serve", "scripted")
        terminal.expect("On which chain are you paid?")
        terminal.expect("> ")
        terminal.type(key)
        assert terminal.end() == (130 if key == "\x03" else 1)
        assert terminal.echoes()
    assert "nothing was written" in terminal.seen
    assert "Traceback" not in terminal.seen
    assert not data_dir.exists()


@pytest.mark.parametrize(
    "piped",
    [
        "stdin",
        pytest.param("stdout", marks=pytest.mark.long),
        pytest.param("stderr", marks=pytest.mark.long),
    ],
)
def test_a_script_is_never_asked(tmp_path: Path, piped: str) -> None:
    (tmp_path / "file").touch()
    # A folder that can't be made: with questions it would be asked about first, as the next test shows.
    assert FIRST not in left_alone(tmp_path / "file" / "d", piped)


@pytest.mark.long
@pytest.mark.parametrize(
    "flags", [["--no-guide"], ["--yes"], ["--json"], ["--model", "scripted"], ["--quiet"], ["--client-only"]]
)
def test_a_flag_that_answers_or_wants_no_questions_is_heeded(tmp_path: Path, flags: list[str]) -> None:
    (tmp_path / "file").touch()
    assert FIRST not in left_alone(tmp_path / "file" / "d", "", flags)


@pytest.mark.long
def test_at_a_whole_terminal_the_same_command_asks(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with Terminal(["join", *QUIET, "--data-dir", tmp_path / "file" / "d"]) as terminal:
        terminal.expect(FIRST)


def left_alone(data_dir: Path, piped: str, flags: list[str] | None = None) -> str:
    """What a join says that ends by itself, with a terminal for all streams but the one that is ``piped``."""
    master, side = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "p2pnode", "join", *QUIET, *(flags or ()), "--data-dir", str(data_dir)],
        stdin=subprocess.DEVNULL if piped == "stdin" else side,
        stdout=subprocess.PIPE if piped == "stdout" else side,
        stderr=subprocess.PIPE if piped == "stderr" else side,
    )
    os.close(side)
    try:
        said = process.communicate(timeout=3 * DEADLINE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    shown = b"".join(part or b"" for part in said)
    with contextlib.suppress(OSError):  # nothing was said there
        shown += os.read(master, 1 << 16)
    os.close(master)
    assert process.returncode not in (0, 130)
    return shown.decode()


@pytest.mark.long
def test_a_host_that_is_paid_sees_its_words_before_anything_is_written(data_dir: Path, profile: Path) -> None:
    from p2pnode.chain.addresses import shown_address
    from p2pnode.chain.wallet.phrase import entropy_of, wallet_secret
    from tests.cli.test_wallet import words_on

    with Terminal(["join", *QUIET, "--listen", LISTEN, "--data-dir", data_dir]) as terminal:
        terminal.answer("Which to serve", "scripted")
        terminal.answer("On which chain are you paid?", str(profile))
        terminal.expect("so this is only a start")
        terminal.answer("USDC per million input tokens?", "cheap")
        terminal.answer("Once more", "0.25")
        terminal.answer("USDC per million output tokens?", "")
        terminal.expect("Enter when they are written down.")
        words = words_on(terminal.seen)
        assert not data_dir.exists()
        account = shown_address(key_address(wallet_secret(entropy_of(words))))
        assert account in terminal.seen
        terminal.type("\n")
        terminal.answer("Write this and start? [yes]", "yes")
        terminal.expect("ready")
        terminal.type("\x03")
        assert terminal.end() == 0
    assert account.lower().removeprefix("0x") in (data_dir / "wallet.json").read_text().lower()
    config = load_config(data_dir / "config.toml", {"data_dir": data_dir})
    assert (config.price_in, config.price_out, config.chain) == (250_000, 1_500_000, str(profile))
