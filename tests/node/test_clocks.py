"""Hosts and clients whose clocks differ: tolerated within bounds, named beyond them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio
from trio.testing import MockClock

from p2pnode.errors import ClockError, ConfigError, NoHostError
from p2pnode.host.host import Host
from p2pnode.limits import DEFAULT_LIMITS
from p2pnode.net.virtual_time import wall_clock
from p2pnode.node.identity import HostIdentity
from p2pnode.payments.session_signer import VALID_S
from p2pnode.protocols.adverts.signatures import CLOCK_SKEW_S, binding_holds
from p2pnode.protocols.inference.open_rules import VALID_MAX_S
from p2pnode.words import span
from tests.client.support import ask, whole
from tests.node.world import identity_of, scripted_host, world

DAY = 24 * 3600


def _off_by(seconds: float) -> Callable[[], float]:
    return lambda: wall_clock() + seconds


@pytest.mark.parametrize("offset_s", [-90, 90, -CLOCK_SKEW_S + 10, CLOCK_SKEW_S - 10])
async def test_clocks_that_differ_by_a_minute_or_two_keep_nobody_from_an_answer(
    offset_s: float, autojump_clock: MockClock
) -> None:
    async with world() as w:
        first = await w.add([scripted_host()])
        host = await w.add([scripted_host()], bootstrap=first.node.multiaddrs[:1], wall=_off_by(offset_s))
        await trio.sleep(90)  # its advert has gone through gossip
        assert first.node.adverts.book.get(host.node.peer_id, wall_clock()) is not None
        async with w.client() as client:
            assert await whole(client.chat("hello", model="scripted", peer=host.node.multiaddrs[0]))


@pytest.mark.parametrize(
    ("offset_s", "says"),
    [
        (DAY, "about 1 day ahead of"),
        (-DAY, "about 1 day behind"),
        (-3600, "about 1 hour behind"),
        (400, "about 7 minutes ahead of"),
    ],
)
async def test_a_host_whose_clock_differs_more_is_left_out_by_that_name(
    offset_s: float, says: str, autojump_clock: MockClock
) -> None:
    async with world() as w:
        host = await w.add([scripted_host()], wall=_off_by(offset_s))
        async with w.client(host.node.multiaddrs[:1]) as client:
            with pytest.raises(NoHostError, match=f"that host's clock is {says} this machine's"):
                await whole(ask(client))
            with pytest.raises(ClockError, match=f"that host's clock is {says} this machine's"):
                await whole(client.chat("hello", model="scripted", peer=host.node.multiaddrs[0]))


def test_what_a_client_signs_is_in_time_for_a_host_whose_clock_differs() -> None:
    needed_s = DEFAULT_LIMITS.escrow_deadline_s + DEFAULT_LIMITS.chain_deadline_s
    assert needed_s + CLOCK_SKEW_S <= VALID_S <= VALID_MAX_S - CLOCK_SKEW_S


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (1, "1 second"),
        (90, "90 seconds"),
        (125, "2 minutes"),
        (3500, "1 hour"),
        (7200, "2 hours"),
        (DAY - 45, "1 day"),
        (3 * DAY, "3 days"),
    ],
)
def test_a_span_is_told_in_one_unit(seconds: float, words: str) -> None:
    assert span(seconds) == words


@pytest.mark.parametrize("jump_s", [26 * DAY, 40 * DAY, -5 * DAY])
async def test_a_host_that_runs_for_a_month_or_whose_clock_is_set_right_is_bound_anew(
    jump_s: float, autojump_clock: MockClock
) -> None:
    jumped = 0.0

    def wall() -> float:
        return wall_clock() + jumped

    renewals: list[float] = []

    async def renew() -> HostIdentity:
        renewals.append(wall())
        return identity_of(0, wall())

    async with world() as w:
        member = await w.add(wall=wall)
        host = Host(member.node, identity_of(0, wall()), [scripted_host()], renew=renew)
        await host.start()
        await trio.sleep(300)
        assert renewals == []
        jumped = jump_s
        await trio.sleep(300)
        assert len(renewals) == 1
        publish = member.node.adverts.publisher.renew(trio.current_time())
        assert publish is not None
        assert binding_holds(member.node.peer_id, publish.advert.binding, wall())


async def test_a_binding_that_can_not_be_renewed_stops_nothing(autojump_clock: MockClock) -> None:
    async def renew() -> HostIdentity:
        raise ConfigError("the passphrase is not here")

    async with world() as w:
        member = await w.add(wall=_off_by(26 * DAY))
        host = Host(member.node, identity_of(0, wall_clock()), [scripted_host()], renew=renew)
        await host.start()
        await trio.sleep(600)
        assert member.node.adverts.publisher.current is not None
