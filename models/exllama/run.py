"""``ExllamaRun``: one request to a child of this engine, from its frames to engine events.

A frame has every id, so that nothing is guessed. This module knows nothing of queues, processes or restarts.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from typing import Any

from p2pnode.models.child.http import ChildGoneError, ChildHttp
from p2pnode.models.child.run import ChildAnswer, logprobs_of, sampling_of
from p2pnode.models.engine import EngineEvent, GenerateRequest
from p2pnode.models.grammar import AnyGrammar, PackedGrammar
from p2pnode.models.slots import Assignment
from p2pnode.models.vocabulary import Vocabulary


class ExllamaRun(ChildAnswer):
    """A request and its state. ``allowed`` is the most tokens that its answer may have."""

    def __init__(
        self, request: GenerateRequest, allowed: int, vocabulary: Vocabulary, *, hang_s: float
    ) -> None:
        super().__init__(request, vocabulary)
        self._allowed = allowed
        self._hang_s = hang_s

    async def events(self, http: ChildHttp, assignment: Assignment) -> AsyncGenerator[EngineEvent, None]:  # noqa: ARG002
        """Run the request; yield its events. Raises what ``http`` raises.

        The child chooses the pages, within the request's cache key.
        """
        end: str | None = None
        async with aclosing(http.stream("/completion", self._body(), stall_s=self._hang_s)) as bulks:
            async for bulk in bulks:
                made: list[int] = []
                for frame in bulk:
                    if (progress := frame.get("prompt_progress")) is not None:
                        for event in self._prefill(int(progress["cache"]), int(progress["processed"])):
                            yield event
                        continue
                    end = str(frame["stop_type"]) if frame["stop"] else None
                    made += frame["tokens"]
                    self._logprobs += logprobs_of(frame)
                for event in self._made(made, over=end is not None):
                    yield event
                if self._text.stopped or end is not None:
                    break
            else:
                raise ChildGoneError("the stream ended early")
        for event in self._end(end_of_turn=end == "eos"):
            yield event

    def _made(self, ids: list[int], *, over: bool) -> Iterator[EngineEvent]:
        if not ids and not over:
            return
        if not self._ids:
            yield from self._prefill(0, len(self._request.prompt_ids))
            yield from self._told_text()
        yield from self._deliver(ids)

    def _body(self) -> dict[str, Any]:
        return self.body_of(self._request, self._allowed, self._text_pending)

    @staticmethod
    def body_of(request: GenerateRequest, allowed: int, begun: Sequence[int] = ()) -> dict[str, Any]:
        """What the child is asked. ``begun``: ids of the prompt that a grammar still has to take."""
        return {
            "prompt": request.prompt_ids,
            "n_predict": allowed,
            "scope": request.cache_key.hex(),
            "seed": request.seed,
            **sampling_of(request),
            **({} if request.grammar is None else {"grammar": _rules(request.grammar), "begun": begun}),
            **({"n_probs": request.logprobs} if request.logprobs >= 0 else {}),
        }


def _rules(grammar: AnyGrammar) -> str:
    return (grammar if isinstance(grammar, PackedGrammar) else grammar.packed()).rules
