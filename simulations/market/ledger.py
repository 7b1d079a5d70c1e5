"""The chain of a simulated market: the contracts' rules, in blocks. All of them are ``MemoryChain``'s.

A call is carried out in the first block after it has reached the chain; whoever sent it hears then what came
of it. It also keeps a book of its own, from the events alone, of what is in escrow: the invariants compare
both. Not modelled: reorganisations, gas and its price.
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
    LedgerEvent,
    RevertedError,
    SessionClosed,
    SessionOpened,
)
from p2pnode.chain.memory.ledger import MemoryChain
from p2pnode.errors import ChainError
from p2pnode.ids import SessionId
from p2pnode.protocols.inference.messages import SessionTerms
from p2pnode.protocols.typed_data import Domain, market_domain
from p2pnode.simulations.event_loop import EventLoop
from p2pnode.simulations.keys import Keys
from p2pnode.simulations.parameters import require_positive

EPOCH_S: Final = 1_700_000_000
"""What the clocks show at the start: seconds since 1970."""
_CHAIN_ID: Final = 31_337
Answer: TypeAlias = Callable[[list[LedgerEvent] | ChainError], None]
Seen: TypeAlias = Callable[[LedgerEvent], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """A chain's parameters. ``request_s`` is what a call takes to reach it."""

    block_s: float = 2.0
    request_s: float = 0.2

    def __post_init__(self) -> None:
        require_positive(self, "block_s", "request_s")


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

    def usdc(self, account: bytes) -> int:
        """What an account has in its wallet."""
        return self.rules.account(account).usdc

    def earned(self, account: bytes) -> int:
        """What an account has earned and not taken out."""
        return self.rules.account(account).earned

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

    def send(self, sender: bytes, call: Call, then: Answer) -> None:
        """Send a call. ``then`` gets the events of its block, or why it was refused."""
        block_s = self._chain.block_s
        reached = self._loop.now + self._chain.request_s
        self._loop.at(math.ceil(reached / block_s) * block_s, self._mine, sender, call, then)

    def _mine(self, sender: bytes, call: Call, then: Answer) -> None:
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
        then(list(outcome.events))

    @property
    def total(self) -> int:
        """All the money there is: in wallets and in the market's contract."""
        return sum(map(self.usdc, self.accounts)) + self.usdc(self.domains.market.contract)

    @property
    def due(self) -> int:
        """What the contract must hold: deposits of sessions that are open, and what was earned."""
        return sum(terms.deposit for terms in self.in_escrow.values()) + sum(map(self.earned, self.accounts))
