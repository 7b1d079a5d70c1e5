"""A program of the host's owner that sees each prompt before the model does, and may refuse it.

The prompt goes to its standard input as JSON: ``{"embed": [text]}``, or ``{"messages": [{"role", "content",
"tool_calls": [{"name", "arguments"}]}], "tools": [{"name", "description", "parameters"}],
"response_format"}``, for the model reads all of these. Exit code 0 serves it; any other refuses it, and the
first line that it printed is the reason that the client is told. It is started without a shell, gets no
secret of the node in its environment beyond what the node was started with, and has a deadline. Where it
can't be started or is late the prompt is refused: a filter that fails must not let anything through.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from contextlib import suppress
from typing import Final

import structlog
import trio

from p2pnode.errors import ConfigError
from p2pnode.platforms import kill_group, own_group
from p2pnode.protocols.inference.messages import PromptBody
from p2pnode.words import one_line

log = structlog.get_logger()
DEADLINE_S: Final = 10.0
AT_ONCE_MAX: Final = 4
"""Programs that run at the same time; other prompts wait for them."""
FILTERED_RETRY_S: Final = 60.0
"""After which a client may ask again: the owner may have changed the program."""
_SAID_MAX: Final = 4096
"""Bytes of what it printed that are read."""
_REASON_MAX: Final = 200
_UNSAID: Final = "this host does not serve this prompt: use another host"
_FAILED: Final = "this host can't check prompts now: use another host"


class PromptFilter:
    """``command`` is split as a shell would, and run without one. Raises ``ConfigError`` where that names no
    program."""

    def __init__(self, command: str, *, deadline_s: float = DEADLINE_S) -> None:
        try:
            self._argv = shlex.split(command)
        except ValueError as error:
            raise ConfigError(f"--prompt-filter: {command[:80]!r} can't be read ({error})") from error
        if not self._argv or shutil.which(self._argv[0]) is None:
            named = self._argv[0] if self._argv else command
            raise ConfigError(f"--prompt-filter: there is no program {named[:80]!r}: give its whole path")
        self._deadline_s = deadline_s
        self._places = trio.CapacityLimiter(AT_ONCE_MAX)

    async def refusal(self, body: PromptBody) -> str:
        """Why this prompt is not served; "" where it is."""
        async with self._places:
            try:
                with trio.fail_after(self._deadline_s):
                    return await self._run(_told(body))
            except trio.TooSlowError:
                log.warning("prompt_filter.late", deadline_s=self._deadline_s)
            except OSError as error:
                log.warning("prompt_filter.failed", reason=str(error))
        return _FAILED

    async def _run(self, told: bytes) -> str:
        said = bytearray()
        # A group of its own, so that what it started itself is killed with it.
        process = await trio.lowlevel.open_process(
            self._argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            **own_group(),
        )
        assert process.stdin is not None  # noqa: S101 - both are pipes
        assert process.stdout is not None  # noqa: S101
        try:
            async with process.stdout, trio.open_nursery() as nursery:
                nursery.start_soon(_feed, process.stdin, told)
                # Read to its end, also beyond what is kept: a program that can't print would never end.
                async for piece in process.stdout:
                    said += piece[: max(0, _SAID_MAX - len(said))]
                code = await process.wait()
                nursery.cancel_scope.cancel()
        finally:
            if process.returncode is None:
                with suppress(OSError):  # it ends just now
                    kill_group(process.pid)
                with trio.CancelScope(shield=True):
                    await process.wait()
        if code == 0:
            return ""
        first = said.decode(errors="replace").strip().partition("\n")[0]
        log.info("prompt_filter.refused", code=code)
        return one_line(first)[:_REASON_MAX] or _UNSAID


async def _feed(stream: trio.abc.SendStream, data: bytes) -> None:
    try:
        async with stream:
            await stream.send_all(data)
    except trio.BrokenResourceError:
        pass  # it had read enough


def _told(body: PromptBody) -> bytes:
    """What the program is told of a prompt."""
    if body.embed:
        return json.dumps({"embed": list(body.embed)}).encode()
    messages = [
        {
            "role": each.role,
            "content": each.text,
            "tool_calls": [{"name": call.name, "arguments": call.arguments} for call in each.tool_calls],
        }
        for each in body.messages
    ]
    tools = [
        {"name": each.name, "description": each.description, "parameters": each.parameters}
        for each in body.tools
    ]
    told = {"messages": messages, "tools": tools, "response_format": body.response_format.body}
    return json.dumps(told).encode()
