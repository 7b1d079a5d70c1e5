"""Strangers that attack a host on loopback, in a process of their own; see ``attackers.py``.

Configured by one line: ``peer`` and ``port`` of the victim. Commands: ``begin`` an attack by its name with
``ids`` peer ids at the addresses ``ips``, and ``end`` it, which closes all that it holds.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import trio

from p2pnode.bench.attackers import ATTACKS, Attacker, over_loopback, until_refused
from p2pnode.bench.processes import Command, answer, run_child
from p2pnode.ids import PeerId


async def main(commands: AsyncIterator[Command]) -> None:
    """Attack and stop until the commands end."""
    config = await anext(commands)
    victim = over_loopback(PeerId(config["peer"]), config["port"])
    answer({"attacks": list(ATTACKS)})
    run = 0
    async for command in commands:
        run += 1
        async with trio.open_nursery() as nursery:
            ips = command["ips"]
            attackers = [
                Attacker(nursery, victim, ips[n % len(ips)], f"{run} attacker {n % command['ids']}")
                for n in range(max(command["ids"], len(ips)))
            ]
            attack = ATTACKS[command["begin"]]
            nursery.start_soon(until_refused, lambda: attack(attackers))  # noqa: B023  ended in this round
            answer({"began": command["begin"]})
            await anext(commands)
            nursery.cancel_scope.cancel()
        answer({"ended": command["begin"]})


if __name__ == "__main__":
    run_child(main)
