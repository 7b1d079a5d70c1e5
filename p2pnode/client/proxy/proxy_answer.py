"""``ProxyAnswer``: an answer that the gateway of this data dir has of its hosts, read here as it comes."""

from __future__ import annotations

from array import array
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, Final, TypeAlias

import trio

from p2pnode.client import interface
from p2pnode.client.bill import BillItem
from p2pnode.client.failover import Held, PartialAnswer
from p2pnode.client.proxy.owner_channel import AnswerState, OwnerChannel, error_fields, error_of
from p2pnode.errors import LocalError, P2PNodeError
from p2pnode.ids import PeerId, SessionId
from p2pnode.models.answer import Said
from p2pnode.protocols.adverts.messages import Offer
from p2pnode.protocols.inference.messages import PromptBody

CLOSE_S: Final = 5.0
"""For an answer that is stopped to be over at the gateway, whose host has less."""
Begin: TypeAlias = Callable[[], Awaitable[OwnerChannel]]
"""Asks for the answer. Raises ``LocalError`` where the gateway is gone."""
Event: TypeAlias = Callable[[str, dict[str, object]], None]


class ProxyAnswer(interface.Answer):
    """What comes over the channel that ``begin`` gives, which it does once somebody reads.

    ``rest`` makes the answer that goes on from a held one. ``shares_channel``: further answers come over it.
    """

    def __init__(
        self,
        begin: Begin,
        held: Held | None,
        *,
        on_event: Event,
        shares_channel: bool = False,
        rest: Callable[[Held], ProxyAnswer],
        on_message: Callable[[dict[str, Any]], None] = lambda _message: None,
    ) -> None:
        self._begin, self._on_event, self._rest = begin, on_event, rest
        self._shares_channel = shares_channel
        self._on_message = on_message
        self._partial = PartialAnswer.of(PromptBody(seed=bytes(16)), held)
        self._channel: OwnerChannel | None = None
        self._reader = trio.Lock()
        self._done = False
        self.logprobs = []
        self._take_state(AnswerState(next_seed=held.seed if held is not None else b""))

    def _take_state(self, state: AnswerState) -> None:
        self._state = state
        self.host, self.usage, self.checkpoints = state.host, state.usage, state.checkpoints
        self.trusted, self.left_out = state.trusted, state.left_out
        self._partial.seed = state.next_seed

    @property
    def is_over(self) -> bool:
        """Whether nothing more comes."""
        return self._done

    @property
    def text_checked(self) -> bool:
        return self._state.text_checked

    @property
    def session(self) -> SessionId | None:
        return self._state.session

    @property
    def wallet(self) -> bytes | None:
        return self._state.wallet

    @property
    def offer(self) -> Offer | None:
        return self._state.offer

    @property
    def standby(self) -> PeerId | None:
        return self._state.standby

    @property
    def bill(self) -> tuple[BillItem, ...]:
        return self._state.bill

    def rest(self) -> ProxyAnswer:
        return self._rest(self.held)

    # ---- reading

    async def next_said(self) -> Said:
        async with self._reader:
            if self._done:
                raise StopAsyncIteration
            if self._channel is None:
                try:
                    self._channel = await self._begin()
                except BaseException:
                    self._done = True
                    raise
            while True:
                said = await self._receive(self._channel)
                if said is not None:
                    return said
                if self._done:
                    raise StopAsyncIteration

    async def _receive(self, channel: OwnerChannel) -> Said | None:
        """Take the next message, and give the piece that it brings."""
        message = await channel.receive()
        if message is None:
            await self._over(channel)
            raise LocalError(self._lost_words())
        if "event" in message:
            self._on_event(str(message["event"]), dict(message["fields"]))
        elif "begun" in message:
            if message["held"] is not None:
                self._partial = PartialAnswer.of(self._partial.body, message["held"])
            self._partial.body = replace(self._partial.body, seed=message["begun"])
        elif "state" in message:
            self._take_state(message["state"])
        elif "said" in message:
            return self._take(message)
        elif "ended" in message:  # with ids whose text nobody saw
            self._take_tail(message)
        else:
            self._on_message(message)
            if "end" in message or "error" in message:
                await self._over(channel)
            if "error" in message:
                raise error_of(message["error"])
        return None

    async def _over(self, channel: OwnerChannel) -> None:
        self._done = True
        if not self._shares_channel:
            await channel.aclose()

    def _take(self, message: dict[str, Any]) -> Said:
        said: Said = message["said"]
        # A host that broke the protocol may have cost ids whose text nobody saw: those are told anew.
        del self._partial.ids[message["from"] :]
        self._partial.take(message["ids"], said)
        self.logprobs += message["logprobs"]
        return said

    def _take_tail(self, message: dict[str, Any]) -> None:
        self._partial.ids[message["from"] :] = message["ids"]
        self.logprobs += message["logprobs"]

    def _lost_words(self) -> str:
        came = len(self.ids)
        so_far = f" after {came} tokens, which are good and billed once" if came else ""
        return (
            f"the gateway that runs here ended in the middle of the answer{so_far}. Ask again: without a "
            "gateway a network of our own is used, and `p2pnode gateway` starts it again"
        )

    # ---- the end

    def __del__(self) -> None:
        """``break``, an error and Ctrl-C leave ``async for`` without telling the iterator."""
        # The attribute is missing where the constructor raised.
        channel = getattr(self, "_channel", None)
        if channel is not None and not (self._done or self._shares_channel):
            channel.drop()

    async def aclose(self) -> None:
        channel = self._channel
        if channel is None or self._done:
            self._done = True
            return
        # Shielded: a cancelled caller must free the host's slot too.
        with trio.move_on_after(CLOSE_S, shield=True):
            async with self._reader:
                try:
                    await channel.send({"do": "stop"})
                    while not self._done:
                        await self._receive(channel)
                except (P2PNodeError, trio.BrokenResourceError):
                    pass  # who stops an answer is not told how it would have failed
        if not self._done:
            self._done = True
            await channel.aclose()


class ProxyEmbedding(interface.Embedding):
    """The vectors of texts that the gateway of this data dir has of its hosts: see ``Embedding``."""

    def __init__(self, begin: Begin, *, on_event: Event) -> None:
        self._begin, self._on_event = begin, on_event
        self._channel: OwnerChannel | None = None
        self._given, self._is_over = 0, False
        self.vectors: list[array[float]] = []
        """Those that came so far."""
        self._bill: tuple[BillItem, ...] = ()

    @property
    def bill(self) -> tuple[BillItem, ...]:
        return self._bill

    async def __anext__(self) -> array[float]:
        while self._given == len(self.vectors):
            if self._is_over:
                raise StopAsyncIteration
            if self._channel is None:
                self._channel = await self._begin()
            message = await self._channel.receive()
            if message is None:
                message = {"error": error_fields(LocalError(self._lost_words())), "bill": self._bill}
            if "event" in message:
                self._on_event(str(message["event"]), dict(message["fields"]))
                continue
            self.vectors += [array("f", each) for each in message.get("vectors", ())]
            self._bill = message.get("bill", ())
            if "more" not in message:
                await self.aclose()
            if "error" in message:
                raise error_of(message["error"])
        self._given += 1
        return self.vectors[self._given - 1]

    async def aclose(self) -> None:
        self._is_over = True
        if self._channel is not None:
            await self._channel.aclose()

    def __del__(self) -> None:
        channel = getattr(self, "_channel", None)
        if channel is not None:
            channel.drop()

    def _lost_words(self) -> str:
        return f"the gateway that runs here ended after {len(self.vectors)} vectors: ask for the rest"
