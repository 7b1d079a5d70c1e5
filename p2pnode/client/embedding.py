"""``Embedding``: the vectors of many texts, of as many turns as they take.

A turn takes 256 texts and 8,192 tokens. How many tokens a text has is known to its host; a client knows that
they are no more than its bytes. Each turn is an ``Answer`` underneath, so that hosts are found, paid, and
followed by others as for a question.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from p2pnode.client import interface
from p2pnode.client.answer import Answer
from p2pnode.client.bill import BillItem
from p2pnode.client.failover import DISAGREES, is_failure
from p2pnode.errors import ConfigError, NoHostError, P2PNodeError, RefusedError
from p2pnode.ids import PeerId
from p2pnode.protocols.inference.embeddings import FLOAT_BYTES, embed_tokens_max, vector_numbers
from p2pnode.protocols.inference.messages import EMBED_MAX, EMBED_TOKENS_MAX

_HOSTS: Final = "`p2pnode hosts --why --needs embeddings` shows them"


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingTurn:
    """A turn of several that embed a list of texts."""

    texts: tuple[str, ...]
    spent: int = 0
    """Token units that the turns before it cost."""
    vector_size: int = 0
    """Bytes of each vector that came before; 0 where none did."""
    passed_over: frozenset[PeerId] = frozenset()
    """Hosts whose vectors can't be of the model that these are of."""


MakeAnswer: TypeAlias = Callable[[EmbeddingTurn], Answer]


class Embedding(interface.Embedding):
    """``async for vector in embedding``: an array of float32 for each text, in the order of the texts.

    Those of one turn come together, when its receipt was checked. After the end, and after an error,
    ``vectors`` has what came and ``bill`` what it cost. Ask again for ``texts[len(vectors):]`` to go on.
    """

    def __init__(self, texts: Sequence[str], make: MakeAnswer, *, nobody: str = "") -> None:
        """``nobody`` is what helps where no host embeds."""
        self._turns = _turns_of(checked_texts(texts))
        self._make, self._nobody = make, nobody
        self._count = len(texts)
        self._answer: Answer | None = None
        self._turn: tuple[str, ...] = ()
        self._begun_at = 0
        """How many texts went before those of the turn."""
        self._billed: list[BillItem] = []
        self._given = 0
        self._passed_over: frozenset[PeerId] = frozenset()
        self.vectors: list[array[float]] = []
        """Those that came so far."""

    @property
    def bill(self) -> tuple[BillItem, ...]:
        """What each host was used for, in order."""
        return (*self._billed, *(self._answer.bill if self._answer is not None else ()))

    async def __anext__(self) -> array[float]:
        while self._given == len(self.vectors):
            if self._answer is None:
                texts = next(self._turns, None)
                if texts is None:
                    raise StopAsyncIteration
                self._turn, self._begun_at = texts, len(self.vectors)
                size = FLOAT_BYTES * len(self.vectors[0]) if self.vectors else 0
                self._answer = self._make(
                    EmbeddingTurn(
                        texts=texts, spent=self.cost, vector_size=size, passed_over=self._passed_over
                    )
                )
            await self._finish(self._answer)
        self._given += 1
        return self.vectors[self._given - 1]

    async def _finish(self, answer: Answer) -> None:
        is_whole = False
        try:
            async for _ in answer.events():
                pass
            is_whole = True
        except P2PNodeError as error:
            told = self._explained(error, answer)
            if told is error:
                raise
            raise told from error
        finally:
            # Those of a turn that was cut short are paid, too, and stay.
            self.vectors += map(vector_numbers, answer.vectors)
            self._billed += answer.bill
            # It is not known who is right. But vectors of one list are to be of one model.
            self._passed_over |= {item.peer for item in answer.bill if item.reason == DISAGREES}
            self._answer = None
            if not is_whole:
                self._turns = iter(())  # vectors of later texts would stand in the place of those that lack

    def _explained(self, error: P2PNodeError, answer: Answer) -> P2PNodeError:
        """The error of a turn in words about texts, with what came and where to go on."""
        came, text = self._begun_at + len(answer.vectors), str(error)
        code = error.code if isinstance(error, RefusedError) else ""
        if code == "context_overflow":
            text += f". {self._longest(came)}: cut it, or choose a host with a larger context ({_HOSTS})"
        elif code == "bad_request" and len(self._turn) == 1:
            text += f". {self._longest(came)}: cut it"
        elif is_failure(error) and (came or answer.host is not None):
            what = f"text {came + 1} and those after it" if came else "these texts"
            text = f"no host is left for {what}: {error}"
            error = NoHostError(text)
        elif self._nobody and (isinstance(error, NoHostError) or code == "model_not_available"):
            text += f". {self._nobody}"
        if came and not any(item.reason == DISAGREES for item in answer.bill):
            good = "1 vector came and is good" if came == 1 else f"{came} vectors came and are good"
            text += f". {good}: go on with text {came + 1}"
        error.args = (text, *error.args[1:])
        return error

    def _longest(self, came: int) -> str:
        """Which text of the turn is too long, as far as bytes tell."""
        sizes = [len(text.encode()) for text in self._turn]
        place = sizes.index(max(sizes[came - self._begun_at :] or sizes))
        which = f"text {self._begun_at + place + 1} of {self._count}"
        size = f"{sizes[place]} bytes"
        return f"It is {which}, of {size}" if len(sizes) == 1 else f"The longest is {which}, of {size}"

    async def aclose(self) -> None:
        self._turns = iter(())
        if self._answer is not None:
            await self._answer.aclose()


def checked_texts(texts: Sequence[str]) -> Sequence[str]:
    """``texts``, if each can be embedded. Raises ``ConfigError``."""
    if isinstance(texts, str) or not texts:
        msg = "give a list of texts to embed, and at least one"
        raise ConfigError(msg)
    for place, text in enumerate(texts, 1):
        if not isinstance(text, str) or not text:
            msg = f"text {place} is empty: there is nothing to embed"
            raise ConfigError(msg)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            msg = f"text {place} is no UTF-8: it holds half of a character (a lone surrogate)"
            raise ConfigError(msg) from error
    return texts


def _turns_of(texts: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """The texts by turn. One that may be too long for any turn goes alone: its host counts it."""
    turn: list[str] = []
    for text in texts:
        if turn and (len(turn) == EMBED_MAX or embed_tokens_max([*turn, text]) > EMBED_TOKENS_MAX):
            yield tuple(turn)
            turn = []
        turn.append(text)
    yield tuple(turn)
