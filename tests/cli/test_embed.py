"""``p2pnode embed`` as a real command: a line of JSON for each text, to files and scripts alike."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from p2pnode.cli.embed import lines_of
from p2pnode.cli.output import Output
from p2pnode.cli.user_input import read_all
from p2pnode.config import DEFAULT_MODEL
from p2pnode.errors import UsageError
from tests.cli.support import Program, join, run, start


def test_texts_and_lines_of_a_file_give_the_same_vectors(data_dir: Path, host: Program) -> None:
    flags = ("--model", "scripted", "--peer", host.multiaddr, "--data-dir", data_dir)
    told = run("embed", "one text", "another", *flags)
    assert told.code == 0, told
    lines = [json.loads(line) for line in told.out.splitlines()]
    assert [each["index"] for each in lines] == [0, 1]
    assert len({len(each["embedding"]) for each in lines}) == 1
    assert "2 vectors, 17 tokens in" in told.err
    again = run("embed", "-", *flags, "--json", stdin="one text\r\nanother")
    assert [each["embedding"] for each in again.named("embedding")] == [each["embedding"] for each in lines]
    (done,) = again.named("done")
    assert (done["vectors"], done["tokens_in"], done["cost"]) == (2, 17, 0)


@pytest.mark.parametrize(
    ("data", "texts"),
    [
        (b"one\ntwo\n", ["one", "two"]),
        (b"one\r\ntwo", ["one", "two"]),
        ("a\u2028b\x0bc\n".encode(), ["a\u2028b\x0bc"]),
        (b" x \n", [" x "]),
    ],
)
def test_each_line_is_a_text(data: bytes, texts: list[str]) -> None:
    assert lines_of(data) == texts


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "standard input is empty"),
        (b"one\n\ntwo\n", "line 2 is empty"),
        (b"one\n \t\n", "line 2 is empty"),
        (b"one\ncaf\xe9\n", "line 2 is no UTF-8"),
    ],
)
def test_a_line_that_is_no_text_is_named_and_nothing_is_left_out(data: bytes, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        lines_of(data)


def test_lines_are_checked_before_a_host_is_asked(data_dir: Path) -> None:
    ran = run("embed", "-", "--no-mdns", "--data-dir", data_dir, stdin=b"a\n\xff\n")
    assert (ran.code, "line 2 is no UTF-8" in ran.err) == (2, True), ran.err


@pytest.mark.long
def test_what_came_before_the_only_host_was_killed_is_printed_to_the_last_vector(tmp_path: Path) -> None:
    lines = "".join(f"text number {n} is here\n" for n in range(8_000))
    with join(tmp_path, "h") as host:
        flags = ["--model", "scripted", "--peer", host.multiaddr, "--data-dir", tmp_path / "c"]
        with start(tmp_path, "embed", ["embed", "-", *flags], stdin=True) as embed:
            embed.send(lines)
            assert embed.process.stdin is not None
            embed.process.stdin.close()
            embed.wait_event("embedding")
            host.kill()
            assert embed.wait() == 3
            cut, failed = embed.wait_event("cut_short"), embed.wait_event("failed")
            assert [e["index"] for e in embed.events if e["event"] == "embedding"] == list(
                range(cut["vectors"])
            )
            assert f"go on with text {cut['vectors'] + 1}" in failed["message"]


class Keyboard(io.TextIOWrapper):
    """Standard input where a person types."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("terminal", [True, False])
async def test_who_sits_at_a_terminal_is_told_that_it_is_read(
    terminal: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    source = (Keyboard if terminal else io.TextIOWrapper)(io.BytesIO(b"one\n"))
    assert await read_all(source, Output(as_json=False)) == "one\n"
    assert ("Ctrl-D" in capsys.readouterr().err) == terminal


async def test_an_input_without_an_end_is_refused() -> None:
    with (
        Path("/dev/zero").open() as endless,  # noqa: ASYNC230  a device: nothing waits
        pytest.raises(UsageError, match="standard input has more than 64 MiB"),
    ):
        await read_all(endless, Output(as_json=False))


@pytest.mark.long
def test_a_model_that_nobody_embeds_with_is_said_so(data_dir: Path, host: Program) -> None:
    refused = run("embed", "one", "--data-dir", data_dir, "--bootstrap", host.multiaddr, "--no-mdns")
    assert refused.code == 3
    assert "no host" in refused.err
    assert "Hosts with llama.cpp make them" in refused.err
    assert refused.out == ""


@pytest.mark.long
def test_a_host_of_llama_cpp_embeds_with_a_process_of_its_own_beside_the_one_that_answers(
    data_dir: Path, tmp_path: Path
) -> None:
    flags = ("--n-ctx", 512, "--slots", 1)
    with join(tmp_path, "h", *flags, model=DEFAULT_MODEL) as served:
        where = ("--data-dir", data_dir, "--bootstrap", served.multiaddr, "--no-mdns")
        told = run("hosts", "--needs", "embeddings", *where, "--json")
        assert "embeddings" in told.out
        ran = run("embed", "the cat sat", "a kitten rests", *where)
        assert ran.code == 0
        vectors = [json.loads(line)["embedding"] for line in ran.out.splitlines()]
        assert [len(each) for each in vectors] == [576, 576]
        again = run("embed", "a kitten rests", *where)
        assert json.loads(again.out)["embedding"] == vectors[1]
