"""``Experiment``: a world with all that a scenario asks for, run from its start to its end.

It puts the parts together and starts them; it decides nothing of what they do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from p2pnode.simulations.churn import schedule_churn
from p2pnode.simulations.conversations import ConversationService
from p2pnode.simulations.dht import Lookups
from p2pnode.simulations.faults import schedule_faults
from p2pnode.simulations.gossip import Messages
from p2pnode.simulations.links import REGIONS
from p2pnode.simulations.market.market import MarketService
from p2pnode.simulations.recorder import Recorder
from p2pnode.simulations.scenario import Scenario
from p2pnode.simulations.topic import TopicService
from p2pnode.simulations.world import Node, World, connect_at_random

_DIAL_S: Final = 5.0
"""How long lookups wait at first: a node without contacts finds nothing."""


class Experiment:
    """One run of a scenario. ``seed`` and the scenario decide everything that happens in it."""

    def __init__(self, scenario: Scenario, seed: int, recorder: Recorder | None = None) -> None:
        self.scenario = scenario
        self.world = World(seed, links=scenario.links, nat=scenario.nat, cpu=scenario.cpu, recorder=recorder)
        self._presence = Presence(self.world)
        self.messages = Messages(self.world, scenario.gossip) if scenario.gossip is not None else None
        self.lookups = Lookups(self.world, scenario.dht) if scenario.dht is not None else None
        self.topic = (
            TopicService(self.world, scenario.topic, recorder) if scenario.topic is not None else None
        )
        self.market: MarketService | None = None
        if scenario.market is not None:
            self.market = MarketService(self.world, scenario.market, recorder=recorder)
            self.market.populate()
            nodes, hosts, clients = self.world.nodes, self.market.host_nodes, self.market.client_nodes
        else:
            nodes = [self.world.add() for _ in range(scenario.nodes)]
            hosts, clients = nodes, []
        if scenario.gossip is not None and self.messages is not None:
            connect_at_random(self.world, nodes, scenario.gossip.dials)
            self.messages.start(nodes, scenario.warmup_s, scenario.duration_s)
        if self.lookups is not None:
            self.lookups.start(nodes, max(_DIAL_S, scenario.warmup_s), scenario.duration_s)
        if self.topic is not None:
            connect_at_random(self.world, nodes, self.topic.parameters.dials)
            self.topic.begin(nodes, scenario.duration_s)
            hosts = [node for node in nodes if not self.topic.listens(node)]
        self.conversations: ConversationService | None = None
        if scenario.conversations is not None:
            self.conversations = ConversationService(self.world, scenario.conversations, recorder)
            writing = scenario.conversations.users(len(nodes))
            hosts = nodes[writing:]  # users neither churn nor fail: their machines are lost, or there
            self.conversations.begin(nodes[:writing], hosts, scenario.duration_s)
        if scenario.churn is not None:
            schedule_churn(
                self.world, scenario.churn, hosts=hosts, clients=clients, until_s=scenario.duration_s
            )
        strike = self.market.strike if self.market is not None else None
        schedule_faults(self.world, scenario.faults, hosts=hosts, clients=clients, strike=strike)

    def run(self, progress: Callable[[float], None] | None = None) -> None:
        """To the end of the scenario; ``progress`` hears the second of the world after each of them.

        In a market everybody then finishes and settles, and the accounts are checked. Raises
        ``InvariantError``.
        """
        self.world.run(self.scenario.duration_s, progress)
        if self.market is not None:
            self.market.wind_up()

    def finish(self) -> None:
        """Tell the recorder of each node, and of the mesh as it is now; also where a run was cut short."""
        recorder = self.world.recorder
        if recorder is None:
            return
        for node in self.world.nodes:
            recorder.row("nodes", **self._columns(node))
        if self.messages is not None:
            for peer, router in self.messages.service.routers.items():
                number = self.world.by_peer[peer].number
                others = (self.world.by_peer[each].number for each in router.mesh(self.messages.TOPIC))
                for other in sorted(each for each in others if each > number):
                    recorder.edge(number, other)

    def _columns(self, node: Node) -> dict[str, Any]:
        starts, joined_at_s, online_s = self._presence.of(node)
        columns: dict[str, Any] = {
            "node": node.number,
            "role": "node",
            "region": REGIONS[node.place.region],
            "nat": node.nat,
            "joined_at_s": joined_at_s,
            "online_s": online_s,
            "starts": starts,
            "bytes_sent": node.bytes_sent,
            "cpu_s": node.cpu.busy_s if node.cpu is not None else 0.0,
        }
        if self.messages is not None:
            counts = self.messages.service.counts(node)
            router = self.messages.service.routers.get(node.peer)
            columns |= {name: counts[f"sent.{name}"] for name in ("ihave", "iwant", "graft", "prune")}
            columns |= {name: counts[name] for name in ("published", "delivered", "duplicates")}
            columns |= {
                "messages_sent": counts["sent.messages"],
                "bytes_received": counts["bytes"],
                "mesh": router.held()["mesh"] if router is not None else 0,
            }
        for part in (self.market, self.topic, self.conversations):
            if part is not None:
                columns |= part.columns_of(node)
        return columns


class Presence:
    """When nodes come and go; a service of a world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._first: dict[int, float] = {}
        self._since: dict[int, float] = {}
        self._before: dict[int, float] = {}
        self._starts: dict[int, int] = {}
        world.services.append(self)

    def of(self, node: Node) -> tuple[int, float, float]:
        """How often a node started, when it did first, and for how many seconds it was up in all."""
        number, now = node.number, self._world.now
        up_s = self._before.get(number, 0.0)
        if number in self._since:
            up_s += now - self._since[number]
        return self._starts.get(number, 0), self._first.get(number, 0.0), up_s

    def started(self, node: Node) -> None:
        """Its time runs."""
        self._first.setdefault(node.number, self._world.now)
        self._since[node.number] = self._world.now
        self._starts[node.number] = self._starts.get(node.number, 0) + 1

    def stopped(self, node: Node) -> None:
        """Its time is over, for now."""
        up_s = self._world.now - self._since.pop(node.number)
        self._before[node.number] = self._before.get(node.number, 0.0) + up_s

    def connected(self, link: object) -> None:
        """It knows of nodes only."""

    def disconnected(self, link: object) -> None:
        """It knows of nodes only."""
