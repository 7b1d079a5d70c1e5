"""What to do when a host's part of an answer is over, or crawls: done, on with somebody, or the end. Pure.

It decides by what is held, by what failed and by how often; it opens, pays and dials nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal, TypeAlias, TypeVar

from p2pnode.client.ranking import Ranking
from p2pnode.errors import (
    WIRE_CODES,
    HostFault,
    LocalError,
    NoHostError,
    P2PNodeError,
    RefusedError,
    UnreachableError,
    UsageError,
)
from p2pnode.ids import PeerId
from p2pnode.protocols.inference.commands import TurnFailed
from p2pnode.protocols.inference.messages import PREFIX_MAX, FinishReason, PromptBody

Move: TypeAlias = Literal["finish", "again", "next", "stop"]
"""``again``: the same host, in its session where that lives. ``next``: the next host by rank. ``stop``:
nobody can go on, or nobody should: the user is told why."""

_FINAL: Final = frozenset({"bad_request"})
"""What every host would answer the same way. One alone may lie: it takes two of them to end an answer."""
_WITNESSES: Final = 2
_SHARE: Final = 0.1
"""Of the median speed."""
HONEST: Final[frozenset[str]] = WIRE_CODES - {"internal", "stalled"} - _FINAL
"""A host that says one of these did not fail: it is busy, or the question is not for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where an answer stands when a part of it is over."""

    held: int = 0
    """Output tokens."""
    continuable: bool = True
    """May more come, and can a prompt hold what is here?"""
    room: int = 1
    """Output tokens that may still come."""
    parts_left: int = 1
    """More turns that this answer may take, with whomever."""
    cancelled: bool = False
    """By the user."""
    progressed: bool = False
    """Did this part bring anything?"""
    fruitless: int = 0
    """Parts with this host, one after another up to this one, that brought nothing, or too little."""
    refusals: int = 0
    """Hosts, up to this one, that called the question itself wrong."""
    kept: bool = False
    """Was its session one from before?"""
    lost: bool = False
    """Did the connection break, and the session with it?"""
    restarted: bool = False
    """Whether the host restarted in the middle of the turn: then it is there, and the session goes on."""
    slept: bool = False
    """Whether this machine slept meanwhile: then the host is as good as before."""
    paid: bool = False
    """Was the session paid? Then it was tried to resume it, and another one would cost another fee."""


def after_turn(reason: FinishReason, standing: Standing) -> Move:
    """The host ended the turn in order. Unasked it is ``cancelled`` only where a stream was lost."""
    if reason != "cancelled" or standing.cancelled or (standing.held and not standing.room):
        return "finish"
    if not standing.continuable or not standing.parts_left:
        return "stop"
    return "again" if standing.fruitless <= 1 else "next"


def after_failure(error: P2PNodeError, standing: Standing) -> Move:
    """The turn, the session, the host or this side failed."""
    if standing.cancelled or (standing.held and not standing.room):
        return "finish"
    code = error.code if isinstance(error, RefusedError) else None
    if is_final(error, standing.refusals) or not standing.continuable or not standing.parts_left:
        return "stop"
    # A session kept from before may have died of age, a free one with its connection: the host may live.
    aged = standing.kept and not standing.progressed and code not in HONEST
    broke = standing.lost and standing.progressed and not standing.paid
    ours = standing.slept and code not in HONEST
    return "again" if (aged or broke or standing.restarted or ours) and standing.fruitless <= 1 else "next"


def least_pace(usual: Iterable[float], *, floor: float, ceiling: float) -> float:
    """Tokens a second below which a host is left for another: a tenth of what hosts gave this client.

    At least ``floor``; and at most ``ceiling``, for what a person reads along with is not slow, however fast
    others are.
    """
    known = sorted(usual)
    return min(ceiling, max(floor, known[len(known) // 2] * _SHARE if known else floor))


def calls_it_wrong(error: P2PNodeError) -> bool:
    """Is it the question, by the host's word?"""
    return isinstance(error, RefusedError) and error.code in _FINAL


def is_final(error: P2PNodeError, refusals: int) -> bool:
    """Would it be the same with any other host? ``refusals``: so many called the question wrong."""
    return isinstance(error, LocalError) or (calls_it_wrong(error) and refusals >= _WITNESSES)


# What is held of an answer, and what is still to be asked for. Pure: it knows no host and no session.
#
# Text may lag ids, and whoever sent the ids may be gone before their text came: ``told`` counts those whose
# text is here. What a user has seen can't be taken back, so it stays whatever is learnt of its sender later.


@dataclass(frozen=True, slots=True)
class Held:
    """What is kept of an answer to go on from. ``text`` is that of the first ``told`` of its ``ids``."""

    ids: tuple[int, ...]
    text: str
    told: int


@dataclass(slots=True)
class Partial:
    """A part of the answer to ``body``, which has no prefix. ``text`` is that of the first ``told`` ids."""

    body: PromptBody
    ids: list[int] = field(default_factory=list)
    text: str = ""
    told: int = 0
    receipted: int = 0
    """Ids that a host's receipt covers; those of hosts that are gone count as they were left."""

    @classmethod
    def of(cls, body: PromptBody, held: Held | None) -> Partial:
        """With what came before."""
        if held is None:
            return cls(body)
        return cls(body, list(held.ids), held.text, min(held.told, len(held.ids)))

    @property
    def held(self) -> Held:
        """To go on from."""
        return Held(tuple(self.ids), self.text, self.told)

    def take(self, ids: Sequence[int], text: str) -> None:
        """More came. A text tells every id so far."""
        self.ids.extend(ids)
        self.text += text
        if text:
            self.told = len(self.ids)

    def receipt(self) -> None:
        """The host's receipt over everything so far was checked."""
        self.receipted = len(self.ids)

    def distrust(self) -> int:
        """The host broke the protocol: drop what nobody saw and no receipt covers; returns how many ids.

        A receipt proves who sent an id, not that a model made it, so text without one is worth no less:
        it stays, unpaid.
        """
        sure = max(self.told, self.receipted)
        dropped = len(self.ids) - sure
        del self.ids[sure:]
        return dropped

    @property
    def room(self) -> int:
        """Output tokens that may still come."""
        return max(0, self.body.sampling.tokens_max - len(self.ids))

    @property
    def continuable(self) -> bool:
        """Can a prompt hold what is here, and ask for more?"""
        return self.room > 0 and len(self.ids) <= PREFIX_MAX

    def rest(self) -> PromptBody:
        """What to ask the next host for."""
        if not self.ids:
            return self.body
        return replace(
            self.body,
            sampling=replace(self.body.sampling, tokens_max=self.room),
            prefix=tuple(self.ids),
            told=self.told if self.told < len(self.ids) else None,
        )


# How an answer that can't go on says so: the reason, what is kept, and how to go on. Pure.


_SHOWN = 4
E = TypeVar("E", bound=P2PNodeError)


def nobody(ranking: Ranking, failures: Mapping[PeerId, str]) -> NoHostError:
    """No host was found, or none that may be used."""
    reasons = [f"{c.advert.peer}: {c.excluded}" for c in ranking.excluded]
    reasons += [reason if peer in reason else f"{peer}: {reason}" for peer, reason in failures.items()]
    tried = "; ".join(reasons[:_SHOWN]) if reasons else "nobody answered"
    return NoHostError(
        f"no host for this model was found ({tried}). Start one with `p2pnode join`, name a first peer "
        "with --bootstrap, or see `p2pnode hosts --why`"
    )


def nobody_left(last: P2PNodeError | None, ranking: Ranking) -> NoHostError:
    """A part of the answer is here, and no other host can go on."""
    why = f"the last one failed ({last})" if last is not None else "none was found"
    out = "; ".join(f"{c.advert.peer}: {c.excluded}" for c in ranking.excluded[:_SHOWN])
    error = NoHostError(f"no host is left to go on with this answer: {why}{f'; {out}' if out else ''}")
    error.__cause__ = last
    return error


def overflow(error: RefusedError) -> RefusedError:
    """The same error, with what helps: asking the same again doesn't."""
    helps = (
        "Asking again can't help: start a new conversation (in a chat /new), ask for less, or choose a host "
        "with a larger context (`p2pnode hosts --why` shows them)"
    )
    error.args = (f"{error}. {helps}", *error.args[1:])
    return error


def too_long(last: P2PNodeError) -> NoHostError:
    """A part of the answer is here, and no prompt can hold it, or it has failed too often."""
    error = NoHostError(f"this answer can't be handed to another host any more: {last}")
    error.__cause__ = last
    return error


def cut_short(error: E, held: int) -> E:
    """The same error, with what is kept and how to go on."""
    kept = f"The {held} tokens that came are kept: a chat goes on from them with /go, a program with go_on()"
    error.args = (f"{error}. {kept}", *error.args[1:])
    return error


def turn_error(failed: TurnFailed) -> P2PNodeError:
    """What a turn that failed is to whoever asked."""
    if failed.code is not None:
        said = failed.cause != "foreseen"
        return RefusedError(failed.code, failed.detail, retry_after_s=failed.retry_after_s, said=said)
    return UsageError(failed.detail) if failed.cause == "invalid" else UnreachableError(failed.detail)


def reason_of(error: P2PNodeError, *, lost: bool) -> str:
    """Why a part ended, in a word for the bill."""
    if isinstance(error, RefusedError):
        return error.code
    if isinstance(error, HostFault):
        return "fault"
    if isinstance(error, LocalError):
        return "unpaid"
    return "lost" if lost else "stalled"
