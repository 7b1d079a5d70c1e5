"""An OpenAI-compatible server on loopback that behaves as a test says: small and honest, or broken.

Its model makes pseudo-words, a byte a token, from what is before them, the seed and the temperature, so that
each field of sampling that it ``takes`` shows in the answer, as it does with a real model.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any

import h11
import trio

from p2pnode.models.prompt import Piece
from p2pnode.models.prompt_maker import PromptMaker
from p2pnode.models.scripted import TEMPLATE, VOCABULARY
from p2pnode.models.upstream.text_model import TextModel

MODEL = TextModel(template=TEMPLATE, vocabulary=VOCABULARY, encode=lambda text: tuple(text.encode()))


class KeptPrompts(PromptMaker):
    """Its process serves all tests of a file: it takes a while to start."""

    def __init__(self) -> None:
        async def encode(pieces: Sequence[Piece], _begins: bool) -> tuple[int, ...]:
            return tuple(i for each in pieces for i in ([each] if isinstance(each, int) else each.encode()))

        super().__init__(TEMPLATE, VOCABULARY, encode, 256)

    async def aclose(self) -> None:
        pass


PROMPTS = KeptPrompts()
ALL = frozenset({
    "temperature", "seed", "top_k", "top_p", "min_p", "repeat_penalty", "presence_penalty",
    "frequency_penalty", "logit_bias", "grammar", "logprobs", "cache_prompt", "ids",
})  # fmt: skip
OPENAI = frozenset({
    "temperature", "seed", "top_p", "presence_penalty", "frequency_penalty", "logit_bias",
})  # fmt: skip
LETTERS = "abcdefgh ijklmno pqrstuvwxyz "
DONE = b"data: [DONE]\n\n"
HANG = b"hang"
"""In a script: nothing comes any more."""
Script = Callable[[dict[str, Any]], Sequence[bytes]]


@dataclass
class Behaviour:
    """``scripts`` are the bodies of the next streamed answers; without one, the model answers."""

    takes: frozenset[str] = ALL
    completions: bool = True
    chat: bool = True
    continues: bool = True
    models: tuple[str, ...] = ("small",)
    build: str = "1"
    extra_prompt_tokens: int = 0
    usage: bool = True
    key: str = ""
    status: int = 0
    """Of every answer but that to ``/v1/models``; 0: as it should be."""
    headers: tuple[tuple[str, str], ...] = ()
    error: Any = None
    scripts: list[Sequence[bytes]] = field(default_factory=list)
    kind: str = "text/event-stream"
    asked: list[dict[str, Any]] = field(default_factory=list)
    """The bodies of the requests."""
    dropped: trio.Event = field(default_factory=trio.Event)
    """Set when a client hung up while it was answered."""
    noise: Any = field(default_factory=lambda: count(1))
    cached: set[str] = field(default_factory=set)


def answer(behaviour: Behaviour, prompt: str, asked: dict[str, Any]) -> str:
    """The model: so many letters as ``max_tokens`` says."""
    takes = behaviour.takes
    if "grammar" in takes and "grammar" in asked:
        return "zebra"
    bias = asked.get("logit_bias") if "logit_bias" in takes else None
    if bias:
        return chr(int(next(iter(bias)))) * int(asked["max_tokens"])
    heat = asked.get("temperature", 1.0) if "temperature" in takes else 0.0
    narrow = any(
        name in takes and asked.get(name) in (1, 1.0, 0.01) and asked.get(name) != neutral
        for name, neutral in (("top_k", 0), ("min_p", 0.0), ("top_p", 1.0))
    )
    start = zlib.crc32(prompt.encode())
    if heat and not narrow:
        seed = asked.get("seed") if "seed" in takes else None
        start = zlib.crc32(f"{seed if seed is not None else next(behaviour.noise)} {heat}".encode(), start)
    for name, neutral in (("repeat_penalty", 1.0), ("presence_penalty", 0.0), ("frequency_penalty", 0.0)):
        if name in takes and asked.get(name, neutral) != neutral:
            start = zlib.crc32(f"{name} {asked[name]}".encode(), start)
    made = ""
    for _ in range(int(asked["max_tokens"])):
        # From the text so far, so that a continuation goes on where an answer was cut.
        state = zlib.crc32((prompt + made).encode(), start if heat and not narrow else 0)
        made += LETTERS[(((state * 2654435761) & 0xFFFFFFFF) >> 8) % len(LETTERS)]
    return made


def frames(text: str, *, finish: str = "length", chat: bool = False, told: bool = False) -> list[bytes]:
    """A good answer as server-sent events, a letter each; ``told``: with log-probabilities."""
    made = [event(frame(letter, chat=chat, told=told)) for letter in text]
    return [*made, event(frame("", finish=finish, chat=chat)), DONE]


def frame(
    text: str | None, *, finish: str | None = None, chat: bool = False, told: bool = False
) -> dict[str, Any]:
    said: dict[str, Any] = {"delta": {"content": text}} if chat else {"text": text}
    logprobs = {"content": [_told(letter) for letter in text or ""]} if told else None
    return {"id": "x", "choices": [{"index": 0, **said, "finish_reason": finish, "logprobs": logprobs}]}


def event(value: Any) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


@asynccontextmanager
async def serving(behaviour: Behaviour, port: int = 0) -> AsyncIterator[str]:
    """Run the server; gives its address."""
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(
            partial(trio.serve_tcp, partial(_serve, behaviour), port, host="127.0.0.1")
        )
        yield f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


async def _serve(behaviour: Behaviour, stream: trio.SocketStream) -> None:
    connection, body = h11.Connection(h11.SERVER), b""
    request: h11.Request | None = None
    while True:
        found = connection.next_event()
        if found is h11.NEED_DATA:
            connection.receive_data(await stream.receive_some())
        elif isinstance(found, h11.Request):
            request = found
        elif isinstance(found, h11.Data):
            body += bytes(found.data)
        else:
            break
    if request is None:
        return
    path = request.target.decode()
    status, kind, extra, parts = _answered(behaviour, path, dict(request.headers), body)
    lines = [f"HTTP/1.1 {status} Fine", f"Content-Type: {kind}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in extra]
    try:
        await stream.send_all("\r\n".join([*lines, "", ""]).encode())
        for part in parts:
            if part == HANG:
                await stream.receive_some()  # until the client hangs up
                behaviour.dropped.set()
                return
            await stream.send_all(part)
            await trio.lowlevel.checkpoint()
    except trio.BrokenResourceError:
        behaviour.dropped.set()
    finally:
        await trio.aclose_forcefully(stream)


def _answered(
    behaviour: Behaviour, path: str, headers: dict[bytes, bytes], body: bytes
) -> tuple[int, str, Sequence[tuple[str, str]], Sequence[bytes]]:
    def plain(status: int, value: Any) -> tuple[int, str, Sequence[tuple[str, str]], Sequence[bytes]]:
        return status, "application/json", behaviour.headers, [json.dumps(value).encode()]

    if behaviour.key and headers.get(b"authorization") != f"Bearer {behaviour.key}".encode():
        return plain(401, {"error": {"message": "no key"}})
    if path == "/v1/models":
        models = [{"id": each, "owned_by": "test", "max_model_len": 256} for each in behaviour.models]
        return plain(200, {"object": "list", "data": models})
    if path == "/version":
        return plain(200, {"version": behaviour.build})
    served = {"/v1/completions": behaviour.completions, "/v1/chat/completions": behaviour.chat}
    if not served.get(path):
        return plain(404, {"detail": "Not Found"})
    asked = json.loads(body)
    behaviour.asked.append(asked)
    if behaviour.status:
        return plain(behaviour.status, behaviour.error or {"error": {"message": "as the test says"}})
    chat = "messages" in asked
    if chat:
        prompt = _rendered(behaviour, asked["messages"])
    elif isinstance(asked["prompt"], str):
        prompt = asked["prompt"]
    elif "ids" in behaviour.takes:
        prompt = b"".join(map(VOCABULARY.piece, asked["prompt"])).decode("utf-8", "replace")
    else:
        return plain(422, {"detail": [{"msg": "prompt: a string is wanted"}]})
    if asked["stream"] and behaviour.scripts:
        return 200, behaviour.kind, behaviour.headers, behaviour.scripts.pop(0)
    text = answer(behaviour, prompt, asked)
    told = bool("logprobs" in behaviour.takes and asked.get("logprobs"))
    if asked["stream"]:
        return 200, "text/event-stream", (), frames(text, chat=chat, told=told)
    made = frame(text, finish="length", chat=chat)
    if behaviour.usage:
        cached = 5 if prompt in behaviour.cached and asked.get("cache_prompt", True) else 0
        kept = (
            {"prompt_tokens_details": {"cached_tokens": cached}} if "cache_prompt" in behaviour.takes else {}
        )
        made["usage"] = {"prompt_tokens": len(prompt.encode()) + behaviour.extra_prompt_tokens, **kept}
        behaviour.cached.add(prompt)
    return plain(200, made)


def _told(letter: str) -> dict[str, Any]:
    other = {"token": "z", "bytes": [122], "logprob": -2.0}
    own = {"token": letter, "bytes": list(letter.encode()), "logprob": -0.5}
    return {**own, "top_logprobs": [own, other]}


def _rendered(behaviour: Behaviour, messages: Sequence[dict[str, str]]) -> str:
    last = messages[-1]
    begun = last["content"] if last["role"] == "assistant" and behaviour.continues else ""
    said = messages[:-1] if begun else messages
    return "".join(f"{each['role']}: {each['content']}\n" for each in said) + begun
