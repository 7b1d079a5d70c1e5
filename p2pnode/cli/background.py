"""``--background`` and ``p2pnode stop``: a command that goes on without a terminal, and how it is ended.

The same command line is started again as a process of its own, whose output goes to a log file; what it says
to people until it is ready is shown here too. It is ended by a signal to whoever holds its lock file.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, TypeAlias

import typer

from p2pnode.cli.options import DataDirOption, JsonOption, LogOption, configure, data_of
from p2pnode.cli.output import Output
from p2pnode.locks import holder
from p2pnode.platforms import own_group

if TYPE_CHECKING:
    from p2pnode.errors import LocalError

BackgroundOption: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--background", help="Go on without this terminal, and return when ready; `p2pnode stop` ends it."
    ),
]
ReadyFileOption: TypeAlias = Annotated[Path | None, typer.Option("--ready-file", hidden=True)]
_FLAG: Final = "--background"
_POLL_S: Final = 0.1
_STOP_DEADLINE_S: Final = 45.0
"""A node's drain, settlement and close have deadlines of their own, 23 s together."""
_LOG_BYTES_MAX: Final = 10 << 20
"""A log that is longer at a start is put aside, in place of the one that was put aside before."""


async def run_in_background(output: Output, log: Path, ready: Path, *, given: bool) -> None:
    """Start this command line again without ``--background`` and wait until it is ready.

    ``ready`` is where it writes its process number then; ``given``: the command line names it already.
    Raises ``LocalError`` when it ended instead.
    """
    import trio

    arguments = [each for each in sys.argv[1:] if each != _FLAG]
    if not given:
        arguments += ["--ready-file", str(ready)]
    _put_aside(log)
    process, shown = _start(arguments, log)
    try:
        while True:
            ended = process.poll() is not None
            is_ready = _process_in(ready) == process.pid
            shown = _show_more(output, log, shown)
            if is_ready:
                break
            if ended:
                raise _not_started(log, process.returncode)
            await trio.sleep(_POLL_S)
    except trio.Cancelled:
        process.terminate()
        raise
    output.event("background", {"pid": process.pid, "log": str(log)}, text=f"in the background; log {log}")


def _start(arguments: list[str], log: Path) -> tuple[subprocess.Popen[bytes], int]:
    """Start the process. Returns it, and where its output begins in the log."""
    with log.open("ab") as file:
        began = file.tell()
        process = subprocess.Popen(  # noqa: S603 - our own command line
            [sys.executable, "-P", "-m", "p2pnode", *arguments],
            stdin=subprocess.DEVNULL, stdout=file, stderr=file, **own_group(),
        )  # fmt: skip
    return process, began


def _not_started(log: Path, code: int) -> LocalError:
    from p2pnode.errors import LocalError

    return LocalError(f"it did not start (exit code {code}): {log} says why")


def _put_aside(log: Path) -> None:
    try:
        if log.stat().st_size > _LOG_BYTES_MAX:
            log.replace(log.with_name(f"{log.name}.1"))
    except FileNotFoundError:
        pass


def _show_more(output: Output, log: Path, shown: int) -> int:
    """Print what the log got since byte ``shown``, but for events; return up to where it was printed."""
    with log.open("rb") as file:
        file.seek(shown)
        whole, newline, _ = file.read().rpartition(b"\n")
    for line in whole.decode(errors="replace").splitlines():
        if not line.startswith("{") or output.as_json:
            output.note(line)
    return shown + len(whole) + len(newline)


def _process_in(path: Path) -> int | None:
    try:
        return int(json.loads(path.read_text())["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def stop(data_dir: DataDirOption = None, as_json: JsonOption = False, log_level: LogOption = "error") -> None:
    """End the node or gateway of this data dir: answers end, sessions are settled, then it leaves."""
    from p2pnode.cli.runner import run_async

    configure(log_level)
    output = Output(as_json=as_json, data_dir=data_dir)

    async def run() -> None:
        data = data_of(data_dir)
        if holder(data.lock) is None and holder(data.gateway_lock) is not None:
            await stop_holder(output, data.gateway_lock, "")
            return
        await stop_holder(output, data.lock, f"no node and no gateway runs on {data.root}")
        if holder(data.gateway_lock) is not None:  # that of another process than the node's
            await stop_holder(output, data.gateway_lock, "")

    run_async(run, on_error=output.failed)


async def stop_holder(output: Output, lock: Path, nobody: str) -> None:
    """Signal the process that holds a lock file, and wait until it let go. Raises ``LocalError``."""
    import trio

    from p2pnode.errors import ConfigError, LocalError

    pid = holder(lock)
    if pid is None:
        raise ConfigError(nobody)
    try:
        with suppress(ProcessLookupError):  # it has just ended
            os.kill(pid, signal.SIGTERM)
    except PermissionError as error:
        msg = f"process {pid} belongs to another user: stop it as that user"
        raise ConfigError(msg) from error
    with trio.move_on_after(_STOP_DEADLINE_S):
        while True:
            if holder(lock) != pid:
                output.event("stopped", {"pid": pid}, text=f"stopped (process {pid})")
                return
            await trio.sleep(_POLL_S)
    msg = f"process {pid} has not ended within {_STOP_DEADLINE_S:g} s: wait, or end it with `kill -9 {pid}`"
    raise LocalError(msg)
