"""The ``Ledger`` seam: what the roles need of a chain, and nothing about how it is reached.

Calls are values, so that one method sends each of them and another tries each of them; what they did is
returned as events. A ledger sends for at most one account (its ``account``); a client's ledger never sends
anything. Implementations: ``memory/`` (the contracts' rules in Python) and ``evm/`` (web3). One conformance
suite holds for both. Amounts are token units, ether is in wei, times are epoch seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, Protocol, TypeAlias

from p2pnode.contract_rules import QUORUM
from p2pnode.errors import ChainError
from p2pnode.ids import ModelId, SessionId
from p2pnode.protocols.inference.messages import Receipt, SessionTerms, Voucher
from p2pnode.protocols.typed_data import Domain

NO_REASON: Final = "no reason given"
"""The reason of a ``RevertedError`` where the contract gives none."""


class RevertedError(ChainError):
    """The contract refused the call; ``reason`` is its text. ``gas_used`` was paid for nevertheless."""

    def __init__(self, reason: str, gas_used: int = 0) -> None:
        super().__init__(f"the contract refused: {reason}")
        self.reason = reason
        self.gas_used = gas_used


class UnavailableError(ChainError):
    """No RPC endpoint gave a usable answer within the deadline. Nothing is lost: ask again later."""


class ChainMadeAnewError(ChainError):
    """The chain has another first block than the profile says: it is another chain with the same number."""

    def __init__(self) -> None:
        super().__init__(
            "the chain was made anew since this profile was written: its balances, deposits and sessions are "
            "gone with the old one. Use the profile that `p2pnode chain dev` wrote when it started the new "
            "chain (start a running host again), and fill the wallet again with `p2pnode chain faucet`"
        )


class GasTooDearError(ChainError):
    """The gas would cost more than the caller allows. Nothing was sent: try again when gas is cheaper."""


class UnseenError(ChainError):
    """A transaction was sent and may have been carried out, but no node shows the result. Never order it
    anew."""

    def __init__(self, words: str, transaction: bytes, why: str = "") -> None:
        reason = why or "no RPC endpoint shows a receipt: try again later, or name another under rpc_urls"
        super().__init__(
            f"sent, not seen yet: 0x{transaction.hex()} ({words}). It is not ordered a second time: run the "
            f"command again to wait for it. Its result is unknown now: {reason}"
        )
        self.transaction = transaction


# ---- what can be sent


@dataclass(frozen=True, slots=True)
class Open:
    """Relay a payer's deposit."""

    terms: SessionTerms
    valid_before: int
    authorisation: bytes


@dataclass(frozen=True, slots=True)
class Close:
    """The host settles with its best voucher."""

    terms: SessionTerms
    voucher: Voucher


@dataclass(frozen=True, slots=True)
class CloseMany:
    """The host settles up to ``CLAIMS_MAX`` sessions; what can't be paid is skipped."""

    claims: tuple[Close, ...]


@dataclass(frozen=True, slots=True)
class Release:
    """The host ends a session without a voucher, and keeps the session fee."""

    terms: SessionTerms


@dataclass(frozen=True, slots=True)
class RequestClose:
    """The payer asks to close; ``signature`` (the payer's or the voucher key's) lets anyone relay it."""

    terms: SessionTerms
    voucher: Voucher | None = None
    signature: bytes = b""


@dataclass(frozen=True, slots=True)
class SubmitVoucher:
    """Anyone records a better voucher during a challenge."""

    terms: SessionTerms
    voucher: Voucher


@dataclass(frozen=True, slots=True)
class Refund:
    """Anyone ends a session whose challenge is over."""

    terms: SessionTerms


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Take out money that was earned or credited."""

    to: bytes
    amount: int


@dataclass(frozen=True, slots=True)
class Transfer:
    """Send USDC from the account's own balance."""

    to: bytes
    amount: int


@dataclass(frozen=True, slots=True)
class Slash:
    """Anyone shows two receipts of a host for one place: its stake is lost, and a tenth goes to the
    account.

    Both receipts are of one epoch and one ``seq``. The stake is in FAB, not in USDC.
    """

    terms: SessionTerms
    one: Receipt
    other: Receipt


@dataclass(frozen=True, slots=True)
class TransferFab:
    """Send FAB (in its smallest unit) from the account's own balance."""

    to: bytes
    amount: int


@dataclass(frozen=True, slots=True)
class Approve:
    """Let a contract take so much FAB from the account, in place of what it was allowed before."""

    spender: bytes
    amount: int


@dataclass(frozen=True, slots=True)
class Register:
    """A host names its keys in ``NodeRegistry``, and adds to its stake (perhaps nothing).

    ``peer_key`` is the 32-byte Ed25519 key of its PeerId; ``receipt_key`` the 20-byte address of the key that
    signs its receipts.
    """

    peer_key: bytes
    receipt_key: bytes
    amount: int


@dataclass(frozen=True, slots=True)
class AddStake:
    """A registered host adds to its stake."""

    amount: int


@dataclass(frozen=True, slots=True)
class Unbond:
    """A host begins to take stake out. For ``UNBONDING_S`` it backs nothing and can still be lost."""

    amount: int


@dataclass(frozen=True, slots=True)
class Rebond:
    """A host makes all that unbonds its stake again."""


@dataclass(frozen=True, slots=True)
class WithdrawStake:
    """A host takes out all that has unbonded."""

    to: bytes


@dataclass(frozen=True, slots=True)
class Propose:
    """Put a model to the vote, with a bond of ``BOND`` that comes back. ``manifest``: its canonical bytes."""

    manifest: bytes


@dataclass(frozen=True, slots=True)
class Vote:
    """Vote with FAB, which is locked until the vote ends."""

    proposal: int
    support: bool
    amount: int


@dataclass(frozen=True, slots=True)
class Unlock:
    """Give a voter its FAB back, once the vote is over. Anyone may."""

    proposal: int
    voter: bytes


@dataclass(frozen=True, slots=True)
class ReturnBond:
    """Give a proposer its bond back, once the vote is over. Anyone may."""

    proposal: int


@dataclass(frozen=True, slots=True)
class Attest:
    """Say something of a model in the account's name: the 32-byte hash of a statement; zeros take it back."""

    model: ModelId
    statement: bytes


MarketCall: TypeAlias = (
    Open | Close | CloseMany | Release | RequestClose | SubmitVoucher | Refund | Withdraw | Transfer
)
FabCall: TypeAlias = TransferFab | Approve
StakeCall: TypeAlias = Register | AddStake | Unbond | Rebond | WithdrawStake | Slash
VoteCall: TypeAlias = Propose | Vote | Unlock | ReturnBond | Attest
Call: TypeAlias = MarketCall | FabCall | StakeCall | VoteCall

# ---- what happened


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionOpened:
    """A deposit is in escrow."""

    session: SessionId
    payer: bytes
    host: bytes
    terms: SessionTerms
    block: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionClosed:
    """A session is settled: ``amount`` is all that was paid (with the treasury's share); the rest went
    back."""

    session: SessionId
    payer: bytes
    host: bytes
    amount: int
    to_treasury: int
    refund: int
    tip: int
    pushed: bool
    block: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseRequested:
    """The payer asks to close: the host has until ``closing_at`` to show a better voucher than
    ``recorded``."""

    session: SessionId
    payer: bytes
    host: bytes
    closing_at: int
    recorded: int
    block: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VoucherRecorded:
    """Someone showed a better voucher during the challenge."""

    session: SessionId
    payer: bytes
    host: bytes
    recorded: int
    block: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimSkipped:
    """One claim of a ``CloseMany`` could not be paid."""

    session: SessionId
    block: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Withdrawn:
    """Money left the market."""

    account: bytes
    to: bytes
    amount: int
    fee: int
    block: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Slashed:
    """A host lost its stake. Only the account's own ``Slash`` reports it; amounts are in FAB wei."""

    session: SessionId
    host: bytes
    reporter: bytes
    amount: int
    reward: int
    block: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposed:
    """A model was put to the vote under this number. Only the account's own ``Propose`` reports it."""

    proposal: int
    model: ModelId
    proposer: bytes
    block: int


LedgerEvent: TypeAlias = (
    SessionOpened
    | SessionClosed
    | CloseRequested
    | VoucherRecorded
    | ClaimSkipped
    | Withdrawn
    | Slashed
    | Proposed
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A transaction that was mined, deep enough for the profile, and succeeded.

    ``gas_used`` and ``fee_wei`` are None where the node does not say.
    """

    transaction: bytes
    block: int
    gas_used: int | None
    fee_wei: int | None
    events: tuple[LedgerEvent, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EventPage:
    """Events of blocks below ``cursor``, oldest first; ask again from there. ``caught_up``: there are no
    more yet."""

    events: tuple[LedgerEvent, ...]
    cursor: int
    caught_up: bool


# ---- how things stand


@dataclass(frozen=True, slots=True, kw_only=True)
class EscrowState:
    """A session in the contract. ``recorded``: the highest amount shown; once it is closed, what was paid."""

    status: Literal["none", "open", "closed"]
    closing_at: int | None = None
    recorded: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountState:
    """``usdc`` in the wallet, ``earned`` that can be withdrawn from the market, ``ether`` in wei."""

    usdc: int
    earned: int
    ether: int
    has_code: bool
    """A contract (an ERC-1271 wallet), not a plain account."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The chain's last block, its time, and the price of gas."""

    block: int
    timestamp: int
    gas_price_wei: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Domains:
    """What signatures are made for: the EIP-712 domains of market and token, and the treasury."""

    market: Domain
    token: Domain
    node_registry: bytes
    treasury: bytes
    fab: bytes = bytes(20)
    model_registry: bytes = bytes(20)
    """Both are zero where only sessions are of interest."""

    @property
    def chain_id(self) -> int:
        """The chain that both are on."""
        return self.market.chain_id


@dataclass(frozen=True, slots=True, kw_only=True)
class FabState:
    """FAB in a wallet, in its smallest unit, and what the two registries may take of it."""

    balance: int = 0
    to_nodes: int = 0
    to_models: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRecord:
    """A host in ``NodeRegistry``. All fields are zero for one that never registered."""

    peer_key: bytes = bytes(32)
    receipt_key: bytes = bytes(20)
    stake: int = 0
    """What backs the host; 0, or at least ``STAKE_MIN``."""
    unbonding: int = 0
    """What is on its way out: it backs nothing, and can still be lost."""
    unbonds_at: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """A model that was put to the vote. Votes and bond are in FAB's smallest unit."""

    number: int
    model: ModelId
    proposer: bytes
    ends_at: int
    votes_for: int
    votes_against: int
    bond: int
    """0 once it was given back."""

    def is_over(self, now: int) -> bool:
        """Whether nobody can vote any more."""
        return now >= self.ends_at

    @property
    def has_majority(self) -> bool:
        """Whether more is for it than against it. A tie is a no."""
        return self.votes_for > self.votes_against

    @property
    def has_quorum(self) -> bool:
        """Whether enough FAB is for it."""
        return self.votes_for >= QUORUM

    def is_accepted(self, now: int) -> bool:
        """Whether the vote ended in favour, as the contract says it."""
        return self.is_over(now) and self.has_majority and self.has_quorum


class Ledger(Protocol):
    """See the module. Every method may raise ``UnavailableError``; deadlines are the caller's cancel
    scopes."""

    @property
    def domains(self) -> Domains:
        """The domains; known from the start."""

    @property
    def account(self) -> bytes | None:
        """The 20-byte account that sends; None for a ledger that only reads."""

    async def transact(self, call: Call, *, fee_max_wei: int | None = None) -> Outcome:
        """Send and wait until mined. Raises ``RevertedError``, ``GasTooDearError`` above ``fee_max_wei``, and
        ``ChainError`` without an account.

        Cancelling it does not unsend: the transaction is followed to its end all the same.
        """

    async def check(self, call: Call, sender: bytes | None = None) -> None:
        """Try a call without sending it. Raises ``RevertedError`` with the contract's reason. Costs
        nothing."""

    async def session(self, session: SessionId) -> EscrowState:
        """The state of a session."""

    async def confirmed(self, session: SessionId, state: EscrowState) -> bool:
        """Whether two endpoints report this state now. True where only one is configured."""

    async def balances(self, address: bytes) -> AccountState:
        """What an account has."""

    async def events(self, cursor: int) -> EventPage:
        """The market's events from block ``cursor`` on, at most one narrow range of blocks."""

    async def head(self) -> Head:
        """The last block, its time, and the price of gas."""


class RegistryLedger(Ledger, Protocol):
    """A ledger that also knows FAB and the two registries. Reads may raise ``UnavailableError``."""

    async def estimate(
        self, call: Call, sender: bytes | None = None, *, allowed: Approve | None = None
    ) -> int | None:
        """Try a call as ``check`` does, and give the gas that it takes.

        ``allowed``: as if the sender had sent this before. None where no endpoint can try it so. Raises
        ``RevertedError``.
        """

    async def fab(self, address: bytes) -> FabState:
        """The FAB of an account."""

    async def node(self, host: bytes) -> NodeRecord:
        """A host, by its wallet."""

    async def registrants(self, peer_key: bytes) -> tuple[bytes, ...]:
        """The wallets that are registered with this 32-byte peer key now.

        Anyone may register any key: a host's own signed binding says which wallet is its own. Raises
        ``ChainError`` where no endpoint shows events that old.
        """

    async def proposal_count(self) -> int:
        """How many proposals there are. They are numbered from 1."""

    async def proposal(self, number: int) -> Proposal | None:
        """A proposal; None where there is none of this number."""

    async def manifest(self, proposal: Proposal) -> bytes | None:
        """The manifest that was proposed, whose hash is the model's id; None where no endpoint has it any
        more."""

    async def locked(self, number: int, voter: bytes) -> int:
        """The FAB that a voter has locked in a proposal."""

    async def attestation(self, model: ModelId, attester: bytes) -> bytes:
        """The hash of what an account says of a model; zeros where it says nothing."""
