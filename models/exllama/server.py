"""The child process that holds ExLlama: ``python -m p2pnode.models.exllama.server``.

It is a process of its own, so that a crash, a CUDA error or running out of memory costs its requests an error
and never ends the node. How it is started and ends: see ``models/child/process.py``. Requests are HTTP on a
private unix socket, with the names and frames of llama.cpp's own server where those fit:

- ``/completion``: a stream. ``prompt`` (ids), ``n_predict``, ``scope`` (hex), ``seed``, the names of
  ``sampling_of``, and perhaps ``n_probs``, and ``grammar``: rules as JSON, with ``begun``, the ids whose text
  is the beginning of what the grammar says
- ``/hidden_states``: ``prompt`` (ids) -> ``rows``, ``width`` and ``data`` (base64)
- ``/bare``: ``completions``, each as above -> ``jobs``: of each the tokens, and the seconds to the first and
  to the last one, by the library alone

One thread makes tokens (``worker.py``); this one serves.
"""

from __future__ import annotations

import base64
import json
import math
import os
import shutil
import sys
from collections.abc import AsyncGenerator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, NoReturn

import trio

from p2pnode.models.child.http import LOST
from p2pnode.models.child.server import ChildServer, RequestError
from p2pnode.models.engine import HiddenStates
from p2pnode.models.exllama.devices import taken
from p2pnode.models.exllama.jobs import BackendInfo, Begun, Job, Made, Over, Read
from p2pnode.models.exllama.loading import load_backend, table_of
from p2pnode.models.exllama.settings import ChildConfig, LoadError
from p2pnode.models.exllama.worker import BareTimes, Told, Worker, words_of
from p2pnode.models.grammar import Grammar, GrammarError
from p2pnode.models.token_mask import TokenMask, TokenTable

_LAST_WORDS_S: Final = 1.0


def main() -> NoReturn:
    """Serve until stdin closes, or the backend breaks."""
    config = json.loads(sys.stdin.buffer.readline())
    os.umask(0o177)
    # Libraries print to stdout and stderr; our one line is written through a descriptor of its own.
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    try:
        socket, key = config.pop("socket"), config.pop("key")
        trio.run(_Child(ChildConfig.of_plain(config), socket, key, answer).run)
    finally:
        # Without destructors: what holds a GPU may hang in them.
        os._exit(1)


class _Child:
    def __init__(self, config: ChildConfig, socket: str, key: str, answer: Any) -> None:
        self._config = config
        self._socket = socket
        self._answer_file = answer
        self._server = ChildServer(
            key,
            calls={"/hidden_states": self._hidden_states, "/bare": self._bare},
            streams={"/completion": self._completion},
        )
        self._open: dict[int, trio.MemorySendChannel[Told]] = {}
        self._ready = trio.Event()
        self._info: BackendInfo | None = None
        self._failure: BaseException | None = None
        self._table: TokenTable | None = None

    async def run(self) -> None:
        """Load, answer, serve."""
        token = trio.lowlevel.current_trio_token()
        self._table = await trio.to_thread.run_sync(table_of, self._config)
        self._worker = Worker(
            partial(load_backend, self._config, self._table),
            loaded=lambda info: token.run_sync_soon(self._on_loaded, info),
            tell=lambda events: token.run_sync_soon(self._on_told, events),
            broken=lambda error: token.run_sync_soon(self._on_broken, error),
        )
        self._worker.start()
        await self._ready.wait()
        if self._info is None:
            self._say(_why(self._failure))
            return
        async with trio.open_nursery() as nursery:
            await nursery.start(self._server.run, self._socket)
            memory = await trio.to_thread.run_sync(taken)
            self._say({"ready": True, "info": self._info.plain(), "gpu_memory": memory})
            await trio.to_thread.run_sync(_wait_for_the_parents_end, abandon_on_cancel=True)
            shutil.rmtree(Path(self._socket).parent, ignore_errors=True)
            os._exit(0)

    def _say(self, message: dict[str, Any]) -> None:
        self._answer_file.write(json.dumps(message) + "\n")
        self._answer_file.flush()

    # ---- what the worker tells

    def _on_loaded(self, info: BackendInfo) -> None:
        self._info = info
        self._ready.set()

    def _on_told(self, events: list[tuple[int, Told]]) -> None:
        for number, event in events:
            if (channel := self._open.get(number)) is not None:
                channel.send_nowait(event)

    def _on_broken(self, error: BaseException) -> None:
        self._failure = error
        self._ready.set()
        for channel in self._open.values():
            channel.close()
        trio.lowlevel.spawn_system_task(_end_soon)

    # ---- what is asked

    async def _completion(self, body: Mapping[str, Any]) -> AsyncGenerator[list[dict[str, Any]], None]:
        job = await trio.to_thread.run_sync(self._job, body)
        number = self._worker.submit(job)
        # Without a bound of its own: a job has no more events than tokens.
        send, receive = trio.open_memory_channel[Told](math.inf)
        self._open[number] = send
        prompt, reused, made, over = len(job.prompt), 0, 0, False
        try:
            async with receive:
                async for first in receive:
                    frames: list[dict[str, Any]] = []
                    for event in (first, *_waiting(receive)):
                        match event:
                            case Begun(reused):
                                frames.append(_progress(prompt, reused, reused))
                            case Read(processed):
                                frames.append(_progress(prompt, reused, processed))
                            case Made():
                                made += 1
                                frames.append(_made(event, job.logprobs))
                            case Over(end_of_turn):
                                over = True
                                frames.append(_over(made, end_of_turn=end_of_turn))
                            case HiddenStates() | BareTimes():
                                pass
                    yield frames
                    if over:
                        return
            raise self._lost()
        finally:
            del self._open[number]
            if not over:
                self._worker.cancel(number)

    async def _hidden_states(self, body: Mapping[str, Any]) -> Any:
        if self._info is None or not self._info.inspects:
            raise RequestError("this library tells no hidden states")
        states = await self._told(self._worker.hidden_states(_ids(body)))
        assert isinstance(states, HiddenStates)  # noqa: S101 - what is told of this number
        data = base64.b64encode(states.data).decode("ascii")
        return {"rows": states.rows, "width": states.width, "data": data}

    async def _bare(self, body: Mapping[str, Any]) -> Any:
        jobs = [await trio.to_thread.run_sync(self._job, each) for each in body["completions"]]
        times = await self._told(self._worker.bare(jobs))
        assert isinstance(times, BareTimes)  # noqa: S101 - what is told of this number
        return {"jobs": times.jobs}

    async def _told(self, number: int) -> Told:
        """The one thing that is told under this number."""
        send, receive = trio.open_memory_channel[Told](1)
        self._open[number] = send
        try:
            async with receive:
                async for told in receive:
                    return told
            raise self._lost()
        finally:
            del self._open[number]

    def _lost(self) -> RequestError:
        reason = "it ended" if self._failure is None else words_of(self._failure)
        return RequestError(reason, kind=LOST, status=500)

    def _job(self, body: Mapping[str, Any]) -> Job:
        """The job that a request asks for. A grammar takes its time."""
        assert self._table is not None  # noqa: S101 - made before anything is served
        mask: TokenMask | None = None
        if "grammar" in body:
            try:
                mask = TokenMask(self._table, Grammar.of_plain(json.loads(body["grammar"])))
                mask.feed(body["begun"])
                mask.allowed()
            except GrammarError as error:
                raise RequestError(str(error)) from error
        return Job(
            prompt=_ids(body),
            tokens_max=int(body["n_predict"]),
            scope=bytes.fromhex(body["scope"]),
            seed=int(body["seed"]),
            temperature=float(body["temperature"]),
            top_k=int(body["top_k"]),
            top_p=float(body["top_p"]),
            min_p=float(body["min_p"]),
            repeat_penalty=float(body["repeat_penalty"]),
            presence_penalty=float(body["presence_penalty"]),
            frequency_penalty=float(body["frequency_penalty"]),
            bias=tuple((int(token), float(bias)) for token, bias in body["logit_bias"]),
            mask=mask,
            logprobs=int(body.get("n_probs", -1)),
        )


def _ids(body: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(map(int, body["prompt"]))


def _waiting(channel: trio.MemoryReceiveChannel[Told]) -> list[Told]:
    """What is there already."""
    return [channel.receive_nowait() for _ in range(channel.statistics().current_buffer_used)]


def _progress(total: int, cached: int, processed: int) -> dict[str, Any]:
    return {"prompt_progress": {"total": total, "cache": cached, "processed": processed}}


def _made(made: Made, logprobs: int) -> dict[str, Any]:
    frame: dict[str, Any] = {"tokens": [made.token], "stop": False}
    if logprobs >= 0:
        top = [{"id": token, "logprob": logprob} for token, logprob in made.top]
        frame["completion_probabilities"] = [{"logprob": made.logprob, "top_logprobs": top}]
    return frame


def _over(made: int, *, end_of_turn: bool) -> dict[str, Any]:
    return {
        "stop": True,
        "stop_type": "eos" if end_of_turn else "limit",
        "tokens_predicted": made,
        "tokens": [],
    }


def _why(error: BaseException | None) -> dict[str, Any]:
    if isinstance(error, LoadError):
        return {"error": str(error), "advice": error.advice}
    return {"error": "it ended" if error is None else words_of(error)}


async def _end_soon() -> None:
    # Those who asked are told first.
    await trio.sleep(_LAST_WORDS_S)
    os._exit(1)


def _wait_for_the_parents_end() -> None:
    while sys.stdin.buffer.read(1 << 12):
        pass


if __name__ == "__main__":
    main()
