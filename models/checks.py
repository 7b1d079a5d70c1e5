"""What every engine refuses before it takes a place in its queue. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from p2pnode.errors import EngineError
from p2pnode.models.engine import GenerateRequest
from p2pnode.models.sampling import validate_sampling

ROLES: Final = ("system", "user", "assistant")
# No vocabulary in use has longer tokens on average: what is longer than this can't fit.
_BYTES_PER_TOKEN_MAX: Final = 64


def tokens_allowed(request: GenerateRequest, *, n_ctx: int, vocabulary: int) -> int:
    """How many tokens the answer may have: what was asked for, cut to the context.

    Raises ``EngineError``: ``context_overflow`` when not even one fits, ``bad_request`` otherwise.
    """
    validate_sampling(request.sampling)
    if not request.prompt_ids:
        raise EngineError("the prompt is empty; send at least one token", code="bad_request")
    room = n_ctx - len(request.prompt_ids)
    if room < 1:
        raise EngineError(
            f"the prompt has {len(request.prompt_ids)} tokens, the context is {n_ctx}; "
            "shorten the conversation or choose a host with a larger context",
            code="context_overflow",
        )
    if not 0 <= min(request.prompt_ids) <= max(request.prompt_ids) < vocabulary:
        raise EngineError(f"prompt ids must be from 0 to {vocabulary - 1}", code="bad_request")
    if not 0 <= request.untold <= len(request.prompt_ids):
        raise EngineError(
            f"untold is {request.untold}; it counts ids of the prompt, which has {len(request.prompt_ids)}",
            code="bad_request",
        )
    return min(request.sampling.tokens_max, room)


def check_text(text: str, *, n_ctx: int) -> None:
    """Refuse text that could not fit however it is tokenised, before any work is done on it."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise EngineError("the text holds lone surrogates; send valid Unicode", code="bad_request") from error
    if size > n_ctx * _BYTES_PER_TOKEN_MAX:
        raise EngineError(
            f"the text has {size} bytes, too many for a context of {n_ctx} tokens; shorten it",
            code="context_overflow",
        )


def check_messages(messages: Sequence[Mapping[str, str]], *, n_ctx: int) -> None:
    """Refuse what is no conversation."""
    if not messages:
        raise EngineError("the conversation is empty; send at least one message", code="bad_request")
    for message in messages:
        role, content = message.get("role"), message.get("content")
        if role not in ROLES or not isinstance(content, str):
            raise EngineError(
                f"each message needs a role ({', '.join(ROLES)}) and a content that is text",
                code="bad_request",
            )
    check_text("".join(message["content"] for message in messages), n_ctx=n_ctx)
