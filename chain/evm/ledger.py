"""``EvmLedger``: the ``Ledger`` of a real (or embedded) EVM chain. web3's calls run on trio, over a transport
and a sender of our own.

``connect`` reads the domains (what signatures are made for) from the chain and compares them with ours: in a
wrong domain every signature is worthless, and the contract's "bad signature" would not say why. A ledger with
an account needs its ``run`` in the caller's nursery to send anything. Transactions and events that it reports
are ``confirmations`` deep; balances and sessions are the latest block's. The sender watches for deeper
reorganisations, and ``session`` shows them. This module knows nothing of roles or journals.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Literal

import trio

from p2pnode.chain.abi import Function, artifact, terms_tuple
from p2pnode.chain.addresses import shown_address
from p2pnode.chain.evm.calls import (
    Encoder,
    market_events,
    market_topics,
    proposal_event,
    proposal_topic,
    registered_topic,
    registry_events,
)
from p2pnode.chain.evm.node import EvmNode, Receipt, StorageWord
from p2pnode.chain.evm.order_book import HASH_BYTES, Ending, OrderBook, SentOrder
from p2pnode.chain.evm.rpc import EndpointStatus, Jitter, RpcEndpoints, RpcLimits
from p2pnode.chain.evm.rpc_answers import RpcError, data_of, shape_of
from p2pnode.chain.evm.transaction_sender import SenderLimits, TransactionSender
from p2pnode.chain.ledger import (
    AccountState,
    Approve,
    Call,
    Domains,
    EscrowState,
    EventPage,
    FabState,
    Head,
    NodeRecord,
    Outcome,
    Proposal,
    RevertedError,
    UnavailableError,
)
from p2pnode.chain.profile import ChainProfile
from p2pnode.contract_rules import VOTING_S
from p2pnode.errors import ChainError
from p2pnode.ids import ModelId, SessionId
from p2pnode.protocols.crypto import Signer, keccak256
from p2pnode.protocols.inference.messages import SessionTerms
from p2pnode.protocols.typed_data import Domain, market_domain, session_id

if TYPE_CHECKING:
    import httpx


_STATUS: Final[tuple[Literal["none", "open", "closed"], ...]] = ("none", "open", "closed")
_NOBODY: Final = bytes(20)
_RANGE_MAX: Final = 100_000
_REGISTRANT_PAGES_MAX: Final = 400
"""Of events about one peer key that are asked for: with ranges of 10,000 blocks, about three months on
Base."""
_FAB_ALLOWANCE_SLOT: Final = (1).to_bytes(HASH_BYTES, "big")
"""Where FAB's contract keeps its allowances; a test compares."""
_SYSTEM: Final = secrets.SystemRandom()


@dataclass(frozen=True, slots=True, kw_only=True)
class EvmLimits:
    """Limits of one ledger. ``blocks_per_page`` is halved when a node refuses a range as too wide."""

    rpc: RpcLimits = field(default_factory=RpcLimits)
    sender: SenderLimits = field(default_factory=SenderLimits)
    blocks_per_page: int = 500


class EvmLedger:
    """See the module and ``Ledger``. Made by ``connect``; ``aclose`` it."""

    def __init__(
        self,
        endpoints: RpcEndpoints,
        node: EvmNode,
        domains: Domains,
        *,
        confirmations: int,
        sender: TransactionSender | None,
        account: bytes | None,
        blocks_per_page: int,
    ) -> None:
        self._endpoints, self._node, self._domains = endpoints, node, domains
        self._confirmations, self._sender, self._account = confirmations, sender, account
        self._encode = Encoder(domains)
        self._topics = market_topics()
        self._page_max = self._page = blocks_per_page

    @classmethod
    async def connect(
        cls,
        *,
        chain_id: int,
        rpc_urls: Sequence[str],
        job_marketplace: bytes,
        usdc: bytes,
        node_registry: bytes,
        fab: bytes = _NOBODY,
        model_registry: bytes = _NOBODY,
        genesis: bytes | None = None,
        confirmations: int = 1,
        account: bytes | None = None,
        sign: Signer | None = None,
        limits: EvmLimits | None = None,
        book: OrderBook | None = None,
        jitter: Jitter = _SYSTEM.random,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> EvmLedger:
        """Read the domains and check them. ``account`` and ``sign`` are given together, or neither.

        Raises ``ChainError`` that names what is wrong, and ``UnavailableError`` if no endpoint answers.
        """
        if (account is None) != (sign is None):
            msg = "a ledger that sends needs an account and its signer: give both or neither"
            raise ChainError(msg)
        if confirmations < 1:
            msg = "confirmations must be at least 1: correct it in the chain profile"
            raise ChainError(msg)
        bounds = limits or EvmLimits()
        endpoints = RpcEndpoints(
            rpc_urls, chain_id=chain_id, genesis=genesis, jitter=jitter, limits=bounds.rpc,
            transport=transport,
        )  # fmt: skip
        try:
            node = EvmNode(endpoints)
            domains = await read_domains(
                node, chain_id=chain_id, market=job_marketplace, usdc=usdc, node_registry=node_registry
            )
            domains = replace(domains, fab=fab, model_registry=model_registry)
        except BaseException:
            with trio.CancelScope(shield=True):
                await endpoints.aclose()
            raise
        sender = None
        if account is not None and sign is not None:
            sender = TransactionSender(
                node, chain_id=chain_id, account=account, sign=sign, confirmations=confirmations,
                jitter=jitter, limits=bounds.sender, book=book,
            )  # fmt: skip
        return cls(
            endpoints, node, domains, confirmations=confirmations, sender=sender, account=account,
            blocks_per_page=bounds.blocks_per_page,
        )  # fmt: skip

    @classmethod
    async def of_profile(
        cls,
        profile: ChainProfile,
        *,
        account: bytes | None = None,
        sign: Signer | None = None,
        limits: EvmLimits | None = None,
        book: OrderBook | None = None,
    ) -> EvmLedger:
        """``connect`` with what a profile says, its caps on the price of gas included."""
        bounds = limits or EvmLimits()
        sender = replace(
            bounds.sender,
            gas_price_max_wei=profile.gas_price_max_wei or bounds.sender.gas_price_max_wei,
            transaction_fee_max_wei=(
                profile.transaction_fee_max_wei or bounds.sender.transaction_fee_max_wei
            ),
        )
        return await cls.connect(
            chain_id=profile.chain_id,
            rpc_urls=profile.rpc_urls,
            job_marketplace=profile.job_marketplace,
            usdc=profile.usdc,
            node_registry=profile.node_registry,
            fab=profile.fab,
            model_registry=profile.model_registry,
            genesis=profile.genesis,
            confirmations=profile.confirmations,
            account=account,
            sign=sign,
            limits=replace(bounds, sender=sender),
            book=book,
        )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Send and follow transactions until cancelled; returns at once for a ledger that only reads."""
        if self._sender is None:
            task_status.started()
            return
        await self._sender.run(task_status=task_status)

    async def aclose(self) -> None:
        """Close the connections. Cancel ``run`` first."""
        await self._endpoints.aclose()

    @property
    def rpc(self) -> RpcEndpoints:
        """For questions that no method of a ledger asks, as ``verify`` has them."""
        return self._endpoints

    @property
    def unmined(self) -> int:
        """The number of transactions that are sent and not yet mined deep enough."""
        return 0 if self._sender is None else self._sender.unmined

    def status(self) -> tuple[EndpointStatus, ...]:
        """The endpoints' health, for ``doctor``."""
        return self._endpoints.status()

    @property
    def domains(self) -> Domains:
        """The domains, as read by ``connect``."""
        return self._domains

    @property
    def account(self) -> bytes | None:
        """The account that sends; None for a ledger that only reads."""
        return self._account

    async def transact(self, call: Call, *, fee_max_wei: int | None = None) -> Outcome:
        """As ``Ledger``. A call that is cancelled before it was signed is not sent."""
        if self._sender is None:
            msg = "this ledger only reads: it has no wallet to send from"
            raise ChainError(msg)
        return self._outcome(
            await self._sender.send(replace(self._encode.order(call), fee_max_wei=fee_max_wei))
        )

    def _outcome(self, receipt: Receipt) -> Outcome:
        return Outcome(
            transaction=receipt.hash,
            block=receipt.block,
            gas_used=receipt.gas_used,
            fee_wei=receipt.fee_wei,
            events=(
                *market_events(self._domains.market.contract, receipt.logs),
                *registry_events(self._domains, receipt.logs),
            ),
        )

    async def take_over(self) -> None:
        """Follow the orders of this account whose processes have ended."""
        if self._sender is not None:
            await self._sender.take_over()

    async def ending(self, order: SentOrder) -> tuple[Ending, bytes] | None:
        """How an order ended and by which transaction; None where no receipt is shown, or not deep enough."""
        last = await self._node.height() - self._confirmations + 1
        for version in reversed(order.versions):
            receipt = await self._node.receipt(version.hash)
            if receipt is not None and receipt.block <= last:
                return "done" if receipt.succeeded else "failed", version.hash
        return None

    async def outcome(self, order: SentOrder) -> Outcome:
        """What a carried-out order did; without its events where no node shows a receipt."""
        hash_, receipt = order.transaction or bytes(HASH_BYTES), None
        if order.transaction is not None:
            receipt = await self._node.receipt(hash_)
        return self._outcome(
            receipt
            or Receipt(
                hash=hash_, block=order.since_block, block_hash=None, succeeded=True, gas_used=None,
                fee_wei=None, logs=(),
            )
        )  # fmt: skip

    def is_order_of(self, order: SentOrder, call: Call) -> bool:
        """Whether ``call`` does exactly what ``order`` does."""
        return order.order.equals(self._encode.order(call))

    async def check(self, call: Call, sender: bytes | None = None) -> None:
        """As ``Ledger``, as sent by ``sender``, else by the account, else by the zero address."""
        order = self._encode.order(call)
        who = sender or self._account or _NOBODY
        await self._node.call(order.to, order.data, sender=who, gas=order.gas_max)

    async def session(self, session: SessionId) -> EscrowState:
        """As ``Ledger``."""
        market = self._domains.market.contract
        return _state(await read(self._node, "JobMarketplace", market, "session", session))

    async def confirmed(self, session: SessionId, state: EscrowState) -> bool:
        """As ``Ledger``."""
        if not self._endpoints.several:
            return True
        market, function = self._domains.market.contract, artifact("JobMarketplace").function("session", 1)
        asked = {"to": shown_address(market), "data": "0x" + function.encode((session,)).hex()}
        try:
            both = await self._endpoints.ask_two("eth_call", [asked, "latest"], shape_of("eth_call"))
            return all(_state(function.decode(data_of(said) or b"")) == state for said in both)
        except (ChainError, ValueError):
            return False

    async def balances(self, address: bytes) -> AccountState:
        """As ``Ledger``."""
        market, token = self._domains.market.contract, self._domains.token.contract
        return AccountState(
            usdc=await self._number("USDC", token, "balanceOf", address),
            earned=await self._number("JobMarketplace", market, "balance_of", address),
            ether=await self._node.ether(address),
            has_code=len(await self._node.code(address)) > 0,
        )

    async def _number(self, contract: str, at: bytes, name: str, *arguments: Any) -> int:
        return int(await read(self._node, contract, at, name, *arguments))

    async def events(self, cursor: int) -> EventPage:
        """As ``Ledger``: of blocks that are ``confirmations`` deep, one narrow range at a time."""
        final = await self._node.height() - self._confirmations + 1
        if cursor > final:
            return EventPage(events=(), cursor=cursor, caught_up=True)
        while True:
            last = min(final, cursor + self._page - 1)
            try:
                logs = await self._node.logs(self._domains.market.contract, self._topics, cursor, last)
            except RpcError:
                if last == cursor:
                    raise
                self._page = max(1, (last - cursor + 1) // 2)
                continue
            self._page = min(self._page_max, self._page * 2)
            events = market_events(self._domains.market.contract, logs)
            return EventPage(events=events, cursor=last + 1, caught_up=last == final)

    async def head(self) -> Head:
        """As ``Ledger``."""
        block = await self._node.block()
        return Head(block=block.number, timestamp=block.timestamp, gas_price_wei=await self._node.gas_price())

    # ---- FAB and the registries

    async def estimate(
        self, call: Call, sender: bytes | None = None, *, allowed: Approve | None = None
    ) -> int | None:
        """As ``RegistryLedger``."""
        order, who = self._encode.order(call), sender or self._account or _NOBODY
        if allowed is None:
            return await self._node.estimate(order.to, order.data, sender=who)
        slot = _mapping_slot(_mapping_slot(_FAB_ALLOWANCE_SLOT, who), allowed.spender)
        word = StorageWord(self._domains.fab, slot, allowed.amount.to_bytes(HASH_BYTES, "big"))
        try:
            return await self._node.estimate(order.to, order.data, sender=who, storage=word)
        except (RevertedError, UnavailableError):
            raise
        except ChainError:
            return None  # an endpoint that knows no changed state

    async def fab(self, address: bytes) -> FabState:
        """As ``RegistryLedger``."""
        found = self._domains
        return FabState(
            balance=await self._number("FAB", found.fab, "balanceOf", address),
            to_nodes=await self._number("FAB", found.fab, "allowance", address, found.node_registry),
            to_models=await self._number("FAB", found.fab, "allowance", address, found.model_registry),
        )

    async def node(self, host: bytes) -> NodeRecord:
        """As ``RegistryLedger``."""
        found = await read(self._node, "NodeRegistry", self._domains.node_registry, "node", host)
        peer_key, receipt_key, stake, unbonding, unbonds_at = found
        return NodeRecord(
            peer_key=peer_key, receipt_key=receipt_key, stake=stake, unbonding=unbonding,
            unbonds_at=unbonds_at,
        )  # fmt: skip

    async def registrants(self, peer_key: bytes) -> tuple[bytes, ...]:
        """As ``RegistryLedger``: from the registry's events, the latest first, in as wide ranges of blocks
        as an endpoint takes."""
        registry, last = self._domains.node_registry, await self._node.height()
        width, asked, hosts = last + 1, 0, list[bytes]()
        while last >= 0:
            first = max(0, last - width + 1)
            asked += 1
            if asked > _REGISTRANT_PAGES_MAX:
                msg = "no RPC endpoint shows events that old: name the host by its wallet (0x…)"
                raise ChainError(msg)
            try:
                found = await self._node.logs(registry, [registered_topic()], first, last, None, peer_key)
            except RpcError:
                if width == 1:
                    raise
                width = max(1, min(width // 4, _RANGE_MAX))
                continue
            hosts += [log.topics[1][-len(_NOBODY) :] for log in reversed(found)]
            last = first - 1
        now = [(host, await self.node(host)) for host in dict.fromkeys(hosts)]
        return tuple(host for host, record in now if record.peer_key == peer_key)

    async def proposal_count(self) -> int:
        """As ``RegistryLedger``."""
        return await self._number("ModelRegistry", self._domains.model_registry, "proposal_count")

    async def proposal(self, number: int) -> Proposal | None:
        """As ``RegistryLedger``."""
        found = await read(self._node, "ModelRegistry", self._domains.model_registry, "proposal", number)
        model, proposer, ends_at, votes_for, votes_against, bond = found
        if not ends_at:
            return None
        return Proposal(
            number=number, model=ModelId(model), proposer=proposer, ends_at=ends_at, votes_for=votes_for,
            votes_against=votes_against, bond=bond,
        )  # fmt: skip

    async def manifest(self, proposal: Proposal) -> bytes | None:
        """As ``RegistryLedger``: from the log of the proposal's block, which is found by its time."""
        began = proposal.ends_at - VOTING_S
        try:
            for number in await self._blocks_at(began):
                registry = self._domains.model_registry
                for log in await self._node.logs(registry, [proposal_topic()], number, number):
                    found = proposal_event(log)
                    if found is not None and found[0].proposal == proposal.number:
                        return found[1]
        except (RpcError, RevertedError):
            return None  # of an endpoint that keeps no old blocks
        return None

    async def _blocks_at(self, timestamp: int) -> range:
        """The blocks of this second."""
        low, high = 0, await self._node.height()
        first = await self._first_block(low, high, timestamp)
        return range(first, await self._first_block(first, high, timestamp + 1))

    async def _first_block(self, low: int, high: int, timestamp: int) -> int:
        """The first block that is not before ``timestamp``; the one after the last where all are."""
        high += 1
        while low < high:
            middle = (low + high) // 2
            if (await self._node.block(middle)).timestamp < timestamp:
                low = middle + 1
            else:
                high = middle
        return low

    async def locked(self, number: int, voter: bytes) -> int:
        """As ``RegistryLedger``."""
        return await self._number("ModelRegistry", self._domains.model_registry, "locked", number, voter)

    async def attestation(self, model: ModelId, attester: bytes) -> bytes:
        """As ``RegistryLedger``."""
        registry = self._domains.model_registry
        return bytes(await read(self._node, "ModelRegistry", registry, "attestation", model, attester))


def _mapping_slot(place: bytes, key: bytes) -> bytes:
    """Where a mapping of Vyper that stands at ``place`` keeps the value of an address."""
    return keccak256(place + key.rjust(HASH_BYTES, b"\0"))


def _state(found: tuple[int, int, int]) -> EscrowState:
    status, closing_at, recorded = found
    if not 0 <= status < len(_STATUS):
        msg = f"job_marketplace says session state {status}: is it another version?"
        raise ChainError(msg)
    return EscrowState(status=_STATUS[status], closing_at=closing_at or None, recorded=recorded)


_EIP5267: Final = Function(
    "eip712Domain", (), ("bytes1", "string", "string", "uint256", "address", "bytes32", "uint256[]")
)
_SAMPLE: Final = SessionTerms(
    payer=b"\x01" * 20, host=b"\x02" * 20, voucher_key=b"\x03" * 20, receipt_key=b"\x04" * 20,
    model=ModelId(b"\x05" * 32), deposit=6, price_in=7, price_out=8, session_fee=9, tip=10, expiry=11,
    salt=b"\x0c" * 32,
)  # fmt: skip


async def read_domains(
    node: EvmNode, *, chain_id: int, market: bytes, usdc: bytes, node_registry: bytes
) -> Domains:
    """Read the domains of token and marketplace. Raises ``ChainError`` that names what differs from ours."""
    name, version = await _token_name(node, usdc)
    token = Domain(name=name, version=version, chain_id=chain_id, contract=usdc)
    separator = bytes(await read(node, "USDC", usdc, "DOMAIN_SEPARATOR"))
    if keccak256(b"\x19\x01" + separator + bytes(32)) != token.digest(bytes(32)):
        msg = (
            f'usdc {shown_address(usdc)} says it is "{name}" version "{version}" on chain {chain_id}, but '
            "its DOMAIN_SEPARATOR is another's: no payer could sign for it. Correct usdc in the chain profile"
        )
        raise ChainError(msg)
    ours = market_domain(chain_id, market)
    if bytes(await read(node, "JobMarketplace", market, "session_id", terms_tuple(_SAMPLE))) != session_id(
        ours, _SAMPLE
    ):
        msg = (
            f"job_marketplace {shown_address(market)} numbers sessions in another way (another version?): "
            "correct job_marketplace in the chain profile"
        )
        raise ChainError(msg)
    if await read(node, "JobMarketplace", market, "usdc") != usdc:
        msg = (
            f"job_marketplace {shown_address(market)} is paid in another token: correct usdc in the chain "
            "profile"
        )
        raise ChainError(msg)
    treasury = bytes(await read(node, "JobMarketplace", market, "treasury"))
    return Domains(market=ours, token=token, node_registry=node_registry, treasury=treasury)


async def read(node: EvmNode, contract: str, address: bytes, name: str, *arguments: Any) -> Any:
    """Call a view of a contract. Raises ``ChainError`` if the contract at ``address`` doesn't have it."""
    return await _ask(node, contract, address, artifact(contract).function(name, len(arguments)), *arguments)


async def _token_name(node: EvmNode, usdc: bytes) -> tuple[str, str]:
    """A token's name and version: by EIP-5267 where it has that, else from ``name`` and ``version``."""
    try:
        found = await _ask(node, "EIP-5267 token", usdc, _EIP5267)
    except UnavailableError:
        raise
    except ChainError:
        return str(await read(node, "USDC", usdc, "name")), str(await read(node, "USDC", usdc, "version"))
    return str(found[1]), str(found[2])


async def _ask(node: EvmNode, contract: str, address: bytes, function: Function, *arguments: Any) -> Any:
    no_such = (
        f"what stands at {shown_address(address)} is no {contract} (it has no {function.name}): correct "
        "the address in the chain profile"
    )
    try:
        answer = await node.call(address, function.encode(arguments))
    except RevertedError as error:
        raise ChainError(no_such) from error
    try:
        return function.decode(answer)
    except ChainError as error:
        raise ChainError(no_such) from error
