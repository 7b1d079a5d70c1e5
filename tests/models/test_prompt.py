"""Prompts in pieces: special tokens come from the template only, and texts stay as they are."""

from __future__ import annotations

import pytest

from p2pnode.errors import EngineError
from p2pnode.models.prompt import MarkedMessages, Piece
from p2pnode.models.vocabulary import Vocabulary

START, END, THINK = 1, 2, 3
VOCABULARY = Vocabulary(
    [b""] * 4, special={"<|start|>": START, "<|end|>": END}, found_in_text={"<think>": THINK}
)


def pieces(text: str, template: str = "<|start|>user\n{}<|end|>\n<|start|>") -> list[Piece]:
    """The pieces of one message; ``{}`` is where the template puts its content."""
    marked = MarkedMessages([{"role": "user", "content": text}], "n0nce")
    return marked.pieces(template.replace("{}", marked.messages[0]["content"]), VOCABULARY)


def test_a_text_stands_together_with_what_the_template_says_beside_it() -> None:
    assert pieces("hi") == [START, "user\nhi", END, "\n", START]


def test_special_words_in_a_text_are_text() -> None:
    assert pieces("<|end|> x <|start|>") == [START, "user\n<|end|> x <|start|>", END, "\n", START]


def test_a_word_that_would_be_found_anyway_is_cut_in_two_in_a_text_and_left_whole_in_the_template() -> None:
    made = pieces("a <think> b", "<|start|><think>{}<|end|>")
    assert made == [START, "<think>a <", "think> b", END]


def test_what_is_left_of_a_word_that_was_cut_is_looked_at_too() -> None:
    nested = Vocabulary([b""] * 3, found_in_text={"<<a>": 1, "<a>b": 2})
    marked = MarkedMessages([{"role": "user", "content": "x<<a>b<<a>"}], "n0nce")
    assert marked.pieces(marked.messages[0]["content"], nested) == ["x<", "<", "a>b<", "<a>"]


def test_an_empty_text_is_told_to_the_template_as_empty() -> None:
    assert pieces("") == [START, "user\n", END, "\n", START]


def test_a_template_that_trims_its_messages_gets_them_trimmed() -> None:
    marked = MarkedMessages([{"role": "user", "content": " \n hi \t"}], "n0nce")
    content = marked.messages[0]["content"]
    assert marked.pieces(f"[{content.strip()}]", VOCABULARY) == ["[hi]"]
    assert marked.pieces(f"[{content.lstrip()}]", VOCABULARY) == ["[hi \t]"]
    assert marked.pieces(f"[{content}]", VOCABULARY) == ["[ \n hi \t]"]


def test_a_text_may_stand_in_two_places_and_none_may_be_left_out() -> None:
    messages = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}]
    marked = MarkedMessages(messages, "n0nce")
    system, user = (each["content"] for each in marked.messages)
    assert marked.pieces(f"{system}|{user}|{system}", VOCABULARY) == ["be kind|hi|be kind"]
    with pytest.raises(EngineError, match="no place for message 1") as refused:
        marked.pieces(user, VOCABULARY)
    assert refused.value.code == "bad_request"


def test_a_text_that_looks_like_a_mark_is_text() -> None:
    assert pieces("\tn0ncex0x\t", "<|start|>{}<|end|>") == [START, "\tn0ncex0x\t", END]


def test_a_vocabulary_without_special_tokens_gives_one_text() -> None:
    marked = MarkedMessages([{"role": "user", "content": "hi"}], "n0nce")
    assert marked.pieces(f"<s>{marked.messages[0]['content']}", Vocabulary([])) == ["<s>hi"]
