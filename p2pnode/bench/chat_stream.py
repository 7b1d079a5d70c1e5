"""One answer of an OpenAI chat API as a stream, and when its parts came: read alike from any server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

import trio

from p2pnode.errors import LocalError
from p2pnode.models.child.http import ChildGoneError, ChildHttp, ChildHungError, ChildRefusedError
from p2pnode.models.llamacpp.run import SAMPLERS
from p2pnode.protocols.inference.messages import SamplingParams

CHAT: Final = "/v1/chat/completions"
_STALL_S: Final = 600.0
"""A slow machine reads 4,000 tokens with one thread in minutes, and no text comes meanwhile."""


@dataclass(slots=True)
class ChatStream:
    """Times are seconds of trio's clock; ``tokens`` and ``cached`` are what the server's usage says."""

    asked_at: float
    first_at: float = 0.0
    """When the first text came."""
    last_at: float = 0.0
    text: str = ""
    tokens: int = 0
    tokens_in: int = 0
    cached: int = 0

    @property
    def first_token_s(self) -> float:
        """Seconds from asking to the first text."""
        return self.first_at - self.asked_at

    def take(self, frame: Mapping[str, Any], now: float) -> None:
        """Note what came."""
        said = "".join(each["delta"].get("content") or "" for each in frame.get("choices", ()))
        if said:
            self.first_at = self.first_at or now
            self.last_at = now
            self.text += said
        usage = frame.get("usage")
        if usage:
            self.tokens, self.tokens_in = usage["completion_tokens"], usage["prompt_tokens"]
            self.cached = usage["prompt_tokens_details"]["cached_tokens"]


def chat_request(
    messages: Sequence[Mapping[str, str]], model: str, tokens: int, **more: Any
) -> dict[str, Any]:
    """The body of a request for a greedy answer. It says what each server has another default for."""
    usual = SamplingParams()
    return {
        "model": model,
        "messages": messages,
        "max_tokens": tokens,
        "temperature": 0.0,
        "top_k": usual.top_k,
        "top_p": usual.top_p,
        "min_p": usual.min_p,
        "samplers": SAMPLERS,
        "stream": True,
        "stream_options": {"include_usage": True},
        **more,
    }


async def chat(http: ChildHttp, request: Mapping[str, Any]) -> ChatStream:
    """Ask, and read to the end. Raises ``LocalError``."""
    stream = ChatStream(trio.current_time())
    try:
        async with aclosing(http.stream(CHAT, request, stall_s=_STALL_S)) as bulks:
            async for bulk in bulks:
                now = trio.current_time()
                for frame in bulk:
                    stream.take(frame, now)
    except (ChildGoneError, ChildHungError, ChildRefusedError) as error:
        msg = f"the server at {http.address} gave no whole answer: {str(error) or type(error).__name__}"
        raise LocalError(msg) from error
    return stream
