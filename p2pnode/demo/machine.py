"""A machine of the demo's user: a data dir, and the commands that are run on it.

Answers are printed as they stream, and what their events say is kept for the checks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from p2pnode.demo.bills import Item, items_of
from p2pnode.demo.processes import each_event, events_of, program
from p2pnode.errors import LocalError
from p2pnode.money import usdc_text


@dataclass(slots=True)
class Asked:
    """What the events of one answer said, by their names; ``text`` is all that was printed."""

    text: str = ""
    pieces: int = 0
    gap_s: float = 0.0
    """From the last text before another host went on to the first after it."""
    events: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    _text_at: float = 0.0
    _failed_over: bool = False

    @property
    def done(self) -> dict[str, Any]:
        """The last event of an answer that is whole."""
        return self.events["done"][-1]

    @property
    def items(self) -> list[Item]:
        """The items of the bill, checked. Raises ``LocalError``."""
        return items_of(self.done)

    @property
    def host(self) -> str:
        """The peer id of the host that serves."""
        return str(self.events["host"][-1]["peer"])

    def take(self, event: dict[str, Any], now: float) -> None:
        """Take one more event; ``now`` in seconds of any clock."""
        self.events.setdefault(event["event"], []).append(event)
        if event["event"] == "failover":
            self._failed_over = True
        if event["event"] == "text" and event["text"]:
            if self._failed_over:
                self.gap_s, self._failed_over = now - self._text_at, False
            self.text, self.pieces, self._text_at = self.text + event["text"], self.pieces + 1, now


@dataclass(slots=True)
class Machine:
    """``say`` prints a line, ``stream`` a piece of an answer; ``chain`` is the flag that names the chain."""

    data: Path
    chain: str
    say: Callable[[str], None]
    stream: Callable[[str], None]
    items: list[Item] = field(default_factory=list)
    """The bills of all that was asked here."""

    @property
    def place(self) -> str:
        """The flag that names the data dir."""
        return f"--data-dir={self.data}"

    async def run(self, *arguments: str) -> list[dict[str, Any]]:
        """A command's events. Raises ``LocalError`` when it fails."""
        return await events_of(*arguments, self.place)

    async def answer(
        self, *command: str, on_event: Callable[[dict[str, Any], Asked], None] = lambda _event, _asked: None
    ) -> Asked:
        """Run ``ask`` or ``sessions resume`` and print the answer. Raises ``LocalError``."""
        asked = Asked()

        def take(event: dict[str, Any]) -> None:
            asked.take(event, trio.current_time())
            match event["event"]:
                case "signing":
                    deposit = usdc_text(event["deposit"])
                    if not asked.pieces:  # never into the midst of an answer
                        self.say(f"  the client signs: deposit {deposit}, once for the session")
                case "text":
                    self.stream(event["text"])
                case "failed":
                    raise LocalError(event["message"])
                case _:
                    pass
            on_event(event, asked)

        flags = ("--seed=7", "--temperature=0.3", "--no-mdns", "--json", self.chain, self.place)
        await each_event(program(*command, *flags), take)
        self.stream("\n")
        if "done" not in asked.events or not asked.text:
            msg = "the answer did not come to its end"
            raise LocalError(msg)
        self.items += asked.items
        return asked


def kept_on(asked: Asked, least: int) -> int:
    """How many other nodes have the conversation. Raises ``LocalError`` for fewer than ``least``."""
    kept: Sequence[dict[str, Any]] = asked.events.get("conversation.kept", ())
    if not kept or not kept[-1]["kept"] or kept[-1]["weak"] or kept[-1]["replicas"] < least:
        told = [event.get("reason") for event in asked.events.get("conversation.not_kept", ())]
        said = kept[-1] if kept else told
        msg = f"the conversation is not kept on {least} other nodes: {said}"
        raise LocalError(msg)
    return int(kept[-1]["replicas"])
