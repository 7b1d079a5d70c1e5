"""What a host should have in its cache follows from what it was sent before, and less than that is noted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from trio.testing import MockClock

from p2pnode.client.question import chat_messages
from p2pnode.client.reuse import CACHES_MAX, LEAST, PrefixMemory
from p2pnode.ids import SessionId
from p2pnode.models.manifest import SCRIPTED
from p2pnode.protocols.inference.messages import PromptBody, SamplingParams, Tool
from tests.client.failing import read
from tests.node.world import scripted_host, world

ONE, OTHER = SessionId(b"1" * 32), SessionId(b"2" * 32)


def said(*texts: str, system: str | None = None, **fields: Any) -> PromptBody:
    """A conversation: questions and answers by turns."""
    roles = ("user", "assistant")
    messages = [{"role": roles[at % 2], "content": text} for at, text in enumerate(texts)]
    return PromptBody(messages=chat_messages(messages, system), seed=bytes(16), **fields)


@pytest.mark.parametrize(
    ("reused", "share"), [(0, 0.0), (50, 0.5), (100, 1.0), (120, 1.0)], ids=["none", "half", "all", "more"]
)
def test_the_share_is_that_of_the_earlier_prompt(reused: int, share: float) -> None:
    memory = PrefixMemory()
    assert memory.quoted(ONE, said("a"), tokens=100, reused=0) is None
    assert memory.quoted(ONE, said("a", "b", "c"), tokens=150, reused=reused) == share


@pytest.mark.parametrize(
    "again",
    [
        said("x", "b", "c"),
        said("b"),
        said("a", system="a system message"),
        said("a", "b", "c", tools=(Tool(name="f"),)),
        said("a", "b", "c", now=1_700_000_000),
    ],
    ids=["other", "next", "system", "tools", "date"],
)
def test_a_prompt_that_does_not_begin_with_the_earlier_one_says_nothing(again: PromptBody) -> None:
    memory = PrefixMemory()
    memory.quoted(ONE, said("a"), tokens=100, reused=0)
    assert memory.quoted(ONE, again, tokens=150, reused=0) is None


def test_how_the_answer_is_drawn_and_where_it_goes_on_makes_no_difference() -> None:
    memory = PrefixMemory()
    memory.quoted(ONE, said("a"), tokens=100, reused=0)
    again = said("a", sampling=SamplingParams(tokens_max=7), prefix=(1, 2), text_bytes=1, logprobs=3)
    assert memory.quoted(ONE, replace(again, seed=b"s" * 16), tokens=100, reused=50) == 0.5


def test_another_session_has_another_cache() -> None:
    memory = PrefixMemory()
    memory.quoted(ONE, said("a"), tokens=100, reused=0)
    assert memory.quoted(OTHER, said("a"), tokens=100, reused=0) is None


def test_another_cache_key_has_another_cache_in_the_same_session() -> None:
    memory = PrefixMemory()
    one, other = (said("a", cache_key=bytes([number]) * 16) for number in (1, 2))
    memory.quoted(ONE, one, tokens=100, reused=0)
    assert memory.quoted(ONE, other, tokens=100, reused=0) is None
    assert memory.quoted(ONE, one, tokens=100, reused=50) == 0.5


def test_a_short_prompt_says_nothing() -> None:
    memory = PrefixMemory()
    memory.quoted(ONE, said("a"), tokens=LEAST - 1, reused=0)
    assert memory.quoted(ONE, said("a"), tokens=LEAST, reused=0) is None
    assert memory.quoted(ONE, said("a"), tokens=LEAST, reused=0) == 0.0


def test_the_oldest_sessions_are_forgotten() -> None:
    memory = PrefixMemory()
    for number in range(CACHES_MAX + 1):
        memory.quoted(SessionId(number.to_bytes(32, "big")), said("a"), tokens=100, reused=0)
    first, last = SessionId(bytes(32)), SessionId(CACHES_MAX.to_bytes(32, "big"))
    assert memory.quoted(last, said("a"), tokens=100, reused=100) == 1.0
    assert memory.quoted(first, said("a"), tokens=100, reused=100) is None


async def test_a_host_that_keeps_its_cache_is_measured_as_one_and_one_that_forgets_is_too(
    autojump_clock: MockClock,
) -> None:
    sampling = SamplingParams(tokens_max=5, temperature=0)
    question = {"role": "user", "content": "x" * 100}
    async with world() as w:
        host = await w.add([scripted_host(slots=1)])
        async with w.client([host.node.multiaddrs[0]]) as client:
            first = client.chat([question], model=SCRIPTED, sampling=sampling)
            await read(first)
            assert client.searches.measured[host.node.peer_id].reuse is None
            longer = [question, {"role": "assistant", "content": first.text}, question]
            await read(client.chat(longer, model=SCRIPTED, sampling=sampling))
            kept = client.searches.measured[host.node.peer_id].reuse
            assert kept == 1.0
            async with w.client([host.node.multiaddrs[0]], ip="10.0.9.8") as other:  # takes the one slot
                await read(other.chat([question], model=SCRIPTED, sampling=sampling))
            await read(client.chat(longer, model=SCRIPTED, sampling=sampling))
            assert (client.searches.measured[host.node.peer_id].reuse or 1.0) < kept
