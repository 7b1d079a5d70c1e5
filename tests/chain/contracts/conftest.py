"""One deployment for all tests; each starts from the same block and ends with an audit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pnode.chain.abi import Artifact
from p2pnode.chain.dev.embedded import Contract
from p2pnode.chain.dev.gas import Token
from p2pnode.protocols.crypto import abi_encode
from tests.chain.contracts.build_artifacts import compile_contract
from tests.chain.contracts.support import ADDRESS, World

HELPERS = Path(__file__).parent / "helpers"


@pytest.fixture(scope="session")
def deployed(usdc_on: Token | None) -> World:
    return World(usdc_on)


@pytest.fixture
def world(deployed: World) -> Iterator[World]:
    """Fresh; whatever a test did, the market is solvent after it."""
    start = deployed.chain.snapshot()
    yield deployed
    deployed.audit()
    deployed.chain.revert(start)
    deployed.opened.clear()
    deployed.parties = set(ADDRESS.values())


@pytest.fixture(scope="session")
def helper_code() -> dict[str, Artifact]:
    """Contracts that only tests use, compiled here: they are no part of the package."""
    made = {name: compile_contract(name, HELPERS) for name in ("SmartWallet", "GasBurner", "Lens")}
    return {
        name: Artifact(name, tuple(raw["abi"]), bytes.fromhex(raw["bytecode"][2:]))
        for name, raw in made.items()
    }


@pytest.fixture
def smart_wallet(world: World, helper_code: dict[str, Artifact]) -> Contract:
    """An ERC-1271 wallet owned by "other payer"."""
    code = helper_code["SmartWallet"]
    initcode = code.bytecode + abi_encode(ADDRESS["other payer"])
    return Contract(world.chain, code, world.chain.send(ADDRESS["deployer"], b"", initcode).contract)


@pytest.fixture
def gas_burner(world: World, helper_code: dict[str, Artifact]) -> Contract:
    """An ERC-1271 wallet that eats all gas."""
    code = helper_code["GasBurner"]
    return Contract(world.chain, code, world.chain.send(ADDRESS["deployer"], b"", code.bytecode).contract)


@pytest.fixture
def lens(world: World, helper_code: dict[str, Artifact]) -> Contract:
    """Reads many balances at once."""
    code = helper_code["Lens"]
    return Contract(world.chain, code, world.chain.send(ADDRESS["deployer"], b"", code.bytecode).contract)
