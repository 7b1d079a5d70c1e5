"""A process that dies at any instant, and two that write at once: what was acknowledged is there."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from p2pnode.payments.journal.journal import Journal
from tests.payments.journals import checkpoint, session, voucher

_HOST = """
import os, sys, trio
from pathlib import Path
from tests.payments.journals import hosted, receipt, session, voucher, writing

async def serve(journal, number):
    await journal.host_relaying(hosted(number))
    say(f"relaying {number}")
    await journal.host_open(session(number))
    say(f"open {number}")
    for seq in range(1, 10**6):
        await journal.host_issued(session(number), receipt(seq))
        say(f"issued {number} {seq}")
        await journal.host_paid(session(number), voucher(seq, 1000 * seq))
        say(f"paid {number} {seq}")

def say(line):
    os.write(1, line.encode() + b"\\n")

async def main(path, first):
    async with writing(path) as journal:
        async with trio.open_nursery() as nursery:
            for number in range(first, first + 3):
                nursery.start_soon(serve, journal, number)

trio.run(main, Path(sys.argv[1]), int(sys.argv[2]))
"""


def _start(path: Path, first: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", _HOST, str(path), str(first)], stdout=subprocess.PIPE)


def _read_then_kill(process: subprocess.Popen[bytes], lines: int) -> list[list[str]]:
    """The first lines, then a kill, then what it still said."""
    assert process.stdout is not None
    said = [process.stdout.readline() for _ in range(lines)]
    process.kill()
    rest = process.stdout.read().splitlines(keepends=True)
    process.stdout.close()
    process.wait(10)
    return [line.decode().split() for line in (*said, *rest) if line.endswith(b"\n")]


def _check_acknowledged(path: Path, said: list[list[str]]) -> None:
    journal = Journal.open(path)
    journal.verify()
    for what, number, *rest in said:
        held = journal.hosted_one(session(int(number)))
        assert held is not None, number
        assert what == "relaying" or held.state == "open"
        if what == "issued":
            assert checkpoint(int(rest[0])) in journal.receipts(session(int(number)))[int(rest[0]) - 1 :]
        elif what == "paid":
            assert held.voucher is not None
            assert held.voucher.amount >= 1000 * int(rest[0])
            assert held.voucher == voucher(held.voucher.seq, 1000 * held.voucher.seq)
    for each in journal.hosted():
        # Receipts have no gap, and are ahead of the vouchers by one at the most.
        seqs = [receipt.seq for receipt in journal.receipts(each.session)]
        assert seqs == list(range(1, len(seqs) + 1))
        paid = 0 if each.voucher is None else each.voucher.seq
        assert len(seqs) - paid in {0, 1}
    journal.close()


def _crash(path: Path, seed: int) -> None:
    for turn, lines in enumerate(random.Random(seed).choices(range(1, 400), k=3)):
        said = _read_then_kill(_start(path, 100 * turn), lines)
        assert len(said) >= lines
        _check_acknowledged(path, said)


def test_a_host_killed_at_any_instant_has_all_it_acknowledged(tmp_path: Path) -> None:
    _crash(tmp_path / "journal.sqlite", 1)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(2, 22))
def test_a_host_killed_at_many_instants_has_all_it_acknowledged(tmp_path: Path, seed: int) -> None:
    _crash(tmp_path / "journal.sqlite", seed)


def test_two_processes_write_at_once_and_one_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    one, other = _start(path, 0), _start(path, 10)
    of_one = _read_then_kill(one, 100)
    of_other = _read_then_kill(other, 100)
    _check_acknowledged(path, of_one + of_other)


def test_many_processes_that_start_at_once_make_one_journal(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    processes = [_start(path, 10 * index) for index in range(4)]
    said = [line for process in processes for line in _read_then_kill(process, 20)]
    _check_acknowledged(path, said)
    assert {path.name, f"{path.name}-wal", f"{path.name}-shm"} >= {each.name for each in tmp_path.iterdir()}
