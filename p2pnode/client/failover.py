"""What to do when a host's part of an answer is over, or crawls: done, on with somebody, or the end. Pure.

It decides by what is held, by what failed and by how often; it opens, pays and dials nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from p2pnode.errors import WIRE_CODES, LocalError, P2PNodeError, RefusedError
from p2pnode.protocols.inference.messages import FinishReason

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
