"""Deploying on a real chain: priced before anything is sent, and checked step by step."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
import trio
from trio.testing import MockClock

from p2pnode.chain.deployer import DeploymentQuote, carry_out, quote, wait_mined
from p2pnode.chain.deployment_plan import Step, plan_deployment
from p2pnode.chain.dev.blocks import Blocks
from p2pnode.chain.dev.embedded import EmbeddedChain, deploy
from p2pnode.chain.dev.jsonrpc import JsonRpc
from p2pnode.chain.dev.methods import EthMethods
from p2pnode.chain.dev.transaction_pool import TransactionPool
from p2pnode.chain.evm.node import Receipt
from p2pnode.chain.evm.order_book import Ending, SentOrder, SignedTransaction
from p2pnode.chain.evm.rpc import RpcEndpoints
from p2pnode.chain.profile import profile_of, verify
from p2pnode.errors import ChainError, ConfigError
from p2pnode.protocols.crypto import sign_digest
from tests.chain.contracts.support import ADDRESS, SECRETS

DEPLOYER = ADDRESS["host"]


class Net:
    """A chain behind JSON-RPC in this process."""

    def __init__(self) -> None:
        self.chain = EmbeddedChain([SECRETS["host"], SECRETS["deployer"]])
        self.pool = TransactionPool(self.chain)
        self.rpc = JsonRpc(EthMethods(self.chain, Blocks(self.chain), self.pool, lambda: None).methods())
        self.sent = 0
        self.endpoints = RpcEndpoints(
            ["http://one.invalid"],
            chain_id=None,
            jitter=lambda: 0.5,
            transport=httpx.MockTransport(self.answer),
        )

    async def answer(self, request: httpx.Request) -> httpx.Response:
        body = await request.aread()
        method = json.loads(body)["method"]
        self.sent += method == "eth_sendRawTransaction"
        return httpx.Response(200, stream=httpx.ByteStream(self.rpc.answer(body)))

    async def quote(self, **changes: Any) -> DeploymentQuote:
        fields: dict[str, Any] = {"deployer": DEPLOYER, "treasury": ADDRESS["treasury"]}
        return await quote(self.endpoints, **(fields | changes))

    async def carry_out(self, offer: DeploymentQuote, secret: bytes = SECRETS["host"]) -> list[str]:
        done: list[str] = []

        def report(step: Step, receipt: Receipt) -> None:
            assert receipt.succeeded
            done.append(step.contract)

        await carry_out(self.endpoints, offer, lambda digest: sign_digest(secret, digest), report)
        return done


@pytest.fixture
async def net() -> AsyncIterator[Net]:
    net = Net()
    yield net
    await net.endpoints.aclose()


async def test_what_is_offered_is_what_is_deployed_and_it_verifies(net: Net) -> None:
    offer = await net.quote()
    assert net.sent == 0
    done = await net.carry_out(offer)
    assert done == [step.contract for step in offer.plan.steps]
    assert net.sent == len(done)
    profile = profile_of(offer.plan.addresses, chain_id=offer.chain_id, rpc_urls=("http://one.invalid",))
    await verify(profile, net.endpoints)
    paid = offer.ether - net.chain.ether(DEPLOYER)
    assert 0 < paid <= offer.cost_max_wei


async def test_the_gas_that_is_named_is_the_gas_that_is_used(net: Net) -> None:
    offer = await net.quote()
    used: list[int] = []
    await carry_out(
        net.endpoints, offer, lambda digest: sign_digest(SECRETS["host"], digest),
        lambda _, receipt: used.append(receipt.gas_used or 0),
    )  # fmt: skip
    for named, taken in zip(offer.gas, used, strict=True):
        assert abs(named - taken) < 1_000


async def test_the_token_that_is_there_is_used(net: Net) -> None:
    first = net.chain.accounts[1]
    there = deploy(net.chain, first, treasury=ADDRESS["treasury"], fab_holder=first).usdc.address
    offer = await net.quote(usdc=there)
    assert "USDC" not in await net.carry_out(offer)
    assert offer.plan.addresses.usdc == there
    assert len(offer.gas) == len(offer.plan.steps)


async def test_what_can_not_work_is_refused_before_anything_is_sent(net: Net) -> None:
    with pytest.raises(ConfigError, match=r"--usdc .* has no code"):
        await net.quote(usdc=b"\x05" * 20)
    with pytest.raises(ConfigError, match="--treasury"):
        await net.quote(treasury=bytes(20))
    poor = await net.quote(deployer=ADDRESS["stranger"])
    with pytest.raises(ConfigError, match="send it ether first"):
        await net.carry_out(poor)
    assert net.sent == 0


async def test_transactions_on_their_way_would_move_every_address(
    net: Net, autojump_clock: MockClock
) -> None:
    offer = await net.quote()
    net.pool.automine = False
    with trio.move_on_after(60):
        await net.carry_out(offer)
    with pytest.raises(ConfigError, match="on their way"):
        await net.quote()


async def test_a_step_that_lands_elsewhere_stops_the_rest(net: Net) -> None:
    offer = await net.quote()
    first = offer.plan.steps[0]
    moved = replace(offer.plan, steps=(replace(first, address=b"\x09" * 20), *offer.plan.steps[1:]))
    with pytest.raises(ChainError, match="USDC was not created"):
        await net.carry_out(replace(offer, plan=moved))
    assert net.sent == 1


async def test_another_wallets_signature_sends_nothing(net: Net) -> None:
    with pytest.raises(ChainError, match="did not sign"):
        await net.carry_out(await net.quote(), SECRETS["stranger"])
    assert net.sent == 0


async def test_a_step_that_is_never_mined_ends_with_its_hash(net: Net, autojump_clock: MockClock) -> None:
    net.pool.automine = False
    with pytest.raises(ChainError, match=r"not mined after .* 0x[0-9a-f]{64}"):
        await net.carry_out(await net.quote())


class Book:
    """An order book in this process, as a journal keeps one."""

    def __init__(self) -> None:
        self.orders: dict[str, SentOrder] = {}

    async def sending(self, order: SentOrder, version: SignedTransaction) -> None:
        known = self.orders.get(order.id, order)
        self.orders[order.id] = replace(known, versions=(*known.versions, version))

    async def refused(self, version: SignedTransaction) -> None:
        raise AssertionError

    async def ended(self, order: str, ending: Ending, transaction: bytes | None = None) -> None:
        self.orders[order] = replace(self.orders[order], ending=ending, transaction=transaction)

    async def take_over(self, chain_id: int, account: bytes) -> list[SentOrder]:
        return []

    @property
    def created(self) -> list[SentOrder]:
        return [each for each in self.orders.values() if each.ending == "done"]


async def test_a_run_that_was_cut_off_goes_on_and_pays_for_nothing_twice(
    net: Net, autojump_clock: MockClock
) -> None:
    book = Book()
    offer = await net.quote()
    sign = lambda digest: sign_digest(SECRETS["host"], digest)  # noqa: E731

    def stop_mining(step: Step, receipt: Receipt) -> None:
        net.pool.automine = step.contract != "FAB"

    with trio.move_on_after(60):
        await carry_out(net.endpoints, offer, sign, stop_mining, book)
    assert [each.order.words for each in book.created] == ["create USDC", "create FAB"]
    (waiting,) = [each for each in book.orders.values() if each.ending is None]
    net.pool.automine = True
    net.pool.clear()  # the node has forgotten it
    await wait_mined(net.endpoints, waiting, book)
    rest = await net.quote(created=book.created)
    assert (rest.done, rest.plan) == (3, offer.plan)
    assert rest.cost_max_wei < offer.cost_max_wei
    done = await net.carry_out(rest)
    assert done == [step.contract for step in offer.plan.steps[3:]]
    assert net.chain.nonce(DEPLOYER) == offer.nonce + len(offer.plan.steps)
    profile = profile_of(offer.plan.addresses, chain_id=offer.chain_id, rpc_urls=("http://one.invalid",))
    await verify(profile, net.endpoints)


async def test_what_an_earlier_run_created_for_another_treasury_is_left_where_it_is(net: Net) -> None:
    book = Book()
    offer = await net.quote()
    sign = lambda digest: sign_digest(SECRETS["host"], digest)  # noqa: E731
    await carry_out(net.endpoints, offer, sign, lambda *_: None, book)
    assert (await net.quote(created=book.created[:0])).done == 0
    other = await net.quote(treasury=ADDRESS["stranger"], created=book.created)
    assert other.done == 0


def test_addresses_are_known_before_the_first_transaction() -> None:
    at_zero = plan_deployment(deployer=DEPLOYER, nonce=0, treasury=ADDRESS["treasury"], fab_holder=DEPLOYER)
    at_200 = plan_deployment(deployer=DEPLOYER, nonce=200, treasury=ADDRESS["treasury"], fab_holder=DEPLOYER)
    assert at_zero.addresses.host_earnings == at_zero.addresses.job_marketplace
    assert not {step.address for step in at_zero.steps} & {step.address for step in at_200.steps}
    chain = EmbeddedChain([SECRETS["host"]])
    for step in at_zero.steps:
        assert chain.send(DEPLOYER, b"", step.initcode).contract == step.address
