"""The asking side: takes no receipt that does not hold by itself or does not follow the ones before.

States::

    fresh --Start--> opening --Challenge--> paging --the last Page--> over
    any --violation, Refuse, silence, Closed--> over

A receipt that differs from one the client holds is well-formed here; the shell compares. It keeps the last
receipt only, however long the session was.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, TypeAlias, assert_never

from p2pnode.errors import WireCode
from p2pnode.ids import PeerId, SessionId
from p2pnode.protocols.checkpoint.commands import Fetched, FetchFailed, Shown, Start
from p2pnode.protocols.checkpoint.messages import (
    RECEIPTS_MAX,
    Challenge,
    Fetch,
    More,
    Page,
    Prove,
    Refuse,
    fetch_digest,
)
from p2pnode.protocols.crypto import Signer, recover_address
from p2pnode.protocols.effects import Effects
from p2pnode.protocols.events import (
    Closed,
    Command,
    Effect,
    Event,
    HalfClosed,
    Received,
    StreamRef,
    TimerFired,
)
from p2pnode.protocols.inference.messages import Receipt, SessionTerms, Voucher
from p2pnode.protocols.inference.receipts import receipt_holds
from p2pnode.protocols.typed_data import Domain, voucher_digest

State: TypeAlias = Literal["fresh", "opening", "paging", "over"]
ANSWER_S: Final = 10.0
"""For each answer of the host."""


class FetchClient:
    """One fetch of one session. ``sign`` is its voucher key; ``peer`` this client's id on the stream."""

    def __init__(
        self,
        *,
        host: PeerId,
        peer: PeerId,
        stream: StreamRef,
        market: Domain,
        session: SessionId,
        terms: SessionTerms,
        sign: Signer,
    ) -> None:
        self._host, self._peer = host, peer
        self._market, self._session, self._terms, self._sign = market, session, terms, sign
        self._effects = Effects(host, stream)
        self.state: State = "fresh"
        self._last: Receipt | None = None
        self._count = 0

    def handle(self, event: Event, now: float) -> Sequence[Effect]:
        """Messages are the host's, the command is ``Start``, the timer is answer."""
        if self.state != "over":
            match event:
                case Received(message=message):
                    self._received(message, now)
                case Command(value=Start()):
                    if self.state == "fresh":
                        self.state = "opening"
                        self._say(Fetch(session=self._session), now)
                case Command():
                    pass
                case TimerFired(key=key):
                    if self._effects.fired(key):
                        self._failed(None, "the host did not answer")
                case HalfClosed():
                    self._failed(None, "the connection to the host was lost (closed)")
                case Closed(code=code):
                    why = "" if code == "lost" else f" ({code or 'closed'})"
                    self._failed(None, f"the connection to the host was lost{why}")
                case _:
                    assert_never(event)
        return self._effects.take()

    def _received(self, message: object, now: float) -> None:
        match message:
            case Refuse(code=code, detail=detail) if self.state != "fresh":
                self._failed(code, detail)
            case Challenge(nonce=nonce) if self.state == "opening":
                self.state = "paging"
                digest = fetch_digest(nonce, self._session, self._host, self._peer)
                self._say(Prove(proof=self._sign(digest)), now)
            case Page() if self.state == "paging":
                self._page(message, now)
            case _:
                self._fault(f"{type(message).__name__} is out of place while {self.state}")

    def _page(self, page: Page, now: float) -> None:
        for receipt in page.receipts:
            if (wrong := self._wrong(receipt)) != "":
                self._fault(wrong)
                return
            self._last = receipt
        self._count += len(page.receipts)
        if self._count > RECEIPTS_MAX:
            self._fault(f"more than {RECEIPTS_MAX} receipts of one session")
        elif not page.last and (not page.receipts or self._last is None):
            self._fault("a page without receipts that is not the last")
        elif page.voucher is not None and not self._is_ours(page.voucher):
            self._fault("a voucher that we did not sign")
        else:
            if page.receipts:
                self._effects.emit(Shown(page.receipts))
            if page.last or self._last is None:
                self._over()
                self._effects.emit(Fetched(page.voucher))
            else:
                self._say(More(epoch=self._last.epoch, seq=self._last.checkpoint.seq), now)

    def _wrong(self, receipt: Receipt) -> str:
        """What is wrong with a receipt after the last one, or ""."""
        shown, last = receipt.checkpoint, self._last
        if not receipt_holds(self._session, receipt, self._terms.receipt_key):
            return "a receipt that its receipt key did not sign"
        if last is None:
            return ""
        if (receipt.epoch, shown.seq) <= (last.epoch, last.checkpoint.seq):
            return "receipts out of order"
        if receipt.epoch == last.epoch and (
            shown.seq != last.checkpoint.seq + 1 or receipt.previous != last.checkpoint.root
        ):
            return "a receipt that does not follow the one before"
        return ""

    def _is_ours(self, voucher: Voucher) -> bool:
        digest = voucher_digest(self._market, self._session, voucher)
        return recover_address(digest, voucher.signature) == self._terms.voucher_key

    def _say(self, message: object, now: float) -> None:
        self._effects.send(message)
        self._effects.set_timer("answer", now + ANSWER_S)

    def _fault(self, detail: str) -> None:
        self._failed(None, f"the host broke the protocol: {detail}", fault=True)

    def _failed(self, code: WireCode | None, detail: str, *, fault: bool = False) -> None:
        self._over()
        self._effects.emit(FetchFailed(code, detail, fault))

    def _over(self) -> None:
        self.state = "over"
        self._effects.cancel_timers()
