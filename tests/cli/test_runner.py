"""Exit codes, and errors found inside groups."""

from __future__ import annotations

import pytest
import trio

from p2pnode.cli.runner import exit_code, run_async
from p2pnode.errors import (
    ConfigError,
    NoHostError,
    P2PNodeError,
    ProtocolError,
    RefusedError,
    UnreachableError,
    UsageError,
    first_of_kind,
)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("x"), 1),
        (UsageError("x"), 2),
        (NoHostError("x"), 3),
        (RefusedError("capacity", "x"), 4),
        (RefusedError("payment_required", "x"), 4),
        (RefusedError("internal", "x"), 1),
        (RefusedError("stalled", "x"), 1),
        (UnreachableError("x"), 1),
        (ProtocolError("x"), 1),
    ],
)
def test_an_error_has_its_exit_code(error: P2PNodeError, code: int) -> None:
    assert exit_code(error) == code


def test_the_first_error_of_a_kind_is_found_in_nested_groups() -> None:
    ours = ConfigError("ours")
    group = ExceptionGroup("a", [ValueError("x"), ExceptionGroup("b", [ours, ConfigError("later")])])
    assert first_of_kind(group, P2PNodeError) is ours
    assert first_of_kind(group, KeyError) is None


def _run(function: object) -> tuple[int | str | None, list[tuple[str, int]]]:
    said: list[tuple[str, int]] = []
    try:
        run_async(function, on_error=lambda error, code: said.append((str(error), code)))  # type: ignore[arg-type]
    except SystemExit as end:
        return end.code, said
    return 0, said


def test_a_run_that_ends_well_says_nothing_and_exits_0() -> None:
    assert _run(trio.lowlevel.checkpoint) == (0, [])


def test_an_error_in_a_nursery_is_said_once() -> None:
    async def fails() -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(_refuse)

    assert _run(fails) == (3, [("nobody", 3)])


async def _refuse() -> None:
    raise NoHostError("nobody")


def test_a_keyboard_interrupt_exits_130_without_a_word() -> None:
    async def interrupted() -> None:
        raise KeyboardInterrupt

    assert _run(interrupted) == (130, [])
