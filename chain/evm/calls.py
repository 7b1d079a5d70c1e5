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
    Call,
    ClaimSkipped,
    Close,
    CloseMany,
    CloseRequested,
    LedgerEvent,
    Open,
    Refund,
    Release,
    RequestClose,
    SessionClosed,
    SessionOpened,
    Slash,
    Slashed,
    SubmitVoucher,
    Transfer,
    VoucherRecorded,
    Withdraw,
    Withdrawn,
)
from p2pnode.contract_rules import CLAIMS_MAX
from p2pnode.errors import ChainError
from p2pnode.ids import SessionId
from p2pnode.money import usdc_text
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


@dataclass(frozen=True, slots=True)
class Encoder:
    """Makes orders for the contracts at these addresses. Their gas is twice what was measured."""

    market: bytes
    usdc: bytes
    node_registry: bytes

    def order(self, call: Call) -> Order:
        """The order for a call. Raises ``ChainError`` for a call that the contract can't take."""
        kind = type(call).__name__
        return replace(self._encoded(call), kind=kind, words=words_of(call))

    def _encoded(self, call: Call) -> Order:
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
                return self._order("USDC", self.usdc, "transfer", call.to, call.amount)
            case Slash():
                epoch, seq = call.one.epoch, call.one.checkpoint.seq
                both = receipt_tuple(call.one), receipt_tuple(call.other)
                terms = terms_tuple(call.terms)
                return self._order("NodeRegistry", self.node_registry, "slash", terms, epoch, seq, *both)

    def _market(self, name: str, *arguments: Any, gas: int = _CALL_GAS) -> Order:
        return self._order("JobMarketplace", self.market, name, *arguments, gas=gas)

    @staticmethod
    def _order(contract: str, to: bytes, name: str, *arguments: Any, gas: int = _CALL_GAS) -> Order:
        data = artifact(contract).function(name, len(arguments)).encode(arguments)
        return Order(to=to, data=data, gas_max=gas)


def words_of(call: Call) -> str:
    """A description of a call, for people."""
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
        case Slash(terms=terms):
            return f"show that {shown_address(terms.host)} signed two receipts for one place"


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


def registry_events(registry: bytes, logs: Iterable[Log]) -> tuple[LedgerEvent, ...]:
    """``Slashed`` of the node registry; all else is left out."""
    known = artifact("NodeRegistry")
    found: list[LedgerEvent] = []
    for log in logs:
        if log.contract != registry:
            continue
        with _undecodable(log, "the registry of nodes"):
            event = known.event(log.contract, log.topics, log.data)
            if event is not None and event.name == "Slashed":
                found.append(Slashed(**event.fields, block=log.block))
    return tuple(found)


@contextmanager
def _undecodable(log: Log, whose: str) -> Iterator[None]:
    """Raise ``ChainError`` for a log that can't be decoded. Its address and topic say what it should be, so
    this is the endpoint's fault."""
    from eth_abi.exceptions import DecodingError

    try:
        yield
    except (ValueError, TypeError, KeyError, DecodingError) as error:
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
