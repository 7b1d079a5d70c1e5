"""Suites in turn: what is reported when they measure, and when they don't."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from p2pnode.bench.figure import GOALS, SUITES, Figure, Measurement
from p2pnode.bench.options import BenchOptions, Take
from p2pnode.bench.suites import run_suites, seconds_of, suite, suites_named
from p2pnode.errors import LocalError, UsageError

FAST = Measurement(value=0.1, baseline=0.05, ratio=2.0)
SLOW = Measurement(value=99.0, baseline=0.05, ratio=1980.0)


async def run_cli(suite_of_cli: object, **options: object) -> tuple[bool, list[Figure]]:
    figures: list[Figure] = []
    holds = await run_suites(["cli"], figures.append, measure={"cli": suite_of_cli}, **options)  # type: ignore[dict-item, arg-type]
    return holds, figures


async def test_all_hold_when_each_figure_holds() -> None:
    async def measure(_: BenchOptions, take: Take) -> None:
        take("cli.help", FAST)
        take("cli.ask", FAST)
        take("cli.ask_beside", FAST)

    holds, figures = await run_cli(measure)
    assert holds
    assert [figure.goal.name for figure in figures] == ["cli.help", "cli.ask", "cli.ask_beside"]


async def test_one_figure_that_does_not_hold_spoils_the_run() -> None:
    async def measure(_: BenchOptions, take: Take) -> None:
        take("cli.help", SLOW)
        take("cli.ask", FAST)
        take("cli.ask_beside", FAST)

    holds, figures = await run_cli(measure)
    assert not holds
    assert [figure.holds for figure in figures] == [False, True, True]


async def test_a_suite_that_fails_keeps_what_it_found_and_reports_the_rest_with_the_reason() -> None:
    async def measure(_: BenchOptions, take: Take) -> None:
        take("cli.help", FAST)
        msg = "the host did not start"
        raise LocalError(msg)

    holds, figures = await run_cli(measure)
    assert not holds
    assert [(figure.goal.name, figure.problem) for figure in figures] == [
        ("cli.help", ""),
        ("cli.ask", "the host did not start"),
        ("cli.ask_beside", "the host did not start"),
    ]


async def test_a_figure_that_a_suite_forgets_does_not_hold() -> None:
    async def measure(_: BenchOptions, take: Take) -> None:
        take("cli.help", FAST)

    holds, figures = await run_cli(measure)
    assert not holds
    assert figures[1].goal.name == "cli.ask"
    assert "did not measure" in figures[1].problem


async def test_our_own_defect_is_no_figure() -> None:
    async def measure(_: BenchOptions, take: Take) -> None:
        take("cli.unheard_of", FAST)

    with pytest.raises((KeyError, ExceptionGroup)):
        await run_cli(measure)


async def test_a_suite_gets_a_scratch_folder_that_is_gone_afterwards() -> None:
    seen: list[Path] = []

    async def measure(options: BenchOptions, take: Take) -> None:
        assert options.scratch.is_dir()
        assert (options.pairs, options.quick) == (3, True)
        seen.append(options.scratch)
        take("cli.help", FAST)
        take("cli.ask", FAST)

    _, figures = await run_cli(measure, pairs=3, quick=True)
    assert not seen[0].exists()
    assert figures[0].to_json()["details"] == {"quick": True}


async def test_each_suite_is_announced_as_it_begins() -> None:
    said: list[str] = []

    async def measure(_: BenchOptions, take: Take) -> None:
        said.append("measured")

    await run_suites(
        ["cli", "dial"], lambda figure: said.append(figure.goal.name), on_suite=said.append,
        measure={"cli": measure, "dial": measure},
    )  # fmt: skip
    assert said == [
        "cli",
        "measured",
        "cli.help",
        "cli.ask",
        "cli.ask_beside",
        "dial",
        "measured",
        "dial.to_advert",
    ]


def test_it_is_known_how_long_each_suite_takes() -> None:
    assert seconds_of(SUITES) == sum(seconds_of([name]) for name in SUITES)
    assert min(seconds_of([name]) for name in SUITES) > 0


def test_all_means_every_suite_in_order() -> None:
    assert suites_named("all") == SUITES
    assert suites_named("gossip") == ("gossip",)


def test_an_unknown_suite_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        UsageError,
        match="choose stream, dial, gossip, attacks, cli, idle, gas, paid, economy, failover, storage, "
        "simulate, engine, gateway or all",
    ):
        suites_named("streams")


async def test_pairs_must_make_sense() -> None:
    with pytest.raises(UsageError, match="--pairs is 0"):
        await run_suites(["cli"], lambda _: None, pairs=0)


@pytest.mark.parametrize("name", SUITES)
def test_every_suite_is_there_and_names_each_of_its_goals(name: str) -> None:
    """In its own module, or in those of the measurements that it calls."""
    main = inspect.getmodule(suite(name))
    assert main is not None
    parts = {inspect.getmodule(part) for part in vars(main).values() if inspect.iscoroutinefunction(part)}
    source = "".join(inspect.getsource(part) for part in {main, *parts} if part is not None)
    for goal in GOALS:
        if goal.suite == name:
            assert f'"{goal.name}"' in source or goal.name.rstrip("148") in source
