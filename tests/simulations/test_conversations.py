"""Users who write, nodes that store, and machines and disks that are lost."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from p2pnode.errors import ConfigError
from p2pnode.simulations import conversations
from p2pnode.simulations.churn import Churn
from p2pnode.simulations.conversations import Conversations
from p2pnode.simulations.faults import Fault
from p2pnode.simulations.result import Result
from p2pnode.simulations.runs import BrokenRunError, run
from p2pnode.simulations.scenario import Scenario, changed
from p2pnode.storage.replication.quorum import WriteRound
from p2pnode.storage.store import DAY_S, GRACE_S, LEASE_S

WRITING = Scenario(
    name="writing",
    nodes=20,
    duration_s=10 * DAY_S,
    conversations=Conversations(users_share=0.2, turns_per_day=8.0, contacts=8),
)


@cache
def ran(*, churn: Churn | None = None, faults: tuple[Fault, ...] = (), **values: Any) -> Result:
    days = values.pop("days", 10)
    nodes = values.pop("nodes", WRITING.nodes)
    assert WRITING.conversations is not None
    parts = replace(WRITING.conversations, **values)
    scenario = replace(
        WRITING, nodes=nodes, duration_s=days * DAY_S, conversations=parts, churn=churn, faults=faults
    )
    return run(scenario)


def figure(result: Result, name: str) -> float:
    found = result.figures[name]
    assert found is not None
    return found


def total(result: Result, table: str, column: str) -> int:
    return sum(result.recorder.tables[table][column].values)  # type: ignore[arg-type]


def test_all_turns_are_kept_on_several_nodes_while_these_are_there() -> None:
    result = ran()
    figures = result.figures
    assert figures["turns"] == pytest.approx(10 * 8 * 4, rel=0.2)
    assert figures["turns_kept"] == 1
    assert figures["turns_kept_weakly"] == 0
    assert figure(result, "kept_after_max_s") < 10
    assert figure(result, "copies_of_a_conversation_mean") >= 3


def test_with_one_node_that_stores_this_machine_is_counted_and_with_none_nothing_is_kept() -> None:
    one = ran(days=2, nodes=5, users_share=0.8).figures
    assert one["turns_kept"] == one["turns_kept_weakly"] == 1
    crash = Fault(kind="crash", share=1.0)
    assert ran(days=2, faults=(crash,)).recorder.tables["kept"]["seconds"].values.tolist() == []


def test_who_loses_a_machine_finds_all_while_the_nodes_are_there() -> None:
    result = ran(machine_days=2.0, away_days=0.5)
    assert figure(result, "recoveries") > 5
    assert figure(result, "recovered_whole") == 1
    assert figure(result, "turns_lost") == 0


@pytest.mark.long
def test_what_a_new_machine_does_not_find_comes_back_with_the_node_that_has_it() -> None:
    away = Churn(share=1.0, session_mean_s=DAY_S / 4, downtime_mean_s=DAY_S / 2)
    result = ran(churn=away, days=40, machine_days=2.0, away_days=0.5, turns_per_day=20.0, contacts=16)
    assert total(result, "nodes", "turns_lost") < total(result, "recoveries", "lost")


def test_disks_that_are_lost_faster_than_anybody_writes_take_conversations_with_them() -> None:
    result = ran(days=20, machine_days=5.0, away_days=5.0, disk_days=2.0)
    assert figure(result, "recovered_nothing") > 0
    assert figure(result, "turns_lost") > 0
    assert figure(result, "conversations_on_some_disk_mean") < 1


@pytest.mark.long
def test_leases_last_while_a_user_is_there_and_lapse_when_nobody_renews_them() -> None:
    stays = ran(days=100, turns_per_day=0.02).figures
    assert stays["conversations_on_some_disk_mean"] == 1
    result = ran(days=400, turns_per_day=0.5, machine_days=60.0, away_days=30.0)
    table = result.recorder.tables["recoveries"]
    found = [lost == 0 for lost in table["lost"].values]
    assert any(found)
    assert not all(found)
    assert result.figures["recovered_nothing"] == found.count(False) / len(found)
    assert (LEASE_S + GRACE_S) / DAY_S == 32


def test_a_write_that_counts_as_kept_before_it_is_anywhere_breaks_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Hasty(WriteRound):
        def blobs_over(self, replica: str, *, there: bool) -> None:
            super().blobs_over(replica, there=there)
            self.acknowledged(replica)

    monkeypatch.setattr(conversations, "WriteRound", Hasty)
    with pytest.raises(BrokenRunError, match=r"revision 1 of user \d is on 0 disks, not on 2"):
        run(WRITING)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"conversations.users_share": "1.0"}, "20 of 20 nodes write, and one has to store"),
        ({"conversations.users_share": "0.0"}, "0 of 20 nodes write"),
        ({"conversations.turns_per_day": "0"}, "turns_per_day is 0.*it must be above 0"),
        ({"conversations.disk_days": "-1"}, "disk_days is -1.*must not be negative"),
        ({"topic.dials": "3"}, "beside a topic or a market"),
    ],
)
def test_a_scenario_that_cannot_be_is_refused_in_words(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        changed(WRITING, values)
