"""The verdict over an answer's tokens: what came twice, what is missing, what was billed twice."""

from __future__ import annotations

import pytest

from p2pnode.bench.failover import Asked, Came, Trace, Verdict
from p2pnode.ids import SessionId

A, B = SessionId(b"a" * 32), SessionId(b"b" * 32)
IDS = (10, 11, 12, 13, 14)


def trace(*noted: Asked | Came) -> Trace:
    return Trace(list(noted))


GOOD = trace(
    Asked(0, A, ()),
    Came(1, A, 0, IDS[:2]),
    Came(2, A, 2, IDS[2:3]),
    Asked(3, B, IDS[:3]),
    Came(4, B, 0, IDS[3:]),
)


def test_a_whole_answer_of_two_hosts_has_no_fault() -> None:
    assert GOOD.judge(list(IDS), {A: 2, B: 2}) == Verdict(0, 0, 0)
    assert GOOD.judge(list(IDS), {A: 3, B: 2}) == Verdict(0, 0, 0)
    assert [place for _, place, _ in GOOD.places()] == [0, 1, 2, 3, 4]


def test_a_second_turn_of_one_session_goes_on_where_its_prefix_ends() -> None:
    resumed = trace(Asked(0, A, ()), Came(1, A, 0, IDS[:3]), Asked(2, A, IDS[:3]), Came(3, A, 0, IDS[3:]))
    assert resumed.judge(list(IDS), {A: 5}) == Verdict(0, 0, 0)


@pytest.mark.parametrize(
    ("faulty", "ids", "verdict"),
    [
        # asked for one that was held: it came, and is paid, twice
        (
            trace(Asked(0, A, ()), Came(1, A, 0, IDS[:3]), Asked(2, B, IDS[:2]), Came(3, B, 0, IDS[2:])),
            IDS,
            Verdict(1, 0, 1),
        ),
        # asked as if one were held that never came
        (trace(Asked(0, A, ()), Came(1, A, 0, IDS[:2]), Asked(2, B, IDS[:3]), Came(3, B, 0, IDS[3:])), IDS,
         Verdict(0, 1, 0)),
        # went on from other ids than are held
        (trace(Asked(0, A, ()), Came(1, A, 0, IDS[:3]), Asked(2, B, (10, 99, 12)), Came(3, B, 0, IDS[3:])),
         IDS, Verdict(0, 1, 0)),
        # the reader holds another one than came
        (GOOD, (10, 11, 12, 13, 15), Verdict(0, 1, 0)),
        # the reader lacks the last one
        (GOOD, IDS[:4], Verdict(0, 1, 0)),
    ],
)  # fmt: skip
def test_each_fault_is_seen(faulty: Trace, ids: tuple[int, ...], verdict: Verdict) -> None:
    assert faulty.judge(list(ids), {A: 3, B: 3}) == verdict
