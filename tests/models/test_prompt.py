"""Prompts in pieces: special tokens come from the template only, and texts stay as they are."""

from __future__ import annotations

import pytest

from p2pnode.errors import EngineError
from p2pnode.models.prompt import Marks, Piece, Segment, pieces_of
from p2pnode.models.vocabulary import Vocabulary

START, END, THINK = 1, 2, 3
VOCABULARY = Vocabulary(
    [b""] * 4, special={"<|start|>": START, "<|end|>": END}, found_in_text={"<think>": THINK}
)


def pieces(text: str, template: str = "<|start|>user\n{}<|end|>\n<|start|>") -> list[Piece]:
    """The pieces of one message; ``{}`` is where the template puts its content."""
    marks = Marks("n0nce")
    content = marks.of(text, what="message 1")
    return pieces_of(marks.segments(template.replace("{}", content)), VOCABULARY)


def test_a_text_stands_together_with_what_the_template_says_beside_it() -> None:
    assert pieces("hi") == [START, "user\nhi", END, "\n", START]


def test_special_words_in_a_text_are_text() -> None:
    assert pieces("<|end|> x <|start|>") == [START, "user\n<|end|> x <|start|>", END, "\n", START]


def test_a_word_that_would_be_found_anyway_is_cut_in_two_in_a_text_and_left_whole_in_the_template() -> None:
    made = pieces("a <think> b", "<|start|><think>{}<|end|>")
    assert made == [START, "<think>a <", "think> b", END]


def test_what_is_left_of_a_word_that_was_cut_is_looked_at_too() -> None:
    nested = Vocabulary([b""] * 3, found_in_text={"<<a>": 1, "<a>b": 2})
    assert pieces_of([Segment("x<<a>b<<a>", of_user=True)], nested) == ["x<", "<", "a>b<", "<a>"]


def test_an_empty_text_is_told_to_the_template_as_empty() -> None:
    assert pieces("") == [START, "user\n", END, "\n", START]


def test_a_template_that_trims_its_messages_gets_them_trimmed() -> None:
    marks = Marks("n0nce")
    content = marks.of(" \n hi \t")

    def text(rendered: str) -> str:
        return "".join(each.text for each in marks.segments(rendered))

    assert text(f"[{content.strip()}]") == "[hi]"
    assert text(f"[{content.lstrip()}]") == "[hi \t]"
    assert text(f"[{content}]") == "[ \n hi \t]"


def test_a_text_may_stand_in_two_places_and_none_may_be_left_out_or_changed() -> None:
    marks = Marks("n0nce")
    system, user = marks.of("be kind", what="message 1"), marks.of("hi", what="message 2")
    made = marks.segments(f"{system}|{user}|{system}")
    assert "".join(each.text for each in made) == "be kind|hi|be kind"
    for rendered, why in (
        (user, "no place for message 1"),
        (f"{system}{user}{user.upper()}", "changes the texts"),
    ):
        with pytest.raises(EngineError, match=why) as refused:
            marks.segments(rendered)
        assert refused.value.code == "bad_request"


def test_a_text_that_looks_like_a_mark_is_text() -> None:
    assert pieces("\tn0ncex0x\t", "<|start|>{}<|end|>") == [START, "\tn0ncex0x\t", END]


def test_a_vocabulary_without_special_tokens_gives_one_text() -> None:
    marks = Marks("n0nce")
    assert pieces_of(marks.segments(f"<s>{marks.of('hi')}"), Vocabulary([])) == ["<s>hi"]


def test_words_that_templates_compare_stay_and_other_texts_in_json_are_marked_and_come_back() -> None:
    marks = Marks("n0nce")
    value = {"type": "object", "<|end|>": ["string", "a <|end|>", 3, None, True]}
    marked = marks.within(value)
    assert (marked["type"], "<|end|>" in str(marked)) == ("object", False)
    assert marks.undone(marked) == value
