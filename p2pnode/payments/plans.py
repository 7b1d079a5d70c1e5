"""What a wallet's owner asks of FAB and the registries: checked, put into words, tried, and carried out.

A ``Plan`` is the calls of one command, in order, and what they mean to their owner. ``stakes.py`` and
``votes.py`` make them. ``quote`` tries each call on the chain without sending it, and adds up the gas;
nothing is signed for that. Amounts of FAB are in its smallest unit, gas is in units, its cost in wei.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal, TypeAlias

from p2pnode.chain.addresses import shown_address
from p2pnode.chain.ledger import Approve, Call, RegistryLedger, RevertedError, Transfer, TransferFab
from p2pnode.errors import ChainError
from p2pnode.money import ether_text, fab_text, usdc_text
from p2pnode.payments.gas_budget import session_fee_for

PlanErrorCode: TypeAlias = Literal[
    "no_fab",
    "no_usdc",
    "no_ether",
    "already_staked",
    "not_staked",
    "too_little",
    "not_unbonded",
    "nothing_unbonding",
    "no_proposal",
    "vote_over",
    "vote_on",
    "voted_already",
    "nothing_locked",
    "bond_is_back",
    "not_proposer",
    "already_proposed",
    "already_attested",
    "not_attested",
    "no_evidence",
    "refused",
]
_DIGITS_SHOWN: Final = 4
UNTRIED_GAS: Final = 200_000
"""Counted for a call that no endpoint can try before an allowance is there: more than any of them takes, but
for a proposal's."""


class PlanError(ChainError):
    """The chain would refuse what is asked, or the wallet lacks what it takes. Nothing was sent.

    ``code`` is stable, for scripts.
    """

    def __init__(self, code: PlanErrorCode, message: str) -> None:
        super().__init__(message)
        self.code: PlanErrorCode = code


@dataclass(frozen=True, slots=True)
class Plan:
    """``words`` are sentences, one for each call: what it does and what follows from it."""

    calls: tuple[Call, ...]
    words: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """What a plan would take. ``cost`` is in token units (1e-6 USDC), None where the price of ether isn't
    known."""

    gas: int
    gas_price_wei: int
    ether_wei: int
    """What the account has."""
    cost: int | None
    untried: int
    """Calls that no endpoint could try yet, because they need an allowance that is given first."""

    @property
    def cost_wei(self) -> int:
        """What the gas costs at the price of now. A rollup adds its fee for the chain below it."""
        return self.gas * self.gas_price_wei


async def quote(ledger: RegistryLedger, plan: Plan, account: bytes, *, ether_price: int = 0) -> Quote:
    """Try each call. ``ether_price`` is token units for an ether, 0 where it isn't known.

    Raises ``PlanError`` for what the contract refuses, and for too little ether.
    """
    gas = untried = 0
    allowed: Approve | None = None
    for call in plan.calls:
        try:
            taken = await ledger.estimate(call, account, allowed=allowed)
        except RevertedError as error:
            raise PlanError("refused", f"the contract would refuse that: {error.reason}") from error
        untried += taken is None
        gas += UNTRIED_GAS if taken is None else taken
        allowed = call if isinstance(call, Approve) else None
    price = (await ledger.head()).gas_price_wei
    held = (await ledger.balances(account)).ether
    cost = session_fee_for(gas, price, ether_price) if ether_price else None
    return Quote(gas=gas, gas_price_wei=price, ether_wei=held, cost=cost, untried=untried)


def require_ether(found: Quote, account: bytes) -> None:
    """Raise ``PlanError`` where the account can't pay for the gas."""
    if found.ether_wei < found.cost_wei:
        raise PlanError(
            "no_ether",
            f"the gas costs about {ether_text(about(found.cost_wei))}, and {shown_address(account)} has "
            f"{ether_text(found.ether_wei)}: send it some ether first",
        )


def with_allowance(call: Call, words: str, *, spender: bytes, amount: int, allowed: int) -> Plan:
    """A plan of a call that takes FAB; before it the contract is allowed exactly that, where it isn't."""
    if allowed >= amount:
        return Plan((call,), (words,))
    allow = f"Let the contract {shown_address(spender)} take {fab_text(amount)} from this wallet, once."
    return Plan((Approve(spender, amount), call), (allow, words))


def require_fab(needed: int, held: int, account: bytes, what: str) -> None:
    """Raise ``PlanError`` where the account has less than is needed."""
    if held < needed:
        raise PlanError(
            "no_fab",
            f"{what} takes {fab_text(needed)}, and {shown_address(account)} has {fab_text(held)}: send it "
            f"{fab_text(needed - held)} more",
        )


def send(call: Transfer | TransferFab, held: int, account: bytes) -> Plan:
    """Send tokens from the account's own balance, of which it holds so many. Raises ``PlanError``."""
    shown = fab_text if isinstance(call, TransferFab) else usdc_text
    if not 0 < call.amount <= held:
        raise PlanError(
            "no_fab" if isinstance(call, TransferFab) else "no_usdc",
            f"{shown_address(account)} has {shown(held)}: {shown(call.amount)} can't be sent from it",
        )
    words = f"Send {shown(call.amount)} to {shown_address(call.to)}: nobody can bring it back."
    return Plan((call,), (words,))


def about(wei: int) -> int:
    """An amount rounded up to four digits, for a figure that changes with each block."""
    unit = int("1".ljust(max(0, len(str(wei)) - _DIGITS_SHOWN) + 1, "0"))
    return -(-wei // unit) * unit


def day_text(at: int) -> str:
    """A time on the chain, to the minute."""
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M} UTC"


def listed_words(plan: Plan) -> Sequence[str]:
    """The words, numbered where there are several."""
    if len(plan.words) == 1:
        return plan.words
    return [f"{number}. {text}" for number, text in enumerate(plan.words, 1)]
