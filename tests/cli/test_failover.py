"""A host that is killed under an answer, as processes: the text is printed once whole, with the bill."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.support import Program, join, start

SLOW = ("--scripted-tokens-per-s", 60)
ASKED = ("--model", "scripted", "--no-mdns", "--max-tokens", 60, "--temperature", 0)


def _text(program: Program) -> str:
    return "".join(event["text"] for event in program.events if event["event"] == "text")


def _kill_after(program: Program, hosts: list[Program], pieces: int) -> Program:
    """Kill the host that serves, and give the other."""
    program.wait_event("text", count=pieces)
    peer = program.wait_event("host")["peer"]
    (serving,) = [host for host in hosts if host.ready["peer_id"] == peer]
    serving.kill()
    (other,) = [host for host in hosts if host is not serving]
    return other


def test_an_answer_whose_host_is_killed_is_printed_once_whole_with_its_bill(tmp_path: Path) -> None:
    with (
        join(tmp_path, "a", *SLOW) as one,
        join(tmp_path, "b", *SLOW, "--bootstrap", one.multiaddr) as two,
    ):
        seeds = ("--bootstrap", one.multiaddr, "--bootstrap", two.multiaddr)
        whole = start(tmp_path, "whole", ["ask", "hello", *ASKED, *seeds, "--data-dir", tmp_path / "w"])
        with (
            whole,
            start(tmp_path, "ask", ["ask", "hello", *ASKED, *seeds, "--data-dir", tmp_path / "c"]) as asking,
        ):
            other = _kill_after(asking, [one, two], 4)
            assert asking.wait() == 0
            assert asking.err == ""
            done = asking.wait_event("done")
            moved = asking.wait_event("failover")
            assert moved["to"] == done["host"] == other.ready["peer_id"]
            first, second = done["bill"]
            assert first["tokens_out"] == moved["held"] > 0
            assert first["tokens_out"] + second["tokens_out"] == done["tokens_out"] == 60
            assert second["tokens_in"] == first["tokens_in"] + first["tokens_out"]
            assert whole.wait() == 0
            assert _text(asking) == _text(whole)


@pytest.mark.long
def test_a_chat_goes_on_with_an_answer_that_was_cut_short_when_its_host_is_back(tmp_path: Path) -> None:
    with join(tmp_path, "a", *SLOW) as host:
        address = host.multiaddr.rpartition("/p2p/")[0]
        flags = [*ASKED, "--bootstrap", host.multiaddr, "--data-dir", tmp_path / "c"]
        with start(tmp_path, "chat", ["chat", *flags], stdin=True) as chatting:
            chatting.send("/go\n")
            chatting.wait_event("nothing_to_go_on")
            chatting.send("hello\n")
            chatting.wait_event("text", count=4)
            host.kill()
            cut = chatting.wait_event("answer.cut")
            failed = chatting.wait_event("turn.failed")
            assert failed["error"] == "NoHostError"
            assert "/go" in failed["message"]
            with join(tmp_path, "a", *SLOW, "--listen", address):
                chatting.send("/go\n")
                done = chatting.wait_event("done")
                assert done["tokens_out"] == 60 - cut["held"]
                chatting.send("/new\nhello\n")
                again = chatting.wait_event("done", count=2)
                assert again["tokens_out"] == 60
                chatting.send("/exit\n")
                assert chatting.wait() == 0
            texts = _text(chatting)
            assert texts[: len(texts) // 2] == texts[len(texts) // 2 :]
