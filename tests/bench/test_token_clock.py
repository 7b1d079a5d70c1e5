"""The reckoning both sides of a pair share."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from p2pnode.bench.token_clock import QUESTIONS, TokenClock, question


async def test_tokens_after_the_first_ones_are_counted_from_their_coming(autojump_clock: MockClock) -> None:
    clock = TokenClock(trio.current_time())
    await trio.sleep(3)
    clock.came(4)
    await trio.sleep(2)
    clock.came(24)
    assert clock.first_token_s == 3
    assert clock.tokens_per_s == 10


async def test_text_without_new_tokens_does_not_move_the_end(autojump_clock: MockClock) -> None:
    clock = TokenClock(trio.current_time())
    clock.came(1)
    await trio.sleep(1)
    clock.came(11)
    await trio.sleep(9)
    clock.came(11)
    assert clock.tokens_per_s == 10


async def test_a_stream_of_nothing_has_no_rate() -> None:
    clock = TokenClock(trio.current_time())
    assert clock.tokens_per_s == 0
    clock.came(1)
    assert clock.tokens_per_s == 0


def test_no_question_comes_twice() -> None:
    asked = [question(number, stream) for number in range(20) for stream in range(len(QUESTIONS))]
    assert len(set(asked)) == len(asked)
