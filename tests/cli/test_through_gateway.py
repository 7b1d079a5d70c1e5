"""Commands beside a gateway, as processes: they ask through it, and print what they print without one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.support import Program, Ran, run, start, wallet

pytestmark = pytest.mark.long
TIMES = frozenset({"ttft_s", "total_s", "session", "conversation"})
OTHER_NETWORKS = ("libp2p", "httpx", "torch", "web3", "starlette", "sqlite3", "xllamacpp")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def gateway(host: Program, data: Path, tmp_path: Path) -> Iterator[Program]:
    wallet(data)  # so that conversations are kept
    flags = ("--listen", "127.0.0.1:0", "--bootstrap", host.multiaddr, "--no-mdns")
    with start(tmp_path, "gateway", ("gateway", *flags, "--data-dir", data)) as program:
        program.wait_event("gateway")
        yield program


def asked(data: Path, *arguments: object) -> Ran:
    return run("ask", "hello", "--model", "scripted", "--max-tokens", 9, "--data-dir", data, *arguments)


def shape(ran: Ran) -> list[object]:
    """Its events, without what differs from run to run, and pieces of a text as one."""

    def plain(value: object) -> object:
        if isinstance(value, dict):
            return {key: plain(each) for key, each in value.items() if key not in TIMES}
        return [plain(each) for each in value] if isinstance(value, list) else value

    told = [plain(event) for event in ran.events if event["event"] != "text"]
    return [*told, "".join(event["text"] for event in ran.named("text"))]


def test_ask_prints_the_same_through_a_gateway_as_without(
    gateway: Program, host: Program, data: Path
) -> None:
    flags = ("--temperature", 0, "--seed", 5)
    first = asked(data, "--json", *flags)
    assert (first.code, first.err) == (0, "")
    gateway.interrupt()
    assert gateway.wait() == 0
    again = asked(data, "--json", "--bootstrap", host.multiaddr, "--no-mdns", *flags)
    assert again.code == 0
    known = {"session.left"}  # the gateway left its session, and the command finds it
    assert [
        each for each in shape(again) if not (isinstance(each, dict) and each["event"] in known)
    ] == shape(first)
    listed = run("sessions", "list", "--data-dir", data, "--json").named("conversation")
    kept = {
        first.named("conversation.kept")[0]["conversation"],
        *(each["conversation"] for each in again.named("conversation.kept")),
    }
    assert {each["conversation"] for each in listed} == kept


def test_the_lists_of_hosts_and_costs_are_the_gateways(gateway: Program, host: Program, data: Path) -> None:
    shown = run("hosts", "--why", "--model", "scripted", "--data-dir", data, "--json")
    assert [each["peer"] for each in shown.named("host")] == [host.ready["peer_id"]]
    dry = asked(data, "--dry-run", "--json")
    assert [each["peer"] for each in dry.named("estimate")] == [host.ready["peer_id"]]
    nobody = run("hosts", "--min-context", 1 << 20, "--model", "scripted", "--data-dir", data)
    assert (nobody.code, "ask for less than --min-context" in nobody.err) == (3, False)
    wrong = run("ask", "hello", "--model", "nonesuch", "--data-dir", data)
    assert (wrong.code, "--model: unknown model 'nonesuch'" in wrong.err) == (2, True)


def test_a_chat_goes_on_through_the_gateway_and_is_kept_once(gateway: Program, data: Path) -> None:
    flags = ("--model", "scripted", "--max-tokens", 9, "--data-dir", data, "--json")
    ran = run("chat", *flags, stdin="hello\nand more\n/retry\n")
    assert ran.code == 0, ran.err
    first, second, third = ran.named("done")
    assert second["tokens_in"] > first["tokens_in"]
    assert second["reused"] > 0
    assert third["tokens_in"] == second["tokens_in"]
    (kept,) = ran.named("conversation.kept")
    shown = run("sessions", "show", kept["conversation"], "--data-dir", data, "--json")
    assert shown.code == 0


def test_resume_and_embed_ask_through_the_gateway_and_without_it_over_a_network_of_their_own(
    gateway: Program, host: Program, data: Path
) -> None:
    (kept,) = asked(data, "--json").named("conversation.kept")
    sid = kept["conversation"]
    resume = ("sessions", "resume", sid[:10], "and more", "--max-tokens", 9, "--data-dir", data, "--json")
    embed = ("embed", "one text", "another", "--model", "scripted", "--data-dir", data, "--json")
    assert loaded(*resume) == loaded(*embed) == []
    through = run(*resume)
    assert (through.code, through.err) == (0, "")
    assert through.named("conversation.kept")[0]["conversation"] == sid
    vectors = run(*embed)
    assert vectors.code == 0, vectors.err
    nobody = run("sessions", "resume", "ffffffff", "and more", "--data-dir", data)
    assert (nobody.code, "no conversation begins with 'ffffffff'" in nobody.err) == (2, True)
    assert run("embed", " ", "--model", "scripted", "--data-dir", data).code == 2
    gateway.interrupt()
    assert gateway.wait() == 0
    own = ("--no-mdns", "--bootstrap", host.multiaddr)
    later = run(*resume, *own)
    assert later.code == 0, later.err
    assert later.named("done")[0]["tokens_in"] > through.named("done")[0]["tokens_in"]
    alone = run(*embed, *own)
    assert [each["embedding"] for each in alone.named("embedding")] == [
        each["embedding"] for each in vectors.named("embedding")
    ]


def loaded(*command: object) -> list[str]:
    """Which parts of a network a command loads that ends in order."""
    program = f"""
import json, runpy, sys
sys.argv[1:] = {[str(each) for each in command]!r}
try:
    runpy.run_module("p2pnode", run_name="__main__")
except SystemExit as over:
    assert not over.code, over
names = {{name.partition(".")[0] for name in sys.modules}}
print(json.dumps(sorted(names & set({OTHER_NETWORKS!r}))), file=sys.stderr)
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 0, ran.stderr
    found: list[str] = json.loads(ran.stderr.splitlines()[-1])
    return found


def test_flags_that_the_gateway_does_not_have_are_told_and_honoured(
    gateway: Program, host: Program, data: Path
) -> None:
    ran = asked(data, "--close", "--bootstrap", host.multiaddr)
    assert ran.code == 0, ran.err
    assert "was started with another --close: not asking through it" in ran.err
    quiet = asked(data, "--bootstrap", host.multiaddr, "--no-mdns")
    assert (quiet.code, "not asking through it" in quiet.err) == (0, False)


def test_what_ctrl_c_stops_is_kept_and_a_gateway_that_is_killed_is_told(
    slow_host: Program, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    wallet(data)
    flags = ("--listen", "127.0.0.1:0", "--bootstrap", slow_host.multiaddr, "--no-mdns", "--data-dir", data)
    ask = ("ask", "hello", "--model", "scripted", "--max-tokens", 400, "--data-dir", data)
    with start(tmp_path, "gateway", ("gateway", *flags)) as gateway:
        gateway.wait_event("gateway")
        with start(tmp_path, "one", ask) as one:
            one.wait_event("text", count=3)
            one.interrupt()
            assert one.wait() == 130
            assert one.wait_event("cut_short")["conversation"]
        with start(tmp_path, "two", ask) as two:
            two.wait_event("text", count=40)
            gateway.kill()
            assert two.wait() == 1
            failed, cut = two.wait_event("failed"), two.wait_event("cut_short")
            assert "ended in the middle of the answer after" in failed["message"]
            assert "Ask again" in failed["message"]
    # Without the gateway the command that was named goes on with the rest.
    first = ("--bootstrap", slow_host.multiaddr, "--no-mdns", "--data-dir", data)
    rest = run("sessions", "resume", cut["conversation"], *first, "--max-tokens", 60, "--json", stdin="")
    assert rest.code == 0, rest.err
    (done,) = rest.named("done")
    assert done["tokens_out"] <= 60 - 32, "what was kept is not asked for again"


def test_a_program_uses_the_gateway_and_imports_no_network(gateway: Program, data: Path) -> None:
    program = f"""
import json, sys, trio, p2pnode
from pathlib import Path

async def main():
    told = []
    data, note = Path({str(data)!r}), lambda name, _: told.append(name)
    async with p2pnode.Client(data_dir=data, on_event=note) as client:
        sampling = p2pnode.SamplingParams(tokens_max=9)
        async with client.chat("hello", model="scripted", sampling=sampling) as answer:
            text = "".join([piece async for piece in answer])
        heavy = sorted({{name.partition(".")[0] for name in sys.modules}} & set({OTHER_NETWORKS!r}))
        print(json.dumps([len(text), answer.usage.tokens_out, told, heavy]))

trio.run(main)
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 0, ran.stderr
    length, tokens, told, heavy = json.loads(ran.stdout)
    assert (length, tokens, heavy) == (9, 9, [])
    assert told[0] == "host"
