"""``ProxyClient``: asks through the gateway of its data dir, with that one's connections, sessions, budget.

It imports no network: a command that finds a gateway starts in a fraction of the time.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

import trio

from p2pnode.client import interface
from p2pnode.client.chat_options import ChatOptions, Estimate, Messages
from p2pnode.client.failover import Held
from p2pnode.client.proxy.owner_channel import VERSION, OwnerChannel, error_of
from p2pnode.client.proxy.proxy_answer import Event, ProxyAnswer, ProxyEmbedding
from p2pnode.client.proxy.proxy_conversation import ProxyConversation
from p2pnode.client.ranking import Filters, Ranking
from p2pnode.errors import ConfigError, LocalError
from p2pnode.ids import PeerId
from p2pnode.private_socket import connect_private
from p2pnode.protocols.adverts.messages import Advert, Sheet

if TYPE_CHECKING:
    from p2pnode.payments.journal.keys import Key

_HELLO_S: Final = 3.0
"""For a gateway to say that it will ask: one that doesn't is not waited for."""
_GONE: Final = "the gateway that runs here is gone: ask again, and a network of our own is used"


async def ask_gateway(path: str, wanted: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Which of the wanted settings the gateway at this socket doesn't have; None where it can't be asked.

    ``wanted`` has fields of ``NodeConfig``, and ``bootstrap``.
    """
    with trio.move_on_after(_HELLO_S):
        try:
            channel = OwnerChannel(await connect_private(path))
        except OSError:
            return None
        try:
            await channel.send({"do": "hello", "version": VERSION, "wanted": dict(wanted)})
            told = await channel.receive()
        except (trio.BrokenResourceError, ConfigError):
            return None
        finally:
            await channel.aclose()
        if told is not None and "differs" in told:
            return tuple(map(str, told["differs"]))
        return () if told is not None and "ok" in told else None
    return None


class ProxyClient(interface.Client):
    """Over the socket at ``path``. Each piece of work has a connection of its own."""

    def __init__(self, path: str, *, on_event: Event = lambda _name, _fields: None) -> None:
        self._path, self._on_event = path, on_event
        self._conversations: list[ProxyConversation] = []
        self.last_failures: Mapping[PeerId, str] = {}
        self.alone = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        for conversation in self._conversations:
            await conversation.leave()

    # ---- asking

    def answer(self, messages: Messages, options: ChatOptions, *, held: Held | None = None) -> ProxyAnswer:
        # The rest of an answer, and the ids of its calls, follow from the seed that it began with.
        options = _for_gateway(replace(options, seed=options.seed or secrets.token_bytes(16)))
        said = messages if isinstance(messages, str) else tuple(messages)
        request = {"do": "answer", "messages": said, "options": options, "held": held}

        def rest(held: Held) -> ProxyAnswer:
            return self.answer(messages, options, held=held)

        return ProxyAnswer(lambda: self._begin(request), held, on_event=self._on_event, rest=rest)

    def embed(
        self,
        texts: Sequence[str],
        *,
        model: str | None = None,
        peer: str | None = None,
        filters: Filters | None = None,
        budget: Key | None = None,
    ) -> ProxyEmbedding:
        options = _for_gateway(ChatOptions(model=model, peer=peer, filters=filters, budget=budget))
        request = {"do": "embed", "texts": tuple(texts), "options": options}
        return ProxyEmbedding(lambda: self._begin(request), on_event=self._on_event)

    async def estimate(self, messages: Messages, options: ChatOptions | None = None) -> list[Estimate]:
        said = messages if isinstance(messages, str) else tuple(messages)
        return list(await self._call("estimate", said, _for_gateway(options or ChatOptions())))

    async def count(self, messages: Messages, options: ChatOptions) -> tuple[int, bool]:
        said = messages if isinstance(messages, str) else tuple(messages)
        count, is_exact = await self._call("count", said, _for_gateway(options))
        return int(count), bool(is_exact)

    # ---- conversations

    async def new_conversation(
        self, options: ChatOptions | None = None, *, keep: bool = True
    ) -> ProxyConversation:
        return await self._conversation(None, options, keep=keep)

    async def resume(self, sid: bytes, options: ChatOptions | None = None) -> ProxyConversation:
        return await self._conversation(sid, options, keep=True)

    async def _conversation(
        self, sid: bytes | None, options: ChatOptions | None, *, keep: bool
    ) -> ProxyConversation:
        options = _for_gateway(options or ChatOptions())
        request = {"do": "conversation", "sid": sid, "options": options, "keep": keep}
        channel = await self._connect()
        try:
            made = await ProxyConversation.begin(channel, request, on_event=self._on_event)
        except BaseException:
            await channel.aclose()
            raise
        self._conversations.append(made)
        return made

    async def find_conversation(self, begins: str) -> interface.Found:
        found: interface.Found = await self._call("find_conversation", begins)
        return found

    # ---- hosts

    async def hosts(self, model: str | None = None, filters: Filters | None = None) -> Ranking:
        ranking, failures, alone = await self._call("hosts", model, filters)
        self.last_failures, self.alone = failures, bool(alone)
        found: Ranking = ranking
        return found

    async def sheets(self, adverts: Iterable[Advert]) -> dict[PeerId, Sheet]:
        return dict(await self._call("sheets", tuple(adverts)))

    async def known_adverts(self) -> list[Advert]:
        return list(await self._call("known_adverts"))

    # ---- the socket

    async def _connect(self) -> OwnerChannel:
        try:
            return OwnerChannel(await connect_private(self._path))
        except OSError as error:
            raise LocalError(_GONE) from error

    async def _begin(self, request: dict[str, Any]) -> OwnerChannel:
        channel = await self._connect()
        try:
            await channel.send(request)
        except trio.BrokenResourceError as error:
            raise LocalError(_GONE) from error
        except BaseException:
            await channel.aclose()
            raise
        return channel

    async def _call(self, method: str, *arguments: Any) -> Any:
        """What a method of the gateway's client gives. Raises what it raises."""
        channel = await self._begin({"do": "call", "method": method, "arguments": arguments})
        try:
            while (message := await channel.receive()) is not None:
                if "event" in message:
                    self._on_event(str(message["event"]), dict(message["fields"]))
                elif "error" in message:
                    raise error_of(message["error"])
                else:
                    return message["value"]
            raise LocalError(_GONE)
        finally:
            await channel.aclose()


def _for_gateway(options: ChatOptions) -> ChatOptions:
    """Options that can be sent. Raises ``ConfigError`` for a key: the gateway takes none here."""
    if options.budget is not None:
        msg = "keys with budgets are for programs that ask the gateway over HTTP: leave the budget out"
        raise ConfigError(msg)
    return options
