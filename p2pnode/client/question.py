"""What a user asks: the model by its name, the conversation as maps. Checked before anything is searched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from p2pnode.errors import ConfigError
from p2pnode.ids import ModelId
from p2pnode.models.catalogue import Catalogue
from p2pnode.models.manifest import Manifest, parse_model_id
from p2pnode.models.scripted_model import SCRIPTED, scripted_model_id
from p2pnode.protocols.inference.messages import (
    TEMPLATE_TOKENS_MAX,
    TEMPLATE_TOKENS_PER_MESSAGE_MAX,
    ChatMessage,
    PromptBody,
)

Messages: TypeAlias = str | Sequence[Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A model as the client knows it: the id, and the manifest where the catalogue has it."""

    model: ModelId
    manifest: Manifest | None = None

    def input_max(self, body: PromptBody) -> int:
        """The largest honest quote for this turn, in tokens."""
        size = sum(len(message.content.encode()) for message in body.messages)
        count = len(body.messages)
        if self.manifest is not None:
            return len(body.prefix) + self.manifest.template_overhead.tokens_max(count, size)
        return len(body.prefix) + size + TEMPLATE_TOKENS_MAX + TEMPLATE_TOKENS_PER_MESSAGE_MAX * count


def resolve_model(name: str) -> KnownModel:
    """A catalogue name, a model id (``m1…``) or a GGUF file that was pulled. Raises ``ConfigError``."""
    if name == SCRIPTED:
        return KnownModel(scripted_model_id())
    if name.startswith("m1"):
        try:
            model = parse_model_id(name)
        except ConfigError:
            pass
        else:
            manifests = (entry.manifest for entry in Catalogue.load() if entry.model_id == model)
            return KnownModel(model, next(manifests, None))
    entry = Catalogue.load().find(name)
    if entry.model_id is None:
        msg = f"{name} is a file: ask for it by its model id, which `p2pnode models list` and its host print"
        raise ConfigError(msg)
    return KnownModel(entry.model_id, entry.manifest)


def conversation(messages: Messages, system: str | None) -> tuple[ChatMessage, ...]:
    """The wire form of a question or a conversation. Raises ``ConfigError``."""
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
