"""Twenty strangers against one host: ``python -m tests.host.stranger_process ADDRESS PAUSE_S``.

Each has a real peer id and a connection of its own, and goes through all attacks again and again, ``PAUSE_S``
apart. A line is written when all of them attack, and a dot for each attack that was sent.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import replace
from itertools import count

import trio

from p2pnode.ids import PeerId
from p2pnode.net.network import Network, NetworkConfig
from p2pnode.node.driver import MessageChannel
from p2pnode.protocols.inference.messages import (
    CODEC,
    PROTOCOL,
    Cancel,
    Leave,
    Open,
    Prompt,
    SamplingParams,
)
from p2pnode.protocols.inference.prompts import prompt_parts
from p2pnode.protocols.wire import encode
from tests.host.test_prompt_attacks import ASKED, AT_ONCE, ATTACKS, OPEN
from tests.net.memory_world import seed_of

STRANGERS = 20
LONG = encode(replace(ASKED, sampling=SamplingParams(tokens_max=2000, temperature=0)))


def _storm() -> list[object]:
    """Prompts that are cancelled as soon as they are asked."""
    out: list[object] = []
    for turn in range(1, 9):
        out += [*prompt_parts(turn, LONG), Cancel(turn=turn)]
    return out


def _unread() -> list[object]:
    """As many turns at once as there may be, of which nothing is read or acknowledged."""
    return [part for turn in range(1, AT_ONCE + 1) for part in prompt_parts(turn, LONG)]


def _uploads() -> list[object]:
    """Prompts that are announced as large as may be and never end."""
    return [
        Prompt(turn=turn, part=0, last=False, total=8 * 2048, body=b"x") for turn in range(1, AT_ONCE + 1)
    ]


def _exploding(number: int) -> list[object]:
    """A schema, a tool or a bias that is too much."""
    bodies = [body for body, _ in ATTACKS.values()]
    return list(prompt_parts(1, bodies[number % len(bodies)]))


def _left(number: int) -> tuple[Open, list[object]]:
    """A session that is left for as long as can be said."""
    key = number.to_bytes(20, "big")
    return replace(OPEN, keep_s=86_400, resume_key=key), [Leave(until=2**62)]


async def attack_for_ever(
    number: int, address: str, pause_s: float, *, task_status: trio.TaskStatus[None]
) -> None:
    """One stranger; started when it is connected."""
    network = Network(NetworkConfig(key_seed=seed_of(700 + number), dht="off", gossip=False))
    async with trio.open_nursery() as nursery:
        await nursery.start(network.run)
        host = await network.connect(address)
        task_status.started()
        for attack in count(number):
            opening, said = OPEN, [_storm, _unread, _uploads][attack % 3]()
            if attack % 5 == 3:
                said = _exploding(attack)
            elif attack % 5 == 4:
                opening, said = _left(number * 1_000_000 + attack)
            nursery.start_soon(_once, network, host, opening, said)
            await trio.sleep(pause_s)


async def _once(network: Network, host: PeerId, opening: Open, said: list[object]) -> None:
    with suppress(Exception), trio.move_on_after(5):
        stream = await network.open_stream(host, PROTOCOL)
        channel = MessageChannel(stream, CODEC)
        await channel.send([opening, *said])
        print(".", end="", flush=True)  # noqa: T201 - tells the test how many there were
        while await channel.receive() is not None:
            pass
    with suppress(Exception):
        await stream.reset()


async def main(address: str, pause_s: float) -> None:
    """All of them, until the process is ended."""
    async with trio.open_nursery() as nursery:
        for number in range(STRANGERS):
            await nursery.start(attack_for_ever, number, address, pause_s)
        print("attacking", flush=True)  # noqa: T201 - tells the test that began it


if __name__ == "__main__":
    trio.run(main, sys.argv[1], float(sys.argv[2]))
