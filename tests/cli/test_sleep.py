"""A client whose process is stopped in mid-answer, for longer than its host waits, as processes."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from p2pnode.limits import DEFAULT_LIMITS
from tests.cli.support import join, start

SLOW = ("--scripted-tokens-per-s", 25)
TOKENS = 300


@pytest.mark.long
@pytest.mark.parametrize("sleeper", ["client", "host"])
def test_an_answer_goes_on_after_one_side_was_stopped(tmp_path: Path, sleeper: str) -> None:
    with join(tmp_path, "h", *SLOW) as host:
        flags = ["--model", "scripted", "--no-mdns", "--max-tokens", TOKENS, "--temperature", 0]
        command = ["chat", *flags, "--bootstrap", host.multiaddr, "--data-dir", tmp_path / "c"]
        with start(tmp_path, "chat", command, stdin=True) as chatting:
            chatting.send("hello\n")
            chatting.wait_event("text", count=4)
            stopped = chatting if sleeper == "client" else host
            stopped.process.send_signal(signal.SIGSTOP)
            time.sleep(DEFAULT_LIMITS.stall_s + 12)
            stopped.process.send_signal(signal.SIGCONT)
            if sleeper == "host":
                chatting.wait_event("answer.cut")
                chatting.send("/go\n")
            done = chatting.wait_event("done")
            if sleeper == "client":
                assert "host.failed" not in chatting.names
                assert sum(item["tokens_out"] for item in done["bill"]) == TOKENS
                assert {item["peer"] for item in done["bill"]} == {host.ready["peer_id"]}
            else:
                held = chatting.wait_event("answer.cut")["held"]
                assert done["tokens_out"] == TOKENS - held
            chatting.send("/exit\n")
            assert chatting.wait() == 0
