"""The answer to a service's challenge is worth something once, for one host and one purpose."""

from __future__ import annotations

import pytest

from p2pnode.errors import ProtocolError
from p2pnode.protocols.s5.accounts import Purpose, challenge_response
from tests.protocols.s5.support import ZERO

HOST = "127.0.0.1:5601"
RESPONSE = (
    "0100000000000000000000000000000000000000000000000000000000000000004cee03ff17d8dd8e3565f3f514b693c3"
    "7fcdc405ced575d162acae8f0c612c97"
)
SIGNATURE = (
    "d0f1d3ba2b66878cd5e97c8611393c6ba5ca6c9c73ec5cfc8f6639139731f32d655e371b4c0c27c217693a2d0994e27c"
    "d3a75be29d419e9290d61f7c1a63ac03"
)


def test_the_response_and_its_signature_are_the_vector() -> None:
    response = challenge_response(Purpose.REGISTER, bytes(32), HOST)
    assert response.hex() == RESPONSE
    assert ZERO.sign(response).hex() == SIGNATURE


def test_an_answer_for_anything_else_is_another_one() -> None:
    answers = {
        challenge_response(purpose, challenge, host)
        for purpose in Purpose
        for challenge in (bytes(32), b"\x01" * 32)
        for host in (HOST, "127.0.0.1:5602")
    }
    assert len(answers) == 8


def test_a_challenge_of_another_length_is_not_answered() -> None:
    with pytest.raises(ProtocolError, match="32 bytes"):
        challenge_response(Purpose.LOGIN, bytes(31), HOST)
