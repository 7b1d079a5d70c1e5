"""An answer that its client takes in small pieces has its engine paused again and again: each pause costs the
host the same, however long the answer is by then."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from p2pnode.host.generation import Requester, TurnPrompt, answer
from p2pnode.host.turn_times import TurnTimes
from p2pnode.host.unpaid_work import FOLLOW_BYTES, FOLLOWED_BURST, FOLLOWED_PER_S, CompileTurns
from p2pnode.limits import Limits
from p2pnode.models.answer import VERSION, AnswerPieces, AnswerReader, Part, ToolFormat, reader_of
from p2pnode.models.compiled_prompt import GROWTH_BYTES, CompiledPrompt
from p2pnode.models.engine import ANYBODY
from p2pnode.models.scripted import ROLE_IDS, ScriptedConfig, ScriptedEngine
from p2pnode.protocols.inference.commands import GenDone, Generate, GenTokens, Grown
from p2pnode.protocols.inference.messages import (
    CHECKPOINT_EVERY,
    ChatMessage,
    PromptBody,
    ResponseFormat,
    StartCause,
    Tool,
)
from p2pnode.protocols.inference.replay import Piece
from p2pnode.shares import Origin

BODY = PromptBody(messages=(ChatMessage.of("user", "hi"),), tools=(Tool(name="f"),), seed=bytes(16))
JSON = ResponseFormat(kind="json_object")
ANSWERS: dict[str, tuple[ToolFormat, str]] = {
    "escapes in the generic form": ("generic", '{"response": "' + "a\\n" * 150 + '"}'),
    "one long call": (
        "hermes",
        '<tool_call>{"name": "f", "arguments": {"a": "' + "é" * 200 + '"}}</tool_call>',
    ),
    "a call that names its tool last": (
        "hermes",
        '<tool_call>{"arguments": {"a": "' + "x" * 400 + '"}, "name": "f"}</tool_call> done',
    ),
    "what looks like calls": ("hermes", '<tool_call>{"x": 1}</tool_call>' * 15),
    "blanks after a name": ("mistral", ("[TOOL_CALLS]" + "a" * 60 + " " * 180) * 2),
}


class _CountingReader(AnswerReader):
    """Counts the letters that it and its copies read."""

    def __init__(self, form: ToolFormat) -> None:
        super().__init__(form, ["f"])
        self.letters = [0]

    def feed(self, text: str) -> list[Part]:
        self.letters[0] += len(text)
        return super().feed(text)


class _Turn:
    """A turn at a host, and what its machine keeps of each engine call."""

    def __init__(self, form: ToolFormat, text: str, *, has: int = 0) -> None:
        self.reader = _CountingReader(form)
        self.engine = ScriptedEngine(ScriptedConfig(n_ctx=1 << 16, script=lambda _prompt, _seed: text))
        prompt = CompiledPrompt(ids=(ROLE_IDS["assistant"],), format=f"{form}/{VERSION}")
        self.prompt = TurnPrompt(prompt, has, AnswerPieces(self.reader))
        self.pieces: list[Piece] = []
        self.grown: list[Grown] = []
        self.reason = ""

    async def call(self, run: int, *, keep: int = 1 << 20) -> None:
        """Have the engine make as much as one receipt covers; its first ``keep`` reports are kept."""
        made = tuple(token for piece in self.pieces for token in piece.ids)
        told = sum(len((piece.text + piece.name).encode()) for piece in self.pieces)
        start: StartCause = "credit" if run > 1 else ""
        order = Generate(1, run, BODY, made, CHECKPOINT_EVERY, answer_text_bytes=told, start=start)
        reports: list[Any] = []

        async def report(value: Any) -> None:
            reports.append(value)

        requester = Requester(b"session", ANYBODY, CompileTurns(), TurnTimes(0.0))
        await answer(self.engine, order, self.prompt, requester, limits=Limits(), report=report)
        self.grown += [each for each in reports if isinstance(each, Grown)]
        self.pieces += [each.piece for each in reports if isinstance(each, GenTokens)][:keep]
        self.reason = next(each.reason for each in reports if isinstance(each, GenDone))

    @property
    def said(self) -> list[tuple[str, int, str]]:
        """Letter by letter: a name, or a letter of a text, with its channel."""
        letters: list[tuple[str, int, str]] = []
        for piece in self.pieces:
            letters += [(piece.channel, piece.call, piece.name)] if piece.name else []
            letters += [(piece.channel, piece.call, letter) for letter in piece.text]
        return letters


def _said_at_once(form: ToolFormat, text: str) -> list[tuple[str, int, str]]:
    """What the answer says where no engine was paused."""
    pieces = AnswerPieces(reader_of(f"{form}/{VERSION}", ["f"], reasons=False, thinking=False))
    turn = _Turn(form, text)
    turn.pieces = [
        Piece(text=each.text, channel=each.channel, call=each.call, name=each.name)
        for each in [*pieces.feed(text), *pieces.finish(whole=True)]
    ]
    return turn.said


@pytest.mark.parametrize("name", ANSWERS)
async def test_an_answer_of_many_pauses_is_read_twice_at_most_and_says_what_it_says_without(
    name: str, autojump_clock: MockClock
) -> None:
    form, text = ANSWERS[name]
    turn, run = _Turn(form, text), 0
    while turn.reason in ("", "length"):
        run += 1
        await turn.call(run)
    assert run >= len(text) // CHECKPOINT_EVERY, "it was paused again and again"
    assert turn.said == _said_at_once(form, text)
    # Once while it was made, and once more when the next call went on from it.
    assert turn.reader.letters[0] <= 2 * len(text)


@pytest.mark.parametrize("name", ANSWERS)
async def test_what_a_call_made_and_nobody_kept_is_no_part_of_the_answer(
    name: str, autojump_clock: MockClock
) -> None:
    form, text = ANSWERS[name]
    turn, run = _Turn(form, text), 0
    while turn.reason in ("", "length"):
        run += 1
        await turn.call(run)
        if turn.reason == "length":
            await turn.call(run, keep=1)  # the pause comes in the middle of what it reports
            turn.reason = "length"
    assert turn.said == _said_at_once(form, text)


@pytest.mark.parametrize("has", [None, 0, 2000])
async def test_others_get_their_turn_while_a_long_prefix_is_read(
    has: int | None, autojump_clock: MockClock
) -> None:
    """It may be as long as a context, and of an answer that nobody has paid for here."""
    letters = 12_000
    text = "a" * letters + '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    turn, ticks = _Turn("hermes", text), 0
    turn.prompt.has = has

    async def tick() -> None:
        nonlocal ticks
        while True:
            await trio.lowlevel.checkpoint()
            ticks += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(tick)
        body = replace(BODY, prefix=tuple(text[:letters].encode()))
        turn.prompt.prompt = await turn.engine.prompt(body)
        counted, ticks = ticks, 0
        await turn.call(1)
        nursery.cancel_scope.cancel()
    assert counted >= 10, "while its text was made of its ids"
    assert ticks >= 5, "while that was read"
    told = [letter for channel, _, letter in turn.said if channel == "content"]
    assert told == ["a"] * (0 if has is None else letters - has)
    assert turn.reader.letters[0] <= 2 * len(text)


async def test_a_grammar_that_grows_with_its_answer_is_counted_at_each_pause(
    autojump_clock: MockClock,
) -> None:
    """Each list that is begun leaves a rule that says how it ends."""
    turn = _Turn("hermes", '{"a": ' + "[" * 1000)
    turn.prompt = TurnPrompt(await turn.engine.prompt(replace(BODY, tools=(), response_format=JSON)), 0)
    at_first = turn.prompt.grammar_bytes
    for run in range(1, 21):
        await turn.call(run)
    more = [each.more for each in turn.grown]
    assert more == sorted(set(more)), "told when it is another number, and not before"
    assert len(more) > 5
    assert more[-1] == turn.prompt.grammar_bytes - at_first - GROWTH_BYTES


async def test_an_answer_without_a_grammar_grows_by_nothing(autojump_clock: MockClock) -> None:
    turn = _Turn("hermes", "a" * 200)
    for run in range(1, 5):
        await turn.call(run)
    assert turn.grown == []


async def test_who_has_large_grammars_followed_again_and_again_waits_and_nobody_else_does(
    autojump_clock: MockClock,
) -> None:
    turns, followed, size = CompileTurns(), dict[str, int](), 1 << 20

    async def follow(who: str, times: int) -> None:
        for _ in range(times):
            async with turns.turn_of(Origin(who, who), follows=size):
                followed[who] = followed.get(who, 0) + 1

    begun = trio.current_time()
    with trio.move_on_after(10):
        await follow("evil", 1000)
    most = (FOLLOWED_BURST + 10 * FOLLOWED_PER_S) / (FOLLOW_BYTES + size)
    assert most - 2 < followed["evil"] <= most + 1
    assert trio.current_time() - begun == 10
    await follow("honest", 3)
    async with turns.turn_of(Origin("evil", "evil")):
        pass  # a prompt without a grammar is none of that
    assert trio.current_time() - begun == 10
