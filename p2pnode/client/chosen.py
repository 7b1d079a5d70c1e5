"""``p2pnode.Client``: asks through the gateway of its data dir where one runs, else over its own network.

This is the one place where that is chosen. Commands of the command line choose here, too.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from p2pnode.client import interface
from p2pnode.config import NodeConfig
from p2pnode.files import user_path
from p2pnode.ids import PeerId
from p2pnode.node.datadir import DataDir

if TYPE_CHECKING:
    from p2pnode.client import client as own_network
    from p2pnode.client.chat_options import ChatOptions, Estimate, Messages
    from p2pnode.client.failover import Held
    from p2pnode.client.ranking import Filters, Ranking
    from p2pnode.limits import Limits
    from p2pnode.node.node import Node
    from p2pnode.payments.journal.keys import Key
    from p2pnode.payments.payer import Payer
    from p2pnode.protocols.adverts.messages import Advert, Sheet

Event = Callable[[str, dict[str, object]], None]
ASKED_OF_GATEWAY: Final = (
    "chain", "hedge", "keep_hours", "mdns", "s5_url", "save", "spend_day_max", "spend_host_max",
    "spend_locked_max", "spend_session_max", "stores", "trust", "verified",
)  # fmt: skip
"""The settings by which a client asks and pays. The gateway must have those that were set on purpose."""
_OUTSIDE: Final = "use the client as `async with Client() as client`"


@asynccontextmanager
async def chosen_client(
    data_dir: Path,
    wanted: Mapping[str, Any],
    make: Callable[[], own_network.Client],
    *,
    on_event: Event,
    on_own: Callable[[tuple[str, ...]], None] = lambda _differs: None,
) -> AsyncIterator[interface.Client]:
    """A client that asks through the gateway of this data dir, or else the one that ``make`` makes.

    ``wanted`` has what was set on purpose: settings of ``NodeConfig``, and ``bootstrap``. Where a gateway
    runs that was started with others, ``on_own`` is called with their names.
    """
    running = DataDir(data_dir).running_gateway()
    if running is not None and running.socket:
        from p2pnode.client.proxy.proxy_client import ProxyClient, ask_gateway

        differs = await ask_gateway(running.socket, wanted)
        if differs == ():
            async with ProxyClient(running.socket, on_event=on_event) as proxy:
                yield proxy
            return
        if differs is not None:
            on_own(differs)
    async with make() as client:
        yield client


def wanted_form(name: str, value: Any) -> Any:
    """A setting in a form that is the same in each process: the path of a chain profile is made whole.

    Raises ``UsageError``.
    """
    return str(user_path(value)) if name == "chain" and value else value


def set_on_purpose(config: NodeConfig) -> dict[str, Any]:
    """The settings of a program's configuration that are not the defaults."""
    usual = NodeConfig(data_dir=config.data_dir)
    known = {field.name for field in fields(NodeConfig)} & set(ASKED_OF_GATEWAY)
    return {
        name: wanted_form(name, getattr(config, name))
        for name in known
        if getattr(config, name) != getattr(usual, name)
    }


class Client(interface.Client):
    """Finds hosts and asks them. Use it as an async context manager; one per program is enough.

    Where ``p2pnode gateway`` runs on the data dir, the gateway is asked to do so: with its connections,
    sessions and caches, and within its limits. Otherwise this client dials by itself; it listens on nothing,
    and speaks with a peer key that lives in memory only. ``node``, ``payer``, ``limits``, ``keep_s``,
    ``closes``, and ``discovery`` or ``remember`` switched off are for a network of its own.
    """

    def __init__(
        self,
        config: NodeConfig | None = None,
        *,
        bootstrap: Sequence[str] = (),
        data_dir: Path | None = None,
        discovery: bool = True,
        limits: Limits | None = None,
        node: Node | None = None,
        remember: bool = True,
        payer: Payer | None = None,
        keep_s: int | None = None,
        closes: bool = False,
        wait_s: float = 0.0,
        on_event: Event = lambda _name, _fields: None,
    ) -> None:
        self._config = config or (NodeConfig(data_dir=data_dir) if data_dir is not None else NodeConfig())
        self._bootstrap, self._on_event = tuple(bootstrap), on_event
        self._own: dict[str, Any] = {
            "discovery": discovery, "node": node, "remember": remember, "payer": payer, "keep_s": keep_s,
            "closes": closes, "wait_s": wait_s, **({} if limits is None else {"limits": limits}),
        }  # fmt: skip
        given = (limits, node, payer, keep_s)
        self._needs_own = closes or not (discovery and remember) or any(each is not None for each in given)
        self._stack: AsyncExitStack | None = None
        self._client: interface.Client | None = None

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            self._client = await stack.enter_async_context(self._chosen())
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stack, self._stack, self._client = self._stack, None, None
        if stack is not None:
            await stack.__aexit__(kind, error, trace)

    @asynccontextmanager
    async def _chosen(self) -> AsyncIterator[interface.Client]:
        def make() -> own_network.Client:
            from p2pnode.client.client import Client as OwnNetwork

            return OwnNetwork(self._config, bootstrap=self._bootstrap, on_event=self._on_event, **self._own)

        if self._needs_own:
            async with make() as own:
                yield own
            return
        wanted = {**set_on_purpose(self._config), "bootstrap": (*self._bootstrap, *self._config.bootstrap)}
        async with chosen_client(self._config.data_dir, wanted, make, on_event=self._on_event) as client:
            yield client

    @property
    def _asks(self) -> interface.Client:
        if self._client is None:
            raise RuntimeError(_OUTSIDE)
        return self._client

    @property
    def last_failures(self) -> Mapping[PeerId, str]:  # type: ignore[override]
        """Of the last :meth:`hosts`: hosts that were not reached, and why."""
        return self._asks.last_failures

    @property
    def alone(self) -> bool:  # type: ignore[override]
        """Whether the last :meth:`hosts` met no other node, and knew of none."""
        return self._asks.alone

    def answer(
        self, messages: Messages, options: ChatOptions, *, held: Held | None = None
    ) -> interface.Answer:
        return self._asks.answer(messages, options, held=held)

    def embed(
        self,
        texts: Sequence[str],
        *,
        model: str | None = None,
        peer: str | None = None,
        filters: Filters | None = None,
        budget: Key | None = None,
    ) -> interface.Embedding:
        return self._asks.embed(texts, model=model, peer=peer, filters=filters, budget=budget)

    async def estimate(self, messages: Messages, options: ChatOptions | None = None) -> list[Estimate]:
        return await self._asks.estimate(messages, options)

    async def count(self, messages: Messages, options: ChatOptions) -> tuple[int, bool]:
        return await self._asks.count(messages, options)

    async def new_conversation(
        self, options: ChatOptions | None = None, *, keep: bool = True
    ) -> interface.Conversation:
        return await self._asks.new_conversation(options, keep=keep)

    async def resume(self, sid: bytes, options: ChatOptions | None = None) -> interface.Conversation:
        return await self._asks.resume(sid, options)

    async def find_conversation(self, begins: str) -> interface.Found:
        return await self._asks.find_conversation(begins)

    async def hosts(self, model: str | None = None, filters: Filters | None = None) -> Ranking:
        return await self._asks.hosts(model, filters)

    async def sheets(self, adverts: Iterable[Advert]) -> dict[PeerId, Sheet]:
        return await self._asks.sheets(adverts)

    async def known_adverts(self) -> list[Advert]:
        return await self._asks.known_adverts()
