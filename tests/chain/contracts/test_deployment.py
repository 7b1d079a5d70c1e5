"""What is deployed, where, wired to what; and that nobody rules it."""

from __future__ import annotations

import pytest

from p2pnode.chain.abi import CONTRACTS, artifact
from p2pnode.chain.deployment_plan import create_address, plan_deployment
from p2pnode.chain.dev.embedded import EmbeddedChain
from p2pnode.chain.ledger import RevertedError
from p2pnode.errors import ChainError
from p2pnode.protocols.crypto import abi_encode, keccak256, key_address
from tests.chain.contracts.support import ADDRESS, World

RULERS = ("owner", "admin", "pause", "upgrade", "initialize", "setfee", "settreasury", "whitelist", "govern")


def test_the_seven_addresses_are_known_before_the_first_transaction(world: World) -> None:
    found = world.addresses
    assert found.host_earnings == found.job_marketplace
    distinct = {
        found.job_marketplace, found.proof_system, found.node_registry, found.model_registry, found.usdc,
        found.fab,
    }  # fmt: skip
    assert len(distinct) == 6
    assert all(world.chain.code(address) for address in distinct)


def test_the_contracts_know_one_another(world: World) -> None:
    found = world.addresses
    assert world.market.read("usdc") == found.usdc
    assert world.market.read("treasury") == ADDRESS["treasury"]
    assert world.nodes.read("fab") == world.models.read("fab") == found.fab
    assert world.nodes.read("market") == world.proofs.read("market") == found.job_marketplace


def test_with_a_real_token_no_double_is_deployed(world: World) -> None:
    made = plan_deployment(
        deployer=ADDRESS["stranger"],
        nonce=world.chain.nonce(ADDRESS["stranger"]),
        treasury=ADDRESS["treasury"],
        fab_holder=ADDRESS["stranger"],
        usdc=world.usdc.address,
    )
    assert [step.contract for step in made.steps] == [
        "FAB", "JobMarketplace", "ProofSystem", "NodeRegistry", "ModelRegistry",
    ]  # fmt: skip
    for step in made.steps:
        assert world.chain.send(ADDRESS["stranger"], b"", step.initcode).contract == step.address
    assert made.addresses.usdc == world.usdc.address


@pytest.mark.parametrize("nonce", [0, 1, 127, 128, 255, 256, 65_536])
def test_create_addresses_are_those_of_rlp(nonce: int) -> None:
    import rlp

    deployer = ADDRESS["deployer"]
    assert create_address(deployer, nonce) == keccak256(rlp.encode([deployer, nonce]))[12:]


def test_an_owner_cannot_change_the_rules_because_there_is_none() -> None:
    for name in CONTRACTS:
        if name == "USDC":
            continue  # The issuer's token: not ours, and never deployed on a real chain.
        functions = [entry["name"].lower() for entry in artifact(name).abi if entry["type"] == "function"]
        assert not [word for word in RULERS if any(word in function for function in functions)]
        code = artifact(name).bytecode
        assert b"\xff" not in _opcodes(code)
        assert b"\xf4" not in _opcodes(code)


def _opcodes(code: bytes) -> set[bytes]:
    """Every opcode that is no push's data: 0xff destroys, 0xf4 runs another's code as ours."""
    found: set[bytes] = set()
    at = 0
    while at < len(code):
        opcode = code[at]
        found.add(bytes([opcode]))
        at += 1 + (opcode - 0x5F if 0x60 <= opcode <= 0x7F else 0)
    return found


def test_a_market_without_a_token_or_with_a_bad_treasury_is_never_deployed() -> None:
    secret = keccak256(b"someone")
    chain = EmbeddedChain([secret])
    someone = key_address(secret)
    token = chain.send(someone, b"", artifact("FAB").bytecode + abi_encode(someone)).contract
    market = artifact("JobMarketplace").bytecode
    for arguments in (
        abi_encode(someone, someone),
        abi_encode(token, bytes(20)),
        abi_encode(token, token),
    ):
        with pytest.raises(RevertedError):
            chain.send(someone, b"", market + arguments)
    itself = create_address(someone, chain.nonce(someone))
    with pytest.raises(RevertedError):
        chain.send(someone, b"", market + abi_encode(token, itself))
    for name in ("NodeRegistry", "ModelRegistry", "ProofSystem"):
        with pytest.raises(RevertedError):
            chain.send(someone, b"", artifact(name).bytecode + abi_encode(someone, someone))


def test_a_call_that_does_not_exist_or_does_not_fit_is_our_error(world: World) -> None:
    with pytest.raises(ChainError, match="no function"):
        world.market.read("owner")
    with pytest.raises(ChainError, match="takes"):
        world.market.send(ADDRESS["host"], "withdraw", ADDRESS["host"], -1)
