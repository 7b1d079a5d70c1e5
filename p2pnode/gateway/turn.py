"""One turn, whatever API asked for it; and what came of it, whatever API tells it. Pure.

A face reads a request as one or several :class:`Turn` and writes :class:`Said <p2pnode.models.answer.Said>`
and :class:`Ended` in the words of its API. Nothing in between knows which API it was.
"""

from __future__ import annotations

import hashlib
from base64 import b64decode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any, Final, Protocol

from p2pnode.client.hedging import HedgeMode
from p2pnode.client.host_rules import HostRules
from p2pnode.client.ranking import Filters
from p2pnode.config import HEDGES
from p2pnode.errors import ConfigError
from p2pnode.gateway.faults import FaultError, bad_request
from p2pnode.gateway.fields import Fields
from p2pnode.models.answer import Said
from p2pnode.money import usdc_number, usdc_units
from p2pnode.protocols.inference.messages import (
    ChatMessage,
    FinishReason,
    Part,
    ResponseFormat,
    SamplingParams,
    Tool,
    ToolCall,
)
from p2pnode.protocols.inference.prompt_rules import next_seed, seed_of

CHOICES_MAX: Final = 8
"""Answers to one request."""
TOKENS_MAX: Final = 4096
"""Of an answer where the request does not say it; a host's context may allow less."""
EXTENSION: Final = "p2pnode"
"""The field of a request, and of an answer's usage, that holds what only this gateway knows."""
HEADER: Final = "x-p2pnode-"
"""How the headers begin that say the same as the fields of the extension."""
_LINE_ENDS: Final = (
    (b"\xc2\x85", b"\\u0085"),
    (b"\xe2\x80\xa8", b"\\u2028"),
    (b"\xe2\x80\xa9", b"\\u2029"),
)
"""In UTF-8, and as an escape. In JSON they can stand in strings only."""
_ROUTING: Final = frozenset(
    {
        "max_price", "max_cost", "trust", "host", "exclude", "quantisation", "verified", "conversation",
        "min_reputation", "hedge",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """Which hosts one request may be sent to. ``conversation`` names what it belongs to; "" for nothing.

    ``hedge``: whether a second one is asked where the first token is late; None: as the gateway does.
    """

    filters: Filters = field(default_factory=Filters)
    quantisation: str = ""
    conversation: str = ""
    hedge: HedgeMode | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What is asked of the network. ``model`` is the name that the request gave; "" for the default."""

    model: str = ""
    messages: tuple[ChatMessage, ...]
    tools: tuple[Tool, ...] = ()
    tool_choice: str = "auto"
    parallel_tool_calls: bool = True
    response_format: ResponseFormat = field(default_factory=ResponseFormat)
    sampling: SamplingParams = field(default_factory=SamplingParams)
    seed: bytes | None = None
    logprobs: int = -1
    conversation: str = ""
    """A name that the API has for the conversation; "" where it has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSaid:
    """A token of an answer, how likely it was, and others that were: text, bytes, natural logarithm."""

    text: str
    data: bytes
    logprob: float
    top: tuple[tuple[str, bytes, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """Who answers, and for what price: token units per million tokens. Empty while that is not known."""

    host: str = ""
    session: str = ""
    price_in: int = 0
    price_out: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """Tokens in and out, of those in the ones that a host had in its cache, and token units."""

    tokens_in: int = 0
    reused: int = 0
    tokens_out: int = 0
    cost: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            tokens_in=self.tokens_in + other.tokens_in,
            reused=self.reused + other.reused,
            tokens_out=self.tokens_out + other.tokens_out,
            cost=self.cost + other.cost,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """An answer that is whole."""

    text: str
    reasoning: str = ""
    calls: tuple[ToolCall, ...] = ()
    finish: FinishReason = "stop"
    context_full: bool = False
    """Whether it ended because its host's context was full."""
    stop: str = ""
    """The stop string that ended it; "" where none did, or its host does not say."""
    tally: Tally = Tally()
    served: Served = Served()
    logprobs: tuple[TokenSaid, ...] = ()
    """Of the tokens that :meth:`Writer.said` has not brought."""


class Writer(Protocol):
    """Writes the answers to one request in the words of one API.

    Frames are server-sent events. ``choice`` counts the turns of the request from 0.
    """

    stream: bool
    """Whether the answer is to be sent as it comes."""

    def whole(self, ended: Sequence[Ended]) -> dict[str, Any]:
        """All answers as one JSON object."""

    def begin(self) -> bytes:
        """The first frames."""

    def said(self, choice: int, said: Said, call_id: str, logprobs: Sequence[TokenSaid]) -> bytes:
        """A piece of an answer. ``call_id``: of a call that begins with it."""

    def ended(self, choice: int, ended: Ended) -> bytes:
        """An answer is whole."""

    def finish(self, ended: Sequence[Ended]) -> bytes:
        """All answers are whole: the last frames."""

    def idle(self) -> bytes:
        """A frame that only shows that the connection lives."""

    def failed(self, error: FaultError) -> bytes:
        """The last frames where something failed after the first ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request, read."""

    turns: tuple[Turn, ...]
    writer: Writer


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """What is fresh in each answer: its id, of letters and digits, and the time in epoch seconds."""

    id: str
    created: int


def picture(fields: Fields, mime: str, data: str, name: str) -> Part:
    """A picture that came in base64, in the field ``name``. Raises ``FaultError``."""
    try:
        return Part(kind="image", data=b64decode(data, validate=True), mime=mime[:64])
    except ValueError as error:
        raise fields.fault(name, "is no base64") from error


def joined(parts: Sequence[Part]) -> tuple[Part, ...]:
    """The same with neighbouring texts as one: a message on the wire has few parts."""
    made: list[Part] = []
    for part in parts:
        if made and made[-1].kind == part.kind == "text":
            made[-1] = Part(text=made[-1].text + part.text)
        elif part.kind != "text" or part.text:
            made.append(part)
    return tuple(made)


def with_choices(turn: Turn, count: int) -> tuple[Turn, ...]:
    """The turn so many times, each with a seed of its own."""
    turns = [turn]
    while len(turns) < count:
        last = turns[-1]
        turns.append(replace(last, seed=None if last.seed is None else next_seed(last.seed)))
    return tuple(turns)


def seed_in(fields: Fields, name: str = "seed") -> bytes | None:
    """The seed of a request as the wire has it."""
    value = fields.any(name)
    if value is None:
        return None
    return seed_of(fields.whole(name, 0, -(1 << 63), (1 << 64) - 1))


def cache_key(key_id: str, turn: Turn, routing: Routing) -> bytes:
    """What names a conversation at its hosts, 16 bytes: one key's never serves another's.

    A conversation is named by the request, or else by its first user message, which all of its turns share.
    """
    name = routing.conversation or turn.conversation
    if not name:
        first = next((each for each in turn.messages if each.role == "user"), turn.messages[0])
        name = "\0".join(part.text or part.data.hex() for part in first.content)
    parts = (key_id, "named" if routing.conversation or turn.conversation else "first", turn.model, name)
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part.encode(errors="surrogatepass")
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.digest()


def routing_of(headers: Mapping[str, str], fields: Fields) -> Routing:
    """Where a request may be sent, by its headers and its field ``p2pnode``; the field wins.

    Raises ``FaultError``.
    """
    given = dict(fields.record(EXTENSION).value)
    for name, value in headers.items():
        if name.lower().startswith(HEADER):
            given.setdefault(name.lower().removeprefix(HEADER).replace("-", "_"), value)
    found = Fields(given, EXTENSION)
    for name in given:
        if name not in _ROUTING:
            raise found.fault(name, f"is not known; known are {', '.join(sorted(_ROUTING))}")
    price_in, price_out = _prices(found)
    try:
        rules = HostRules.of(
            only=_names(found, "host"), never=_names(found, "exclude"), trust=_names(found, "trust")
        )
    except ConfigError as error:
        raise bad_request(str(error), EXTENSION) from error
    verified, hedge = found.text("verified"), found.text("hedge")
    if verified not in ("", "always", "paid", "never"):
        raise found.fault("verified", "is always, paid or never")
    if hedge not in ("", *HEDGES):
        raise found.fault("hedge", f"is {' or '.join(HEDGES)}")
    return Routing(
        filters=Filters(
            price_in_max=price_in,
            price_out_max=price_out,
            cost_max=_usdc(found, "max_cost", found.any("max_cost")),
            rules=rules,
            verified=verified or None,  # type: ignore[arg-type]
            reputation_min=_share(found, "min_reputation"),
        ),
        quantisation=found.text("quantisation"),
        conversation=found.text("conversation"),
        hedge=hedge or None,  # type: ignore[arg-type]
    )


def within(filters: Filters, bounds: Filters) -> Filters:
    """What both allow; all else is as in ``filters``."""
    return replace(
        filters,
        price_in_max=_least(filters.price_in_max, bounds.price_in_max),
        price_out_max=_least(filters.price_out_max, bounds.price_out_max),
        cost_max=_least(filters.cost_max, bounds.cost_max),
    )


def _least(*values: int | None) -> int | None:
    return min((each for each in values if each is not None), default=None)


def _share(fields: Fields, name: str) -> float:
    """A number from 0 to 1; a header has it as text."""
    value = fields.any(name)
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise fields.fault(name, "is a number from 0 to 1") from None
    return Fields({name: value}, fields.path).number(name, 0.0, 0.0, 1.0)


def _prices(fields: Fields) -> tuple[int | None, int | None]:
    """``max_price`` is one price for input and output, or an object of two; USDC per million tokens."""
    value = fields.any("max_price")
    if isinstance(value, dict):
        both = fields.record("max_price")
        return _usdc(both, "in", both.any("in")), _usdc(both, "out", both.any("out"))
    price = _usdc(fields, "max_price", value)
    return price, price


def _usdc(fields: Fields, name: str, value: object) -> int | None:
    """An amount of USDC in token units. A number of JSON is taken by the digits that it was written with."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise fields.fault(name, 'is an amount of USDC, as "0.05"')
    try:
        return usdc_units(Decimal(repr(value)) if isinstance(value, float) else value)
    except ValueError as error:
        raise fields.fault(name, str(error)) from error


def _names(fields: Fields, name: str) -> tuple[str, ...]:
    value = fields.any(name)
    if isinstance(value, str):
        return tuple(each.strip() for each in value.split(",") if each.strip())
    return fields.texts(name)


def served_fields(served: Served, cost: int) -> dict[str, str]:
    """What an answer cost and who gave it, for its usage: amounts in USDC, prices per million tokens."""
    return {
        "host": served.host,
        "session": served.session,
        "price_in": usdc_number(served.price_in),
        "price_out": usdc_number(served.price_out),
        "cost": usdc_number(cost),
    }


def tally_of(ended: Sequence[Ended]) -> Tally:
    """The sum over all answers of a request."""
    return sum((each.tally for each in ended), Tally())


def event_frame(data: bytes, name: str = "") -> bytes:
    """One server-sent event with one line of data, which is JSON in UTF-8.

    Many programs read lines with ``str.splitlines``, for which there are three more ends of a line than for
    JSON. A host's text with one of them would end the line there, and could begin an event of its own.
    """
    for end, escaped in _LINE_ENDS:
        if end in data:
            data = data.replace(end, escaped)
    return (b"event: " + name.encode() + b"\n" if name else b"") + b"data: " + data + b"\n\n"
