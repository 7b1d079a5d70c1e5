"""Each reason code of the doctor can be reached, has a remedy, and is absent when all is well."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import trio

from p2pnode.chain.profile import load_profile, write_profile
from p2pnode.chain.wallet.wallet import open_or_make_wallet
from p2pnode.config import NodeConfig
from p2pnode.doctor import machine
from p2pnode.doctor.chain import ChainChecks
from p2pnode.doctor.doctor import CHECKS
from p2pnode.doctor.finding import Code, Finding
from p2pnode.doctor.machine import MachineChecks
from p2pnode.doctor.network import CLOCK_SKEW_MAX_S, NetworkChecks
from p2pnode.doctor.storage import StorageChecks
from p2pnode.files import write_private
from p2pnode.models.catalogue import Catalogue
from p2pnode.models.compiled_prompt import CompiledPrompt
from p2pnode.models.pull.pull import pull
from p2pnode.models.scripted import ScriptedConfig, ScriptedEngine
from p2pnode.node.datadir import DataDir, RunningNode
from p2pnode.node.identity import wallet_files
from p2pnode.node.keys import PeerKey, load_or_create_seed
from p2pnode.payments.books import open_journal
from p2pnode.storage.conversations.replication_state import ReplicationState
from p2pnode.storage.conversations.replicator import open_archive
from p2pnode.storage.key_file import ensure_storage_key, load_storage_keys, save_storage_key
from p2pnode.storage.local.store import LocalStore
from p2pnode.storage.node_store import LOCAL_OWNER
from tests.chain.test_profile import profile as a_profile
from tests.cli.support import Program, give, run, wallet
from tests.client.support import NOW, advert, peer
from tests.net.memory_world import seed_of
from tests.payments.journals import hosted

ENTROPY = bytes(range(16))


def _bad(finding: Finding, code: str, *, verdict: str = "problem") -> Finding:
    assert (finding.code, finding.verdict) == (code, verdict)
    assert finding.detail
    assert finding.remedy
    return finding


def _good(finding: Finding) -> Finding:
    assert (finding.code, finding.verdict, finding.remedy) == ("ok", "ok", ""), finding
    return finding


def _machine(root: Path, running: RunningNode | None = None, **config: Any) -> MachineChecks:
    return MachineChecks(NodeConfig(data_dir=root, **config), running)


@pytest.fixture
def data(data_dir: Path) -> DataDir:
    """A prepared data dir with a peer key."""
    made = DataDir(data_dir)
    made.prepare()
    made.check_place()
    write_private(made.peer_key, seed_of(1).hex().encode())
    return made


async def test_the_data_dir(data: DataDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _good(await _machine(tmp_path / "none").data_dir())
    _good(await _machine(data.root).data_dir())
    (tmp_path / "file").write_text("")
    _bad(await _machine(tmp_path / "file").data_dir(), "data_dir_not_writable")
    shutil.copytree(data.root, tmp_path / "copy")
    assert "--moved" in _bad(await _machine(tmp_path / "copy").data_dir(), "data_dir_copied").remedy
    monkeypatch.setattr("os.access", lambda _path, _mode: False)
    _bad(await _machine(data.root).data_dir(), "data_dir_not_writable")


async def test_keys(data: DataDir, tmp_path: Path) -> None:
    _good(await _machine(tmp_path / "none").keys())
    assert peer(1) in _good(await _machine(data.root).keys()).detail
    data.peer_key.chmod(0o644)
    finding = _bad(await _machine(data.root).keys(), "keys_exposed")
    assert finding.remedy == f"chmod 600 {data.peer_key}"
    assert stat.S_IMODE(data.peer_key.stat().st_mode) == 0o644  # a check changes nothing
    data.peer_key.chmod(0o600)
    open_or_make_wallet(wallet_files(data))
    _good(await _machine(data.root).keys())
    data.wallet_passphrase.rename(tmp_path / "pass")
    _bad(await _machine(data.root).keys(), "wallet_locked")
    (tmp_path / "pass").rename(data.wallet_passphrase)
    kept = data.wallet.read_bytes()
    write_private(data.wallet, b"[]")
    _bad(await _machine(data.root).keys(), "keys_damaged")
    write_private(data.wallet, kept)
    for damaged in (b"nonsense", b"00", b"\xff"):
        write_private(data.peer_key, damaged)
        _bad(await _machine(data.root).keys(), "keys_damaged")
    data.peer_key.unlink()  # a client has none, and needs none
    assert "peer id" in _good(await _machine(data.root).keys()).detail


async def test_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _good(await _machine(tmp_path / "a" / "b").disk())
    monkeypatch.setattr("shutil.disk_usage", lambda _path: SimpleNamespace(free=10**6))
    assert _bad(await _machine(tmp_path).disk(), "disk_low").detail == f"1 MB free at {tmp_path}"


async def test_ports(tmp_path: Path) -> None:
    running = RunningNode(peer(1), ("/ip4/127.0.0.1/tcp/1",), os.getpid())
    _good(await _machine(tmp_path, running).ports())
    _good(await _machine(tmp_path, listen=("/ip4/127.0.0.1/tcp/0",)).ports())
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = f"/ip4/127.0.0.1/tcp/{server.getsockname()[1]}"
        assert taken in _bad(await _machine(tmp_path, listen=(taken,)).ports(), "port_taken").detail


async def test_the_usual_ports_may_be_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "is_free", lambda _address: False)
    _bad(await _machine(tmp_path).ports(), "port_taken", verdict="warning")


@pytest.mark.parametrize("code", ["ipv6_only", "private_only", "shared_only", "no_network"])
async def test_who_can_reach_the_running_node(tmp_path: Path, code: str) -> None:
    addresses = ("/ip4/192.168.1.5/tcp/4711", "/ip4/127.0.0.1/tcp/4711")
    running = RunningNode(peer(1), addresses, os.getpid(), reach=code)
    found = _bad(await _machine(tmp_path, running).reach(), code, verdict="warning")
    assert ("4711" in found.remedy) == (code in ("ipv6_only", "private_only"))
    for fine in ("global", "this_machine_only", ""):
        _good(await _machine(tmp_path, replace(running, reach=fine)).reach())


async def test_who_could_reach_a_node_that_is_started_now(tmp_path: Path) -> None:
    _good(await _machine(tmp_path, listen=("/ip4/8.8.8.8/tcp/4001",)).reach())
    _good(await _machine(tmp_path, listen=("/ip4/127.0.0.1/tcp/4001",)).reach())
    private = await _machine(tmp_path, listen=("/ip4/192.168.1.5/tcp/4001",)).reach()
    _bad(private, "private_only", verdict="warning")
    forwarded: dict[str, Any] = {
        "listen": ("/ip4/192.168.1.5/tcp/4001",),
        "announce": ("/ip4/8.8.8.8/tcp/4001",),
    }
    _good(await _machine(tmp_path, **forwarded).reach())


async def test_the_model(data: DataDir, monkeypatch: pytest.MonkeyPatch) -> None:
    _good(await _machine(data.root, models=("scripted",)).model())
    with monkeypatch.context() as without:
        without.setattr("p2pnode.models.pull.pull.find_distribution_files", lambda _source, _paths: None)
        _bad(await _machine(data.root).model(), "model_missing", verdict="warning")
    # Before the first start: what `join` loads without fetching is here, and nothing is made to see that.
    nowhere = data.root.parent / "nowhere"
    _good(await _machine(nowhere).model())
    assert not nowhere.exists()
    half = data.root.parent / "half.gguf"
    half.write_bytes(b"GGUF")
    _bad(await _machine(nowhere, models=(str(half),)).model(), "model_corrupt")
    await pull(Catalogue.load().find("smollm2-135m-instruct"), data.models)
    _good(await _machine(data.root).model())
    monkeypatch.setattr("p2pnode.models.pull.pull.sha256_of", lambda _path: "0" * 64)
    assert "p2pnode models pull" in _bad(await _machine(data.root).model(), "model_corrupt").remedy


class _Broken(ScriptedEngine):
    async def prompt(self, body: object) -> CompiledPrompt:
        from p2pnode.errors import EngineError

        raise EngineError("out of memory")


async def test_the_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _good(await _machine(tmp_path, models=("scripted",)).engine())
    with monkeypatch.context() as without:
        without.setattr("p2pnode.models.pull.pull.find_distribution_files", lambda _source, _paths: None)
        assert "no weights" in _good(await _machine(tmp_path).engine()).detail
    monkeypatch.setattr(machine, "make_engine", lambda _spec, _model: ScriptedEngine(ScriptedConfig()))
    assert "scripted answered in" in _good(await _machine(tmp_path).engine()).detail
    monkeypatch.setattr(machine, "make_engine", lambda _spec, _model: _Broken())
    assert _bad(await _machine(tmp_path).engine(), "engine_failed").detail == "out of memory"


@pytest.mark.long
def test_a_stake_for_other_keys_is_told_and_moved_to_these(tmp_path: Path, profile: Path) -> None:
    data = DataDir(tmp_path / "h")
    given = ("--ether", 1, "--fab", 1_000, "--chain", profile)
    assert run("chain", "faucet", wallet(data.root), "0", *given).code == 0
    flags = ("--yes", "--json", "--chain", profile, "--data-dir", data.root)
    assert run("stake", 1_000, *flags).events[-1]["here"]
    checks = _money(data.root, chain=str(profile))
    assert "1000 FAB at stake" in _good(trio.run(checks.chain)).detail
    data.receipt_key.unlink()
    load_or_create_seed(data.receipt_key)
    found = _bad(trio.run(checks.chain), "stake_elsewhere", verdict="warning")
    assert "1000 FAB are at stake for other keys" in found.detail
    assert "p2pnode stake keys" in found.remedy
    moved = run("stake", "keys", *flags).events[-1]
    assert (moved["here"], moved["stake"]) == (True, 10**21)
    _good(trio.run(checks.chain))
    assert run("stake", "keys", *flags).events[-1]["code"] == "already_staked"


@pytest.fixture
def rich(profile: Path, tmp_path: Path) -> Path:
    """A data dir whose wallet has USDC and ether."""
    give(profile, wallet(tmp_path / "rich"), usdc="1", ether="1")
    return tmp_path / "rich"


async def test_the_chain(
    data: DataDir, rich: Path, profile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _good(await _money(data.root).chain())  # none is configured
    assert "config.toml" in _bad(await _money(data.root, price_out=1).chain(), "no_chain").remedy
    _bad(await _money(data.root, chain=str(profile)).chain(), "no_wallet", verdict="warning")
    address = open_or_make_wallet(wallet_files(data)).account
    _good(await _money(data.root, chain=str(profile)).chain())
    host = _money(data.root, chain=str(profile), price_out=1)
    assert address in _bad(await host.chain(), "gas_low", verdict="warning").remedy
    funded = _money(rich, chain=str(profile), price_out=1)
    assert "1.00 USDC in the wallet; ether_usd is not set" in _good(await funded.chain()).detail
    # The fee is far below what gas costs here, however low the price of gas has fallen on this chain.
    priced = {"price_out": 1, "session_fee": 1, "ether_usd": 10_000_000_000}
    dear = _bad(await _money(rich, chain=str(profile), **priced).chain(), "gas_dear", verdict="warning")
    assert "session fee" in dear.detail
    priced |= {"session_fee": 10_000, "ether_usd": 1_000_000}
    assert "ether_usd" not in _good(await _money(rich, chain=str(profile), **priced).chain()).detail
    there = load_profile(profile)
    wrong = tmp_path / "wrong.toml"
    write_profile(wrong, replace(there, node_registry=there.fab))
    assert "node_registry" in _bad(await _money(data.root, chain=str(wrong)).chain(), "chain_wrong").detail
    anew = tmp_path / "anew.toml"
    write_profile(anew, replace(there, genesis=bytes(32)))
    finding = _bad(await _money(data.root, chain=str(anew)).chain(), "chain_made_anew")
    assert "p2pnode chain dev" in finding.remedy
    monkeypatch.setattr("p2pnode.doctor.chain.CHAIN_DEADLINE_S", 1.0)
    gone = tmp_path / "gone.toml"
    write_profile(gone, replace(there, rpc_urls=("http://127.0.0.1:1",)))
    finding = _bad(await _money(data.root, chain=str(gone)).chain(), "chain_unreachable")
    assert "rpc_urls" in finding.remedy


async def test_the_journal(data: DataDir) -> None:
    _good(await _money(data.root).journal())
    record = hosted(1)
    async with open_journal(data.journal) as journal:
        await journal.host_relaying(record)
        _good(await _money(data.root).journal())
        await journal.host_over(record.session, int(time.time()) - 601)
    _bad(await _money(data.root).journal(), "unsettled", verdict="warning")
    elsewhere = data.root.parent / "elsewhere.toml"  # the session is of another market
    write_profile(elsewhere, replace(a_profile(), genesis=bytes(32)))
    _good(await _money(data.root, chain=str(elsewhere)).journal())
    with data.journal.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 4096)
    _bad(await _money(data.root).journal(), "journal_damaged")


def _storage(root: Path, **config: Any) -> StorageChecks:
    return StorageChecks(NodeConfig(data_dir=root, **config))


async def test_the_store(data: DataDir) -> None:
    _good(await _storage(data.root).store())
    assert not data.store.exists()  # a check makes nothing
    save_storage_key(data, ENTROPY)
    keys = load_storage_keys(data)
    assert keys is not None
    store = LocalStore.open(data.store)
    await store.put(bytes(8192), owner=keys.owner)
    await store.put(b"somebody's", owner=LOCAL_OWNER)
    store.close()
    _good(await _storage(data.root).store())
    _good(await _storage(data.root, store_bytes_max=14_000).store())  # 12,288 are counted
    finding = _bad(await _storage(data.root, store_bytes_max=13_000).store(), "store_full", verdict="warning")
    assert "store_bytes_max" in finding.remedy
    _good(await _storage(data.root, store_owner_bytes_max=9_200).store())  # 8,192 are ours
    finding = _bad(
        await _storage(data.root, store_owner_bytes_max=9_000).store(), "store_full", verdict="warning"
    )
    assert "sessions forget" in finding.remedy
    (data.store / "index.sqlite").write_bytes(b"nonsense" * 1000)
    _bad(await _storage(data.root).store(), "store_damaged")


async def test_the_key_of_conversations(data: DataDir, tmp_path: Path) -> None:
    finding = await _storage(tmp_path / "none").key()
    assert (finding.code, finding.verdict, finding.remedy) == ("storage_key_missing", "ok", "")
    assert "not kept" in finding.detail
    open_or_make_wallet(wallet_files(data))
    assert "wallet show --phrase" in (await _storage(data.root).key()).detail
    ensure_storage_key(data)
    assert "the words fit" in _good(await _storage(data.root).key()).detail
    assert "save is off" in _good(await _storage(data.root, save=False).key()).detail
    data.storage_key.unlink()
    save_storage_key(data, ENTROPY)
    _bad(await _storage(data.root).key(), "storage_key_other", verdict="warning")
    data.wallet_passphrase.unlink()  # then nobody can say
    assert "the words fit" not in _good(await _storage(data.root).key()).detail
    data.storage_key.chmod(0o644)
    _bad(await _machine(data.root).keys(), "keys_exposed")
    write_private(data.storage_key, b"nonsense")
    _bad(await _storage(data.root).key(), "storage_key_damaged")
    _good(await _storage(data.root).store())


async def test_what_is_kept(data: DataDir) -> None:
    _good(await _storage(data.root).replicas())
    assert not data.store.exists()
    save_storage_key(data, ENTROPY)
    async with open_archive(NodeConfig(data_dir=data.root)) as archive:
        await archive.new(title="one")
        finding = _bad(await _storage(data.root).replicas(), "unkept", verdict="warning")
        assert "1 conversation has not" in finding.detail
        await archive.new(title="two")
        assert "2 conversations have" in (await _storage(data.root).replicas()).detail
    state = ReplicationState(data.store / "outbox.sqlite", bytes)
    for row in await state.lagging():
        await state.acked(row.sid, row.head)
    state.close()
    assert "2 conversations" in _good(await _storage(data.root).replicas()).detail
    for name in ("outbox.sqlite-wal", "outbox.sqlite-shm"):
        (data.store / name).unlink(missing_ok=True)
    (data.store / "outbox.sqlite").write_bytes(b"nonsense" * 1000)
    _bad(await _storage(data.root).replicas(), "store_damaged")


def _money(root: Path, **config: Any) -> ChainChecks:
    return ChainChecks(NodeConfig(data_dir=root, **config))


def _neighbours(root: Path, running: RunningNode | None = None, **config: Any) -> NetworkChecks:
    return NetworkChecks(NodeConfig(data_dir=root, mdns=False, **config), running)


async def test_peers(data: DataDir, host: Program) -> None:
    _bad(await _neighbours(data.root).peers(), "no_peers", verdict="warning")
    around = _neighbours(data.root, bootstrap=(host.multiaddr,))
    _good(await around.peers())
    _good(await around.clock())
    _good(await around.identity())
    gone = RunningNode(peer(2), (f"/ip4/127.0.0.1/tcp/1/p2p/{peer(2)}",), 1)
    _bad(await _neighbours(data.root, gone).peers(), "node_unreachable")


async def test_the_clock(tmp_path: Path) -> None:
    around = _neighbours(tmp_path)
    _good(await around.clock())
    around.adverts = [advert(number) for number in range(3)]
    around.verdicts = Counter(accepted=3)
    around.now = NOW + 20
    _good(await around.clock())
    around.now = NOW - CLOCK_SKEW_MAX_S - 10
    assert "about 40 s behind" in _bad(await around.clock(), "clock_behind").detail
    around.adverts = []
    around.verdicts = Counter(future=5, accepted=1)
    _bad(await around.clock(), "clock_behind")
    around.verdicts = Counter(expired=5, accepted=1)
    _bad(await around.clock(), "clock_ahead")


@pytest.mark.parametrize(
    ("offsets", "code", "says"),
    [
        ([90.0, 91.0, 0.0], "clock_behind", "this clock is about 90 seconds behind 3 hosts'"),
        ([-90.0], "clock_ahead", "this clock is about 90 seconds ahead of the host's that was asked"),
    ],
)
async def test_the_clock_beside_those_of_hosts_that_were_asked(
    tmp_path: Path, offsets: list[float], code: str, says: str
) -> None:
    around = _neighbours(tmp_path)
    around.offsets = offsets
    assert says in _bad(await around.clock(), code).detail
    around.offsets = [0.0, 5.0, -86_400.0]  # one host's is wrong, not ours
    _good(await around.clock())


async def test_the_identity(data: DataDir, tmp_path: Path) -> None:
    _good(await _neighbours(tmp_path / "none").identity())
    around = _neighbours(data.root)
    around.now = NOW
    _good(await around.identity())
    around.adverts = [advert(1)]  # of our own peer id, and we don't run
    _bad(await around.identity(), "duplicate_identity")
    data.new_start(lambda _count: advert(1).instance)  # of our own last start, whose clock was ahead
    _good(await around.identity())
    data.starts.unlink()
    around.now = NOW + 80  # of a start that is not known any more, not expired yet
    _good(await around.identity())
    around.adverts = [advert(2)]
    _good(await around.identity())
    assert PeerKey(seed_of(1)).peer_id == peer(1)


def test_a_check_that_can_not_be_made_does_not_keep_the_others_from_being_made(data: DataDir) -> None:
    data.config.write_text('listen = ["nonsense"]\nmodels = ["smollm"]\nbootstrap = ["p2pnode1AAAA"]')
    ran = run("doctor", "--no-mdns", "--data-dir", data.root, "--json")
    assert ran.code == 1
    findings = ran.named("finding")
    assert [finding["check"] for finding in findings] == list(CHECKS)
    failed = {finding["check"] for finding in findings if finding["code"] == "check_failed"}
    assert failed == {"ports", "reach", "model", "engine", "peers"}
    assert "found 5 problems" in ran.events[-1]["message"]


def test_people_get_a_line_and_a_remedy_each(data: DataDir) -> None:
    ran = run("doctor", "--no-mdns", "--data-dir", data.root)
    assert ran.code == 0
    lines = ran.out.splitlines()
    assert [line[9:18].strip() for line in lines if "→" not in line] == list(CHECKS)
    assert sum("→" in line for line in lines) == sum(
        line.startswith(("warning", "PROBLEM")) for line in lines
    )
    data.peer_key.chmod(0o644)
    ran = run("doctor", "--no-mdns", "--data-dir", data.root)
    assert ran.code == 1
    assert "PROBLEM  keys      peer.key can be read by others [keys_exposed]" in ran.out
    assert "found a problem: keys_exposed" in ran.err
    assert json.loads(data.place.read_text())  # nothing was changed


def test_every_reason_code_has_its_test_here() -> None:
    text = Path(__file__).read_text()
    assert [code for code in get_args(Code) if f'"{code}"' not in text] == []
