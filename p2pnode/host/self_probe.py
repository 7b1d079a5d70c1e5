"""``SelfProbe``: a host asks itself as a stranger would, over a connection of its own.

The question takes the whole path of a client's: a dial of this host's address, the handshakes, the session's
protocol, the engine's slot, and receipts that are checked. It is asked free of charge by a peer whose key is
made for that and never leaves this process, so nobody else is served so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import trio

from p2pnode.errors import RefusedError
from p2pnode.host.health import PROBE_DEADLINE_S
from p2pnode.ids import ModelId, PeerId
from p2pnode.net.multiaddrs import without_peer
from p2pnode.node.driver import Driver, MessageChannel
from p2pnode.node.node import Node
from p2pnode.protocols.inference.client import ClientSession
from p2pnode.protocols.inference.client_turn import ClientTimes
from p2pnode.protocols.inference.commands import (
    Accepted,
    Ask,
    ClientEmission,
    Delivered,
    Embedded,
    End,
    Ended,
    SessionFailed,
    Start,
    TokensTaken,
    TurnDone,
    TurnFailed,
)
from p2pnode.protocols.inference.messages import CODEC, PROTOCOL, ChatMessage, PromptBody, SamplingParams

_QUESTION: Final = "Hi"
_INPUT_MAX: Final = 4096
_TOKENS: Final = 2
INCONCLUSIVE: Final = frozenset({"capacity", "shutting_down", "model_not_available"})
"""Codes that say nothing of a model: the host is busy, paused or going away."""


class SelfProbe:
    """``run`` it for as long as the host serves. ``node`` dials only; it is nobody else's."""

    def __init__(self, node: Node, host: PeerId, addresses: Callable[[], Sequence[str]]) -> None:
        self._node, self._host, self._addresses = node, host, addresses

    @property
    def peer(self) -> PeerId:
        """Who asks."""
        return self._node.peer_id

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run the node that asks."""
        await self._node.run(task_status=task_status)

    async def ask(self, model: ModelId, *, embeds: bool = False) -> str:
        """Ask a model; "" for an answer (``embeds``: for a vector), else why none came.

        Raises ``UnreachableError`` where this host can't be reached from here, and ``RefusedError`` where it
        is busy: neither says anything of the model.
        """
        node = self._node
        heard = tuple(without_peer(each) for each in self._addresses())
        await node.network.connect_peer(self._host, (), trusted=heard)
        with trio.move_on_after(PROBE_DEADLINE_S):
            return await self._ask(model, _body(node.draw(16), embeds=embeds))
        return f"no answer within {PROBE_DEADLINE_S:g} s"

    async def _ask(self, model: ModelId, body: PromptBody) -> str:
        node = self._node
        stream = await node.network.open_stream(self._host, PROTOCOL)
        machine = ClientSession(
            host=self._host,
            stream=0,
            model=model,
            salt=node.draw(32),
            holder=node.draw(16),
            times=ClientTimes(
                open_s=PROBE_DEADLINE_S,
                open_paid_s=PROBE_DEADLINE_S,
                first_token_s=PROBE_DEADLINE_S,
                stall_s=PROBE_DEADLINE_S,
            ),
            peer=node.peer_id,
        )
        course = _Course(body)
        driver = Driver(
            machine, MessageChannel(stream, CODEC), on_emit=course.take, write_deadline_s=PROBE_DEADLINE_S
        )
        course.driver = driver
        driver.command_nowait(Start())
        try:
            await driver.run()
        finally:
            with trio.move_on_after(1, shield=True):
                await (stream.aclose() if driver.ended_in_order else stream.reset())
        if driver.fault:
            return f"the protocol was broken: {driver.fault}"
        return course.outcome()


class _Course:
    """What came of one question."""

    def __init__(self, body: PromptBody) -> None:
        self._body = body
        self.driver: Driver | None = None
        self._tokens = 0
        self._failure: TurnFailed | SessionFailed | None = None
        self._done = False

    async def take(self, value: ClientEmission) -> None:
        """The machine tells something."""
        driver = self.driver
        if driver is None:
            return
        match value:
            case Accepted():
                driver.command_nowait(Ask(self._body, input_max=_INPUT_MAX, key=1))
            case Delivered(tokens=tokens):
                self._tokens = tokens.index + len(tokens.ids)
                driver.command_nowait(TokensTaken(self._tokens, key=1))
            case Embedded():
                self._tokens = 1
                driver.command_nowait(TokensTaken(self._tokens, key=1))
            case TurnDone():
                self._done = True
                driver.command_nowait(End())
            case TurnFailed() as failed:
                self._failure = failed
                driver.command_nowait(End())
            case SessionFailed() as failed:
                self._failure = self._failure or failed
                driver.stop()
            case Ended():
                driver.stop()
            case _:
                pass

    def outcome(self) -> str:
        """Empty for an answer, else why none came. Raises ``RefusedError`` where the host was busy."""
        failure = self._failure
        if failure is not None:
            if failure.code is not None and failure.code in INCONCLUSIVE:
                raise RefusedError(failure.code, failure.detail)
            return failure.detail or str(failure.code)
        if not self._done:
            return "the stream ended without an answer"
        return "" if self._tokens else "an answer of no token"


def _body(seed: bytes, *, embeds: bool) -> PromptBody:
    """What is asked."""
    if embeds:
        return PromptBody(embed=(_QUESTION,), seed=seed)
    return PromptBody(
        messages=(ChatMessage.of("user", _QUESTION),),
        sampling=SamplingParams(tokens_max=_TOKENS, temperature=0),
        seed=seed,
    )
