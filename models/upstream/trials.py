"""What a server can do, found out by asking it and looking at the effect. Pure.

Servers ignore fields that they don't know, and say nothing. So each field that changes what is drawn is tried
before anything is offered: at a high temperature two seeds give two texts, and with a ``top_k`` of 1 they
give one. What shows no effect is not offered.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

from p2pnode.errors import EngineError
from p2pnode.models.upstream.completion import Part
from p2pnode.protocols.inference.messages import SamplingParams

TOKENS: Final = 4
PROMPT: Final = "One, two, three, four,"
REPEATING: Final = "sea sea sea sea sea sea"
COUNTED: Final = "Zwölf Boxkämpfer, 你好 🙂 def f(x): return x**2 + 1234"
"""A text that two tokenizers hardly cut into equally many tokens."""
GRAMMAR: Final = 'root ::= "zebra"'
_GRAMMAR_TEXT: Final = "zebra"
_PLAIN: Final[Mapping[str, Any]] = {"temperature": 0.0}
_HOT: Final[Mapping[str, Any]] = {"temperature": 2.0}
_NEUTRAL: Final[Mapping[str, Any]] = {
    "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repeat_penalty": 1.0, "presence_penalty": 0.0,
    "frequency_penalty": 0.0, "logit_bias": (),
}  # fmt: skip
_DEFAULT: Final = SamplingParams()
_TOP: Final = 2
_SAMPLERS: Final = ("logit_bias", "penalties", "top_k", "top_p", "min_p", "temperature")
_PENALTIES: Final = ("repeat_penalty", "presence_penalty", "frequency_penalty")


@dataclass(frozen=True, slots=True)
class Trial:
    """A request that is made once. ``streams``: as answers are asked for later, for some servers tell more or
    less then."""

    name: str
    fields: Mapping[str, Any]
    prompt: str = PROMPT
    streams: bool = False


def trials(bias_id: int) -> list[Trial]:
    """All trials, in the order in which they are made. ``bias_id`` is the token that a bias asks for."""
    hot = {**_HOT, "top_p": 1.0}
    narrow = (("top_k", 1), ("min_p", 1.0), ("top_p", 0.01))
    # The same draws from other probabilities: a penalty of a word that is nearly certain shows in some.
    repeating = {"temperature": 1.0, "top_p": 1.0, "seed": 1, "max_tokens": 3 * TOKENS}
    return [
        Trial("greedy", _PLAIN),
        Trial("hot 1", {**hot, "seed": 1}),
        Trial("hot 1 again", {**hot, "seed": 1}),
        Trial("hot 2", {**hot, "seed": 2}),
        *(
            Trial(f"{name} {seed}", {**hot, name: value, "seed": seed})
            for name, value in narrow
            for seed in (1, 2)
        ),
        Trial("logit_bias", {**_PLAIN, "logit_bias": {str(bias_id): 100}}),
        Trial("repeats", repeating, REPEATING),
        *(Trial(name, {**repeating, name: 2.0}, REPEATING) for name in (*_PENALTIES, "repetition_penalty")),
        Trial("grammar", {**_PLAIN, "grammar": GRAMMAR}),
        Trial("logprobs", {**_PLAIN, "logprobs": _TOP}, streams=True),
        Trial("counted", {**_PLAIN, "max_tokens": 1}, COUNTED),
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Abilities:
    """What a server does. ``takes`` are fields of ``SamplingParams``; ``names`` says how it calls some of
    them. ``adds_begin``: it puts the begin token before a text by itself."""

    chat: bool = False
    takes: frozenset[str] = frozenset()
    names: tuple[tuple[str, str], ...] = ()
    seeds: bool = False
    ids: bool = False
    adds_begin: bool = False
    grammar: bool = False
    logprobs: bool = False
    continues: bool = True
    """It goes on with an answer that was begun."""
    isolates: bool = False
    """It can be told not to use what it kept of other prompts."""

    @property
    def samplers(self) -> tuple[str, ...]:
        """For the profile: what of our chain is applied, in the order in which the server is given it."""
        present = {*self.takes, *(("penalties",) if self.takes & set(_PENALTIES) else ())}
        return tuple(name for name in _SAMPLERS if name in present)

    def check(self, sampling: SamplingParams, *, logprobs: int, grammar: bool) -> None:
        """Raise ``EngineError`` for what the server can't do and the request asks for.

        Where the server knows no ``top_k``, say, the protocol's own default stands for the server's: the
        offer's profile lists the samplers that are applied. Any other value is refused.
        """
        for each in fields(SamplingParams):
            name, value = each.name, getattr(sampling, each.name)
            if (
                name in _NEUTRAL
                and name not in self.takes
                and value not in (_NEUTRAL[name], getattr(_DEFAULT, name))
            ):
                raise _cannot(f"{name} {value!s:.40}", f"leave {name} out")
        if "temperature" not in self.takes and sampling.temperature not in (0.0, _DEFAULT.temperature):
            raise _cannot(f"temperature {sampling.temperature:g}", "leave the temperature out")
        if logprobs >= 0 and not self.logprobs:
            raise _cannot("logprobs", "leave them out")
        if grammar and not self.grammar:
            raise _cannot("grammar, schema or tools", "leave them out")

    def fields(self, sampling: SamplingParams, seed: int) -> dict[str, Any]:
        """The request's fields of sampling, for values that :meth:`check` let through."""
        names = dict(self.names)
        made: dict[str, Any] = {"temperature": sampling.temperature}
        for name in (*_NEUTRAL,):
            if name in self.takes and name != "logit_bias":
                made[names.get(name, name)] = getattr(sampling, name)
        if sampling.logit_bias:
            made["logit_bias"] = {str(each.id): each.bias for each in sampling.logit_bias}
        if self.seeds:
            made["seed"] = seed
        return made


def judged(
    answers: Mapping[str, Part | None], *, chat: bool, counted: int, bias_text: str
) -> Abilities | None:
    """What the answers show; None where the server takes prompts in another form than it was asked in.

    ``answers`` has one for each trial, None where the server refused it. ``counted``: so many tokens the
    tokenizer makes of ``COUNTED``.
    """
    said = {name: None if part is None else part.text for name, part in answers.items()}

    def same(*names: str) -> bool:
        return all(said.get(name) for name in names) and len({said[name] for name in names}) == 1

    if not said.get("greedy"):
        return None
    told = answers.get("counted")
    more = None if told is None or told.prompt_tokens is None else told.prompt_tokens - counted
    if not chat and more not in (None, 0, 1):
        return None
    hot = bool(said.get("hot 1")) and said["hot 1"] != said["greedy"]
    varies = hot and not same("hot 1", "hot 2")
    takes = {"temperature"} if hot else set()
    takes |= {name for name in ("top_k", "min_p", "top_p") if varies and same(f"{name} 1", f"{name} 2")}
    if bias_text and (said.get("logit_bias") or "").replace(" ", "").startswith(bias_text.strip() * 3):
        takes.add("logit_bias")
    seeds = varies and same("hot 1", "hot 1 again")
    changed = {
        name
        for name in (*_PENALTIES, "repetition_penalty")
        if seeds and said.get(name) and not same("repeats", name)
    }
    names: tuple[tuple[str, str], ...] = ()
    if "repeat_penalty" not in changed and "repetition_penalty" in changed:
        names = (("repeat_penalty", "repetition_penalty"),)
        changed.add("repeat_penalty")
    takes |= changed & set(_PENALTIES)
    logprobs = answers.get("logprobs")
    return Abilities(
        chat=chat,
        takes=frozenset(takes),
        names=names,
        seeds=seeds,
        adds_begin=more == 1,
        grammar=(said.get("grammar") or "").strip() == _GRAMMAR_TEXT,
        logprobs=logprobs is not None and _is_told(logprobs),
    )


def _is_told(part: Part) -> bool:
    spelled = b"".join(each.spelled for each in part.tokens)
    return (
        bool(part.tokens)
        and spelled == part.text.encode()
        and all(len(each.top) == _TOP for each in part.tokens)
    )


def _cannot(what: str, remedy: str) -> EngineError:
    return EngineError(
        f"the server behind this host takes no {what}: {remedy}, or use another host "
        "(`p2pnode hosts --why` shows what each can do)",
        code="bad_request",
    )
