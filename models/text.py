"""``TextAssembler``: from token ids to whole characters of text, without the stop strings.

Pure. Ids are released only when their text is certain: an incomplete UTF-8 character and a possible beginning
of a stop string hold their ids back. So the ids and the text that a caller has at any moment agree, and a
continuation from exactly those ids goes on at exactly that place. Only at the end of a request may ids be
released without their text, where the budget ended inside a character.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain, islice
from operator import itemgetter
from typing import Final

_FED_AT_ONCE: Final = 256
"""Ids: each one copies the text that is not released yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Released:
    """What may be delivered now. ``stopped``: a stop string was found, and nothing follows."""

    ids: tuple[int, ...] = ()
    text: str = ""
    stopped: bool = False


class TextAssembler:
    """The text of one answer. ``piece`` gives a token's bytes.

    ``before`` are bytes of an incomplete character at the end of the prompt: the answer completes it.
    """

    def __init__(
        self, piece: Callable[[int], bytes], stop: tuple[str, ...] = (), *, before: bytes = b""
    ) -> None:
        self._piece = piece
        self._stop = stop
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._decoder.decode(before)
        self._text = ""
        """Decoded and not released."""
        self._held: list[tuple[int, int]] = []
        """Not released: (id, where its text begins in ``_text``)."""
        self._partial: list[int] = []
        """Ids since the last moment at which all characters were whole."""
        self._partial_begins = 0
        self._again = 0
        """How many of the next ids to release the caller has already."""
        self.stopped_by = ""
        """The stop string that was found."""

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found: nothing follows."""
        return bool(self.stopped_by)

    def release_pending(self, ids: Iterable[int]) -> Released:
        """Take ids of the prompt's end whose text was never released, before the first :meth:`feed`.

        Their text is released like that of new ids, and a stop string in it ends the answer; the ids are not.
        """
        again = tuple(ids)
        self._again += len(again)
        return self.feed(again)

    def feed(self, ids: Iterable[int]) -> Released:
        """Take ids in order. Returns all that is certain now."""
        taken, parts = iter(ids), list[Released]()
        while not self.stopped and (some := tuple(islice(taken, _FED_AT_ONCE))):
            parts.append(self._feed_some(some))
        if len(parts) == 1:
            return parts[0]
        return Released(
            ids=tuple(chain.from_iterable(part.ids for part in parts)),
            text="".join(part.text for part in parts),
            stopped=self.stopped,
        )

    def _feed_some(self, ids: Iterable[int]) -> Released:
        for token in ids:
            begins = len(self._text)
            if not self._partial:
                self._partial_begins = begins
            self._partial.append(token)
            self._text += self._decoder.decode(self._piece(token))
            if not self._decoder.getstate()[0]:
                self._held += [(partial, self._partial_begins) for partial in self._partial]
                self._partial.clear()
            found = self._find_stop(begins)
            if found is not None:
                return self._stop_at(*found)
        return self._release(min(self._may_stop_from(), self._whole_until()))

    def finish(self, *, complete: bool) -> Released:
        """Release everything that is held back. ``complete``: the answer is over, so an incomplete character
        shows."""
        if complete:
            self._text += self._decoder.decode(b"", final=True)
        self._held += [(token, len(self._text)) for token in self._partial]
        self._partial.clear()
        ids, text = self._new(token for token, _ in self._held), self._text
        self._held.clear()
        self._text = ""
        return Released(ids=ids, text=text)

    def _new(self, ids: Iterable[int]) -> tuple[int, ...]:
        """The ids that the caller doesn't have. Ids are released in order, so those it has come first."""
        released = tuple(ids)
        again = min(self._again, len(released))
        self._again -= again
        return released[again:]

    def _find_stop(self, since: int) -> tuple[int, str] | None:
        """Where the first stop string begins, and which one it is."""
        found = [
            (at, stop)
            for stop in self._stop
            if (at := self._text.find(stop, max(0, since - len(stop) + 1))) >= 0
        ]
        return min(found, key=itemgetter(0), default=None)

    def _stop_at(self, found: int, stop: str) -> Released:
        held = self._held + [(token, self._partial_begins) for token in self._partial]
        released = Released(
            ids=self._new(token for token, begins in held if begins < found),
            text=self._text[:found],
            stopped=True,
        )
        self.stopped_by = stop
        self._text = ""
        self._held.clear()
        self._partial.clear()
        return released

    def _may_stop_from(self) -> int:
        """Where the longest tail begins that may still become a stop string."""
        end = len(self._text)
        longest = max((len(stop) - 1 for stop in self._stop), default=0)
        for at in range(max(0, end - longest), end):
            if any(stop.startswith(self._text[at:]) for stop in self._stop):
                return at
        return end

    def _whole_until(self) -> int:
        return self._partial_begins if self._partial else len(self._text)

    def _release(self, until: int) -> Released:
        # An id whose text goes beyond `until` is held back, with all ids that follow it.
        ready = len(self._held)
        while ready and self._ends(ready - 1) > until:
            ready -= 1
        if not ready:
            return Released()
        cut = self._ends(ready - 1)
        released = Released(ids=self._new(token for token, _ in self._held[:ready]), text=self._text[:cut])
        self._held = [(token, begins - cut) for token, begins in self._held[ready:]]
        self._text = self._text[cut:]
        self._partial_begins -= cut
        return released

    def _ends(self, index: int) -> int:
        begins = self._held[index][1]
        following = (at for _, at in self._held[index + 1 :] if at > begins)
        return next(following, self._whole_until())


def incomplete_tail(data: bytes) -> bytes:
    """The bytes of a UTF-8 character that ``data`` begins and doesn't complete, at most 3."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    # Begin at a lead byte: from the middle of a character the decoder would see garbage.
    for back in range(1, min(4, len(data)) + 1):
        if data[-back] & 0xC0 != 0x80:  # noqa: PLR2004 - 10xxxxxx continues a character
            decoder.decode(data[-back:])
            return decoder.getstate()[0]
    return b""
