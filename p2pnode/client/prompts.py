"""What a user says, as the messages of a prompt. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from p2pnode.errors import ConfigError
from p2pnode.protocols.inference.messages import ChatMessage

Messages: TypeAlias = str | Sequence[Mapping[str, str]]
"""A question, or a conversation as ``{"role", "content"}`` maps."""


def messages_of(messages: Messages, system: str | None = None) -> tuple[ChatMessage, ...]:
    """Checked, with ``system`` before them. Raises ``ConfigError`` that says what a message is."""
    given: Sequence[Any] = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
    made = [ChatMessage(role="system", content=system)] if system else []
    for message in given:
        role, content = message.get("role"), message.get("content")
        if role not in ("system", "user", "assistant") or not isinstance(content, str):
            msg = 'each message is {"role": "system"|"user"|"assistant", "content": text}'
            raise ConfigError(msg)
        made.append(ChatMessage(role=role, content=content))
    if not all(_is_text(message.content) for message in made):
        msg = "a message holds half of a character (a lone surrogate): decode it as UTF-8 first"
        raise ConfigError(msg)
    if not made:
        msg = "there is nothing to ask: give at least one message"
        raise ConfigError(msg)
    return tuple(made)


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
