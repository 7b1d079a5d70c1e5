"""``MarketRules``: what JobMarketplace and HostEarnings do, in Python. Pure and exact: no clock, no I/O.

The checks and their order are those of ``contracts/JobMarketplace.vy``, and so are the reasons; the known
attack stands there beside each check. A differential test compares the two. Each method is given the caller,
the time and the block. It either raises ``RevertedError``, or returns a function that carries the call out:
nothing has changed until that is called, so that a call is tried by not calling it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

from p2pnode.chain.ledger import (
    NO_REASON,
    ClaimSkipped,
    Close,
    CloseMany,
    CloseRequested,
    EscrowState,
    LedgerEvent,
    MarketCall,
    Open,
    Refund,
    Release,
    RequestClose,
    RevertedError,
    SessionClosed,
    SessionOpened,
    SubmitVoucher,
    Transfer,
    VoucherRecorded,
    Withdraw,
    Withdrawn,
)
from p2pnode.chain.memory.token_rules import SIGNATURE_MAX, SignatureCheck, TokenRules, require
from p2pnode.contract_rules import CHALLENGE_S, CLAIMS_MAX, DURATION_MAX_S, SESSION_FEE_MAX, treasury_share
from p2pnode.ids import SessionId
from p2pnode.protocols.crypto import Recover, recover_address
from p2pnode.protocols.inference.messages import SessionTerms, Voucher
from p2pnode.protocols.typed_data import (
    Domain,
    amount_due,
    close_request_digest,
    session_id,
    voucher_digest,
)

_VOUCHER_SIGNATURE_MAX: Final = 65


@dataclass(frozen=True, slots=True)
class Context:
    """What a rule needs to know of one transaction."""

    sender: bytes
    at: int
    block: int


Commit: TypeAlias = Callable[[], list[LedgerEvent]]
"""Does what was found allowed, and tells of it. Call it at once or never."""


class MarketRules:
    """``token`` is what everything is paid in; ``wallets`` are the accounts with code."""

    def __init__(
        self, domain: Domain, treasury: bytes, token: TokenRules, wallets: dict[bytes, SignatureCheck],
        usdc: bytes, *, recover: Recover = recover_address,
    ) -> None:  # fmt: skip
        self._recover = recover
        self._domain, self._treasury, self._token = domain, treasury, token
        self._wallets, self._usdc = wallets, usdc
        self._address = domain.contract
        self._sessions: dict[SessionId, EscrowState] = {}
        self.earned: defaultdict[bytes, int] = defaultdict(int)

    def session(self, session: SessionId) -> EscrowState:
        """The state of a session."""
        return self._sessions.get(session, EscrowState(status="none"))

    def decide(self, call: MarketCall, context: Context) -> Commit:
        """The effect of any call but those of other contracts. Raises ``RevertedError``."""
        match call:
            case Open():
                return self.open(call, context)
            case Close():
                return self.close(call, context)
            case CloseMany():
                return self.close_many(call, context)
            case Release():
                return self.release(call, context)
            case RequestClose():
                return self.request_close(call, context)
            case SubmitVoucher():
                return self.submit_voucher(call, context)
            case Refund():
                return self.refund(call, context)
            case Withdraw():
                return self.withdraw(call, context)
            case Transfer():
                return self.transfer(call, context)

    # ---- opening

    def open(self, call: Open, context: Context) -> Commit:
        """``open``."""
        terms = call.terms
        parties = (terms.payer, terms.host, terms.voucher_key, terms.receipt_key)
        require(len(call.authorisation) <= SIGNATURE_MAX, NO_REASON)
        require(
            all(any(party) and party != self._address for party in parties),
            "JobMarketplace: zero or self address",
        )
        require(terms.host not in (terms.payer, terms.voucher_key), "JobMarketplace: host pays itself")
        require(terms.session_fee <= SESSION_FEE_MAX, "JobMarketplace: session fee too high")
        require(terms.tip <= terms.session_fee, "JobMarketplace: tip above session fee")
        require(terms.deposit > 0, "JobMarketplace: no deposit")
        require(terms.session_fee <= terms.deposit, "JobMarketplace: deposit below fee")
        require(terms.expiry > context.at, "JobMarketplace: expired")
        require(terms.expiry <= context.at + DURATION_MAX_S, "JobMarketplace: expiry too far")
        session = session_id(self._domain, terms)
        require(session not in self._sessions, "JobMarketplace: exists")
        self._token.check_receive(
            terms.payer, self._address, terms.deposit, valid_before=call.valid_before, nonce=session,
            signature=call.authorisation, at=context.at,
        )  # fmt: skip
        opened = SessionOpened(
            session=session, payer=terms.payer, host=terms.host, terms=terms, block=context.block
        )

        def commit() -> list[LedgerEvent]:
            self._token.use(terms.payer, self._address, terms.deposit, session)
            self._sessions[session] = EscrowState(status="open")
            return [opened]

        return commit

    # ---- the host settles

    def close(self, call: Close, context: Context) -> Commit:
        """``close``."""
        _check_size(call.voucher)
        require(context.sender == call.terms.host, "JobMarketplace: not the host")
        session, state = self._open_session(call.terms)
        require(self._holds(session, call.terms, call.voucher), "JobMarketplace: bad voucher")
        owed = max(call.voucher.amount, state.recorded)
        return lambda: [self._settle(session, call.terms, owed, 0, context)]

    def close_many(self, call: CloseMany, context: Context) -> Commit:
        """``close_many``: what can't be paid is skipped."""
        require(len(call.claims) <= CLAIMS_MAX, NO_REASON)
        for claim in call.claims:
            _check_size(claim.voucher)
        return lambda: self._settle_many(call.claims, context)

    def _settle_many(self, claims: tuple[Close, ...], context: Context) -> list[LedgerEvent]:
        events: list[LedgerEvent] = []
        for claim in claims:
            session = session_id(self._domain, claim.terms)
            state = self.session(session)
            if (
                context.sender != claim.terms.host
                or state.status != "open"
                or not self._holds(session, claim.terms, claim.voucher)
            ):
                events.append(ClaimSkipped(session=session, block=context.block))
                continue
            amount = max(claim.voucher.amount, state.recorded)
            events.append(self._settle(session, claim.terms, amount, 0, context))
        return events

    def release(self, call: Release, context: Context) -> Commit:
        """``release``: the session fee only."""
        require(context.sender == call.terms.host, "JobMarketplace: not the host")
        session, state = self._open_session(call.terms)
        require(state.recorded <= call.terms.session_fee, "JobMarketplace: voucher on record")
        return lambda: [self._settle(session, call.terms, 0, 0, context)]

    # ---- the payer wants out

    def request_close(self, call: RequestClose, context: Context) -> Commit:
        """``request_close``."""
        terms, voucher = call.terms, call.voucher
        require(len(call.signature) <= SIGNATURE_MAX, NO_REASON)
        if voucher is not None:
            _check_size(voucher)
        session, state = self._open_session(terms)
        require(state.closing_at is None, "JobMarketplace: already closing")
        least = terms.session_fee
        if voucher is not None and voucher.signature:
            require(self._holds(session, terms, voucher), "JobMarketplace: bad voucher")
            least = max(least, voucher.amount)
        if context.sender not in (terms.payer, terms.voucher_key):
            digest = close_request_digest(self._domain, session, least)
            signers = (terms.voucher_key, terms.payer)
            require(
                any(self._signed_by(signer, digest, call.signature) for signer in signers),
                "JobMarketplace: not the payer",
            )
        closing_at = context.at + CHALLENGE_S
        asked = CloseRequested(
            session=session, payer=terms.payer, host=terms.host, closing_at=closing_at,
            recorded=max(state.recorded, least), block=context.block,
        )  # fmt: skip
        return lambda: self._record(asked, closing_at)

    def submit_voucher(self, call: SubmitVoucher, context: Context) -> Commit:
        """``submit_voucher``."""
        terms, voucher = call.terms, call.voucher
        _check_size(voucher)
        session, state = self._open_session(terms)
        require(voucher.amount > state.recorded, "JobMarketplace: stale voucher")
        require(self._holds(session, terms, voucher), "JobMarketplace: bad voucher")
        better = VoucherRecorded(
            session=session, payer=terms.payer, host=terms.host, recorded=voucher.amount,
            block=context.block,
        )  # fmt: skip
        return lambda: self._record(better, state.closing_at)

    def refund(self, call: Refund, context: Context) -> Commit:
        """``refund``."""
        terms = call.terms
        session, state = self._open_session(terms)
        asked = state.closing_at is not None and context.at >= state.closing_at
        require(asked or context.at >= terms.expiry + CHALLENGE_S, "JobMarketplace: too early")
        tip = 0 if context.sender in (terms.payer, terms.host) else terms.tip
        return lambda: [self._settle(session, terms, state.recorded, tip, context)]

    # ---- money out

    def withdraw(self, call: Withdraw, context: Context) -> Commit:
        """``withdraw``."""
        account, to, amount = context.sender, call.to, call.amount
        require(any(to) and to not in (self._address, self._usdc), "HostEarnings: bad recipient")
        require(amount > 0, "HostEarnings: bad amount")
        require(amount <= self.earned.get(account, 0), "HostEarnings: balance too low")
        self._token.check_transfer(self._address, to, amount)

        def commit() -> list[LedgerEvent]:
            self.earned[account] -= amount
            self._token.move(self._address, to, amount)
            return [Withdrawn(account=account, to=to, amount=amount, fee=0, block=context.block)]

        return commit

    def transfer(self, call: Transfer, context: Context) -> Commit:
        """The token's own ``transfer``: no event of the market's."""
        self._token.check_transfer(context.sender, call.to, call.amount)

        def commit() -> list[LedgerEvent]:
            self._token.move(context.sender, call.to, call.amount)
            return []

        return commit

    # ---- inside

    def _open_session(self, terms: SessionTerms) -> tuple[SessionId, EscrowState]:
        session = session_id(self._domain, terms)
        state = self.session(session)
        require(state.status == "open", "JobMarketplace: not open")
        return session, state

    def _record(self, event: CloseRequested | VoucherRecorded, closing_at: int | None) -> list[LedgerEvent]:
        state = EscrowState(status="open", closing_at=closing_at, recorded=event.recorded)
        self._sessions[event.session] = state
        return [event]

    def _holds(self, session: SessionId, terms: SessionTerms, voucher: Voucher) -> bool:
        if voucher.amount > min(amount_due(terms, voucher.tokens_in, voucher.tokens_out), terms.deposit):
            return False
        digest = voucher_digest(self._domain, session, voucher)
        return self._recover(digest, voucher.signature) == terms.voucher_key

    def _settle(
        self, session: SessionId, terms: SessionTerms, owed: int, tip: int, context: Context
    ) -> SessionClosed:
        amount = max(owed, terms.session_fee)
        self._sessions[session] = EscrowState(status="closed", recorded=amount)
        to_treasury = treasury_share(amount - terms.session_fee)
        refund = terms.deposit - amount
        pushed = self._push(terms.payer, refund)
        self._push(context.sender, tip)
        self.earned[terms.host] += amount - to_treasury - tip
        self.earned[self._treasury] += to_treasury
        return SessionClosed(
            session=session, payer=terms.payer, host=terms.host, amount=amount, to_treasury=to_treasury,
            refund=refund, tip=tip, pushed=pushed, block=context.block,
        )  # fmt: skip

    def _push(self, to: bytes, amount: int) -> bool:
        """Pay now if the token lets us, else owe it."""
        if amount == 0:
            return True
        try:
            self._token.transfer(self._address, to, amount)
        except RevertedError:
            self.earned[to] += amount
            return False
        return True

    def _signed_by(self, account: bytes, digest: bytes, signature: bytes) -> bool:
        if self._recover(digest, signature) == account:
            return True
        wallet = self._wallets.get(account)
        return wallet is not None and wallet(digest, signature)


def _check_size(voucher: Voucher) -> None:
    """Revert for a value that doesn't fit its type: the contract fails to decode it, and gives no reason."""
    require(len(voucher.signature) <= _VOUCHER_SIGNATURE_MAX, NO_REASON)
