"""The owner socket: commands and programs of this machine's user ask through the gateway's client.

They get what that client gives, with nothing left out: pieces, events, the bill, errors as they are. No key
is needed, for the socket lies in a folder that only its user may enter; the wallet's limits hold. See
``p2pnode/client/proxy/owner_channel.py`` for the messages.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import structlog
import trio

from p2pnode.client.answer import Answer
from p2pnode.client.chat_options import ChatOptions
from p2pnode.client.chosen import wanted_form
from p2pnode.client.client import Client
from p2pnode.client.conversation import Conversation
from p2pnode.client.embedding import Embedding
from p2pnode.client.proxy.owner_channel import (
    VERSION,
    AnswerState,
    ConversationState,
    OwnerChannel,
    error_fields,
)
from p2pnode.errors import BudgetError, ConfigError, LocalError, P2PNodeError, UsageError
from p2pnode.models.answer import Said
from p2pnode.node.invite import read_bootstrap
from p2pnode.private_socket import PrivateSocket
from p2pnode.tasks import background_task

log = structlog.get_logger()
_REQUEST_S: Final = 10.0
"""For the first message of a connection to come."""
_EVENTS_MAX: Final = 1024
"""That wait for a program which doesn't read; further ones are dropped."""
_TOO_MANY: Final = "programs ask too much of the gateway that runs here at once: end some, and ask again"
_DEFECT: Final = "something unexpected happened in the gateway that runs here: its log says more"
_GONE: Final = (trio.BrokenResourceError, trio.ClosedResourceError)
"""The program at the other end has gone."""


class OwnerSocket:
    """Listens from the beginning. ``run`` answers over ``client`` until it is cancelled."""

    def __init__(self, client: Client) -> None:
        """Raises ``OSError``."""
        self._client, self._connections = client, 0
        self._socket = PrivateSocket("owner.sock")
        self.path: Path = self._socket.path
        self._idle = _Idle()
        self._ended = trio.Event()

    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled, or until what is under way at :meth:`stop` has ended."""
        try:
            await self._socket.run(self._serve, task_status=task_status)
        finally:
            self._ended.set()

    async def stop(self) -> None:
        """Take no more work, and wait for what is under way."""
        self._socket.stop()
        self._idle.end()
        await self._ended.wait()

    async def _serve(self, stream: trio.SocketStream) -> None:
        async with stream:
            connection = _Connection(self._client, OwnerChannel(stream), self._idle)
            self._connections += 1
            try:
                if self._connections > self._client.runtime.limits.gateway_connections_max:
                    await connection.fail(_TOO_MANY)
                else:
                    await connection.serve()
            except _GONE:
                log.debug("owner.left")
            except Exception:  # a defect ends this piece of work, and never the gateway
                log.exception("owner.failed")
                await connection.fail(_DEFECT)
            finally:
                self._connections -= 1


class _Idle:
    """Conversations whose programs ask nothing just now: they don't hold up the end of the gateway."""

    def __init__(self) -> None:
        self._scopes: set[trio.CancelScope] = set()
        self._is_over = False

    async def receive(self, channel: OwnerChannel) -> dict[str, Any] | None:
        """The next message; None where the program left, or the gateway ends."""
        message = None
        with trio.CancelScope() as scope:
            self._scopes.add(scope)
            if self._is_over:
                scope.cancel()
            try:
                message = await channel.receive()
            finally:
                self._scopes.discard(scope)
        return message

    def end(self) -> None:
        """Wait for no more of them."""
        self._is_over = True
        for scope in self._scopes:
            scope.cancel()


class _Connection:
    """One piece of work of one program."""

    def __init__(self, client: Client, channel: OwnerChannel, idle: _Idle) -> None:
        self._client, self._channel, self._idle = client, channel, idle
        self._waiting: deque[dict[str, Any]] = deque()
        self._sending = trio.Lock()
        self._told = trio.Event()

    async def serve(self) -> None:
        """Do the work. Raises ``trio.BrokenResourceError`` where the program has left."""
        request = None
        with trio.move_on_after(_REQUEST_S):
            request = await self._channel.receive()
        if request is None:
            return
        async with background_task(self._send_events):
            with self._client.runtime.told_to(self._note_event):
                try:
                    await self._carry_out(request)
                except P2PNodeError as error:
                    await self._send({"error": error_fields(error)})

    async def fail(self, words: str) -> None:
        """Tell why nothing more comes, if anybody listens."""
        with trio.move_on_after(_REQUEST_S), suppress(*_GONE):
            await self._send({"error": error_fields(LocalError(words))})

    async def _carry_out(self, request: Mapping[str, Any]) -> None:
        match request.get("do"):
            case "hello":
                await self._send(self._greet(request))
            case "call":
                await self._call(str(request["method"]), request["arguments"])
            case "answer":
                with _what_was_asked():
                    answer = self._client.answer(
                        request["messages"], request["options"], held=request["held"]
                    )
                await self._answer(answer)
            case "embed":
                options: ChatOptions = request["options"]
                with _what_was_asked():
                    embedding = self._client.embed(
                        request["texts"], model=options.model, peer=options.peer, filters=options.filters
                    )
                await self._embed(embedding)
            case "conversation":
                await self._converse(request)
            case _:
                raise ConfigError("the gateway that runs here doesn't know this: start it again")

    def _greet(self, request: Mapping[str, Any]) -> dict[str, Any]:
        if request["version"] != VERSION:
            return {"differs": ("version",)}
        differs = tuple(name for name, value in request["wanted"].items() if not self._has(name, value))
        return {"differs": differs} if differs else {"ok": True}

    def _has(self, name: str, value: Any) -> bool:
        """Whether this client was made with such a setting."""
        runtime = self._client.runtime
        if name == "bootstrap":
            try:
                named = {one for each in value for one in read_bootstrap(each)}
            except ConfigError:
                return False
            return named <= set(runtime.bootstrap)
        return bool(value == wanted_form(name, getattr(runtime.config, name, None)))

    async def _call(self, method: str, arguments: Sequence[Any]) -> None:
        client = self._client
        value: Any = None

        async def call() -> None:
            nonlocal value
            match method, arguments:
                case "hosts", (model, filters):
                    with _what_was_asked():
                        ranking = await client.hosts(model, filters)
                    value = ranking, client.last_failures, client.alone
                case "sheets", (adverts,):
                    value = await client.sheets(adverts)
                case "known_adverts", ():
                    value = await client.known_adverts()
                case "find_conversation", (str(begins),):
                    value = await client.find_conversation(begins)
                case "estimate", (messages, options):
                    with _what_was_asked():
                        value = await client.estimate(messages, options)
                case "count", (messages, options):
                    with _what_was_asked():
                        value = await client.count(messages, options)
                case _:
                    raise ConfigError("the gateway that runs here doesn't know this: start it again")

        if not await self._while_heard(call):
            await self._send({"value": value})

    # ---- answers

    async def _answer(self, answer: Answer, conversation: Conversation | None = None) -> None:
        """Tell what comes of an answer, to its end."""
        teller = _Teller(answer, conversation)
        # A conversation's program doesn't know what is gone on from.
        held = answer.held if conversation is not None and answer.ids else None
        await self._send({"begun": answer.seed, "held": held})

        async def read() -> None:
            async for said in answer.events():
                for message in teller.piece(said):
                    await self._send(message)

        end: dict[str, Any] = {"end": True}
        async with answer:
            try:
                stopped = await self._while_heard(read)
            except P2PNodeError as error:
                end, stopped = {"error": error_fields(error)}, ""
        if stopped == "left":
            raise trio.BrokenResourceError
        for message in teller.rest():
            await self._send(message)
        await self._send(end)

    async def _embed(self, embedding: Embedding) -> None:
        told = 0

        def vectors(**more: Any) -> dict[str, Any]:
            nonlocal told
            fresh, told = embedding.vectors[told:], len(embedding.vectors)
            return {"vectors": [each.tobytes() for each in fresh], "bill": embedding.bill, **more}

        async def read() -> None:
            async for _ in embedding:
                if told < len(embedding.vectors):
                    await self._send(vectors(more=True))

        async with embedding:
            try:
                if await self._while_heard(read):
                    return
            except P2PNodeError as error:
                await self._send(vectors(error=error_fields(error)))
                return
        await self._send(vectors())

    async def _converse(self, request: Mapping[str, Any]) -> None:
        """A conversation, which is written down here until its program leaves."""
        client, options = self._client, request["options"]
        with _what_was_asked():
            if request["sid"] is None:
                conversation = await client.new_conversation(options, keep=request["keep"])
            else:
                conversation = await client.resume(request["sid"], options)
        try:
            await self._send({"conversation": _state_of(conversation), "ok": True})
            while (message := await self._idle.receive(self._channel)) is not None:
                match message.get("do"):
                    case "wait_written":
                        await conversation.wait_written()
                        await self._send({"conversation": _state_of(conversation), "ok": True})
                    case "leave":
                        break
                    case "stop":  # of an answer that ended by itself meanwhile
                        continue
                    case _:
                        await self._ask_on(conversation, message)
        finally:
            await client.conversations.end(conversation)
        with suppress(*_GONE):
            await self._send({"ok": True})

    async def _ask_on(self, conversation: Conversation, message: Mapping[str, Any]) -> None:
        try:
            with _what_was_asked():
                match message["do"]:
                    case "ask":
                        answer = conversation.ask(message["question"])
                    case "give_results":
                        answer = conversation.give_results(message["results"])
                    case "again":
                        answer = conversation.again()
                    case "go_on":
                        answer = conversation.go_on()
                    case _:
                        raise ConfigError("the gateway that runs here doesn't know this: start it again")
        except P2PNodeError as error:
            await self._send({"error": error_fields(error), "conversation": _state_of(conversation)})
            return
        await self._answer(answer, conversation)

    async def _while_heard(self, work: Callable[[], Awaitable[None]]) -> str:
        """Do ``work`` until the program says stop, or leaves; returns "stopped" or "left" where it does."""
        heard = ""
        with trio.CancelScope() as scope:

            async def listen(*, task_status: trio.TaskStatus[None]) -> None:
                nonlocal heard
                task_status.started()
                heard = "left" if await self._channel.receive() is None else "stopped"
                scope.cancel()

            # It has ended before anything is sent that the program would answer with its next request.
            async with background_task(listen):
                await work()
        return heard if scope.cancelled_caught else ""

    # ---- sending

    def _note_event(self, name: str, fields: dict[str, object]) -> None:
        if len(self._waiting) < _EVENTS_MAX:
            self._waiting.append({"event": name, "fields": fields})
            self._told.set()

    async def _send_events(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Send events also while nothing else is sent."""
        task_status.started()
        with suppress(*_GONE):
            while True:
                await self._told.wait()
                self._told = trio.Event()
                await self._flush()

    async def _send(self, message: dict[str, Any]) -> None:
        """Send a message after all that waits before it. Raises ``trio.BrokenResourceError``."""
        self._waiting.append(message)
        await self._flush()

    async def _flush(self) -> None:
        async with self._sending:
            while self._waiting:
                await self._channel.send(self._waiting.popleft())


class _Teller:
    """What is new of an answer since it was told last, as messages."""

    def __init__(self, answer: Answer, conversation: Conversation | None) -> None:
        self._answer, self._conversation = answer, conversation
        self._state = AnswerState()
        self._stands: ConversationState | None = None
        self._known = answer.text_known
        """So many ids stay whatever is learnt of their host."""
        self._logprobs = 0

    def piece(self, said: Said) -> Iterator[dict[str, Any]]:
        """A piece, and what is new before it."""
        yield from self._news()
        yield {"said": said, **self._tokens()}

    def rest(self) -> Iterator[dict[str, Any]]:
        """What is new at the end: also ids without a text."""
        yield {"ended": True, **self._tokens()}
        yield from self._news()

    def _tokens(self) -> dict[str, Any]:
        answer, begin = self._answer, self._known
        logprobs = answer.logprobs[self._logprobs :]
        self._known, self._logprobs = answer.text_known, len(answer.logprobs)
        return {"ids": answer.ids[begin:], "from": begin, "logprobs": logprobs}

    def _news(self) -> Iterator[dict[str, Any]]:
        answer = self._answer
        state = AnswerState(
            host=answer.host,
            usage=answer.usage,
            checkpoints=answer.checkpoints,
            trusted=answer.trusted,
            left_out=answer.left_out,
            text_checked=answer.text_checked,
            session=answer.session,
            wallet=answer.wallet,
            offer=answer.offer,
            standby=answer.standby,
            bill=answer.bill,
            next_seed=answer.next_seed,
        )
        if state != self._state:
            self._state = state
            yield {"state": state}
        # Also in the middle of an answer: should this process die, the other end knows what it can resume.
        stands = _state_of(self._conversation) if self._conversation is not None else None
        if stands != self._stands:
            self._stands = stands
            yield {"conversation": stands}


@contextmanager
def _what_was_asked() -> Iterator[None]:
    """An error of what was asked for: the program at the other end raises it as one of what was typed."""
    try:
        yield
    except (BudgetError, UsageError):
        raise
    except ConfigError as error:
        raise UsageError(str(error)) from error


def _state_of(conversation: Conversation) -> ConversationState:
    return ConversationState(
        sid=conversation.sid,
        is_kept=conversation.is_kept,
        has_question=conversation.has_question,
        cut_short=conversation.cut_short,
        unanswered=conversation.unanswered,
        calls=tuple(conversation.calls),
        losses=tuple(conversation.losses),
    )
