"""The serving side: proves first that the asker holds the voucher key, then gives page after page.

States::

    opening --Fetch--> proving --Prove--> reading --Found--> open --More--> reading ...
    any --violation, a timer, Closed, the last page--> over

One question at a time, one page in memory. It reads nothing itself: ``Look`` asks the shell.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Literal, TypeAlias, assert_never

from p2pnode.ids import PeerId, SessionId
from p2pnode.protocols.checkpoint.commands import Found, Look, Served, Unreadable
from p2pnode.protocols.checkpoint.messages import (
    PAGE_MAX,
    Challenge,
    Fetch,
    More,
    Page,
    Prove,
    Refuse,
    fetch_digest,
)
from p2pnode.protocols.crypto import recover_address
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
from p2pnode.protocols.inference.messages import SessionTerms

State: TypeAlias = Literal["opening", "proving", "reading", "open", "over"]
WAIT_S: Final = 10.0
"""For each message of the client."""


class FetchHost:
    """One stream of one client. ``find`` gives the terms of a session that was served here, or why not."""

    def __init__(
        self,
        *,
        host: PeerId,
        peer: PeerId,
        stream: StreamRef,
        find: Callable[[SessionId], SessionTerms | Refuse],
        draw: Callable[[int], bytes],
    ) -> None:
        self._host, self._peer = host, peer
        self._find, self._draw = find, draw
        self._effects = Effects(peer, stream)
        self.state: State = "opening"
        self._session = SessionId(b"")
        self._terms: SessionTerms | None = None
        self._nonce = b""
        self._half_closed = False
        """Whether the client says nothing more."""

    def start(self, now: float) -> Sequence[Effect]:
        """The stream is open; the client must speak first."""
        self._effects.set_timer("wait", now + WAIT_S)
        return self._effects.take()

    def handle(self, event: Event, now: float) -> Sequence[Effect]:
        """Messages are the client's, the commands ``Found`` and ``Unreadable``, the timer is wait."""
        if self.state != "over":
            match event:
                case Received(message=message):
                    self._received(message, now)
                case Command(value=value):
                    self._found(value, now)
                case TimerFired(key=key):
                    if self._effects.fired(key):
                        self._refuse(Refuse(code="stalled", detail="the next message did not come"))
                case HalfClosed():
                    self._half_closed = True
                    self._end_if_mute()
                case Closed(code=code):
                    self._over(code or "closed")
                case _:
                    assert_never(event)
        return self._effects.take()

    def _received(self, message: object, now: float) -> None:
        match message:
            case Fetch(session=session) if self.state == "opening":
                self._challenge(session, now)
            case Prove(proof=proof) if self.state == "proving":
                self._prove(proof)
            case More(epoch=epoch, seq=seq) if self.state == "open":
                self._look(epoch, seq)
            case _:
                detail = f"{type(message).__name__} is out of place while {self.state}"
                self._refuse(Refuse(code="bad_request", detail=detail), fault=True)

    def _challenge(self, session: SessionId, now: float) -> None:
        found = self._find(session)
        if isinstance(found, Refuse):
            self._refuse(found)
            return
        self._session, self._terms = session, found
        self._nonce = self._draw(32)
        self.state = "proving"
        self._effects.set_timer("wait", now + WAIT_S)
        self._effects.send(Challenge(nonce=self._nonce))

    def _prove(self, proof: bytes) -> None:
        digest = fetch_digest(self._nonce, self._session, self._host, self._peer)
        if self._terms is None or recover_address(digest, proof) != self._terms.voucher_key:
            detail = "this is not the voucher key's signature for this nonce, session and peers"
            self._refuse(Refuse(code="bad_request", detail=detail))
        else:
            self._look(0, 0)

    def _look(self, epoch: int, seq: int) -> None:
        self.state = "reading"
        self._effects.cancel_timer("wait")
        self._effects.emit(Look(self._session, epoch, seq, PAGE_MAX))

    def _found(self, found: object, now: float) -> None:
        if self.state != "reading":
            return
        if isinstance(found, Unreadable):
            self._refuse(unreadable())
            return
        if not isinstance(found, Found):  # a command of the other side
            return
        last = len(found.receipts) <= PAGE_MAX
        voucher = found.voucher if last else None
        self._effects.send(Page(receipts=found.receipts[:PAGE_MAX], last=last, voucher=voucher))
        if last:
            self._over("served")
        else:
            self.state = "open"
            self._effects.set_timer("wait", now + WAIT_S)
            self._end_if_mute()

    def _end_if_mute(self) -> None:
        """Wait for no message that can't come. A page that was asked for is still given."""
        if not self._half_closed or self.state == "reading":
            return
        if self.state == "opening":
            self._over("nothing was asked")
        else:
            detail = "your half of this stream is closed, and the next message can't come"
            self._refuse(Refuse(code="stalled", detail=detail))

    def _refuse(self, refusal: Refuse, *, fault: bool = False) -> None:
        self._effects.send(refusal)
        self._over(f"refused: {refusal.code}", fault=fault)

    def _over(self, reason: str, *, fault: bool = False) -> None:
        self.state = "over"
        self._effects.cancel_timers()
        self._effects.emit(Served(reason, fault))


def no_session() -> Refuse:
    """This host has served no such session."""
    return Refuse(code="bad_request", detail="no such session here")


def unreadable() -> Refuse:
    """Its journal can't be read now."""
    return Refuse(code="internal", detail="this host can't read its books now: ask again later")
