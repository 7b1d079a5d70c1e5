"""``ChildProcess``: starts and ends the process in which an engine runs, and tells whether it lives.

One object is one child: a restart makes a new one. The child is a module of ours: it reads one line of JSON
from stdin, writes one to stdout once it serves, ``{"ready": true}`` or ``{"error": TEXT}`` (perhaps with the
``advice`` that follows it), and lives until stdin closes. Its socket lies in a new 0700 directory, and every
request needs a random key that it got through stdin only.
"""

from __future__ import annotations

import json
import secrets
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import Any, Final, Self

import structlog
import trio

from p2pnode.errors import EngineError
from p2pnode.models.child.http import ChildHttp
from p2pnode.platforms import own_group

_ANSWER_MAX_BYTES: Final = 1 << 16
_SOCKET_PATH_MAX: Final = 100  # sockaddr_un holds 108 bytes
_STOP_S: Final = 2.0
_REASON_CHARACTERS: Final = 400
_ADVICE: Final = (
    "Check the file with `p2pnode models verify`, and that the machine has memory enough (a smaller --n-ctx "
    "needs less)"
)

log = structlog.get_logger(__name__)


class ChildProcess:
    """A running child. Made by :meth:`start` only."""

    def __init__(self, process: trio.Process, directory: Path, http: ChildHttp) -> None:
        self._process = process
        self._directory = directory
        self.http = http
        self.answer: dict[str, Any] = {}
        """What it said when it was ready."""

    @classmethod
    async def start(
        cls,
        module: str,
        config: Mapping[str, Any],
        *,
        loads: str,
        runtime_dir: Path | None,
        deadline_s: float,
    ) -> Self:
        """Start ``module`` and wait until it serves. Raises ``EngineError`` that says why it doesn't.

        It is given ``config``, and with it ``socket`` and ``key``. ``loads`` names the model in messages.
        """
        directory = _private_directory(runtime_dir)
        socket, key = str(directory / "engine.sock"), secrets.token_hex(32)
        try:
            # -P: the child must be this package, not whatever the working directory calls p2pnode.
            # A session of its own: Ctrl-C in a terminal goes to a whole group, and answers must end first.
            process = await trio.lowlevel.open_process(
                [sys.executable, "-P", "-m", module],
                stdin=PIPE,
                stdout=PIPE,
                stderr=DEVNULL,
                **own_group(),
            )
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise
        started = cls(process, directory, ChildHttp(socket, key))
        try:
            with trio.fail_after(deadline_s):
                answer = await started._introduce({**config, "socket": socket, "key": key})
        except trio.TooSlowError as error:
            await started.kill()
            raise EngineError(
                f"the engine did not load {loads} within {deadline_s:g} s; is the machine too busy or "
                "the model too large for its memory?"
            ) from error
        except BaseException:
            await started.kill()
            raise
        if answer.get("ready") is not True:
            await started.kill()
            raise EngineError(_load_failure(loads, answer))
        started.answer = answer
        log.info("engine.started", pid=process.pid)
        return started

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the child still runs."""
        return self._process.poll() is None

    async def wait_dead(self, seconds: float) -> bool:
        """Wait at most ``seconds`` for the child's end; return whether it has ended."""
        with trio.move_on_after(seconds):
            await self._process.wait()
        return not self.alive

    async def stop(self) -> None:
        """End the child: ask it first, then kill it."""
        with trio.CancelScope(shield=True):
            if self._process.stdin is not None:
                await self._process.stdin.aclose()
            await self.wait_dead(_STOP_S)
            await self.kill()

    async def kill(self) -> None:
        """End the child at once."""
        with trio.CancelScope(shield=True):
            if self.alive:
                self._process.kill()
            await self._process.wait()
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    await stream.aclose()
            shutil.rmtree(self._directory, ignore_errors=True)

    async def _introduce(self, config: dict[str, Any]) -> dict[str, Any]:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None  # noqa: S101 - both are pipes
        assert stdout is not None  # noqa: S101
        answer = b""
        try:
            await stdin.send_all(json.dumps(config).encode() + b"\n")
            while not answer.endswith(b"\n") and len(answer) < _ANSWER_MAX_BYTES:
                data = await stdout.receive_some(_ANSWER_MAX_BYTES)
                if not data:
                    break
                answer += data
            message = json.loads(answer)
            return message if isinstance(message, dict) else {}
        except (trio.BrokenResourceError, ValueError):
            return {}


def _load_failure(loads: str, answer: dict[str, Any]) -> str:
    reason = str(answer.get("error") or "the engine's process died while loading")[:_REASON_CHARACTERS]
    advice = str(answer.get("advice") or _ADVICE)[:_REASON_CHARACTERS]
    return f"the engine can't load {loads}: {reason}. {advice}"


def _private_directory(runtime_dir: Path | None) -> Path:
    """A new 0700 directory; a system's temporary one when the path is too long for a socket's address."""
    if runtime_dir is not None and len(str(runtime_dir)) <= _SOCKET_PATH_MAX - len(
        "/p2pnode-12345678/engine.sock"
    ):
        runtime_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        return Path(tempfile.mkdtemp(prefix="p2pnode-", dir=runtime_dir))
    return Path(tempfile.mkdtemp(prefix="p2pnode-"))
