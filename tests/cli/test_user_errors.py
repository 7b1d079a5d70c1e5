"""Every error a user can cause: what it says, that it says what to do next, and its exit code."""

from __future__ import annotations

import math
import shutil
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest

from p2pnode.files import write_private
from p2pnode.models.catalogue import DEFAULT_MODEL, Catalogue
from p2pnode.models.model_list import list_blob
from p2pnode.models.subscriptions import Subscriptions
from p2pnode.node.datadir import DataDir
from p2pnode.node.keys import PeerKey
from tests.cli.support import LISTEN, Program, Ran, ask, give, run, wallet
from tests.models.gguf_files import TINY
from tests.models.lists import entry, head, pointer
from tests.net.memory_world import seed_of

OTHER = PeerKey(seed_of(1)).peer_id
DEAD = f"/ip4/127.0.0.1/tcp/1/p2p/{OTHER}"


def _join(data_dir: Path, *arguments: object) -> Ran:
    listen = () if "--listen" in arguments else ("--listen", LISTEN)
    model = () if "--model" in arguments else ("--model", "scripted")
    return run("join", "--no-mdns", "--data-dir", data_dir, *listen, *model, *arguments)


def _check(ran: Ran, code: int, *messages: str) -> None:
    assert ran.code == code, ran.err
    said = " ".join(ran.err.split())
    for message in messages:
        assert message in said
    assert "Traceback" not in ran.err
    assert ran.out == ""


# ---- whom to ask


def test_no_host_for_the_model(data_dir: Path) -> None:
    ran = ask(data_dir, "hello")
    _check(
        ran,
        3,
        "no host for this model was found (this node knows no other: no first peer was named",
        "Start one with `p2pnode join --data-dir",
    )
    assert not data_dir.exists()


def test_a_dry_run_and_the_list_of_hosts_say_that_nobody_is_there(data_dir: Path) -> None:
    _check(
        ask(data_dir, "hello", "--dry-run"), 3, "no host for this model was found (this node knows no other"
    )
    ran = run("hosts", "--no-mdns", "--data-dir", data_dir)
    _check(ran, 3, "no host of this model was found (this node knows no other", "or name a first peer with")


@pytest.mark.parametrize(("typed", "meant"), [("tool", "tools"), ("emb", "embeddings")])
def test_a_capability_that_there_is_not_is_said_with_the_nearest(
    typed: str, meant: str, data_dir: Path
) -> None:
    ran = run("hosts", "--needs", typed, "--no-mdns", "--data-dir", data_dir)
    _check(ran, 2, f"--needs: '{typed}' is no capability: did you mean {meant}?")


def test_a_peer_that_could_not_be_reached_is_named_once(data_dir: Path) -> None:
    assert ask(data_dir, "hello", "--bootstrap", DEAD).err.count(OTHER) == 1


def test_no_host_because_the_first_peer_is_gone(data_dir: Path) -> None:
    _check(ask(data_dir, "hello", "--bootstrap", DEAD), 3, "connection refused", "--bootstrap")


def test_no_host_of_this_model_although_one_of_another(data_dir: Path, host: Program) -> None:
    ran = ask(data_dir, "hello", "--bootstrap", host.multiaddr, model=DEFAULT_MODEL)
    _check(ran, 3, "no host for this model was found", "p2pnode hosts --why")


@pytest.mark.parametrize("flag", ["--peer", "--bootstrap"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonsense", "'nonsense' is no multiaddr; a right one looks like /ip4/"),
        ("/ip4/127.0.0.1/tcp/4001", "it must end in /p2p/<peer id>"),
        ("/ip4/127.0.0.1/tcp/99999/p2p/x", "is no multiaddr; a right one looks like"),
        (f"/ip4/127.0.0.1/udp/4001/quic-v1/p2p/{OTHER}", "only TCP and WebSocket are"),
        (f"/ip4/127.0.0.1/tcp/4001/p2p/{OTHER}/p2p-circuit/p2p/{OTHER}", "a relay, which is not supported"),
    ],
)
def test_a_malformed_multiaddr(data_dir: Path, flag: str, text: str, message: str) -> None:
    _check(ask(data_dir, "hello", flag, text), 2, f"p2pnode: {flag}: ", message)


@pytest.mark.parametrize("invite", ["p2pnode1", "p2pnode1AAAAAAAA", "p2pnode1" + "A" * 5000])
@pytest.mark.parametrize("command", ["ask", "hosts", "doctor", "join"])
def test_a_damaged_invite(data_dir: Path, command: str, invite: str) -> None:
    question = ("hello",) if command == "ask" else ()
    ran = run(command, *question, "--bootstrap", invite, "--no-mdns", "--data-dir", data_dir)
    _check(ran, 2, "--bootstrap: this invite is damaged: copy it again, whole")


def test_a_wrong_peer_id(data_dir: Path, host: Program) -> None:
    wrong = host.multiaddr.replace(host.ready["peer_id"], OTHER)
    _check(ask(data_dir, "hello", "--peer", wrong), 1, "peer id", host.ready["peer_id"])


def test_nobody_at_the_address(data_dir: Path) -> None:
    _check(ask(data_dir, "hello", "--peer", DEAD, "--no-discovery"), 1, "connection refused")


def test_the_model_is_not_on_that_host(data_dir: Path, host: Program) -> None:
    ran = ask(data_dir, "hello", "--peer", host.multiaddr, model=DEFAULT_MODEL)
    _check(ran, 4, "model_not_available: that host serves scripted: choose it with --model, or another host")


@pytest.mark.parametrize("command", ["ask", "chat", "hosts", "join", "models pull", "models verify"])
def test_an_unknown_model_names_the_nearest(data_dir: Path, command: str) -> None:
    named = ["smollm2-135m"] if command.startswith("models") else ["--model", "smollm2-135m"]
    question = ["hello"] if command == "ask" else []
    ran = run(*command.split(), *question, *named, "--data-dir", data_dir)
    _check(
        ran, 2, "unknown model 'smollm2-135m': did you mean 'smollm2-135m-instruct'?", "p2pnode models list"
    )


def test_no_discovery_without_a_peer(data_dir: Path) -> None:
    _check(ask(data_dir, "hello", "--no-discovery"), 2, "--no-discovery needs --peer MULTIADDR")
    _check(run("chat", "--no-discovery", "--data-dir", data_dir), 2, "--no-discovery needs --peer MULTIADDR")


def test_a_paid_host_asked_for_nothing(data_dir: Path, paid_host: Program) -> None:
    ran = ask(data_dir, "hello", "--peer", paid_host.multiaddr)
    _check(ran, 4, "payment_required: that host asks 0.000005/0.000007 USDC per million tokens", "wallet new")
    assert "another host" not in ran.err


def test_prices_without_a_chain(data_dir: Path) -> None:
    ran = run("join", "--model", "scripted", "--price-out", 5, "--no-mdns", "--data-dir", data_dir)
    _check(ran, 1, "prices need a chain to be paid on", "--chain")


def test_a_paid_host_and_no_wallet(data_dir: Path, paid_host: Program, profile: Path) -> None:
    ran = ask(data_dir, "hello", "--peer", paid_host.multiaddr, "--chain", profile)
    _check(ran, 1, "there is no wallet in", "p2pnode wallet new")


def test_a_paid_host_and_an_empty_wallet(data_dir: Path, paid_host: Program, profile: Path) -> None:
    address = wallet(data_dir)
    ran = ask(data_dir, "hello", "--peer", paid_host.multiaddr, "--chain", profile)
    _check(ran, 1, "is missing. Send USDC to", address)


def test_a_session_above_the_limit(data_dir: Path, paid_host: Program, profile: Path) -> None:
    give(profile, wallet(data_dir), usdc="1")
    ran = ask(data_dir, "hi", "--peer", paid_host.multiaddr, "--chain", profile, "--max-spend", "0.001")
    _check(ran, 4, "your limit for one is 0.001 USDC", "spend_session_max")


def test_a_profile_that_is_not_there(data_dir: Path) -> None:
    ran = ask(data_dir, "hello", "--chain", data_dir / "nowhere.toml")
    _check(ran, 1, "nowhere.toml")


def test_funds_without_a_chain(data_dir: Path) -> None:
    _check(run("funds", "--data-dir", data_dir), 1, "no chain is configured", "--chain")


def test_a_session_nobody_knows(data_dir: Path) -> None:
    _check(
        run("sessions", "show", "abcd", "--data-dir", data_dir),
        2,
        "no conversation or paid session begins with 'abcd'",
    )


# ---- what to ask


@pytest.mark.parametrize("question", ["", "  \n"])
def test_an_empty_question(data_dir: Path, question: str) -> None:
    _check(ask(data_dir, question), 2, "the question is empty: give some text")
    _check(ask(data_dir, "-", stdin=question), 2, "the question is empty: give some text")


def test_a_conversation_too_long_in_bytes_is_refused_before_it_is_sent(data_dir: Path, host: Program) -> None:
    ran = ask(data_dir, "x" * 100_000, "--peer", host.multiaddr)
    _check(
        ran, 4, "context_overflow: the conversation takes 100", "ask for less, or choose a host with a larger"
    )


def test_a_conversation_too_long_in_tokens_is_refused_by_the_host(data_dir: Path, host: Program) -> None:
    ran = ask(data_dir, "x" * 3_000, "--peer", host.multiaddr)
    _check(ran, 4, "context_overflow: ", "2048")


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--max-tokens", 0, "it must be an integer from 1 to 1048576"),
        ("--temperature", 2.1, "it must be a number from 0 to 2"),
        ("--temperature", -0.1, "it must be a number from 0 to 2"),
        ("--temperature", math.nan, "it must be a number from 0 to 2"),
        ("--top-p", 0, "it must be a number from 0.01 to 1"),
        ("--top-p", math.inf, "it must be a number from 0.01 to 1"),
        ("--seed", -1, "it must be an integer from 0"),
        ("--seed", 1 << 63, f"it must be an integer from 0 to {(1 << 63) - 1}"),
        ("--stop", "", "1 to 256 bytes of valid text each"),
        ("--stop", "x" * 257, "1 to 256 bytes of valid text each"),
    ],
)
@pytest.mark.parametrize("command", ["ask", "chat"])
def test_a_sampling_value_out_of_range(
    data_dir: Path, command: str, flag: str, value: object, message: str
) -> None:
    question = ("hello",) if command == "ask" else ()
    ran = run(command, *question, "--model", "scripted", "--data-dir", data_dir, flag, value)
    _check(ran, 2, f"p2pnode: {flag} is ", message)


def test_too_many_stop_texts(data_dir: Path) -> None:
    stops = [part for number in range(17) for part in ("--stop", f"s{number}")]
    _check(ask(data_dir, "hello", *stops), 2, "--stop is 17 strings; it must be at most 16 strings")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ask",), "give a question, or a conversation with --messages"),
        (("ask", "hello", "--colour"), "No such option"),
        (("ask", "hello", "--seed", "x"), "valid integer"),
        (("frobnicate",), "No such command"),
        (("ask", "hello", "--log-level", "loud"), "'loud' is not one of debug, info, warning, error"),
    ],
)
def test_a_command_line_that_makes_no_sense(arguments: tuple[str, ...], message: str) -> None:
    _check(run(*arguments), 2, message)


# ---- settings and the data dir


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lisen = []", "'lisen' is no setting: did you mean listen?"),
        ("zzzzz = 1", "'zzzzz' is no setting: known are listen, announce, bootstrap"),
        ("listen = ", "not valid TOML"),
        ("slots = 'many'", "slots must be a whole number"),
        ("slots = true", "slots must be a whole number"),
        ("mdns = 1", "mdns must be true or false"),
        ("listen = 'here'", "listen must be a list of strings"),
        ("slots = 0", "slots must be from 1 to 64"),
        ("price_in = -1", "price_in must be an amount of USDC"),
    ],
)
def test_a_wrong_config_file(data_dir: Path, text: str, message: str) -> None:
    data_dir.mkdir()
    (data_dir / "config.toml").write_text(text)
    _check(ask(data_dir, "hello"), 1, "config.toml: ", message)


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--price-in", -1, "--price-in must be an amount of USDC: '-1' is no decimal number"),
        ("--price-out", "1000000", "--price-out must be from 0 to 10000 USDC per million tokens"),
        ("--session-fee", "0.26", "--session-fee must be from 0 to 0.25 USDC: the contract allows no more"),
        ("--n-ctx", 1, "--n-ctx must be from 256 to"),
        ("--slots", 65, "--slots must be from 1 to 64"),
        ("--threads", -1, "--threads must be from 0 to"),
        ("--listen", "nonsense", "--listen: 'nonsense' is no multiaddr"),
        ("--listen", "/ip4/127.0.0.1/udp/1", "only TCP and WebSocket are"),
        ("--announce", "8.8.8.8:4001", "--announce: '8.8.8.8:4001' is no multiaddr"),
        ("--announce", "/ip4/0.0.0.0/tcp/4001", "--announce: nobody else can reach 0.0.0.0"),
        ("--announce", "/ip4/127.0.0.1/tcp/4001", "--announce: nobody else can reach 127.0.0.1"),
        ("--announce", "/dns4/node.example.org/tcp/0", "has no port that others could dial"),
        ("--model", "no/such.gguf", "there is no such file; check the path"),
        ("--ready-file", "no/such/ready", "make it first"),
    ],
)
def test_a_wrong_flag_of_join_is_told_before_anything_is_made(
    data_dir: Path, flag: str, value: object, message: str
) -> None:
    _check(_join(data_dir, flag, value), 2, message)
    assert not data_dir.exists()


def test_a_wrong_address_to_announce_in_the_config_file_is_told_too(data_dir: Path) -> None:
    data_dir.mkdir()
    DataDir(data_dir).config.write_text('announce = ["/ip4/0.0.0.0/tcp/4001"]')
    _check(_join(data_dir), 2, "config.toml, announce: nobody else can reach 0.0.0.0")


def test_an_address_to_announce_that_names_another_peer(data_dir: Path) -> None:
    ran = _join(data_dir, "--announce", f"/ip4/8.8.8.8/tcp/4001/p2p/{OTHER}")
    assert ran.code == 1
    assert "is to be announced, and names another peer: this node is 12D3" in ran.err


def test_a_port_that_is_taken(data_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        ran = _join(data_dir, "--listen", f"/ip4/127.0.0.1/tcp/{port}")
    assert ran.code == 1
    assert f"port {port} on 127.0.0.1 is already taken. Stop the program that uses it" in ran.err
    assert not (data_dir / "node.json").exists()


def test_a_data_dir_that_is_a_file_or_under_one(tmp_path: Path) -> None:
    (file := tmp_path / "file").write_text("")
    for ran in (_join(file), ask(file, "hello")):
        _check(ran, 2, f"--data-dir: {file} is a file: name a folder")
    _check(
        _join(file / "data"), 1, f"{file / 'data'} can't be written", "choose another folder with --data-dir"
    )


def test_a_data_dir_of_somebody_else(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda _path, _mode: False)
    _check(_join(data_dir), 1, f"{data_dir} can't be written (Permission denied)", "--data-dir")


def test_a_second_node_on_a_data_dir(data_dir: Path) -> None:
    data = DataDir(data_dir)
    data.prepare()
    with data.locked():
        _check(_join(data_dir), 1, "another node runs on", "(pid ", "a data dir of its own with --data-dir")


def test_a_copied_data_dir_and_the_same_accepted_as_moved(
    tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = DataDir(data_dir)
    data.prepare()
    data.check_place()
    shutil.copytree(data_dir, tmp_path / "copy")
    ran = _join(tmp_path / "copy")
    _check(
        ran, 1, "was copied, moved or restored from elsewhere", "start once with --moved", "--data-dir FOLDER"
    )
    assert "delete" not in ran.err
    write_private(DataDir(tmp_path / "copy").peer_key, b"stop the start here")
    assert "does not hold a key" in _join(tmp_path / "copy", "--moved").err
    assert "does not hold a key" in _join(tmp_path / "copy").err  # accepted for good


def test_a_node_starts_after_a_restart_of_the_machine_gave_its_disk_another_number(data_dir: Path) -> None:
    data = DataDir(data_dir)
    data.prepare()
    here = data.root.stat()
    data.place.write_text(f'{{"device": {here.st_dev + 1}, "inode": {here.st_ino}}}')
    write_private(data.peer_key, b"stop the start here")
    assert "does not hold a key" in _join(data_dir).err  # past the look at its place


@pytest.mark.parametrize("content", [b"", b"nonsense", b"00" * 31, b"\xff\xfe"])
def test_a_damaged_peer_key(data_dir: Path, content: bytes) -> None:
    DataDir(data_dir).prepare()
    write_private(DataDir(data_dir).peer_key, content)
    ran = _join(data_dir)
    assert ran.code == 1
    assert "peer.key" in ran.err
    assert "restore it from your backup" in ran.err or "check its owner and permissions" in ran.err
    assert DataDir(data_dir).peer_key.read_bytes() == content


def test_a_wallet_without_its_passphrase(data_dir: Path) -> None:
    data = DataDir(data_dir)
    data.prepare()
    data.wallet.write_text('{"address": "' + "ab" * 20 + '"}')
    ran = _join(data_dir)
    assert ran.code == 1
    assert "no terminal to ask for the wallet's passphrase" in ran.err


# ---- models


def test_a_truncated_model_file(data_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "short.gguf"
    path.write_bytes(TINY[: len(TINY) // 2])
    ran = _join(data_dir, "--model", path)
    assert ran.code == 1
    assert "short.gguf" in ran.err
    assert "Traceback" not in ran.err


def test_a_model_file_with_the_wrong_hash(data_dir: Path) -> None:
    manifest = Catalogue.load().find(DEFAULT_MODEL).manifest
    assert manifest is not None
    data = DataDir(data_dir)
    data.prepare()
    (data.models / f"{DEFAULT_MODEL}-{manifest.files[0].sha256[:8]}.gguf").write_bytes(TINY)
    ran = run("models", "verify", DEFAULT_MODEL, "--data-dir", data_dir)
    _check(ran, 1, "are damaged or not the right ones", f"p2pnode models pull {DEFAULT_MODEL}")


def test_a_model_that_is_not_here_can_not_be_verified(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("p2pnode.models.pull.pull.find_distribution_files", lambda _source, _paths: None)
    ran = run("models", "verify", DEFAULT_MODEL, "--data-dir", data_dir)
    _check(ran, 1, "is not on this machine: run `p2pnode models pull")


@pytest.mark.parametrize("command", ["models pull", "join --no-mdns --model"])
def test_a_licence_that_nobody_accepted(data_dir: Path, command: str) -> None:
    blob = list_blob(head(), [entry("strict", licence="Llama 3.2", sources=())])
    Subscriptions(DataDir(data_dir).models).take(pointer(blob), blob, 0)
    ran = run(*command.split(), "small/strict", "--data-dir", data_dir)
    _check(ran, 1, "its licence is Llama-3.2", "p2pnode models pull small/strict --accept-licence Llama-3.2")
    if command == "models pull":
        ran = run("models", "pull", "small/strict", "--accept-licence", "llama-3.2", "--data-dir", data_dir)
        _check(ran, 1, "has no source", "--from-peers")


@pytest.mark.parametrize("command", ["models pull", "join --no-mdns --model"])
def test_no_space_for_the_download(data_dir: Path, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2pnode.models.pull.pull.find_distribution_files", lambda _source, _paths: None)
    monkeypatch.setattr("shutil.disk_usage", lambda _path: SimpleNamespace(free=1 << 20))
    ran = run(*command.split(), DEFAULT_MODEL, "--data-dir", data_dir)
    assert ran.code == 1
    assert f"no space for model '{DEFAULT_MODEL}'" in ran.err
    assert "Free some space or choose another --data-dir" in ran.err


# ---- none of the user's fault


def test_a_defect_of_ours_is_a_sentence_and_not_a_traceback(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("one by nought")

    monkeypatch.setattr("p2pnode.cli.ask.open_client", broken)
    ran = ask(data_dir, "hello")
    _check(ran, 1, "unexpected ZeroDivisionError: one by nought", "--log-level debug and report")
    assert "ZeroDivisionError" in ask(data_dir, "hello", "--log-level", "debug").err


def test_with_json_an_error_is_the_last_event(data_dir: Path) -> None:
    ran = ask(data_dir, "hello", "--json")
    assert ran.code == 3
    assert ran.events[-1] == {
        "event": "failed",
        "error": "NoHostError",
        "message": ran.events[-1]["message"],
        "exit_code": 3,
    }


@pytest.mark.parametrize("text", ["nonsense", "127.0.0.1:99999", "0.0.0.0:5050"])
def test_an_s5_address_that_makes_no_sense(data_dir: Path, text: str) -> None:
    _check(_join(data_dir, "--s5-listen", text), 2, "p2pnode: --s5-listen: ", "127.0.0.1")
    assert not data_dir.exists()
