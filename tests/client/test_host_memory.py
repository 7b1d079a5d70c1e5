"""What was measured of hosts is kept between runs and shared by processes; a damaged file costs nothing."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from p2pnode.client.host_memory import HostMemory
from p2pnode.client.reputation import HOSTS_MAX, Measured
from p2pnode.ids import PeerId
from tests.client.support import NOW, peer


def _memory(path: Path) -> HostMemory:
    return HostMemory(path, in_thread=False)


async def _loaded(path: Path) -> HostMemory:
    memory = _memory(path)
    await memory.load()
    return memory


async def test_what_was_measured_comes_back(tmp_path: Path) -> None:
    first = _memory(tmp_path / "measured.json")
    first.note(peer(1), partial(Measured.answered, ttft_s=0.2, tokens_per_s=30.0))
    first.note(peer(1), partial(Measured.proved, tokens=64))
    first.note(peer(2), partial(Measured.failed, now=NOW, turn=True, fault=True))
    await first.save()
    again = await _loaded(tmp_path / "measured.json")
    assert again.measured == first.measured
    assert again.measured[peer(1)].kept == 1
    assert again.measured[peer(2)].broken == 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[1, 2]",
        '{"p": 7}',
        '{"p": {"ttft_s": "fast"}}',
        '{"p": {"ttft_s": NaN}}',
        '{"p": {"tokens_per_s": -1}}',
        '{"p": {"failures_in_a_row": 1.5}}',
        '{"p": {"kept": 0.5}}',
        '{"p": {"failures_in_a_row": null}}',
        '{"p": {"ttft_s": [1]}}',
    ],
)
async def test_a_damaged_memory_is_forgotten(tmp_path: Path, text: str) -> None:
    path = tmp_path / "measured.json"
    path.write_text(text)
    with capture_logs() as logs:
        memory = await _loaded(path)
    assert memory.measured == {}
    assert [entry["event"] for entry in logs] == (["measured.unreadable"] if text else [])
    memory.note(peer(1), Measured.closed_early)
    await memory.save()
    assert (await _loaded(path)).measured == {peer(1): Measured(left_closed=1)}


async def test_keys_of_a_later_version_are_ignored_and_the_rest_kept(tmp_path: Path) -> None:
    path = tmp_path / "measured.json"
    path.write_text('{"p": {"ttft_s": 1, "colour": "blue"}}')
    assert (await _loaded(path)).measured == {PeerId("p"): Measured(ttft_s=1)}


async def test_memory_and_file_hold_no_more_hosts_than_are_worth_it(tmp_path: Path) -> None:
    memory = _memory(tmp_path / "measured.json")
    held = memory.measured
    memory.note(peer(1), partial(Measured.answered, ttft_s=0.2, tokens_per_s=30.0))
    for number in range(3 * HOSTS_MAX):
        memory.note(PeerId(f"p{number}"), partial(Measured.connected, seconds=0.1))
    assert len(memory.measured) <= 2 * HOSTS_MAX
    assert memory.measured is held  # searches that run look at this map
    await memory.save()
    kept = (await _loaded(tmp_path / "measured.json")).measured
    assert len(kept) == HOSTS_MAX
    assert peer(1) in kept


async def test_a_disk_that_takes_nothing_costs_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "measured.json", tmp_path / "none" / "measured.json", tmp_path):
        memory = _memory(path)
        memory.note(peer(1), Measured.closed_early)
        await memory.save()
    nowhere = HostMemory(None)
    nowhere.note(peer(1), Measured.closed_early)
    await nowhere.load()
    await nowhere.save()


async def test_two_clients_of_one_data_dir_lose_no_turn_of_each_other(tmp_path: Path) -> None:
    path = tmp_path / "measured.json"
    one, other = await _loaded(path), await _loaded(path)
    answered = partial(Measured.answered, ttft_s=0.2, tokens_per_s=30.0)
    for memory, turns in ((one, 3), (other, 2)):
        for _ in range(turns):
            memory.note(peer(1), answered)
        await memory.save()
    one.note(peer(1), answered)
    await one.save()
    assert (await _loaded(path)).measured[peer(1)].kept == 6


async def test_a_client_that_runs_for_days_saves_each_minute(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    path = tmp_path / "measured.json"
    memory = _memory(path)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(memory.keep)
        memory.note(peer(1), Measured.closed_early)
        await trio.sleep(61)
        assert (await _loaded(path)).measured == {peer(1): Measured(left_closed=1)}
        before = path.stat().st_mtime_ns
        await trio.sleep(600)
        assert path.stat().st_mtime_ns == before  # nothing new, nothing written
        nursery.cancel_scope.cancel()
