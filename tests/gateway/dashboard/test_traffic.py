"""What is remembered of requests: sums, percentiles and outcomes, bounded."""

from __future__ import annotations

from p2pnode.gateway.app import RequestRecord
from p2pnode.gateway.dashboard.traffic import Traffic


def record(index: int, **changes: object) -> RequestRecord:
    """A request that was answered."""
    values: dict[str, object] = {
        "face": "chat", "id": str(index), "model": "m", "status": 200, "outcome": "ok", "tokens_in": 10,
        "reused": 4, "tokens_out": 11, "cost": 5, "ttft_s": 0.01 * (index % 100), "total_s": 2.0,
    }  # fmt: skip
    return RequestRecord(**{**values, **changes})  # type: ignore[arg-type]


def test_sums_count_all_and_percentiles_the_last_ones() -> None:
    traffic = Traffic()
    for index in range(1000):
        traffic.note(record(index), float(index))
    traffic.note(record(1000, outcome="no_host", status=503, ttft_s=None, tokens_out=0, key_id="abc"), 1000.0)
    traffic.note(record(1001, face="models"), 1001.0)  # no host answers that
    found = traffic.fields()
    assert (found["all"]["requests"], found["all"]["failed"], found["all"]["reused"]) == (1001, 1, 4004)
    assert found["last"][0]["outcome"] == "no_host"
    assert len(found["last"]) == 60
    assert found["outcomes"] == {"ok": 499, "no_host": 1}
    assert found["first_token_s"] == {"p50": 0.5, "p90": 0.9, "p99": 0.99}
    assert 5.0 <= found["tokens_per_s"]["p50"] <= 10.1
    assert {each["key"]: each["requests"] for each in found["keys"]} == {"no key": 1000, "abc": 1}
    assert Traffic().fields()["first_token_s"] is None


def test_names_of_models_and_keys_are_bounded() -> None:
    traffic = Traffic()
    for index in range(500):
        traffic.note(record(index, model=f"model {index}", key_id=f"key {index}"), 0.0)
    found = traffic.fields()
    assert len(found["models"]) == len(found["keys"]) == 64
