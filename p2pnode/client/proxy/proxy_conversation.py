"""``ProxyConversation``: a conversation that the gateway of this data dir holds, keeps and asks for.

The gateway alone writes it down: it has the hosts' receipts and the vouchers, and money is to be recovered
with the conversation. Here is what it stands at, as the gateway tells after each answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import trio

from p2pnode.client import interface
from p2pnode.client.failover import Held
from p2pnode.client.proxy.owner_channel import ConversationState, OwnerChannel, error_of
from p2pnode.client.proxy.proxy_answer import Event, ProxyAnswer
from p2pnode.errors import ConfigError, LocalError
from p2pnode.protocols.inference.messages import ToolCall

if TYPE_CHECKING:
    from p2pnode.storage.conversations.records import Loss

LEAVE_S = 15.0
"""For the gateway to write down what was said, and send it to replicas, before the program ends."""
_GONE = (
    "the gateway that runs here ended: what was said is kept up to the last receipt, and `p2pnode sessions "
    "resume` goes on with it"
)


class ProxyConversation(interface.Conversation):
    """One conversation on a channel of its own. It gives one answer at a time."""

    def __init__(self, channel: OwnerChannel, *, on_event: Event) -> None:
        self._channel, self._on_event = channel, on_event
        self._state = ConversationState()
        self._lock = trio.Lock()
        self._last: ProxyAnswer | None = None
        """The answer that was read last."""
        self._gone = False

    @classmethod
    async def begin(cls, channel: OwnerChannel, request: dict[str, Any], *, on_event: Event) -> Self:
        """Begin it, or take one up again. Raises as ``Client.new_conversation`` and ``Client.resume``."""
        made = cls(channel, on_event=on_event)
        await made._ask(request)
        return made

    @property
    def sid(self) -> bytes | None:
        return self._state.sid

    @property
    def is_kept(self) -> bool:
        return self._state.is_kept

    @property
    def losses(self) -> Sequence[Loss]:
        return self._state.losses

    @property
    def has_question(self) -> bool:
        return self._state.has_question

    @property
    def cut_short(self) -> bool:
        return self._state.cut_short

    @property
    def unanswered(self) -> bool:
        return self._state.unanswered

    @property
    def calls(self) -> Sequence[ToolCall]:
        return self._state.calls

    # ---- asking

    def ask(self, question: str) -> ProxyAnswer:
        return self._answer({"do": "ask", "question": question})

    def give_results(self, results: Sequence[str]) -> ProxyAnswer:
        if not results or len(results) != len(self.calls):
            msg = f"{len(self.calls)} calls of tools wait for their results: give one for each"
            raise ConfigError(msg)
        return self._answer({"do": "give_results", "results": tuple(results)})

    def again(self) -> ProxyAnswer:
        if not self.has_question:
            msg = "nothing was asked yet: ask something first"
            raise ConfigError(msg)
        return self._answer({"do": "again"})

    def go_on(self) -> ProxyAnswer:
        if not self.cut_short:
            msg = "no answer was cut short: ask something"
            raise ConfigError(msg)
        return self._answer({"do": "go_on"})

    def _answer(self, request: dict[str, Any]) -> ProxyAnswer:
        self._state = replace(self._state, has_question=True, calls=())

        async def begin() -> OwnerChannel:
            if self._gone:
                raise LocalError(_GONE)
            if self._last is not None:
                await self._last.aclose()  # one that nobody read to its end: what comes of it is not ours
            self._last = made
            try:
                await self._channel.send(request)
            except trio.BrokenResourceError as error:
                raise self._lost() from error
            return self._channel

        def rest(_held: Held) -> ProxyAnswer:
            return self.go_on()

        made: ProxyAnswer = ProxyAnswer(
            begin, None, on_event=self._on_event, shares_channel=True, rest=rest, on_message=self._take
        )
        return made

    def _take(self, message: dict[str, Any]) -> None:
        if "conversation" in message:
            self._state = message["conversation"]

    # ---- keeping

    async def wait_written(self) -> None:
        with suppress(LocalError):  # the gateway is gone, and its disk has what it has
            await self._ask({"do": "wait_written"})

    async def leave(self) -> None:
        """Write down what was said; nothing more is asked. Does nothing where the gateway is gone."""
        with trio.move_on_after(LEAVE_S, shield=True):
            with suppress(LocalError):
                await self._ask({"do": "leave"})
        await self._channel.aclose()

    async def _ask(self, request: dict[str, Any]) -> None:
        """Send a request that is no question, and wait until it is done. Raises ``P2PNodeError``."""
        async with self._lock:
            if self._last is not None:
                await self._last.aclose()
            try:
                await self._channel.send(request)
            except trio.BrokenResourceError as error:
                raise self._lost() from error
            while (message := await self._channel.receive()) is not None:
                self._take(message)
                if "event" in message:
                    self._on_event(str(message["event"]), dict(message["fields"]))
                elif "error" in message:
                    raise error_of(message["error"])
                elif "ok" in message:
                    return
            raise self._lost()

    def _lost(self) -> LocalError:
        self._gone = True
        return LocalError(_GONE)
