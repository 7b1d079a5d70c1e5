"""Who may use a gateway: anybody on loopback without a wallet, otherwise who has the key."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pnode.gateway.access import OpenRing, SingleKey, gateway_ring, token_of
from p2pnode.gateway.faults import KeyRefusedError


def test_a_key_is_drawn_once_and_only_where_one_is_needed(tmp_path: Path) -> None:
    path = tmp_path / "dir" / "gateway.key"
    assert isinstance(gateway_ring(path, "127.0.0.1", pays=False), OpenRing)
    assert not path.exists()
    assert isinstance(gateway_ring(path, "127.0.0.1", pays=True), SingleKey)
    key = path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    assert isinstance(gateway_ring(path, "0.0.0.0", pays=False), SingleKey)
    assert path.read_text() == key
    assert len(key.strip()) == 52


@pytest.mark.parametrize(("host", "told"), [("127.0.0.1", True), ("0.0.0.0", False)])
async def test_only_who_is_on_this_machine_learns_where_the_key_stands(
    tmp_path: Path, host: str, told: bool
) -> None:
    ring = gateway_ring(tmp_path / "gateway.key", host, pays=True)
    for token in ("", "p2p-wrong"):
        with pytest.raises(KeyRefusedError, match=r"gateway\.key") as refused:
            await ring.authorise(token)
        assert (str(tmp_path) in str(refused.value)) == told


async def test_the_one_key_lets_in_and_no_other_does() -> None:
    ring = SingleKey("p2p-right", where="FILE")
    assert (await ring.authorise("p2p-right")).key_id == "owner"
    for wrong, reason in (
        ("", "missing"),
        ("p2p-wrong", "invalid"),
        ("p2p-right ", "invalid"),
        ("é", "invalid"),
    ):
        with pytest.raises(KeyRefusedError, match="FILE") as refused:
            await ring.authorise(wrong)
        assert refused.value.reason == reason


async def test_an_open_gateway_takes_the_key_that_programs_must_send() -> None:
    assert (await OpenRing().authorise("sk-whatever")).key_id == ""


@pytest.mark.parametrize(
    ("headers", "token"),
    [
        ({"authorization": "Bearer abc"}, "abc"),
        ({"authorization": "bearer  abc "}, "abc"),
        ({"x-api-key": "abc"}, "abc"),
        ({"authorization": "Basic abc", "x-api-key": "def"}, "def"),
        ({"authorization": "Bearer"}, ""),
        ({}, ""),
    ],
)
def test_a_key_is_found_where_openais_and_anthropics_programs_put_it(
    headers: dict[str, str], token: str
) -> None:
    assert token_of(headers) == token
