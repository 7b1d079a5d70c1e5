"""``TaskSet``: the questions that a model is measured by, and how an answer is checked.

The set that ships is ``task_set.json``: all of its items are ours, and ``tests/models/make_task_set.py``
makes it. Its id is the hash of its content, so that figures of two sets are never taken for one another.
Every answer is right or wrong, and code decides which. Pure.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Final, Literal, TypeAlias, assert_never

from p2pnode.errors import ConfigError

_DOMAIN: Final = b"p2pnode/task-set/1\0"
Check: TypeAlias = Literal["number", "text", "rules", "choice", "json"]
"""How an answer is checked.

``number``: its last number is the item's. ``text``: without quotes around it and a full stop it is the
item's, whatever the case unless ``case`` is true. ``rules``: it has the form that was asked for. ``choice``:
it names the letter of the right option. ``json``: it is a JSON object equal to the item's.
"""
_LETTERS: Final = "ABCDEFGH"
_NUMBER: Final = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_AROUND: Final = " \t\r\n\"'`*\u201c\u201d\u2018\u2019"


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One question and what is right. ``options`` are those of a choice, in the order of their letters."""

    task: str
    index: int
    check: Check
    ask: str
    answer: Any
    tokens_max: int
    options: tuple[str, ...] = ()
    schema: Mapping[str, Any] | None = None
    case: bool = False
    rules: Mapping[str, Any] | None = None

    @property
    def letters(self) -> tuple[str, ...]:
        """Of the options."""
        return tuple(_LETTERS[: len(self.options)])

    @property
    def text(self) -> str:
        """What the model is asked."""
        if not self.options:
            return self.ask
        shown = "\n".join(
            f"{letter}. {each}" for letter, each in zip(self.letters, self.options, strict=True)
        )
        return f"{self.ask}\n{shown}\nAnswer with the letter of the right option only."

    def is_right(self, answer: str) -> bool:
        """Whether this text answers it."""
        match self.check:
            case "number":
                found = _NUMBER.findall(answer)
                return bool(found) and float(found[-1].replace(",", "")) == float(self.answer)
            case "text":
                said = answer.strip(_AROUND).removesuffix(".").strip(_AROUND)
                wanted = str(self.answer)
                return said == wanted if self.case else said.lower() == wanted.lower()
            case "rules":
                return all(_keeps(answer.strip(), name, value) for name, value in (self.rules or {}).items())
            case "choice":
                return chosen_letter(answer, self.letters) == str(self.answer)
            case "json":
                try:
                    return _canonical(json.loads(answer)) == _canonical(self.answer)
                except (ValueError, RecursionError):
                    return False
            case _:
                assert_never(self.check)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Items of one kind. ``guess`` is what blind guessing gets right, in percent."""

    name: str
    about: str
    guess: int
    items: tuple[Item, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSet:
    """``id`` is the SHA-256 of all of its content, in hex."""

    id: str
    tasks: Mapping[str, Task]

    def items(self, tasks: Collection[str] = (), *, limit: int = 0, seed: int = 0) -> list[Item]:
        """The items of these tasks, or of all, in the order in which they are asked.

        Each task's are shuffled by ``seed``, of which ``limit`` are taken at most (0 takes all). The tasks
        take turns, so that a run that ends early has asked about as many of each. Raises ``ConfigError`` for
        a task that there isn't.
        """
        if unknown := sorted(set(tasks) - set(self.tasks)):
            raise ConfigError(f"{unknown[0]!r} is no task: choose of {', '.join(self.tasks)}")
        chosen = [task for name, task in sorted(self.tasks.items()) if name in tasks or not tasks]
        shuffled = [
            sorted(task.items, key=lambda item: _drawn(seed, item))[: limit or None] for task in chosen
        ]
        turns = max(map(len, shuffled), default=0)
        return [items[turn] for turn in range(turns) for items in shuffled if turn < len(items)]


@cache
def task_set() -> TaskSet:
    """The set that ships."""
    text = resources.files(__package__).joinpath("task_set.json").read_text(encoding="utf-8")
    return parse_task_set(json.loads(text))


def parse_task_set(content: Mapping[str, Any]) -> TaskSet:
    """A task set of what is in its file. Raises ``KeyError`` where a part of it is missing."""
    tasks = {
        name: Task(
            name=name,
            about=each["about"],
            guess=each["guess"],
            items=tuple(_item(name, index, each, item) for index, item in enumerate(each["items"])),
        )
        for name, each in content["tasks"].items()
    }
    return TaskSet(id=hashlib.sha256(_DOMAIN + _canonical(content).encode()).hexdigest(), tasks=tasks)


def chosen_letter(answer: str, letters: Sequence[str]) -> str:
    """The letter that a text chooses: the first that stands alone; "" where none does."""
    found = re.search(rf"(?<![A-Za-z0-9])([{''.join(letters)}])(?![A-Za-z0-9'])", answer)
    return found[1] if found else ""


def _item(task: str, index: int, of: Mapping[str, Any], item: Mapping[str, Any]) -> Item:
    return Item(
        task=task,
        index=index,
        check=of["check"],
        ask=item["ask"],
        answer=item.get("answer"),
        tokens_max=of["tokens_max"],
        options=tuple(item.get("options", ())),
        schema=item.get("schema"),
        case=item.get("case", False),
        rules=item.get("rules"),
    )


def _keeps(answer: str, rule: str, value: Any) -> bool:
    """Whether an answer keeps one rule of its form."""
    words = answer.split()
    match rule:
        case "words":
            return bool(value[0] <= len(words) <= value[1])
        case "has":
            return str(value).lower() in _words(answer)
        case "lacks":
            return str(value).lower() not in _words(answer)
        case "case":
            return bool(answer) and answer == answer.lower()
        case "begins":
            return bool(words) and words[0].strip(".,:;!?") == str(value)
        case "ends":
            return answer.endswith(str(value))
        case "is":
            return answer.removesuffix(".") in value
        case "lines":
            return len([line for line in answer.splitlines() if line.strip()]) == int(value)
        case _:
            raise ValueError(f"{rule!r} is no rule of an answer's form")


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


def _drawn(seed: int, item: Item) -> bytes:
    return hashlib.sha256(f"{seed}/{item.task}/{item.index}".encode()).digest()


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
