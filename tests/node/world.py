"""Whole nodes in one memory net: the same ``Node`` and ``Host`` as in the field, under any clock.

Node ``i`` lives at ``10.0.0.i+1`` with a fixed key; everything random is seeded, so a run repeats.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

import trio

from p2pnode.client.client import Client
from p2pnode.config import NodeConfig
from p2pnode.host.host import Host
from p2pnode.host.model_pool import HostedModel, PoolLimits, Report
from p2pnode.host.prompt_filter import PromptFilter
from p2pnode.host.self_probe import SelfProbe
from p2pnode.limits import DEFAULT_LIMITS, Limits
from p2pnode.models.manifest import SCRIPTED, scripted_model_id
from p2pnode.models.scripted import ScriptedConfig, ScriptedEngine
from p2pnode.net.memory import MemoryNet
from p2pnode.net.swarm import OriginRule
from p2pnode.net.virtual_time import wall_clock
from p2pnode.node.identity import HostIdentity
from p2pnode.node.keys import PeerKey
from p2pnode.node.node import Node, NodeSetup
from p2pnode.protocols.adverts.signatures import BINDING_TTL_MAX_S, BindingTerms, bind
from p2pnode.protocols.crypto import keccak256, key_address, sign_digest
from p2pnode.shares import origin_of
from tests.net.memory_world import ip_of, seed_of


def identity_of(index: int, now: float) -> HostIdentity:
    """A host's identity without the two seconds a keystore takes."""
    key = PeerKey(seed_of(index))
    wallet, receipt = keccak256(b"wallet %d" % index), keccak256(b"receipt %d" % index)
    terms = BindingTerms(
        receipt_key=key_address(receipt), seq=int(now), expires_at=int(now) + BINDING_TTL_MAX_S
    )
    binding = bind(key.peer_id, key_address(wallet), terms, lambda digest: sign_digest(wallet, digest))
    return HostIdentity(key, receipt, binding)


def scripted_host(**config: object) -> HostedModel:
    """The scripted model, free of charge."""
    engine = ScriptedEngine(ScriptedConfig(**config))  # type: ignore[arg-type]
    return HostedModel(
        model=scripted_model_id(),
        name=SCRIPTED,
        new_engine=lambda: engine,
        n_ctx=2048,
    )


@dataclass
class Member:
    """One node of the world, and its host role if it has one."""

    index: int
    node: Node
    host: Host | None = None
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)


@dataclass
class World:
    """Nodes that run; ``crash`` cuts the power of one."""

    net: MemoryNet
    nursery: trio.Nursery
    seed: int = 0
    limits: Limits = DEFAULT_LIMITS
    origin_rule: OriginRule = origin_of
    members: list[Member] = field(default_factory=list)

    async def add(
        self,
        models: Sequence[HostedModel] = (),
        *,
        bootstrap: Sequence[str] = (),
        wall: Callable[[], float] = wall_clock,
        probes: bool = False,
        prompt_filter: PromptFilter | None = None,
        pool: PoolLimits | None = None,
        report: Report = lambda _name, _fields: None,
    ) -> Member:
        """Start the next node, as a host where it has models; ``probes``: one that asks itself."""
        index = len(self.members)
        rng = random.Random(f"{self.seed} {index}")
        identity = identity_of(index, wall())
        node = Node(
            NodeSetup(
                key=identity.key,
                listen=(f"/ip4/{ip_of(index)}/tcp/4001",),
                bootstrap=tuple(bootstrap),
                limits=self.limits,
                origin_rule=self.origin_rule,
                transport=self.net.transport(ip_of(index)),
                wall=wall,
                draw=rng.randbytes,
                rng=rng,
            )
        )
        member = Member(index, node)
        self.members.append(member)
        await self.nursery.start(self._run, member)
        if models:
            probe = self._probe(index, node, rng) if probes else None
            member.host = Host(
                node, identity, models, report=report, probe=probe, prompt_filter=prompt_filter, pool=pool
            )
            await member.host.start()
        return member

    def _probe(self, index: int, node: Node, rng: random.Random) -> SelfProbe:
        setup = NodeSetup(
            key=PeerKey(rng.randbytes(32)),
            dht="off",
            gossip=False,
            keep_connected=False,
            limits=self.limits,
            origin_rule=self.origin_rule,
            transport=self.net.transport(ip_of(index)),
            wall=wall_clock,
            draw=rng.randbytes,
            rng=rng,
        )
        return SelfProbe(Node(setup), node.peer_id, lambda: node.multiaddrs)

    async def _run(self, member: Member, *, task_status: trio.TaskStatus[None]) -> None:
        with member.scope:
            await member.node.run(task_status=task_status)

    def crash(self, member: Member) -> None:
        """SIGKILL: nothing is said to anybody."""
        self.net.crash(ip_of(member.index))
        member.scope.cancel()

    @contextlib.asynccontextmanager
    async def client(
        self, bootstrap: Sequence[str] = (), ip: str = "10.0.9.9", config: NodeConfig | None = None
    ) -> AsyncIterator[Client]:
        """A client that listens on nothing, at an address of its own."""
        rng = random.Random(f"{self.seed} client {ip}")
        node = Node(
            NodeSetup(
                key=PeerKey(rng.randbytes(32)),
                dht="client",
                gossip=False,
                keep_connected=False,
                limits=self.limits,
                origin_rule=self.origin_rule,
                transport=self.net.transport(ip),
                wall=wall_clock,
                draw=rng.randbytes,
                rng=rng,
            )
        )
        await self.nursery.start(node.run)
        async with Client(
            config, node=node, bootstrap=bootstrap, limits=self.limits, remember=False
        ) as client:
            yield client
        await node.aclose()


@contextlib.asynccontextmanager
async def world(
    *,
    net: MemoryNet | None = None,
    seed: int = 0,
    limits: Limits = DEFAULT_LIMITS,
    origin_rule: OriginRule = origin_of,
) -> AsyncIterator[World]:
    """An empty world; its nodes are closed in order on exit, within the deadlines of their limits."""
    async with trio.open_nursery() as nursery:
        wires = net or MemoryNet(latency=0.02, jitter=0.01, seed=seed)
        made = World(wires, nursery, seed, limits, origin_rule)
        try:
            yield made
            async with trio.open_nursery() as closing:
                for member in made.members:
                    if not member.scope.cancel_called:
                        closing.start_soon(member.node.aclose)
        finally:
            nursery.cancel_scope.cancel()
