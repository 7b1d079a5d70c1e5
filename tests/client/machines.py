"""Clients that keep conversations, hosts that answer and nodes that store, in one memory net."""

from __future__ import annotations

import contextlib
import random
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

from p2pnode.client.chat_options import ChatOptions
from p2pnode.client.client import Client
from p2pnode.client.interface import Answer, Conversation
from p2pnode.config import NodeConfig
from p2pnode.models.manifest import SCRIPTED
from p2pnode.net.virtual_time import wall_clock
from p2pnode.node.datadir import DataDir
from p2pnode.node.keys import PeerKey
from p2pnode.node.node import Node, NodeSetup
from p2pnode.payments.payer import Payer
from p2pnode.protocols.inference.messages import SamplingParams
from p2pnode.storage.key_file import save_storage_key
from tests.client.support import Events
from tests.node.world import Member, World

ENTROPY = bytes(range(16))
"""Of the phrase that all machines of the one user have."""


@contextlib.asynccontextmanager
async def machine(
    w: World,
    folder: Path,
    *,
    knows: Sequence[Member] = (),
    stores: Sequence[Member] = (),
    ip: str = "10.0.9.9",
    keeps: bool = True,
    told: Events | None = None,
    wall: Callable[[], float] = wall_clock,
    trust: Sequence[str] = (),
    payer: Payer | None = None,
    keep_s: int | None = None,
) -> AsyncIterator[Client]:
    """A client with a data dir of its own. ``knows`` are its first peers, ``stores`` keep its replicas.

    ``payer`` has its journal in that data dir.
    """
    data = DataDir(folder)
    data.prepare()
    if keeps:
        save_storage_key(data, ENTROPY)
    rng = random.Random(f"{w.seed} {ip}")
    node = Node(
        NodeSetup(
            key=PeerKey(rng.randbytes(32)), dht="client", gossip=False, keep_connected=False, limits=w.limits,
            transport=w.net.transport(ip), wall=wall, draw=rng.randbytes, rng=rng,
        )
    )  # fmt: skip
    config = NodeConfig(
        data_dir=folder,
        stores=tuple(each.node.multiaddrs[0] for each in stores),
        mdns=False,
        trust=tuple(trust),
        chain="" if payer is None else "in memory",
    )
    await w.nursery.start(node.run)
    async with Client(
        config,
        node=node,
        bootstrap=[each.node.multiaddrs[0] for each in knows],
        limits=w.limits,
        remember=False,
        in_thread=False,
        payer=payer,
        keep_s=keep_s,
        on_event=told or Events(),
    ) as client:
        yield client
    await node.aclose()


def options(tokens: int = 80) -> ChatOptions:
    """The scripted model, greedy."""
    return ChatOptions(model=SCRIPTED, sampling=SamplingParams(tokens_max=tokens, temperature=0))


async def say(conversation: Conversation, question: str) -> str:
    """Ask, and read the answer to its end."""
    return await read(conversation.ask(question))


async def read(answer: Answer) -> str:
    """The pieces that come, to the end."""
    async with answer:
        return "".join([piece async for piece in answer])
