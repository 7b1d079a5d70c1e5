"""``World``: nodes, their connections and their machines in one thread, on a clock of its own.

It drives the very machines that the node drives, thousands of them, with the models of links, NATs and CPU
between them. What runs on the nodes is a :class:`Service` each: gossip, the DHT, a market. It knows no
protocol. Everything is drawn from ``seed``: two runs do the same.
"""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeAlias

from p2pnode.ids import PeerId
from p2pnode.protocols.crypto import peer_id_of
from p2pnode.protocols.events import (
    CancelTimer,
    Closed,
    Command,
    Effect,
    Emit,
    Event,
    Machine,
    Received,
    Send,
    SetTimer,
    StreamRef,
    TimerFired,
)
from p2pnode.shares import Origin, origin_of
from p2pnode.simulations.cpu import Cpu, CpuQueue
from p2pnode.simulations.draws import Draws
from p2pnode.simulations.event_loop import Due, EventLoop
from p2pnode.simulations.links import LinkModel, Links, Place
from p2pnode.simulations.nat import Nat, NatClass, NatModel, can_punch, is_dialable
from p2pnode.simulations.recorder import Recorder

SIZE_BYTES: Final = 200
"""Of a message whose shell was given no ``size``."""
_RELAY_DETOUR: Final = 2.0
"""How much longer the way through a relay is than the direct one."""
_STEP_S: Final = 1.0
_STEPS: Final = 10_000
"""Simulated seconds between two reports of progress."""

Emitted: TypeAlias = Callable[[Any], None]
Carry: TypeAlias = Callable[[Any], Any]
Dialled: TypeAlias = "Callable[[Link | None], None]"
Receive: TypeAlias = Callable[[PeerId, Any, float], Sequence[Effect]]
"""``(peer, message, now)``: what a machine decides about a message that came on stream 0."""
Answerer: TypeAlias = "Callable[[Node, Any], Any | None]"
"""What a node answers another one's question; None where it doesn't."""


class Service(Protocol):
    """Something that runs on nodes. All of these come after the world has changed."""

    def started(self, node: Node) -> None:
        """The node is up, for the first time or again: make its machines, and dial."""
        ...

    def stopped(self, node: Node) -> None:
        """The node crashed. Its shells and links are gone already."""
        ...

    def connected(self, link: Link) -> None:
        """``link.sender`` can send to ``link.receiver`` from now on; told once for each side."""
        ...

    def disconnected(self, link: Link) -> None:
        """``link.sender`` noticed that its connection is gone."""
        ...


class Link(Due):
    """One direction of a connection. It is due when a message that travels on it arrives."""

    __slots__ = (
        "back", "dialled", "ear", "is_open", "last_at", "latency_s", "peer", "receiver", "relayed", "sender",
        "world",
    )  # fmt: skip

    def __init__(
        self, world: World, sender: Node, receiver: Node, latency_s: float, *, dialled: bool
    ) -> None:
        self.world, self.sender, self.receiver, self.latency_s = world, sender, receiver, latency_s
        self.peer = sender.peer
        self.ear: Shell | None = None
        """The receiver's shell that the last message without a stream was for; mostly the next is, too."""
        self.dialled = dialled
        """Whether the sender opened the connection."""
        self.relayed = False
        self.is_open = True
        self.last_at = 0.0
        """When what was sent last arrives: nothing that is sent later comes before it."""
        self.back: Link = self
        """The other direction."""

    def due(self, one: Any, two: Any) -> None:
        """A message (``two``) arrives, for a stream or for the receiver's shell of a protocol (``one``)."""
        # What is needed for a message stands in few objects: thousands of nodes don't fit into a processor's
        # cache, and each object costs about as much as a call.
        world = self.world
        if type(one) is Stream:
            self._due_on(one, two)
            return
        shell = self.ear
        if shell is None or shell.protocol is not one:
            shell = self.ear = self.receiver.shells.get(one)
        if shell is None or shell.is_over or not self.is_open:
            world.lapsed += 1
        elif shell.cpu is None:
            world.heard_from = self.peer
            effects = shell.receive(self.peer, two, world.loop.now)
            if effects:
                shell.perform(effects)
        else:
            shell.cpu.run(world.message_s, shell.hear, self.peer, two)

    def _due_on(self, stream: Stream, message: Any) -> None:
        if not self.is_open:
            self.world.lapsed += 1
            return
        shell, event = stream.target, Received(self.peer, stream.ref, message)
        if shell.cpu is None:
            shell.give(event)
        else:
            shell.cpu.run(self.world.message_s, shell.give, event)


class Node:
    """One peer, up or down. ``shells`` are those of machines that all peers share, by protocol."""

    __slots__ = (
        "_origin", "answers", "bytes_sent", "cpu", "ip", "is_silent", "is_up", "links", "nat", "number",
        "peer", "place", "public_key", "shells", "think_s",
    )  # fmt: skip

    def __init__(
        self,
        number: int,
        public_key: bytes,
        *,
        ip: str,
        place: Place,
        nat: NatClass,
        cpu: CpuQueue | None,
    ) -> None:
        self.number, self.public_key, self.ip = number, public_key, ip
        self.peer = peer_id_of(public_key)
        self.place, self.nat, self.cpu = place, nat, cpu
        self.is_up = self.is_silent = False
        self.bytes_sent = 0
        """Counted where a run is recorded, or lines have a bandwidth."""
        self.links: dict[PeerId, Link] = {}
        self.shells: dict[str, Shell] = {}
        self.answers: dict[str, Answerer] = {}
        """Protocols of one question and one answer, on a stream of their own."""
        self.think_s = 0.0
        """Before it answers such a question, where it is slow. ``is_silent``: nothing it sends arrives."""
        self._origin: Origin | None = None

    @property
    def origin(self) -> Origin:
        """Where others see that it comes from: the same for all of them, and found out once."""
        found = self._origin
        if found is None:
            found = self._origin = origin_of(self.ip, self.peer)
        return found


class Shell(Due):
    """Drives one machine of a node: performs what it decides, keeps its timers, tells what it emits.

    A machine that talks to all peers (``World.mount``) sends on stream 0. Other streams, and those of a
    machine of its own (``World.shell``), are joined by ``World.join``. ``size`` gives the bytes of a message.
    It is due when a timer is.
    """

    __slots__ = (
        "carry",
        "cpu",
        "is_over",
        "links",
        "machine",
        "node",
        "on_emit",
        "protocol",
        "receive",
        "size",
        "streams",
        "timers",
        "world",
    )

    def __init__(
        self,
        world: World,
        node: Node,
        protocol: str,
        machine: Machine,
        *,
        on_emit: Emitted,
        size: Callable[[Any], int] | None,
        carry: Carry | None,
        receive: Receive | None = None,
    ) -> None:
        self.world, self.node, self.protocol, self.machine = world, node, protocol, machine
        self.cpu, self.links = node.cpu, node.links
        self.receive: Receive = receive if receive is not None else self._received
        self.on_emit, self.size, self.carry = on_emit, size, carry
        self.timers: dict[str, int] = {}
        self.streams: dict[StreamRef, Stream] = {}
        self.is_over = False

    def give(self, event: Event) -> None:
        """Hand the machine an event now, and perform what it answers. Nothing happens after the end."""
        if not self.is_over:
            world = self.world
            world.heard_from = event.peer if type(event) is Received else None
            effects = self.machine.handle(event, world.loop.now)
            if effects:
                self.perform(effects)

    def hear(self, peer: PeerId, message: Any) -> None:
        """The same, of a message of a peer on stream 0."""
        if not self.is_over:
            world = self.world
            world.heard_from = peer
            effects = self.receive(peer, message, world.loop.now)
            if effects:
                self.perform(effects)

    def _received(self, peer: PeerId, message: Any, now: float) -> Sequence[Effect]:
        return self.machine.handle(Received(peer, 0, message), now)

    def command(self, value: Any) -> None:
        """The same, of a command of the role."""
        self.give(Command(value))

    def after(self, seconds: float, event: Event) -> None:
        """The same, so many seconds from now."""
        self.world.loop.after(seconds, self.give, event)

    def stop(self) -> None:
        """It is over: timers and messages on their way are lost, and nobody is told."""
        self.is_over = True
        self.timers.clear()

    def perform(self, effects: Iterable[Effect]) -> None:
        """Do what the machine decided, in its order."""
        # By type, not by patterns: this runs for each message.
        for effect in effects:
            if type(effect) is Send:
                stream = self.streams.get(effect.stream) if self.streams else None
                link = self.links.get(effect.peer) if stream is None else stream.link
                if link is not None:
                    self.world.send(link, effect.message, self, stream)
            elif type(effect) is SetTimer:
                self._set(effect.key, effect.at)
            elif type(effect) is Emit:
                self.on_emit(effect.value)
            elif type(effect) is CancelTimer:
                self.timers.pop(effect.key, None)

    def _set(self, key: str, at: float) -> None:
        world = self.world
        world.settings = setting = world.settings + 1
        self.timers[key] = setting
        world.loop.put(at, self, key, setting)

    def due(self, one: Any, two: Any) -> None:
        """A timer (``one``) fires, unless it was set anew since the setting with the number ``two``."""
        if self.timers.get(one) != two:
            self.world.lapsed += 1
            return
        del self.timers[one]
        if self.cpu is None:
            self.give(TimerFired(one))
        else:
            self.cpu.run(0.0, self.give, TimerFired(one))


class Stream:
    """One end of a stream: where what is said here arrives."""

    __slots__ = ("link", "ref", "target")

    def __init__(self, link: Link, target: Shell, ref: StreamRef) -> None:
        self.link, self.target, self.ref = link, target, ref


class World:
    """See the module. ``cpu`` None: all work is done in no time; ``nat`` None: everybody can be dialled."""

    def __init__(
        self,
        seed: int = 1,
        *,
        links: Links | None = None,
        nat: Nat | None = None,
        cpu: Cpu | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        self.loop = EventLoop()
        self.draws = Draws(seed)
        self.links = LinkModel(links or Links(), self.draws)
        self.nat = NatModel(nat, self.draws) if nat is not None else None
        self._punches = self.nat or NatModel(Nat(), self.draws)
        self.cpu = cpu
        self.message_s = cpu.seconds(cpu.message_s) if cpu is not None else 0.0
        self.recorder = recorder
        self._counts_bytes = recorder is not None or not self.links.is_plain
        self._is_plain = self.links.is_plain
        self._jitter, self._draw = self.links.links.jitter_share, self.links.draw
        self.nodes: list[Node] = []
        """All that ever were, by their numbers."""
        self.by_peer: dict[PeerId, Node] = {}
        self.services: list[Service] = []
        self.sides: dict[int, int] = {}
        """By number of node, the side of a partition that it is on; 0 where it isn't named."""
        self.sent = 0
        """Messages that were sent so far."""
        self.lapsed = 0
        """Actions of the loop that came to nothing: timers that were set anew, messages to who is gone."""
        self.settings = 0
        self.heard_from: PeerId | None = None
        """Whose message a machine was given last, None for another event: whoever hears what it emits can see
        why."""

    @property
    def now(self) -> float:
        """Seconds since the start."""
        return self.loop.now

    # ---- nodes

    def add(self, *, ip: str | None = None, nat: NatClass | None = None, key: bytes | None = None) -> Node:
        """One more node, which is up. Its peer id is drawn, unless its public ``key`` is given.

        Without ``ip`` it has a prefix of addresses of its own; without ``nat`` its class is drawn.
        """
        number = len(self.nodes)
        public_key = (
            key if key is not None else hashlib.sha256(f"{self.draws.seed}/{number}".encode()).digest()
        )
        drawn: NatClass = self.nat.drawn() if self.nat is not None else "public"
        cpu = CpuQueue(self.loop) if self.cpu is not None else None
        node = Node(
            number,
            public_key,
            ip=ip or f"{20 + number // 62500}.{number // 250 % 250}.{number % 250}.7",
            place=self.links.place(number),
            nat=nat or drawn,
            cpu=cpu,
        )
        self.nodes.append(node)
        self.by_peer[node.peer] = node
        self.restart(node)
        return node

    def crash(self, node: Node) -> None:
        """It is gone without a word, with its timers and connections. Its peers notice after a latency."""
        if not node.is_up:
            return
        node.is_up = False
        for shell in node.shells.values():
            shell.stop()
        node.shells.clear()
        node.answers.clear()
        for link in list(node.links.values()):
            self._cut(link)
            self.loop.after(link.latency_s, self._notice, link.back)
        node.links.clear()
        for service in self.services:
            service.stopped(node)

    def restart(self, node: Node) -> None:
        """It is up again, with nothing but its key and its address; each service starts on it."""
        if node.is_up:
            return
        node.is_up = True
        for service in self.services:
            service.started(node)

    # ---- machines

    def mount(
        self,
        node: Node,
        protocol: str,
        machine: Machine,
        *,
        on_emit: Emitted,
        start: Iterable[Effect] = (),
        size: Callable[[Any], int] | None = None,
        carry: Carry | None = None,
        receive: Receive | None = None,
    ) -> Shell:
        """Run a machine that talks to the same protocol's machine at every connected peer, on stream 0.

        ``receive``: the machine's own way to take a message, if it has one that is quicker than ``handle``.
        """
        shell = node.shells[protocol] = Shell(
            self, node, protocol, machine, on_emit=on_emit, size=size, carry=carry, receive=receive
        )
        shell.perform(start)
        return shell

    def shell(
        self,
        node: Node,
        protocol: str,
        machine: Machine,
        *,
        on_emit: Emitted,
        size: Callable[[Any], int] | None = None,
        carry: Carry | None = None,
    ) -> Shell:
        """A shell that no peer reaches before it is joined to a stream. ``Shell.perform`` its start then."""
        return Shell(self, node, protocol, machine, on_emit=on_emit, size=size, carry=carry)

    def join(self, a: Shell, b: Shell, link: Link, *, a_ref: StreamRef = 0, b_ref: StreamRef = 0) -> None:
        """A stream between two shells over a connection; ``link`` leads from ``a`` to ``b``."""
        a.streams[a_ref] = Stream(link, b, b_ref)
        b.streams[b_ref] = Stream(link.back, a, a_ref)

    def close(self, shell: Shell, ref: StreamRef = 0, *, code: str = "lost") -> None:
        """End a shell's stream: the other side's machine is told ``Closed`` after what is on its way."""
        stream = shell.streams.pop(ref, None)
        if stream is not None and stream.link.is_open:
            link = stream.link
            link.last_at = at = max(link.last_at, self.now + link.latency_s)
            self.loop.at(at, self._closed, stream.target, stream.ref, code)

    def _closed(self, shell: Shell, ref: StreamRef, code: str) -> None:
        stream = shell.streams.pop(ref, None)
        if stream is not None:
            shell.give(Closed(stream.link.receiver.peer, ref, code))

    def send(self, link: Link, message: Any, shell: Shell, stream: Stream | None) -> None:
        """Put a message of a shell on its way; without a stream, to the same protocol's shell over there."""
        self.sent += 1
        loop, sender = self.loop, link.sender
        if sender.is_silent:
            return
        at = loop.now if sender.cpu is None else sender.cpu.done_at()
        size = 0
        if self._counts_bytes:
            size = SIZE_BYTES if shell.size is None else shell.size(message)
            sender.bytes_sent += size
            if not self._is_plain:
                at = self.links.departs(sender.place, size, at)
                at += self.links.retransmission_s(size, link.latency_s)
        # As ``LinkModel.travel_s`` has it.
        at += link.latency_s * (1.0 + jitter * self._draw()) if (jitter := self._jitter) else link.latency_s
        if at < link.last_at:  # noqa: PLR1730  this runs for each message
            at = link.last_at
        link.last_at = at
        if shell.carry is not None:
            message = shell.carry(message)
        whither = shell.protocol if stream is None else stream
        if self._is_plain:
            loop.put(at, link, whither, message)
        else:
            loop.at(at, self._reached, size, link, whither, message)

    def _reached(self, size: int, link: Link, whither: str | Stream, message: Any) -> None:
        """A message is at its receiver's line."""
        at = self.links.lands(link.receiver.place, size, self.loop.now)
        if at > self.loop.now:
            self.loop.put(at, link, whither, message)
        else:
            link.due(whither, message)

    # ---- connections

    def connect(self, node: Node, other: Node, *, latency_s: float | None = None) -> Link:
        """Connect two nodes at once; ``node`` is the one that dialled. They may be connected already."""
        if (known := node.links.get(other.peer)) is not None:
            return known
        one_way = self.links.latency_s(node.place, other.place) if latency_s is None else latency_s
        link = Link(self, node, other, one_way, dialled=True)
        back = Link(self, other, node, one_way, dialled=False)
        link.back, back.back = back, link
        node.links[other.peer], other.links[node.peer] = link, back
        for service in self.services:
            service.connected(link)
            service.connected(back)
        return link

    def disconnect(self, link: Link) -> None:
        """Close a connection: the other side notices after a latency, and what is on its way is lost."""
        if link.is_open:
            self._cut(link)
            self._notice(link)
            self.loop.after(link.latency_s, self._notice, link.back)

    def dial(self, node: Node, other: Node | None, then: Dialled) -> None:
        """Connect as over the network; ``then`` gets the link, or None where nobody is reached in time.

        It takes the round trips of a handshake, and the deadline where ``other`` is None, down, or behind a
        router that lets nobody in.
        """
        if other is not None and (known := node.links.get(other.peer)) is not None:
            then(known)
            return
        links = self.links.links
        attempts = self._attempts(node, other) if other is not None and other.is_up else None
        if other is None or attempts is None:
            self.loop.after(links.dial_deadline_s, then, None)
            return
        round_trip_s = 2.0 * self.links.latency_s(node.place, other.place)
        wait_s = links.handshake_round_trips * round_trip_s
        # Through a relay first: its way is twice as long, and each attempt takes a round trip and a half.
        wait_s += attempts * 1.5 * _RELAY_DETOUR * round_trip_s
        self.loop.after(wait_s, self._dialled, node, other, then)

    def _attempts(self, node: Node, other: Node) -> int | None:
        """How often a hole is punched until one is there; 0 where none is needed, None where none will be."""
        if not self.is_reachable(node, other):
            return None
        if is_dialable(other.nat):
            return 0
        direct_s = self.links.latency_s(node.place, other.place)
        return self._punches.punch(node.nat, other.nat, direct_s, _RELAY_DETOUR * direct_s, self.links)

    def stream_s(self, link: Link) -> float:
        """How long a new stream takes until something can be said on it."""
        return 2.0 * self.links.links.stream_round_trips * link.latency_s

    def is_reachable(self, node: Node, other: Node) -> bool:
        """Whether a dial gets through, a punched hole included."""
        if node.is_silent or other.is_silent or self._side(node) != self._side(other):
            return False
        return is_dialable(other.nat) or can_punch(node.nat, other.nat)

    def part(self, nodes: Iterable[Node], side: int = 1) -> None:
        """Put nodes on one side of a partition: connections across it break, and no dial crosses it.

        ``world.sides.clear()`` heals it.
        """
        moved = list(nodes)
        self.sides.update((node.number, side) for node in moved)
        for node in moved:
            for link in list(node.links.values()):
                if self._side(link.receiver) != side:
                    self._cut(link)
                    self._notice(link)
                    self._notice(link.back)

    def _side(self, node: Node) -> int:
        return self.sides.get(node.number, 0)

    def _dialled(self, node: Node, other: Node, then: Dialled) -> None:
        if node.is_up:
            then(self.connect(node, other) if other.is_up else None)

    def ask(
        self,
        node: Node,
        other: Node | None,
        protocol: str,
        question: Any,
        then: Callable[[Any | None], None],
        *,
        deadline_s: float,
        sent: Any | None = None,
    ) -> None:
        """Put one question on a stream of its own, dialling first; ``then`` gets the answer, once.

        None after ``deadline_s``: nobody is there, or it doesn't answer. ``sent`` is for a question that has
        no answer: ``then`` gets it as soon as the question is on its way.
        """
        _Question(self, node, other, protocol, question, then, sent).begin(deadline_s)

    def _cut(self, link: Link) -> None:
        link.is_open = link.back.is_open = False

    def _notice(self, link: Link) -> None:
        """A side learns that its connection is gone."""
        node, peer = link.sender, link.receiver.peer
        if node.links.get(peer) is not link:
            return
        del node.links[peer]
        for service in self.services:
            service.disconnected(link)

    # ---- time

    def run_until(self, end: float) -> None:
        """Let time pass, up to this second."""
        self.loop.run_until(end)

    def run_for(self, seconds: float) -> None:
        """The same, from now."""
        self.loop.run_until(self.now + seconds)

    def run(self, until_s: float, progress: Callable[[float], None] | None = None) -> None:
        """The same, with the garbage collector at rest; ``progress`` hears the time, about once a second.

        Machines make no reference cycles that outlive an event, and a collection among millions of objects
        takes longer than the events between two of them.
        """
        with _gc_at_rest():
            step_s = max(_STEP_S, until_s / _STEPS)
            while self.now < until_s:
                self.loop.run_until(min(until_s, self.now + step_s))
                if progress is not None:
                    progress(self.now)


@dataclass(slots=True)
class _Question:
    """One question on its way, its answer, and its deadline."""

    _world: World
    _node: Node
    _other: Node | None
    _protocol: str
    _question: Any
    _then: Callable[[Any | None], None]
    _sent: Any | None
    _is_over: bool = False

    def begin(self, deadline_s: float) -> None:
        self._world.loop.after(deadline_s, self._end, None)
        self._world.dial(self._node, self._other, self._dialled)

    def _dialled(self, link: Link | None) -> None:
        if link is not None:
            world, opens_s = self._world, self._world.stream_s(link)
            world.sent += 1
            world.loop.after(opens_s + world.links.travel_s(link.latency_s), self._arrived, link)
            if self._sent is not None:
                world.loop.after(opens_s, self._end, self._sent)

    def _arrived(self, link: Link) -> None:
        answer = link.receiver.answers.get(self._protocol)
        hears = link.is_open and not self._node.is_silent and not link.receiver.is_silent
        found = answer(self._node, self._question) if answer is not None and hears else None
        if found is not None and self._sent is None:
            self._world.sent += 1
            way_s = self._world.links.travel_s(link.latency_s) + link.receiver.think_s
            self._world.loop.after(way_s, self._end, found)

    def _end(self, answer: Any | None) -> None:
        if not self._is_over:
            self._is_over = True
            if self._node.is_up:
                self._then(answer)


@contextmanager
def _gc_at_rest() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # what is new counts as old from now on: there is no garbage in it to look for
        gc.unfreeze()
        if was_on:
            gc.enable()


def connect_at_random(world: World, nodes: Sequence[Node], dials: int, name: str = "topology") -> None:
    """Each node dials so many others, drawn from all of them; whoever is connected already is not dialled."""
    draw = world.draws(name)
    for node in nodes:
        wanted = min(dials, len(nodes) - 1)
        for other in draw.sample(nodes, min(len(nodes), wanted + 1)):
            if other is not node and wanted:
                wanted -= 1
                world.connect(node, other)
