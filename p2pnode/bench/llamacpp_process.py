"""llama.cpp's own server with its own defaults, in a process of its own, for a baseline.

A child as ``models/child/process.py`` starts it: one line of JSON in (``model``, ``n_ctx`` of a slot,
``slots``, ``socket``, ``key``), one out. What decides its speed is left as llama.cpp has it.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any, NoReturn


def main() -> NoReturn:
    """Serve until stdin closes."""
    config = json.loads(sys.stdin.buffer.readline())
    os.umask(0o177)
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    null = os.open(os.devnull, os.O_WRONLY)  # llama.cpp logs to both
    os.dup2(null, 1)
    os.dup2(null, 2)
    server = _serve(config)
    answer.write(json.dumps({"ready": True}) + "\n")
    answer.flush()
    while sys.stdin.buffer.read(1 << 12):
        pass
    del server  # only the name: destructors may hang
    os._exit(0)


def _serve(config: dict[str, Any]) -> object:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = config["model"]
    params.n_ctx, params.n_parallel = config["n_ctx"] * config["slots"], config["slots"]
    params.hostnames, params.api_keys = [config["socket"]], [config["key"]]
    params.cache_ram_mib = 0
    params.ui = False
    params.verbosity = 0
    server = xllamacpp.Server(params)
    server.handle_completions({"prompt": "a", "n_predict": 1, "cache_prompt": False})
    return server


if __name__ == "__main__":
    main()
