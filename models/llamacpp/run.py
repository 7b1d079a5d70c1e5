"""``LlamaCppRun``: one request to llama.cpp, from its frames to engine events.

Most requests are one streamed completion. llama.cpp sends nothing inside a UTF-8 character: a frame carries
only the id it was sent for, and the ids of the tokens that began the character never come.
``tokens_predicted`` tells how many there were. ``IdStream`` recovers them where text and vocabulary allow one
answer only. Where they don't, the stream is dropped, the lost ids are made again without streaming (which
does give every id), and a new stream goes on from there. The slot's cache holds everything before, so that
this costs milliseconds.

This module knows nothing of queues, processes or restarts.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping
from contextlib import aclosing
from typing import Any, Final

from p2pnode.errors import EngineError
from p2pnode.models.child.http import ChildGoneError, ChildHttp
from p2pnode.models.child.run import ChildAnswer, logprobs_of, sampling_of
from p2pnode.models.engine import EngineEvent, GenerateRequest
from p2pnode.models.grammar import Grammar, GrammarError, grammar_after
from p2pnode.models.slots import Assignment
from p2pnode.models.token_mask import TokenMask, TokenTable
from p2pnode.models.vocabulary import Vocabulary

_RANDOM_SEED: Final = 0xFFFFFFFF  # llama.cpp draws a seed of its own for this one
_SURE: Final = 100.0
"""Added to the logits of the only ids that may follow."""
_CONTINUES: Final = 0x80
"""The first two bits of a byte that goes on with a UTF-8 letter."""
SAMPLERS: Final = ("penalties", "top_k", "top_p", "min_p", "temperature")


class LlamaCppRun(ChildAnswer):
    """A request and its state. ``allowed`` is the most tokens that its answer may have."""

    def __init__(
        self, request: GenerateRequest, allowed: int, vocabulary: Vocabulary, *, hang_s: float
    ) -> None:
        super().__init__(request, vocabulary)
        self._allowed = allowed
        self._vocabulary = vocabulary
        self._hang_s = hang_s
        self._inside_letter = False
        """Whether what is shaped by a grammar was begun inside of a letter: one id is made at a time until it
        is whole."""

    async def events(self, http: ChildHttp, assignment: Assignment) -> AsyncGenerator[EngineEvent, None]:
        """Run the request; yield its events. Raises what ``http`` raises."""
        reuse = assignment.own
        while True:
            ids = IdStream(self._vocabulary, guesses=self._request.logprobs < 0)
            body = self._body(assignment.slot, reuse=reuse)
            async with aclosing(http.stream("/completion", body, stall_s=self._hang_s)) as bulks:
                async for bulk in bulks:
                    for event in self._take(bulk, ids, assignment):
                        yield event
                    if self._text.stopped or ids.lost or ids.ended:
                        break
                else:
                    raise ChildGoneError("the stream ended early")
            end_of_turn = ids.end_of_turn
            if ids.lost and not self._text.stopped:
                made, end_of_turn = await self._make_again(http, assignment.slot, ids.lost)
                for event in self._deliver(made):
                    yield event
            short = self._inside_letter  # it ended because one id was asked for
            complete = (ids.ended and not ids.lost and not short) or len(self._ids) >= self._allowed
            if self._text.stopped or end_of_turn or complete:
                break
            reuse = True
        for event in self._end(end_of_turn=end_of_turn):
            yield event

    def _take(
        self, bulk: Iterable[Mapping[str, Any]], ids: IdStream, assignment: Assignment
    ) -> Iterator[EngineEvent]:
        """The events of frames that arrived together, with one ``Tokens`` for all their ids."""
        certain: list[int] = []
        for frame in bulk:
            if (progress := frame.get("prompt_progress")) is not None:
                yield from self._prefill(int(progress["cache"]), int(progress["processed"]))
                continue
            if not self._started:
                yield from self._prefill(assignment.reusable, len(self._request.prompt_ids))
            yield from self._told_text()
            certain += ids.take(frame)
            if ids.lost:
                break
            if not frame.get("stop"):
                self._logprobs += logprobs_of(frame)
        yield from self._deliver(certain)

    async def _make_again(self, http: ChildHttp, slot: int, lost: int) -> tuple[list[int], bool]:
        """Make the next ``lost`` ids again; return them, and whether the turn ended after them."""
        body = self._body(slot, reuse=True) | {"stream": False, "n_predict": lost}
        answer = await http.call("/completion", body, deadline_s=self._hang_s)
        ids, end_of_turn = [int(token) for token in answer["tokens"]], answer["stop_type"] == "eos"
        self._logprobs += logprobs_of(answer)
        return (ids[:-1] if end_of_turn else ids), end_of_turn

    def _body(self, slot: int, *, reuse: bool) -> dict[str, Any]:
        return {
            "prompt": [*self._request.prompt_ids, *self._ids],
            "n_predict": self._allowed - len(self._ids),
            **sampling_of(self._request),
            # A call has one seed. Where ids were lost inside of a character, what follows is drawn anew.
            "seed": (self._request.seed + len(self._ids)) % _RANDOM_SEED,
            "samplers": SAMPLERS,
            "stream": True,
            "return_tokens": True,
            "return_progress": True,
            "cache_prompt": reuse,
            "id_slot": slot,
            **self._shape(),
            # One at least, for the ids' own are told with them.
            **({"n_probs": max(1, self._request.logprobs)} if self._request.logprobs >= 0 else {}),
        }

    def _shape(self) -> dict[str, Any]:
        """What may follow, in llama.cpp's notation, which begins anew with each completion.

        llama.cpp's grammars know whole letters only. Inside of one, the ids that can complete it are so much
        likelier than all others that one of them is taken, and no more than that is asked for.
        """
        grammar = self._request.grammar
        if grammar is None:
            return {}
        prompt = self._request.prompt_ids
        begun = prompt[len(prompt) - self._request.text_pending :] + tuple(self._ids)
        spelled = b"".join(map(self._vocabulary.piece, begun))
        try:
            rest, part = grammar_after(grammar, spelled)
            self._inside_letter = bool(part)
            if not part:
                return {"grammar": rest.gbnf()}
            bias = [[token, _SURE] for token in self._ids_within(rest.unpacked(), part)]
        except GrammarError as error:
            raise EngineError(str(error), code="bad_request") from error
        return {"logit_bias": [*sampling_of(self._request)["logit_bias"], *bias], "n_predict": 1}

    def _ids_within(self, grammar: Grammar, part: bytes) -> list[int]:
        """The ids that may follow the part of a letter. Raises ``GrammarError`` for none."""
        pieces = [
            piece if piece and piece[0] & 0xC0 == _CONTINUES else b"" for piece in self._vocabulary.pieces
        ]
        table = TokenTable([*pieces, part], ())  # the last one stands for what was begun
        mask = TokenMask(table, grammar)
        allowed = mask.allowed() if mask.feed([len(pieces)]) else b""
        found = [token for token, may in zip(table.order, allowed, strict=False) if may]
        if not found:
            msg = "the letter that was begun is none that the format allows: ask anew"
            raise GrammarError(msg)
        return found


class IdStream:
    """From the frames of one streamed completion to its ids, each exactly once. Pure."""

    def __init__(self, vocabulary: Vocabulary, *, guesses: bool = True) -> None:
        self._vocabulary, self._guesses = vocabulary, guesses
        self._predicted = 0
        self._silent: list[int] = []
        """Ids without text, held until it shows that they are not the end of the turn."""
        self.lost = 0
        """How many ids after the certain ones exist and are unknown. Nothing is taken after this."""
        self.ended = False
        """The last frame came."""
        self.end_of_turn = False
        """The model ended its turn (meaningful once ``ended``, and nothing is ``lost``)."""

    def take(self, frame: Mapping[str, Any]) -> tuple[int, ...]:
        """The ids that ``frame`` makes certain."""
        predicted = int(frame["tokens_predicted"])
        made = predicted - self._predicted
        self._predicted = predicted
        if frame.get("stop"):
            return self._end(made, frame.get("stop_type") == "eos")
        *_, last = frame["tokens"]
        before: tuple[int, ...] | None = ()
        if made > 1:
            # What is found out has no log-probability.
            before = (
                self._vocabulary.recover(str(frame["content"]), last, made - 1) if self._guesses else None
            )
        certain = tuple(self._silent)
        self._silent.clear()
        if before is None:
            self.lost = made
            return certain
        certain += before
        if last in self._vocabulary.silent:
            self._silent.append(last)
            return certain
        return (*certain, last)

    def _end(self, made: int, end_of_turn: bool) -> tuple[int, ...]:
        self.ended = True
        # The end of turn may be among ids that are missing at the very end, so they are made again.
        self.lost = made
        self.end_of_turn = end_of_turn and not made
        if self.end_of_turn and self._silent:
            self._silent.pop()
        return tuple(self._silent)
