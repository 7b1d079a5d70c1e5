"""What every engine refuses before a request takes a place in its queue. Pure.

Hosts check what a peer asked, and engines check again: a value that reaches an engine's native code unchecked
can stop it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from p2pnode.errors import EngineError
from p2pnode.protocols.inference.messages import SamplingParams

if TYPE_CHECKING:  # a command checks what was typed before it knows whether it needs more than this
    from p2pnode.models.engine import EmbedRequest, GenerateRequest

SEED_MAX: Final = (1 << 32) - 2
LOGIT_BIAS_MAX: Final = 300
STOP_STRINGS_MAX: Final = 16
STOP_BYTES_MAX: Final = 256

_INTEGERS: Final = {
    "tokens_max": (1, 1 << 20),
    "top_k": (0, 100_000),
}
_NUMBERS: Final = {
    "temperature": (0.0, 2.0),
    "top_p": (0.01, 1.0),
    "min_p": (0.0, 1.0),
    "repeat_penalty": (0.5, 2.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
}


def validate_sampling(sampling: SamplingParams, vocabulary: int | None = None) -> None:
    """Raise ``EngineError(code="bad_request")`` that names the first wrong field and its range.

    ``vocabulary`` counts the model's tokens, where they are known.
    """
    for field, (least, most) in _INTEGERS.items():
        value = getattr(sampling, field)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise _bad(field, value, f"an integer from {least} to {most}")
    for field, (low, high) in _NUMBERS.items():
        value = getattr(sampling, field)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or not low <= value <= high:
            raise _bad(field, value, f"a number from {low:g} to {high:g}")
    if len(sampling.logit_bias) > LOGIT_BIAS_MAX:
        raise _bad("logit_bias", f"{len(sampling.logit_bias)} tokens", f"at most {LOGIT_BIAS_MAX} tokens")
    if any(not -100 <= each.bias <= 100 for each in sampling.logit_bias):  # noqa: PLR2004 - as in the field
        raise _bad("logit_bias", "one of its biases", "numbers from -100 to 100")
    if vocabulary is not None and any(each.id >= vocabulary for each in sampling.logit_bias):
        raise _bad("logit_bias", "of ids that are no tokens", f"of ids from 0 to {vocabulary - 1}")
    if len(sampling.stop) > STOP_STRINGS_MAX:
        raise _bad("stop", f"{len(sampling.stop)} strings", f"at most {STOP_STRINGS_MAX} strings")
    for text in sampling.stop:
        if not isinstance(text, str) or not 1 <= _utf8_bytes(text) <= STOP_BYTES_MAX:
            raise _bad("stop", "one of its strings", f"1 to {STOP_BYTES_MAX} bytes of valid text each")


def _utf8_bytes(text: str) -> int:
    try:
        return len(text.encode())
    except UnicodeEncodeError:  # a lone surrogate
        return 0


def _bad(field: str, value: object, wanted: str) -> EngineError:
    # Cut short: a stranger sent the value, and the message is logged.
    return EngineError(f"{field} is {str(value)[:40]}; it must be {wanted}", code="bad_request")


BYTES_PER_TOKEN_MAX: Final = 64
"""No vocabulary in use has longer tokens on average, so that a longer text can't fit."""


def tokens_allowed(request: GenerateRequest, *, n_ctx: int, vocabulary: int) -> int:
    """How many tokens the answer may have: what was asked for, cut to what the context has left.

    Raises ``EngineError``: ``context_overflow`` when not even one fits, ``bad_request`` for any other
    mistake.
    """
    validate_sampling(request.sampling, vocabulary)
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
    if not 0 <= request.seed <= SEED_MAX:
        raise EngineError(f"the seed of a call is from 0 to {SEED_MAX}", code="bad_request")
    if not 0 <= request.text_pending <= len(request.prompt_ids):
        raise EngineError(
            f"text_pending is {request.text_pending}; it counts ids of the prompt, which has "
            f"{len(request.prompt_ids)}",
            code="bad_request",
        )
    return min(request.sampling.tokens_max, room)


def check_embed(request: EmbedRequest, *, n_ctx: int, vocabulary: int) -> None:
    """Raise ``EngineError`` for texts that can't be embedded."""
    for ids in request.texts:
        if not ids:
            raise EngineError("a text is empty; send at least one token", code="bad_request")
        if len(ids) > n_ctx:
            raise EngineError(
                f"a text has {len(ids)} tokens, the context is {n_ctx}; cut it or choose another host",
                code="context_overflow",
            )
        if not 0 <= min(ids) <= max(ids) < vocabulary:
            raise EngineError(f"ids of texts must be from 0 to {vocabulary - 1}", code="bad_request")


def no_embeddings() -> EngineError:
    """What an engine says that makes none."""
    msg = (
        "this host's engine makes no embeddings: ask one that does "
        "(`p2pnode hosts --why --needs embeddings` shows them)"
    )
    return EngineError(msg, code="bad_request")


def check_text(text: str, *, n_ctx: int) -> None:
    """Raise ``EngineError`` for text that can't fit however it is tokenised, before any work on it."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise EngineError("the text holds lone surrogates; send valid Unicode", code="bad_request") from error
    if size > n_ctx * BYTES_PER_TOKEN_MAX:
        raise EngineError(
            f"the text has {size} bytes, too many for a context of {n_ctx} tokens; shorten it",
            code="context_overflow",
        )
