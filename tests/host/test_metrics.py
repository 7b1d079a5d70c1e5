"""What a host and its client measure of a turn adds up to what they were paid and waited, and one line of the
log has all of it, without a word of what was said."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs
from trio.testing import MockClock

from p2pnode.client.metrics import measure_client
from p2pnode.errors import NoHostError
from p2pnode.host.metrics import measure_host
from p2pnode.host.turn_times import TurnTimes
from p2pnode.metrics import Metrics
from p2pnode.node.metrics import measure_node
from p2pnode.protocols.inference.messages import SamplingParams
from tests.client.support import ask, whole
from tests.host.paid import paid_world, priced
from tests.node.world import scripted_host, world

SECRET = "the password of the safe is 0451"


@pytest.fixture(autouse=True)
def _all_events() -> Iterator[None]:
    structlog.reset_defaults()
    yield
    structlog.reset_defaults()


async def _values(metrics: Metrics) -> dict[str, float]:
    """Every sample of the text format as ``name{value,value}``, by the names of its labels."""
    found = {}
    for family in text_string_to_metric_families((await metrics.text()).decode()):
        for each in family.samples:
            labels = ",".join(each.labels[name] for name in sorted(each.labels))
            found[f"{each.name}{{{labels}}}" if labels else each.name] = each.value
    return found


# ---- where the time of a turn goes


def test_phases_of_a_turn_add_up_to_the_time_to_its_first_token() -> None:
    times = TurnTimes(10.0)
    times.counted(10.5)
    times.ordered(12.0)
    times.started(12.25)
    times.made(1, 14.25)
    assert (times.count_s, times.pay_s, times.queue_s, times.prefill_s) == (0.5, 1.5, 0.25, 2.0)
    assert times.first_token_s == 4.25
    assert times.token_s is None  # one token has no time between two


def test_a_pause_for_pay_is_no_decoding() -> None:
    times = TurnTimes(0.0)
    times.ordered(0.0)
    times.started(0.0)
    times.made(4, 1.0)
    times.made(4, 2.0)
    times.ordered(100.0)  # a voucher came late, and the engine was asked once more
    times.started(100.5)
    times.made(4, 101.0)
    times.made(4, 103.0)
    assert (times.decode_s, times.decoded) == (3.0, 8)
    assert times.token_s == 3.0 / 8
    assert (times.queue_s, times.first_token_s) == (0.0, 1.0)  # what a client waited for at first


def test_a_turn_that_was_never_asked_of_the_engine_has_no_phases() -> None:
    times = TurnTimes(0.0)
    assert (times.count_s, times.queue_s, times.first_token_s, times.token_s) == (None, None, None, None)


# ---- whole nodes


async def test_a_paid_answer_is_measured_on_both_sides_and_the_figures_agree(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    host_side, client_side = Metrics(), Metrics()
    async with paid_world(tmp_path) as w:
        member, _ = await w.host(model=priced(tokens_per_s=20))
        assert member.host is not None
        measure_host(host_side, member.host)
        measure_node(host_side, member.node)
        with capture_logs() as logs:
            async with w.client(member) as client:
                measure_client(client_side, client)
                answer = client.chat(
                    SECRET, model="scripted", sampling=SamplingParams(tokens_max=80, temperature=0)
                )
                await whole(answer)
                assert answer.usage is not None
                usage = answer.usage
                asked, served = await _values(client_side), await _values(host_side)
    assert served["p2pnode_host_turns_total{scripted,length}"] == 1
    assert served["p2pnode_host_tokens_total{out,scripted}"] == usage.tokens_out == 80
    assert served["p2pnode_host_tokens_total{in,scripted}"] == usage.tokens_in
    assert served["p2pnode_host_sessions_total"] == 1
    assert served["p2pnode_host_vouchers_total"] >= 3
    assert served["p2pnode_host_receipts_total"] >= 3
    assert served["p2pnode_host_paid_sessions{open}"] == 1
    assert served["p2pnode_host_chain_reachable"] == 1
    assert served["p2pnode_host_model_loaded{scripted}"] == 1
    assert served["p2pnode_node_peers"] == 1
    assert served["p2pnode_node_adverts"] == 0
    assert served["p2pnode_host_token_seconds_count{scripted}"] == 1
    assert served["p2pnode_host_token_seconds_sum{scripted}"] == pytest.approx(1 / 20, rel=0.2)
    phases = [
        served[f"p2pnode_host_phase_seconds_sum{{scripted,{name}}}"]
        for name in ("count", "pay", "queue", "prefill")
    ]
    assert sum(phases) == pytest.approx(served["p2pnode_host_first_token_seconds_sum{scripted}"])
    assert asked["p2pnode_client_answers_total{scripted,length}"] == 1
    assert asked["p2pnode_client_tokens_total{out,scripted}"] == 80
    assert asked["p2pnode_client_cost_usdc_total{scripted}"] == pytest.approx(usage.cost / 1e6)
    assert served["p2pnode_host_billed_usdc_total{scripted}"] <= usage.cost / 1e6  # without the session's fee
    assert asked["p2pnode_client_first_token_seconds_sum{scripted}"] == pytest.approx(usage.ttft_s, abs=1e-3)
    assert (
        asked["p2pnode_client_first_token_seconds_sum{scripted}"]
        > served["p2pnode_host_first_token_seconds_sum{scripted}"]
    )
    _check_lines(logs, tokens_in=usage.tokens_in, cost=usage.cost)


def _check_lines(logs: list[Any], *, tokens_in: int, cost: int) -> None:
    """One line for the answer and one for the turn, each with all that is known of it."""
    (at_host,) = [each for each in logs if each["event"] == "turn.served"]
    (at_client,) = [each for each in logs if each["event"] == "answer.ended"]
    assert {
        "peer",
        "session",
        "turn",
        "model",
        "tokens_in",
        "tokens_out",
        "reason",
        "cost",
        "paid",
        "total_s",
    } <= {*at_host}
    assert {"count_s", "pay_s", "queue_s", "prefill_s", "first_token_s", "decode_s"} <= {*at_host}
    assert (at_host["tokens_in"], at_host["tokens_out"], at_host["paid"]) == (tokens_in, 80, True)
    assert (at_client["outcome"], at_client["attempts"], at_client["cost"]) == ("length", 1, cost)
    assert at_client["host"].startswith("12D3")
    assert at_client["total_s"] >= at_host["total_s"]
    assert "0451" not in repr(logs)


async def test_settled_sessions_are_counted_and_the_open_ones_go(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    metrics = Metrics()
    async with paid_world(tmp_path) as w:
        member, _ = await w.host()
        assert member.host is not None
        measure_host(metrics, member.host)
        async with w.client(member) as client:
            await whole(ask(client))
        await trio.sleep(30)
        found = await _values(metrics)
    assert found["p2pnode_host_settled_total"] == 1
    assert found["p2pnode_host_settled_usdc_total"] > 0
    assert found["p2pnode_host_paid_sessions{open}"] == 0
    assert found["p2pnode_host_paid_sessions{settled}"] == 1


async def test_what_is_not_taken_and_what_finds_no_host_is_counted_by_its_code(
    autojump_clock: MockClock,
) -> None:
    host_side, client_side = Metrics(), Metrics()
    async with world() as w:
        host = await w.add([scripted_host(n_ctx=300)])
        assert host.host is not None
        measure_host(host_side, host.host)
        async with w.client(host.node.multiaddrs[:1]) as client:
            measure_client(client_side, client)
            with pytest.raises(NoHostError), capture_logs() as logs:
                await whole(client.chat("hello", model="smollm2-135m-instruct"))
            host.host.withdraw(host.host.models[0].model)
            answer = ask(client, peer=host.node.multiaddrs[0])
            with pytest.raises(Exception, match="serves"):
                await whole(answer)
        asked, served = await _values(client_side), await _values(host_side)
    assert asked["p2pnode_client_answers_total{none,no_host}"] == 1
    assert [each["outcome"] for each in logs if each["event"] == "answer.ended"] == ["no_host"]
    assert "p2pnode_host_refused_total{capacity}" not in served
