"""What to deploy, in which order, and at which addresses. Pure: the owner of a key sends the steps.

``plan_deployment`` computes every address before anything is sent (``CREATE``: from the deployer and its
nonce), so that the seven addresses of a chain profile are known then, and each receipt can be checked against
them. Nothing is configured afterwards: the contracts have no owner.
"""

from __future__ import annotations

from dataclasses import dataclass

from p2pnode.chain.abi import artifact
from p2pnode.protocols.crypto import abi_encode, keccak256

_RLP_SHORT = 0x80
_RLP_LIST = 0xC0


@dataclass(frozen=True, slots=True, kw_only=True)
class Addresses:
    """The seven addresses of a chain profile, 20 bytes each. The marketplace holds the earnings."""

    job_marketplace: bytes
    proof_system: bytes
    node_registry: bytes
    host_earnings: bytes
    model_registry: bytes
    usdc: bytes
    fab: bytes


@dataclass(frozen=True, slots=True)
class Step:
    """One transaction that creates a contract: ``initcode`` is sent, and the contract must stand at
    ``address``."""

    contract: str
    initcode: bytes
    address: bytes


@dataclass(frozen=True, slots=True)
class DeploymentPlan:
    """The steps in order, one nonce each, and the addresses that result."""

    steps: tuple[Step, ...]
    addresses: Addresses


def create_address(deployer: bytes, nonce: int) -> bytes:
    """The address of a new contract: the last 20 bytes of keccak(rlp([deployer, nonce]))."""
    number = nonce.to_bytes((nonce.bit_length() + 7) // 8, "big")
    coded = (
        number if len(number) == 1 and number[0] < _RLP_SHORT else bytes([_RLP_SHORT + len(number)]) + number
    )
    body = bytes([_RLP_SHORT + len(deployer)]) + deployer + coded
    return keccak256(bytes([_RLP_LIST + len(body)]) + body)[12:]


def plan_deployment(
    *, deployer: bytes, nonce: int, treasury: bytes, fab_holder: bytes, usdc: bytes | None = None
) -> DeploymentPlan:
    """What ``deployer`` sends, from ``nonce`` on.

    ``usdc`` is the real token; without it the development token is deployed (named "USD Coin"). ``treasury``
    should be a multisig contract; ``fab_holder`` gets the whole supply of FAB.
    """
    steps: list[Step] = []

    def add(name: str, arguments: bytes) -> bytes:
        address = create_address(deployer, nonce + len(steps))
        steps.append(Step(name, artifact(name).bytecode + arguments, address))
        return address

    if usdc is None:
        text = b"USD Coin"
        usdc = add("USDC", abi_encode(32, len(text)) + text.ljust(32, b"\0"))
    fab = add("FAB", abi_encode(fab_holder))
    market = add("JobMarketplace", abi_encode(usdc, treasury))
    return DeploymentPlan(
        addresses=Addresses(
            job_marketplace=market,
            proof_system=add("ProofSystem", abi_encode(market)),
            node_registry=add("NodeRegistry", abi_encode(fab, market)),
            host_earnings=market,
            model_registry=add("ModelRegistry", abi_encode(fab)),
            usdc=usdc,
            fab=fab,
        ),
        steps=tuple(steps),
    )
