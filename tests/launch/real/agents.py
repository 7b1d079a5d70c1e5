"""What the scripted engine answers to each coding agent: one small edit, by the agent's own tools."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

FILE = "greet.py"
BEFORE = 'print("helo")\n'
AFTER = 'print("hello")\n'
TASK = "Mend the spelling in greet.py."
_TOOL = 260
"""The token that a tool's result begins with."""
_EDIT = f"sed -i s/helo/hello/ {FILE}"
_LAST = "The greeting is spelled right now."


@dataclass(frozen=True, slots=True)
class Agent:
    """A program, what it is started with, and its answer to the task.

    ``tool`` is the name by which its requests for work are known: those without it (for a title, say) are
    answered with a few words. Empty: it uses no tools.
    """

    name: str
    arguments: tuple[str, ...]
    tool: str
    answer: str

    def script(self, begun: Callable[[], None]) -> Callable[[tuple[int, ...], int], str]:
        """What an engine says; ``begun`` is told when it begins to answer the task."""

        def said(prompt: tuple[int, ...], _seed: int) -> str:
            text = bytes(each for each in prompt if each < 256).decode(errors="replace")
            if FILE not in text or (self.tool and f'"{self.tool}"' not in text):
                return "A spelling mistake"
            if _TOOL in prompt:
                return _LAST
            begun()
            return self.answer

        return said


def _call(name: str, **arguments: object) -> str:
    return (
        f"I will change it.\n<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"
    )


AGENTS = (
    Agent(
        "codex",
        ("exec", "--dangerously-bypass-approvals-and-sandbox", TASK),
        "exec_command",
        _call("exec_command", cmd=_EDIT),
    ),
    Agent(
        "claude",
        ("-p", TASK, "--allowedTools", "Bash,Edit,Read"),
        "Bash",
        _call("Bash", command=_EDIT, description="Mend the spelling"),
    ),
    Agent("opencode", ("run", TASK), "bash", _call("bash", command=_EDIT, description="Mend the spelling")),
    Agent(
        "aider",
        (
            "--yes-always",
            "--no-check-update",
            "--no-show-release-notes",
            "--no-gitignore",
            "--message",
            TASK,
            FILE,
        ),
        "",
        f"I mend the spelling.\n\n{FILE}\n```\n{AFTER}```\n",
    ),
)
