"""What ``join --auto`` chooses, measures and asks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from p2pnode.config import DEFAULT_MODEL, NodeConfig
from p2pnode.errors import ConfigError
from p2pnode.host import auto_join
from p2pnode.host.auto_choice import MODELS_MOST, Demand, choose, demand_seen
from p2pnode.ids import ModelId
from p2pnode.models.catalogue import Catalogue
from p2pnode.models.model_list import list_blob
from p2pnode.models.recommendation import Machine, Option
from p2pnode.models.scripted import ScriptedConfig, ScriptedEngine
from p2pnode.models.subscriptions import Subscriptions
from p2pnode.node.datadir import DataDir
from p2pnode.protocols.adverts.messages import Load, Offer
from tests.client.support import MODEL, advert
from tests.models.lists import entry, head, pointer

GB = 10**9
OTHER = ModelId(b"\5" * 32)


def machine(memory: int = 16 * GB, cores: int = 4, **more: Any) -> Machine:
    return Machine(memory=memory, cores=cores, disk=100 * GB, **more)


def candidate(name: str, size: int, **more: Any) -> Option:
    return Option(name=name, model=ModelId(name.encode().ljust(32, b".")), size_bytes=size, **more)


SMALL, MIDDLE, LARGE = candidate("small", GB // 10), candidate("middle", 2 * GB), candidate("large", 40 * GB)


def test_what_does_not_fit_or_is_too_slow_is_left_out_with_the_reason() -> None:
    plan = choose([SMALL, MIDDLE, LARGE], {}, machine())
    assert [(each.option.name, each.serve) for each in plan] == [
        ("middle", True), ("small", True), ("large", False),
    ]  # fmt: skip
    assert plan[2].why == "takes about 48.3 GB of memory, and 16.0 GB can be had"
    plan = choose([MIDDLE], {}, machine(cores=1))
    assert plan[0].why == "about 2.0 tokens/s on 1 core: too slow for anybody"
    assert choose([replace(MIDDLE, on_gpu=True)], {}, machine(0, cores=1, gpu_memory=3 * GB))[0].serve
    (none,) = choose([replace(MIDDLE, on_gpu=True)], {}, machine(gpu_memory=GB))
    assert none.why == "takes about 2.7 GB of GPU memory, and 1.0 GB can be had"
    assert choose([replace(SMALL, unusable="no CUDA")], {}, machine())[0].why == "no CUDA"


def test_what_is_asked_for_goes_before_what_many_offer_already() -> None:
    other = replace(SMALL, name="other", model=OTHER)
    demand = {
        SMALL.model: Demand(hosts=9, slots=36, requests=1),
        OTHER: Demand(hosts=2, slots=8, requests=20),
    }
    plan = choose([SMALL, other], demand, machine(450_000_000))
    assert [(each.option.name, each.serve) for each in plan] == [("other", True), ("small", False)]
    assert plan[0].why.endswith("2 hosts offer it, 20 requests for 8 slots")


def test_a_lists_model_is_a_candidate_where_others_serve_it_and_its_licence_is_free(tmp_path: Path) -> None:
    names = {"served": "MIT", "unseen": "MIT", "strict": "llama3", "unknown": ""}
    entries = [entry(name, licence=licence) for name, licence in names.items()]
    shipped = Catalogue.load().find(DEFAULT_MODEL)
    blob = list_blob(head(), [*entries, replace(shipped, name="shipped")])
    data = DataDir(tmp_path)
    Subscriptions(data.models).take(pointer(blob), blob, 0)
    demand = {each.model_id: Demand(hosts=1) for each in entries if each.name != "unseen" and each.model_id}
    found = auto_join.options_for(data, demand)
    assert [each.name for each in found] == [DEFAULT_MODEL, "small/served"]
    assert [each.name for each in auto_join.options_for(data, {})] == [DEFAULT_MODEL]


def test_a_hosts_load_is_shared_among_its_models_and_a_withdrawn_offer_is_none() -> None:
    seen = advert(1, active=4, queued=3)
    both = replace(
        seen,
        offers=(*seen.offers, Offer(model=OTHER, n_ctx=512), Offer(model=ModelId(bytes(32)), n_ctx=0)),
        load=Load(slots=4, active=4, queued=3),
    )
    found = demand_seen([both, advert(2)])
    assert found == {MODEL: Demand(hosts=2, slots=6, requests=4), OTHER: Demand(hosts=1, slots=2, requests=4)}


@given(
    sizes=st.lists(st.integers(1, 60 * GB), max_size=12),
    hosts=st.integers(0, 50),
    requests=st.integers(0, 500),
    memory=st.integers(0, 200 * GB),
    cores=st.integers(1, 64),
)
def test_whatever_is_chosen_fits_and_everything_has_a_reason(
    sizes: list[int], hosts: int, requests: int, memory: int, cores: int
) -> None:
    candidates = [candidate(f"m{number}", size) for number, size in enumerate(sizes)]
    demand = {each.model: Demand(hosts=hosts, slots=4 * hosts, requests=requests) for each in candidates[::2]}
    plan = choose(candidates, demand, machine(memory, cores))
    assert sorted(each.option.name for each in plan) == sorted(each.name for each in candidates)
    chosen = [each.option for each in plan if each.serve]
    assert sum(each.memory(4096) for each in chosen) <= memory
    assert len(chosen) <= MODELS_MOST
    assert all(each.why for each in plan)


async def test_a_chosen_model_is_pulled_measured_and_served_free_without_a_chain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    told: list[tuple[str, dict[str, Any]]] = []
    config = NodeConfig(data_dir=tmp_path, memory=2 * GB)
    monkeypatch.setattr(
        auto_join, "make_engine", lambda *_: ScriptedEngine(ScriptedConfig(tokens_per_s=40.0))
    )
    plan = await auto_join.choose_models(config, [], lambda name, fields: told.append((name, fields)))
    made = await auto_join.deploy(config, plan, [], lambda name, fields: told.append((name, fields)))
    assert made.models == (DEFAULT_MODEL,)
    assert not made.asks_money
    serves = dict(told)["auto.serves"]
    assert (serves["tokens_per_s"], serves["why"]) == (
        40.0,
        "there is no chain to be paid on (--chain)",
    )
    monkeypatch.setattr(auto_join, "make_engine", lambda *_: ScriptedEngine(ScriptedConfig(tokens_per_s=1.0)))
    with pytest.raises(ConfigError, match="none of the chosen models"):
        await auto_join.deploy(config, plan, [], lambda name, fields: told.append((name, fields)))
    assert dict(told)["auto.left_out"]["why"] == "1.0 tokens/s: too slow for anybody"
    with pytest.raises(ConfigError, match="no model of the catalogue can be served here"):
        await auto_join.choose_models(replace(config, memory=1), [], lambda _name, _fields: None)
