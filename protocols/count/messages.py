"""Messages of ``/p2pnode/count/1``. See ``SPEC.md`` for states, limits and byte vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final

from p2pnode.protocols.inference.messages import (
    N_CTX_MAX,
    ModelIdBytes,
    Prompt,
    Refuse,
    prompt_bytes_max,
)
from p2pnode.protocols.wire import Codec, Range, message

PROTOCOL: Final = "/p2pnode/count/1"


@message("count")
@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """A prompt of ``total`` bytes for ``model`` follows, in parts of turn 1."""

    model: ModelIdBytes
    total: Annotated[int, Range(1, prompt_bytes_max(N_CTX_MAX))]


@message("counted")
@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """It takes ``tokens_in`` tokens of a context of ``n_ctx``, and leaves room for one at least."""

    tokens_in: Annotated[int, Range(1, N_CTX_MAX)]
    n_ctx: Annotated[int, Range(1, N_CTX_MAX)]


CODEC: Final = Codec(Count, Prompt, Counted, Refuse)
