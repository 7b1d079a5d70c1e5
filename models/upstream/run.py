"""``UpstreamRun``: one request to a server, from the parts of its answer to engine events. Pure.

The server tells text; ids are the tokenizer's (``text_ids.py``), or the server's own where it names the
tokens of a part, all of them. Stop strings and the budget are ours: whoever drives this stops reading, which
closes the request.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

from p2pnode.errors import EngineLostError
from p2pnode.models.engine import Done, EngineEvent, GenerateRequest, Logprob, Prefill, Started, Tokens
from p2pnode.models.text import Released, TextAssembler
from p2pnode.models.upstream.completion import Part, TokenTold
from p2pnode.models.upstream.text_ids import TextIds
from p2pnode.models.upstream.text_model import TextModel
from p2pnode.protocols.inference.messages import FinishReason

_OPENS, _CLOSES = "<think>\n", "\n</think>\n\n"


class UpstreamRun:
    """A request and its state. ``allowed`` is the most tokens that its answer may have."""

    def __init__(self, request: GenerateRequest, allowed: int, model: TextModel) -> None:
        self._request, self._allowed, self._model = request, allowed, model
        known = len(request.prompt_ids) - request.text_pending
        before = model.vocabulary.tail_of(request.prompt_ids[:known])
        self._text = TextAssembler(model.vocabulary.piece, request.sampling.stop, before=before)
        self._pending = request.prompt_ids[known:]
        self._ids = TextIds(model.speller)
        self._made = 0
        self._logprobs: deque[Logprob | None] = deque()
        """Of ids that were made and are not delivered."""
        self._started = self._is_read = self._marked = False
        self._thinks = False
        self._finish = ""
        self.delivered = 0
        """Output tokens given to the caller so far."""

    @property
    def over(self) -> bool:
        """Whether nothing more is wanted of the server."""
        return self._text.stopped or self._made >= self._allowed

    def take(self, parts: Sequence[Part]) -> Iterator[EngineEvent]:
        """The events of parts that arrived together; none where the server has just accepted the request."""
        if not self._started:
            self._started = True
            yield Started(tokens_in=len(self._request.prompt_ids), reused=0)
        if not parts:
            return
        yield from self._read()
        ids: list[int] = []
        for part in parts:
            ids += self._ids_of(part)
            self._finish = part.finish or self._finish
            self._marked |= part.marked
        yield from self._deliver(ids)

    def _read(self) -> Iterator[EngineEvent]:
        """The prompt was read, if that was not known yet: the first part came."""
        if self._is_read:
            return
        self._is_read = True
        yield Prefill(processed=len(self._request.prompt_ids), total=len(self._request.prompt_ids))
        pending, self._pending = self._pending, ()
        yield from self._released(self._text.release_pending(pending))

    def end(self) -> Iterator[EngineEvent]:
        """The answer ended, or nothing more of it is wanted.

        Raises ``EngineLostError`` for one that broke off: it gave no reason for its end, and no mark of it.
        """
        yield from self._read()
        if not self.over:
            if self._finish in ("error", "abort", "content_filter"):
                raise EngineLostError(f"the server behind this host gave the answer up ({self._finish})")
            if not self._finish and not self._marked:
                raise EngineLostError("the server behind this host broke off; ask again", retry_after_s=1.0)
            yield from self._deliver(list(self._ids.finish()))
        reason: FinishReason = "length" if self._finish == "length" and not self._text.stopped else "stop"
        if self._made >= self._allowed and not self._text.stopped and self._finish != "stop":
            reason = "length"
        if not self._text.stopped:
            yield from self._released(self._text.finish(complete=reason == "stop"))
        yield Done(reason=reason, tokens_out=self.delivered, stop=self._text.stopped_by)

    def _ids_of(self, part: Part) -> Iterator[int]:
        text = part.text
        if part.thought:
            text = ("" if self._thinks else _OPENS) + part.thought
            self._thinks = True
        elif part.text and self._thinks:
            text, self._thinks = _CLOSES + part.text, False
        told = self._told(part.tokens, text) if self._request.logprobs >= 0 else None
        if told is not None:
            yield from self._without_logprobs(self._ids.finish())
            for token, logprob in told:
                self._logprobs.append(logprob)
                yield token
        elif text:
            yield from self._without_logprobs(self._ids.feed(text))

    def _without_logprobs(self, ids: Sequence[int]) -> Sequence[int]:
        self._logprobs += [None] * len(ids)
        return ids

    def _told(self, tokens: Sequence[TokenTold], text: str) -> list[tuple[int, Logprob]] | None:
        """The part's tokens by the server's word, where they spell its text and the vocabulary has them."""
        if not text or b"".join(each.spelled for each in tokens) != text.encode():
            return None
        speller, found = self._model.speller, list[tuple[int, Logprob]]()
        piece = self._model.vocabulary.piece
        for each in tokens:
            token = each.id if each.id is not None else speller.id_of(each.spelled)
            if token is None or piece(token) != each.spelled:
                return None
            top = tuple(
                (other, logprob)
                for spelled, named, logprob in each.top
                if (other := named if named is not None else speller.id_of(spelled)) is not None
            )
            found.append((token, Logprob(each.logprob, top[: self._request.logprobs])))
        return found

    def _deliver(self, ids: list[int]) -> Iterator[EngineEvent]:
        if self._text.stopped:
            return
        ids = ids[: self._allowed - self._made]
        self._made += len(ids)
        if ids:
            yield from self._released(self._text.feed(ids))

    def _released(self, released: Released) -> Iterator[EngineEvent]:
        if not released.ids and not released.text:
            return
        self.delivered += len(released.ids)
        told = [self._logprobs.popleft() for _ in released.ids] if self._logprobs else []
        whole = [each for each in told if each is not None]
        logprobs = tuple(whole) if len(whole) == len(released.ids) else ()
        yield Tokens(ids=released.ids, text=released.text, logprobs=logprobs)
