"""``MemoryLedger``: the ``Ledger`` without a chain: the contracts' rules in memory, one block per
transaction.

For simulations, and tests of what needs a ledger: no I/O, no clock of its own, deterministic. Signatures are
real unless ``recover`` says otherwise. A refused call costs nothing and mines nothing, as with an EVM ledger,
which tries before it sends.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable
from typing import Final

from p2pnode.chain.ledger import (
    AccountState,
    AddStake,
    Approve,
    Attest,
    Call,
    Close,
    CloseMany,
    Domains,
    EscrowState,
    EventPage,
    FabCall,
    FabState,
    GasTooDearError,
    Head,
    LedgerEvent,
    NodeRecord,
    Open,
    Outcome,
    Proposal,
    Propose,
    Rebond,
    Refund,
    Register,
    Release,
    RequestClose,
    ReturnBond,
    Slash,
    StakeCall,
    SubmitVoucher,
    Transfer,
    TransferFab,
    Unbond,
    Unlock,
    Vote,
    VoteCall,
    Withdraw,
    WithdrawStake,
)
from p2pnode.chain.memory.fab_rules import FabRules
from p2pnode.chain.memory.market_rules import Commit, Context, MarketRules
from p2pnode.chain.memory.registry_rules import RegistryRules
from p2pnode.chain.memory.token_rules import SignatureCheck, TokenRules
from p2pnode.chain.memory.vote_rules import VoteRules
from p2pnode.contract_rules import CLAIMS_MAX
from p2pnode.errors import ChainError
from p2pnode.ids import ModelId, SessionId
from p2pnode.protocols.crypto import Recover, keccak256, recover_address

BLOCKS_PER_PAGE: Final = 500
CLAIM_GAS: Final = 28_000
GAS: Final[dict[type[Call], int]] = {
    Open: 122_000, Close: 81_000, CloseMany: 60_000, Release: 68_000, RequestClose: 37_000,
    SubmitVoucher: 42_000, Refund: 82_000, Withdraw: 56_000, Transfer: 45_000, Slash: 110_000,
    TransferFab: 52_000, Approve: 46_000, Register: 153_000, AddStake: 52_000, Unbond: 80_000,
    Rebond: 45_000, WithdrawStake: 52_000, Propose: 210_000, Vote: 105_000, Unlock: 55_000,
    ReturnBond: 55_000, Attest: 47_000,
}  # fmt: skip
"""Round figures: of sessions those of ``bench gas`` with the real token, warm; of the registries' calls what
the first one takes. Each claim of a ``CloseMany`` takes ``CLAIM_GAS``
more."""


class MemoryChain:
    """One market and its token. ``now`` gives epoch seconds; with a gas price, senders need ether."""

    def __init__(
        self,
        domains: Domains,
        now: Callable[[], int],
        *,
        gas_price_wei: int = 0,
        recover: Recover = recover_address,
    ) -> None:
        self.domains, self.now, self.gas_price_wei = domains, now, gas_price_wei
        self.block = 0
        self.ether: defaultdict[bytes, int] = defaultdict(int)
        self._wallets: dict[bytes, SignatureCheck] = {}
        self._token = TokenRules(domains.token, self._wallets, recover=recover)
        self._market = MarketRules(
            domains.market,
            domains.treasury,
            self._token,
            self._wallets,
            domains.token.contract,
            recover=recover,
        )
        self._fab = FabRules()
        self._registry = RegistryRules(
            domains.market,
            self._market.session,
            self._fab,
            registry=domains.node_registry,
            fab=domains.fab,
        )
        self._votes = VoteRules(self._fab, registry=domains.model_registry)
        self._events: list[LedgerEvent] = []
        self._blocks: list[int] = []
        """Of each event: for finding a page."""

    # ---- what tests and simulations do to the world

    def mint(self, account: bytes, amount: int) -> None:
        """Give USDC to an account."""
        self._token.balances[account] += amount

    def mint_fab(self, account: bytes, amount: int) -> None:
        """Give FAB to an account, in its smallest unit."""
        self._fab.balances[account] += amount

    def blacklist(self, account: bytes, *, frozen: bool = True) -> None:
        """Freeze an account, or unfreeze it, as the token's issuer may."""
        (self._token.blacklisted.add if frozen else self._token.blacklisted.discard)(account)

    def pause(self, *, paused: bool = True) -> None:
        """Stop every movement of the token, or allow it again, as its issuer may."""
        self._token.paused = paused

    def cancel_authorisation(self, payer: bytes, nonce: bytes) -> None:
        """Cancel an unused authorisation, as its payer may."""
        self._token.cancel(payer, nonce)

    def move(self, sender: bytes, to: bytes, amount: int) -> None:
        """Send USDC by other means than a ledger. Raises ``RevertedError``."""
        self._token.transfer(sender, to, amount)

    def deploy_wallet(self, account: bytes, is_valid: SignatureCheck) -> None:
        """Make this account a contract that answers ERC-1271 like this."""
        self._wallets[account] = is_valid

    def mine(self, blocks: int = 1) -> None:
        """Mine empty blocks."""
        self.block += blocks

    # ---- what a ledger asks

    def session(self, session: SessionId) -> EscrowState:
        """The state of a session."""
        return self._market.session(session)

    def account(self, address: bytes) -> AccountState:
        """What an account has."""
        return AccountState(
            usdc=self.usdc(address),
            earned=self.earned(address),
            ether=self.ether.get(address, 0),
            has_code=address in self._wallets or address in self._contracts(),
        )

    def usdc(self, address: bytes) -> int:
        """The USDC that an account has, in token units."""
        return self._token.balances.get(address, 0)

    def earned(self, address: bytes) -> int:
        """What the market holds for an account that earned it, in token units."""
        return self._market.earned.get(address, 0)

    def fab(self, address: bytes) -> FabState:
        """The FAB of an account."""
        allowed, domains = self._fab.allowances, self.domains
        return FabState(
            balance=self._fab.balances.get(address, 0),
            to_nodes=allowed.get((address, domains.node_registry), 0),
            to_models=allowed.get((address, domains.model_registry), 0),
        )

    def node(self, host: bytes) -> NodeRecord:
        """A host, by its wallet."""
        return self._registry.node(host)

    def registrants(self, peer_key: bytes) -> tuple[bytes, ...]:
        """The wallets that are registered with this peer key now."""
        return self._registry.registrants(peer_key)

    @property
    def votes(self) -> VoteRules:
        """Proposals, votes, attestations, for reading."""
        return self._votes

    def page(self, cursor: int) -> EventPage:
        """The events from a block on."""
        if cursor > self.block:
            return EventPage(events=(), cursor=cursor, caught_up=True)
        end = min(self.block + 1, cursor + BLOCKS_PER_PAGE)
        first, last = bisect_left(self._blocks, cursor), bisect_left(self._blocks, end)
        return EventPage(events=tuple(self._events[first:last]), cursor=end, caught_up=end > self.block)

    def send(self, sender: bytes, call: Call) -> Outcome:
        """Carry out a call, in a block of its own. Raises ``RevertedError``, and ``ChainError`` without
        the ether."""
        gas = gas_of(call)
        fee = gas * self.gas_price_wei
        if self.ether.get(sender, 0) < fee:
            msg = f"0x{sender.hex()} needs {fee} wei for gas: send it ether"
            raise ChainError(msg)
        events = tuple(self._decide(sender, call)())
        self.block += 1
        if fee:
            self.ether[sender] -= fee
        # Of other contracts no page shows any.
        shown = () if isinstance(call, FabCall | StakeCall | VoteCall) else events
        self._events += shown
        self._blocks += [self.block] * len(shown)
        hash_ = keccak256(b"p2pnode memory chain" + self.block.to_bytes(8, "big"))
        return Outcome(transaction=hash_, block=self.block, gas_used=gas, fee_wei=fee, events=events)

    def check(self, sender: bytes, call: Call) -> None:
        """Try a call without carrying it out. Raises ``RevertedError``."""
        self._decide(sender, call)

    def estimate(self, sender: bytes, call: Call, allowed: Approve | None = None) -> int:
        """Try a call; the gas that it takes. ``allowed`` as in ``RegistryLedger``. Raises
        ``RevertedError``."""
        self._decide(sender, call, allowed)
        return gas_of(call)

    def _decide(self, sender: bytes, call: Call, allowed: Approve | None = None) -> Commit:
        if isinstance(call, CloseMany) and not 0 < len(call.claims) <= CLAIMS_MAX:
            msg = f"close_many takes 1 to {CLAIMS_MAX} claims, not {len(call.claims)}: split them"
            raise ChainError(msg)
        context = Context(sender, self.now(), self.block + 1)
        if isinstance(call, StakeCall):
            return self._registry.decide(call, context, allowed)
        if isinstance(call, VoteCall):
            return self._votes.decide(call, context, allowed)
        if isinstance(call, FabCall):
            return self._decide_fab(call, sender)
        return self._market.decide(call, context)

    def _decide_fab(self, call: FabCall, sender: bytes) -> Commit:
        if isinstance(call, TransferFab):
            self._fab.check_transfer(sender, call.to, call.amount)

        def commit() -> list[LedgerEvent]:
            if isinstance(call, TransferFab):
                self._fab.move(sender, call.to, call.amount)
            else:
                self._fab.allowances[sender, call.spender] = call.amount
            return []

        return commit

    def _contracts(self) -> tuple[bytes, ...]:
        domains = self.domains
        registries = (domains.node_registry, domains.model_registry, domains.fab)
        return (domains.market.contract, domains.token.contract, *(each for each in registries if any(each)))


class MemoryLedger:
    """One account's view of a ``MemoryChain``; without an account it only reads."""

    def __init__(self, chain: MemoryChain, account: bytes | None = None) -> None:
        self._chain, self._account = chain, account

    @property
    def domains(self) -> Domains:
        """The chain's domains."""
        return self._chain.domains

    @property
    def account(self) -> bytes | None:
        """The account that sends."""
        return self._account

    async def transact(self, call: Call, *, fee_max_wei: int | None = None) -> Outcome:
        """As ``Ledger``; carried out at once."""
        price = self._chain.gas_price_wei
        if fee_max_wei is not None and gas_of(call) * price > fee_max_wei:
            msg = f"gas costs {price} wei now: it would cost more than it is worth yet"
            raise GasTooDearError(msg)
        if self._account is None:
            msg = "this ledger only reads: it has no wallet to send from"
            raise ChainError(msg)
        return self._chain.send(self._account, call)

    async def check(self, call: Call, sender: bytes | None = None) -> None:
        """As ``Ledger``."""
        self._chain.check(sender or self._account or bytes(20), call)

    async def session(self, session: SessionId) -> EscrowState:
        """As ``Ledger``."""
        return self._chain.session(session)

    async def confirmed(self, session: SessionId, state: EscrowState) -> bool:
        """As ``Ledger``."""
        return self._chain.session(session) == state

    async def balances(self, address: bytes) -> AccountState:
        """As ``Ledger``."""
        return self._chain.account(address)

    async def events(self, cursor: int) -> EventPage:
        """As ``Ledger``."""
        return self._chain.page(cursor)

    async def head(self) -> Head:
        """As ``Ledger``."""
        chain = self._chain
        return Head(block=chain.block, timestamp=chain.now(), gas_price_wei=chain.gas_price_wei)

    async def estimate(
        self, call: Call, sender: bytes | None = None, *, allowed: Approve | None = None
    ) -> int | None:
        """As ``RegistryLedger``."""
        return self._chain.estimate(sender or self._account or bytes(20), call, allowed)

    async def fab(self, address: bytes) -> FabState:
        """As ``RegistryLedger``."""
        return self._chain.fab(address)

    async def node(self, host: bytes) -> NodeRecord:
        """As ``RegistryLedger``."""
        return self._chain.node(host)

    async def registrants(self, peer_key: bytes) -> tuple[bytes, ...]:
        """As ``RegistryLedger``."""
        return self._chain.registrants(peer_key)

    async def proposal_count(self) -> int:
        """As ``RegistryLedger``."""
        return self._chain.votes.count

    async def proposal(self, number: int) -> Proposal | None:
        """As ``RegistryLedger``."""
        return self._chain.votes.proposal(number)

    async def manifest(self, proposal: Proposal) -> bytes | None:
        """As ``RegistryLedger``."""
        return self._chain.votes.manifest(proposal.number)

    async def locked(self, number: int, voter: bytes) -> int:
        """As ``RegistryLedger``."""
        return self._chain.votes.locked(number, voter)

    async def attestation(self, model: ModelId, attester: bytes) -> bytes:
        """As ``RegistryLedger``."""
        return self._chain.votes.attestation(model, attester)


def gas_of(call: Call) -> int:
    """The gas that a call takes here."""
    return GAS[type(call)] + (CLAIM_GAS * len(call.claims) if isinstance(call, CloseMany) else 0)
