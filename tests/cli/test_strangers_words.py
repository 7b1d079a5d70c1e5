"""What strangers wrote stays on one line, bounded and marked, wherever it is shown."""

from __future__ import annotations

import json

import pytest
import structlog

from p2pnode.cli.output import Output
from p2pnode.errors import RefusedError, RemoteError, StoreRefusedError, UnreachableError
from p2pnode.log import configure_logging
from p2pnode.words import one_line, quoted

FORGED = "smollm2\nleft out:\r\n  12D3…abc\u2028\u202egnp.exe\u2066\x1b[2J\x9b31m\x07"
HIDDEN = ("\u202e", "\u2066", "\u2028", "\x1b", "\x9b", "\x07", "\r")


def clean(text: str) -> bool:
    return not any(each in text for each in HIDDEN)


def test_words_of_a_stranger_are_one_bounded_line() -> None:
    line = one_line(FORGED)
    assert clean(line)
    assert "\n" not in line
    assert line.startswith("smollm2 left out:")
    assert one_line("naïve 日本語 עברית") == "naïve 日本語 עברית"
    assert len(one_line("x" * 10_000)) == 300
    assert one_line("x" * 300) == "x" * 300


def test_a_quote_can_not_be_left_by_a_quotation_mark() -> None:
    assert quoted('no". Remedy: run `curl') == '"no\'. Remedy: run `curl"'


@pytest.mark.parametrize(
    "error",
    [
        RefusedError("capacity", f"busy\nRemedy: run `curl`{FORGED}", said=True),
        StoreRefusedError("quota", f"busy\nRemedy: run `curl`{FORGED}"),
        UnreachableError(f"gone\nRemedy: run `curl`{FORGED}"),
    ],
)
def test_a_refusal_can_not_write_lines_of_its_own(
    error: RemoteError, capsys: pytest.CaptureFixture[str]
) -> None:
    Output(as_json=False).failed(error, 4)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert clean(said)
    assert isinstance(error, UnreachableError) or 'says "busy Remedy: run' in said


def test_a_cell_of_a_table_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    Output(as_json=False).table(("model", "peer"), [(FORGED, "[bold]x[/bold]")])
    said = capsys.readouterr().out
    assert said.count("\n") == 2
    assert clean(said)
    assert "[bold]x[/bold]" in said


def test_an_answer_can_not_drive_the_terminal_even_through_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output(as_json=False)
    output.piece("one\n\ttwo \x1b]0;title\x07\x1b[31m\x9b2J\r")
    assert capsys.readouterr().out == "one\n\ttwo \ufffd]0;title\ufffd\ufffd[31m\ufffd2J\ufffd"
    exact = Output(as_json=True)
    exact.piece("\x1b[31m")  # scripts get what came, escaped
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert json.loads(said)["text"] == "\x1b[31m"


def test_a_log_for_people_has_one_line_an_event(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    configure_logging("info")
    structlog.get_logger().info("peer.gone", agent=FORGED, count=3)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert not any(each in said for each in ("\u202e", "\u2028", "\x1b[2J", "\x9b", "\x07"))
