"""What the commands print for people and for scripts, with and without a running node."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from p2pnode.cli import output as output_module
from p2pnode.cli.output import Output, shorten
from p2pnode.models.catalogue import DEFAULT_MODEL
from p2pnode.node.datadir import DataDir
from p2pnode.node.invite import read_bootstrap
from p2pnode.words import printable
from tests.cli.support import Program, Ran, ask, run


def _hosts(data_dir: Path, *arguments: object, hosts: tuple[Program, ...]) -> Ran:
    first = [part for program in hosts for part in ("--bootstrap", program.multiaddr)]
    return run("hosts", "--model", "scripted", "--no-mdns", "--data-dir", data_dir, *first, *arguments)


def _evaluate(data_dir: Path, *arguments: object) -> Ran:
    return run("models", "evaluate", "scripted", *arguments, "--data-dir", data_dir)


# ---- ask


def test_the_answer_goes_to_stdout_and_all_else_to_stderr(data_dir: Path, host: Program) -> None:
    ran = ask(data_dir, "hello", "--bootstrap", host.multiaddr, "--max-tokens", 12, "--temperature", 0)
    assert ran.code == 0
    assert re.fullmatch(r"[a-z ]{12}\n", ran.out)
    bill = r"\[8 tokens in, 12 out, first after \d\.\d\d s, .*from 12D3….{6}\]\n\[.*\]\n"
    assert re.fullmatch(bill, ran.err), ran
    assert "[it stops in the middle: that is as long as --max-tokens lets an answer be]" in ran.err
    again = ask(
        data_dir, "-", "--peer", host.multiaddr, "--max-tokens", 12, "--temperature", 0, stdin="hello"
    )
    assert again.out == ran.out


def test_a_first_peer_is_given_once_where_there_is_a_data_dir(data_dir: Path, host: Program) -> None:
    first = ("--bootstrap", host.multiaddr)
    assert ask(data_dir, "hello", *first, "--max-tokens", 5).code == 0
    assert (ask(data_dir, "hello", "--max-tokens", 5).code, data_dir.exists()) == (3, False)
    data_dir.mkdir(mode=0o700)
    assert ask(data_dir, "hello", *first, "--max-tokens", 5).code == 0
    assert ask(data_dir, "hello", "--max-tokens", 5).code == 0


def test_json_says_the_same_in_events(data_dir: Path, host: Program) -> None:
    arguments = ("--bootstrap", host.multiaddr, "--max-tokens", 40, "--seed", 7)
    ran = ask(data_dir, "hello", *arguments, "--json")
    assert ran.err == ""
    names = [event["event"] for event in ran.events]
    assert names[0] == "host"
    assert set(names[1:-1]) <= {"prefill", "text"}
    done = ran.events[-1]
    assert done["event"] == "done"
    assert (done["host"], done["tokens_out"], done["reason"]) == (host.ready["peer_id"], 40, "length")
    text = "".join(event["text"] for event in ran.named("text"))
    assert ask(data_dir, "hello", *arguments).out == text + "\n"
    assert ask(data_dir, "hello", *arguments[:-1], 8).out != text + "\n"


def test_stop_and_system_reach_the_host(data_dir: Path, host: Program) -> None:
    common = ("--peer", host.multiaddr, "--temperature", 0, "--max-tokens", 40)
    plain = ask(data_dir, "hello", *common).out
    word = plain.split()[1]
    stopped = ask(data_dir, "hello", *common, "--stop", word)
    assert word not in stopped.out
    assert "--max-tokens" not in stopped.err
    assert ask(data_dir, "hello", *common, "--system", "Be brief.").out != plain


def test_an_answer_without_words_from_a_question_that_is_no_utf8(data_dir: Path, host: Program) -> None:
    assert ask(data_dir, "-", "--peer", host.multiaddr, "--max-tokens", 3, stdin=b"\xff\xfe!").code == 0


# ---- hosts


def test_hosts_lists_who_may_be_asked(
    data_dir: Path, host: Program, paid_host: Program, profile: Path
) -> None:
    ran = _hosts(data_dir, "--chain", profile, hosts=(host, paid_host))
    assert ran.code == 0
    head, *rows = ran.out.splitlines()
    assert head.split() == ["model", "peer", "USDC/M", "in/out", "fee", "context", "load", "score"]
    assert sorted(row.split()[2] for row in rows) == ["0.000005/0.000007", "free"]
    why = _hosts(data_dir, "--why", hosts=(host,))
    can = "tools, schema, logprobs, embeddings, parallel-turns, keep-time (scripted); keeps a session"
    able = f"  {shorten(host.ready['peer_id'])}  can: {can} for 1 day after you left"
    assert able in why.out.splitlines()
    assert all(len(line) <= 80 for line in ran.out.splitlines())
    assert ran.err == ""


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--max-price-in", "0.000004"), "input price 0.000005 USDC is above the allowed 0.000004 USDC"),
        (("--max-price-out", "0.000006"), "output price 0.000007 USDC is above the allowed 0.000006 USDC"),
        (("--min-context", 4096), "context of 2048 tokens is below the needed 4096"),
        (("--needs", "vision"), "lacks vision, which is needed"),
    ],
)
def test_hosts_why_tells_each_exclusion(
    data_dir: Path, paid_host: Program, flags: tuple[object, ...], reason: str
) -> None:
    peer = paid_host.ready["peer_id"]
    told = _hosts(data_dir, "--why", "--json", *flags, hosts=(paid_host,)).named("host")
    assert [event["excluded"] for event in told if event["peer"] == peer] == [reason]


def test_hosts_exits_3_when_nobody_is_left_and_prints_no_empty_table(
    data_dir: Path, paid_host: Program
) -> None:
    ran = _hosts(data_dir, "--min-context", 4096, hosts=(paid_host,))
    assert (ran.code, ran.out) == (3, "")
    assert "no host of this model may be chosen" in ran.err
    assert "see --why" in ran.err
    why = _hosts(data_dir, "--min-context", 4096, "--why", hosts=(paid_host,))
    assert why.out.splitlines()[0] == "left out:"
    line = f"  {shorten(paid_host.ready['peer_id'])}  context of 2048 tokens is below the needed 4096"
    assert line in why.out.splitlines()


def test_hosts_why_tells_of_peers_that_failed_or_were_not_reached(data_dir: Path, host: Program) -> None:
    gone = f"/ip4/127.0.0.1/tcp/1/p2p/{read_bootstrap(host.multiaddr)[0][-52:]}"
    ran = run(
        "hosts", "--why", "--model", "scripted", "--no-mdns", "--data-dir", data_dir, "--bootstrap", gone
    )
    assert ran.code == 3
    assert ran.out.startswith("not reached:\n")
    assert "connection refused" in ran.out
    data_dir.mkdir()
    broken = {"failures_in_a_row": 3, "last_failure": 4e9}
    DataDir(data_dir).measured.write_text(json.dumps({host.ready["peer_id"]: broken}))
    assert "failed 3 times in a row: left out for" in _hosts(data_dir, "--why", hosts=(host,)).out
    known = {"kept": 8, "broken": 2, "receipted": 640, "faults": 0}
    DataDir(data_dir).measured.write_text(json.dumps({host.ready["peer_id"]: known}))
    told = _hosts(data_dir, "--why", hosts=(host,)).out
    assert "reputation 0.49 to 0.94: 8 of 10 turns ended as promised, receipts over 640 tokens" in told
    assert (
        "its reputation here is 0.49" in _hosts(data_dir, "--why", "--min-reputation", 0.5, hosts=(host,)).out
    )


def test_hosts_why_shows_what_is_known_of_a_models_answers_and_that_it_ranks_no_host(
    data_dir: Path, host: Program
) -> None:
    flags = ["--model", "scripted", "--no-mdns", "--data-dir", data_dir, "--bootstrap", host.multiaddr]
    assert "right answers" not in run("hosts", "--why", *flags).out
    evaluated = _evaluate(data_dir, "--tasks", "strings", "--limit", 1, "--json").named("evaluated")[0]
    assert "right answers" not in run("hosts", *flags).out
    told = run("hosts", "--why", *flags).out
    assert "scripted: right answers 0% (0 to 79%) of 1 item, measured here on" in told
    assert "no part of the score: all hosts of one id have the same weights" in told
    (known,) = run("hosts", "--why", "--json", *flags).named("quality")
    assert (known["model"], known["overall"], known["by"]) == (evaluated["model"], evaluated["overall"], "")


# ---- status and invite


def test_status_and_invite_of_a_running_node(host: Program) -> None:
    data_dir = host.out_path.parent / "h"
    status = run("status", "--data-dir", data_dir)
    assert status.code == 0
    assert f"peer id    {host.ready['peer_id']}" in status.out
    assert "serving    scripted (scripted, 2048 tokens), free" in status.out
    assert "gas  " not in status.out  # a free host pays none
    assert re.search(r"load       \d of 4 slots, 0 waiting", status.out)
    fields = run("status", "--data-dir", data_dir, "--json").events[0]
    assert (fields["pid"], fields["draining"]) == (host.process.pid, False)
    invite = run("invite", "--data-dir", data_dir)
    assert read_bootstrap(invite.out) == tuple(host.ready["multiaddrs"])
    assert run("invite", "--data-dir", data_dir, "--json").events[0]["invite"] == invite.out.strip()


@pytest.mark.parametrize("command", ["status", "invite"])
def test_without_a_running_node_they_say_how_to_start_one(data_dir: Path, command: str) -> None:
    ran = run(command, "--data-dir", data_dir)
    assert (ran.code, ran.out) == (1, "")
    how = f"start one with `p2pnode join --data-dir {data_dir}`"
    assert f"no node runs on {data_dir}: {how}" in " ".join(ran.err.split())


def test_a_node_that_runs_and_does_not_answer_is_said_to(data_dir: Path) -> None:
    data = DataDir(data_dir)
    data.prepare()
    with data.locked():
        peer = "12D3KooWPQY1zLBudZbUUReo9sgqqMXnFBx4mB7xZmBkk1tZAyZi"
        data.write_node_json(peer, [f"/ip4/127.0.0.1/tcp/1/p2p/{peer}"])  # type: ignore[arg-type]
        ran = run("status", "--data-dir", data_dir)
    assert ran.code == 1
    assert "connection refused" in ran.err


# ---- models


def test_models_are_listed_pulled_and_verified(data_dir: Path) -> None:
    listed = run("models", "list", "--data-dir", data_dir)
    assert f"no; `p2pnode models pull {DEFAULT_MODEL} --data-dir {data_dir}` fetches it" in listed.out
    pulled = run("models", "pull", DEFAULT_MODEL, "--data-dir", data_dir, "--json")
    assert pulled.code == 0
    model = pulled.events[-1]
    assert model["id"].startswith("m1")
    row = run("models", "list", "--data-dir", data_dir, "--json").events[0]
    assert (row["name"], row["id"], row["path"]) == (DEFAULT_MODEL, model["id"], model["path"])
    assert model["id"] in run("models", "list", "--data-dir", data_dir).out
    verified = run("models", "verify", DEFAULT_MODEL, "--data-dir", data_dir)
    assert verified.code == 0
    assert f"{DEFAULT_MODEL}: the weights are right" in verified.err


def test_a_host_is_asked_the_same_and_its_figures_are_not_kept_as_the_models(
    data_dir: Path, host: Program
) -> None:
    at_host = ["--peer", host.multiaddr, "--tasks", "strings,json,logic", "--limit", 1]
    ran = _evaluate(data_dir, *at_host, "--json")
    assert ran.code == 0
    assert ran.named("cost") == [{"event": "cost", "items": 3, "cost_max": 0}]
    (told,) = ran.named("evaluated")
    assert (told["answered"], told["engine"], told["kept"]) == (3, "scripted", False)
    assert [each["answer"][:1] for each in ran.named("item") if each["task"] == "json"] == ["{"]
    assert not (data_dir / "quality.json").exists()
    people = _evaluate(data_dir, *at_host)
    assert "[it is free]" in people.err
    assert "not kept: these are this host's answers" in people.err


def test_a_host_that_wants_money_is_not_asked_before_its_user_knows_what_that_costs(
    data_dir: Path, paid_host: Program, profile: Path
) -> None:
    ran = _evaluate(data_dir, "--peer", paid_host.multiaddr, "--chain", profile, "--limit", 1)
    assert ran.code == 2
    assert "7 items cost at most 0.0" in ran.err
    assert "add --yes to do that where nobody can be asked. Nothing was done" in ran.err
    assert ran.out == ""


# ---- what is printed


def test_a_stranger_s_control_characters_never_reach_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    evil = "a\x1b]0;title\x07b\x9bc\r\n"
    assert printable(evil) == "a�]0;title�b�c�\n"
    Output(as_json=True).piece(evil)
    assert json.loads(capsys.readouterr().out)["text"] == evil  # a program gets what came
    output = Output(as_json=False)
    output.piece(evil)
    assert capsys.readouterr().out == printable(evil)  # `| tee` leads to a terminal
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    output.piece(evil)
    output.event("x", text=evil)
    output.table(["model"], [[evil]])
    said = capsys.readouterr()
    assert "\x1b]" not in said.out + said.err


def test_words_in_brackets_and_colons_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    Output(as_json=False).event("x", text="[red] :key: [/red]")
    assert capsys.readouterr().err == "[red] :key: [/red]\n"


def test_a_message_in_mid_answer_is_on_a_line_of_its_own_on_a_terminal_only(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for terminal, out in ((True, "half a line\n, the rest\n"), (False, "half a line, the rest\n")):
        monkeypatch.setattr("sys.stdout.isatty", lambda terminal=terminal: terminal, raising=False)
        output = Output(as_json=False)
        output.piece("half a line")
        output.event("x", text="said")
        output.event("x", text="said")
        output.piece(", the rest")
        output.end_line()
        assert capsys.readouterr() == (out, "said\nsaid\n")


def test_what_can_wait_is_said_after_the_answer_and_at_once_where_none_streams(
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = Output(as_json=False)
    output.event("x", text="before", later=True)
    assert capsys.readouterr().err == "before\n"
    output.piece("an answer")
    output.event("x", text="said", later=True)
    assert capsys.readouterr() == ("an answer", "")
    output.end_line()
    assert capsys.readouterr() == ("\n", "said\n")


def test_peer_ids_are_shortened_to_what_tells_them_apart() -> None:
    assert shorten("12D3KooWPQY1zLBudZbUUReo9sgqqMXnFBx4mB7xZmBkk1tZAyZi") == "12D3…tZAyZi"
    assert shorten("short") == "short"


def test_every_event_and_field_is_in_the_table_of_the_docs(data_dir: Path, host: Program) -> None:
    table = output_module.__doc__ or ""
    documented = {
        name: set(re.findall(r"\w+", fields)) for name, fields in re.findall(r"([\w.]+)\{([^}]*)\}", table)
    }
    documented["host"] |= {
        "peer",
        "model",
        "excluded",
        "price_in",
        "score",
        "addresses",
        "engine",
        "state",
        "warm_in_s",
    }
    documented["model"] |= {"name", "id", "size_bytes", "quantisation", "n_ctx", "licence", "path"}
    common = ("--data-dir", data_dir, "--json")
    runs = [
        ask(data_dir, "hello", "--peer", host.multiaddr, "--json"),
        ask(data_dir, "hello", "--json"),
        _hosts(data_dir, "--json", hosts=(host,)),
        run("models", "list", *common),
        run("status", "--data-dir", host.out_path.parent / "h", "--json"),
    ]
    events = [event for ran in runs for event in ran.events] + host.events
    assert {event["event"] for event in events} >= {"host", "done", "failed", "status", "model", "ready"}
    for event in events:
        fields = set(event) - {"event"}
        if event["event"] in ("host", "model"):  # two commands share the name
            assert fields <= set(re.findall(r"\w+", table))
        else:
            assert fields <= documented[event["event"]], event["event"]


def test_a_free_answer_imports_nothing_of_the_chain(tmp_path: Path, host: Program) -> None:
    code = (
        "import sys; from p2pnode.cli.app import app; "
        f"sys.argv = ['p2pnode', 'ask', 'hi', '--peer', {host.multiaddr!r}, "
        "'--model', 'scripted', '--no-mdns', "
        f"'--max-tokens', '3', '--data-dir', {str(tmp_path / 'd')!r}]\n"
        "try: app()\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'web3', 'eth_account', 'eth_abi', 'eth_tester', 'keyring', 'httpx', 'sqlite3'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert ran.stderr.splitlines()[-1] == "[]"
