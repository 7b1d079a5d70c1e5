"""Carry out a deployment plan on a real chain: priced beforehand, then one transaction after another.

Each contract must stand where the plan said before the next is sent. A run that was cut off is not resumed:
what it created is owned by nobody and costs nothing, and a new run makes a new set. Knows nothing of people.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import trio

from p2pnode.chain.addresses import shown_address
from p2pnode.chain.deploy import Plan, Step, plan
from p2pnode.chain.dev.embedded import EmbeddedChain, address_of_secret
from p2pnode.chain.evm.fees import Fees
from p2pnode.chain.evm.node import EvmNode, Receipt
from p2pnode.chain.evm.rpc import RpcEndpoints
from p2pnode.chain.evm.transaction import sign_transaction
from p2pnode.errors import ChainError, ConfigError
from p2pnode.money import ether_text
from p2pnode.protocols.crypto import Signer

MINED_DEADLINE_S: Final = 600.0
_POLL_S: Final = 0.5
_MARGIN_PERCENT: Final = 25
_REHEARSAL: Final = b"\x01" * 32

Report: TypeAlias = Callable[[Step, Receipt], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What would be sent, and what it costs at most. ``gas`` is each step's, as measured in a rehearsal."""

    plan: Plan
    chain_id: int
    deployer: bytes
    nonce: int
    gas: tuple[int, ...]
    fees: Fees
    ether: int
    """Wei that the deployer has."""
    treasury_has_code: bool

    @property
    def cost_max_wei(self) -> int:
        """If every unit of gas costs the most that is offered."""
        return sum(self.gas) * self.fees.most


async def quote(
    endpoints: RpcEndpoints, *, deployer: bytes, treasury: bytes, usdc: bytes | None = None
) -> Offer:
    """Raises ``ConfigError`` for what would fail, ``UnavailableError`` when nobody answers."""
    node = EvmNode(endpoints)
    chain_id = int(await endpoints.request("eth_chainId", []), 16)
    nonce = await node.nonce(deployer)
    if await node.nonce(deployer, "pending") != nonce:
        msg = f"{shown_address(deployer)} has transactions on their way: wait until they are mined"
        raise ConfigError(msg)
    if usdc is not None and not await node.code(usdc):
        msg = f"--usdc {shown_address(usdc)} has no code on chain {chain_id}: give the token's address there"
        raise ConfigError(msg)
    if not any(treasury) or treasury == usdc:
        msg = f"--treasury {shown_address(treasury)} can't be paid: give an account or a multisig contract"
        raise ConfigError(msg)
    steps = plan(deployer=deployer, nonce=nonce, treasury=treasury, fab_holder=deployer, usdc=usdc)
    gas = await trio.to_thread.run_sync(_rehearse, usdc is None)
    return Offer(
        plan=steps, chain_id=chain_id, deployer=deployer, nonce=nonce, gas=gas, fees=await node.fees(),
        ether=await node.ether(deployer), treasury_has_code=len(await node.code(treasury)) > 0,
    )  # fmt: skip


async def carry_out(endpoints: RpcEndpoints, offer: Offer, sign: Signer, report: Report) -> None:
    """Send every step and wait for it. Raises ``ChainError`` that says where it stopped."""
    if offer.ether < offer.cost_max_wei:
        msg = (
            f"{shown_address(offer.deployer)} has {ether_text(offer.ether)} and may need "
            f"{ether_text(offer.cost_max_wei)}: send it ether first"
        )
        raise ConfigError(msg)
    node = EvmNode(endpoints)
    for number, step in enumerate(offer.plan.steps):
        gas = await _gas_of(endpoints, offer, step)
        signed = sign_transaction(
            chain_id=offer.chain_id, account=offer.deployer, sign=sign, nonce=offer.nonce + number, to=b"",
            data=step.initcode, gas=gas, fees=offer.fees,
        )  # fmt: skip
        await node.send(signed.raw)
        receipt = await _mined(node, signed.hash, step)
        if not receipt.succeeded or not await node.code(step.address):
            msg = f"{step.contract} was not created (transaction 0x{signed.hash.hex()}): start again"
            raise ChainError(msg)
        report(step, receipt)


async def _gas_of(endpoints: RpcEndpoints, offer: Offer, step: Step) -> int:
    """The chain's own estimate (some take gas for what they publish elsewhere), and a margin."""
    call: dict[str, Any] = {"from": "0x" + offer.deployer.hex(), "data": "0x" + step.initcode.hex()}
    estimate = int(await endpoints.request("eth_estimateGas", [call]), 16)
    return estimate * (100 + _MARGIN_PERCENT) // 100


async def _mined(node: EvmNode, transaction: bytes, step: Step) -> Receipt:
    with trio.move_on_after(MINED_DEADLINE_S):
        while True:
            receipt = await node.receipt(transaction)
            if receipt is not None:
                return receipt
            await trio.sleep(_POLL_S)
    msg = (
        f"{step.contract} is not mined after {MINED_DEADLINE_S:.0f} s (transaction 0x{transaction.hex()}): "
        "gas may have become dearer. Wait for it, then start again"
    )
    raise ChainError(msg)


def _rehearse(with_token: bool) -> tuple[int, ...]:
    """Deploy in memory: what each step takes."""
    chain = EmbeddedChain([_REHEARSAL])
    deployer = address_of_secret(_REHEARSAL)
    steps = plan(deployer=deployer, nonce=0, treasury=b"\x02" * 20, fab_holder=deployer).steps
    gas = tuple(chain.send(deployer, b"", step.initcode).gas_used for step in steps)
    return gas if with_token else gas[1:]
