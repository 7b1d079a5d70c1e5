"""What tests with the real library need: its packages, and the default model in the form that runs here.

``make test-exllama`` runs them in an environment of its own, and ``make test-gpu`` on a CUDA machine, where
the same tests get a folder and a GPU (``P2PNODE_TEST_EXLLAMA_MODEL`` names the folder).
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from p2pnode.models.exllama.engine import ExllamaConfig
from p2pnode.models.local_models import LocalModel
from tests.models.engine_conformance import N_CTX, QUEUE, SLOTS

FOLDER = os.environ.get("P2PNODE_TEST_EXLLAMA_MODEL", "")
"""An EXL2, GPTQ or safetensors folder to be loaded on the GPU; "" for the CPU form of the default model."""

needs_exllama = [
    pytest.mark.exllama,
    pytest.mark.skipif(
        find_spec("torch") is None or find_spec("exllamav2") is None,
        reason="torch and exllamav2 are not installed: `make test-exllama` installs them, and runs this",
    ),
]

CONFIG = ExllamaConfig(
    n_ctx=N_CTX,
    slots=SLOTS,
    queue_max=QUEUE,
    device="cuda" if FOLDER else "cpu",
    chunk=256,
    cache_dir=Path(sys.prefix) / "dequantised",
)


def model_under_test(smollm: LocalModel) -> LocalModel:
    """The folder on a GPU machine, else the default model's GGUF."""
    return smollm
