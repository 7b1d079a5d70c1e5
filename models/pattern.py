"""``pattern_rule``: the rule of the JSON strings that a regular expression of a JSON Schema matches.

The common part of ECMA-262's and Python's expressions: letters, classes, ``.``, groups, alternatives, and the
quantifiers ``* + ? {m} {m,} {m,n}``, with ``^`` at the beginning and ``$`` at the end. Without an anchor any
letters may stand on that side. What else there is (looking around, references back, word borders) is refused
by name. Control letters, and ``"`` and a backslash out of a class, are never made: a subset is allowed.
What is no expression in either of the two raises ``BrokenPatternError``.

Pure.
"""

from __future__ import annotations

from typing import Final, NoReturn

from p2pnode.models.grammar import Grammar, GrammarError, Letters, Symbol, letters

PLACES_MAX: Final = 200
"""Letters of an expression, repeated ones counted: at so many places may a text stand in it."""
_REPEAT_MAX: Final = 100
_CLASSES: Final = {
    "d": (("0", "9"),),
    "w": (("0", "9"), ("A", "Z"), ("a", "z"), ("_", "_")),
    "s": ((" ", " "),),
}
_NEVER: Final = (("\x00", "\x1f"), ('"', '"'), ("\\", "\\"), ("\ud800", "\udfff"))
"""What a JSON string does not hold as it stands."""
_SPECIAL: Final = frozenset("^$\\.*+?()[]{}|/-")
Span = tuple[str, str]


class BrokenPatternError(GrammarError):
    """It is no regular expression, whoever reads it."""


def pattern_rule(grammar: Grammar, pattern: str, anything: Symbol) -> tuple[Symbol, ...]:
    """What stands between the quotes. ``anything`` is any number of any letters. Raises ``GrammarError``."""
    parser = _Parser(grammar, pattern)
    begins, ends = pattern.startswith("^"), pattern.endswith("$") and not pattern.endswith("\\$")
    body = parser.parse(1 if begins else 0, len(pattern) - (1 if ends else 0))
    return (*(() if begins else (anything,)), body, *(() if ends else (anything,)))


class _Parser:
    """Reads one expression from the left."""

    def __init__(self, grammar: Grammar, pattern: str) -> None:
        self._grammar, self._pattern = grammar, pattern
        self._at = self._end = 0
        self._factor, self._places = 1, 0

    def parse(self, begin: int, end: int) -> Symbol:
        """The expression between two places of the pattern."""
        self._at, self._end = begin, end
        if begin or end < len(self._pattern):
            self._refuse_top_alternatives()
        made = self._alternatives()
        if self._at < self._end:
            self._blame("a bracket that closes nothing")
        return made

    def _refuse_top_alternatives(self) -> None:
        """``^a|b`` is anchored in one alternative only, which is seldom meant."""
        depth, escaped, in_class = 0, False, False
        for letter in self._pattern:
            if escaped or in_class:
                in_class, escaped = in_class and (escaped or letter != "]"), letter == "\\" and not escaped
                continue
            escaped, in_class = letter == "\\", letter == "["
            depth += (letter == "(") - (letter == ")")
            if letter == "|" and not depth:
                self._refuse("an anchor of one alternative only: put the alternatives in brackets")

    def _alternatives(self) -> Symbol:
        ways: list[list[Symbol]] = [[]]
        while self._at < self._end and self._peek() != ")":
            if self._peek() == "|":
                self._at += 1
                ways.append([])
            else:
                ways[-1] += self._repeated()
        return self._grammar.rule(*ways)

    def _repeated(self) -> list[Symbol]:
        """An atom and how often it stands. It is read again with its quantifier, to count its letters."""
        begin, before = self._at, self._places
        atom = self._atom()
        least, most = self._quantifier()
        times = max(1, least + 1 if most is None else most)
        after = self._at
        if times > 1:
            self._at, self._places = begin, before
            self._factor *= times
            atom = self._atom()
            self._factor //= times
            self._at = after
        if most is None and least <= 1 and not isinstance(atom, Letters | str):
            return [*[atom] * least, self._grammar.many(atom)]
        return self._grammar.repeat(atom, least, most)

    def _quantifier(self) -> tuple[int, int | None]:
        letter = self._peek() if self._at < self._end else ""
        if letter not in ("*", "+", "?", "{") or not letter:
            return 1, 1
        self._at += 1
        least: int
        most: int | None
        match letter:
            case "*":
                least, most = 0, None
            case "+":
                least, most = 1, None
            case "?":
                least, most = 0, 1
            case _:
                least, most = self._bounds()
        if self._at < self._end and self._peek() in "?+":
            self._at += 1  # lazy or greedy: the same texts
        return least, most

    def _bounds(self) -> tuple[int, int | None]:
        closes = self._pattern.find("}", self._at, self._end)
        first, comma, second = self._pattern[self._at : closes].partition(",")
        if closes < 0 or not first.isdecimal() or (second and not second.isdecimal()):
            self._refuse("a brace that says no number")
        self._at = closes + 1
        least = int(first)
        most = int(second) if second else None if comma else least
        if max(least, most or 0) > _REPEAT_MAX or (most is not None and most < least):
            self._refuse(f"something {least} to {most} times: at most {_REPEAT_MAX}")
        return least, most

    def _atom(self) -> Symbol:
        letter = self._next()
        if letter in "^$":
            self._refuse("an anchor in its middle")
        if letter in "*+?{)":
            self._blame(f"{letter!r} where nothing stands before it")
        if letter == "(":
            return self._group()
        if letter == "[":
            return self._class()
        if letter == "\\":
            return self._letter(self._escape())
        return self._letter(Letters(_codes(_NEVER), negated=True) if letter == "." else letters(letter))

    def _group(self) -> Symbol:
        if self._at < self._end and self._peek() == "?":
            if self._pattern[self._at : self._at + 2] != "?:":
                self._refuse("a group that looks around or has a name")
            self._at += 2
        made = self._alternatives()
        if self._at >= self._end:
            self._blame("a bracket that is not closed")
        self._at += 1
        return made

    def _class(self) -> Symbol:
        negated = self._at < self._end and self._peek() == "^"
        self._at += negated
        spans: list[Span] = []
        while (letter := self._next()) != "]" or not spans:
            if letter == "\\":
                escaped = self._escape()
                if escaped.negated:
                    self._refuse("a negated class within a class")
                spans += [(chr(low), chr(high)) for low, high in escaped.ranges]
                continue
            high = letter
            if self._pattern[self._at : self._at + 1] == "-" and self._pattern[
                self._at + 1 : self._at + 2
            ] not in ("]", ""):
                self._at += 1
                high = self._next()
                if high == "\\":
                    high = chr(self._escape().ranges[0][0])
            if high < letter:
                self._blame("a range that is none")
            spans.append((letter, high))
        if negated:
            return self._letter(Letters((*_codes(spans), *_codes(_NEVER)), negated=True))
        kept = [each for span in spans for each in _without(span)]
        if not kept:
            self._refuse("a class of which no letter stands in JSON as it is")
        return self._letter(Letters(_codes(kept)))

    def _escape(self) -> Letters:
        letter = self._next()
        if letter.lower() in _CLASSES:
            spans = _CLASSES[letter.lower()]
            return (
                Letters(_codes(spans))
                if letter.islower()
                else Letters(_codes((*spans, *_NEVER)), negated=True)
            )
        if letter in "ux":
            length = 4 if letter == "u" else 2
            digits = self._pattern[self._at : self._at + length]
            self._at += length
            try:
                return letters(chr(int(digits, 16)))
            except ValueError:
                self._refuse("an escape that is none")
        if letter not in _SPECIAL and letter not in "\"'":
            self._refuse(f"the escape \\{letter}")
        return letters(letter)

    def _letter(self, symbol: Letters) -> Symbol:
        """Count a letter; one that JSON escapes is its escape."""
        self._places += self._factor
        if self._places > PLACES_MAX:
            self._refuse(f"more than {PLACES_MAX} letters, repeated ones counted")
        low = symbol.ranges[0][0]
        if symbol.negated or symbol.ranges != ((low, low),):
            return symbol
        if low < ord(" "):
            self._refuse("a control letter")
        return f"\\{chr(low)}" if chr(low) in '"\\' else chr(low)

    def _peek(self) -> str:
        return self._pattern[self._at]

    def _next(self) -> str:
        if self._at >= self._end:
            self._blame("an end where more is expected")
        self._at += 1
        return self._pattern[self._at - 1]

    def _blame(self, what: str) -> NoReturn:
        msg = f"has a pattern with {what}: mend it"
        raise BrokenPatternError(msg)

    def _refuse(self, what: str) -> NoReturn:
        msg = f"has a pattern with {what}, which no grammar can force here"
        raise GrammarError(msg)


def _codes(spans: tuple[Span, ...] | list[Span]) -> tuple[tuple[int, int], ...]:
    return tuple((ord(low), ord(high)) for low, high in spans)


def _without(span: Span) -> list[Span]:
    """A span without what a JSON string does not hold as it stands."""
    spans = [(ord(span[0]), ord(span[1]))]
    for low, high in _codes(_NEVER):
        rest: list[tuple[int, int]] = []
        for begin, end in spans:
            rest += [(begin, min(end, low - 1))] if begin < low else []
            rest += [(max(begin, high + 1), end)] if end > high else []
        spans = rest
    return [(chr(begin), chr(end)) for begin, end in spans if begin <= end]
