"""Real processes on loopback: kill and restart, Ctrl-C in every place, files that come and go."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from p2pnode.cli.join import JoinReporter
from p2pnode.cli.output import Output
from p2pnode.client.question import resolve_model
from p2pnode.config import DEFAULT_MODEL
from p2pnode.models.manifest import SCRIPTED, model_id_text
from p2pnode.node.datadir import DataDir
from p2pnode.node.reachability import reachability
from tests.cli.support import Program, ask, join, run, start

SLOW = ("--scripted-tokens-per-s", 25)
DRAIN_S = 16.0  # the deadlines of a drain and of closing, and some


def _asking(folder: Path, host: Program, name: str, *arguments: object, model: str = "scripted") -> Program:
    """A question whose answer streams already."""
    flags = ["--model", model, "--peer", host.multiaddr, "--data-dir", folder / name, "--no-mdns"]
    program = start(folder, name, ["ask", "hello", *flags, *arguments])
    program.wait_event("text")
    return program


@pytest.mark.long
def test_a_killed_node_keeps_its_peer_id_and_rejoins_without_bootstrap(tmp_path: Path, host: Program) -> None:
    with join(tmp_path, "b", "--bootstrap", host.multiaddr) as first:
        data = DataDir(tmp_path / "b")
        saved = data.peers
        first.wait_until(lambda: saved.exists() and host.ready["peer_id"] in saved.read_text(), "saved peer")
        first.kill()
    assert data.node_json.exists()  # nobody could remove it, nor the ready file
    assert (tmp_path / "b.ready").exists()
    assert data.running_node() is None
    with join(tmp_path, "b") as again:
        assert again.ready["peer_id"] == first.ready["peer_id"]
        seen: list[str] = []

        def rejoined() -> bool:
            # A stranger that knows this node alone is told of the other one: they are connected.
            flags = ("--model", "scripted", "--bootstrap", again.multiaddr, "--no-mdns", "--json")
            ran = run("hosts", *flags, "--data-dir", tmp_path / "stranger")
            seen[:] = [event["peer"] for event in ran.named("host")]
            return host.ready["peer_id"] in seen

        again.wait_until(rejoined, "rejoin")
        assert again.ready["peer_id"] in seen
        assert ask(tmp_path / "b", "hello", "--max-tokens", 5).code == 0  # beside the running join
        second = run("join", "--model", "scripted", "--data-dir", tmp_path / "b", "--no-mdns")
        assert second.code == 1
        assert f"another node runs on {tmp_path / 'b'} (pid {again.process.pid})" in second.err


@pytest.mark.long
def test_ctrl_c_lets_an_answer_end_and_refuses_new_ones_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with (
        join(tmp_path, "h", *SLOW) as host,
        _asking(tmp_path, host, "ask", "--max-tokens", 60) as asking,
    ):
        host.interrupt()
        host.wait_event("stopping")
        started = time.monotonic()
        late = ask(tmp_path / "late", "hello", "--peer", host.multiaddr)
        assert late.code == 4
        assert "shutting_down" in late.err
        assert asking.wait() == 0
        assert asking.wait_event("done")["tokens_out"] == 60
        assert host.wait(DRAIN_S) == 0
        assert time.monotonic() - started < DRAIN_S
        assert [name for name in host.names if name != "answered"][-2:] == ["stopping", "stopped"]
        assert host.err == ""
        assert not (tmp_path / "h.ready").exists()
        assert not (tmp_path / "h" / "node.json").exists()


@pytest.mark.long
def test_ctrl_c_in_a_terminal_does_not_reach_the_engine_before_its_answers_end(tmp_path: Path) -> None:
    model = "smollm2-135m-instruct"
    flags = ("--threads", 1, "--slots", 1)
    with join(tmp_path, "h", *flags, model=model) as host:
        asked = ("--max-tokens", 40, "--temperature", 0)
        with _asking(tmp_path, host, "ask", *asked, model=model) as asking:
            host.ctrl_c()
            assert asking.wait() == 0
        assert host.wait(DRAIN_S) == 0
        assert host.err == ""


@pytest.mark.long
def test_ctrl_c_twice_forces_the_end_and_the_next_start_does_not_mind(tmp_path: Path) -> None:
    with join(tmp_path, "h", *SLOW) as host:
        with _asking(tmp_path, host, "ask", "--max-tokens", 1000) as asking:
            host.interrupt()
            host.wait_event("stopping")
            host.interrupt()
            assert host.wait(3) == 130
            assert asking.wait() == 3  # its host went away after the first token, and there is no other
            failed = asking.events[-1]
            assert failed["event"] == "failed"
            assert "connection to the host was lost" in failed["message"]
        # What the forced end left behind is stale, and known to be.
        assert (tmp_path / "h" / "node.json").exists()
        assert run("status", "--data-dir", tmp_path / "h").code == 1


def test_ctrl_c_while_an_answer_streams_keeps_what_came_and_exits_130(
    tmp_path: Path, slow_host: Program
) -> None:
    with _asking(tmp_path, slow_host, "ask", "--max-tokens", 1000) as asking:
        asking.interrupt()
        assert asking.wait(5) == 130
        texts = "".join(event["text"] for event in asking.events if event["event"] == "text")
        assert asking.events[-1] == {"event": "interrupted", "text": texts}
        assert asking.err == ""
    assert ask(tmp_path / "next", "hello", "--peer", slow_host.multiaddr, "--max-tokens", 3).code == 0


@pytest.mark.parametrize("arguments", [("ask", "-"), ("chat",)])
def test_ctrl_c_while_it_waits_for_input_exits_130(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    flags = ("--data-dir", tmp_path / "d", "--no-mdns", "--log-level", "debug")
    with start(tmp_path, "waiting", [*arguments, *flags], stdin=True) as waiting:
        waiting.send("half a line")
        if arguments == ("chat",):
            waiting.wait_event("chat")
        else:
            waiting.wait_until(lambda: waiting.unread == 0, "reading of its input")
        waiting.interrupt()
        assert waiting.wait(5) == 130
        assert "Fatal" not in waiting.err
        assert "Traceback" not in waiting.err


def test_ready_and_node_files_have_the_promised_fields(host: Program) -> None:
    assert set(host.ready) == {"peer_id", "multiaddrs", "pid"}
    assert host.ready["pid"] == host.process.pid
    assert all(address.endswith(f"/p2p/{host.ready['peer_id']}") for address in host.ready["multiaddrs"])
    data_dir = host.out_path.parent / "h"
    told = json.loads((data_dir / "node.json").read_text())
    assert {key: told[key] for key in host.ready} == host.ready
    assert set(told) - set(host.ready) == {"announced", "control", "networks", "reach"}
    keys = {path.name: oct(path.stat().st_mode & 0o777) for path in data_dir.glob("*.key")}
    assert keys == dict.fromkeys(("peer.key", "receipt.key", "storage.key"), "0o600")


def test_a_start_says_its_steps_in_order(host: Program) -> None:
    assert host.names[:4] == ["identity.making", "identity", "listening", "ready"]
    ready = host.wait_event("ready")
    assert ready["invite"].startswith("p2pnode1")
    assert [model["name"] for model in ready["models"]] == ["scripted"]
    # Who asked it in an earlier test is a peer that is gone by now, which it may have noticed.
    assert [line for line in host.err.splitlines() if "peers.alone" not in line] == []


@pytest.mark.parametrize("arguments", [("models", "list", "--json"), ("--help",)])
def test_a_reader_that_has_enough_is_no_error(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "p2pnode", *arguments],
            env={**os.environ, "XDG_DATA_HOME": str(tmp_path), "HOME": str(tmp_path)},
            stdin=subprocess.DEVNULL,
            stdout=writing,
            stderr=subprocess.PIPE,
            timeout=20,
            check=False,
        )
    finally:
        os.close(writing)
    assert b"Traceback" not in ended.stderr
    assert b"BrokenPipe" not in ended.stderr
    assert ended.returncode in (0, 1)  # click's own help says 1


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("private_only", ["nobody outside", "--announce", "p2pnode1x", "it works inside this network only"]),
        ("this_machine_only", ["--listen or config.toml says", "p2pnode1x", "works on this machine only"]),
        ("no_network", ["this machine has no network", "invite     none yet"]),
        ("ipv6_only", ["nobody without IPv6", "p2pnode1x"]),
    ],
)
def test_a_node_says_who_can_use_its_invite(
    code: str, says: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    reach = asdict(reachability(code, ["/ip4/192.168.1.5/tcp/4001"]))
    fields = {"models": [], "store_for": [], "invite": "p2pnode1x", "reach": reach}
    report = JoinReporter(Output(as_json=False))
    report("ready", fields)
    said = capsys.readouterr().err
    assert [each for each in says if each not in said] == []
    report("addresses", {**fields, "multiaddrs": ["/ip4/192.168.1.5/tcp/4001"]})
    changed = capsys.readouterr().err
    assert "listening  /ip4/192.168.1.5/tcp/4001" in changed
    assert ("p2pnode1x" in said) == ("p2pnode1x" in changed) == (code != "no_network")


@pytest.mark.parametrize(
    ("names", "asks"),
    [
        ([], 'ask "…" --data-dir d'),
        ([SCRIPTED], 'ask --model scripted "…" --data-dir d'),
        ([SCRIPTED, DEFAULT_MODEL], 'ask "…" --data-dir d'),
    ],
)
def test_a_node_says_how_its_models_are_asked(
    names: list[str], asks: str, capsys: pytest.CaptureFixture[str]
) -> None:
    models = [
        {
            "name": name,
            "id": model_id_text(resolve_model(name, Path()).model),
            "price_in": 0,
            "price_out": 0,
            "state": "warm",
            "pinned": False,
        }
        for name in names
    ]
    reach = {"code": "global", "detail": "", "remedy": ""}
    fields = {"models": models, "store_for": [], "invite": "p2pnode1x", "reach": reach}
    JoinReporter(Output(as_json=False, data_dir=Path("d")))("ready", fields)
    assert f"ready: try `p2pnode {asks}`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        (["sessions"], "clients with an open session"),
        (["sessions", "ab" * 32], "clients with an open session and 1 listed owner"),
        (["ab" * 32, "cd" * 32], "2 listed owners"),
        (["sessions", "anyone"], "anyone"),
        ([], "nobody else"),
    ],
)
def test_a_node_says_for_whom_it_stores(
    rules: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    reach = {"code": "global", "detail": "", "remedy": ""}
    fields = {"models": [], "store_for": rules, "invite": "p2pnode1x", "reach": reach}
    JoinReporter(Output(as_json=False))("ready", fields)
    assert f"storing    for {words}\n" in capsys.readouterr().err
