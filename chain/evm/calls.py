"""Encodes the ``Ledger``'s calls as orders to contracts, and reads contracts' logs as its events. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any, Final

from p2pnode.chain.abi import (
    NO_VOUCHER,
    Artifact,
    artifact,
    claim_tuple,
    receipt_tuple,
    terms_tuple,
    type_of,
    voucher_tuple,
)
from p2pnode.chain.addresses import shown_address
from p2pnode.chain.evm.node import Log
from p2pnode.chain.evm.order_book import Order
from p2pnode.chain.ledger import (
    AddStake,
    Attest,
    Call,
    ClaimSkipped,
    Close,
    CloseMany,
    CloseRequested,
    Domains,
    FabCall,
    LedgerEvent,
    MarketCall,
    Open,
    Propose,
    Proposed,
    Rebond,
    Refund,
    Register,
    Release,
    RequestClose,
    ReturnBond,
    SessionClosed,
    SessionOpened,
    Slash,
    Slashed,
    StakeCall,
    SubmitVoucher,
    Transfer,
    TransferFab,
    Unbond,
    Unlock,
    Vote,
    VoteCall,
    VoucherRecorded,
    Withdraw,
    Withdrawn,
    WithdrawStake,
)
from p2pnode.contract_rules import BOND, CLAIMS_MAX
from p2pnode.errors import ChainError
from p2pnode.ids import ModelId, SessionId
from p2pnode.money import fab_text, usdc_text
from p2pnode.protocols.crypto import keccak256
from p2pnode.protocols.inference.messages import SessionTerms

_EVENTS: Final = (
    "SessionOpened", "SessionClosed", "CloseRequested", "VoucherRecorded", "ClaimSkipped", "Withdrawn",
)  # fmt: skip
_TERMS_FIELDS: Final = tuple(field.name for field in fields(SessionTerms))
_OPEN_GAS: Final = 500_000
"""Bounds the gas of a relayer that a payer which is a contract can burn."""
_CALL_GAS: Final = 300_000
_CLAIM_GAS: Final = 150_000
_MANIFEST_BYTE_GAS: Final = 100
"""Of calldata (40 at the most) and of the log (8), with as much again."""


@dataclass(frozen=True, slots=True)
class Encoder:
    """Makes orders for the contracts of these domains. Their gas is twice what was measured."""

    domains: Domains

    def order(self, call: Call) -> Order:
        """The order for a call. Raises ``ChainError`` for a call that the contract can't take."""
        kind = type(call).__name__
        return replace(self._encoded(call), kind=kind, words=words_of(call))

    def _encoded(self, call: Call) -> Order:
        if isinstance(call, MarketCall):
            return self._of_market(call)
        if isinstance(call, StakeCall):
            return self._of_node_registry(call)
        if isinstance(call, VoteCall):
            return self._of_model_registry(call)
        return self._of_fab(call)

    def _of_market(self, call: MarketCall) -> Order:
        match call:
            case Open():
                terms = terms_tuple(call.terms)
                return self._market("open", terms, call.valid_before, call.authorisation, gas=_OPEN_GAS)
            case Close():
                return self._market("close", claim_tuple(call.terms, call.voucher))
            case CloseMany():
                if not 0 < len(call.claims) <= CLAIMS_MAX:
                    msg = f"close_many takes 1 to {CLAIMS_MAX} claims, not {len(call.claims)}: split them"
                    raise ChainError(msg)
                claims = [claim_tuple(claim.terms, claim.voucher) for claim in call.claims]
                return self._market("close_many", claims, gas=_CALL_GAS + len(claims) * _CLAIM_GAS)
            case Release():
                return self._market("release", terms_tuple(call.terms))
            case RequestClose():
                voucher = NO_VOUCHER if call.voucher is None else voucher_tuple(call.voucher)
                terms = terms_tuple(call.terms)
                return self._market("request_close", terms, voucher, call.signature, gas=_OPEN_GAS)
            case SubmitVoucher():
                return self._market("submit_voucher", terms_tuple(call.terms), voucher_tuple(call.voucher))
            case Refund():
                return self._market("refund", terms_tuple(call.terms))
            case Withdraw():
                return self._market("withdraw", call.to, call.amount)
            case Transfer():
                return _order("USDC", self.domains.token.contract, "transfer", call.to, call.amount)

    def _market(self, name: str, *arguments: Any, gas: int = _CALL_GAS) -> Order:
        return _order("JobMarketplace", self.domains.market.contract, name, *arguments, gas=gas)

    def _of_node_registry(self, call: StakeCall) -> Order:
        match call:
            case Register():
                return self._nodes("register", call.peer_key, call.receipt_key, call.amount)
            case AddStake():
                return self._nodes("add_stake", call.amount)
            case Unbond():
                return self._nodes("unbond", call.amount)
            case Rebond():
                return self._nodes("rebond")
            case WithdrawStake():
                return self._nodes("withdraw", call.to)
            case Slash():
                epoch, seq = call.one.epoch, call.one.checkpoint.seq
                both = receipt_tuple(call.one), receipt_tuple(call.other)
                return self._nodes("slash", terms_tuple(call.terms), epoch, seq, *both)

    def _nodes(self, name: str, *arguments: Any) -> Order:
        return _order("NodeRegistry", self.domains.node_registry, name, *arguments)

    def _of_model_registry(self, call: VoteCall) -> Order:
        match call:
            case Propose():
                gas = _CALL_GAS + _MANIFEST_BYTE_GAS * len(call.manifest)
                return self._models("propose", call.manifest, gas=gas)
            case Vote():
                return self._models("vote", call.proposal, call.support, call.amount)
            case Unlock():
                return self._models("unlock", call.proposal, call.voter)
            case ReturnBond():
                return self._models("return_bond", call.proposal)
            case Attest():
                return self._models("attest", call.model, call.statement)

    def _models(self, name: str, *arguments: Any, gas: int = _CALL_GAS) -> Order:
        return _order("ModelRegistry", self.domains.model_registry, name, *arguments, gas=gas)

    def _of_fab(self, call: FabCall) -> Order:
        if isinstance(call, TransferFab):
            return _order("FAB", self.domains.fab, "transfer", call.to, call.amount)
        return _order("FAB", self.domains.fab, "approve", call.spender, call.amount)


def _order(contract: str, to: bytes, name: str, *arguments: Any, gas: int = _CALL_GAS) -> Order:
    if not any(to):
        msg = f"this ledger does not know where {contract} is: connect it with a whole chain profile"
        raise ChainError(msg)
    data = artifact(contract).function(name, len(arguments)).encode(arguments)
    return Order(to=to, data=data, gas_max=gas)


def words_of(call: Call) -> str:
    """A description of a call, for people."""
    if isinstance(call, MarketCall):
        return _words_of_market(call)
    if isinstance(call, StakeCall):
        return _words_of_stake(call)
    if isinstance(call, VoteCall):
        return _words_of_vote(call)
    if isinstance(call, TransferFab):
        return f"send {fab_text(call.amount)} to {shown_address(call.to)}"
    return f"let {shown_address(call.spender)} take {fab_text(call.amount)}"


def _words_of_market(call: MarketCall) -> str:
    match call:
        case Withdraw(to=to, amount=amount):
            return f"withdraw {usdc_text(amount)} to {shown_address(to)}"
        case Transfer(to=to, amount=amount):
            return f"send {usdc_text(amount)} to {shown_address(to)}"
        case CloseMany(claims=claims):
            return f"settle {len(claims)} sessions"
        case Open(terms=terms):
            return f"take a deposit of {usdc_text(terms.deposit)} from {shown_address(terms.payer)}"
        case Close(voucher=voucher):
            return f"settle a session at {usdc_text(voucher.amount)}"
        case Release():
            return "release a session"
        case RequestClose():
            return "ask for the close of a session"
        case SubmitVoucher(voucher=voucher):
            return f"show a voucher of {usdc_text(voucher.amount)}"
        case Refund():
            return "take the refund of a session"


def _words_of_stake(call: StakeCall) -> str:
    match call:
        case Slash(terms=terms):
            return f"show that {shown_address(terms.host)} signed two receipts for one place"
        case Register(amount=amount):
            return f"register this node's keys, with {fab_text(amount)} more at stake"
        case AddStake(amount=amount):
            return f"add {fab_text(amount)} to the stake"
        case Unbond(amount=amount):
            return f"begin to take {fab_text(amount)} out of the stake"
        case Rebond():
            return "make all that unbonds stake again"
        case WithdrawStake(to=to):
            return f"withdraw what has unbonded to {shown_address(to)}"


def _words_of_vote(call: VoteCall) -> str:
    match call:
        case Propose():
            return f"propose a model, with a bond of {fab_text(BOND)}"
        case Vote(proposal=number, support=support, amount=amount):
            return f"vote {'for' if support else 'against'} proposal {number} with {fab_text(amount)}"
        case Unlock(proposal=number, voter=voter):
            return f"give {shown_address(voter)} back what it locked in proposal {number}"
        case ReturnBond(proposal=number):
            return f"give the bond of proposal {number} back"
        case Attest(statement=statement):
            return "attest a model" if any(statement) else "take an attestation of a model back"


def market_topics() -> tuple[bytes, ...]:
    """First topics of the events that ``market_events`` gives."""
    return tuple(_topic(artifact("JobMarketplace"), name) for name in _EVENTS)


def _topic(contract: Artifact, name: str) -> bytes:
    entry = next(entry for entry in contract.abi if entry["type"] == "event" and entry["name"] == name)
    return keccak256(f"{name}({','.join(type_of(field) for field in entry['inputs'])})".encode())


def market_events(market: bytes, logs: Iterable[Log]) -> tuple[LedgerEvent, ...]:
    """The marketplace's events among ``logs``, in order; all else is left out."""
    known = artifact("JobMarketplace")
    found: list[LedgerEvent] = []
    for log in logs:
        if log.contract != market:
            continue
        with _undecodable(log, "the market"):
            event = known.event(log.contract, log.topics, log.data)
            if event is not None and event.name in _EVENTS:
                found.append(_event(event.name, event.fields, log.block))
    return tuple(found)


def registry_events(domains: Domains, logs: Iterable[Log]) -> tuple[LedgerEvent, ...]:
    """``Slashed`` of the registry of nodes, and ``Proposed`` of that of models; all else is left out."""
    found: list[LedgerEvent] = []
    for log in logs:
        if log.contract == domains.node_registry:
            with _undecodable(log, "the registry of nodes"):
                event = artifact("NodeRegistry").event(log.contract, log.topics, log.data)
                if event is not None and event.name == "Slashed":
                    found.append(Slashed(**event.fields, block=log.block))
        elif log.contract == domains.model_registry and (proposed := proposal_event(log)) is not None:
            found.append(proposed[0])
    return tuple(found)


def proposal_event(log: Log) -> tuple[Proposed, bytes] | None:
    """A proposal in a log of the registry of models, with its manifest; None for another event."""
    with _undecodable(log, "the registry of models"):
        event = artifact("ModelRegistry").event(log.contract, log.topics, log.data)
        if event is None or event.name != "Proposed":
            return None
        fields = event.fields
        proposed = Proposed(
            proposal=fields["proposal"],
            model=ModelId(fields["model_id"]),
            proposer=fields["proposer"],
            block=log.block,
        )
        return proposed, bytes(fields["manifest"])


def registered_topic() -> bytes:
    """The first topic of ``Registered``. A host is its second, a peer key its third."""
    return _topic(artifact("NodeRegistry"), "Registered")


def proposal_topic() -> bytes:
    """The first topic of ``Proposed``."""
    return _topic(artifact("ModelRegistry"), "Proposed")


@contextmanager
def _undecodable(log: Log, whose: str) -> Iterator[None]:
    """Raise ``ChainError`` for a log that can't be decoded. Its address and topic say what it should be, so
    this is the endpoint's fault."""
    from eth_abi.exceptions import DecodingError

    try:
        yield
    except (ValueError, TypeError, KeyError, OverflowError, DecodingError) as error:
        msg = f"an endpoint gave a log in block {log.block} that is no event of {whose}: {error}"
        raise ChainError(msg) from error


def _event(name: str, found: dict[str, Any], block: int) -> LedgerEvent:
    if name == "Withdrawn":
        return Withdrawn(**found, block=block)
    session = SessionId(found.pop("session"))
    match name:
        case "SessionOpened":
            values = found.pop("terms")
            terms = SessionTerms(**dict(zip(_TERMS_FIELDS, values, strict=True)))
            return SessionOpened(session=session, terms=terms, block=block, **found)
        case "SessionClosed":
            del found["root"]
            return SessionClosed(session=session, block=block, **found)
        case "CloseRequested":
            return CloseRequested(session=session, block=block, **found)
        case "VoucherRecorded":
            return VoucherRecorded(session=session, block=block, **found)
        case _:
            return ClaimSkipped(session=session, block=block)
