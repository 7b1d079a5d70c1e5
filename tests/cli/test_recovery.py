"""Twelve words and an empty data dir: conversations come back at the first run, whatever is reachable."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.support import Program, Ran, ask, join, run, start, wallet

RUNS = 20
STORES = ("--client-only", "--store-for", "anyone")


def kept_with(folder: Path, host: Program, *stores: Program) -> str:
    """A conversation of the user of ``folder/first.words``, kept by these nodes; its id."""
    wallet(folder / "first")
    flags = [flag for store in stores for flag in ("--store", store.multiaddr)]
    flags += ["--bootstrap", host.multiaddr, "--max-tokens", "9", "--json"]
    ran = ask(folder / "first", "which ships?", *flags)
    (kept,) = ran.named("conversation.kept")
    # The host counts only where it was asked before there were enough others.
    assert (ran.code, kept["kept"], kept["replicas"] >= max(1, len(stores))) == (0, True, True), ran
    return str(kept["conversation"])


def fresh(folder: Path, name: str) -> Path:
    """A data dir on a machine that knows the words and nothing else."""
    words = folder / "first.words"
    ran = run("wallet", "restore", "--phrase-file", words, "--random", "--json", "--data-dir", folder / name)
    assert ran.code == 0, ran
    return folder / name


def recover(folder: Path, data_dir: Path, *bootstrap: str) -> Ran:
    """``sessions list --recover`` as a process of its own."""
    flags = [flag for each in bootstrap for flag in ("--bootstrap", each)]
    arguments = ["sessions", "list", "--recover", "--no-mdns", "--data-dir", data_dir, *flags]
    with start(folder, f"{data_dir.name}.list", arguments) as program:
        return Ran(program.wait(), program.out, program.err)


@contextmanager
def silent(program: Program) -> Iterator[None]:
    """It takes connections, as the kernel does for it, and says nothing."""
    program.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        program.process.send_signal(signal.SIGCONT)


def not_recovered(folder: Path, sid: str, *bootstrap: str) -> list[Ran]:
    """What the first runs of fresh data dirs said that did not list the conversation."""
    failed = []
    for number in range(RUNS):
        ran = recover(folder, fresh(folder, f"new{number}"), *bootstrap)
        listed = [each["conversation"] for each in ran.named("conversation")]
        if (ran.code, ran.err, listed) != (0, "", [sid]):
            failed.append(ran)
    return failed


def from_a_host_that_stores_for_sessions_only(folder: Path) -> list[Ran]:
    with join(folder, "host") as host:
        sid = kept_with(folder, host)
        return not_recovered(folder, sid, host.multiaddr)


def from_one_storing_node(folder: Path) -> list[Ran]:
    with join(folder, "host") as host, join(folder, "store", *STORES) as store:
        sid = kept_with(folder, host, store)
        return not_recovered(folder, sid, store.multiaddr)


def from_three_of_which_one_is_silent(folder: Path) -> list[Ran]:
    with (
        join(folder, "host") as host,
        join(folder, "one", *STORES) as one,
        join(folder, "two", *STORES) as two,
        join(folder, "three", *STORES) as three,
    ):
        stores = (one, two, three)
        sid = kept_with(folder, host, *stores)
        with silent(two):
            return not_recovered(folder, sid, *(store.multiaddr for store in stores))


def from_nobody_and_then_from_somebody(folder: Path) -> list[Ran]:
    failed = []
    with join(folder, "host") as host:
        sid = kept_with(folder, host)
        for number in range(RUNS):
            data_dir = fresh(folder, f"alone{number}")
            ran = recover(folder, data_dir)
            alone = (ran.code, "Nothing is lost: try again with --store" in ran.events[-1]["message"])
            again = recover(folder, data_dir, host.multiaddr)
            listed = [each["conversation"] for each in again.named("conversation")]
            if (alone, again.code, listed) != ((3, True), 0, [sid]):
                failed += [ran, again]
    return failed


@pytest.mark.long
@pytest.mark.parametrize(
    "failed",
    [
        from_a_host_that_stores_for_sessions_only,
        from_one_storing_node,
        from_three_of_which_one_is_silent,
        from_nobody_and_then_from_somebody,
    ],
)
def test_a_fresh_data_dir_recovers_by_twelve_words_at_its_first_run(
    tmp_path: Path, failed: Callable[[Path], list[Ran]]
) -> None:
    assert failed(tmp_path) == []
