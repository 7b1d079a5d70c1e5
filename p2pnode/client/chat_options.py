"""``ChatOptions``: all that a question is asked with besides its messages.

It is imported before it is known whether a network will be: it must not import one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from p2pnode.client.hedging import HedgeMode
from p2pnode.client.ranking import Candidate, CostBound, Filters, TurnBound
from p2pnode.errors import ConfigError
from p2pnode.ids import PeerId
from p2pnode.protocols.inference.messages import ChatMessage, ResponseFormat, SamplingParams, Tool
from p2pnode.protocols.inference.prompt_rules import JSON_DEPTH_MAX

if TYPE_CHECKING:
    from p2pnode.payments.journal.keys import Key

ContextChoice: TypeAlias = Literal["refuse", "drop-oldest"]
Messages: TypeAlias = str | Sequence[Mapping[str, Any] | ChatMessage]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatOptions:
    """How a question is asked; the parameters of ``Client.chat``."""

    model: str | None = None
    peer: str | None = None
    system: str | None = None
    sampling: SamplingParams | None = None
    filters: Filters | None = None
    context: ContextChoice = "refuse"
    """What becomes of a conversation that fits no host: it is refused, or loses its oldest messages."""
    tools: tuple[Tool, ...] = ()
    tool_choice: str = "auto"
    parallel_tool_calls: bool = True
    response_format: ResponseFormat = field(default_factory=ResponseFormat)
    logprobs: int = -1
    seed: bytes | None = None
    """16 bytes; drawn for each answer where there is none."""
    budget: Key | None = None
    """The key whose budget pays, and which says what may be asked of whom; None for the wallet's limits
    alone."""
    cache_key: bytes | None = None
    """16 bytes. Turns of one session share a host's cache where they have the same key."""
    prefer: PeerId | None = None
    """The host that is asked first where a session with it is there: it may have the prompt in its cache."""
    hedge: HedgeMode | None = None
    """Whether a second host is asked where the first token is late; None: as the configuration says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a question can cost at a host, before anything is signed."""

    candidate: Candidate
    turn: TurnBound
    cost: CostBound


def tools_of(given: Sequence[Mapping[str, Any]]) -> tuple[Tool, ...]:
    """Tools as OpenAI's API has them, or their functions alone. Raises ``ConfigError``."""
    try:
        functions = [each.get("function", each) for each in given]
        return tuple(
            Tool(
                name=text_of(each["name"]),
                description=text_of(each.get("description") or ""),
                parameters=json_text_of(each["parameters"]) if each.get("parameters") else "",
            )
            for each in functions
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        msg = 'each tool is {"name": …, "description": …, "parameters": a JSON Schema of an object}'
        raise ConfigError(msg) from error
    except RecursionError as error:
        raise ConfigError(f"a tool nests deeper than {JSON_DEPTH_MAX} levels") from error


def text_of(value: object) -> str:
    """A value that has to be text. Raises ``TypeError``."""
    if not isinstance(value, str):
        raise TypeError
    return value


def json_text_of(value: object) -> str:
    """A value as JSON; text is taken for JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, allow_nan=False)
