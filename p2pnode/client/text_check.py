"""``TextCheck``: whether text, channels and calls of an answer are those of the ids that a host is paid for.

Receipts prove ids. A host could send harmless ids and a malicious call of a tool beside them. Whoever has the
model's vocabulary derives the text from the ids, as a host must (``models/answer.py``), and compares. Who has
not can't: such an answer is shown as not checked.

Pure.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from p2pnode.errors import HostFault
from p2pnode.models.answer import CALLS_MAX, AnswerPieces, Said, reader_of
from p2pnode.models.text import TextAssembler
from p2pnode.models.vocabulary import Vocabulary
from p2pnode.protocols.inference.messages import PromptBody, Quote, Tokens

_EARLY_MAX = 512
"""Letters of text that may wait for their ids: more than any stop string or mark has."""
_Letter = tuple[str, int, str, bool]
"""Channel, number of the call, a letter or a name, whether it is a name."""


class TextCheck:
    """Checks one turn. ``quote`` says how its answer is read.

    Raises ``HostFault`` for a format or version that is not known.
    """

    def __init__(self, vocabulary: Vocabulary, body: PromptBody, quote: Quote) -> None:
        tools = [tool.name for tool in body.tools] if body.tool_choice != "none" else []
        try:
            reader = reader_of(quote.format, tools, reasons=quote.reasons, thinking=quote.thinking)
        except ValueError as error:
            raise HostFault(str(error)) from error
        self._text = TextAssembler(vocabulary.piece, body.sampling.stop)
        self._stops = bool(body.sampling.stop)
        prefix = self._text.feed(body.prefix).text
        has = body.text_bytes
        calls_max = CALLS_MAX if body.parallel_tool_calls else 1
        self._pieces = AnswerPieces(reader, has=has or 0, calls_max=calls_max)
        before = _letters(self._pieces.feed(prefix))
        self._derived = deque(before if has is not None else ())
        self._told: deque[_Letter] = deque()
        """What the host said that has not been compared."""

    def take(self, tokens: Tokens) -> None:
        """Compare what came. Raises ``HostFault`` where it is not what the ids say."""
        self._derived += _letters(self._pieces.feed(self._text.feed(tokens.ids).text))
        self._told += _letters([Said(tokens.channel, tokens.text, tokens.call, tokens.name)])
        self._compare()
        # Text never comes before its ids, but for what was held back for a stop string until the end.
        early = self._told[0] if self._told else None
        if early is not None and (len(self._told) > _EARLY_MAX or (early[0] == "call" and not self._stops)):
            raise _lie(early)

    def finish(self, reason: str) -> None:
        """The turn is over. Raises ``HostFault`` where text is left that no id says."""
        whole = reason in ("stop", "tool_calls")
        if not self._text.stopped:
            released = self._text.finish(complete=whole)
            self._derived += _letters(self._pieces.feed(released.text))
        self._derived += _letters(self._pieces.finish(whole=whole))
        self._compare()
        if self._told:
            raise _lie(self._told[0])

    def _compare(self) -> None:
        while self._told and self._derived:
            told, derived = self._told.popleft(), self._derived.popleft()
            if told != derived:
                raise _lie(told)


def _letters(said: Iterable[Said]) -> Sequence[_Letter]:
    letters: list[_Letter] = []
    for piece in said:
        if piece.name:
            letters.append((piece.channel, piece.call, piece.name, True))
        letters += [(piece.channel, piece.call, letter, False) for letter in piece.text]
    return letters


def _lie(told: _Letter) -> HostFault:
    what = "a call of a tool" if told[0] == "call" else "text"
    return HostFault(f"the host sent {what} that the tokens it is paid for do not say")
