"""``TokenMask``: which tokens may follow where an answer is forced by one of our grammars. Pure.

A ``TokenTable`` holds a vocabulary as a tree of bytes, made once. Tokens that begin with the same bytes are
neighbours in its order, so that what may follow is found in one walk down the tree, and is given in that
order. A token may end inside of a UTF-8 character, where one that the grammar takes can complete it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Final

from p2pnode.models.grammar import Grammar, GrammarError, Letters, Matcher, State

_ASCII: Final = 0x80
_OTHERS: Final = 1 << _ASCII
"""The bit of all letters beyond ASCII, in a set of letters."""
_SURROGATES: Final = (0xD800, 0xDFFF)
_LAST_CODE: Final = 0x10FFFF
_LEADS: Final = ((0xC2, 0xDF, 0x1F, 2, 0x80), (0xE0, 0xEF, 0x0F, 3, 0x800), (0xF0, 0xF4, 0x07, 4, 0x10000))
"""Of a UTF-8 character of several bytes: the least and the largest first byte, its bits of the code, the
number of bytes, and the least code."""
_MASKS_MAX: Final = 512
"""Masks that are kept: a text comes back to the same places of its grammar again and again."""


class _Node:
    """The tokens that begin with certain bytes are those of ranks ``first`` to ``end``; those that are
    exactly these bytes end at ``own_end``. ``letters`` are all in the bytes that follow."""

    __slots__ = ("children", "end", "first", "letters", "own_end")

    def __init__(self, first: int) -> None:
        self.first = self.own_end = self.end = first
        self.children: dict[int, _Node] = {}
        self.letters = 0


class TokenTable:
    """A vocabulary in the order of its tokens' bytes. ``ends`` are the ids that end an answer."""

    def __init__(self, pieces: Sequence[bytes], ends: Collection[int]) -> None:
        self.pieces: Final = pieces
        self.ends: Final = frozenset(ends)
        spelled = (token for token, piece in enumerate(pieces) if piece and token not in self.ends)
        self.order: Final = sorted(spelled, key=pieces.__getitem__)
        """Token ids by rank. Tokens without text are none of them."""
        self.root: Final = self._tree()

    def _tree(self) -> _Node:
        root = _Node(0)
        for rank, token in enumerate(self.order):
            path = [root]
            for byte in self.pieces[token]:
                node = path[-1].children.get(byte)
                if node is None:
                    node = path[-1].children[byte] = _Node(rank)
                path.append(node)
            for node in path:
                node.end = rank + 1
            path[-1].own_end = rank + 1
            letters = 0
            for node, byte in zip(path[-2::-1], self.pieces[token][::-1], strict=True):
                letters |= 1 << byte if byte < _ASCII else _OTHERS
                node.letters |= letters
        return root


class TokenMask:
    """Follows one answer. Raises ``GrammarError`` for a grammar that no text has."""

    def __init__(self, table: TokenTable, grammar: Grammar) -> None:
        self._table = table
        self._matcher = Matcher(grammar)
        state = self._matcher.state
        if state is None:
            msg = "no text is of this grammar"
            raise GrammarError(msg)
        self._state: State = state
        self._partial = b""
        """The bytes of a character that is not complete."""
        self._steps: dict[tuple[int, int, bytes], tuple[State, bytes] | None] = {}
        self._masks: dict[tuple[int, bytes], bytes] = {}
        self._loops: dict[int, int] = {}

    @property
    def may_end(self) -> bool:
        """Whether the answer may end here."""
        return self._state.ends and not self._partial

    def feed(self, ids: Iterable[int]) -> bool:
        """Go on with tokens. Returns whether the grammar takes them; what it doesn't take is left out."""
        for token in ids:
            state, partial = self._state, self._partial
            for byte in self._table.pieces[token]:
                step = self._step(state, partial, byte)
                if step is None:
                    return False
                state, partial = step
            self._state, self._partial = state, partial
        return True

    def allowed(self) -> bytes:
        """A byte for each rank of the table: 1 where this token may follow."""
        key = (id(self._state), self._partial)
        if (known := self._masks.get(key)) is None:
            if len(self._masks) >= _MASKS_MAX:
                self._masks.clear()
            known = self._masks[key] = self._walk()
        return known

    def _walk(self) -> bytes:
        mask = bytearray(len(self._table.order))
        waiting = [(self._table.root, self._state, self._partial)]
        while waiting:
            node, state, partial = waiting.pop()
            for byte, child in node.children.items():
                step = self._step(state, partial, byte)
                if step is None:
                    continue
                if not (step[1] or partial) and not child.letters & ~self._loop(step[0]):
                    # Whatever follows leads to the same place, so that all of it may.
                    mask[child.first : child.end] = b"\1" * (child.end - child.first)
                    continue
                mask[child.first : child.own_end] = b"\1" * (child.own_end - child.first)
                if child.children:
                    waiting.append((child, *step))
        return bytes(mask)

    def _loop(self, state: State) -> int:
        """The ASCII letters after which a text stands where it stood."""
        if (known := self._loops.get(id(state))) is None:
            known = sum(1 << code for code in range(_ASCII) if self._after(state, chr(code)) is state)
            self._loops[id(state)] = known
        return known

    def _step(self, state: State, partial: bytes, byte: int) -> tuple[State, bytes] | None:
        key = (id(state), byte, partial)
        if key not in self._steps:
            self._steps[key] = self._stepped(state, partial + bytes([byte]))
        return self._steps[key]

    def _stepped(self, state: State, character: bytes) -> tuple[State, bytes] | None:
        if character[0] < _ASCII:
            after = self._after(state, chr(character[0])) if len(character) == 1 else None
            return None if after is None else (after, b"")
        codes = _codes(character)
        if codes is None:
            return None
        low, high = codes
        if low < high or len(character) < 2:  # noqa: PLR2004 - no first byte is a whole character here
            return (
                (state, character) if any(_takes(each, low, high) for each in state.next_symbols()) else None
            )
        after = self._after(state, chr(low))
        return None if after is None else (after, b"")

    def _after(self, state: State, letter: str) -> State | None:
        try:
            return self._matcher.after(state, letter)
        except GrammarError:
            return None  # the text would stand at too many places: it must go on otherwise


def _codes(character: bytes) -> tuple[int, int] | None:
    """The least and the largest code of a character that begins with these bytes; None where none does."""
    lead = next((each for each in _LEADS if each[0] <= character[0] <= each[1]), None)
    if lead is None:
        return None
    _, _, bits, length, least = lead
    code = character[0] & bits
    for byte in character[1:]:
        if byte & 0xC0 != _ASCII:  # continues a character
            return None
        code = code << 6 | byte & 0x3F
    missing = length - len(character)
    if missing < 0:
        return None
    low, high = max(code << 6 * missing, least), min(((code + 1) << 6 * missing) - 1, _LAST_CODE)
    if _SURROGATES[0] <= low and high <= _SURROGATES[1]:
        return None
    return (low, high) if low <= high else None


def _takes(symbol: str | Letters, low: int, high: int) -> bool:
    """Whether a letter of these codes, both ends included, may come first in ``symbol``."""
    if isinstance(symbol, str):
        return low <= ord(symbol[0]) <= high
    if not symbol.negated:
        return any(first <= high and low <= last for first, last in symbol.ranges)
    at = low
    for first, last in sorted(symbol.ranges):
        if first > at:
            break
        at = max(at, last + 1)
    return at <= high
