"""What the dashboard shows, gathered from the node, the client, the journal and the disk.

``NodeView`` acts: it asks, in the background or when somebody looks, and keeps each section for as long as it
is fresh. What is made of the answers is decided in ``p2pnode/views``, in ``history.py`` and ``traffic.py``.
A section that can't be had says why: ``{"error": …}``.
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Final, Protocol

import structlog
import trio

from p2pnode.client.client import Client
from p2pnode.client.ranking import Filters, Ranking
from p2pnode.config import NodeConfig
from p2pnode.errors import P2PNodeError
from p2pnode.files import off_the_loop
from p2pnode.gateway.app import RequestRecord
from p2pnode.gateway.dashboard.history import SAMPLE_S, History, sample_of
from p2pnode.gateway.dashboard.traffic import Traffic
from p2pnode.gateway.gateway import Gateway
from p2pnode.host.control import ask_running
from p2pnode.host.totals import read_totals
from p2pnode.ids import ModelId, PeerId
from p2pnode.log import recent_events
from p2pnode.models.catalogue import shown_name
from p2pnode.node.datadir import DataDir, RunningNode
from p2pnode.node.finder import FoundHost
from p2pnode.node.reachability import reachability
from p2pnode.payments.journal.journal import BoughtSession, HostedSession, Journal
from p2pnode.payments.keys import KeyBook
from p2pnode.protocols.adverts.messages import Advert
from p2pnode.views.earnings import earnings_fields, spending_fields
from p2pnode.views.hosts import host_fields
from p2pnode.views.idle import CHAIN_AWAY, HostState, idle_fields
from p2pnode.views.keys import key_fields
from p2pnode.views.market import hosts_table, models_table, offered, why_here
from p2pnode.views.sessions import session_fields, terms_fields
from p2pnode.views.status import host_money, paid_sessions, status_fields

_ASKED_S: Final = 2.0
_LOOK_S: Final = 10.0
"""Between two looks at the network while somebody watches."""
_ROWS_MAX: Final = 500
_LIVE_MAX: Final = 200
_EVENTS_KEPT: Final = 200
_EVENTS: Final = frozenset(
    {
        "host", "host.failed", "host.slow", "hedge", "failover", "stranger", "session.left", "session.gone",
        "session.elsewhere", "session.in_use", "engine.restarted", "answer.cut", "deposit.waiting",
    }
)  # fmt: skip
"""What is told of answers as they run: none of it has a word of what was said."""
log = structlog.get_logger()


class Checks(Protocol):
    """Examines this node, as ``p2pnode doctor`` does."""

    def __call__(self) -> AsyncIterator[Any]:
        """Findings, each as soon as it is known: see ``doctor/finding.py``."""


@dataclass(slots=True)
class _Section:
    gather: Callable[[], Awaitable[Any]]
    fresh_s: float
    at: float = -1e9
    value: Any = None
    lock: trio.Lock | None = None


class NodeView:
    """The sections of the dashboard over one gateway. ``run`` it while the gateway runs."""

    def __init__(self, client: Client, gateway: Gateway, *, checks: Checks | None = None) -> None:
        self._client, self._gateway, self._checks = client, gateway, checks
        self._data, self._config = client.runtime.data, client.runtime.config
        self._wall = client.node.wall
        self._adverts: list[Advert] = []
        self._looked_at = -1e9
        self._sampled_at = -1e9
        self._watched = trio.Event()
        self._history, self.traffic = History(), Traffic()
        self._events: deque[dict[str, Any]] = deque(maxlen=_EVENTS_KEPT)
        self._sections = {
            "node": _Section(self._node, 3.0),
            "market": _Section(self._market, 3.0),
            "money": _Section(self._money, 10.0),
            "sessions": _Section(self._sessions, 5.0),
            "requests": _Section(self._requests, 1.0),
            "network": _Section(self._network, 10.0),
            "storage": _Section(self._storage, 30.0),
            "log": _Section(self._log, 2.0),
        }

    @property
    def names(self) -> tuple[str, ...]:
        """The sections."""
        return tuple(self._sections)

    def observe(self, record: RequestRecord) -> None:
        """A request of the gateway ended."""
        self.traffic.note(record, self._wall())

    def last_failure(self, peer: str) -> str:
        """Why an answer left this host the last time; "" where that isn't known."""
        for each in reversed(self._events):
            if each["event"] in ("host.failed", "host.slow") and each.get("peer") == peer:
                return str(each.get("reason") or "it was too slow")
        return ""

    async def section(self, name: str) -> Any:
        """One section, not older than it may be. Raises ``KeyError`` where there is none of this name."""
        section = self._sections[name]
        section.lock = section.lock or trio.Lock()
        self._watched.set()
        async with section.lock:
            now = trio.current_time()
            if now >= section.at + section.fresh_s:
                try:
                    section.value = await section.gather()
                except P2PNodeError as error:
                    section.value = {"error": str(error)}
                section.at = trio.current_time()
            return section.value

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look at the network: every minute, and more often while somebody watches. Until cancelled."""
        runtime = self._client.runtime
        told = runtime.on_event

        def listen(event: str, fields: dict[str, object]) -> None:
            self._note_event(event, fields)
            told(event, fields)

        runtime.on_event = listen
        guard = self._client.node.network.guard
        task_status.started()
        try:
            while True:
                await guard.run(self._look)
                self._watched = trio.Event()
                await trio.sleep(_LOOK_S)
                with trio.move_on_after(SAMPLE_S - _LOOK_S):
                    await self._watched.wait()
        finally:
            runtime.on_event = told

    def _note_event(self, event: str, fields: Mapping[str, object]) -> None:
        if event in _EVENTS:
            said = {name: _plain(value) for name, value in fields.items()}
            self._events.append({**said, "event": event, "at": self._wall()})

    async def _look(self) -> None:
        try:
            self._adverts = await self._client.known_adverts()
        except P2PNodeError as error:
            log.debug("dashboard.not_looked", reason=str(error))
        self._looked_at = trio.current_time()
        if self._looked_at >= self._sampled_at + SAMPLE_S - 1:
            self._sampled_at = self._looked_at
            names = {model: shown_name(model) for model in offered(self._adverts)}
            self._history.add(sample_of(self._adverts, self._wall(), names=names))

    # ---- the network

    def _rankings(self) -> dict[ModelId, Ranking]:
        """The hosts of each model as the client would ask them now: its own rules, nothing dialled."""
        filters = Filters(verified=self._config.verified)
        made = {}
        for model in offered(self._adverts):
            search = self._client.searches.new(model, filters)
            search.disable_lookup()
            for advert in self._adverts:
                if advert.serves(model):
                    search.found(FoundHost(advert, 0.0))
            made[model] = search.ranking()
        return made

    async def _market(self) -> dict[str, Any]:
        if self._looked_at < 0:
            await self._look()
        rankings = self._rankings()
        rows = hosts_table(rankings)
        return {
            "models": models_table(self._adverts, rankings),
            "hosts": rows[:_ROWS_MAX],
            "hosts_total": len({row["peer"] for row in rows}),
        }

    async def host(self, peer: str) -> dict[str, Any] | None:
        """One host with all that it says of itself; it is asked for its sheet. None where none is known."""
        advert = next((each for each in self._adverts if each.peer == peer), None)
        if advert is None:
            return None
        sheet = (await self._client.sheets([advert])).get(PeerId(peer))
        offers = []
        for model, ranking in self._rankings().items():
            for place, each in enumerate(ranking.chosen, 1):
                if each.advert.peer == peer:
                    why = why_here(each, place, ranking.chosen[0])
                    fields = host_fields(each, sheet)
                    offers.append({**fields, "place": place, "of": len(ranking.chosen), "why": why})
            offers += [
                {**host_fields(each, sheet), "place": None, "why": f"left out: {each.excluded}"}
                for each in ranking.excluded
                if each.advert.peer == peer and advert.serves(model)
            ]
        return {
            "peer": peer,
            "answers_now": sheet is not None,
            "issued_at": advert.issued_at,
            "expires_at": advert.expires_at,
            "draining": advert.draining,
            "offers": offers,
        }

    async def _network(self) -> dict[str, Any]:
        return {**self._history.fields(), "peers": len(self._client.node.network.connected_peers())}

    # ---- this node

    async def _node(self) -> dict[str, Any]:
        running = await off_the_loop(self._data.running_node)
        client, gateway = self._client, self._gateway.statistics()
        told: dict[str, Any] = {
            "data_dir": str(self._data.root),
            "peers": len(client.node.network.connected_peers()),
            "alone": not client.node.network.connected_peers() and not self._adverts,
            "pays": client.runtime.pays,
            "gateway": {"under_way": gateway.under_way, "conversations": gateway.conversations},
            "host": None,
        }
        if running is None:
            return told
        advert, sheet = None, None
        if running.peer_id != client.node.peer_id:
            advert = await client.advert_of(running.multiaddrs)
            sheet = (await client.sheets([advert] if advert is not None else [])).get(running.peer_id)
        served = await off_the_loop(partial(read_totals, self._data.totals))
        money = await off_the_loop(partial(host_money, self._config))
        host = status_fields(
            running, advert, sheet, served=served, ether_usd=self._config.ether_usd, money=money
        )
        found = reachability(running.reach, running.multiaddrs)
        known = client.searches.measured.get(running.peer_id)
        told_now = await _state_of(running)
        state = HostState.of(told_now)
        idle = idle_fields(
            running.peer_id,
            self._adverts,
            state,
            now=self._wall(),
            reach=running.reach,
            tokens_per_s=known.tokens_per_s if known is not None else None,
        )
        return {
            **told,
            "host": {
                **host,
                "reachable": asdict(found),
                "idle": idle,
                "recent": told_now.get("recent"),
                "chain_away": "" if state.chain_reachable else CHAIN_AWAY,
            },
        }

    # ---- money and sessions

    async def _money(self) -> dict[str, Any]:
        hosted, bought = await off_the_loop(partial(paid_sessions, self._config))
        now, config = int(self._wall()), self._config
        return {
            "earned": await trio.to_thread.run_sync(earnings_fields, hosted, now) if hosted else None,
            "spent": await trio.to_thread.run_sync(spending_fields, bought, now) if bought else None,
            "limits": {
                "session": config.spend_session_max,
                "day": config.spend_day_max,
                "host": config.spend_host_max,
            },
            "chain": client_chain(self._client),
            "keys": await off_the_loop(partial(keys_of, self._config)),
        }

    async def _sessions(self) -> dict[str, Any]:
        hosted, bought = await off_the_loop(partial(paid_sessions, self._config))
        every: list[BoughtSession | HostedSession] = [*bought, *hosted]
        live = [each for each in every if each.state in ("signed", "relaying", "open", "over")]
        live.sort(key=lambda each: -each.opened_at)
        return {
            "live": [
                {
                    **session_fields(each),
                    **terms_fields(each),
                    "model": shown_name(each.terms.model),
                    "opened_at": each.opened_at,
                    "left_until": each.left_until,
                }
                for each in live[:_LIVE_MAX]
            ],
            "total": len(live),
            "ended": len(hosted) + len(bought) - len(live),
        }

    async def _requests(self) -> dict[str, Any]:
        now = self._gateway.statistics()
        return {
            **self.traffic.fields(),
            "under_way": now.under_way,
            "events": list(self._events)[:-51:-1],
        }

    # ---- disk and logs

    async def _storage(self) -> dict[str, Any]:
        if not await off_the_loop(self._data.store.exists):
            return {"store": None}
        from p2pnode.storage.node_store import open_store

        async with open_store(self._config) as store:
            totals = await store.statistics()
        return {
            "store": {
                **asdict(totals),
                "bytes_max": self._config.store_bytes_max,
                "owner_bytes_max": self._config.store_owner_bytes_max,
            }
        }

    async def _log(self) -> dict[str, Any]:
        return {"lines": recent_events()}

    async def examine(self) -> AsyncIterator[dict[str, Any]]:
        """What `p2pnode doctor` finds here, check by check."""
        if self._checks is not None:
            async for finding in self._checks():
                yield asdict(finding)


async def _state_of(running: RunningNode) -> dict[str, Any]:
    """What the node that runs on this data dir says of itself; nothing where it doesn't answer."""
    told: dict[str, Any] = {}
    try:
        with trio.fail_after(_ASKED_S):
            await ask_running(running.control, {"do": "state"}, lambda _name, fields: told.update(fields))
    except (P2PNodeError, trio.TooSlowError) as error:
        log.debug("dashboard.state_not_known", reason=str(error))
    return told


def keys_of(config: NodeConfig) -> list[dict[str, Any]]:
    """The keys of this data dir that were not revoked. Blocks on the disk. Raises ``LocalError``."""
    path = DataDir(config.data_dir).journal
    if not path.exists():
        return []
    journal = Journal.open(path)
    try:
        book = KeyBook(journal, wall=time.time, draw=secrets.token_bytes)
        return [key_fields(book, each) for each in book.all() if each.revoked_at is None]
    finally:
        journal.close()


def client_chain(client: Client) -> str:
    """The name of the chain that this client pays on; "" for none."""
    if not client.runtime.pays:
        return ""
    from p2pnode.payments.books import profile_of_config

    profile = profile_of_config(client.runtime.config)
    return profile.shown_name if profile is not None else ""


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return value.hex()
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
