"""A world keeps time, order and connections, as the node's own shells do."""

from __future__ import annotations

import gc
from collections.abc import Sequence

import pytest

from p2pnode.protocols.events import (
    CancelTimer,
    Closed,
    Command,
    Effect,
    Emit,
    Event,
    Received,
    Send,
    SetTimer,
    TimerFired,
)
from p2pnode.simulations.cpu import Cpu
from p2pnode.simulations.links import Links
from p2pnode.simulations.world import Link, Node, Shell, World, connect_at_random

HALF_S = Links(
    latency="uniform", latency_min_ms=500, latency_max_ms=500, jitter_share=0, handshake_round_trips=2
)


class Script:
    """Answers each command with the effects in it, and remembers what came and when."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, Event]] = []

    def handle(self, event: Event, now: float) -> Sequence[Effect]:
        self.seen.append((now, event))
        return event.value if isinstance(event, Command) else []

    def came(self, kind: type) -> list[tuple[float, Event]]:
        return [each for each in self.seen if isinstance(each[1], kind)]


class Scripts:
    """A service that runs a script on each node, and notes who comes and goes."""

    def __init__(self, world: World) -> None:
        self.of: dict[Node, Script] = {}
        self.notes: list[tuple[str, int, int]] = []
        self.emitted: list[tuple[int, object]] = []
        self._world = world
        world.services.append(self)

    def started(self, node: Node) -> None:
        script = self.of[node] = Script()
        self._world.mount(
            node, "script", script, on_emit=lambda value: self.emitted.append((node.number, value)), size=len
        )

    def stopped(self, node: Node) -> None:
        self.notes.append(("stopped", node.number, node.number))

    def connected(self, link: Link) -> None:
        self.notes.append(
            ("dialled" if link.dialled else "accepted", link.sender.number, link.receiver.number)
        )

    def disconnected(self, link: Link) -> None:
        self.notes.append(("lost", link.sender.number, link.receiver.number))


def pair(links: Links = HALF_S, cpu: Cpu | None = None) -> tuple[World, Scripts, Node, Node]:
    world = World(links=links, cpu=cpu)
    scripts = Scripts(world)
    a, b = world.add(), world.add()
    world.connect(a, b)
    return world, scripts, a, b


def tell(node: Node, *effects: Effect) -> None:
    """Let a node's script do this."""
    node.shells["script"].command(list(effects))


def test_messages_of_a_link_arrive_after_its_latency_in_order() -> None:
    world, scripts, a, b = pair()
    tell(a, Send(b.peer, 0, "one"), Send(b.peer, 0, "two"))
    world.run_until(0.4)
    assert scripts.of[b].seen == []
    world.run_until(1.0)
    assert scripts.of[b].seen == [(0.5, Received(a.peer, 0, "one")), (0.5, Received(a.peer, 0, "two"))]
    assert world.sent == 2


def test_what_is_sent_later_never_arrives_earlier() -> None:
    world, scripts, a, b = pair(Links(jitter_share=3.0, loss_share=0.2))
    for number in range(200):
        world.loop.at(number / 1000, tell, a, Send(b.peer, 0, f"{number}"))
    world.run_until(60)
    found = scripts.of[b].came(Received)
    assert [int(event.message) for _, event in found] == list(range(200))  # type: ignore[union-attr]
    assert len({at for at, _ in found}) > 2
    assert found[-1][0] > 0.4


def test_a_line_of_a_bandwidth_delays_the_bytes_on_both_sides() -> None:
    links = Links(
        latency="uniform", latency_min_ms=500, latency_max_ms=500, jitter_share=0, overhead_bytes=0,
        uplink_mbit_per_s=0.008, downlink_mbit_per_s=0.004,
    )  # fmt: skip
    world, scripts, a, b = pair(links)
    tell(a, Send(b.peer, 0, "x" * 1000), Send(b.peer, 0, "y" * 1000))  # a second to leave, two to come in
    world.run_until(60)
    assert [at for at, _ in scripts.of[b].seen] == [3.5, 5.5]


def test_a_message_to_somebody_who_is_not_connected_is_lost() -> None:
    world, scripts, a, b = pair()
    stranger = world.add()
    tell(a, Send(stranger.peer, 0, "hello"))
    world.run_until(5)
    assert scripts.of[stranger].seen == scripts.of[b].seen == []


def test_a_timer_that_is_set_again_fires_once_and_a_cancelled_one_never() -> None:
    world, scripts, a, _ = pair()
    tell(a, SetTimer("k", 1.0), SetTimer("k", 2.0), SetTimer("gone", 1.0))
    tell(a, CancelTimer("gone"))
    world.run_until(5)
    assert scripts.of[a].came(TimerFired) == [(2.0, TimerFired("k"))]


def test_what_a_machine_emits_is_told() -> None:
    world, scripts, a, _ = pair()
    tell(a, Emit(1))
    a.shells["script"].after(3.0, Command([Emit(2)]))
    world.run_for(4.0)
    assert scripts.emitted == [(0, 1), (0, 2)]


def test_who_crashes_loses_its_timers_and_messages_and_its_peers_notice_after_a_latency() -> None:
    world, scripts, a, b = pair()
    tell(b, SetTimer("k", 1.0))
    tell(a, Send(b.peer, 0, "too late"))
    tell(b, Send(a.peer, 0, "lost with its connection"))
    world.crash(b)
    first = scripts.of[b]
    assert scripts.notes[2:] == [("stopped", 1, 1)]
    world.run_until(0.6)
    assert scripts.notes[3:] == [("lost", 0, 1)]
    world.restart(b)
    world.run_until(5)
    assert first.came(Received) == first.came(TimerFired) == scripts.of[b].seen == []
    assert scripts.of[a].came(Received) == []
    assert b.peer not in a.links


def test_a_connection_that_is_closed_is_gone_here_at_once_and_there_after_a_latency() -> None:
    world, scripts, a, b = pair()
    link = a.links[b.peer]
    world.disconnect(link)
    world.disconnect(link)
    assert (b.peer in a.links, a.peer in b.links) == (False, True)
    world.run_until(1)
    assert scripts.notes[2:] == [("lost", 0, 1), ("lost", 1, 0)]


def test_a_dial_takes_the_round_trips_of_a_handshake_or_its_deadline() -> None:
    world, scripts, a, _ = pair()
    c, d = world.add(), world.add()
    world.crash(d)
    found: list[tuple[float, int | None]] = []
    for other in (c, d, None):
        world.dial(a, other, lambda link: found.append((world.now, link.receiver.number if link else None)))
    world.run_until(10)
    assert found == [(2.0, 2), (10.0, None), (10.0, None)]
    assert ("dialled", 0, 2) in scripts.notes


def test_behind_a_router_only_who_can_punch_is_reached() -> None:
    world = World(links=HALF_S)
    public, closed, other = world.add(), world.add(nat="symmetric"), world.add(nat="port_restricted")
    found: list[bool] = []
    for node in (public, other):
        world.dial(node, closed, lambda link: found.append(link is not None))
    world.run_until(10)
    assert found == [True, False]


def test_a_silent_node_keeps_its_connections_and_nothing_it_says_arrives() -> None:
    world, scripts, a, b = pair()
    b.answers["echo"] = lambda _asker, question: question
    found: list[object] = []
    b.is_silent = True
    tell(b, Send(a.peer, 0, "unheard"))
    tell(a, Send(b.peer, 0, "heard"))
    world.ask(a, b, "echo", "hello", found.append, deadline_s=3.0)
    world.dial(world.add(), b, found.append)
    world.run_until(10)
    assert (scripts.of[a].came(Received), len(scripts.of[b].came(Received))) == ([], 1)
    assert found == [None, None]
    assert b.peer in a.links


def test_a_partition_breaks_connections_across_it_until_it_is_healed() -> None:
    world, scripts, a, b = pair()
    c = world.add()
    world.connect(b, c)
    world.part([b, c])
    assert (set(a.links), set(b.links)) == (set(), {c.peer})
    assert scripts.notes[-2:] == [("lost", 1, 0), ("lost", 0, 1)]
    found: list[bool] = []
    world.dial(a, b, lambda link: found.append(link is not None))
    world.run_until(11)
    world.sides.clear()
    world.dial(a, b, lambda link: found.append(link is not None))
    world.run_until(17)
    assert found == [False, True]


def test_a_question_is_answered_once_or_ends_at_its_deadline() -> None:
    world, _, a, b = pair()
    b.answers["echo"] = lambda asker, question: (asker.number, question) if question else None
    found: list[tuple[float, object]] = []
    for question in ("hello", ""):
        world.ask(a, b, "echo", question, lambda answer: found.append((world.now, answer)), deadline_s=4.0)
    b.think_s = 9.0
    world.run_until(1.4)  # a stream takes a round trip, and the question another one
    b.think_s = 1.5
    world.run_until(20)
    assert found == [(3.5, (0, "hello")), (4.0, None)]


def test_a_question_that_has_no_answer_is_done_once_it_is_sent_to_somebody() -> None:
    world, _, a, b = pair()
    heard: list[tuple[float, object]] = []
    b.answers["note"] = lambda _asker, question: heard.append((world.now, question))
    found: list[tuple[float, object]] = []
    for other in (b, None):
        world.ask(
            a, other, "note", "hello", lambda it: found.append((world.now, it)), deadline_s=9.0, sent="sent"
        )
    world.run_until(20)
    assert heard == [(1.5, "hello")]
    assert found == [(1.0, "sent"), (9.0, None)]


def test_two_shells_talk_over_a_stream_of_their_own_until_one_closes_it() -> None:
    world, _, a, b = pair()
    scripts = [Script(), Script()]
    one, other = (
        world.shell(node, "session", script, on_emit=lambda _value: None)
        for node, script in zip((a, b), scripts, strict=True)
    )
    world.join(one, other, a.links[b.peer], b_ref=7)
    one.command([Send(b.peer, 0, "hello")])
    other.command([Send(a.peer, 7, "welcome")])
    world.close(one)
    world.run_until(5)
    assert scripts[0].came(Received) == [(0.5, Received(b.peer, 0, "welcome"))]
    assert scripts[1].seen[1:] == [(0.5, Received(a.peer, 7, "hello")), (0.5, Closed(a.peer, 7, "lost"))]


def test_a_busy_core_delays_what_comes_and_what_it_sends() -> None:
    world, scripts, a, b = pair(cpu=Cpu(message_s=1.0))
    tell(a, Send(b.peer, 0, "one"), Send(b.peer, 0, "two"))
    world.run_until(10)
    assert [at for at, _ in scripts.of[b].seen] == [0.5, 1.5]


def ring(world: World) -> list[Shell]:
    Scripts(world)
    nodes = [world.add() for _ in range(20)]
    connect_at_random(world, nodes, 3)
    return [node.shells["script"] for node in nodes]


def test_everybody_dials_as_many_as_asked() -> None:
    world = World(3)
    shells = ring(world)
    dialled = [sum(link.dialled for link in shell.node.links.values()) for shell in shells]
    assert max(dialled) == 3
    assert sum(dialled) >= 50
    assert all(shell.node.peer not in shell.node.links for shell in shells)


def test_the_same_seed_gives_the_same_world_and_another_one_another() -> None:
    def made(seed: int) -> list[tuple[str, list[str]]]:
        return [(shell.node.peer, list(shell.node.links)) for shell in ring(World(seed))]

    assert made(3) == made(3)
    assert made(3) != made(4)


def test_a_run_reports_each_second_and_leaves_the_collector_as_it_was() -> None:
    world, _, _, _ = pair()
    seen: list[tuple[float, bool]] = []
    world.run(2.5, lambda now: seen.append((now, gc.isenabled())))
    assert seen == [(1.0, False), (2.0, False), (2.5, False)]
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0
    world.loop.at(3.0, int, "no number")
    with pytest.raises(ValueError, match="no number"):
        world.run(4.0)
    assert gc.isenabled()


def test_what_comes_to_nothing_is_counted_apart() -> None:
    """So that a rate of events is one of events that did something."""
    world, scripts, a, b = pair()
    tell(a, SetTimer("once", 1.0), SetTimer("once", 2.0), SetTimer("never", 3.0), CancelTimer("never"))
    world.run_until(4.0)
    assert scripts.of[a].came(TimerFired) == [(2.0, TimerFired("once"))]
    assert (world.loop.done, world.lapsed) == (3, 2)
    tell(a, Send(b.peer, 0, "too late"))
    world.crash(b)
    world.run_until(5.0)
    assert world.lapsed == 3


def test_what_is_on_its_way_arrives_although_its_sender_falls_silent_meanwhile() -> None:
    world, scripts, a, b = pair()
    tell(a, Send(b.peer, 0, "on its way"))
    a.is_silent = True
    tell(a, Send(b.peer, 0, "unheard"))
    world.run_until(1.0)
    assert scripts.of[b].came(Received) == [(0.5, Received(a.peer, 0, "on its way"))]


def test_a_node_that_starts_again_hears_with_its_new_machine() -> None:
    world, scripts, a, b = pair()
    tell(a, Send(b.peer, 0, "before"))
    world.run_until(1.0)
    old = scripts.of[b]
    world.crash(b)
    world.restart(b)
    world.run_until(2.0)
    world.connect(a, b)
    tell(a, Send(b.peer, 0, "after"))
    world.run_until(3.0)
    assert len(old.came(Received)) == 1
    assert scripts.of[b].came(Received) == [(2.5, Received(a.peer, 0, "after"))]
