"""``Grammar``: which texts an answer may be, as rules, and ``Matcher``, which follows a text through them.

An engine is given a grammar as GBNF, llama.cpp's notation. An answer that was cut goes on under
:meth:`Matcher.rest`: the grammar of what may follow the text that is there already. So a call of a tool that
one host began is ended by another one.

What a grammar costs an engine grows with the number of places at which it may stand after a text. The matcher
counts them, and stops at ``PLACES_MAX``.

Pure.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Final, TypeAlias

from p2pnode.models.text import incomplete_tail

PLACES_MAX: Final = 256
"""Places at which a text may stand in a grammar. llama.cpp tries each token of a vocabulary at each."""
RULES_MAX: Final = 20_000
_REFERENCES_MAX: Final = 64 * PLACES_MAX
"""Rules that are opened at most before the next letter."""
_RULE_BYTES: Final = 512
_SYMBOL_BYTES: Final = 256
_PRINTED: Final = ord("~") - ord(" ")


class GrammarError(ValueError):
    """The grammar cannot be used; the message says why."""


class EndlessError(GrammarError):
    """A rule comes to itself before any letter, or each of its texts holds another one of it.

    ``rules`` are those on the way round, or those that never end.
    """

    def __init__(self, rules: tuple[str, ...], why: str) -> None:
        super().__init__(f"it {why}: it would never end")
        self.rules, self.why = rules, why


@dataclass(frozen=True, slots=True)
class Letters:
    """One letter out of ``ranges`` of code points, both ends included; or, ``negated``, none of them."""

    ranges: tuple[tuple[int, int], ...]
    negated: bool = False

    def has(self, letter: str) -> bool:
        """Whether ``letter`` is one."""
        code = ord(letter)
        return any(low <= code <= high for low, high in self.ranges) != self.negated

    def pick(self, choose: Callable[[int], int]) -> str:
        """One of them; ``choose(n)`` gives a number below ``n``."""
        if not self.negated:
            low, high = self.ranges[choose(len(self.ranges))]
            return chr(low + choose(high - low + 1))
        code = ord(" ") + choose(_PRINTED)
        while not self.has(chr(code)):
            code += 1
        return chr(code)


@dataclass(frozen=True, slots=True)
class Rule:
    """What the rule of this name says."""

    name: str


Symbol: TypeAlias = str | Letters | Rule
"""A text as it stands, a letter, or another rule."""
Alternative: TypeAlias = tuple[Symbol, ...]


def letters(*spans: str, negated: bool = False) -> Letters:
    """Each span is one letter, or two that are the ends of a range."""
    return Letters(tuple((ord(span[0]), ord(span[-1])) for span in spans), negated)


class Grammar:
    """Rules by name. ``root`` says what the whole text is."""

    def __init__(self) -> None:
        self.rules: dict[str, tuple[Alternative, ...]] = {}
        self._made: dict[tuple[Alternative, ...], Rule] = {}
        self._next = 0

    def set(self, name: str, *alternatives: Sequence[Symbol]) -> Rule:
        """Define the rule of this name."""
        if len(self.rules) >= RULES_MAX:
            msg = f"it takes more than {RULES_MAX} rules: make it smaller"
            raise GrammarError(msg)
        self.rules[name] = tuple(dict.fromkeys(tuple(filter(None, each)) for each in alternatives))
        return Rule(name)

    def rule(self, *alternatives: Sequence[Symbol]) -> Rule:
        """A rule that says one of these, under a name of its own. Equal ones are the same rule."""
        key = tuple(tuple(each) for each in alternatives)
        if (known := self._made.get(key)) is not None:
            return known
        made = self._made[key] = self.set(self.reserve(), *alternatives)
        return made

    def reserve(self) -> str:
        """A name that is free."""
        self._next += 1
        return f"r{self._next}"

    @property
    def held_bytes(self) -> int:
        """Bytes of memory that its rules hold, at most."""
        symbols = sum(len(each) for rule in self.rules.values() for each in rule)
        return _RULE_BYTES * len(self.rules) + _SYMBOL_BYTES * symbols

    # ---- how things repeat

    def optional(self, *symbols: Symbol) -> Rule:
        """These, or nothing."""
        return self.rule(symbols, ())

    def many(self, *symbols: Symbol) -> Rule:
        """These any number of times, also none."""
        key: tuple[Alternative, ...] = (("many", *symbols), ("",))
        if (known := self._made.get(key)) is None:
            name = self.reserve()
            known = self._made[key] = self.set(name, (*symbols, Rule(name)), ())
        return known

    def repeat(self, symbol: Symbol, least: int, most: int | None) -> list[Symbol]:
        """``symbol`` so many times. Symbols to stand in an alternative."""
        if most is None:
            return [symbol] * least + [self.many(symbol)]
        rest: Symbol = ""
        for _ in range(most - least):
            rest = self.optional(symbol, rest) if rest else self.optional(symbol)
        return [symbol] * least + ([rest] if rest else [])

    def require_progress(self) -> None:
        """Raise ``EndlessError`` where a rule may come to itself before any letter: it would never end."""
        empty: set[str] = set()
        grows = True
        while grows:
            grows = False
            for name, ways in self.rules.items():
                if name not in empty and any(all(_is_empty(each, empty) for each in way) for way in ways):
                    empty.add(name)
                    grows = True
        first = {name: _firsts(ways, empty) for name, ways in self.rules.items()}
        over: set[str] = set()
        for name, begins in first.items():
            path: list[tuple[str, list[str]]] = [(name, list(begins))] if name not in over else []
            on_path = {name}
            while path:
                at, waiting = path[-1]
                if not waiting:
                    over.add(at)
                    on_path.discard(at)
                    path.pop()
                elif (then := waiting.pop()) in on_path:
                    names = [each for each, _ in path]
                    raise EndlessError(
                        tuple(names[names.index(then) :]), "refers to itself before anything else"
                    )
                elif then not in over:
                    on_path.add(then)
                    path.append((then, list(first[then])))

    def require_end(self) -> None:
        """Raise ``EndlessError`` where a rule has no text that ends, since each holds another one of it.

        Such a rule is refused also where it is one way of several: a model that took it would never end.
        """
        users: dict[str, list[tuple[str, int]]] = {}
        missing = {
            (name, way): len(set(_named([symbols])))
            for name, ways in self.rules.items()
            for way, symbols in enumerate(ways)
        }
        for name, way in missing:
            for used in set(_named([self.rules[name][way]])):
                users.setdefault(used, []).append((name, way))
        ends = {name for (name, _), left in missing.items() if not left}
        waiting = list(ends)
        while waiting:
            for user in users.get(waiting.pop(), ()):
                missing[user] -= 1
                if not missing[user] and user[0] not in ends:
                    ends.add(user[0])
                    waiting.append(user[0])
        if endless := tuple(name for name in self.rules if name not in ends):
            raise EndlessError(endless, "requires itself in each of its values")

    # ---- as text

    def plain(self) -> dict[str, Any]:
        """The rules as JSON values, for another process: see :meth:`of_plain`."""
        return {
            name: [[_plain(symbol) for symbol in each] for each in ways] for name, ways in self.rules.items()
        }

    @classmethod
    def of_plain(cls, rules: Mapping[str, Any]) -> Grammar:
        """The grammar of :meth:`plain`."""
        grammar = cls()
        for name, ways in rules.items():
            grammar.rules[name] = tuple(tuple(map(_of_plain, each)) for each in ways)
        return grammar

    def packed(self) -> PackedGrammar:
        """The grammar as text."""
        return PackedGrammar(json.dumps(self.plain()), self.gbnf())

    def unpacked(self) -> Grammar:
        """Itself: see :meth:`PackedGrammar.unpacked`."""
        return self

    def gbnf(self) -> str:
        """The grammar in llama.cpp's notation."""
        lines = []
        for name, alternatives in self.rules.items():
            said = " | ".join(" ".join(map(_gbnf, each)) or '""' for each in alternatives)
            lines.append(f"{name} ::= {said}")
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class PackedGrammar:
    """A grammar as text, as it comes from the process that compiled it.

    Whoever only hands it on, to an engine or back to that process, reads none of its rules: a stranger may
    let them become many thousands.
    """

    rules: str
    """As JSON."""
    notation: str
    """In llama.cpp's notation."""

    @property
    def held_bytes(self) -> int:
        """Bytes of memory that it holds. Both texts are ASCII."""
        return len(self.rules) + len(self.notation)

    def unpacked(self) -> Grammar:
        """The grammar itself."""
        return Grammar.of_plain(json.loads(self.rules))

    def gbnf(self) -> str:
        """The grammar in llama.cpp's notation."""
        return self.notation


AnyGrammar: TypeAlias = Grammar | PackedGrammar


def _is_empty(symbol: Symbol, empty: set[str]) -> bool:
    return isinstance(symbol, Rule) and symbol.name in empty


def _firsts(ways: tuple[Alternative, ...], empty: set[str]) -> set[str]:
    """The rules that may stand before any letter."""
    found: set[str] = set()
    for way in ways:
        for symbol in way:
            if isinstance(symbol, Rule):
                found.add(symbol.name)
            if not _is_empty(symbol, empty):
                break
    return found


def _plain(symbol: Symbol) -> Any:
    if isinstance(symbol, Letters):
        return {"letters": symbol.ranges, "negated": symbol.negated}
    return symbol if isinstance(symbol, str) else {"rule": symbol.name}


def _of_plain(symbol: Any) -> Symbol:
    if isinstance(symbol, str):
        return symbol
    if "rule" in symbol:
        return Rule(symbol["rule"])
    return Letters(tuple((low, high) for low, high in symbol["letters"]), symbol["negated"])


def _gbnf(symbol: Symbol) -> str:
    if isinstance(symbol, Rule):
        return symbol.name
    if isinstance(symbol, str):
        return '"' + "".join(map(_quoted, symbol)) + '"'
    spans = (_bracketed(low) + (f"-{_bracketed(high)}" if high > low else "") for low, high in symbol.ranges)
    return f"[{'^' if symbol.negated else ''}{''.join(spans)}]"


def _quoted(letter: str) -> str:
    if letter in '"\\':
        return f"\\{letter}"
    return letter if " " <= letter <= "~" else _escaped(ord(letter))


def _bracketed(code: int) -> str:
    # Only letters and digits stand for themselves whatever is beside them.
    return chr(code) if code < 0x80 and chr(code).isalnum() else _escaped(code)  # noqa: PLR2004 - ASCII


def _escaped(code: int) -> str:
    return f"\\x{code:02X}" if code <= 0xFF else f"\\u{code:04X}" if code <= 0xFFFF else f"\\U{code:08X}"  # noqa: PLR2004


class _Place:
    """What is still to come at one place of a grammar: a symbol, and what follows it.

    Places that say the same are one object, so that they are compared by identity: comparing what follows
    would take a call for each symbol of it.
    """

    __slots__ = ("rest", "symbol")

    def __init__(self, symbol: Symbol, rest: _Place | None) -> None:
        self.symbol, self.rest = symbol, rest


class State:
    """The places after a text. ``ends``: whether the text may end here. ``after``: states by letter.

    Of one matcher, texts after which the same may follow lead to the same object.
    """

    __slots__ = ("after", "ends", "places")

    def __init__(self, places: tuple[_Place, ...], *, ends: bool) -> None:
        self.places, self.ends = places, ends
        self.after: dict[str, State | None] = {}

    def next_symbols(self) -> list[str | Letters]:
        """What may follow at each place, in the order of the grammar: the first letter counts."""
        return [place.symbol for place in self.places if not isinstance(place.symbol, Rule)]


def grammar_after(grammar: AnyGrammar, begun: bytes) -> tuple[AnyGrammar, bytes]:
    """What may follow ``begun``, and the bytes at its end that are a part of a letter: they are not followed.

    Raises ``GrammarError`` where that is no beginning of its texts.
    """
    part = incomplete_tail(begun)
    text = begun[: len(begun) - len(part)].decode("utf-8", "replace")
    if not text:
        return grammar, part
    matcher = Matcher(grammar.unpacked())
    if not matcher.feed(text):
        msg = "the answer that was begun is none that the format allows: ask anew"
        raise GrammarError(msg)
    return matcher.rest(), part


class Matcher:
    """Follows one text through a grammar, letter by letter. Raises ``GrammarError`` where it explodes."""

    def __init__(self, grammar: Grammar, root: str = "root") -> None:
        self._rules: Mapping[str, tuple[Alternative, ...]] = grammar.rules
        self._places: dict[tuple[Symbol, int], _Place] = {}
        self._states: dict[tuple[frozenset[int], bool], State] = {}
        self._state: State | None = self._open([self._place(Rule(root), None)], ends=False)

    @property
    def fits(self) -> bool:
        """Whether what was fed is the beginning of a text of the grammar."""
        return self._state is not None

    @property
    def may_end(self) -> bool:
        """Whether what was fed is a whole text of the grammar."""
        return self._state is not None and self._state.ends

    @property
    def places(self) -> int:
        """At how many places of the grammar the text stands."""
        return 0 if self._state is None else len(self._state.places)

    def feed(self, text: str) -> bool:
        """Go on with ``text``. Returns :attr:`fits`."""
        for letter in text:
            if self._state is None:
                break
            self._state = self.after(self._state, letter)
        return self.fits

    @property
    def state(self) -> State | None:
        """Where the text stands; None where it is none of the grammar."""
        return self._state

    def after(self, state: State, letter: str) -> State | None:
        """Where a text stands that goes on from ``state`` with ``letter``. The matcher's own text stays."""
        if letter not in state.after:
            state.after[letter] = self._step(state, letter)
        return state.after[letter]

    def next_symbols(self) -> list[str | Letters]:
        """What may follow at each place, in the order of the grammar: the first letter counts."""
        return [] if self._state is None else self._state.next_symbols()

    def rest(self) -> Grammar:
        """The grammar of what may follow."""
        state = self._state
        if state is None:
            msg = "the text is none of the grammar"
            raise GrammarError(msg)
        made = Grammar()
        names: dict[int, str] = {}
        free = (name for number in count() if (name := f"p{number}") not in self._rules)

        def name_of(place: _Place) -> str:
            # From the end on, for a place may have thousands after it.
            chain = [place]
            while (after := chain[-1].rest) is not None and id(after) not in names:
                chain.append(after)
            for each in reversed(chain):
                names[id(each)] = next(free)  # it may be the rest of a rest, whose rules are named so, too
                tail = () if each.rest is None else (Rule(names[id(each.rest)]),)
                made.set(names[id(each)], (each.symbol, *tail))
            return names[id(place)]

        begins = [(Rule(names.get(id(place)) or name_of(place)),) for place in state.places]
        made.set("root", *begins, *([()] if state.ends else []))
        wanted = _named(chain for rule in made.rules.values() for chain in rule)
        while wanted:
            name = wanted.pop()
            if name not in made.rules:
                made.set(name, *self._rules[name])
                wanted += _named(self._rules[name])
        return made

    # ---- states

    def _place(self, symbol: Symbol, rest: _Place | None) -> _Place:
        key = (symbol, id(rest))
        if (known := self._places.get(key)) is None:
            known = self._places[key] = _Place(symbol, rest)
        return known

    def _step(self, state: State, letter: str) -> State | None:
        begun: list[_Place] = []
        ends = False
        for place in state.places:
            symbol, rest = place.symbol, place.rest
            if isinstance(symbol, str):
                if symbol[0] != letter:
                    continue
                if len(symbol) > 1:
                    rest = self._place(symbol[1:], rest)
            elif isinstance(symbol, Rule) or not symbol.has(letter):
                continue
            if rest is None:
                ends = True
            else:
                begun.append(rest)
        return self._open(begun, ends=ends) if begun or ends else None

    def _open(self, begun: Iterable[_Place], *, ends: bool) -> State:
        """The state of these places, with rules opened until each place begins with a letter."""
        found: dict[int, _Place] = {}
        seen: set[int] = set()
        waiting = list(begun)[::-1]
        while waiting:
            place = waiting.pop()
            if id(place) in seen:
                continue
            seen.add(id(place))
            if len(found) >= PLACES_MAX or len(seen) > _REFERENCES_MAX:
                msg = (
                    f"a text may stand at more than {PLACES_MAX} places of it at once: make fewer "
                    "alternatives, or let them differ earlier"
                )
                raise GrammarError(msg)
            if not isinstance(place.symbol, Rule):
                found[id(place)] = place
                continue
            for alternative in reversed(self._rules[place.symbol.name]):
                rest = place.rest
                for symbol in reversed(alternative):
                    rest = self._place(symbol, rest)
                if rest is None:
                    ends = True
                else:
                    waiting.append(rest)
        key = (frozenset(found), ends)
        if (known := self._states.get(key)) is None:
            known = self._states[key] = State(tuple(found.values()), ends=ends)
        return known


def _named(alternatives: Iterable[Alternative]) -> list[str]:
    return [symbol.name for each in alternatives for symbol in each if isinstance(symbol, Rule)]


def spell(grammar: Grammar, choose: Callable[[int], int], *, bytes_max: int, begun: int = 0) -> Iterator[str]:
    """A text of the grammar, letter by letter; ``choose(n)`` gives a number below ``n`` for each choice.

    ``begun`` bytes of the text came before. After half of ``bytes_max`` it takes the last way each time; this
    leads to an end in our grammars. It stops at ``bytes_max``, perhaps in the middle.
    """
    matcher, size = Matcher(grammar), begun
    while size < bytes_max:
        ways, late = matcher.next_symbols(), size * 2 >= bytes_max
        if not ways or (matcher.may_end and (late or choose(4) == 0)):
            break
        way = ways[-1] if late else ways[choose(len(ways))]
        letter = way[0] if isinstance(way, str) else way.pick(choose)
        matcher.feed(letter)
        size += len(letter.encode())
        yield letter
