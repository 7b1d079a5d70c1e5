"""js-libp2p and us: whatever serves a browser page or a Node program must be able to use a host of ours."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from p2pnode.limits import Limits
from tests.net import interop_cases as cases
from tests.net.foreign import Foreign, Ours, foreign
from tests.net.support import running

pytestmark = pytest.mark.interop

DIALS = [("tcp", "ours"), ("tcp", "theirs"), ("ws", "ours"), ("ws", "theirs")]


@contextlib.asynccontextmanager
async def both(
    js_peer: Path, tmp_path: Path, transport: str, dialler: str
) -> AsyncIterator[tuple[Ours, Foreign]]:
    """We and a JavaScript peer, connected."""
    ours = Ours(limits=Limits(streams_per_peer=64))
    command = ["node", "peer.mjs", cases.DHT_PROTOCOL]
    async with running(ours.network), foreign(command, js_peer, log=tmp_path / "js.log") as other:
        await cases.connect(ours, other, transport, dialler)
        yield ours, other


@pytest.mark.parametrize(("transport", "dialler"), DIALS)
async def test_identify_and_ping_work_with_javascript(
    js_peer: Path, tmp_path: Path, transport: str, dialler: str
) -> None:
    async with both(js_peer, tmp_path, transport, dialler) as (ours, other):
        await cases.check_identify(ours, other)
        await cases.check_ping(ours, other)


@pytest.mark.parametrize(("transport", "dialler"), DIALS)
async def test_streams_work_with_javascript(
    js_peer: Path, tmp_path: Path, transport: str, dialler: str
) -> None:
    async with both(js_peer, tmp_path, transport, dialler) as (ours, other):
        await cases.check_echo(ours, other, 1)
        await cases.check_echo(ours, other, cases.MEGABYTE)
        await cases.check_half_close(ours, other)
        await cases.check_unknown_protocol(ours, other)
        await cases.check_many(ours, other, 50)


@pytest.mark.parametrize(("transport", "dialler"), DIALS)
async def test_an_abort_is_one_on_both_sides(
    js_peer: Path, tmp_path: Path, transport: str, dialler: str
) -> None:
    async with both(js_peer, tmp_path, transport, dialler) as (ours, other):
        await cases.check_reset(ours, other)


@pytest.mark.parametrize(("transport", "dialler"), DIALS)
async def test_gossip_works_with_javascript(
    js_peer: Path, tmp_path: Path, transport: str, dialler: str
) -> None:
    async with both(js_peer, tmp_path, transport, dialler) as (ours, other):
        await cases.check_gossip(ours, other)


@pytest.mark.parametrize(("transport", "dialler"), DIALS)
async def test_the_dht_works_with_javascript(
    js_peer: Path, tmp_path: Path, transport: str, dialler: str
) -> None:
    async with both(js_peer, tmp_path, transport, dialler) as (ours, other):
        await cases.check_dht(ours, other)
