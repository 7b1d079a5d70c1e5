"""The invariants of a market: money is conserved, nobody pays twice or for nothing, nothing is forgotten.

Counted from outside, by what was delivered, signed, taken and mined: see ``invariants.py``.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final

from p2pnode.chain.ledger import LedgerEvent, SessionClosed, SessionOpened
from p2pnode.ids import SessionId
from p2pnode.payments.settlement_policy import LEFT_MAX
from p2pnode.protocols.adverts.messages import Advert
from p2pnode.protocols.adverts.signatures import CLOCK_SKEW_S
from p2pnode.protocols.inference.messages import Voucher
from p2pnode.protocols.typed_data import amount_due
from p2pnode.simulations.market.engines import answer_ids, answer_length, first_seed
from p2pnode.simulations.market.ledger import EPOCH_S, SimulatedChain

if TYPE_CHECKING:
    from p2pnode.simulations.invariants import Watch
    from p2pnode.simulations.market.adverts import NodeAdverts
    from p2pnode.simulations.market.question import Question
    from p2pnode.simulations.market.session import Bought, Session


_MONEY_EVERY_S: Final = 5.0
"""All accounts are added up at most so often, and at the end."""


class MarketWatch:
    """Of one market."""

    def __init__(self, watch: Watch, chain: SimulatedChain) -> None:
        self._watch, self._chain = watch, chain
        self._received: defaultdict[SessionId, int] = defaultdict(int)
        """Output tokens that arrived, by session."""
        self._asked: defaultdict[SessionId, int] = defaultdict(int)
        """Input that was asked for, before anything that a cache made free."""
        self._vouchers: dict[SessionId, Voucher] = {}
        self._money_at = 0.0
        self._fees: dict[SessionId, int] = {}
        self._taken: dict[SessionId, Voucher] = {}
        """The best voucher that each session's host took."""

    # ---- what is delivered and paid

    def delivered(self, session: Session, count: int) -> None:
        """So many output tokens arrived at a client."""
        if session.accept is not None:
            self._received[session.accept.session] += count

    def asked(self, session: Session, tokens_in: int) -> None:
        """A prompt of so many tokens is asked in a session."""
        if session.accept is not None:
            self._asked[session.accept.session] += tokens_in

    def answered(self, question: Question, ids: tuple[int, ...], *, honest: bool) -> bool:
        """Output of an answer arrived, from a host that is ``honest`` or not. Returns whether it is what the
        model says."""
        at = len(question.partial.ids)
        right = ids == answer_ids(first_seed(question.partial.body), at, len(ids))
        if honest:
            number = question.client.node.number
            if not right:
                self._watch.fail(f"answer of client {number} has a wrong token near place {at}")
            self._watch.checks += 1
        return right

    def whole(self, question: Question) -> None:
        """An answer is said to be whole: nothing that the model says is missing, whatever failed."""
        body, count = question.partial.body, len(question.partial.ids)
        most = min(answer_length(first_seed(body)), body.sampling.tokens_max)
        self._watch.require(
            count == most,
            f"an answer of client {question.client.node.number} ended as whole with {count} of {most} tokens",
        )

    def signed(self, bought: Bought, voucher: Voucher) -> None:
        """A client signed."""
        session, terms = bought.payment.session, bought.payment.terms
        received, asked = self._received[session], self._asked[session]
        name = session.hex()[:16]
        self._watch.require(
            voucher.tokens_out <= received,
            f"session {name}: {voucher.tokens_out} output tokens were paid and {received} delivered: "
            "a token is billed twice, or for nothing",
        )
        self._watch.require(
            voucher.tokens_in <= asked,
            f"session {name}: {voucher.tokens_in} input tokens were paid and {asked} asked for",
        )
        due = amount_due(terms, voucher.tokens_in, voucher.tokens_out)
        self._watch.require(
            voucher.amount == due, f"session {name}: a voucher of {voucher.amount} for what costs {due}"
        )
        self._watch.require(
            voucher.amount <= terms.deposit,
            f"session {name}: a voucher of {voucher.amount} above the deposit of {terms.deposit}",
        )
        self._vouchers[session] = voucher

    def taken(self, session: SessionId, voucher: Voucher) -> None:
        """A host took a voucher: from now on it has been paid so much."""
        before = self._taken.get(session)
        if before is None or voucher.amount > before.amount:
            self._taken[session] = voucher

    def unpaid(self, session: SessionId, tokens: int, window: int) -> None:
        """A host gave up a session that owes it so many output tokens: a window at most."""
        name = session.hex()[:16]
        self._watch.require(
            tokens <= window, f"session {name}: {tokens} tokens are unpaid, and its window is {window}"
        )

    def fault(self, who: str, what: str) -> None:
        """Somebody honest is said to have broken the protocol."""
        self._watch.fail(f"{who}, which is honest, is said to have broken the protocol: {what}")

    # ---- the chain

    def mined(self, event: LedgerEvent) -> None:
        """Something happened on the chain."""
        if isinstance(event, SessionOpened):
            self._fees[event.session] = event.terms.session_fee
        if isinstance(event, SessionClosed):
            self._closed(event)
        if self._watch.now >= self._money_at:
            self._money_at = self._watch.now + _MONEY_EVERY_S
            self.money()

    def money(self) -> None:
        """No money came from nowhere, and the contract holds what it owes."""
        chain = self._chain
        total, held, due = chain.total, chain.usdc(chain.domains.market.contract), chain.due
        self._watch.require(
            total == chain.minted, f"money is not conserved: {chain.minted} were made and {total} are there"
        )
        self._watch.require(held == due, f"the market's contract holds {held} and owes {due}")

    def _closed(self, event: SessionClosed) -> None:
        session, name = event.session, event.session.hex()[:16]
        signed, taken = self._vouchers.get(session), self._taken.get(session)
        most = max(signed.amount if signed is not None else 0, self._fees[session])
        self._watch.require(
            event.amount <= most,
            f"session {name} was settled at {event.amount}; its client signed for {most} at most",
        )
        least = taken.amount if taken is not None else 0
        self._watch.require(
            event.amount >= least,
            f"session {name} was settled at {event.amount}; its host was paid {least}: a voucher is lost",
        )

    # ---- adverts

    def believed(self, node: int, before: Advert | None, advert: Advert) -> None:
        """A node's book holds an advert, in place of the one that it held ``before``."""
        watch, name = self._watch, advert.peer[-8:]
        over_s = EPOCH_S + watch.now - advert.expires_at
        # Not by ``require``: this is asked for each advert that a book takes.
        if over_s > CLOCK_SKEW_S:
            watch.fail(f"node {node} believed an advert of {name} that was over for {over_s:.0f} s")
        if before is not None and _rank(advert) < _rank(before):
            watch.fail(f"node {node} believed an advert of {name} that is older than the one it held")
        watch.checks += 2

    def left(self, node: int, count: int) -> None:
        """So many sessions are left with a host."""
        self._watch.require(
            count <= LEFT_MAX, f"{count} sessions are left with node {node}; its bound is {LEFT_MAX}"
        )

    def gas(self, node: int, wei: int, most: int) -> None:
        """A host's settlement cost so much gas, and could cost ``most``."""
        self._watch.require(wei <= most, f"a settlement of node {node} cost {wei} wei; it may cost {most}")

    def book(self, adverts: NodeAdverts, node: int) -> None:
        """A node's book is within its bound."""
        self._watch.require(
            len(adverts.book) <= adverts.book_max,
            f"the book of node {node} holds {len(adverts.book)} adverts; its bound is {adverts.book_max}",
        )

    # ---- the end

    def settled(self, bought: Bought, amount: int, *, delivered: bool) -> None:
        """A session is over for good: what was paid is what its client signed last, to the unit."""
        name, fee = bought.payment.session.hex()[:16], bought.payment.terms.session_fee
        # A host that took the deposit and was gone before it could accept has its fee.
        least = bought.cost if bought.accepted else fee
        if delivered:
            self._watch.require(
                amount == least,
                f"session {name} was settled at {amount} and its client's last word was {least}",
            )

    def bill(self, client: int, billed: int, signed: int) -> None:
        """The bills of a client's answers are what it signed, to the unit."""
        self._watch.require(
            billed == signed, f"the bills of client {client} are {billed}, and it signed for {signed}"
        )


def _rank(advert: Advert) -> tuple[int, int]:
    return advert.binding.seq, advert.seq
