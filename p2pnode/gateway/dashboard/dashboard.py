"""The dashboard's pages and its API, as an ASGI application around the gateway's.

Paths under ``/dashboard`` are answered here, all others by the gateway. The pages are files of this package:
they hold no data, so anybody may have them. Each request to ``/dashboard/api/`` has to bring both secrets of
a browser's session (``access.py``), and must come from a page of this very address: the ``Host`` is this
machine's, the ``Origin`` is the address that was asked. So neither a page of any site, nor a name that
resolves to this machine, nor another user of it gets in.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import structlog
import trio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from p2pnode.errors import P2PNodeError
from p2pnode.files import off_the_loop
from p2pnode.gateway import chat
from p2pnode.gateway.access import Caller
from p2pnode.gateway.app import Observer, RequestRecord
from p2pnode.gateway.dashboard.access import Access, AccessFile, LinkError
from p2pnode.gateway.dashboard.kept_chats import KeptChats, read_sid
from p2pnode.gateway.dashboard.node_view import NodeView
from p2pnode.gateway.faults import Fault, FaultError, fault_of
from p2pnode.gateway.fields import Fields, read_object
from p2pnode.gateway.gateway import Failed, Gateway, GatewayEvent, Over, Piece, Reply
from p2pnode.gateway.turn import Routing, Stamp, Turn, event_frame, routing_of, served_fields
from p2pnode.http_server import names_this_machine
from p2pnode.limits import Limits
from p2pnode.storage.conversations.records import ArchiveError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from p2pnode.client.answer import Answer
    from p2pnode.client.chat_options import ChatOptions
    from p2pnode.client.conversation import Conversation

ROOT: Final = "/dashboard"
PAGE_HEADER: Final = "x-p2pnode-dashboard"
KEY_ID: Final = "dashboard"
"""What stands for a key in the records of requests that come from the chat page."""
_CALLER: Final = Caller(key_id=KEY_ID)
_STREAMS_MAX: Final = 16
_TICK_S: Final = 1.0
_ALIVE_S: Final = 15.0
_LOGIN_BYTES_MAX: Final = 4096
_NONCE_BYTES: Final = 16
_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
_POLICY: Final = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
_HEADERS: Final = (
    (b"content-security-policy", _POLICY),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), microphone=(), geolocation=()"),
)
Handle: TypeAlias = Callable[[Request], Awaitable[Response]]
Tell: TypeAlias = Callable[[bytes], Awaitable[None]]
log = structlog.get_logger()


class Dashboard:
    """``gateway_app`` answers what isn't the dashboard's. ``names`` and ``open_host`` are as in
    ``AppOptions``."""

    def __init__(
        self,
        gateway_app: ASGIApp,
        gateway: Gateway,
        view: NodeView,
        key_file: AccessFile,
        access: Access,
        *,
        names: tuple[str, ...] = (),
        open_host: bool = False,
        observe: Observer | None = None,
        limits: Limits,
    ) -> None:
        self._gateway_app, self._gateway, self._view, self._observe = gateway_app, gateway, view, observe
        self._file, self._access = key_file, access
        self._names, self._open_host, self._limits = names, open_host, limits
        self._chats = KeptChats(gateway.client)
        self._signing_in = trio.Lock()
        self._streams = 0
        self._closing = trio.Event()
        self._static = _static_files()
        guarded = partial(_Guarded, self)
        self._app = Starlette(
            routes=[
                Route(ROOT, self._redirect, methods=["GET"]),
                Route(f"{ROOT}/", self._page, methods=["GET"]),
                Route(f"{ROOT}/static/{{name}}", self._page, methods=["GET"]),
                Route(f"{ROOT}/api/sign-in", self._sign_in, methods=["POST"]),
                Route(f"{ROOT}/api/sign-out", guarded(self._sign_out), methods=["POST"]),
                Route(f"{ROOT}/api/events", guarded(self._events), methods=["GET"]),
                Route(f"{ROOT}/api/checks", guarded(self._checks), methods=["GET"]),
                Route(f"{ROOT}/api/chat", guarded(self._chat), methods=["POST"]),
                Route(f"{ROOT}/api/conversations", guarded(self._conversations), methods=["GET"]),
                Route(f"{ROOT}/api/conversations/{{sid}}", guarded(self._conversation), methods=["GET"]),
                Route(f"{ROOT}/api/conversations/{{sid}}/forget", guarded(self._forget), methods=["POST"]),
                Route(f"{ROOT}/api/hosts/{{peer}}", guarded(self._host), methods=["GET"]),
                Route(f"{ROOT}/api/{{name}}", guarded(self._section), methods=["GET"]),
            ],
            exception_handlers={HTTPException: _no_route},
        )
        self._app.router.redirect_slashes = False

    def close(self) -> None:
        """End the streams of those who watch: a server that stops waits for requests under way."""
        self._closing.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] != "http" or not (path == ROOT or path.startswith(f"{ROOT}/")):
            await self._gateway_app(scope, receive, send)
            return

        async def send_safe(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = list(message.get("headers", []))
                named = {name.lower() for name, _ in given}
                given += [each for each in _HEADERS if each[0] not in named]
                if b"cache-control" not in named:
                    given.append((b"cache-control", b"no-store"))
                message = {**message, "headers": given}
            await send(message)

        refusal = self._refusal(Request(scope))
        await (_said(403, refusal) if refusal else self._app)(scope, receive, send_safe)

    # ---- who may come in

    def _refusal(self, request: Request) -> str:
        """Why it is not of a page of this address; "" where it may be."""
        host = request.headers.get("host", "")
        if not (names_this_machine(host, self._names) or (self._open_host and _is_address(host))):
            return "the Host header is no address of this machine: open the dashboard by its address"
        origin = request.headers.get("origin")
        if origin is not None and origin not in (f"http://{host}", f"https://{host}"):
            return "another page may not use the dashboard"
        if request.headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            return "another page may not use the dashboard"
        return ""

    def admits(self, request: Request) -> bool:
        """Whether a browser that is signed in asks."""
        cookie = request.cookies.get(_cookie_name(request), "")
        return self._access.admits(cookie, request.headers.get(PAGE_HEADER, ""), time.time())

    async def _sign_in(self, request: Request) -> Response:
        if PAGE_HEADER not in request.headers:  # a form can't send it, and a script of another page may not
            return _said(403, "sign in from the page of the dashboard")
        try:
            fields = read_object(await self._body(request, _LOGIN_BYTES_MAX))
            async with self._signing_in:
                session = self._access.begin(
                    fields.text("token"), secrets.token_bytes(_NONCE_BYTES), time.time()
                )
                await off_the_loop(partial(self._file.save, self._access))
        except LinkError as error:
            return _said(403, f"{error}: `p2pnode dashboard` prints a new one")
        except FaultError as error:
            return _refused(error)
        response = JSONResponse({"secret": session.secret})
        response.set_cookie(
            _cookie_name(request),
            session.cookie,
            max_age=30 * 24 * 3600,
            path=ROOT,
            httponly=True,
            samesite="strict",
        )
        return response

    async def _sign_out(self, request: Request) -> Response:
        """Sign out every browser."""
        self._access = await off_the_loop(self._file.renew)
        log.info("dashboard.signed_out")
        response = JSONResponse({})
        response.delete_cookie(_cookie_name(request), path=ROOT)
        return response

    # ---- pages

    async def _redirect(self, _request: Request) -> Response:
        return RedirectResponse(f"{ROOT}/", 308)

    async def _page(self, request: Request) -> Response:
        name = request.path_params.get("name", "index.html")
        found = self._static.get(name)
        if found is None:
            return _said(404, "there is no such page here")
        kind = _TYPES[name[name.rindex(".") :]]
        return Response(found, headers={"content-type": kind, "cache-control": "no-cache"})

    # ---- what is shown

    async def _section(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self._view.names:
            return _said(404, f"there is no section of this name: there are {', '.join(self._view.names)}")
        return JSONResponse(await self._view.section(name))

    async def _host(self, request: Request) -> Response:
        try:
            found = await self._view.host(request.path_params["peer"])
        except P2PNodeError as error:
            return _said(502, str(error))
        return JSONResponse(found) if found is not None else _said(404, "no host of this id is known now")

    async def _events(self, request: Request) -> Response:
        asked = request.query_params.get("sections", "")
        wanted = [name for name in self._view.names if name in asked.split(",")]
        return _Stream(self, partial(self._watch, wanted))

    async def _watch(self, wanted: list[str], tell: Tell) -> None:
        """Each section at once, and again whenever it has changed."""
        told: dict[str, bytes] = {}
        silent_since = trio.current_time()
        while True:
            for name in wanted:
                data = _dumped(await self._view.section(name))
                if told.get(name) != data:
                    told[name] = data
                    await tell(event_frame(data, name))
                    silent_since = trio.current_time()
            if trio.current_time() >= silent_since + _ALIVE_S:
                await tell(b": alive\n\n")
                silent_since = trio.current_time()
            await trio.sleep(_TICK_S)

    async def _checks(self, _request: Request) -> Response:
        return _Stream(self, self._check)

    async def _check(self, tell: Tell) -> None:
        async for finding in self._view.examine():
            await tell(event_frame(_dumped(finding), "finding"))
        await tell(event_frame(b"{}", "end"))

    # ---- the chat page

    async def _chat(self, request: Request) -> Response:
        stamp = Stamp(id=secrets.token_hex(12), created=int(time.time()))
        record = RequestRecord(face=KEY_ID, id=f"req_{stamp.id}", key_id=KEY_ID, stream=True)
        began = trio.current_time()
        try:
            fields = read_object(await self._body(request, self._limits.gateway_body_bytes_max))
            turn, routing = _turn(fields, stamp), routing_of({}, fields)
            record.model = turn.model
            if "keep" in fields:
                kept = _Kept.read(fields, turn, routing)
                return _Stream(self, partial(self._answer_kept, kept, record, began))
            reply = await self._gateway.reply(turn, routing, _CALLER)
        except (FaultError, P2PNodeError) as error:
            return _refused(error)
        return _Stream(self, partial(self._answer, reply, record, began))

    async def _answer_kept(self, kept: _Kept, record: RequestRecord, began: float, tell: Tell) -> None:
        """An answer in a conversation that this data dir keeps. ``kept`` tells its id, and tells it again at
        the end with why not all of it could be written down."""
        turn = kept.turn
        begun: list[Conversation] = []

        async def begin(options: ChatOptions) -> Answer:
            conversation, answer = await self._chats.begin(kept.sid, turn, options, go_on=kept.go_on)
            begun.append(conversation)
            return answer

        told = b""

        async def tell_kept(frames: bytes) -> None:
            nonlocal told
            stored = begun[0].stored
            if stored is not None and told != stored.sid:
                told = stored.sid
                await tell(event_frame(_dumped({"id": told.hex(), "why_not": ""}), "kept"))
            await tell(frames)

        try:
            with self._chats.taken(kept.sid):
                reply = await self._gateway.reply(turn, kept.routing, _CALLER, begin)
                try:
                    await self._answer(reply, record, began, tell_kept)
                finally:
                    with trio.CancelScope(shield=True):  # who leaves in the middle finds it in the list
                        why_not = await self._chats.written(begun[0], self._gateway.model_of(turn.model))
                stored = begun[0].stored
                sid = stored.sid.hex() if stored is not None else ""
                await tell(event_frame(_dumped({"id": sid, "why_not": why_not}), "kept"))
        except (FaultError, P2PNodeError) as error:
            fault = _fault(error)
            record.outcome, record.status = fault.code, fault.status
            await tell(event_frame(_dumped({"message": fault.message, "code": fault.code}), "failed"))

    # ---- conversations that are kept

    async def _conversations(self, _request: Request) -> Response:
        try:
            return JSONResponse(await self._chats.listed())
        except P2PNodeError as error:
            return _refused(error)

    async def _conversation(self, request: Request) -> Response:
        try:
            return JSONResponse(await self._chats.shown(read_sid(request.path_params["sid"])))
        except (FaultError, P2PNodeError) as error:
            return _refused(error)

    async def _forget(self, request: Request) -> Response:
        try:
            await self._chats.forget(read_sid(request.path_params["sid"]))
        except (FaultError, P2PNodeError) as error:
            return _refused(error)
        return JSONResponse({})

    async def _answer(self, reply: Reply, record: RequestRecord, began: float, tell: Tell) -> None:
        """One answer as events: ``host`` whenever another one gives it, ``said`` for each piece, ``end`` or
        ``failed``."""
        host = ""
        record.status, record.outcome = 200, "left"
        self._gateway.under_way += 1
        try:
            async with self._gateway.events([reply]) as events:
                while record.outcome == "left":
                    event: GatewayEvent | None = None
                    with trio.move_on_after(self._limits.gateway_idle_s):
                        event = await events.receive()
                    if reply.served.host != host and reply.served.host:
                        why = self._view.last_failure(host) if host else ""
                        told = {**served_fields(reply.served, 0), "before": host, "why": why}
                        await tell(event_frame(_dumped(told), "host"))
                        host = reply.served.host
                    if record.ttft_s is None and isinstance(event, (Piece, Over)):
                        record.ttft_s = trio.current_time() - began
                    await tell(self._frame(event, record))
        finally:
            self._gateway.under_way -= 1
            record.count(reply.tally, reply.served)
            record.total_s = trio.current_time() - began
            self._gateway.note(record.face, record.status)
            if self._observe is not None:
                self._observe(record)

    @staticmethod
    def _frame(event: GatewayEvent | None, record: RequestRecord) -> bytes:
        match event:
            case None:
                return b": alive\n\n"
            case Piece(said=said, call_id=call_id):
                told = {"channel": said.channel, "text": said.text, "call": said.call}
                named = {"name": said.name, "id": call_id} if said.name else {}
                return event_frame(_dumped({**told, **named}), "said")
            case Over(ended=ended):
                record.outcome = "ok"
                tally = ended.tally
                told = {
                    "finish": ended.finish,
                    "context_full": ended.context_full,
                    "tokens_in": tally.tokens_in,
                    "reused": tally.reused,
                    "tokens_out": tally.tokens_out,
                    "cost": tally.cost,
                    "calls": [
                        {"id": each.id, "name": each.name, "arguments": each.arguments}
                        for each in ended.calls
                    ],
                    **{f"served_{key}": value for key, value in served_fields(ended.served, 0).items()},
                }
                return event_frame(_dumped(told), "end")
            case Failed(error=error):
                fault: Fault = fault_of(error)
                record.outcome, record.status = fault.code, fault.status
                return event_frame(_dumped({"message": fault.message, "code": fault.code}), "failed")

    # ---- bodies and streams

    async def _body(self, request: Request, bytes_max: int) -> bytes:
        """The whole body, which has to be JSON. Raises ``FaultError``."""
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise FaultError(415, "unsupported_media_type", "send application/json")
        data = bytearray()
        with trio.move_on_after(self._limits.gateway_stall_s) as waited:
            async for chunk in request.stream():
                data += chunk
                if len(data) > bytes_max:
                    raise FaultError(413, "request_too_large", f"at most {bytes_max} bytes are taken")
        if waited.cancelled_caught:
            raise FaultError(408, "timeout", "the body did not come in time")
        return bytes(data)

    @asynccontextmanager
    async def a_stream(self) -> AsyncIterator[trio.CancelScope | None]:
        """A place for a stream, which ends with the server; None where all are taken."""
        if self._streams >= _STREAMS_MAX:
            yield None
            return
        self._streams += 1
        try:
            async with trio.open_nursery() as nursery:

                async def end() -> None:
                    await self._closing.wait()
                    nursery.cancel_scope.cancel()

                nursery.start_soon(end)
                yield nursery.cancel_scope
                nursery.cancel_scope.cancel()
        finally:
            self._streams -= 1


class _Guarded:
    """A route of the API: only for a browser that is signed in."""

    def __init__(self, dashboard: Dashboard, handle: Handle) -> None:
        self._dashboard, self._handle = dashboard, handle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            if self._dashboard.admits(request):
                response = await self._handle(request)
            else:
                words = "this browser is not signed in: open a link that `p2pnode dashboard` prints"
                response = _said(401, words)
        except ClientDisconnect:
            return
        await response(scope, receive, send)


class _Stream(Response):
    """Server-sent events, which ``produce`` tells until it is done, or the client leaves."""

    def __init__(self, dashboard: Dashboard, produce: Callable[[Tell], Awaitable[None]]) -> None:
        super().__init__()
        self._dashboard, self._produce = dashboard, produce

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._dashboard.a_stream() as place:
            if place is None:
                await _said(503, "too many pages are open: close some")(scope, receive, send)
                return
            headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"x-accel-buffering", b"no")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})

            async def tell(frames: bytes) -> None:
                await send({"type": "http.response.body", "body": frames, "more_body": True})

            async def watch() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                place.cancel()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(watch)
                await self._produce(tell)
                nursery.cancel_scope.cancel()
        with trio.move_on_after(_TICK_S):
            await send({"type": "http.response.body", "body": b"", "more_body": False})


@dataclass(frozen=True, slots=True)
class _Kept:
    """A question in a conversation of those that are kept; in a new one where ``sid`` is None. ``go_on`` asks
    for the rest of its last answer."""

    turn: Turn
    routing: Routing
    sid: bytes | None
    go_on: bool

    @classmethod
    def read(cls, fields: Fields, turn: Turn, routing: Routing) -> _Kept:
        """The field ``keep`` of a request. Raises ``FaultError``."""
        if turn.tools:  # what is kept of a conversation has no calls, and would make no sense
            raise fields.fault("tools", "can't be asked with in a conversation that is kept: begin a new one")
        if turn.messages[-1].role != "user":
            raise fields.fault("messages", "end with what the user says, in a conversation that is kept")
        keep = fields.record("keep")
        sid = keep.text("id")
        return cls(turn, routing, read_sid(sid) if sid else None, keep.flag("go_on") and bool(sid))


def _turn(fields: Fields, stamp: Stamp) -> Turn:
    """What the chat page asks: as OpenAI's API has it, one answer. Raises ``FaultError``."""
    asked = chat.read_chat(fields, stamp)
    if len(asked.turns) != 1:
        raise fields.fault("n", "is 1 here")
    return asked.turns[0]


def _fault(error: FaultError | P2PNodeError) -> Fault:
    if isinstance(error, ArchiveError):
        return Fault(status=404, code="no_conversation", message=str(error))
    return error.fault if isinstance(error, FaultError) else fault_of(error)


def _refused(error: FaultError | P2PNodeError) -> Response:
    fault = _fault(error)
    return _said(fault.status, fault.message, fault.code)


def _static_files() -> Mapping[str, bytes]:
    folder = files("p2pnode.gateway.dashboard") / "static"
    return {
        each.name: each.read_bytes()
        for each in folder.iterdir()
        if "." in each.name and each.name[each.name.rindex(".") :] in _TYPES
    }


def _cookie_name(request: Request) -> str:
    """Cookies of one machine's ports are not told apart: their names are."""
    _, _, port = request.headers.get("host", "").rpartition(":")
    return f"p2pnode_dashboard_{port if port.isdigit() else 80}"


def _is_address(host: str) -> bool:
    """Whether a ``Host`` header has an IP address, which nobody can make resolve to another machine."""
    name, colon, port = host.rpartition(":")
    bare = name if colon and port.isdigit() else host
    try:
        ip_address(bare.strip("[]"))
    except ValueError:
        return False
    return True


def _said(status: int, message: str, code: str = "") -> Response:
    return JSONResponse({"error": {"message": message, "code": code}}, status)


async def _no_route(_request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    words = {404: "there is no such page here", 405: "this address takes no such method"}
    return _said(status, words.get(status, str(error)))


def _dumped(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode(errors="replace")
