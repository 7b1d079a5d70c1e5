"""Processes of these tests: a paid host and a paying client that die where they are told to.

``python -m tests.crash.mortal`` imports everything once and then forks one process for each socket it is
handed, so that a case doesn't pay for the imports. A process gets its order as one JSON line and says JSON
lines; its parent says ``ended`` with its code. It is killed like any other: nothing of it is shared.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import trio

from p2pnode.config import NodeConfig
from p2pnode.limits import DEFAULT_LIMITS, Limits
from p2pnode.log import configure_logging
from tests.crash.points import Point, Trap

QUICK: dict[str, float] = {
    "linger_s": 1.0,
    "chain_poll_s": 0.2,
    "settle_batch_s": 0.1,
    "settle_retry_s": 0.2,
    "drain_deadline_s": 2.0,
    "close_deadline_s": 2.0,
}
"""What is shorter than in the field, so that a case takes seconds."""


def quick(**changes: float) -> Limits:
    """The limits of these tests."""
    return replace(DEFAULT_LIMITS, **{**QUICK, **changes})  # type: ignore[arg-type]


def config_of(values: dict[str, Any]) -> NodeConfig:
    """From what went through JSON."""
    given: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
    }
    return NodeConfig(**{**given, "data_dir": Path(values["data_dir"])})


def say(event: str, fields: dict[str, object]) -> None:
    """Written at once: what was said before a kill is heard."""
    os.write(1, json.dumps({"event": event, **fields}, default=str).encode() + b"\n")


async def host(given: dict[str, Any]) -> None:
    """Serve until killed."""
    from p2pnode.host.join import Join, JoinOptions

    options = JoinOptions(limits=quick(), scripted_tokens_per_s=given.get("tokens_per_s"))
    # A point is passed by what a client is told, and not by what this host asks itself.
    await Join(replace(config_of(given["config"]), self_probe=False), options, say).run()


async def client(given: dict[str, Any]) -> None:
    """One question to one host; leave in order."""
    from p2pnode import SamplingParams
    from p2pnode.client.client import Client

    sampling = SamplingParams(tokens_max=given["tokens"], temperature=0)
    config = config_of(given["config"])
    async with Client(config, limits=quick(), remember=False, discovery=False) as made:
        answer = made.chat(given["question"], model="scripted", peer=given["peer"], sampling=sampling)
        async for _ in answer:
            pass
        say("answered", {"tokens_out": len(answer.ids)})


async def crowd(given: dict[str, Any]) -> None:
    """Several questions at once to one host; each piece is said as it comes. Leave in order."""
    from p2pnode import SamplingParams
    from p2pnode.client.client import Client

    sampling = SamplingParams(tokens_max=given["tokens"], temperature=0)
    config = config_of(given["config"])

    async def ask(made: Client, number: int, question: str) -> None:
        answer = made.chat(question, model="scripted", peer=given["peer"], sampling=sampling)
        async for piece in answer:
            say("piece", {"question": number, "text": piece})
        say("answered", {"question": number})

    async with (
        Client(config, limits=quick(), remember=False, discovery=False) as made,
        trio.open_nursery() as nursery,
    ):
        for number, question in enumerate(given["questions"]):
            nursery.start_soon(ask, made, number, question)


def _live(handed: int) -> None:
    """The whole life of a process."""
    os.dup2(handed, 0)
    os.dup2(handed, 1)
    os.close(handed)
    configure_logging("info")  # on stderr
    given = json.loads(sys.stdin.readline())
    if given["point"] is not None:
        Trap(Point.parse(given["point"]))
    trio.run({"host": host, "client": client, "crowd": crowd}[given["role"]], given)


def main() -> None:
    """Fork for each socket, one after the other, until the other side hangs up."""
    import web3  # noqa: F401 - the heaviest

    from p2pnode.client.client import Client  # noqa: F401
    from p2pnode.host import join  # noqa: F401
    from p2pnode.payments import payer  # noqa: F401

    assert threading.active_count() == 1, "a process with threads can't be forked"
    control = socket.socket(fileno=0)
    while True:
        _, handed, _, _ = socket.recv_fds(control, 1, 1)
        if not handed:
            return
        pid = os.fork()
        if pid == 0:
            control.detach()
            try:
                _live(handed[0])
            finally:
                os._exit(1)
        os.write(handed[0], json.dumps({"event": "began", "pid": pid}).encode() + b"\n")
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        with suppress(OSError):  # the test did not stay
            os.write(handed[0], json.dumps({"event": "ended", "code": code}).encode() + b"\n")
        os.close(handed[0])


if __name__ == "__main__":
    main()
