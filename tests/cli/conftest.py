"""Hosts that the tests of the command line share: starting one costs seconds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.support import Program, join, join_for_pay, start


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """A free scripted host. Nobody may stop it."""
    with join(tmp_path_factory.mktemp("host"), "h") as program:
        yield program


@pytest.fixture(scope="session")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The profile of a development chain that runs. Nobody may stop it."""
    folder = tmp_path_factory.mktemp("chain")
    with start(folder, "chain", ["chain", "dev", "--port", 0, "--data-dir", folder / "data"]) as program:
        yield Path(program.wait_event("chain.ready")["profile"])


@pytest.fixture(scope="session")
def paid_host(tmp_path_factory: pytest.TempPathFactory, profile: Path) -> Iterator[Program]:
    """One that wants to be paid."""
    with join_for_pay(tmp_path_factory.mktemp("paid"), profile) as program:
        yield program


@pytest.fixture(scope="session")
def slow_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """One whose answers take as long as is asked: 25 tokens a second."""
    with join(tmp_path_factory.mktemp("slow"), "h", "--scripted-tokens-per-s", 25) as program:
        yield program


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A data dir that does not exist yet."""
    return tmp_path / "data"
