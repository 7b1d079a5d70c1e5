"""A machine is in use while other programs keep it busy or somebody types, and for a while after."""

from __future__ import annotations

import pytest

from p2pnode.host.machine_use import OTHERS_MAX, IdleRule, MachineMeter, Sample

IDLE, BUSY = Sample(0.05, None), Sample(OTHERS_MAX + 0.1, None)


def test_one_busy_sample_is_nobody_and_two_are_somebody_for_a_while() -> None:
    rule = IdleRule(60)
    assert rule.why_in_use(IDLE, 0) == ""
    assert rule.why_in_use(BUSY, 10) == ""
    assert rule.why_in_use(IDLE, 20) == ""
    assert rule.why_in_use(BUSY, 30) == ""
    assert "keep this machine busy" in rule.why_in_use(BUSY, 40)
    assert "busy" in rule.why_in_use(IDLE, 99)
    assert rule.why_in_use(IDLE, 100) == ""


def test_a_key_that_was_pressed_lately_is_somebody() -> None:
    rule = IdleRule(300)
    assert "types" in rule.why_in_use(Sample(0.0, 5.0), 0)
    assert "types" in rule.why_in_use(Sample(0.0, 299.0), 10)
    assert rule.why_in_use(Sample(0.0, 300.0), 20) == ""
    assert rule.why_in_use(Sample(0.0, None), 20) == ""  # nothing is known of terminals here


def test_what_this_machine_measures_is_a_share_and_an_age() -> None:
    meter = MachineMeter()
    for _ in range(3):
        found = meter.sample()
        assert 0 <= found.others <= 1
        assert found.input_age_s is None or found.input_age_s >= 0


def test_own_work_is_nobody_elses(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = {"all": 100.0, "own": 40.0, "at": 0.0}
    monkeypatch.setattr("p2pnode.host.machine_use.busy_s", lambda: figures["all"])
    monkeypatch.setattr("p2pnode.host.machine_use.own_s", lambda: figures["own"])
    monkeypatch.setattr("p2pnode.host.machine_use.psutil.cpu_count", lambda: 2)
    monkeypatch.setattr("p2pnode.host.machine_use.time.monotonic", lambda: figures["at"])
    meter = MachineMeter()
    figures.update(all=118.0, own=56.0, at=10.0)  # of 20 s, ours are 16 and another's 2
    assert meter.sample().others == pytest.approx(0.1)
    figures.update(all=120.0, own=10.0, at=20.0)  # a child of ours ended, and took its seconds with it
    assert meter.sample().others == pytest.approx(0.1)
