"""A start that is given up: at whatever step Ctrl-C comes, it ends soon, in order, and without an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from p2pnode.client.client import Client
from p2pnode.config import DEFAULT_MODEL, NodeConfig
from p2pnode.errors import ConfigError, P2PNodeError
from p2pnode.host import join as join_module
from p2pnode.host.control import ask_running
from p2pnode.host.join import Join, JoinOptions
from p2pnode.models.catalogue import Catalogue
from p2pnode.models.engine import EngineInfo
from p2pnode.models.pull.pull import pull
from p2pnode.models.scripted import ScriptedEngine
from p2pnode.node.datadir import DataDir
from p2pnode.node.node import NodeSetup
from tests.models.embedding_model import WIDTH, write_embedding_model

LISTEN = ("/ip4/127.0.0.1/tcp/0",)


class _LoadsForEver(ScriptedEngine):
    def __init__(self, began: trio.Event) -> None:
        super().__init__()
        self._began = began

    async def load(self) -> EngineInfo:
        self._began.set()
        await trio.sleep_forever()
        raise AssertionError


def _join(tmp_path: Path, stop_at: str, seen: list[str]) -> Join:
    def report(name: str, _fields: dict[str, object]) -> None:
        seen.append(name)
        if name == stop_at:
            join.stop()

    config = NodeConfig(data_dir=tmp_path, listen=LISTEN, mdns=False, models=("scripted",))
    join = Join(config, JoinOptions(ready_file=tmp_path / "ready"), report)
    return join


@pytest.mark.parametrize(
    ("stop_at", "steps"),
    [
        ("identity", ["identity.making", "identity"]),
        ("listening", ["identity.making", "identity", "listening"]),
        ("ready", ["identity.making", "identity", "listening", "ready"]),
    ],
)
async def test_a_start_can_be_given_up_at_each_step(tmp_path: Path, stop_at: str, steps: list[str]) -> None:
    seen: list[str] = []
    with trio.fail_after(20):
        await _join(tmp_path, stop_at, seen).run()
    assert seen == steps
    assert not (tmp_path / "ready").exists()
    assert not (tmp_path / "node.json").exists()
    assert len(DataDir(tmp_path).known_starts()) == ("listening" in steps)


async def test_a_node_knows_the_instances_of_its_earlier_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[bytes, ...]] = []

    def setup(**fields: Any) -> NodeSetup:
        given.append(fields["starts"])
        return NodeSetup(**fields)

    monkeypatch.setattr(join_module, "NodeSetup", setup)
    with trio.fail_after(20):
        for _ in range(2):
            await _join(tmp_path, "listening", []).run()
    first, second = given
    assert (len(first), second[:1], second) == (1, first, DataDir(tmp_path).known_starts())


async def test_a_model_that_loads_for_ever_does_not_hold_the_end_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = trio.Event()
    monkeypatch.setattr(join_module, "make_engine", lambda *_: _LoadsForEver(began))
    join = _join(tmp_path, "nothing", [])
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(join.run)
            await began.wait()
            assert (tmp_path / "node.json").exists()
            join.stop()
    assert not (tmp_path / "node.json").exists()


async def test_a_download_that_takes_for_ever_does_not_hold_the_end_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = trio.Event()

    async def pull(*_: object, **__: object) -> None:
        began.set()
        await trio.sleep_forever()

    monkeypatch.setattr(join_module, "pull", pull)
    join = Join(
        NodeConfig(data_dir=tmp_path, listen=LISTEN, mdns=False), JoinOptions(), lambda _name, _fields: None
    )
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(join.run)
            await began.wait()
            join.stop()


@pytest.mark.parametrize(
    ("asked", "says"), [(0, "the same model in IQ2_M would fit"), (4096, "use --n-ctx 504 or less")]
)
async def test_a_context_that_can_not_fit_into_memory_is_refused_before_anything_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: int, says: str
) -> None:
    seen: list[str] = []
    at_hand = {0: 150_000_000, 4096: 250_000_000}[asked]
    monkeypatch.setattr(join_module, "memory_at_hand", lambda: at_hand)
    monkeypatch.setattr(join_module, "make_engine", lambda *_: pytest.fail("an engine was made"))
    config = NodeConfig(data_dir=tmp_path, listen=LISTEN, mdns=False, n_ctx=asked)
    join = Join(config, JoinOptions(), lambda name, _fields: seen.append(name))
    with pytest.raises(ConfigError, match=says), trio.fail_after(60):
        await join.run()
    assert "listening" not in seen


async def test_a_second_model_has_what_the_first_one_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[dict[str, object]] = []

    def report(name: str, fields: dict[str, object]) -> None:
        told.extend([fields] if name == "context" else [])
        if name == "listening":
            join.stop()

    file = await pull(Catalogue.load().find(DEFAULT_MODEL), tmp_path / "models")
    monkeypatch.setattr(join_module, "memory_at_hand", lambda: 4_000_000_000)
    monkeypatch.setattr(join_module, "make_engine", lambda *_: ScriptedEngine())
    models = (DEFAULT_MODEL, str(_another(file.path, tmp_path)))
    config = NodeConfig(data_dir=tmp_path / "d", listen=LISTEN, mdns=False, models=models)
    join = Join(config, JoinOptions(), report)
    with trio.fail_after(60):
        await join.run()
    first, other = told
    assert (first["n_ctx"], first["why"], first["at_hand"]) == (8192, "model", 4_000_000_000)
    assert other["at_hand"] == 4_000_000_000 - int(str(first["memory"]))


def _another(weights: Path, folder: Path, letter: bytes = b"X") -> Path:
    """The same model under another id: one letter of its name differs."""
    data = weights.read_bytes()
    at = data.index(b"general.name") + len(b"general.name") + 12
    made = folder / f"another-{letter.decode()}.gguf"
    made.write_bytes(data[:at] + letter + data[at + 1 :])
    return made


async def test_a_second_model_that_does_not_fit_beside_the_first_is_loaded_on_demand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[dict[str, Any]] = []

    def report(name: str, fields: dict[str, Any]) -> None:
        if name == "context":
            told.append(fields)
        if name == "ready":
            told.extend(fields["models"])
            join.stop()

    file = await pull(Catalogue.load().find(DEFAULT_MODEL), tmp_path / "models")
    monkeypatch.setattr(join_module, "make_engine", lambda *_: ScriptedEngine())
    models = (DEFAULT_MODEL, str(_another(file.path, tmp_path)))
    config = NodeConfig(
        data_dir=tmp_path / "d",
        listen=LISTEN,
        mdns=False,
        models=models,
        memory=600_000_000,
        slots=1,
        n_ctx=8192,
    )
    join = Join(config, JoinOptions(), report)
    with trio.fail_after(60):
        await join.run()
    first, other, *served = told
    assert (first["on_demand"], other["on_demand"]) == (False, True)
    assert other["n_ctx"] == first["n_ctx"] == 8192
    assert [each["state"] for each in served] == ["warm", "cold"]
    assert sum(each["memory"] for each in served) > config.memory


async def test_a_model_under_two_names_and_more_memory_than_there_is_are_refused(tmp_path: Path) -> None:
    file = await pull(Catalogue.load().find(DEFAULT_MODEL), tmp_path / "models")
    twice = NodeConfig(
        data_dir=tmp_path / "d", listen=LISTEN, mdns=False, models=(DEFAULT_MODEL, str(file.path))
    )
    with pytest.raises(ConfigError, match="are the same model: name it once"), trio.fail_after(60):
        await Join(twice, JoinOptions(), lambda _name, _fields: None).run()
    huge = NodeConfig(data_dir=tmp_path / "d", listen=LISTEN, mdns=False, memory=1 << 49)
    with pytest.raises(ConfigError, match="this machine has"), trio.fail_after(60):
        await Join(huge, JoinOptions(), lambda _name, _fields: None).run()


async def test_the_owner_of_a_running_node_offers_and_withdraws_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready, told = trio.Event(), list[str]()

    def report(name: str, _fields: dict[str, object]) -> None:
        if name == "ready":
            ready.set()

    monkeypatch.setattr(join_module, "make_engine", lambda *_: ScriptedEngine())
    data = DataDir(tmp_path)
    config = NodeConfig(data_dir=tmp_path, listen=LISTEN, mdns=False, models=("scripted",))
    join = Join(config, JoinOptions(), report)

    async def ask(**command: object) -> None:
        running = data.running_node()
        assert running is not None
        assert Path(running.control).parent.stat().st_mode & 0o777 == 0o700
        await ask_running(running.control, command, lambda name, _fields: told.append(name))

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(join.run)
            await ready.wait()
            await ask(do="offer", model=DEFAULT_MODEL, n_ctx=512, slots=1)
            assert told[-1] == "model.offered"
            await ask(do="withdraw", model="scripted")
            assert told[-1] == "model.withdrawn"
            for command, words in (
                ({"do": "withdraw", "model": "scripted"}, f"the models are {DEFAULT_MODEL}"),
                ({"do": "offer", "model": DEFAULT_MODEL, "n_ctx": 512}, "offered already"),
                ({"do": "offer", "model": "smolm2"}, "did you mean"),
                ({"do": "offer", "model": "scripted", "price_in": 5}, "this node serves free of charge"),
                ({"do": "offer", "model": "scripted", "slots": 900}, "slots must be from 1 to 64"),
                ({"do": "something"}, "doesn't know this command"),
            ):
                with pytest.raises(ConfigError, match=words):
                    await ask(**command)
            join.stop()
    assert data.running_node() is None


async def test_an_engine_that_cannot_run_here_is_told_before_anything_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str) -> None:
        raise ConfigError(f"{name}: there is no CUDA device here")

    monkeypatch.setattr(join_module, "require_engine", refuse)
    monkeypatch.setattr(join_module, "pull", lambda *_, **__: pytest.fail("a model was fetched"))
    config = NodeConfig(data_dir=tmp_path, listen=LISTEN, mdns=False, engine="exllama")
    join = Join(config, JoinOptions(), lambda _name, _fields: None)
    with pytest.raises(ConfigError, match="exllama: there is no CUDA device here"), trio.fail_after(60):
        await join.run()


@pytest.mark.long
async def test_a_model_that_is_made_to_embed_is_served_and_writes_no_answers(tmp_path: Path) -> None:
    path, ready, told = write_embedding_model(tmp_path / "tiny.gguf"), trio.Event(), dict[str, Any]()

    def report(name: str, fields: dict[str, Any]) -> None:
        if name == "ready":
            told.update(fields)
            ready.set()

    config = NodeConfig(data_dir=tmp_path / "d", listen=LISTEN, mdns=False, models=(str(path),))
    join = Join(config, JoinOptions(), report)
    own = NodeConfig(data_dir=tmp_path / "c", mdns=False)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(join.run)
            await ready.wait()
            (served,) = told["models"]
            async with Client(own) as client:
                where = {"model": served["id"], "peer": told["multiaddrs"][0]}
                vectors = [vector async for vector in client.embed(["the cat", "sea"], **where)]
                assert [len(each) for each in vectors] == [WIDTH] * 2
                with pytest.raises(P2PNodeError, match="makes vectors of texts and writes no answers"):
                    await anext(client.chat("hello", **where))
            join.stop()
