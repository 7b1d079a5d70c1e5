"""Where a process dies: named points around what it writes down, what it sends to the chain and to its peer.

``before-journal.host_paid-3`` is: as the third ``Journal.host_paid`` begins; ``inside``: in its transaction,
just before the commit; ``after``: durable, and nothing that follows from it done. Of a chain's call
(``chain.Close``): before anything is sent; when a node has the bytes and nobody saw a receipt; mined. Of a
message (``send.Tokens``): before the write it is in, and after it; of one that a peer sent (``hear.Tokens``):
after it was read, and before anything is made of it. Real code runs up to the point, and then
nothing does: SIGKILL.
"""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal, Never, Self, get_args

from p2pnode.chain.evm.ledger import EvmLedger
from p2pnode.chain.evm.node import EvmNode
from p2pnode.node.driver import MessageChannel
from p2pnode.payments.journal import payee as journal_host
from p2pnode.payments.journal import payer as journal_client
from p2pnode.payments.journal.journal import Journal

When = Literal["before", "inside", "after"]
Area = Literal["journal", "chain", "send", "hear"]
_INSIDE: dict[str, tuple[Any, str]] = {
    "host_relaying": (journal_host, "relaying"),
    "host_open": (journal_host, "opened"),
    "host_issuing": (journal_host, "issued"),
    "host_paid": (journal_host, "paid"),
    "host_over": (journal_host, "over"),
    "host_settled": (journal_host, "settled"),
    "bought": (journal_client, "buy"),
    "bought_open": (journal_client, "opened"),
    "signed": (journal_client, "signed"),
    "bought_over": (journal_client, "over"),
}
"""What a method of the journal runs in the transaction of its writer."""


@dataclass(frozen=True, slots=True)
class Point:
    """The ``nth`` passing of one."""

    when: When
    area: Area
    name: str
    nth: int = 1

    def __str__(self) -> str:
        return f"{self.when}-{self.area}.{self.name}-{self.nth}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """What ``str`` gave."""
        when, rest, nth = text.split("-")
        area, _, name = rest.partition(".")
        assert when in get_args(When)
        assert area in get_args(Area)
        return cls(when, area, name, int(nth))  # type: ignore[arg-type]


class Trap:
    """Kills this process at one point. Made before anything runs."""

    def __init__(self, point: Point) -> None:
        self._point, self._left = point, point.nth
        self._calling = ""
        match point.area:
            case "journal" if point.when == "inside":
                module, name = _INSIDE[point.name]
                setattr(module, name, self._in_transaction(getattr(module, name)))
            case "journal":
                setattr(Journal, point.name, self._around(getattr(Journal, point.name), lambda _args: True))
            case "chain":
                self._set_on_chain()
            case "hear":
                receive = MessageChannel.receive

                async def hearing(channel: MessageChannel) -> Any:
                    message = await receive(channel)
                    if type(message).__name__ == point.name:
                        self._pass()
                    return message

                take_with = MessageChannel.take_with

                def offering(channel: MessageChannel, has_room: Any, take: Callable[[Any], None]) -> None:
                    def taking(message: Any) -> None:
                        if type(message).__name__ == point.name:
                            self._pass()
                        take(message)

                    take_with(channel, has_room, taking)

                MessageChannel.receive = hearing  # type: ignore[method-assign,assignment]
                MessageChannel.take_with = offering  # type: ignore[method-assign,assignment]
            case "send":
                queue_now = MessageChannel.queue_now

                def queueing(channel: MessageChannel, messages: Any) -> bool:
                    # What is queued is written later, nobody knows when: these wait for their write.
                    return not self._sends((channel, messages)) and queue_now(channel, messages)

                MessageChannel.queue_now = queueing  # type: ignore[method-assign,assignment]
                send = self._around(MessageChannel.send, self._sends)
                MessageChannel.send = send  # type: ignore[method-assign]

    def _set_on_chain(self) -> None:
        def is_call(args: tuple[Any, ...]) -> bool:
            self._calling = type(args[1]).__name__  # one at a time in these tests
            return self._calling == self._point.name

        def is_sending(_args: tuple[Any, ...]) -> bool:
            return self._calling == self._point.name

        if self._point.when == "inside":
            send = self._around(EvmNode.send, is_sending, when="after")
            EvmNode.send = send  # type: ignore[method-assign]
            transact = self._around(EvmLedger.transact, is_call, when="inside")
        else:
            transact = self._around(EvmLedger.transact, is_call)
        EvmLedger.transact = transact  # type: ignore[method-assign]

    def _sends(self, args: tuple[Any, ...]) -> bool:
        return any(type(message).__name__ == self._point.name for message in args[1])

    def _around(
        self,
        method: Callable[..., Awaitable[Any]],
        matches: Callable[[tuple[Any, ...]], bool],
        when: When | None = None,
    ) -> Any:
        at = when or self._point.when

        @functools.wraps(method)
        async def wrapped(*args: Any, **kwargs: Any) -> Any:
            here = matches(args)
            if here and at == "before":
                self._pass()
            result = await method(*args, **kwargs)
            if here and at == "after":
                self._pass()
            return result

        return wrapped

    def _in_transaction(self, operation: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(operation)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            done = operation(*args, **kwargs)
            self._pass()
            return done

        return wrapped

    def _pass(self) -> None:
        self._left -= 1
        if self._left == 0:
            die()


def die() -> Never:
    """At once: no handler, no flush, no goodbye."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError  # unreachable


def points(area: Area, name: str, *whens: When, nth: tuple[int, ...] = (1,)) -> list[Point]:
    """Several of one name."""
    return [Point(when, area, name, count) for count in nth for when in whens]
