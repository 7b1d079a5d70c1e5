"""What gas costs a host: it may not eat what sessions earn, and settlements must always be payable.

``gas_budget.py`` decides; here the chain is asked, and what opens cost in the last 24 hours is added up.
Without a price of ether nothing is compared with USDC, which ``doctor`` says. Knows nothing of streams.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from p2pnode.chain.ledger import Ledger, Open, RevertedError, UnseenError
from p2pnode.errors import ChainError
from p2pnode.payments.gas_budget import DAY_S, OPEN_GAS, GasBudget, settlements_left
from p2pnode.payments.journal.records import HostedSession
from p2pnode.payments.settlement_policy import deadline, worth

log = structlog.get_logger()
SETTLEMENTS_WARN: Final = 20
_OPENS_MAX: Final = 10_000


@dataclass(slots=True)
class _Spent:
    """Gas of one open."""

    at: float
    wei: int


class HostGas:
    """One per host. Every method may raise ``ChainError``."""

    def __init__(self, ledger: Ledger, budget: GasBudget, wall: Callable[[], float]) -> None:
        self._ledger, self._budget, self._wall = ledger, budget, wall
        self._opens: deque[_Spent] = deque(maxlen=_OPENS_MAX)
        self._low = False

    async def why_not_open(self, fee: int, unsettled: int) -> str:
        """Why no session of this fee is opened now; "" where it may.

        ``unsettled`` sessions are to be settled already.
        """
        head = await self._ledger.head()
        ether = (await self._ledger.balances(self._ledger.account or bytes(20))).ether
        left = settlements_left(ether, head.gas_price_wei)
        low = left is not None and left < max(SETTLEMENTS_WARN, 2 * unsettled)
        if low and not self._low:
            log.warning("gas.low", settlements_left=left, unsettled=unsettled, ether_wei=ether)
        self._low = low
        # Ether for the unsettled ones, for this one, and for its open.
        if left is not None and left < unsettled + 2:
            return "this host lacks the ether to settle more sessions"
        return self._budget.why_not_open(
            fee=fee, gas_price_wei=head.gas_price_wei, spent_day_wei=self._spent_day()
        )

    async def open(self, call: Open) -> None:
        """Bring a deposit to the chain for no more gas than its fee covers. Raises as ``Ledger.transact``.

        An open that the contract refuses costs gas all the same, and a payer can bring that about: it counts
        for the day. So does one whose end is not known.
        """
        fee, price = call.terms.session_fee, (await self._ledger.head()).gas_price_wei
        spent = _Spent(self._wall(), OPEN_GAS * price)
        self._opens.append(spent)
        most = self._budget.wei(fee) if self._budget.known and fee > 0 else None
        try:
            outcome = await self._ledger.transact(call, fee_max_wei=most)
        except RevertedError as error:
            spent.wei = error.gas_used * price
            raise
        except ChainError as error:
            if not isinstance(error, UnseenError):
                spent.wei = 0  # nothing was sent
            raise
        spent.wei = outcome.fee_wei or 0

    async def settle_max_wei(self, records: Sequence[HostedSession]) -> int | None:
        """The most that settling these may cost together, by what each is worth and how long it can wait.

        None for any.
        """
        if not self._budget.known:
            return None
        total = 0
        for record in records:
            until = deadline(record, await self._ledger.session(record.session))
            total += self._budget.settle_max_wei(
                fee=record.terms.session_fee, worth=worth(record), left_s=until - self._wall()
            )
        return total

    def open_again_max_wei(self, record: HostedSession) -> int | None:
        """The most that opening a session again may cost, which was served and is not on the chain any more.

        It can wait only until its authorisation ends, and without it nothing is paid. None for any.
        """
        if not self._budget.known:
            return None
        left_s = record.valid_before - self._wall()
        return self._budget.settle_max_wei(fee=record.terms.session_fee, worth=worth(record), left_s=left_s)

    def _spent_day(self) -> int:
        since = self._wall() - DAY_S
        return sum(each.wei for each in self._opens if each.at > since)
