"""What forks the processes of these tests, started once; with ``-v`` the matrix of losses at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.crash.checks import Loss
from tests.crash.processes import Forge, open_forge

_LOSSES = pytest.StashKey[list[tuple[str, Loss]]]()


@pytest.fixture(scope="session")
def forge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forge]:
    """For all of them."""
    with open_forge(tmp_path_factory.mktemp("forge")) as forge:
        yield forge


@pytest.fixture
def note(request: pytest.FixtureRequest) -> Callable[[Loss], None]:
    """Tell what a case cost, and whom."""
    losses = request.config.stash.setdefault(_LOSSES, [])

    def add(loss: Loss) -> None:
        losses.append((request.node.callspec.id, loss))

    return add


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """USDC units, of the price of a window."""
    losses = config.stash.get(_LOSSES, [])
    if losses and config.get_verbosity() > 0:
        terminalreporter.section("what each crash cost, in USDC units")
        terminalreporter.line(
            f"{'point':32}{'settled':>9}{'host':>7}{'unpaid signature':>18}{'fee only':>10}"
        )
        for point, loss in losses:
            terminalreporter.line(
                f"{point:32}{loss.amount:>9}{loss.host:>7}{loss.unpaid_signature:>18}{loss.fee_only:>10}"
            )
