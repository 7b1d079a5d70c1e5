"""The pair with money whose host can die and come back with its journal, which forgets what it may forget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from p2pnode.protocols.events import Closed, Effect, Emit, Received
from p2pnode.protocols.inference import messages as m
from p2pnode.protocols.inference.client import ClientSession
from p2pnode.protocols.inference.client_turn import held_from_journal
from p2pnode.protocols.inference.commands import Issued, SessionFailed, Start
from p2pnode.protocols.inference.host import HostSession
from p2pnode.protocols.inference.open_session import LapsedSession
from p2pnode.protocols.inference.prompts import TurnPlaces
from p2pnode.protocols.inference.receipts import receipt_holds
from p2pnode.protocols.inference.turn_memory import SessionMemory
from p2pnode.protocols.typed_data import session_id
from tests.protocols.inference.paid_pair import (
    CLIENT_ID,
    MARKET,
    RECEIPTS,
    TERMS,
    PaidPair,
    client_payment,
    resumed_client,
)
from tests.protocols.inference.pair import HOST, SALT, STREAM
from tests.protocols.support import MODEL


class Restarts(PaidPair):
    """Every receipt that was ever issued is remembered here: of one epoch and place there is one."""

    ever: dict[tuple[int, int], m.Receipt]
    journal: dict[tuple[int, int], m.Receipt]

    def host_did(self, effects: Sequence[Effect]) -> None:
        if not hasattr(self, "ever"):
            self.ever, self.journal = {}, {}
        for effect in effects:
            if isinstance(effect, Emit) and isinstance(effect.value, Issued):
                receipt = effect.value.receipt
                place = (receipt.epoch, receipt.checkpoint.seq)
                assert receipt_holds(session_id(MARKET, self.money), receipt, RECEIPTS.wallet)
                assert self.ever.setdefault(place, receipt) == receipt, "two receipts for one place"
                self.journal[place] = receipt
        super().host_did(effects)

    def die(self, *, forgets: int = 0) -> None:
        """SIGKILL of the host. Of the receipts that nobody paid for, the last ``forgets`` are not on disk."""
        self.to_host.clear()
        self.to_client.clear()
        self.counts.clear()
        self.relays.clear()
        paid = self.paid[-1].seq if self.paid else 0
        unpaid = [place for place in sorted(self.journal) if place[0] == self.epoch and place[1] > paid]
        for place in unpaid[len(unpaid) - forgets :] if forgets else []:
            del self.journal[place]
        self.live.clear()
        self.old_runs.clear()
        self.client_did(self.client.handle(Closed(HOST.peer, STREAM, "lost"), self.now))

    def lapsed(self) -> LapsedSession:
        """As the journal has it."""
        return LapsedSession(
            session=session_id(MARKET, self.money),
            model=MODEL,
            terms=self.money,
            salt=SALT,
            granted=self.granted,
            voucher=self.paid[-1] if self.paid else None,
            issued=lambda epoch, seq: self.journal.get((epoch, seq)),
            take=self.rebuilt_as,
        )

    def start_again(self) -> HostSession:
        """A new start of the host, and a stream to it."""
        self.epoch += 1
        self.rebuilt = None
        self.granted = replace(self.granted, memory=SessionMemory(), places=TurnPlaces())
        self.issued.clear()
        self.finished.clear()
        held = self.client.held
        self._base = held.receipt.checkpoint.seq if held is not None and held.receipt is not None else 0
        final = self.client.final_voucher
        self.sent_before = final.tokens_out if final is not None else 0
        self.sent_of.clear()
        self.host = self.new_host(kept=self.lapsed())
        self.host_did(self.host.start(self.now))
        return self.host

    def come_back(self, *, in_time: bool = True) -> None:
        """The client resumes on a new stream, up to where it has the session, or its acceptance was lost."""
        held = self.client.held
        assert held is not None
        assert isinstance(self.outcomes.pop(), SessionFailed)
        self.client = resumed_client(held)
        self.client_does(Start())
        while self.deliver_to_host() or (in_time and self.deliver_to_client()):
            pass

    def new_stream(self) -> None:
        """To the host that runs, which keeps the session."""
        assert self.host.session is not None
        self.finished.clear()
        self.host = self.new_host(kept=self.host.session)
        self.host_did(self.host.start(self.now))


def restarts(answer_tokens: int = 200, terms: m.SessionTerms = TERMS, reused: int = 5) -> Restarts:
    """Open."""
    pair = Restarts(terms, answer_tokens=answer_tokens, reused=reused)
    pair.open()
    return pair


def serving(heard: int = 0, answer_tokens: int = 200) -> Restarts:
    """A turn whose input is paid and of which the client has heard so many tokens, in frames of 8."""
    pair = restarts(answer_tokens)
    pair.serve(heard)
    return pair


def deliverer(receipt: m.Receipt | None, voucher: m.Voucher) -> ClientSession:
    """A new process of the client that knows its journal only."""
    held = held_from_journal(client_payment(), receipt, voucher)
    return resumed_client(held)


def hears(host: HostSession, message: object) -> Sequence[Effect]:
    """One message of the client."""
    return host.handle(Received(CLIENT_ID.peer, STREAM, message), 0.0)
