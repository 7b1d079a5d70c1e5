"""What of a conversation goes into the next prompt."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.client.failover import Held
from p2pnode.client.history import History, Message, prompt_of, without_oldest
from p2pnode.storage.conversations.records import Piece
from p2pnode.storage.conversations.turns import numbered, turns_of

SYSTEM = {"role": "system", "content": "be brief"}


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def answered(history: History, question: str, answer: str) -> None:
    history.say("user", question)
    message = history.begin_answer()
    message.text, message.complete = answer, True


def test_all_that_was_said_goes_along_with_the_next_question() -> None:
    history = History()
    history.say("system", "be brief")
    answered(history, "one", "first")
    history.say("user", "two")
    answer = history.begin_answer()
    assert history.prompt_for(answer) == [SYSTEM, user("one"), assistant("first"), user("two")]


def test_an_answer_that_is_asked_for_again_is_not_shown_to_the_model() -> None:
    history = History()
    answered(history, "one", "first")
    again = history.begin_answer()
    assert history.prompt_for(again) == [user("one")]
    assert [message.text for message in history.messages] == ["one", "first", ""]


def test_the_rest_of_an_answer_is_asked_for_without_it() -> None:
    history = History()
    history.say("user", "one")
    answer = history.begin_answer()
    answer.text, answer.ids, answer.text_known = "fir", [1, 2, 3], 2
    assert history.unfinished is answer
    assert history.prompt_for(answer) == [user("one")]
    assert answer.held == Held((1, 2, 3), "fir", 2)


def test_of_questions_in_a_row_the_last_is_asked() -> None:
    history = History()
    history.say("user", "one")
    history.begin_answer()
    history.say("user", "two")
    answer = history.begin_answer()
    assert history.prompt_for(answer) == [user("two")]


def test_an_answer_after_one_that_nothing_came_of_is_part_of_the_history() -> None:
    history = History()
    history.say("user", "one")
    history.begin_answer()
    answered(history, "two", "second")
    history.say("user", "three")
    assert history.prompt_for(history.begin_answer()) == [user("two"), assistant("second"), user("three")]


def test_every_system_message_goes_along() -> None:
    said = [Message("system", "be brief"), Message("system", "be kind"), Message("user", "one")]
    assert prompt_of(said) == [SYSTEM, {"role": "system", "content": "be kind"}, user("one")]


def test_only_the_last_answer_can_be_gone_on_with() -> None:
    history = History()
    assert history.unfinished is None
    assert not history.has_question
    history.say("user", "one")
    assert history.has_question
    history.begin_answer()
    history.say("user", "two")
    assert history.unfinished is None


def turns(*pieces: Piece) -> History:
    return History.of_turns(turns_of(numbered(pieces, None, next_turn=0)))


def test_a_kept_answer_knows_how_many_of_its_ids_have_their_text() -> None:
    history = turns(
        Piece(role="user", text="one"),
        Piece(role="assistant", text="fir", ids=(1, 2)),
        Piece(role="assistant", ids=(3,)),
    )
    answer = history.unfinished
    assert answer is not None
    assert answer.held == Held((1, 2, 3), "fir", 2)


def test_a_kept_answer_with_an_end_is_complete_and_a_kept_question_waits_for_its_answer() -> None:
    ended = turns(
        Piece(role="user", text="one"),
        Piece(role="assistant", text="first", ids=(1,)),
        Piece(role="assistant", finish="stop"),
    )
    assert ended.unfinished is None
    waiting = turns(Piece(role="user", text="one"))
    assert waiting.unfinished is waiting.messages[-1]
    assert waiting.prompt_for(waiting.messages[-1]) == [user("one")]


# ---- too long for every host


def _left(roles: str, sizes: list[int] | None = None) -> str:
    """What stays of messages, each given by the first letter of its role."""
    names = {"s": "system", "d": "developer", "u": "user", "a": "assistant", "t": "tool"}
    each = list(zip(roles, range(len(roles)), sizes or [1] * len(roles), strict=True))
    kept = without_oldest(each, role=lambda it: names[it[0]], size=lambda it: it[2])
    assert all(one in each for one in kept)
    return "".join(letter for letter, _, _ in kept)


@pytest.mark.parametrize(
    ("roles", "stays"),
    [
        ("suauau", "suau"),
        ("uau", "u"),
        ("suau", "su"),
        ("sduatauau", "sduau"),  # the call and its result go with their question
        ("u", "u"),
        ("su", "su"),
        ("", ""),
        ("s", "s"),
        ("suauauauauauauauau", "suauauauauauau"),
    ],
)
def test_the_oldest_exchanges_go_and_the_system_and_the_last_question_stay(roles: str, stays: str) -> None:
    assert _left(roles) == stays


def test_about_a_quarter_goes_at_a_time_and_a_long_message_alone_where_it_is_enough() -> None:
    assert _left("uauauau", [100, 1, 1, 1, 1, 1, 1]) == "uauau"
    assert _left("uauauau", [1, 1, 1, 1, 100, 1, 1]) == "u"


@given(st.lists(st.sampled_from("uat"), max_size=30), st.integers(0, 2))
def test_leaving_out_again_and_again_ends_with_the_last_question(roles: list[str], system: int) -> None:
    text = "s" * system + "u" + "".join(roles) + "u"
    steps = 0
    while (shorter := _left(text)) != text:
        assert shorter.startswith("s" * system + "u")
        text, steps = shorter, steps + 1
        assert steps <= len(roles) + 1
    assert text == "s" * system + "u"
