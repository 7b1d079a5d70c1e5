"""How often a lost session is resumed."""

from __future__ import annotations

from p2pnode.client.resumption import AT_ONCE_MAX, AT_ONCE_S, FRUITLESS_MAX, Resumption


def test_a_host_that_sends_nothing_between_two_resumes_is_left() -> None:
    resumption = Resumption()
    for _ in range(FRUITLESS_MAX + 1):
        assert resumption.is_fruitful(5)
        resumption.begin(5)
        resumption.resumed(5)
    assert not resumption.is_fruitful(5)
    assert resumption.is_fruitful(6)


def test_an_attempt_that_fails_at_once_is_made_again_a_bounded_number_of_times() -> None:
    resumption = Resumption()
    tries = [resumption.tries_at_once(0.1, reached=False) for _ in range(AT_ONCE_MAX + 1)]
    assert tries == [True] * AT_ONCE_MAX + [False]
    resumption.lost()
    assert not resumption.tries_at_once(AT_ONCE_S, reached=False)
    assert resumption.tries_at_once(AT_ONCE_S, reached=True)
