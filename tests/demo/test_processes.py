"""The demo's processes: what ends by itself is told, what was killed on purpose isn't."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pnode.demo.processes import Processes, events_of
from p2pnode.errors import LocalError


async def test_a_process_that_ends_by_itself_is_told_with_its_last_words(tmp_path: Path) -> None:
    processes = Processes(tmp_path)
    ended = await processes.start("A", "status", f"--data-dir={tmp_path / 'nobody'}")
    assert processes.fallen() == ""
    await ended.wait()
    assert "A ended by itself with 1; its last words:\np2pnode: " in processes.fallen()


async def test_one_that_was_killed_on_purpose_is_not(tmp_path: Path) -> None:
    processes = Processes(tmp_path)
    process = await processes.start("A", "status", f"--data-dir={tmp_path / 'nobody'}")
    processes.kill("A")
    assert await process.wait() < 0
    assert processes.fallen() == ""
    await processes.aclose()


async def test_a_node_that_does_not_start_is_told_with_its_last_words(tmp_path: Path) -> None:
    (tmp_path / "A.ready").write_text("of an earlier start")
    with pytest.raises(LocalError, match=r"(?s)A did not start; its last words:.*no-such-flag"):
        await Processes(tmp_path).node("A", [], "--no-such-flag")


async def test_a_command_that_fails_is_told(tmp_path: Path) -> None:
    with pytest.raises(
        LocalError, match="`p2pnode sessions show` failed: no conversation or paid session begins with"
    ):
        await events_of("sessions", "show", "00", f"--data-dir={tmp_path}")
