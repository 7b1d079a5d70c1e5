"""A conversation: history goes along, /new and /retry, Ctrl-C stops an answer, the end of input leaves."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from tests.cli.support import DEADLINE_S, Program, Ran, join, run, start


def _chat(data_dir: Path, host: Program, *lines: str, arguments: tuple[object, ...] = ("--json",)) -> Ran:
    flags = ("--model", "scripted", "--peer", host.multiaddr, "--data-dir", data_dir, "--temperature", 0)
    return run("chat", *flags, "--max-tokens", 12, *arguments, stdin="".join(f"{line}\n" for line in lines))


def _answers(ran: Ran) -> list[str]:
    """The text of each turn."""
    texts, current = [], ""
    for event in ran.events:
        if event["event"] == "text":
            current += event["text"]
        elif event["event"] in ("done", "turn.failed"):
            texts.append(current)
            current = ""
    return texts


def test_history_goes_along_and_new_starts_over(data_dir: Path, host: Program) -> None:
    ran = _chat(data_dir, host, "hello", "hello", "/new", "hello")
    assert ran.code == 0
    first, second, third = _answers(ran)
    assert first == third != second
    tokens_in = [event["tokens_in"] for event in ran.named("done")]
    assert tokens_in[0] == tokens_in[2] < tokens_in[1]
    assert len(ran.named("new")) == 1


def test_retry_asks_the_last_question_again_and_needs_one(data_dir: Path, host: Program) -> None:
    ran = _chat(data_dir, host, "/retry", "hello", "/retry", "/help", "", "/exit", "never asked")
    assert ran.code == 0
    assert [event["event"] for event in ran.events if event["event"] not in ("text", "prefill")] == [
        "chat",
        "nothing_to_retry",
        "host",
        "done",
        "host",
        "done",
        "help",
    ]
    first, again = _answers(ran)
    assert first == again


def test_an_unknown_command_is_not_sent_and_a_path_is(data_dir: Path, host: Program) -> None:
    ran = _chat(data_dir, host, "/hlep", "/etc/hosts")
    assert [event["command"] for event in ran.named("unknown_command")] == ["/hlep"]
    assert len(ran.named("done")) == 1


def test_a_question_that_failed_does_not_make_the_next_one_fail(data_dir: Path, host: Program) -> None:
    ran = _chat(data_dir, host, "x" * 3000, "hello")
    assert ran.code == 4  # as of `ask`: whoever pipes messages in reads it, and not the screen
    assert [event["code"] for event in ran.named("turn.failed")] == ["context_overflow"]
    assert ran.named("done")[0]["tokens_in"] == 8


def test_people_are_told_what_they_can_do_and_what_went_wrong(data_dir: Path, host: Program) -> None:
    ran = _chat(data_dir, host, "x" * 3000, "hello", "/new", arguments=())
    assert "/new starts over, /retry asks again, /exit" in ran.err
    assert "/go goes on with an answer that was cut short" in ran.err
    assert "A chat can also start over (/new) or leave out its oldest messages (--context" in ran.err
    assert f"`p2pnode hosts --why --model scripted --data-dir {data_dir}` shows them" in ran.err
    assert ran.err.count("/retry") == 1, "what would overflow again is not offered"
    assert "tokens in, 12 out" in ran.err
    assert ran.out.count("\n") == 1
    assert "Traceback" not in ran.err


def test_ctrl_c_stops_an_answer_and_the_conversation_goes_on(tmp_path: Path, slow_host: Program) -> None:
    flags = [
        "--model",
        "scripted",
        "--peer",
        slow_host.multiaddr,
        "--data-dir",
        tmp_path / "d",
        "--max-tokens",
        60,
    ]
    with start(tmp_path, "chat", ["chat", *flags], stdin=True) as chat:
        for turn in (1, 2):  # more than once: every signal is offered to the conversation
            texts = chat.names.count("text")
            chat.send("hello\n")
            chat.wait_event("text", count=texts + 1)
            chat.interrupt()
            chat.wait_event("stopped", count=turn)
        chat.send("and now\n")
        assert chat.wait_event("done")["tokens_out"] == 60
        assert chat.process.stdin is not None
        chat.process.stdin.close()
        assert chat.wait(5) == 0
        assert chat.err == ""


PROMPT = "\x1b[?2004h"
"""The editor has the terminal, and takes a paste for one."""


class _Terminal:
    """A chat on a terminal of its own."""

    def __init__(self, data_dir: Path, host: Program, *, tokens: int = 5) -> None:
        self._main, self._side = pty.openpty()
        self.before = termios.tcgetattr(self._side)
        flags = [
            "--model",
            "scripted",
            "--peer",
            host.multiaddr,
            "--data-dir",
            str(data_dir),
            "--max-tokens",
            str(tokens),
        ]
        # A session of its own with this terminal as its controlling one, so that Ctrl-C arrives.
        leader = "import os,sys,fcntl,termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
        program = "os.execv(sys.executable, [sys.executable, '-m', 'p2pnode', *sys.argv[1:]])"
        self.process = subprocess.Popen(
            [sys.executable, "-c", leader + program, "chat", *flags],
            stdin=self._side,
            stdout=self._side,
            stderr=self._side,
            env={**os.environ, "TERM": "xterm"},
        )
        self.screen = ""

    def type(self, keys: str) -> None:
        os.write(self._main, keys.encode())

    def wait(self, text: str, *, after: int = 0) -> None:
        until = time.monotonic() + DEADLINE_S
        os.set_blocking(self._main, False)
        while text not in self.screen[after:]:
            assert time.monotonic() < until, self.screen
            try:
                self.screen += os.read(self._main, 4096).decode(errors="replace")
            except BlockingIOError:
                time.sleep(0.02)

    def wait_quiet(self) -> None:
        """Until the prompt is over: the terminal no longer echoes, and signals again."""
        until = time.monotonic() + DEADLINE_S
        while True:
            flags = termios.tcgetattr(self._side)[3]
            if flags & termios.ISIG and not flags & termios.ECHO:
                return
            assert time.monotonic() < until, self.screen
            time.sleep(0.01)

    def now(self) -> list[object]:
        return termios.tcgetattr(self._side)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._main)
        os.close(self._side)


@pytest.mark.parametrize(("last", "code"), [("\x03\x03", 130), ("\x04", 0)], ids=["Ctrl-C twice", "Ctrl-D"])
def test_a_terminal_edits_lines_and_is_left_as_it_was(
    tmp_path: Path, host: Program, last: str, code: int
) -> None:
    terminal = _Terminal(tmp_path / "d", host)
    try:
        terminal.wait(PROMPT)
        terminal.type("/retrx\x7fy\x1b[D\x1b[C\r")  # typed wrong, mended, moved about in
        terminal.wait("nothing was asked yet")
        terminal.type("hello\r")
        terminal.wait("tokens in, 5 out")
        terminal.wait(PROMPT, after=terminal.screen.index("5 out"))
        for key in last:
            terminal.type(key)
            if key != last[-1]:
                terminal.wait("(Ctrl-C again leaves)")
        assert terminal.process.wait(10) == code
        assert terminal.now() == terminal.before
        assert "Traceback" not in terminal.screen
        assert "^[[" not in terminal.screen
    finally:
        terminal.close()


def test_a_paste_of_several_lines_is_one_question_and_so_is_a_block(tmp_path: Path, host: Program) -> None:
    terminal = _Terminal(tmp_path / "d", host)
    try:
        terminal.wait(PROMPT)
        terminal.type("\x1b[200~one\r\ntwo\nthree\x1b[201~\r")
        terminal.wait("[16 tokens in, 5 out")  # of one, two, three and their line ends
        terminal.wait(PROMPT, after=terminal.screen.index("5 out"))
        terminal.type("/new\r")
        terminal.wait("a new conversation")
        terminal.type('"""one\rtwo\rthree"""\r')
        terminal.wait("[16 tokens in, 5 out", after=terminal.screen.index("a new conversation"))
    finally:
        terminal.close()


def test_a_block_may_come_through_a_pipe(data_dir: Path, host: Program) -> None:
    ran = _chat(data_dir, host, '"""one', "two", 'three"""', "/new", "one", "/new", '"""never closed', "")
    assert [event["tokens_in"] for event in ran.named("done")] == [16, 6, 15]


def test_what_is_typed_while_an_answer_streams_is_held_back_and_offered(
    tmp_path: Path, slow_host: Program
) -> None:
    terminal = _Terminal(tmp_path / "d", slow_host, tokens=25)
    try:
        terminal.wait(PROMPT)
        terminal.type("hello\r")
        terminal.wait_quiet()
        begun = len(terminal.screen)
        terminal.type("zzqq\rzzxx")
        terminal.wait("25 out", after=begun)
        bill = terminal.screen.index("25 out")
        assert "zzqq" not in terminal.screen[:bill]
        terminal.wait("zzxx", after=bill)  # at the prompt, and not asked
        assert terminal.screen.count("tokens in") == 1
        assert "zzqq" in terminal.screen[bill:]
        terminal.type("\x03")  # clears it, and doesn't count as one of two
        terminal.type("\x04")
        assert terminal.process.wait(10) == 0
        assert "again leaves" not in terminal.screen
    finally:
        terminal.close()


def test_the_tokens_that_are_left_are_told_when_a_quarter_is(tmp_path: Path) -> None:
    with join(tmp_path, "h", "--n-ctx", 256) as host:
        flags = ("--model", "scripted", "--peer", host.multiaddr, "--data-dir", tmp_path / "d")
        ran = run("chat", *flags, "--max-tokens", 100, stdin="hello\n" + "x" * 80 + "\n")
        assert ran.code == 0, ran
        said = [line for line in ran.err.splitlines() if "are left for this conversation" in line]
        assert len(said) == 1  # after the second answer, not after the first
        assert "of 256 tokens are left for this conversation: /new starts over" in said[0]
        full = run("ask", "hello", *flags, "--max-tokens", 400)
        assert full.code == 0, full
        assert "the context of 256 tokens is full, so it can't go on" in full.err
        assert "hosts --min-context 257" in full.err
        assert "--max-tokens lets an answer be" not in full.err
