"""The gateway that programs ask through: found where one runs on the data dir, and started where none does.

One that was started for a program ends with the last program that needs it. Each holds a lock that the kernel
gives up however it ends, so that a crash leaves a gateway which the next run takes over, and ends.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from p2pnode.errors import ConfigError
from p2pnode.files import locked, write_private
from p2pnode.launch.users import User
from p2pnode.node.datadir import DataDir, RunningGateway
from p2pnode.platforms import own_group

_START_S: Final = 60.0
_POLL_S: Final = 0.05
_STOP_S: Final = 30.0
_ASK_S: Final = 5.0


@contextmanager
def using_gateway(data: DataDir, folder: Path, flags: Sequence[str]) -> Iterator[RunningGateway]:
    """The gateway of the data dir for the block. Where none runs one is started with ``flags``, and ended
    when no other run needs it. ``folder`` holds who does. Blocks.

    Raises ``ConfigError`` where it did not start.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    started = folder / "gateway.pid"
    process: subprocess.Popen[bytes] | None = None
    with locked(folder):
        found = data.running_gateway()
        if found is None:
            found, process = _start(data, folder, flags)
            write_private(started, str(found.pid).encode())
        user = User(folder, "gateway")
    with user:
        try:
            yield found
        finally:
            with locked(folder):
                if user.is_alone():
                    _end_started(data, started)
                    if process is not None:
                        _reap(process)


def context_of(gateway: RunningGateway, key: str, model: str) -> int | None:
    """How many tokens of context the network gives a model, as far as the gateway knows. Blocks for 5 s at
    most."""
    request = urllib.request.Request(  # noqa: S310 - the URL is the gateway's own, on this machine
        f"{gateway.url}/v1/models", headers={"Authorization": f"Bearer {key}"}
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=_ASK_S) as answer:
            listed = json.loads(answer.read(1 << 20))["data"]
        return next((int(each["context_length"]) for each in listed if each["id"] == model), None)
    except (OSError, ValueError, KeyError, TypeError, urllib.error.URLError):
        return None


def _start(
    data: DataDir, folder: Path, flags: Sequence[str]
) -> tuple[RunningGateway, subprocess.Popen[bytes]]:
    data.gateway_json.unlink(missing_ok=True)  # of one that crashed
    log = folder / "gateway.log"
    command = [sys.executable, "-P", "-m", "p2pnode", "gateway", "--listen", "127.0.0.1:0"]
    with log.open("wb") as file:
        process = subprocess.Popen(  # noqa: S603 - our own command line
            [*command, "--data-dir", str(data.root), *flags],
            stdin=subprocess.DEVNULL, stdout=file, stderr=file, **own_group(),
        )  # fmt: skip
    until = time.monotonic() + _START_S
    try:
        while time.monotonic() < until:
            found = data.running_gateway()
            if found is not None:
                return found, process
            if process.poll() is not None:
                break
            time.sleep(_POLL_S)
    except BaseException:
        process.terminate()
        _reap(process)
        raise
    process.terminate()
    _reap(process)
    said = log.read_text(errors="replace").strip().splitlines()
    raise ConfigError(f"the gateway did not start: {said[-1] if said else 'it said nothing'} (see {log})")


def _reap(process: subprocess.Popen[bytes]) -> None:
    """Wait for the end of a process that was told to end; one that doesn't is killed."""
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _end_started(data: DataDir, started: Path) -> None:
    """End the gateway, where it is the one that a run has started."""
    try:
        pid = int(started.read_text())
    except (OSError, ValueError):
        return
    started.unlink()
    found = data.running_gateway()
    if found is None or found.pid != pid:
        return
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    until = time.monotonic() + _STOP_S
    while time.monotonic() < until and data.running_gateway() is not None:
        time.sleep(_POLL_S)
