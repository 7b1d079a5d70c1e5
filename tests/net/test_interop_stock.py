"""The library as it comes, in a process of its own, and us: each must take the other for one of its kind."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from p2pnode.limits import Limits
from tests.net import interop_cases as cases
from tests.net.foreign import Foreign, Ours, foreign
from tests.net.support import running

HERE = Path(__file__).parent
DIALS = [("tcp", "ours"), ("tcp", "theirs"), ("ws", "ours"), ("ws", "theirs")]


@contextlib.asynccontextmanager
async def both(tmp_path: Path, transport: str, dialler: str) -> AsyncIterator[tuple[Ours, Foreign]]:
    """We and the library, connected."""
    ours = Ours(limits=Limits(streams_per_peer=64))
    command = [sys.executable, "-W", "ignore", "stock_peer.py"]
    async with running(ours.network), foreign(command, HERE, log=tmp_path / "stock.log") as other:
        await cases.connect(ours, other, transport, dialler)
        yield ours, other


@pytest.mark.parametrize(("transport", "dialler"), DIALS)
async def test_streams_work_with_the_library_as_it_comes(
    tmp_path: Path, transport: str, dialler: str
) -> None:
    async with both(tmp_path, transport, dialler) as (ours, other):
        await cases.check_identify(ours, other)
        await cases.check_ping(ours, other)
        await cases.check_echo(ours, other, 1)
        await cases.check_echo(ours, other, 65536)
        await cases.check_half_close(ours, other)
        # The library forgets a stream that was reset before its reader looks, which then sees an end.
        await cases.check_reset(ours, other, seen_as=("end", "reset"))
        await cases.check_unknown_protocol(ours, other)


@pytest.mark.parametrize("dialler", ["ours", "theirs"])
async def test_five_megabytes_pass_a_slow_reader_whole(tmp_path: Path, dialler: str) -> None:
    async with both(tmp_path, "tcp", dialler) as (ours, other):
        await cases.check_echo(ours, other, 5 * cases.MEGABYTE, pause_s=0.005)


async def test_fifty_streams_at_once_all_answer(tmp_path: Path) -> None:
    async with both(tmp_path, "tcp", "ours") as (ours, other):
        await cases.check_many(ours, other, 50)


@pytest.mark.parametrize("dialler", ["ours", "theirs"])
async def test_gossip_and_dht_work_with_the_library_as_it_comes(tmp_path: Path, dialler: str) -> None:
    async with both(tmp_path, "tcp", dialler) as (ours, other):
        await cases.check_gossip(ours, other)
        await cases.check_dht(ours, other)
