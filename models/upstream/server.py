"""``Server``: which server answers at an address, which model it serves, and with what context.

``/v1/models`` is the one thing that all have. Some say more at an address of their own, which others answer
with an error: that is asked for as well, and what it says is a hint.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import trio

from p2pnode.models.upstream.completion import RefusedError
from p2pnode.models.upstream.http import GoneError, HungError, UpstreamHttp
from p2pnode.models.upstream.sse import MalformedError

PORTS: Final[Mapping[int, str]] = {
    11434: "Ollama",
    1234: "LM Studio",
    8000: "vLLM",
    8080: "llama.cpp",
    5000: "TabbyAPI",
    4000: "LiteLLM",
}
"""Where each usually listens on loopback."""
_TROUBLE: Final = (RefusedError, GoneError, HungError, MalformedError)
_LOOK_S: Final = 1.0
_MODELS_MAX: Final = 1000
_PATH_MAX: Final = 4096
_FROM: Final = re.compile(r"^FROM (/\S+)$", re.MULTILINE)
_BUILD_MAX: Final = 64
_NAME_MAX: Final = 256
_CTX_MAX: Final = 1 << 24
_SLOTS_DEFAULT: Final = 4
_SLOTS_MAX: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """One model of a server. ``n_ctx`` is 0 where nothing tells it; ``build`` names what serves, and its
    version."""

    url: str
    model: str
    models: tuple[str, ...]
    n_ctx: int = 0
    slots: int = _SLOTS_DEFAULT
    build: str = ""
    weights: str = ""
    """Where it says that the model's file lies, on its own machine; "" where it says nothing."""


async def found_at(http: UpstreamHttp, model: str, *, deadline_s: float) -> Server:
    """The server's model of this name, or its first. Raises ``RefusedError`` (404 for a model that it hasn't
    got), ``MalformedError``, ``GoneError``, ``HungError``."""
    listed = _listed(await http.call("/v1/models", deadline_s=deadline_s))
    names = tuple(listed)
    if not names:
        raise RefusedError(404, "it lists no model: load one there first")
    if model and model not in listed:
        raise RefusedError(404, f"it has {', '.join(names[:8])}, and no {model[:80]!r}")
    chosen = model or names[0]
    entry = listed[chosen]
    props, version = await _hint(http, "/props"), await _version(http)
    settings = props.get("default_generation_settings")
    told = (
        entry.get("max_model_len"),
        _of(entry.get("meta"), "n_ctx"),
        _of(settings, "n_ctx"),
        entry.get("loaded_context_length"),
        entry.get("context_length"),
        entry.get("max_context_length"),
    )
    slots = _count(props.get("total_slots"), _SLOTS_MAX)
    build = " ".join(part for part in (str(entry.get("owned_by") or ""), version or _word(props)) if part)
    return Server(
        url=http.url,
        model=chosen,
        models=names,
        n_ctx=next((each for each in (_count(value, _CTX_MAX) for value in told) if each), 0),
        slots=slots or _SLOTS_DEFAULT,
        build=" ".join(build.split())[:_BUILD_MAX],
        weights=_path(props.get("model_path")) or await _of_ollama(http, chosen, entry),
    )


async def servers_here(ports: Sequence[int] = tuple(PORTS)) -> list[Server]:
    """The servers that answer on loopback now, by port. Takes a second at most."""
    found: dict[int, Server] = {}

    async def look(port: int) -> None:
        with suppress(*_TROUBLE):
            found[port] = await found_at(UpstreamHttp(f"http://127.0.0.1:{port}"), "", deadline_s=_LOOK_S)

    with trio.move_on_after(3 * _LOOK_S):
        async with trio.open_nursery() as nursery:
            for port in ports:
                nursery.start_soon(look, port)
    return [found[port] for port in ports if port in found]


def _listed(answer: Any) -> dict[str, dict[str, Any]]:
    data = answer.get("data") if isinstance(answer, dict) else answer
    if not isinstance(data, list):
        raise MalformedError("/v1/models gives no list of models")
    entries = [each for each in data[:_MODELS_MAX] if isinstance(each, dict)]
    return {
        name: each
        for each in entries
        if isinstance(name := each.get("id"), str) and 0 < len(name) <= _NAME_MAX
    }


async def _hint(http: UpstreamHttp, path: str) -> dict[str, Any]:
    try:
        answer = await http.call(path, deadline_s=_LOOK_S)
    except _TROUBLE:
        return {}
    return answer if isinstance(answer, dict) else {}


async def _of_ollama(http: UpstreamHttp, model: str, entry: Mapping[str, Any]) -> str:
    """Ollama's blobs are GGUF files; its model file names them."""
    if entry.get("owned_by") != "library":
        return ""
    try:
        shown = await http.call("/api/show", {"model": model}, deadline_s=_LOOK_S)
    except _TROUBLE:
        return ""
    found = _FROM.search(str(_of(shown, "modelfile")))
    return _path(found[1]) if found else ""


def _path(value: Any) -> str:
    return value if isinstance(value, str) and 0 < len(value) <= _PATH_MAX else ""


async def _version(http: UpstreamHttp) -> str:
    for path in ("/version", "/api/version"):
        if version := _word(await _hint(http, path)):
            return version
    return ""


def _word(hint: Mapping[str, Any]) -> str:
    value = hint.get("version") or hint.get("build_info")
    return value if isinstance(value, str) else ""


def _of(holder: Any, name: str) -> Any:
    return holder.get(name) if isinstance(holder, dict) else None


def _count(value: Any, most: int) -> int:
    return min(value, most) if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
