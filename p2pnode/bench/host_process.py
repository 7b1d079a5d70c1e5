"""A host in a process of its own that can also run its engine without any network.

Configured by one line: ``engine`` (by name; ``model``, and ``bare`` for exllama), ``data_dir`` (for the
model), ``slots``, ``n_ctx``, ``tokens_per_s`` (scripted, for each slot), ``by_prefix`` (loopback addresses
count by their /24, as public ones do). Then it takes commands: ``generate`` runs ``questions`` at once on
the engine alone, and answers with what each stream did; ``sessions`` says how many sessions it has now.
Its first answer has the socket and the key of llama.cpp's own server, where that is its engine.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio

from p2pnode.bench.processes import Command, answer, run_child
from p2pnode.bench.token_clock import TokenClock
from p2pnode.config import DEFAULT_MODEL
from p2pnode.host.host import Host
from p2pnode.host.model_pool import HostedModel
from p2pnode.ids import PeerId
from p2pnode.models.catalogue import Catalogue
from p2pnode.models.engine import Engine, GenerateRequest, Tokens
from p2pnode.models.engines import EngineSpec, make_engine, parse_engine_name
from p2pnode.models.exllama.engine import ExllamaEngine
from p2pnode.models.llamacpp.engine import LlamaCppConfig, LlamaCppEngine
from p2pnode.models.local_models import LocalModel
from p2pnode.models.manifest import SCRIPTED, scripted_model_id
from p2pnode.models.pull.pull import pull
from p2pnode.node.identity import HostIdentity
from p2pnode.node.keys import PeerKey
from p2pnode.node.node import Node, NodeSetup
from p2pnode.protocols.adverts.signatures import BINDING_TTL_MAX_S, BindingTerms, bind
from p2pnode.protocols.crypto import key_address, sign_digest
from p2pnode.protocols.inference.messages import ChatMessage, PromptBody, SamplingParams
from p2pnode.scopes import is_loopback
from p2pnode.shares import Origin, origin_of

LISTEN = "/ip4/127.0.0.1/tcp/0"
_HANG_S: Final = 900.0


async def main(commands: AsyncIterator[Command]) -> None:
    """Serve until the commands end."""
    config = await anext(commands)
    hosted = await _hosted(config)
    identity = _identity()
    async with trio.open_nursery() as nursery:
        rule = _by_prefix if config.get("by_prefix") else origin_of
        node = Node(NodeSetup(key=identity.key, listen=(LISTEN,), keep_connected=False, origin_rule=rule))
        await nursery.start(node.run)
        host = Host(node, identity, [hosted])
        await host.start()
        [echo] = await nursery.start(partial(trio.serve_tcp, _echo, 0, host="127.0.0.1"))
        port = echo.socket.getsockname()[1]
        answer(
            {
                "model": hosted.name,
                "multiaddr": node.multiaddrs[0],
                "peer": str(identity.key.peer_id),
                "echo_port": port,
                **_server_of(hosted.new_engine()),
            }
        )
        async for command in commands:
            if command["do"] == "sessions":
                answer({"sessions": host.sessions})
            else:
                engine = hosted.new_engine()
                bare = isinstance(engine, ExllamaEngine) and config.get("bare")
                answer({"streams": await (_bare if bare else _generate)(engine, command)})
        await node.aclose()
        nursery.cancel_scope.cancel()


def _server_of(engine: Engine) -> dict[str, Any]:
    """Where the server of llama.cpp listens that computes for this engine; nothing for another engine."""
    running = engine.child if isinstance(engine, LlamaCppEngine) else None
    if running is None:
        return {}
    http = running.http
    return {"engine_pid": running.pid, "engine_address": http.address, "engine_key": http.key}


def _by_prefix(host: str | None, peer: PeerId) -> Origin:
    """Loopback addresses by their /24; any other as the node counts it."""
    if host is None or not is_loopback(host):
        return origin_of(host, peer)
    prefix = host.rpartition(".")[0]
    return Origin(wide=prefix, near=prefix)


async def _echo(stream: trio.SocketStream) -> None:
    """Plain TCP, for a baseline."""
    with suppress(trio.BrokenResourceError):
        async for data in stream:
            await stream.send_all(data)


async def _generate(engine: Engine, command: dict[str, Any]) -> list[dict[str, float]]:
    """The host's own way from a conversation to tokens, without a session around it."""
    clocks: list[TokenClock] = []

    async def stream(text: str) -> None:
        clock = TokenClock(trio.current_time())
        clocks.append(clock)
        request = await _request(engine, text, command["tokens"])
        came = 0
        async with engine.generate(request) as events:
            async for event in events:
                if isinstance(event, Tokens):
                    came += len(event.ids)
                    clock.came(came)

    async with trio.open_nursery() as nursery:
        for text in command["questions"]:
            nursery.start_soon(stream, text)
    return [
        {"tokens": c.tokens, "tokens_per_s": c.tokens_per_s, "first_token_s": c.first_token_s} for c in clocks
    ]


async def _bare(engine: Engine, command: dict[str, Any]) -> list[dict[str, float]]:
    """The library's own loop, without an engine around it."""
    assert isinstance(engine, ExllamaEngine)  # noqa: S101 - see main
    requests = [await _request(engine, text, command["tokens"]) for text in command["questions"]]
    return [
        {
            "tokens": made,
            "tokens_per_s": (made - 1) / (last - first) if last > first else 0.0,
            "first_token_s": first,
        }
        for made, first, last in await engine.bare(requests)
    ]


async def _request(engine: Engine, text: str, tokens: int) -> GenerateRequest:
    """A greedy answer under a cache key of its own."""
    body = PromptBody(messages=(ChatMessage.of("user", text),), seed=bytes(16))
    return GenerateRequest(
        prompt_ids=(await engine.prompt(body)).ids,
        seed=0,
        sampling=SamplingParams(tokens_max=tokens, temperature=0.0),
        cache_key=secrets.token_bytes(32),
    )


def _engine(spec: EngineSpec, local: LocalModel, config: dict[str, Any]) -> Engine:
    if spec.name != "llamacpp":
        return make_engine(spec, local)
    # Others ask its server, too, and the host would take it for hung while they hold its slot.
    n_ctx, slots = config["n_ctx"], config["slots"]
    return LlamaCppEngine(local, LlamaCppConfig(n_ctx=n_ctx, slots=slots, threads=1, hang_s=_HANG_S))


async def _hosted(config: dict[str, Any]) -> HostedModel:
    spec = EngineSpec(
        name=parse_engine_name(config["engine"]),
        n_ctx=config["n_ctx"],
        slots=config["slots"],
        threads=1,
        tokens_per_s=config.get("tokens_per_s"),
        device=config.get("device"),
    )
    if spec.name == SCRIPTED:
        engine = make_engine(spec)
        return HostedModel(model=scripted_model_id(), name=SCRIPTED, new_engine=lambda: engine)
    local = await pull(
        Catalogue.load().find(config.get("model") or DEFAULT_MODEL), Path(config["data_dir"]) / "models"
    )
    engine = _engine(spec, local, config)  # one, which is measured with the host and without
    return HostedModel(model=local.model_id, name=local.name, new_engine=lambda: engine)


def _identity() -> HostIdentity:
    """One for this run, in memory."""
    key, wallet, receipt = PeerKey.generate(), secrets.token_bytes(32), secrets.token_bytes(32)
    terms = BindingTerms(
        receipt_key=key_address(receipt), seq=1, expires_at=int(time.time()) + BINDING_TTL_MAX_S
    )
    binding = bind(key.peer_id, key_address(wallet), terms, lambda digest: sign_digest(wallet, digest))
    return HostIdentity(key, receipt, binding)


if __name__ == "__main__":
    run_child(main)
