"""The chain of a simulated market: the contracts' rules, in blocks. All of them are ``MemoryChain``'s.

A call is carried out in the first block after it has reached the chain; whoever sent it hears then what came
of it. It also keeps a book of its own, from the events alone, of what is in escrow: the invariants compare
both. Gas has a price, and whoever sends a call may say what it is to cost at most. Not modelled:
reorganisations, full blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

from p2pnode.chain.ledger import (
    Call,
    Domains,
    EscrowState,
    GasTooDearError,
    LedgerEvent,
    Outcome,
    RevertedError,
    SessionClosed,
    SessionOpened,
)
from p2pnode.chain.memory.ledger import MemoryChain, gas_of
from p2pnode.errors import ChainError
from p2pnode.ids import SessionId
from p2pnode.protocols.inference.messages import SessionTerms
from p2pnode.protocols.typed_data import Domain, market_domain
from p2pnode.simulations.event_loop import EventLoop
from p2pnode.simulations.keys import Keys
from p2pnode.simulations.parameters import require_not_negative, require_positive

EPOCH_S: Final = 1_700_000_000
"""What the clocks show at the start: seconds since 1970."""
_CHAIN_ID: Final = 31_337
_WEI_PER_GWEI: Final = 10**9
_PLENTY_WEI: Final = 10**24
Answer: TypeAlias = Callable[[Outcome | ChainError], None]
Seen: TypeAlias = Callable[[LedgerEvent], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """A chain's parameters. ``request_s`` is what a call takes to reach it.

    Gas costs ``gas_gwei``, and ``gas_peak_gwei`` for ``gas_peak_s`` from ``gas_peak_at_s`` on. Hosts hold it
    against their fees where ``ether_price`` is known: what an ether costs, in token units; 0: it is not.
    """

    block_s: float = 2.0
    request_s: float = 0.2
    gas_gwei: float = 0.0
    gas_peak_gwei: float = 0.0
    gas_peak_at_s: float = 0.0
    gas_peak_s: float = 0.0
    ether_price: int = 0

    def __post_init__(self) -> None:
        require_positive(self, "block_s", "request_s")
        require_not_negative(
            self, "gas_gwei", "gas_peak_gwei", "gas_peak_at_s", "gas_peak_s", "ether_price"
        )  # fmt: skip

    def gas_price_wei(self, now: float) -> int:
        """Of a unit of gas, at a second of the run."""
        is_peak = self.gas_peak_at_s <= now < self.gas_peak_at_s + self.gas_peak_s
        return round((self.gas_peak_gwei if is_peak else self.gas_gwei) * _WEI_PER_GWEI)


class SimulatedChain:
    """The one chain of a run. Amounts are token units."""

    def __init__(self, loop: EventLoop, keys: Keys, chain: Chain) -> None:
        self._loop, self._chain = loop, chain
        contract, token = keys.address("the market"), keys.address("the token")
        self.treasury = keys.address("the treasury")
        self.domains = Domains(
            market=market_domain(_CHAIN_ID, contract),
            token=Domain(name="USDC", version="2", chain_id=_CHAIN_ID, contract=token),
            node_registry=keys.address("the registry"),
            treasury=self.treasury,
        )
        self.rules = MemoryChain(self.domains, lambda: int(EPOCH_S + loop.now), recover=keys.recover)
        self.accounts: list[bytes] = [self.treasury]
        """All that may hold money but the market's contract."""
        self.minted = 0
        self.in_escrow: dict[SessionId, SessionTerms] = {}
        self.closed: dict[SessionId, SessionClosed] = {}
        self.on_event: list[Seen] = []
        """Told of each event of a block when all of them are carried out."""

    def mint(self, account: bytes, amount: int) -> None:
        """Give an account USDC."""
        self.rules.mint(account, amount)
        self.minted += amount

    def fund(self, account: bytes) -> None:
        """Give an account more ether than a run can use up: hosts bring their own."""
        self.rules.ether[account] += _PLENTY_WEI

    def usdc(self, account: bytes) -> int:
        """What an account has in its wallet."""
        return self.rules.usdc(account)

    def earned(self, account: bytes) -> int:
        """What an account has earned and not taken out."""
        return self.rules.earned(account)

    def session(self, session: SessionId) -> EscrowState:
        """How a session stands now."""
        return self.rules.session(session)

    def why_refused(self, sender: bytes, call: Call) -> str:
        """Why a call would be refused now, by a dry run; "" where it would not."""
        try:
            self.rules.check(sender, call)
        except RevertedError as error:
            return error.reason
        except ChainError as error:
            return str(error)
        return ""

    @property
    def gas_price_wei(self) -> int:
        """What a unit of gas costs now."""
        return self._chain.gas_price_wei(self._loop.now)

    def send(self, sender: bytes, call: Call, then: Answer, *, fee_max_wei: int | None = None) -> None:
        """Send a call. ``then`` gets what came of it in its block, or why it was refused: ``GasTooDearError``
        where it would cost more than ``fee_max_wei``."""
        block_s = self._chain.block_s
        reached = self._loop.now + self._chain.request_s
        at = math.ceil(reached / block_s) * block_s
        self._loop.at(at, self._mine, sender, call, then, fee_max_wei)

    def _mine(self, sender: bytes, call: Call, then: Answer, fee_max_wei: int | None) -> None:
        price = self.rules.gas_price_wei = self.gas_price_wei
        if fee_max_wei is not None and gas_of(call) * price > fee_max_wei:
            then(GasTooDearError(f"gas costs {price} wei now"))
            return
        try:
            outcome = self.rules.send(sender, call)
        except ChainError as error:
            then(error)
            return
        for event in outcome.events:
            if isinstance(event, SessionOpened):
                self.in_escrow[event.session] = event.terms
            elif isinstance(event, SessionClosed):
                del self.in_escrow[event.session]
                self.closed[event.session] = event
        for event in outcome.events:
            for seen in self.on_event:
                seen(event)
        then(outcome)

    @property
    def total(self) -> int:
        """All the money there is: in wallets and in the market's contract."""
        return sum(map(self.usdc, self.accounts)) + self.usdc(self.domains.market.contract)

    @property
    def due(self) -> int:
        """What the contract must hold: deposits of sessions that are open, and what was earned."""
        return sum(terms.deposit for terms in self.in_escrow.values()) + sum(map(self.earned, self.accounts))
