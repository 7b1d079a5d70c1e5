"""Markdown on a terminal: the same however it was cut, nothing is taken back, nothing is lost."""

from __future__ import annotations

import io
import itertools
import re

from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from p2pnode.cli.markdown import MarkdownStream

SAMPLE = """# Title

A **bold move** with `code` and *soft* words that wrap around the right margin of the screen, 2 * 3 = 6.
Second line <b>x</b> & List<int> [link](http://example.com/a) snake_case_name.

- one item that is long enough to be wrapped somewhere
- two

1. first

2. second

| a | b |
|---|---|
| 1 | 2 |

```python
def f(x):
    return   x  # **not bold**, and longer than the screen is wide by some more
```

> a quote that goes on and on and on over the end of the line

Done"""


def shown(pieces: list[str], width: int = 40) -> list[str]:
    """What was written, a write each, without colours."""
    console = Console(file=io.StringIO(), force_terminal=True, width=width, highlight=False, emoji=False)
    written: list[str] = []
    stream = MarkdownStream(console, written.append)
    for piece in pieces:
        stream.feed(piece)
    stream.end()
    return [re.sub(r"\x1b\[[0-9;]*m", "", each) for each in written]


WHOLE = "".join(shown([SAMPLE]))


@settings(max_examples=25)
@given(st.lists(st.integers(1, len(SAMPLE) - 1), max_size=12, unique=True))
def test_an_answer_looks_the_same_however_it_was_cut(cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(SAMPLE)]
    pieces = [SAMPLE[one:other] for one, other in itertools.pairwise(places)]
    assert "".join(shown(pieces)) == WHOLE


def test_words_are_wrapped_whole_and_lines_are_not_padded() -> None:
    lines = WHOLE.splitlines()
    assert "that wrap around the right margin of the" in lines
    assert all(len(line) <= 40 for line in lines if "return" not in line)
    assert all(line == line.rstrip() for line in lines)


def test_nothing_that_was_said_is_lost() -> None:
    for words in (
        "Title",
        "bold move",
        "List<int>",
        "<b>x</b>",
        "http://example.com/a",
        "snake_case_name",
        "Done",
    ):
        assert words in WHOLE
    assert "**bold" not in WHOLE
    assert (
        "    return   x  # **not bold**, and longer than the screen is wide by some more"
        in WHOLE.splitlines()
    )


def test_a_paragraph_is_shown_line_by_line_before_it_is_over() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=20, highlight=False, emoji=False)
    written: list[str] = []
    stream = MarkdownStream(console, written.append)
    stream.feed("one two three four ")
    assert "".join(written) == ""  # the line is not full: a word may still fit
    stream.feed("five six seven")
    assert "".join(written) == "one two three four\n"
    stream.feed(" **nine ten eleven twelve thirteen")
    assert "bold" not in "".join(written)
    assert "nine" not in "".join(written)  # bold, if it is closed
    stream.end()
    assert "nine" in "".join(written)


@settings(max_examples=60)
@given(st.text(alphabet="ab *_`#-|>[]()\n1.~<", max_size=80))
def test_no_text_breaks_it(text: str) -> None:
    whole = "".join(shown([text], width=20))
    letters = [letter for letter in text if letter in "ab"]
    assert sorted(letter for letter in whole if letter in "ab") == sorted(letters)
    assert "".join(shown(list(text), width=20)).split() == whole.split()
