"""The command line in this process (quick) and as processes of its own (where signals matter)."""

from __future__ import annotations

import array
import fcntl
import json
import os
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from typer.testing import CliRunner

from p2pnode.cli.app import app

DEADLINE_S = 30.0
LISTEN = "/ip4/127.0.0.1/tcp/0"


@dataclass(frozen=True)
class Ran:
    """What a command said and how it ended."""

    code: int
    out: str
    err: str

    @property
    def events(self) -> list[dict[str, Any]]:
        """Its ``--json`` lines; every line must be one."""
        return [json.loads(line) for line in self.out.splitlines()]

    def named(self, name: str) -> list[dict[str, Any]]:
        """Events of one name."""
        return [event for event in self.events if event["event"] == name]


def run(*arguments: object, stdin: str | bytes = "", columns: int = 200) -> Ran:
    """A command in this process, on loopback only."""
    result = CliRunner(env={"COLUMNS": str(columns)}).invoke(
        app, [str(each) for each in arguments], input=stdin
    )
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Ran(result.exit_code, result.stdout, result.stderr)


def ask(data_dir: Path, *arguments: object, model: str | None = "scripted", stdin: str | bytes = "") -> Ran:
    """``p2pnode ask`` without the local network."""
    named = ("--model", model) if model is not None else ()
    return run("ask", *arguments, *named, "--no-mdns", "--data-dir", data_dir, stdin=stdin)


@dataclass
class Program:
    """A ``p2pnode`` process, its output in files."""

    process: subprocess.Popen[bytes]
    out_path: Path
    err_path: Path
    ready: dict[str, Any] = field(default_factory=dict)

    @property
    def out(self) -> str:
        return self.out_path.read_text()

    @property
    def err(self) -> str:
        return self.err_path.read_text()

    @property
    def events(self) -> list[dict[str, Any]]:
        """The whole lines of ``--json`` so far."""
        return [json.loads(line) for line in self.out.splitlines(keepends=True) if line.endswith("\n")]

    @property
    def names(self) -> list[str]:
        return [event["event"] for event in self.events]

    @property
    def multiaddr(self) -> str:
        return str(self.ready["multiaddrs"][0])

    def wait_event(self, name: str, *, count: int = 1) -> dict[str, Any]:
        """The ``count``-th event of a name."""
        self.wait_until(lambda: self.names.count(name) >= count, f"event {name}")
        return [event for event in self.events if event["event"] == name][count - 1]

    def wait_until(self, holds: Any, what: str) -> None:
        """Poll: files and processes have no other way to tell. Kills what it waited for in vain."""
        until = time.monotonic() + DEADLINE_S
        try:
            while not holds():
                assert time.monotonic() < until, f"no {what} in time: {self.out[-500:]} {self.err[-500:]}"
                assert self.process.poll() is None or holds(), f"ended without {what}: {self.out} {self.err}"
                time.sleep(0.02)
        except BaseException:
            self.kill()
            raise

    def send(self, text: str) -> None:
        """To its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode())
        self.process.stdin.flush()

    @property
    def unread(self) -> int:
        """Bytes of its standard input that it has not read yet."""
        assert self.process.stdin is not None
        found = array.array("i", [0])
        fcntl.ioctl(self.process.stdin, termios.FIONREAD, found)
        return found[0]

    def interrupt(self) -> None:
        """SIGINT to this process alone."""
        self.process.send_signal(signal.SIGINT)

    def ctrl_c(self) -> None:
        """As a terminal does it: to the process and to its children."""
        os.killpg(self.process.pid, signal.SIGINT)

    def kill(self) -> None:
        self.process.kill()
        self.wait()

    def wait(self, seconds: float = DEADLINE_S) -> int:
        """Its exit code."""
        return self.process.wait(seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.kill()
        if self.process.stdin is not None:
            self.process.stdin.close()


def start(folder: Path, name: str, arguments: Sequence[object], *, stdin: bool = False) -> Program:
    """A command as a process of its own, with ``--json``."""
    out, err = folder / f"{name}.out", folder / f"{name}.err"
    with out.open("wb") as stdout, err.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "p2pnode", *map(str, arguments), "--json"],
            stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,  # as a terminal's job: it can be signalled with its children
        )
    return Program(process, out, err)


def join(folder: Path, name: str, *arguments: object, model: str = "scripted") -> Program:
    """A host on loopback that is ready; its data dir is ``folder/name``."""
    ready = folder / f"{name}.ready"
    flags = ["--data-dir", folder / name, "--listen", LISTEN, "--no-mdns", "--ready-file", ready]
    program = start(folder, name, ["join", "--model", model, *flags, *arguments])

    def is_ready() -> bool:
        # What another start left behind has another pid, and is removed by this one at any moment.
        # Half a file is an error, never seen.
        try:
            program.ready = json.loads(ready.read_text())
        except FileNotFoundError:
            return False
        return program.ready.get("pid") == program.process.pid

    program.wait_until(is_ready, "ready file")
    return program


def wallet(data_dir: Path) -> str:
    """A new wallet in a data dir; its address."""
    words = data_dir.parent / f"{data_dir.name}.words"
    ran = run("wallet", "new", "--random", "--json", "--show-phrase-to", words, "--data-dir", data_dir)
    assert ran.code == 0, ran
    return str(ran.events[-1]["address"])


def give(profile: Path, address: str, *, usdc: str, ether: str = "0") -> None:
    """From a development chain's faucet."""
    ran = run("chain", "faucet", address, usdc, "--ether", ether, "--chain", profile)
    assert ran.code == 0, ran


def join_for_pay(folder: Path, profile: Path) -> Program:
    """A host that wants to be paid; its data dir is ``folder/h``."""
    give(profile, wallet(folder / "h"), usdc="0", ether="1")
    prices = ("--price-in", "0.000005", "--price-out", "0.000007", "--session-fee", "0.001")
    return join(folder, "h", *prices, "--chain", profile)
