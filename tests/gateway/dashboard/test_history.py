"""The network over time: what is sampled, and that it stays bounded."""

from __future__ import annotations

from p2pnode.gateway.dashboard.history import History, Sample, sample_of
from tests.client.support import MODEL, NOW, advert


def test_a_sample_adds_up_hosts_that_serve_and_no_others() -> None:
    seen = [
        advert(1, price_out=3_000_000, active=2),
        advert(2, price_out=1_000_000, queued=1),
        advert(3),
        advert(4, n_ctx=0),
        advert(5, draining=True),
    ]
    sample = sample_of(seen, NOW, names={MODEL: "a model"})
    assert (sample.hosts, sample.models, sample.slots, sample.active, sample.queued) == (3, 1, 12, 2, 1)
    assert sample.price_out == 2_000_000
    assert sample.hosts_of == {"a model": 3}
    assert sample_of([], NOW, names={}) == Sample(at=NOW)


def test_minutes_are_kept_for_three_hours_and_half_hours_as_means_for_a_week() -> None:
    history = History()
    for minute in range(8 * 24 * 60):
        history.add(Sample(at=60.0 * minute, hosts=minute % 30, hosts_of={f"model {minute % 3}": 1}))
    kept = history.fields()
    assert len(kept["minutes"]) == 180
    assert kept["minutes"][-1]["at"] == 60.0 * (8 * 24 * 60 - 1)
    assert len(kept["half_hours"]) == 337
    assert {each["hosts"] for each in kept["half_hours"]} == {14.5}
    assert kept["half_hours"][0]["hosts_of"]["model 0"] == 0.33
