"""llama.cpp's own server on a TCP port of loopback, as a host's owner would run it.

Its arguments are the path of a GGUF, the port, tokens of context for each slot, and slots. It writes a line
when it serves, and ends when its stdin closes.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import xllamacpp


def main() -> NoReturn:
    path, port, n_ctx, slots = sys.argv[1:]
    params = xllamacpp.CommonParams()
    params.model.path = path
    params.hostnames, params.port = ["127.0.0.1"], int(port)
    params.n_ctx, params.n_parallel = int(n_ctx) * int(slots), int(slots)
    params.n_batch = params.n_ubatch = 32
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.cache_ram_mib = 0
    params.fit_params = False
    params.endpoint_slots = True
    params.verbosity = 0
    server = xllamacpp.Server(params)
    server.handle_completions({"prompt": "a", "n_predict": 1, "cache_prompt": False})
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.buffer.read()
    os._exit(0)  # destructors may hang


if __name__ == "__main__":
    main()
