"""A prompt that is put together from its parts."""

from __future__ import annotations

import pytest

from p2pnode.errors import ProtocolError
from p2pnode.protocols.inference.messages import Prompt
from p2pnode.protocols.inference.prompts import PromptReader, prompt_parts
from tests.memory import held_bytes


def test_a_discarded_prompt_keeps_nothing() -> None:
    reader = PromptReader(1, 100_000)
    parts = list(prompt_parts(1, bytes(100_000)))
    assert not reader.add(parts[0])
    assert held_bytes(reader) > 60_000
    reader.discard()
    assert reader.add(parts[1])
    assert held_bytes(reader) < 1_000


def test_a_prompt_of_fewer_bytes_than_announced_is_none() -> None:
    reader = PromptReader(1, 100)
    assert reader.add(Prompt(turn=1, part=0, last=True, total=100, body=b"x"))
    with pytest.raises(ProtocolError, match="holds 1 bytes and announced 100"):
        reader.body()
