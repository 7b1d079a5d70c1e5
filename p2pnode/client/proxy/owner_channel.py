"""The owner socket's messages: from a program to the gateway of its data dir, and back.

Each message is four bytes of length and a msgpack map. A connection carries one piece of work, whose first
message says which (``{"do": NAME, …}``)::

    {"do": "hello", "version", "wanted"}     -> {"ok"}, or {"differs": [names]}
    {"do": "call", "method", "arguments"}    -> {"value"}
    {"do": "answer", "messages", "options", "held"}
    {"do": "embed", "texts", "options"}
    {"do": "conversation", "sid", "options", "keep"}  -> {"conversation"}; then, one after another,
        {"do": "ask", "question"}, {"do": "give_results", "results"}, {"do": "again"}, {"do": "go_on"},
        {"do": "wait_written"} -> {"ok"}, and {"do": "leave"} -> {"ok"} at the end

What comes of an answer is ``{"begun", "held"}``, the seed of its prompt and what it goes on from; then
``{"said", "ids", "from", "logprobs"}`` and ``{"state"}`` as they change, and at last ``{"end"}`` or
``{"error"}``. ``{"do": "stop"}`` ends it early. ``{"event", "fields"}`` may come at any time between these:
what the client's listener is told. Who closes the connection stops what it carries.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgpack
import trio

from p2pnode import errors
from p2pnode.client.bill import BillItem, Usage
from p2pnode.client.proxy.plain_values import from_plain, to_plain
from p2pnode.errors import LocalError, P2PNodeError
from p2pnode.ids import PeerId, SessionId
from p2pnode.protocols.adverts.messages import Offer
from p2pnode.protocols.inference.messages import ToolCall

if TYPE_CHECKING:
    from p2pnode.storage.conversations.records import Loss

VERSION: Final = 1
"""Of these messages; a gateway of another one is not asked."""
MESSAGE_MAX: Final = 64 << 20
_LENGTH_BYTES: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerState:
    """All of an answer that is no piece of it: see ``interface.Answer``."""

    host: PeerId | None = None
    usage: Usage | None = None
    checkpoints: int = 0
    trusted: bool = False
    left_out: int = 0
    text_checked: bool = False
    session: SessionId | None = None
    wallet: bytes | None = None
    offer: Offer | None = None
    standby: PeerId | None = None
    bill: tuple[BillItem, ...] = ()
    next_seed: bytes = b""
    """What follows is drawn from this one; see ``Held``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversationState:
    """Where a conversation stands: see ``interface.Conversation``."""

    sid: bytes | None = None
    is_kept: bool = False
    has_question: bool = False
    cut_short: bool = False
    unanswered: bool = False
    calls: tuple[ToolCall, ...] = ()
    losses: tuple[Loss, ...] = ()


class OwnerChannel:
    """One end of a connection. A message is sent by one task at a time, and received by one."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._buffer = bytearray()
        self._broken = False

    async def send(self, message: dict[str, Any]) -> None:
        """Send a message whole. Raises ``trio.BrokenResourceError`` where nobody is there any more."""
        if self._broken:
            raise trio.BrokenResourceError
        payload = msgpack.packb(to_plain(message), unicode_errors="surrogatepass")
        self._broken = True  # where this is cancelled half of it may be sent
        await self._stream.send_all(len(payload).to_bytes(_LENGTH_BYTES, "big") + payload)
        self._broken = False

    async def receive(self) -> dict[str, Any] | None:
        """The next message; None at the end. Nothing is lost where this is cancelled."""
        while True:
            if len(self._buffer) >= _LENGTH_BYTES:
                size = int.from_bytes(self._buffer[:_LENGTH_BYTES], "big")
                if size > MESSAGE_MAX:
                    return None
                if len(self._buffer) >= _LENGTH_BYTES + size:
                    payload = bytes(self._buffer[_LENGTH_BYTES : _LENGTH_BYTES + size])
                    del self._buffer[: _LENGTH_BYTES + size]
                    return _message(payload)
            try:
                piece = await self._stream.receive_some()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return None
            if not piece:
                return None
            self._buffer += piece

    async def aclose(self) -> None:
        """Close the connection."""
        await trio.aclose_forcefully(self._stream)

    def drop(self) -> None:
        """Close the connection, on which no task waits. May be called in any thread, and outside of trio."""
        if self._stream.socket.fileno() >= 0:
            os.close(self._stream.socket.detach())


def _message(payload: bytes) -> dict[str, Any] | None:
    try:
        found = msgpack.unpackb(payload, use_list=False, unicode_errors="surrogatepass")
    except (ValueError, RecursionError):
        return None
    return from_plain(found) if isinstance(found, dict) else None


def error_fields(error: P2PNodeError) -> dict[str, Any]:
    """An error for the other end: its class among those of ``p2pnode.errors``, its words, its attributes."""
    known = next(each for each in type(error).__mro__ if each.__module__ == errors.__name__)
    plain = {
        name: value
        for name, value in vars(error).items()
        if value is None or isinstance(value, bool | int | float | str)
    }
    return {"kind": known.__name__, "text": str(error), "attributes": plain}


def error_of(told: dict[str, Any]) -> P2PNodeError:
    """The error that the other end told."""
    found = getattr(errors, str(told["kind"]), None)
    kind = found if isinstance(found, type) and issubclass(found, P2PNodeError) else LocalError
    error: P2PNodeError = kind.__new__(kind)  # not by the constructor: some add words to their message
    error.args = (str(told["text"]),)
    vars(error).update(told["attributes"])
    return error
