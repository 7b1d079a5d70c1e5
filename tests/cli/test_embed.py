"""``p2pnode embed`` as a real command: a line of JSON for each text, to files and scripts alike."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.support import Program, run


def test_texts_and_lines_of_a_file_give_the_same_vectors(data_dir: Path, host: Program) -> None:
    flags = ("--model", "scripted", "--peer", host.multiaddr, "--data-dir", data_dir)
    told = run("embed", "one text", "another", *flags)
    assert told.code == 0, told
    lines = [json.loads(line) for line in told.out.splitlines()]
    assert [each["index"] for each in lines] == [0, 1]
    assert len({len(each["embedding"]) for each in lines}) == 1
    assert "2 vectors, 17 tokens in" in told.err
    again = run("embed", "-", *flags, "--json", stdin="one text\n\nanother\n")
    assert [each["embedding"] for each in again.named("embedding")] == [each["embedding"] for each in lines]
    (done,) = again.named("done")
    assert (done["vectors"], done["tokens_in"], done["cost"]) == (2, 17, 0)


@pytest.mark.long
def test_a_model_that_nobody_embeds_with_is_said_so(data_dir: Path, host: Program) -> None:
    refused = run("embed", "one", "--data-dir", data_dir, "--bootstrap", host.multiaddr, "--no-mdns")
    assert refused.code == 3
    assert "no host" in refused.err
    assert refused.out == ""
