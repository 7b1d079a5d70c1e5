"""The gateway's HTTP API as one ASGI application: routes, what each request passes first, and streams.

A request passes, in this order: its ``Host`` and ``Origin`` (``Front``), its key, its content type, the bound
of its body, its fields. Then its turns are asked. The status line waits for the first piece of the answer, so
that what fails before has its right status; in a long silence it is sent, and what fails after is an event.
A client that goes away stops its answers at once, whatever they wait for.
"""

from __future__ import annotations

import base64
import secrets
import time
from array import array
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, TypeAlias

import structlog
import trio
from starlette.applications import Starlette
from starlette.convertors import Convertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from p2pnode.errors import P2PNodeError
from p2pnode.files import off_the_loop
from p2pnode.gateway import chat, messages, responses
from p2pnode.gateway.access import Caller, KeyRing, token_of
from p2pnode.gateway.faults import Fault, FaultError, fault_of
from p2pnode.gateway.fields import Fields, read_object
from p2pnode.gateway.gateway import Failed, Gateway, GatewayEvent, Over, Piece, Reply, ServedModel
from p2pnode.gateway.openapi import openapi_document
from p2pnode.gateway.turn import (
    EXTENSION,
    HEADER,
    Asked,
    Ended,
    Served,
    Stamp,
    Tally,
    Writer,
    routing_of,
    served_fields,
    tally_of,
)
from p2pnode.http_server import Front
from p2pnode.limits import DEFAULT_LIMITS, Limits
from p2pnode.money import usdc_number
from p2pnode.protocols.inference.embeddings import vector_bytes

_ID_BYTES: Final = 12
_LARGE_JSON: Final = 1 << 18
"""Bytes; more are parsed in a thread."""
_JSON: Final = "application/json"
_APIS: Final = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/messages",
    "/v1/models",
    "/v1/responses",
)
_AGENT: Final = (
    "You are a coding agent in the user's terminal. Read files before you change them, make small changes, "
    "run what shows that they work, and say at the end what you did."
)
_OUTPUT_BYTES: Final = 10_000
"""Of a tool's output, which an agent then cuts: contexts are small here."""
_DEFECT: Final = 500
_LEFT: Final = 499
"""The status in the log of a request whose client went away."""
Read: TypeAlias = Callable[[Fields, Stamp], Asked]
ErrorObject: TypeAlias = Callable[[Fault], dict[str, Any]]
log = structlog.get_logger()


@dataclass(slots=True, kw_only=True)
class RequestRecord:
    """What is logged and measured of one request; times in seconds, cost in token units."""

    face: str
    id: str
    model: str = ""
    status: int = 0
    outcome: str = ""
    """The code of the fault; ``ok``, or ``left`` where the client went away."""
    stream: bool = False
    key_id: str = ""
    host: str = ""
    tokens_in: int = 0
    reused: int = 0
    tokens_out: int = 0
    cost: int = 0
    ttft_s: float | None = None
    total_s: float = 0.0

    def count(self, tally: Tally, served: Served) -> None:
        """What its answers took."""
        self.tokens_in, self.reused, self.tokens_out = tally.tokens_in, tally.reused, tally.tokens_out
        self.cost, self.host = tally.cost, served.host or self.host


Observer: TypeAlias = Callable[[RequestRecord], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class AppOptions:
    """``origins`` of web pages that may use it; ``names`` in a ``Host`` header besides loopback's.

    ``open_host``: it listens beyond loopback, where a key and not the name keeps others out. ``metrics``
    answers ``GET /metrics``. ``observe`` is told of each request at its end.
    """

    origins: Collection[str] = ()
    names: Collection[str] = ()
    open_host: bool = False
    metrics: ASGIApp | None = None
    observe: Observer | None = None


class _AnyName(Convertor[str]):
    """The rest of an address. Starlette's own ``path`` ends at a line break: then nobody is told what is
    wrong with the name, and the request has no record."""

    regex = "(?s:.*)"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("any", _AnyName())


def make_app(
    gateway: Gateway, ring: KeyRing, options: AppOptions | None = None, *, limits: Limits = DEFAULT_LIMITS
) -> ASGIApp:
    """The whole API."""
    options = options or AppOptions()
    service = _Service(gateway, ring, limits, options.observe)
    openai, anthropic = chat.error_object, messages.error_object
    routes: list[BaseRoute] = [
        _post(
            "/v1/chat/completions", _Endpoint(service, "chat", openai, _answering(service, chat.read_chat))
        ),
        _post(
            "/v1/completions",
            _Endpoint(service, "completions", openai, _answering(service, chat.read_completion)),
        ),
        _post("/v1/embeddings", _Endpoint(service, "embeddings", openai, partial(_embed, service))),
        _post(
            "/v1/responses",
            _Endpoint(service, "responses", openai, _answering(service, responses.read_response)),
        ),
        _post(
            "/v1/messages",
            _Endpoint(service, "messages", anthropic, _answering(service, messages.read_messages)),
        ),
        _post("/v1/messages/count_tokens", _Endpoint(service, "count", anthropic, partial(_count, service))),
        Route("/v1/models", _Endpoint(service, "models", openai, partial(_models, service)), methods=["GET"]),
        Route(
            "/v1/models/{name:any}",
            _Endpoint(service, "models", openai, partial(_model, service)),
            methods=["GET"],
        ),
        Route("/health", partial(_health, service), methods=["GET"]),
        Route("/openapi.json", _openapi, methods=["GET"]),
        Route("/", _root, methods=["GET"]),
    ]
    if options.metrics is not None:
        serve = partial(_mounted, options.metrics)
        routes.append(Route("/metrics", _Endpoint(service, "metrics", openai, serve), methods=["GET"]))
    app = Starlette(routes=routes, exception_handlers={HTTPException: _no_route})
    app.router.redirect_slashes = False
    return Front(
        app,
        names=options.names,
        origins=options.origins,
        allow="p2pnode gateway --origin ORIGIN",
        refuse=lambda why: _fault_response(openai, Fault(status=403, code="forbidden", message=why)),
        any_name=options.open_host,
    )


class _Service:
    """What all endpoints share."""

    def __init__(self, gateway: Gateway, ring: KeyRing, limits: Limits, observe: Observer | None) -> None:
        self.gateway, self.ring, self.limits, self.observe = gateway, ring, limits, observe
        self._reading = 0

    async def body(self, request: Request) -> bytes:
        """The whole body. Raises ``FaultError`` and ``ClientDisconnect``."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != _JSON:
            msg = f"the content type is {kind[:60] or 'missing'}: send {_JSON}, as curl does with -H"
            raise FaultError(415, "unsupported_media_type", msg)
        length = request.headers.get("content-length", "")
        bytes_max = self.limits.gateway_body_bytes_max
        if length.isascii() and length.isdigit() and int(length[:20]) > bytes_max:
            raise _too_large(bytes_max)
        data = bytearray()
        began = trio.current_time()
        try:
            while True:
                # All of it in time, not each piece: a byte now and then would hold a connection for days.
                paced_s = self.limits.gateway_stall_s + len(data) / self.limits.gateway_body_bytes_per_s
                with trio.move_on_at(began + paced_s) as waited:
                    message = await request.receive()
                if waited.cancelled_caught:
                    raise FaultError(408, "timeout", "the body did not come in time: send it again")
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                chunk: bytes = message.get("body", b"")
                if len(data) + len(chunk) > bytes_max:
                    raise _too_large(bytes_max)
                if self._reading + len(chunk) > self.limits.gateway_bodies_bytes_max:
                    msg = "other requests with large bodies are being read: send it again"
                    raise FaultError(503, "busy", msg, retry_after_s=1.0)
                data += chunk
                self._reading += len(chunk)
                if not message.get("more_body", False):
                    return bytes(data)
        finally:
            self._reading -= len(data)

    async def fields(self, request: Request) -> Fields:
        """The object of the body. Raises ``FaultError`` and ``ClientDisconnect``."""
        data = await self.body(request)
        if len(data) > _LARGE_JSON:
            return await off_the_loop(partial(read_object, data))
        return read_object(data)


def _too_large(bytes_max: int) -> FaultError:
    return FaultError(413, "request_too_large", f"at most {bytes_max} bytes are taken: send less")


@dataclass(slots=True)
class _Exchange:
    """One request that is being answered. An answer is given by ``send``; a fault is raised."""

    request: Request
    caller: Caller
    record: RequestRecord
    stamp: Stamp
    send: Send
    began: float

    def first(self) -> None:
        """The first piece of an answer came."""
        if self.record.ttft_s is None:
            self.record.ttft_s = trio.current_time() - self.began

    async def respond(self, response: Response) -> None:
        """Answer at once."""
        self.record.status = response.status_code
        response.headers["x-request-id"] = self.record.id
        await response(self.request.scope, self.request.receive, self.send)


Handle: TypeAlias = Callable[[_Exchange], Awaitable[None]]


class _Endpoint:
    """One route: lets a request in, has it handled, turns what fails into the API's own words, logs it."""

    def __init__(self, service: _Service, face: str, error_object: ErrorObject, handle: Handle) -> None:
        self._service, self._face, self._error_object, self._handle = service, face, error_object, handle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = trio.current_time()
        request_id = f"req_{secrets.token_hex(_ID_BYTES)}"
        record = RequestRecord(face=self._face, id=request_id)
        started = False

        async def noting(message: Any) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        request = Request(scope, receive)
        stamp = Stamp(id=request_id.removeprefix("req_"), created=int(time.time()))
        exchange = _Exchange(request, Caller(), record, stamp, noting, began)
        fault: Fault | None = None
        self._service.gateway.under_way += 1
        try:
            exchange.caller = await self._service.ring.authorise(token_of(request.headers))
            record.key_id = exchange.caller.key_id
            await self._handle(exchange)
        except FaultError as error:
            fault = error.fault
        except P2PNodeError as error:
            fault = _logged_fault(record, error)
        except ClientDisconnect:
            record.status, record.outcome = _LEFT, "left"
        except Exception as error:
            fault = Fault(status=_DEFECT, code="internal", message="the gateway failed; its log says why")
            log.exception("gateway.request_failed", face=self._face, id=record.id, exc_info=error)
        finally:
            self._service.gateway.under_way -= 1
            if fault is not None:
                record.status, record.outcome = fault.status, fault.code
            record.total_s = trio.current_time() - began
            self._note(record)
        if fault is not None and not started:
            response = _fault_response(self._error_object, fault)
            response.headers["x-request-id"] = record.id
            await response(scope, receive, noting)

    def _note(self, record: RequestRecord) -> None:
        record.outcome = record.outcome or "ok"
        record.status = record.status or _LEFT
        self._service.gateway.note(record.face, record.status)
        log.info("gateway.request", **asdict(record))
        if self._service.observe is not None:
            self._service.observe(record)


def _logged_fault(record: RequestRecord, error: P2PNodeError) -> Fault:
    """The fault of an error. The log has the cause of one that nobody but us can mend."""
    fault = fault_of(error)
    if fault.status == _DEFECT:
        log.error("gateway.request_failed", face=record.face, id=record.id, error=str(error))
    return fault


def _fault_response(error_object: ErrorObject, fault: Fault) -> Response:
    headers = {}
    if fault.retry_after_s is not None:
        headers["retry-after"] = str(max(1, round(fault.retry_after_s)))
    if fault.status == 401:  # noqa: PLR2004
        headers["www-authenticate"] = "Bearer"
    return JSONResponse(error_object(fault), fault.status, headers=headers)


# ---- answers


def _answering(service: _Service, read: Read) -> Handle:
    """Handles requests that a model answers."""

    async def handle(exchange: _Exchange) -> None:
        fields = await service.fields(exchange.request)
        asked = read(fields, exchange.stamp)
        exchange.record.model, exchange.record.stream = asked.turns[0].model, asked.writer.stream
        routing = routing_of(exchange.request.headers, fields)
        replies = await service.gateway.answers(asked, routing, exchange.caller)
        sender = _AnswerSender(exchange, asked.writer, replies, idle_s=service.limits.gateway_idle_s)

        async def tell() -> None:
            async with service.gateway.events(replies) as events:
                await (sender.stream(events) if asked.writer.stream else sender.collect(events))

        try:
            await _while_connected(exchange.request, tell, is_over=lambda: sender.over)
        finally:
            sender.count()
        if sender.fault is not None:
            raise sender.fault
        if sender.whole is not None:
            await exchange.respond(sender.whole)

    return handle


class _AnswerSender:
    """Sends a program the answers to its request, whole or as they come.

    After the end ``fault`` says what failed, which a stream that had begun has told already; ``whole`` is the
    answer of one that is no stream.
    """

    def __init__(
        self, exchange: _Exchange, writer: Writer, replies: Sequence[Reply], *, idle_s: float
    ) -> None:
        self._exchange, self._writer, self._replies, self._idle_s = exchange, writer, replies, idle_s
        self._ended: dict[int, Ended] = {}
        self._started = False
        self._sent_at = trio.current_time()
        self.fault: FaultError | None = None
        self.whole: Response | None = None

    @property
    def over(self) -> bool:
        """Whether nothing more is waited for: the client may leave once it has the rest."""
        return self.fault is not None or len(self._ended) == len(self._replies)

    def count(self) -> None:
        """Note what it took so far."""
        tally = sum((each.tally for each in self._replies), Tally())
        self._exchange.record.count(tally, self._replies[-1].served)

    async def collect(self, events: trio.MemoryReceiveChannel[GatewayEvent]) -> None:
        """Wait for all answers."""
        logprobs: dict[int, list[Any]] = {}
        while not self.over:
            match await events.receive():
                case Piece() as piece:
                    self._exchange.first()
                    logprobs.setdefault(piece.choice, []).extend(piece.logprobs)
                case Over(choice=choice, ended=ended):
                    self._exchange.first()
                    before = logprobs.get(choice, [])
                    self._ended[choice] = _with_logprobs(ended, before)
                case Failed(error=error):
                    self._fail(error)
        if self.fault is None:
            whole = self._answers
            self.whole = Response(
                chat.dumped(self._writer.whole(whole)),
                media_type=_JSON,
                headers=_served_headers(whole[-1].served, tally_of(whole).cost),
            )

    @property
    def _answers(self) -> list[Ended]:
        return [self._ended[choice] for choice in sorted(self._ended)]

    async def stream(self, events: trio.MemoryReceiveChannel[GatewayEvent]) -> None:
        """Send pieces as they come, and a sign of life where none does."""
        while not self.over:
            frames = b""
            with trio.move_on_at(self._sent_at + self._idle_s) as waited:
                frames = self._frames(await events.receive())
            if waited.cancelled_caught:
                await self._send(self._writer.idle())
                continue
            while not self.over:  # what came meanwhile leaves in one piece
                try:
                    frames += self._frames(events.receive_nowait())
                except trio.WouldBlock:
                    break
            if self.fault is not None and not self._started:
                return  # it gets a status of its own
            if frames:
                await self._send(frames)
        fault = self.fault
        last = self._writer.finish(self._answers) if fault is None else self._writer.failed(fault)
        await self._send(last, more=False)

    def _frames(self, event: GatewayEvent) -> bytes:
        match event:
            case Piece(choice=choice, said=said, call_id=call_id, logprobs=logprobs):
                self._exchange.first()
                return self._writer.said(choice, said, call_id, logprobs)
            case Over(choice=choice, ended=ended):
                self._exchange.first()
                self._ended[choice] = ended
                return self._writer.ended(choice, ended)
            case Failed(error=error):
                self._fail(error)
                return b""

    def _fail(self, error: P2PNodeError) -> None:
        fault = _logged_fault(self._exchange.record, error)
        self.fault = FaultError(
            fault.status, fault.code, fault.message, param=fault.param, retry_after_s=fault.retry_after_s
        )

    async def _send(self, frames: bytes, *, more: bool = True) -> None:
        if not self._started:
            self._started = True
            self._exchange.record.status = 200
            headers = {
                "content-type": "text/event-stream; charset=utf-8",
                "cache-control": "no-cache",
                "x-accel-buffering": "no",
                "x-request-id": self._exchange.record.id,
                **_served_headers(self._replies[-1].served, None),
            }
            raw = [(name.encode(), value.encode()) for name, value in headers.items()]
            await self._exchange.send({"type": "http.response.start", "status": 200, "headers": raw})
            frames = self._writer.begin() + frames
        await self._exchange.send({"type": "http.response.body", "body": frames, "more_body": more})
        self._sent_at = trio.current_time()


def _with_logprobs(ended: Ended, before: Sequence[Any]) -> Ended:
    return replace(ended, logprobs=(*before, *ended.logprobs))


def _served_headers(served: Served, cost: int | None) -> dict[str, str]:
    """Who answers, in headers; what it cost where that is known already."""
    told = served_fields(served, cost or 0)
    if cost is None:
        del told["cost"]
    return {HEADER + name.replace("_", "-"): value for name, value in told.items() if value}


# ---- embeddings


async def _embed(service: _Service, exchange: _Exchange) -> None:
    fields = await service.fields(exchange.request)
    texts = fields.texts("input")
    if not texts:
        raise fields.fault("input", "give a text, or a list of texts")
    form = fields.text("encoding_format", "float")
    if form not in ("float", "base64"):
        raise fields.fault("encoding_format", "is float or base64")
    fields.refuse("dimensions", "vectors have as many numbers as the model gives: leave it out")
    name = fields.model()
    exchange.record.model = name
    embedding = service.gateway.embedding(
        name, texts, routing_of(exchange.request.headers, fields), exchange.caller
    )
    vectors: list[array[float]] = []

    async def embed() -> None:
        async with embedding:
            async for vector in embedding:
                exchange.first()
                vectors.append(vector)

    await _while_connected(exchange.request, embed)
    exchange.record.tokens_in, exchange.record.cost = embedding.tokens_in, embedding.cost
    host = str(embedding.bill[-1].peer) if embedding.bill else ""
    exchange.record.host = host
    data = [
        {"object": "embedding", "index": index, "embedding": _vector(vector, form)}
        for index, vector in enumerate(vectors)
    ]
    usage = {
        "prompt_tokens": embedding.tokens_in,
        "total_tokens": embedding.tokens_in,
        EXTENSION: {"host": host, "cost": usdc_number(embedding.cost)},
    }
    await exchange.respond(JSONResponse({"object": "list", "data": data, "model": name, "usage": usage}))


def _vector(vector: array[float], form: str) -> list[float] | str:
    """Numbers, or their bytes as float32, little-endian, in base64: what OpenAI's client asks for."""
    if form == "float":
        return list(vector)
    return base64.b64encode(vector_bytes(vector)).decode()


async def _while_connected(
    request: Request, work: Callable[[], Awaitable[None]], *, is_over: Callable[[], bool] = lambda: False
) -> None:
    """Do the work, as long as the client is there. Raises ``ClientDisconnect`` where it leaves before.

    ``is_over``: all is done but for what is being sent. Then the server says that the client has left,
    whether it has, or got everything.
    """
    left = False
    failed: FaultError | P2PNodeError | None = None

    async def watch(scope: trio.CancelScope) -> None:
        nonlocal left
        while (await request.receive())["type"] != "http.disconnect":
            pass
        if not is_over():
            left = True
            scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch, nursery.cancel_scope)
        try:
            await work()
        except (FaultError, P2PNodeError) as error:  # raised below, outside of the nursery's group
            failed = error
        nursery.cancel_scope.cancel()
    if left:
        raise ClientDisconnect
    if failed is not None:
        raise failed


# ---- what can be asked, and how it is here


async def _count(service: _Service, exchange: _Exchange) -> None:
    """How many tokens a prompt has; about how many, where the model's tokenizer can't be had."""
    fields = await service.fields(exchange.request)
    turn = messages.read_turn(fields)
    exchange.record.model = turn.model
    routing = routing_of(exchange.request.headers, fields)
    count, is_exact = await service.gateway.count(turn, routing, exchange.caller)
    exchange.record.tokens_in = count
    headers = {f"{HEADER}exact": "true" if is_exact else "false"}
    await exchange.respond(JSONResponse({"input_tokens": count}, headers=headers))


async def _models(service: _Service, exchange: _Exchange) -> None:
    found = await service.gateway.models(exchange.caller)
    data = [_model_object(each, exchange.stamp.created) for each in found]
    names = [each.name for each in found]
    told = {
        "object": "list",
        "data": data,
        "models": [_codex_object(each) for each in found],
        "has_more": False,
        "first_id": names[0] if names else None,
        "last_id": names[-1] if names else None,
    }
    await exchange.respond(JSONResponse(told))


async def _model(service: _Service, exchange: _Exchange) -> None:
    found = await service.gateway.model(exchange.request.path_params["name"], exchange.caller)
    await exchange.respond(JSONResponse(_model_object(found, exchange.stamp.created)))


def _model_object(model: ServedModel, created: int) -> dict[str, Any]:
    """A model in the words of several programs: OpenAI's, Anthropic's and vLLM's."""
    return {
        "id": model.name,
        "object": "model",
        "type": "model",
        "created": created,
        "created_at": datetime.fromtimestamp(created, UTC).isoformat(),
        "owned_by": "p2pnode",
        "display_name": model.name,
        "context_length": model.n_ctx,
        "max_model_len": model.n_ctx,
        "hosts": model.hosts,
        "capabilities": list(model.capabilities),
        "pricing": {
            "input": usdc_number(model.price_in),
            "output": usdc_number(model.price_out),
            "unit": "USDC per million tokens",
        },
    }


def _codex_object(model: ServedModel) -> dict[str, Any]:
    """A model as Codex reads it from a list of its own form."""
    return {
        "slug": model.name,
        "display_name": model.name,
        "description": f"{model.hosts} hosts, {model.n_ctx} tokens of context",
        "context_window": model.n_ctx,
        "supported_reasoning_levels": [],
        "shell_type": "shell_command",
        "visibility": "list",
        "supported_in_api": True,
        "priority": 0,
        "upgrade": None,
        "base_instructions": _AGENT,
        "supports_reasoning_summaries": False,
        "support_verbosity": False,
        "default_verbosity": None,
        "apply_patch_tool_type": None,
        "truncation_policy": {"mode": "bytes", "limit": _OUTPUT_BYTES},
        "supports_parallel_tool_calls": "tools" in model.capabilities,
        "experimental_supported_tools": [],
    }


async def _health(service: _Service, _request: Request) -> Response:
    network = service.gateway.client.node.network
    told = {
        "status": "ok",
        "peers": len(network.connected_peers()),
        "under_way": service.gateway.under_way,
        "keys_required": service.ring.required,
    }
    return JSONResponse(told)


async def _openapi(_request: Request) -> Response:
    return JSONResponse(openapi_document())


async def _root(_request: Request) -> Response:
    return JSONResponse({"name": "p2pnode gateway", "apis": list(_APIS)})


async def _mounted(app: ASGIApp, exchange: _Exchange) -> None:
    exchange.record.status = 200
    await app(exchange.request.scope, exchange.request.receive, exchange.send)


def _post(path: str, endpoint: _Endpoint) -> Route:
    return Route(path, endpoint, methods=["POST"])


async def _no_route(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    words = {404: "there is no such address here", 405: "this address takes no such method"}
    message = words.get(status, str(error))
    words_of = messages if request.url.path.startswith("/v1/messages") else chat
    fault = Fault(status=status, code="not_found", message=message)
    return _fault_response(words_of.error_object, fault)
