"""``RpcEndpoints``: JSON-RPC over several endpoints, tried one after another.

An endpoint that is down, slow, busy, lagging or on another chain, or that answers no JSON-RPC, is not asked
for a while (longer each time), and the next one is asked. Every request may be repeated: reads, and raw
transactions, which are the same bytes each time. A JSON-RPC *error* about the request itself (a revert, a
used nonce) is an answer: ``RpcError``. Endpoints are shown without user, path and query, which hold API keys.
This module knows nothing of contracts; the randomness of its pauses is injected.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import structlog
import trio

from p2pnode.bounded import backoff_s
from p2pnode.chain.evm.rpc_answers import (
    RpcError,
    UnusableError,
    Usable,
    endpoint_name,
    quantity,
    read_answer,
    secrets_of,
    without,
)
from p2pnode.chain.ledger import ChainMadeAnewError, UnavailableError
from p2pnode.errors import ChainError

if TYPE_CHECKING:
    import httpx

Jitter: TypeAlias = Callable[[], float]
"""A random number in [0, 1)."""

_log = structlog.get_logger()
_OK: Final = 200
_CONNECTIONS_MAX: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class RpcLimits:
    """Deadlines and bounds. ``deadline_s`` holds for all tries of one request together."""

    request_deadline_s: float = 10.0
    deadline_s: float = 20.0
    response_bytes_max: int = 4 << 20
    rest_first_s: float = 0.25
    rest_max_s: float = 30.0
    chain_recheck_s: float = 60.0
    genesis_recheck_s: float = 1.0
    """The same where the first block is known: a development chain may be made anew at any time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointStatus:
    """What ``doctor`` shows. Ages are in seconds; None means never."""

    endpoint: str
    resting: bool
    last_error: str | None
    last_error_age_s: float | None
    last_success_age_s: float | None


Fault: TypeAlias = Literal["down", "wrong_chain", "made_anew", "too_large"]


class _FaultError(Exception):
    """This endpoint failed; another may answer. ``delivered``: it may have acted on what we sent."""

    def __init__(self, what: str, fault: Fault = "down", *, delivered: bool = True) -> None:
        super().__init__(what)
        self.fault: Fault = fault
        self.delivered = delivered


@dataclass(slots=True, eq=False)
class _Endpoint:
    url: str
    name: str
    secrets: tuple[str, ...]
    failures: int = 0
    resting_until: float = 0.0
    checked_until: float = 0.0
    fault: Fault | None = None
    last_error: str | None = None
    last_error_at: float | None = None
    last_success_at: float | None = None


@dataclass(slots=True)
class _Round:
    """The tries of one request: each endpoint's fault, and whether one of them may have acted on it."""

    doubt: bool = False
    faults: dict[str, Fault] = field(default_factory=dict)


class RpcEndpoints:
    """See the module. Close it with ``aclose``. ``transport`` replaces the network in tests.

    ``chain_id`` is the chain that every endpoint must serve (None: any); ``genesis`` the hash of its first
    block.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        chain_id: int | None,
        genesis: bytes | None = None,
        jitter: Jitter,
        limits: RpcLimits | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        import httpx

        if not urls:
            msg = "no RPC endpoint: name at least one under rpc_urls in the chain profile"
            raise ChainError(msg)
        # httpx writes whole URLs, keys and all, to its log.
        logging.getLogger("httpx").setLevel(logging.WARNING)
        self._limits = limits or RpcLimits()
        self._chain_id, self._genesis = chain_id, genesis
        self._jitter = jitter
        self._endpoints = [_Endpoint(url, endpoint_name(url), secrets_of(url)) for url in urls]
        self._first = 0
        self._requests = 0
        self._client = httpx.AsyncClient(
            trust_env=False,
            timeout=None,  # noqa: S113 - deadlines are cancel scopes
            transport=transport,
            limits=httpx.Limits(max_connections=_CONNECTIONS_MAX),
            headers={"content-type": "application/json", "accept-encoding": "identity"},
        )

    async def request(self, method: str, params: Sequence[Any], usable: Usable | None = None) -> Any:
        """The ``result``. Where ``usable`` names something that the result lacks, the endpoint has failed.

        Raises ``RpcError`` for an answer that is an error, ``UnavailableError`` when no endpoint answered
        within the deadline, ``ChainError`` when all of them are on another chain, ``ChainMadeAnewError`` when
        the chain they are on has another first block.
        """
        tries = _Round()
        with trio.move_on_after(self._limits.deadline_s) as scope:
            while True:
                for endpoint in self._in_turn():
                    try:
                        return await self._ask(endpoint, method, params, usable)
                    except _FaultError as fault:
                        self._rest(endpoint, fault)
                        tries.doubt |= fault.delivered
                        tries.faults[endpoint.url] = fault.fault
                    except RpcError as error:
                        error.doubt = tries.doubt
                        raise
                self._give_up_if_decided(tries)
                wake = min(endpoint.resting_until for endpoint in self._endpoints)
                if wake > scope.deadline:
                    break
                await trio.sleep_until(wake)
        msg = (
            f"no RPC endpoint answered ({self._said()}): try again later, or name another under rpc_urls "
            "in the chain profile"
        )
        raise UnavailableError(msg)

    async def ask_another(self, method: str, params: Sequence[Any], usable: Usable | None = None) -> Any:
        """The ``result`` of an endpoint other than the one that answered last. Each is tried once.

        Raises ``UnavailableError`` where there is no other endpoint, or none of them answers.
        """
        others = [each for each in self._in_turn() if each is not self._endpoints[self._first]]
        return (await self._ask_some(others, 1, method, params, usable))[0]

    async def ask_two(self, method: str, params: Sequence[Any], usable: Usable | None = None) -> list[Any]:
        """The ``result`` of each of two endpoints. Each is tried once.

        Nothing tells which endpoint answered an earlier request, so both are asked here.

        Raises ``UnavailableError`` where fewer than two answer.
        """
        return await self._ask_some(self._in_turn(), 2, method, params, usable)

    async def _ask_some(
        self,
        endpoints: Sequence[_Endpoint],
        count: int,
        method: str,
        params: Sequence[Any],
        usable: Usable | None,
    ) -> list[Any]:
        """The results of ``count`` of these endpoints. Later requests still go to the one asked before."""
        results: list[Any] = []
        for endpoint in endpoints:
            try:
                results.append(await self._ask(endpoint, method, params, usable, keep=False))
            except _FaultError as fault:
                self._rest(endpoint, fault)
            except RpcError as error:
                raise UnavailableError(str(error)) from error
            if len(results) == count:
                return results
        msg = "no second RPC endpoint answers: name one under rpc_urls in the chain profile"
        raise UnavailableError(msg)

    @property
    def several(self) -> bool:
        """Whether there is more than one endpoint."""
        return len(self._endpoints) > 1

    def status(self) -> tuple[EndpointStatus, ...]:
        """The health of each endpoint, in the profile's order."""
        now = trio.current_time()

        def age(at: float | None) -> float | None:
            return None if at is None else now - at

        return tuple(
            EndpointStatus(
                endpoint=endpoint.name,
                resting=endpoint.resting_until > now,
                last_error=endpoint.last_error,
                last_error_age_s=age(endpoint.last_error_at),
                last_success_age_s=age(endpoint.last_success_at),
            )
            for endpoint in self._endpoints
        )

    async def aclose(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    def _in_turn(self) -> list[_Endpoint]:
        """Those that may be asked, first the one that answered last: so answers come from one node's view."""
        now = trio.current_time()
        order = self._endpoints[self._first :] + self._endpoints[: self._first]
        return [endpoint for endpoint in order if endpoint.resting_until <= now]

    def _rest(self, endpoint: _Endpoint, fault: _FaultError) -> None:
        now = trio.current_time()
        if endpoint.last_error is None or endpoint.failures == 0:
            _log.warning("chain.rpc_failed", endpoint=endpoint.name, error=str(fault))
        endpoint.last_error, endpoint.last_error_at, endpoint.fault = str(fault), now, fault.fault
        endpoint.checked_until = 0.0
        if fault.fault == "made_anew" and len(self._endpoints) == 1:
            return  # it answers, and there is no other: the next request asks it again
        if endpoint.resting_until > now:
            return  # another request has counted this failure already
        whole = backoff_s(endpoint.failures, first_s=self._limits.rest_first_s, max_s=self._limits.rest_max_s)
        endpoint.failures += 1
        endpoint.resting_until = now + whole * (1.0 + self._jitter()) / 2.0

    def _give_up_if_decided(self, tries: _Round) -> None:
        """Raise where all endpoints have the same fault and asking again won't change it."""
        found = {tries.faults.get(endpoint.url) for endpoint in self._endpoints}
        said = self._said()
        if found == {"wrong_chain"}:
            msg = f"{said}: correct chain_id or rpc_urls in the chain profile"
            raise ChainError(msg)
        if found == {"made_anew"}:
            raise ChainMadeAnewError
        if found == {"too_large"}:
            raise RpcError(0, said, None)

    def _said(self) -> str:
        return "; ".join(f"{one.name} {one.last_error or 'was not asked'}" for one in self._endpoints)

    async def _ask(
        self,
        endpoint: _Endpoint,
        method: str,
        params: Sequence[Any],
        usable: Usable | None,
        *,
        keep: bool = True,
    ) -> Any:
        """``keep``: later requests ask this endpoint first."""
        if self._chain_id is not None and trio.current_time() >= endpoint.checked_until:
            found = await self._chain_of(endpoint)
            if found != self._chain_id:
                msg = f"serves chain {found}, not {self._chain_id}"
                raise _FaultError(msg, "wrong_chain", delivered=False)
            limits = self._limits
            endpoint.checked_until = trio.current_time() + limits.chain_recheck_s
            if self._genesis is not None:
                await self._check_genesis(endpoint, self._genesis)
                endpoint.checked_until = trio.current_time() + limits.genesis_recheck_s
        result = await self._post(endpoint, method, params)
        if usable is not None and (missing := usable(result)):
            msg = f"gave no usable answer to {method}: {missing} is missing or malformed"
            raise _FaultError(msg)
        if endpoint.failures and endpoint.last_success_at is not None:
            _log.info("chain.rpc_recovered", endpoint=endpoint.name)
        endpoint.failures, endpoint.last_success_at = 0, trio.current_time()
        endpoint.resting_until = 0.0
        if keep:
            self._first = self._endpoints.index(endpoint)
        return result

    async def _chain_of(self, endpoint: _Endpoint) -> int:
        try:
            found = quantity(await self._post(endpoint, "eth_chainId", []))
        except _FaultError as fault:
            raise _FaultError(str(fault), fault.fault, delivered=False) from fault
        except RpcError:
            found = None
        if found is None:
            msg = "does not name its chain"
            raise _FaultError(msg, delivered=False)
        return found

    async def _check_genesis(self, endpoint: _Endpoint, genesis: bytes) -> None:
        try:
            block = await self._post(endpoint, "eth_getBlockByNumber", ["0x0", False])
            found = str(block["hash"]).lower()
        except _FaultError as fault:
            raise _FaultError(str(fault), fault.fault, delivered=False) from fault
        except (RpcError, TypeError, KeyError) as error:
            msg = "does not show its first block"
            raise _FaultError(msg, delivered=False) from error
        if found != "0x" + genesis.hex():
            msg = "serves a chain that was made anew"
            raise _FaultError(msg, "made_anew", delivered=False)

    async def _post(self, endpoint: _Endpoint, method: str, params: Sequence[Any]) -> Any:
        import httpx

        self._requests += 1
        number = self._requests
        order = {"jsonrpc": "2.0", "id": number, "method": method, "params": list(params)}
        try:
            with trio.fail_after(self._limits.request_deadline_s):
                request = self._client.build_request("POST", endpoint.url, content=json.dumps(order))
                request.stream = _body_of(request)
                response = await self._client.send(request, stream=True)
                async with aclosing(response):
                    if response.status_code != _OK:
                        msg = f"answered HTTP {response.status_code}"
                        raise _FaultError(msg)
                    body = await self._read(response)
        except trio.TooSlowError as error:
            msg = f"did not answer within {self._limits.request_deadline_s:g} s"
            raise _FaultError(msg) from error
        except (httpx.ConnectError, httpx.UnsupportedProtocol, httpx.InvalidURL, UnicodeError) as error:
            msg = "can't be reached"
            raise _FaultError(msg, delivered=False) from error
        except (httpx.HTTPError, httpx.StreamError, OSError) as error:
            msg = f"broke the connection ({type(error).__name__})"
            raise _FaultError(msg) from error
        try:
            return read_answer(body, number, method)
        except UnusableError as error:
            raise _FaultError(without(endpoint.secrets, str(error))) from None
        except RpcError as error:
            raise RpcError(error.code, without(endpoint.secrets, error.said), error.data) from None

    async def _read(self, response: httpx.Response) -> bytes:
        """The body, within its bound. We asked for no compression, which would hide its size."""
        if response.headers.get("content-encoding", "identity") != "identity":
            msg = "compressed its answer, which it was not asked to do"
            raise _FaultError(msg)
        body, most = bytearray(), self._limits.response_bytes_max
        # Leaving the loop would leave httpx's generators open; a cancellation inside it unwinds them.
        with trio.CancelScope() as enough:
            async for part in response.aiter_raw():
                if len(body) + len(part) > most:
                    enough.cancel()
                else:
                    body += part
        if enough.cancel_called:
            msg = f"answered with more than {most} bytes"
            raise _FaultError(msg, "too_large")
        return bytes(body)


def _body_of(request: httpx.Request) -> httpx.AsyncByteStream:
    """The body as an iterator that is no generator: httpx's own generator, cancelled in the middle, would be
    left to the garbage collector."""
    import httpx

    class Body(httpx.AsyncByteStream):
        def __init__(self, content: bytes) -> None:
            self._parts = [content]

        def __aiter__(self) -> AsyncIterator[bytes]:
            return self

        async def __anext__(self) -> bytes:
            if not self._parts:
                raise StopAsyncIteration
            return self._parts.pop()

    return Body(request.content)
