"""Carries out a deployment plan on a real chain: it shows the price first, then sends one transaction
after another.

Each contract must stand where the plan says before the next one is sent. Every transaction is in the order
book before it is sent, so that a run that was cut off can go on, and what it has created already is not paid
for again. This module knows nothing of people.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, TypeAlias

import trio

from p2pnode.chain.addresses import shown_address
from p2pnode.chain.deployment_plan import DeploymentPlan, Step, plan_deployment
from p2pnode.chain.dev.embedded import EmbeddedChain
from p2pnode.chain.evm.fees import Fees
from p2pnode.chain.evm.node import EvmNode, Receipt
from p2pnode.chain.evm.order_book import Order, OrderBook, SentOrder
from p2pnode.chain.evm.rpc import RpcEndpoints
from p2pnode.chain.evm.rpc_answers import RpcError, data_of
from p2pnode.chain.evm.transaction_sender import SenderLimits, TransactionSender
from p2pnode.errors import ChainError, ConfigError
from p2pnode.money import ether_text
from p2pnode.protocols.crypto import Signer, key_address

MINED_DEADLINE_S: Final = 600.0
CREATE: Final = "Create"
"""What the book calls an order that creates a contract."""
_GAS_MAX: Final = 16_000_000
_POLL_S: Final = 0.5
_REHEARSAL: Final = b"\x01" * 32

Report: TypeAlias = Callable[[Step, Receipt], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentQuote:
    """What would be sent, and what it costs at most. ``gas`` is each step's, as measured in a rehearsal.

    An earlier run carried out the first ``done`` steps; ``nonce`` is the next step's.
    """

    plan: DeploymentPlan
    chain_id: int
    deployer: bytes
    nonce: int
    gas: tuple[int, ...]
    fees: Fees
    ether: int
    """Wei that the deployer has."""
    treasury_has_code: bool
    done: int = 0

    @property
    def cost_max_wei(self) -> int:
        """The cost if every unit of gas takes the most that is offered."""
        return sum(self.gas[self.done :]) * self.fees.most


async def first_block(endpoints: RpcEndpoints) -> bytes:
    """The first block's hash, which tells chains with the same number apart; empty where the node doesn't
    say."""
    block = await endpoints.request("eth_getBlockByNumber", ["0x0", False])
    return (data_of(block.get("hash")) or b"") if isinstance(block, dict) else b""


async def quote(
    endpoints: RpcEndpoints,
    *,
    deployer: bytes,
    treasury: bytes,
    usdc: bytes | None = None,
    created: Sequence[SentOrder] = (),
) -> DeploymentQuote:
    """What a deployment would send and cost. ``created``: what earlier runs created.

    Raises ``ConfigError`` for what would fail, and ``UnavailableError`` when no endpoint answers.
    """
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
    steps, done = (
        plan_deployment(deployer=deployer, nonce=nonce, treasury=treasury, fab_holder=deployer, usdc=usdc),
        0,
    )
    there = {each.nonce: each.order.data for each in created}
    for count in range(min(nonce, len(steps.steps) - 1), 0, -1):
        began = plan_deployment(
            deployer=deployer, nonce=nonce - count, treasury=treasury, fab_holder=deployer, usdc=usdc
        )
        if all(there.get(nonce - count + at) == step.initcode for at, step in enumerate(began.steps[:count])):
            steps, done = began, count
            break
    gas = await trio.to_thread.run_sync(_rehearse, usdc is None)
    return DeploymentQuote(
        plan=steps, chain_id=chain_id, deployer=deployer, nonce=nonce, gas=gas, fees=await node.fees(),
        ether=await node.ether(deployer), treasury_has_code=len(await node.code(treasury)) > 0, done=done,
    )  # fmt: skip


async def carry_out(
    endpoints: RpcEndpoints,
    offer: DeploymentQuote,
    sign: Signer,
    report: Report,
    book: OrderBook | None = None,
) -> None:
    """Send every step and wait for it. Raises ``ChainError`` that says where it stopped."""
    if offer.ether < offer.cost_max_wei:
        msg = (
            f"{shown_address(offer.deployer)} has {ether_text(offer.ether)} and may need "
            f"{ether_text(offer.cost_max_wei)}: send it ether first"
        )
        raise ConfigError(msg)
    node = EvmNode(endpoints)
    # Never dearer than what was shown, for that is what the user agreed to.
    limits = SenderLimits(gas_price_max_wei=offer.fees.most, transaction_fee_max_wei=None)
    sender = TransactionSender(
        node, chain_id=offer.chain_id, account=offer.deployer, sign=sign, confirmations=1,
        jitter=secrets.SystemRandom().random, limits=limits, book=book,
    )  # fmt: skip
    failed: Exception | None = None
    async with trio.open_nursery() as nursery:
        await nursery.start(sender.run)
        try:
            for number, step in enumerate(offer.plan.steps[offer.done :]):
                report(step, await _create(sender, node, step, offer.nonce + number))
        except Exception as error:  # noqa: BLE001 - raised below, outside the nursery, which would wrap it
            failed = error
        nursery.cancel_scope.cancel()
    if failed is not None:
        raise failed


async def _create(sender: TransactionSender, node: EvmNode, step: Step, nonce: int) -> Receipt:
    order = Order(
        to=b"",
        data=step.initcode,
        gas_max=_GAS_MAX,
        kind=CREATE,
        words=f"create {step.contract}",
        nonce=nonce,
    )
    with trio.move_on_after(MINED_DEADLINE_S):
        receipt = await sender.send(order)
        if not await node.code(step.address):
            msg = f"{step.contract} was not created (transaction 0x{receipt.hash.hex()}): start again"
            raise ChainError(msg)
        return receipt
    shown = ", ".join("0x" + each.hex() for each in sender.last_sent) or "none"
    msg = (
        f"{step.contract} is not mined after {MINED_DEADLINE_S:.0f} s (transaction {shown}): gas may have "
        "become dearer. Start again: it is waited for, and not sent a second time"
    )
    raise ChainError(msg)


async def wait_mined(endpoints: RpcEndpoints, order: SentOrder, book: OrderBook) -> None:
    """Wait for a transaction of an earlier run, and send its bytes again until it is mined. Needs no key.

    Raises ``ChainError`` when it takes too long; the transaction is still pending then.
    """
    node = EvmNode(endpoints)
    with trio.move_on_after(MINED_DEADLINE_S):
        while True:
            for version in reversed(order.versions):
                receipt = await node.receipt(version.hash)
                if receipt is not None:
                    await book.ended(order.id, "done" if receipt.succeeded else "failed", version.hash)
                    return
            with suppress(RpcError):  # most often "already known"
                await node.send(order.versions[-1].raw)
            await trio.sleep(_POLL_S)
    shown = order.versions[-1].hash.hex()
    msg = f"sent, not seen yet: 0x{shown} ({order.order.words}): start again later, it is not sent anew"
    raise ChainError(msg)


def _rehearse(with_token: bool) -> tuple[int, ...]:
    """Deploy on a chain in memory, and return the gas of each step."""
    chain = EmbeddedChain([_REHEARSAL])
    deployer = key_address(_REHEARSAL)
    steps = plan_deployment(deployer=deployer, nonce=0, treasury=b"\x02" * 20, fab_holder=deployer).steps
    gas = tuple(chain.send(deployer, b"", step.initcode).gas_used for step in steps)
    return gas if with_token else gas[1:]
