"""What a client remembers between runs survives, and a damaged file costs nothing but the memory."""

from __future__ import annotations

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from p2pnode.client.hosts import load_measured, save_measured
from p2pnode.client.ranking import Measured
from p2pnode.ids import PeerId
from tests.client.support import NOW, peer


def test_what_was_measured_comes_back(tmp_path: Path) -> None:
    known = {
        peer(1): Measured(connect_s=0.1).answered(0.2, 30.0),
        peer(2): Measured().failed(NOW, fault=True),
    }
    save_measured(tmp_path / "measured.json", known)
    assert load_measured(tmp_path / "measured.json") == known


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
        '{"p": {"failures_in_a_row": null}}',
        '{"p": {"ttft_s": [1]}}',
    ],
)
def test_a_damaged_memory_is_forgotten(tmp_path: Path, text: str) -> None:
    path = tmp_path / "measured.json"
    path.write_text(text)
    with capture_logs() as logs:
        assert load_measured(path) == {}
    assert [entry["event"] for entry in logs] == (["measured.unreadable"] if text else [])


def test_keys_of_a_later_version_are_ignored_and_the_rest_kept(tmp_path: Path) -> None:
    path = tmp_path / "measured.json"
    path.write_text('{"p": {"ttft_s": 1, "colour": "blue"}}')
    assert load_measured(path) == {PeerId("p"): Measured(ttft_s=1)}


def test_only_the_newest_five_hundred_and_twelve_hosts_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "measured.json"
    save_measured(path, {PeerId(f"p{number}"): Measured() for number in range(600)})
    kept = load_measured(path)
    assert len(kept) == 512
    assert PeerId("p599") in kept
    assert PeerId("p0") not in kept


def test_a_disk_that_takes_nothing_costs_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    save_measured(tmp_path / "file" / "measured.json", {peer(1): Measured()})
