"""What was said in a conversation, and what of it goes into the next prompt.

A question that got no answer and was asked again, and an answer that was asked for again, stay in the history
and are left out of the prompt. Pure: it knows neither hosts nor where a conversation is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from p2pnode.client.failover import Held
from p2pnode.protocols.inference.messages import Role, ToolCall
from p2pnode.storage.conversations.turns import Turn

M = TypeVar("M")


@dataclass(slots=True, eq=False)
class Message:
    """A message of the system, the user or a tool, or an answer: its ``text`` is that of the first
    ``text_known`` ids.
    """

    role: Role
    text: str = field(default="", repr=False)
    ids: list[int] = field(default_factory=list, repr=False)
    text_known: int = 0
    aside: int = 0
    """Bytes that it said beside its text: see ``Held``."""
    complete: bool = True
    """Whether nothing more comes; False for an answer that runs or was cut short."""
    calls: tuple[ToolCall, ...] = field(default=(), repr=False)
    """The tools that an answer called. Messages of the role ``tool`` that follow have the results."""
    call_id: str = ""
    """Of a tool's message, the call that it answers."""

    @property
    def held(self) -> Held:
        """What an answer goes on from."""
        return Held(tuple(self.ids), self.text, self.text_known, aside=self.aside)


class History:
    """The messages of one conversation, oldest first, and where it stands."""

    def __init__(self, messages: Iterable[Message] = ()) -> None:
        self._messages = list(messages)

    @classmethod
    def of_turns(cls, turns: Iterable[Turn]) -> History:
        """A history that was kept. A last question without an answer has one that was cut short at once."""
        history = cls(map(_message, turns))
        if history._messages and history._messages[-1].role == "user":
            history.begin_answer()
        return history

    @property
    def messages(self) -> Sequence[Message]:
        """All of them."""
        return tuple(self._messages)

    @property
    def has_question(self) -> bool:
        """Whether anything was asked."""
        return any(message.role == "user" for message in self._messages)

    @property
    def unfinished(self) -> Message | None:
        """The answer that was cut short, if it is the last message."""
        last = self._messages[-1] if self._messages else None
        return last if last is not None and last.role == "assistant" and not last.complete else None

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        """Those of the last answer, while it is the last message: they wait for their results."""
        last = self._messages[-1] if self._messages else None
        return last.calls if last is not None and last.complete else ()

    def say(self, role: Role, text: str) -> None:
        """Add a message of the system or the user."""
        self._messages.append(Message(role, text))

    def give_results(self, results: Iterable[str]) -> None:
        """Add what the tools said to each of :attr:`calls`, in their order."""
        calls = self.calls
        self._messages += [
            Message("tool", text, call_id=call.id) for call, text in zip(calls, results, strict=True)
        ]

    def begin_answer(self) -> Message:
        """Add an answer, of which nothing is there yet."""
        answer = Message("assistant", complete=False)
        self._messages.append(answer)
        return answer

    def prompt_for(self, answer: Message) -> list[dict[str, Any]]:
        """Messages for the host that is to give ``answer``.

        Without answers that stand last: the user asks for them again, and the model must not see them.
        """
        before = [message for message in self._messages if message is not answer]
        while before and before[-1].role == "assistant":
            before.pop()
        return prompt_of(before)


def without_oldest(messages: Sequence[M], *, role: Callable[[M], str], size: Callable[[M], int]) -> list[M]:
    """The messages without the oldest ones: about a quarter of what may be left out, by size.

    What the system said and all from the last question on stays. What is left begins with a question, so that
    no answer and no result of a tool stands without what it answers. All stay where none may be left out.
    """
    begins = next((at for at, each in enumerate(messages) if role(each) not in ("system", "developer")), 0)
    questions = [at for at, each in enumerate(messages) if role(each) == "user" and at > begins]
    if not questions:
        return list(messages)
    wanted = sum(size(each) for each in messages[begins : questions[-1]]) / 4
    dropped, kept = 0, questions[-1]
    for at in questions:
        dropped = sum(size(each) for each in messages[begins:at])
        if dropped >= wanted:
            kept = at
            break
    return [*messages[:begins], *messages[kept:]]


def _message(turn: Turn) -> Message:
    text_known = count = 0
    for piece in turn.pieces:
        count += len(piece.ids)
        text_known = count if piece.text or piece.aside else text_known
    complete = turn.role != "assistant" or turn.finish is not None
    return Message(turn.role, turn.text, list(turn.ids), text_known, turn.aside, complete)


def prompt_of(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages for a host: of several of one role in a row, the last; none for an answer without text.

    Calls stand there with their results only: those that got none are left out. All results of one answer are
    told.
    """
    called = [
        at
        for at, message in enumerate(messages)
        if message.calls and at + 1 < len(messages) and messages[at + 1].role == "tool"
    ]
    said = [
        (message, at in called)
        for at, message in enumerate(messages)
        if message.text or at in called or message.role != "assistant"
    ]
    kept = [
        (message, calls)
        for at, (message, calls) in enumerate(said)
        if message.role in ("system", "tool") or at + 1 == len(said) or said[at + 1][0].role != message.role
    ]
    return [_for_host(message, calls=calls) for message, calls in kept]


def _for_host(message: Message, *, calls: bool) -> dict[str, Any]:
    """A message as OpenAI's API has it."""
    made: dict[str, Any] = {"role": message.role, "content": message.text}
    if message.role == "tool":
        made["tool_call_id"] = message.call_id
    if calls:
        functions = [(call, {"name": call.name, "arguments": call.arguments}) for call in message.calls]
        made["tool_calls"] = [
            {"id": call.id, "type": "function", "function": function} for call, function in functions
        ]
    return made
