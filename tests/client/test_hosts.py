"""A search gives hosts best first, waits a moment for better ones, and gives none twice."""

from __future__ import annotations

from functools import partial

import pytest
import trio
from trio.testing import MockClock

from p2pnode.client.hosts import HostSearch
from p2pnode.client.ranking import Filters
from p2pnode.client.reputation import Measured
from p2pnode.ids import PeerId
from p2pnode.limits import DEFAULT_LIMITS
from p2pnode.node.finder import FoundHost
from tests.client.support import MODEL, NOW, advert, peer

GRACE_S = DEFAULT_LIMITS.found_grace_s
SLOW = {peer(1): Measured(ttft_s=9.0)}


def _search(
    nursery: trio.Nursery, finds: dict[int, float], *, over_s: float = 1.0, looks: list[int] | None = None
) -> HostSearch:
    """A search whose lookup finds host ``i`` after ``finds[i]`` seconds and ends after ``over_s``."""

    async def look(search: HostSearch) -> None:
        async with trio.open_nursery() as inner:
            for index, at_s in finds.items():
                inner.start_soon(_find, search, index, at_s)
            await trio.sleep(over_s)
        search.lookup_ended({peer(9): "connection refused"})

    def begin(search: HostSearch, _recent_s: float) -> None:
        if looks is not None:
            looks.append(1)
        nursery.start_soon(look, search)

    return HostSearch(
        MODEL, Filters(), measured=SLOW, limits=DEFAULT_LIMITS, wall=partial(float, NOW), start_lookup=begin
    )


async def _find(search: HostSearch, index: int, at_s: float) -> None:
    await trio.sleep(at_s)
    search.found(FoundHost(advert(index), 0.1))


async def _next(search: HostSearch) -> PeerId | None:
    candidate = await search.next()
    return candidate.advert.peer if candidate is not None else None


async def test_the_first_found_does_not_win_when_a_better_one_comes_within_the_grace(
    autojump_clock: MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        search = _search(nursery, {1: 0.1, 2: 0.1 + GRACE_S / 2})
        assert await _next(search) == peer(2)
        assert trio.current_time() < 1
        assert await _next(search) == peer(1)
        assert await _next(search) is None


async def test_a_better_one_after_the_grace_is_too_late(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        search = _search(nursery, {1: 0.1, 2: 0.1 + GRACE_S * 2})
        assert await _next(search) == peer(1)
        assert await _next(search) == peer(2)


async def test_nobody_is_found_when_the_lookup_ends_without_a_host(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        search = _search(nursery, {})
        assert await _next(search) is None
        assert not search.may_give_more
        assert search.failures == {peer(9): "connection refused"}


async def test_a_host_with_a_session_is_handed_out_first_and_without_a_lookup(
    autojump_clock: MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        looks: list[int] = []
        search = _search(nursery, {2: 0.1}, looks=looks)
        search.try_first(FoundHost(advert(1), 0.0))
        assert await _next(search) == peer(1)
        assert looks == []
        search.failed(peer(1), "gone")
        assert await _next(search) == peer(2)
        assert looks == [1]
        assert search.failures[peer(1)] == "gone"


async def test_a_host_that_was_tried_is_not_given_again(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        search = _search(nursery, {1: 0.0})
        assert await _next(search) == peer(1)
        search.failed(peer(1), "it failed")
        assert await _next(search) is None


@pytest.mark.parametrize(("at_s", "given"), [(0.5, 2), (5.0, 1)])
async def test_a_host_that_keeps_a_session_is_waited_for_a_moment(
    at_s: float, given: int, autojump_clock: MockClock
) -> None:
    async with trio.open_nursery() as nursery:

        async def look(search: HostSearch) -> None:
            nursery.start_soon(_find, search, 1, 0.05)
            await trio.sleep(0.3)
            search.lookup_ended({})
            await trio.sleep(at_s - 0.3)
            search.found(FoundHost(advert(2), 0.1))
            search.heard_of(advert(2).peer)

        search = HostSearch(
            MODEL,
            Filters(),
            measured={},
            limits=DEFAULT_LIMITS,
            wall=partial(float, NOW),
            start_lookup=lambda search, _: nursery.start_soon(look, search),
            has_left=lambda peer: peer == advert(2).peer,
        )
        search.wait_for([advert(2).peer])
        assert await _next(search) == advert(given).peer
        nursery.cancel_scope.cancel()
