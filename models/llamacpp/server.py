"""The child process that holds llama.cpp: ``python -m p2pnode.models.llamacpp.server``.

It is a process of its own, so that a crash, a hang or running out of memory in native code costs its requests
an error and never ends the node. It reads one line of JSON from stdin (a key must not stand in argv), loads
the model, serves llama.cpp's own HTTP API on one unix socket, writes one line of JSON to stdout, and lives
until stdin closes: whatever ends the parent closes it. (PR_SET_PDEATHSIG would not do: it fires when the
*thread* that started the child ends, and trio starts processes from worker threads that come and go.)

This module knows nothing of requests, slots or cache keys. Its parent is ``llamacpp/engine.py``.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any, Final, Literal, NoReturn, TypeAlias

BATCH: Final = 32
"""Rows of one sequence that are computed together. Up to ``BATCH_MAX`` their logits are those of decoding, to
the last bit, whatever other slots do; from 64 rows on flash attention takes another way. Small besides, so
that a cancel during prefill takes effect within one batch."""
BATCH_MAX: Final = 63
CACHE_TYPES: Final = {"FP16": "F16", "Q8": "Q8_0", "Q4": "Q4_0"}
"""How keys and values are kept: what users call it, and what llama.cpp does."""
Pooling: TypeAlias = Literal["mean", "cls", "last"]
"""What a text's vector is made of: all of its tokens, the first one or the last one."""
_UNKNOWN_ARCHITECTURE: Final = "unknown model architecture"
_NO_MEMORY: Final = ("bad_alloc", "failed to allocate", "unable to allocate", "out of memory")
_SAID_MAX_BYTES: Final = 1 << 20
_HTTP_THREADS_SPARE: Final = 4
_SPINS: Final = "1000"
"""How often a thread looks for the others before it sleeps until they come, hundreds of times for each token.
By default it is billions of times: where other programs have the cores, all threads burn theirs. Two threads
on two cores that nine programs wanted made 0.6 to 3 tokens/s so, 16 to 32 with this, and 12 to 44 with 300.
On two idle cores 300 cost a stream 3.5%, and this costs nothing that can be measured."""


def main() -> NoReturn:
    """Serve until stdin closes."""
    config = json.loads(sys.stdin.buffer.readline())
    os.umask(0o177)
    # llama.cpp logs to stdout and stderr; our one line is written through a descriptor of its own.
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    null = os.open(os.devnull, os.O_WRONLY)
    said = tempfile.TemporaryFile()  # noqa: SIM115 - it ends with the process
    os.dup2(said.fileno(), 1)
    os.dup2(said.fileno(), 2)
    try:
        server = _serve(config)
        _require_no_tcp_listener()
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent must hear of it
        said.seek(0)
        reason, advice = why_not_loaded(said.read(_SAID_MAX_BYTES).decode("utf-8", "replace"))
        _answer(answer, {"error": reason or str(error) or type(error).__name__, "advice": advice})
        os._exit(1)
    os.dup2(null, 1)
    os.dup2(null, 2)
    _answer(answer, {"ready": True})
    while sys.stdin.buffer.read(1 << 12):
        pass
    del server  # only the name: ``os._exit`` ends everything, without destructors, which may hang
    shutil.rmtree(Path(config["socket"]).parent, ignore_errors=True)
    os._exit(0)


def why_not_loaded(log: str) -> tuple[str, str]:
    """The first error in what llama.cpp wrote, and what to do; "" for what is not known. Pure."""
    lines = (line.partition(" E ")[2] for line in log.splitlines())
    reason = next((line.strip().partition(": ")[2].strip() for line in lines if line), "")
    if _UNKNOWN_ARCHITECTURE in reason:
        name = reason.partition(_UNKNOWN_ARCHITECTURE)[2].strip(" :'\"")
        advice = (
            "Update it (`pip install -U xllamacpp`), serve another model, or check the file with "
            "`p2pnode models verify`"
        )
        return f"this llama.cpp doesn't know the architecture {name!r}", advice
    if any(word in reason for word in _NO_MEMORY):
        advice = "Take a smaller --n-ctx, fewer --slots or a smaller quantisation, or free memory"
        return f"memory ran out ({reason})", advice
    return reason, ""


def _serve(config: dict[str, Any]) -> object:
    # Read when libgomp is loaded, with the line below.
    os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = config["model"]
    params.n_ctx = config["n_ctx"] * config["slots"]
    params.n_parallel = config["slots"]
    params.n_batch = params.n_ubatch = config["batch"]
    kept = getattr(xllamacpp.ggml_type, f"GGML_TYPE_{CACHE_TYPES[config['cache']]}")
    params.cache_type_k = params.cache_type_v = kept
    if config["speculation"]:
        params.speculative.types = [xllamacpp.common_speculative_type.COMMON_SPECULATIVE_TYPE_NGRAM_SIMPLE]
    if config["pooling"]:
        params.embedding = True
        kind = f"LLAMA_POOLING_TYPE_{config['pooling'].upper()}"
        params.pooling_type = getattr(xllamacpp.llama_pooling_type, kind)
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = config["threads"]
    params.n_threads_http = config["slots"] + _HTTP_THREADS_SPARE
    params.hostnames = [config["socket"]]
    params.api_keys = [config["key"]]
    # No cache but the slots' own: these two settings could give one session's prefix to another.
    params.cache_ram_mib = 0
    params.cache_idle_slots = False
    params.ctx_shift = False
    params.fit_params = False
    params.prefill_assistant = False
    params.endpoint_slots = True
    params.ui = False
    params.verbosity = 1  # errors
    params.warmup = not config["renders_only"]
    server = xllamacpp.Server(params)
    if config["renders_only"]:  # it ends by ``os._exit``, which destroys nothing
        return server
    # Make one token, or vector, first: destroying a server that never worked can hang. It also warms up the
    # pages.
    if config["pooling"]:
        server.handle_embeddings({"input": "a"})
    else:
        server.handle_completions({"prompt": "a", "n_predict": 1, "cache_prompt": False})
    return server


def _require_no_tcp_listener() -> None:
    for name in os.listdir("/dev/fd"):  # noqa: PTH208 - names of descriptors, not paths
        try:
            held = socket.socket(fileno=os.dup(int(name)))
        except OSError:  # no socket, or the descriptor of the listing itself
            continue
        with held:
            inet = held.family in (socket.AF_INET, socket.AF_INET6)
            if inet and held.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                raise RuntimeError("llama.cpp opened a network listener, which it must not")


def _answer(stream: Any, message: dict[str, Any]) -> None:
    stream.write(json.dumps(message) + "\n")
    stream.flush()


if __name__ == "__main__":
    main()
