"""What of a conversation goes into the next prompt."""

from __future__ import annotations

from p2pnode.client.failover import Held
from p2pnode.client.history import History, Message, prompt_of
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
