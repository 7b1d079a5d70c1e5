"""The whole of ``p2pnode demo``, as ``make demo`` runs it: it checks itself, to the unit."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys

import pytest

DEADLINE_S = 400.0


@pytest.mark.long
def test_the_demo_comes_to_its_end() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "p2pnode", "demo"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # so that nothing of it outlives the test
    ) as process:
        try:
            said, _ = process.communicate(timeout=DEADLINE_S)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, said
    assert "one with each host that was used, settled to the unit" in said
    assert "the killed host got its final voucher from this machine" in said
