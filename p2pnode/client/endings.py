"""How an answer that can't go on says so: the reason, what is kept, and how to go on. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from p2pnode.client.ranking import Ranking
from p2pnode.client.session import HostFault
from p2pnode.errors import (
    LocalError,
    NoHostError,
    P2PNodeError,
    RefusedError,
    UnreachableError,
    UsageError,
)
from p2pnode.ids import PeerId
from p2pnode.protocols.inference.commands import TurnFailed

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
