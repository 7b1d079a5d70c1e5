"""Sessions that hosts keep for this user: found before a new one is opened, and left instead of closed.

A paid one stands in the journal, a free one in a small file, and both may have been left by another command.
``KeptSessions`` finds and takes them; what becomes of one that is in use its ``Lease`` notes. Knows nothing
of streams: ``session.py`` drives them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Final

import structlog

from p2pnode.client.free_sessions import FreeSession, FreeSessions
from p2pnode.client.ranking import Candidate, is_priced
from p2pnode.client.runtime import Runtime
from p2pnode.errors import P2PNodeError, RefusedError, UnreachableError
from p2pnode.files import off_the_loop
from p2pnode.ids import ModelId, PeerId, SessionId
from p2pnode.protocols.crypto import keccak256, key_address, sign_digest, verify_peer
from p2pnode.protocols.inference.channel import ChannelSender, ResumeKey
from p2pnode.protocols.inference.client_turn import HeldSession, held_left
from p2pnode.protocols.inference.commands import Ask
from p2pnode.protocols.inference.messages import Accept, Left

if TYPE_CHECKING:
    from p2pnode.payments.payer import Purchase, Reserved

log = structlog.get_logger()
FREE_DIALLED: Final = 3
"""Of the hosts with which free sessions were left, so many are dialled before a search finds others."""
_SALT_TAG: Final = b"p2pnode/salt/1"


@dataclass(frozen=True, slots=True)
class FreeKey:
    """What proves a resume of a free session."""

    secret: bytes

    @property
    def resume_key(self) -> ResumeKey:
        """The key, as the machine uses it."""
        secret = self.secret
        return ResumeKey(key_address(secret), lambda digest: sign_digest(secret, digest))

    @property
    def salt(self) -> bytes:
        """The salt of the session's receipt chain."""
        return keccak256(_SALT_TAG + self.secret)


@dataclass(frozen=True, slots=True)
class Lease:
    """One session, as this user has it for now. ``resume`` is there where it was left before."""

    host: PeerId
    model: ModelId
    purchase: Purchase | None
    """There for a paid session."""
    key: FreeKey
    """Of a free one."""
    keep_s: int
    """For how long it is to be kept when it is left; 0 for not at all."""
    store: FreeSessions
    wall: Callable[[], float]
    in_thread: bool
    addresses_of: Callable[[PeerId], Sequence[str]]
    resume: HeldSession | None = None

    @property
    def salt(self) -> bytes:
        """The salt of the receipt chain."""
        return self.purchase.salt if self.purchase is not None else self.key.salt

    @property
    def resume_key(self) -> ResumeKey | None:
        """What proves a resume of a free session."""
        return self.key.resume_key if self.purchase is None and self.keep_s else None

    @property
    def billed(self) -> tuple[int, int, int]:
        """What stands on earlier bills, as it was left: token units, and billed tokens in and out."""
        if self.purchase is None or self.resume is None:
            return 0, 0, 0
        voucher = self.resume.channel.last_voucher
        if voucher is None:
            return self.purchase.payment.terms.session_fee, 0, 0
        return voucher.amount, voucher.tokens_in, voucher.tokens_out

    async def accepted(self, accept: Accept) -> None:
        """The host accepted it, or gave it to us. Durable when it returns, where it is paid."""
        if self.purchase is not None:
            await self.purchase.accepted(accept)

    async def reserve(self, ask: Ask, window: int) -> Reserved | None:
        """What a turn may add to what is spent, held against all other turns of this user; None where it is
        free. ``window`` output tokens may be on their way unpaid.

        Raises ``SpendingLimitError`` and ``BudgetError`` where it could not even begin, and ``StorageError``.
        """
        return None if self.purchase is None else await self.purchase.reserve(ask, window)

    async def release(self, ask: Ask, reserved: Reserved | None, tokens_in: int, tokens_out: int) -> None:
        """A turn is over that :meth:`reserve` allowed, and was billed these tokens; others are under way."""
        if self.purchase is not None and reserved is not None:
            await self.purchase.release(ask, reserved, tokens_in, tokens_out)

    async def rest(self) -> None:
        """No turn is under way: nothing is reserved."""
        if self.purchase is not None:
            await self.purchase.release_all()

    async def left(self, accept: Accept, left: Left) -> None:
        """Its host keeps it, or says by a time that is past that it settles it now."""
        if left.until <= self.wall():
            await self.over(heard=True)
        elif self.purchase is not None:
            await self.purchase.leave(left.until, left.generation, left.settle_above)
        else:
            await self._put(accept, left.until)

    async def lost(self, accept: Accept) -> None:
        """Its stream was lost: a host that keeps it leaves it by itself."""
        if not accept.keep_s:
            await self.over()
        elif self.purchase is not None:
            await self.purchase.lose(accept.keep_s, accept.generation)
        else:
            await self._put(accept, int(self.wall()) + accept.keep_s)

    async def over(self, *, heard: bool = False) -> None:
        """Nothing more is signed in it. ``heard``: the host has every voucher."""
        if self.purchase is not None:
            await self.purchase.over(heard=heard)

    async def _put(self, accept: Accept, until: int) -> None:
        left = FreeSession(
            session=accept.session,
            host=self.host,
            model=self.model,
            secret=self.key.secret,
            until=until,
            generation=accept.generation,
            addresses=tuple(self.addresses_of(self.host)),
        )
        await off_the_loop(partial(self.store.put, left, int(self.wall())), in_thread=self.in_thread)

    async def not_resumed(self, error: P2PNodeError) -> bool:
        """It was left and could not be resumed. Returns whether its host does not have it any more.

        One that another machine uses is left alone, and one whose host is away or busy stays left.
        """
        gone = isinstance(error, RefusedError) and error.code in ("bad_request", "payment_required")
        if self.resume is None:
            return False
        if self.purchase is not None:
            if gone:
                await self.purchase.over()
            elif isinstance(error, RefusedError) and error.code == "in_use":
                await self.purchase.used_elsewhere()
            else:
                await self.purchase.give_back()
        elif isinstance(error, UnreachableError):
            accept = self.resume.accept
            await self._put(accept, int(self.wall()) + self.keep_s)
        return gone


class KeptSessions:
    """Of one client. ``keep_s`` is for how long sessions are to be kept that this client leaves."""

    def __init__(self, runtime: Runtime, *, in_thread: bool, keep_s: int, remember: bool) -> None:
        # What is in memory only needs no thread, for which a mock clock would not wait.
        self._runtime, self._in_thread, self.keep_s = runtime, in_thread and remember, keep_s
        self._free = FreeSessions(runtime.data.free_sessions if remember else None)

    def has(self, peer: PeerId, model: ModelId) -> bool:
        """Whether a session with this host was left, so that no fee is due."""
        payer = self._runtime.payer
        if payer is not None and payer.left(peer, model):
            return True
        return self._free.has(peer, model, self._runtime.now())

    def hosts(self, model: ModelId) -> Mapping[PeerId, Sequence[str]]:
        """Hosts with which sessions of a model were left, and where they were then: all of those that were
        paid, and of free ones the last few, which may still have their caches."""
        payer = self._runtime.payer
        paid = payer.left_hosts(model) if payer is not None else {}
        free = self._free.hosts(model, self._runtime.now())
        return {**dict(islice(free.items(), FREE_DIALLED)), **paid}

    async def take(self, candidate: Candidate, ask: Ask) -> Lease | None:
        """A session with this host that was left and can pay for a turn; None where there is none.

        Raises ``LocalError``.
        """
        peer, model, runtime = candidate.advert.peer, candidate.offer.model, self._runtime
        if is_priced(candidate.offer):
            purchase = None
            if runtime.payer is not None:
                purchase = await runtime.payer.take_left(
                    runtime.tasks,
                    candidate.advert,
                    candidate.offer,
                    tokens_in=ask.input_max,
                    tokens_out=ask.body.tokens_out_max,
                )
            if purchase is None or purchase.left is None:
                return None
            left = purchase.left
            held = held_left(
                ChannelSender(purchase.payment),
                purchase.session,
                model=model,
                salt=purchase.salt,
                receipt=left.receipt,
                voucher=left.voucher,
                generation=left.generation,
            )
            return self._lease(peer, model, purchase, FreeKey(b""), held)
        found = await off_the_loop(
            partial(self._free.take, peer, model, runtime.now()), in_thread=self._in_thread
        )
        if found is None:
            return None
        return self._lease(peer, model, None, FreeKey(found.secret), _held_free(found))

    def new(self, peer: PeerId, model: ModelId, purchase: Purchase | None) -> Lease:
        """For a session that is opened now."""
        return self._lease(peer, model, purchase, FreeKey(self._runtime.node.draw(32)), None)

    def _lease(
        self,
        peer: PeerId,
        model: ModelId,
        purchase: Purchase | None,
        key: FreeKey,
        held: HeldSession | None,
    ) -> Lease:
        return Lease(
            peer,
            model,
            purchase,
            key,
            self.keep_s,
            self._free,
            self._runtime.node.wall,
            self._in_thread,
            self._runtime.node.network.addresses_of,
            held,
        )


def _held_free(found: FreeSession) -> HeldSession:
    key = FreeKey(found.secret)
    channel = ChannelSender(None, verify=partial(verify_peer, found.host), resume_key=key.resume_key)
    return held_left(
        channel,
        SessionId(found.session),
        model=found.model,
        salt=key.salt,
        receipt=None,
        voucher=None,
        generation=found.generation,
    )
