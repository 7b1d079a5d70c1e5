"""``p2pnode run`` and ``connect``, with programs that write down what they are given."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from p2pnode.config import DEFAULT_MODEL
from p2pnode.node.datadir import DataDir
from p2pnode.payments.journal.journal import Journal
from p2pnode.payments.keys import KeyBook
from p2pnode.words import KEY_SECRET
from tests.cli.support import DEADLINE_S, Program, run

STAND_IN = f"""#!{sys.executable}
import json, os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(9))
config = os.path.join(os.environ["XDG_CONFIG_HOME"], "crush", "crush.json")
said = {{"pid": os.getpid(), "arguments": sys.argv[1:], "environment": dict(os.environ), "tty": os.isatty(0),
        "config": json.load(open(config)) if os.path.exists(config) else None}}
with open(os.environ["SAID"] + ".new", "w") as file:
    json.dump(said, file)
os.rename(os.environ["SAID"] + ".new", os.environ["SAID"])
if "wait" in sys.argv:
    time.sleep(60)
if "die" in sys.argv:
    os.kill(os.getpid(), signal.SIGKILL)
sys.exit(7 if "fail" in sys.argv else 0)
"""
OTHERS = [
    pytest.param(each, marks=pytest.mark.long) for each in ("codex", "opencode", "aider", "goose", "crush")
]
ASKER = f"""#!{sys.executable}
import json, os, urllib.request
request = urllib.request.Request(
    os.environ["OPENAI_API_BASE"] + "/chat/completions",
    json.dumps({{"model": os.environ["AIDER_MODEL"].removeprefix("openai/"), "max_tokens": 8,
                "messages": [{{"role": "user", "content": "hello"}}]}}).encode(),
    {{"Authorization": "Bearer " + os.environ["OPENAI_API_KEY"], "Content-Type": "application/json"}},
)
with urllib.request.urlopen(request, timeout=30) as answer:
    open(os.environ["SAID"], "wb").write(answer.read())
"""


class Models(BaseHTTPRequestHandler):
    """What a gateway says of its models."""

    def do_GET(self) -> None:
        listed = {"data": [{"id": DEFAULT_MODEL, "context_length": 4096}]}
        body = json.dumps(listed).encode()
        known = KEY_SECRET.fullmatch(self.headers.get("Authorization", "").removeprefix("Bearer "))
        self.send_response(200 if known and self.path == "/v1/models" else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url(data_dir: Path) -> Iterator[str]:
    """A gateway that runs on the data dir, as far as other programs see."""
    data = DataDir(data_dir)
    data.prepare()
    server = HTTPServer(("127.0.0.1", 0), Models)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    found = f"http://127.0.0.1:{server.server_port}"
    handle = os.open(data.gateway_lock, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(handle, fcntl.LOCK_EX)
    data.gateway_json.write_text(json.dumps({"pid": os.getpid(), "url": found, "keys_required": True}))
    yield found
    os.close(handle)
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the stand-ins on the PATH write what they are given."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("codex", "claude", "opencode", "aider", "goose", "crush"):
        (folder / name).write_text(STAND_IN)
        (folder / name).chmod(0o755)
    path = tmp_path / "said.json"
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    monkeypatch.setenv("SAID", str(path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-of-its-makers")
    return path


def told(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    path.unlink()
    return found


def keys(data_dir: Path) -> list[dict[str, Any]]:
    return run("keys", "list", "--json", "--data-dir", data_dir).events


def test_a_program_gets_its_environment_its_key_and_the_users_arguments(
    data_dir: Path, url: str, said: Path
) -> None:
    ran = run("run", "--data-dir", data_dir, "claude", "--", "-p", "", "--x", "hi there")
    assert ran.code == 0, ran
    found = told(said)
    assert found["arguments"] == ["-p", "", "--x", "hi there"]
    environment = found["environment"]
    assert environment["ANTHROPIC_BASE_URL"] == url
    assert environment["ANTHROPIC_MODEL"] == DEFAULT_MODEL
    assert "ANTHROPIC_API_KEY" not in environment
    secret = environment["ANTHROPIC_AUTH_TOKEN"]
    assert KEY_SECRET.fullmatch(secret)
    assert secret not in ran.out + ran.err
    assert [each["name"] for each in keys(data_dir)] == ["run-claude"]


def test_codex_is_told_the_context_and_no_key_stands_in_its_arguments(
    data_dir: Path, url: str, said: Path
) -> None:
    assert run("run", "codex", "exec", "fix it", "--data-dir", data_dir).code == 0
    found = told(said)
    assert found["arguments"][-2:] == ["exec", "fix it"]
    assert "model_context_window=4096" in found["arguments"]
    assert f'model_providers.p2pnode.base_url="{url}/v1"' in found["arguments"]
    assert not any(KEY_SECRET.search(each) for each in found["arguments"])
    assert KEY_SECRET.fullmatch(found["environment"]["P2PNODE_API_KEY"])


def test_a_program_keeps_its_key_and_a_new_budget_holds_from_then_on(
    data_dir: Path, url: str, said: Path
) -> None:
    seen = []
    for flags in (("--budget", "2"), (), ("--per-day", "0.5")):
        assert run("run", "aider", *flags, "--data-dir", data_dir).code == 0
        seen.append(told(said)["environment"]["OPENAI_API_KEY"])
    assert len(set(seen)) == 1
    (key,) = keys(data_dir)
    assert (key["budget"], key["per_day"]) == (2_000_000, 500_000)
    run("keys", "revoke", "run-aider", "--data-dir", data_dir)
    assert run("run", "aider", "--data-dir", data_dir).code == 0
    assert told(said)["environment"]["OPENAI_API_KEY"] != seen[0]
    (key,) = keys(data_dir)
    assert key["budget"] is None


def test_the_programs_exit_code_is_ours(data_dir: Path, url: str, said: Path) -> None:
    assert run("run", "codex", "fail", "--data-dir", data_dir).code == 7
    assert run("run", "codex", "die", "--data-dir", data_dir).code == 128 + signal.SIGKILL


def test_a_programs_file_is_changed_while_it_runs_and_put_back(
    data_dir: Path, url: str, said: Path, tmp_path: Path
) -> None:
    path = tmp_path / "config" / "crush" / "crush.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"options":  {"debug": true}}')
    assert run("run", "crush", "--data-dir", data_dir).code == 0
    found = told(said)
    assert found["config"]["options"] == {"debug": True}
    provider = found["config"]["providers"]["p2pnode"]
    assert (provider["base_url"], provider["api_key"]) == (f"{url}/v1", "$P2PNODE_API_KEY")
    assert provider["models"][0]["context_window"] == 4096
    assert path.read_text() == '{"options":  {"debug": true}}'


def start(*arguments: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "p2pnode", *map(str, arguments)])


def wait_for(path: Path) -> None:
    until = time.monotonic() + DEADLINE_S
    while not path.exists():
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.long
def test_after_a_kill_the_next_run_puts_the_file_back(
    data_dir: Path, url: str, said: Path, tmp_path: Path
) -> None:
    path = tmp_path / "config" / "crush" / "crush.json"
    killed = start("run", "crush", "wait", "--data-dir", data_dir)
    wait_for(said)
    assert "p2pnode" in path.read_text()
    killed.kill()
    killed.wait()
    assert "p2pnode" in path.read_text()
    os.kill(told(said)["pid"], signal.SIGKILL)
    ran = run("run", "codex", "--data-dir", data_dir)
    assert ran.code == 0
    assert f"{path} was put back" in ran.err
    assert not path.exists()


@pytest.mark.long
def test_a_sigterm_is_the_programs_and_all_is_put_back_after_it(
    data_dir: Path, url: str, said: Path, tmp_path: Path
) -> None:
    path = tmp_path / "config" / "crush" / "crush.json"
    running = start("run", "crush", "wait", "--data-dir", data_dir)
    wait_for(said)
    running.send_signal(signal.SIGTERM)
    assert running.wait(DEADLINE_S) == 9
    assert not path.exists()


@pytest.mark.parametrize("name", ["claude", *OTHERS])
def test_connect_prints_what_run_sets(data_dir: Path, url: str, said: Path, name: str) -> None:
    assert run("run", name, "--data-dir", data_dir).code == 0
    environment = told(said)["environment"]
    ran = run("connect", name, "--json", "--data-dir", data_dir)
    (shown,) = ran.named("connect")
    assert all(environment[key] == value for key, value in shown["environment"].items())
    plain = run("connect", name, "--data-dir", data_dir)
    assert plain.code == 0
    script = plain.out + "\nenv -0"
    lines = [each for each in script.splitlines() if not each.startswith(name)]
    made = subprocess.run(["sh", "-c", "\n".join(lines)], capture_output=True, check=True).stdout
    exported = dict(each.split("=", 1) for each in made.decode().split("\0") if each)
    assert all(exported[key] == value for key, value in shown["environment"].items())
    assert not set(shown["unset"]) & set(exported)


def test_connect_needs_a_gateway(data_dir: Path, said: Path) -> None:
    ran = run("connect", "codex", "--data-dir", data_dir)
    assert ran.code == 1
    assert "p2pnode gateway" in ran.err


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [(("vim",), 2, "codex, claude"), (("codex", "--model", "no-such"), 2, "--model")],
)
@pytest.mark.usefixtures("url")
def test_what_makes_no_sense_is_told(
    data_dir: Path, said: Path, arguments: tuple[str, ...], code: int, text: str
) -> None:
    ran = run("run", *arguments, "--data-dir", data_dir)
    assert ran.code == code
    assert text in ran.err
    assert not said.exists()


def test_a_program_that_is_not_there_is_told_with_how_to_have_it(
    data_dir: Path, url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    ran = run("run", "codex", "--data-dir", data_dir)
    assert ran.code == 1
    assert "npm install -g @openai/codex" in ran.err


@pytest.mark.long
def test_a_gateway_is_started_for_a_program_and_ends_with_it(
    data_dir: Path, host: Program, said: Path, tmp_path: Path
) -> None:
    (tmp_path / "bin" / "aider").write_text(ASKER)
    flags = ("--model", "scripted", "--no-mdns", "--bootstrap", host.multiaddr, "--data-dir", data_dir)
    ran = run("run", "aider", *flags)
    assert ran.code == 0, (ran, (DataDir(data_dir).launch / "gateway.log").read_text())
    answer = told(said)
    assert answer["usage"]["completion_tokens"] == 8
    assert not DataDir(data_dir).gateway_json.exists(), "it ended in order"


@pytest.mark.long
def test_a_gateway_that_does_not_start_is_told_with_its_reason(data_dir: Path, said: Path) -> None:
    ran = run("run", "aider", "--chain", "no-such-file.toml", "--data-dir", data_dir)
    assert ran.code == 1
    assert "did not start" in ran.err
    assert not said.exists()


def test_a_key_of_a_program_is_kept_where_only_its_owner_reads_it(
    data_dir: Path, url: str, said: Path
) -> None:
    run("run", "codex", "--data-dir", data_dir)
    path = DataDir(data_dir).launch / "codex.key"
    assert path.stat().st_mode & 0o777 == 0o600
    journal = Journal.open(DataDir(data_dir).journal)
    try:
        found = KeyBook(journal, wall=time.time, draw=bytes).find(path.read_text().strip())
    finally:
        journal.close()
    assert found is not None
