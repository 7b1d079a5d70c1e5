"""Free sessions that were left: one process resumes each, and a damaged file costs nothing but the cache."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path

import pytest

from p2pnode.client.free_sessions import FREE_MAX, FreeSession, FreeSessions
from p2pnode.files import read_secret_or_none
from p2pnode.ids import ModelId, PeerId, SessionId

HOST, MODEL = PeerId("host"), ModelId(b"\x05" * 32)


def left(number: int = 1, **changes: object) -> FreeSession:
    record = FreeSession(
        session=SessionId(number.to_bytes(32, "big")), host=HOST, model=MODEL, secret=b"\x07" * 32, until=100,
        generation=number, addresses=("/ip4/10.0.0.1/tcp/4001/p2p/host",),
    )  # fmt: skip
    return replace(record, **changes)  # type: ignore[arg-type]


@pytest.fixture(params=["file", "memory"])
def known(request: pytest.FixtureRequest, tmp_path: Path) -> FreeSessions:
    return FreeSessions(tmp_path / "free.json" if request.param == "file" else None)


def test_what_was_left_last_is_taken_once(known: FreeSessions) -> None:
    known.put(left(1), 0)
    known.put(left(2), 0)
    assert known.has(HOST, MODEL, 99)
    assert known.take(HOST, MODEL, 99) == left(2)
    assert known.take(HOST, MODEL, 99) == left(1)
    assert known.take(HOST, MODEL, 99) is None
    assert not known.has(HOST, MODEL, 99)


def test_only_one_of_this_host_and_model_whose_time_is_not_up_is_taken(known: FreeSessions) -> None:
    known.put(left(1), 0)
    assert known.take(PeerId("other"), MODEL, 0) is None
    assert known.take(HOST, ModelId(bytes(32)), 0) is None
    assert known.take(HOST, MODEL, 100) is None
    assert known.take(HOST, MODEL, 99) == left(1)


def test_of_one_session_the_last_word_counts_and_of_too_many_the_first_go(known: FreeSessions) -> None:
    known.put(left(1), 0)
    known.put(left(1, generation=7), 0)
    assert known.take(HOST, MODEL, 0) == left(1, generation=7)
    for number in range(FREE_MAX + 5):
        known.put(left(number), 0)
    taken = [known.take(HOST, MODEL, 0) for _ in range(FREE_MAX + 1)]
    assert taken == [*(left(number) for number in reversed(range(5, FREE_MAX + 5))), None]


def test_hosts_are_named_by_whom_was_left_last_and_where_they_were(known: FreeSessions) -> None:
    known.put(left(1), 0)
    known.put(left(2, host=PeerId("other"), addresses=("/ip4/10.0.0.2/tcp/4001",)), 0)
    known.put(left(3, model=ModelId(bytes(32)), host=PeerId("of another model")), 0)
    known.put(left(4, until=5, host=PeerId("over")), 0)
    assert list(known.hosts(MODEL, 5).items()) == [
        (PeerId("other"), ("/ip4/10.0.0.2/tcp/4001",)),
        (HOST, left(1).addresses),
    ]


def test_a_file_that_nobody_wrote_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, reads = tmp_path / "free.json", 0

    def counted(path: Path) -> str | None:
        nonlocal reads
        reads += 1
        return read_secret_or_none(path)

    mine, other = FreeSessions(path), FreeSessions(path)
    mine.put(left(1), 0)
    monkeypatch.setattr("p2pnode.client.free_sessions.read_secret_or_none", counted)
    assert all(mine.has(HOST, MODEL, 0) for _ in range(50))
    assert reads == 1
    assert other.take(HOST, MODEL, 0) == left(1)
    assert not mine.has(HOST, MODEL, 0)


def test_two_processes_share_a_file_that_only_its_owner_reads(tmp_path: Path) -> None:
    path = tmp_path / "free.json"
    FreeSessions(path).put(left(1), 0)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert FreeSessions(path).take(HOST, MODEL, 0) == left(1)
    assert FreeSessions(path).take(HOST, MODEL, 0) is None


@pytest.mark.parametrize("text", ["", "{", "[1]", '[{"session": 1}]', '{"a": "b"}', '[{"session": "zz"}]'])
def test_a_damaged_file_is_one_without_sessions(tmp_path: Path, text: str) -> None:
    path = tmp_path / "free.json"
    path.write_text(text)
    known = FreeSessions(path)
    assert known.take(HOST, MODEL, 0) is None
    known.put(left(1), 0)
    assert known.take(HOST, MODEL, 0) == left(1)


def test_without_a_data_dir_nothing_is_written(tmp_path: Path) -> None:
    known = FreeSessions(tmp_path / "none" / "free.json")
    known.put(left(1), 0)
    assert known.take(HOST, MODEL, 0) == left(1)
    assert list(tmp_path.iterdir()) == []


def test_no_key_is_shown() -> None:
    assert (b"\x07" * 32).hex() not in repr(left())
