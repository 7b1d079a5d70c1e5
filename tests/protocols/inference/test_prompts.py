"""Prompts in parts: as fast as they are confirmed, in order, and never more than announced."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.errors import ProtocolError
from p2pnode.protocols.inference.messages import UNCONFIRMED_MAX, Prompt, PromptReceived
from p2pnode.protocols.inference.prompts import PromptReader, Upload


def test_a_prompt_of_fewer_bytes_than_announced_is_none() -> None:
    reader = PromptReader(1, 100)
    assert reader.add(Prompt(turn=1, part=0, last=True, total=100, body=b"x"))
    with pytest.raises(ProtocolError, match="holds 1 bytes and announced 100"):
        reader.body()


@given(st.lists(st.integers(1, 100_000), min_size=1, max_size=6), st.integers(1, 9_000))
def test_no_more_is_on_its_way_than_may_be_unconfirmed_and_all_arrives_in_order(
    sizes: list[int], step: int
) -> None:
    upload, read, order = Upload(), dict.fromkeys(range(1, len(sizes) + 1), 0), []
    for turn, size in enumerate(sizes, start=1):
        upload.add(turn, bytes([turn]) * size)
    on_the_wire = list(upload.parts())
    while on_the_wire:
        part = on_the_wire.pop(0)
        order.append((part.turn, part.part))
        read[part.turn] += len(part.body)
        unread = sum(len(each.body) for each in on_the_wire) + len(part.body)
        assert unread <= UNCONFIRMED_MAX
        assert upload.confirm(PromptReceived(turn=part.turn, bytes=read[part.turn]))
        on_the_wire += upload.parts()
    assert order == sorted(order)
    assert list(read.values()) == sizes
    assert list(upload.parts()) == []


def test_a_host_that_confirms_what_was_not_sent_breaks_the_protocol() -> None:
    upload = Upload()
    upload.add(1, bytes(100_000))
    sent = sum(len(part.body) for part in upload.parts())
    assert sent == UNCONFIRMED_MAX
    assert upload.confirm(PromptReceived(turn=1, bytes=sent))
    assert not upload.confirm(PromptReceived(turn=1, bytes=5))
    with pytest.raises(ProtocolError, match="confirmed 32769 bytes"):
        upload.confirm(PromptReceived(turn=1, bytes=sent + 1))


def test_a_prompt_that_is_not_wanted_any_more_makes_room_for_the_next() -> None:
    upload = Upload()
    upload.add(1, bytes(100_000))
    upload.add(2, bytes(10))
    list(upload.parts())
    upload.drop(1)
    assert [part.turn for part in upload.parts()] == [2]
    assert not upload.confirm(PromptReceived(turn=1, bytes=100_000)), "of a turn that is over"
