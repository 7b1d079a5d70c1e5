"""``ChildAnswer``: from what a child makes to engine events: text without stop strings, counts, what is held.

This module knows nothing of how a child is asked, of queues, processes or restarts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import trio

from p2pnode.models.engine import Done, EngineEvent, GenerateRequest, Logprob, Prefill, Started, Tokens
from p2pnode.models.text import Released, TextAssembler
from p2pnode.models.vocabulary import Vocabulary
from p2pnode.protocols.inference.messages import FinishReason


class ChildAnswer:
    """The answer to one request, as far as it is made."""

    def __init__(self, request: GenerateRequest, vocabulary: Vocabulary) -> None:
        self._request = request
        known = len(request.prompt_ids) - request.text_pending
        self._text_pending = request.prompt_ids[known:]
        before = vocabulary.tail_of(request.prompt_ids[:known])
        self._text = TextAssembler(vocabulary.piece, request.sampling.stop, before=before)
        self._ids: list[int] = []
        self._logprobs: deque[Logprob] = deque()
        """Those of ids that were made and are not delivered."""
        self._started = False
        self.delivered = 0
        """Output tokens given to the caller so far."""
        self.first_token_at: float | None = None
        self.held: tuple[int, ...] = ()
        """What the cache holds for sure."""

    def _prefill(self, cached: int, processed: int) -> Iterator[EngineEvent]:
        """``processed`` tokens of the prompt are read, ``cached`` of them from the cache."""
        if self._ids:  # a later completion of the same request reads what was prompt and answer before
            return
        prompt = self._request.prompt_ids
        if not self._started:
            self._started = True
            yield Started(tokens_in=len(prompt), reused=cached)
        self.held = prompt[:processed]
        if processed > cached:
            yield Prefill(processed=processed, total=len(prompt))

    def _told_text(self) -> Iterator[EngineEvent]:
        """The text of the prompt's last ids, before the first new one."""
        pending, self._text_pending = self._text_pending, ()
        yield from self._released(self._text.release_pending(pending))

    def _deliver(self, ids: list[int]) -> Iterator[EngineEvent]:
        """New ids, in order. Their log-probabilities, where asked for, are in ``_logprobs``."""
        if not ids or self._text.stopped:
            return
        if self.first_token_at is None:
            self.first_token_at = trio.current_time()
        self._ids += ids
        # The last id was sampled, and is in the cache only once another was sampled after it.
        self.held = self._request.prompt_ids + tuple(self._ids[:-1])
        yield from self._released(self._text.feed(ids))

    def _end(self, *, end_of_turn: bool) -> Iterator[EngineEvent]:
        """The last events. ``end_of_turn``: the model said so, after the last id."""
        if not self._text.stopped:
            yield from self._released(self._text.finish(complete=end_of_turn))
        if end_of_turn:
            # Something was sampled after the last id, so that one is in the cache too.
            self.held = self._request.prompt_ids + tuple(self._ids)
        stopped = self._text.stopped or end_of_turn
        reason: FinishReason = "stop" if stopped else "length"
        yield Done(reason=reason, tokens_out=self.delivered, stop=self._text.stopped_by)

    def _released(self, released: Released) -> Iterator[EngineEvent]:
        if released.ids or released.text:
            self.delivered += len(released.ids)
            told = self._request.logprobs >= 0
            logprobs = tuple(self._logprobs.popleft() for _ in released.ids) if told else ()
            yield Tokens(ids=released.ids, text=released.text, logprobs=logprobs)


def sampling_of(request: GenerateRequest) -> dict[str, Any]:
    """How a request is sampled, by llama.cpp's names, which our own children take, too."""
    sampling = request.sampling
    return {
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "repeat_penalty": sampling.repeat_penalty,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "logit_bias": [[each.id, each.bias] for each in sampling.logit_bias],
    }


def logprobs_of(frame: Mapping[str, Any]) -> list[Logprob]:
    """The log-probabilities that come with ids, if they were asked for: see llama.cpp's ``n_probs``."""
    return [
        Logprob(
            float(each["logprob"]),
            tuple((int(other["id"]), float(other["logprob"])) for other in each.get("top_logprobs", ())),
        )
        for each in frame.get("completion_probabilities", ())
    ]
