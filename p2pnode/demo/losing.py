"""The demo loses a host: SIGKILL in the middle of a paid answer, which another host goes on with.

The bill must have an item for each, every output token in one of them, and the second prefill in the other
one's. What becomes of the killed host later it does not know.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from p2pnode.demo.bills import Item, check_failover
from p2pnode.demo.machine import Asked, Machine, kept_on
from p2pnode.demo.nodes import Nodes
from p2pnode.demo.processes import NodeProcess
from p2pnode.errors import LocalError
from p2pnode.money import usdc_text

QUESTION: Final = "Describe in detail how a letter travels from the sender to the receiver."
_KILLED_AFTER_PIECES: Final = 5
"""Some 20 to 40 tokens; twice as many where the machine is busy."""
_TOKENS_MAX: Final = 160


@dataclass(frozen=True, slots=True)
class Lost:
    """The answer, the item of the host that was killed, and that of the host which went on."""

    asked: Asked
    killed: Item
    other: Item

    @property
    def conversation(self) -> str:
        """Its id."""
        return str(self.asked.events["conversation.kept"][-1]["conversation"])


async def lose_a_host(client: Machine, nodes: Nodes, bootstrap: str) -> Lost:
    """Ask, and kill whichever host the client chose. Raises ``LocalError`` when it doesn't go well."""
    client.say(f'\n$ p2pnode ask --bootstrap … --store … "{QUESTION}"')
    client.say("  (nodes D and E are to keep it; its host is killed in the middle of the answer)")
    killed: list[NodeProcess] = []

    def on_event(_event: dict[str, Any], asked: Asked) -> None:
        if asked.pieces >= _KILLED_AFTER_PIECES and not killed:
            killed.append(nodes.kill(asked.host))

    stores = [f"--store={node.multiaddrs[0]}" for node in nodes.stores]
    flags = (f"--max-tokens={_TOKENS_MAX}", f"--bootstrap={bootstrap}", *stores)
    asked = await client.answer("ask", QUESTION, *flags, on_event=on_event)
    if not killed or "failover" not in asked.events:
        msg = "no host was lost in the middle of the answer"
        raise LocalError(msg)
    held = asked.events["failover"][-1]["held"]
    first, second = check_failover(asked.items, killed=killed[0].peer_id, held=held)
    deposit = usdc_text(asked.events["signing"][-1]["deposit"])
    client.say(
        f"  SIGKILL to host {nodes.name(first.peer)}: host {nodes.name(second.peer)} went on after {held} "
        f"tokens, {asked.gap_s:.2f} s later, for a deposit of {deposit}\n"
        f"  the conversation is kept, sealed, on {kept_on(asked, len(stores))} other nodes"
    )
    return Lost(asked, first, second)
