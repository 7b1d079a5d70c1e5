"""``GossipRouter``: GossipSub 1.1 and 1.2 of one node, as a machine.

It decides whom each message goes to, who is in the mesh of a topic, and what is asked of whom. Received
messages and sent ones are whole RPCs in bytes: how much of a peer's bytes is read at all is a decision, too.
Time, random choices, signing, checking and the topics' validators are handed in. It knows nothing of streams,
and not what a message says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any, Final, assert_never

import base58

from p2pnode.bounded import BoundedMap
from p2pnode.errors import ProtocolError
from p2pnode.ids import PeerId
from p2pnode.protocols.crypto import Signer, peer_id_of, verify_again
from p2pnode.protocols.events import (
    CancelTimer,
    Command,
    Effect,
    Emit,
    Event,
    Fault,
    Received,
    Send,
    SetTimer,
    TimerFired,
)
from p2pnode.protocols.gossipsub.cache import NEVER, Kept, MessageCache, Promises, SeenIds
from p2pnode.protocols.gossipsub.commands import (
    ACCEPT,
    FAULT_WEIGHTS,
    Delivered,
    FaultName,
    GossipCommand,
    Join,
    Leave,
    PeerDown,
    PeerPaused,
    PeerUp,
    Publish,
    Validator,
)
from p2pnode.protocols.gossipsub.messages import (
    ENTRIES_MAX,
    ID_MAX,
    IDONTWANT_FROM,
    SEQNO_BYTES,
    TOPIC_MAX,
    Control,
    Message,
    Published,
    Rpc,
    decode_rpc,
    encode_publish,
    encode_subscriptions,
    key_fits,
    public_key_in,
    signed_bytes,
)
from p2pnode.protocols.gossipsub.parameters import Parameters
from p2pnode.protocols.gossipsub.scoring import Record, Standing

HEARTBEAT: Final = "heartbeat"
FORWARD: Final = "forward"
BACKOFF_SWEEP_S: Final = 30.0
WHOLE_MAX: Final = 64
"""RPCs that are known by their bytes."""
WHOLE_BYTES_MAX: Final = 2048
WHOLE_ENTRIES: Final = 8.0
"""What one of them counts of its sender's allowance: about the fields that it has."""
BROUGHT_MAX: Final = 64
"""Peers that are remembered of one duplicate key."""
OFFERED_LOOKED_AT: Final = 64
"""Messages that are looked at to know whether a peer lacks one. Where more are offered, some peer does."""
REPLAYS_FROM: Final = 3
"""So often a peer brings one key before it is charged. A node that starts anew, or whose memory of the key
ends a moment before ours, forwards to us what a stranger replays to it: that is no fault of its own."""
_SEQNO_MAX: Final = 1 << (8 * SEQNO_BYTES)

Draw = Callable[[], float]
"""A random number from 0 up to 1, seeded by whoever made it."""
Check = Callable[[bytes, Message], bool]
"""``(public key, message)``: whether the author with this key signed the message."""
Decode = Callable[[Any], Rpc]
"""As ``decode_rpc``; who runs many machines may have them share what each reads."""
Encode = Callable[[Control], Any]
"""As ``Control.encode``, or whatever else has its length and is known to ``Decode``."""


def holds(public_key: bytes, message: Message) -> bool:
    """Whether a message's Ed25519 signature is by this key."""
    return verify_again(public_key, message.signed(), message.signature)


class Counts(dict[str, int]):
    """What was counted, by name; 0 where nothing was. It adds up three times as fast as ``Counter``."""

    def __missing__(self, _name: str) -> int:
        return 0


class _Peer:
    """What is known of one connected peer.

    Of bytes and of entries it has a token bucket each, kept as the time at which what it sent is paid: later
    by one's cost for each, and never in the past. How far ahead that may be is the bucket's burst.
    """

    __slots__ = (
        "answered", "asked", "bit", "bytes_at", "dialled", "early", "entries_at", "flooded_at", "group", "id",
        "idontwant", "offers", "sends", "standing", "topics", "unwanted", "window",
    )  # fmt: skip

    def __init__(self, up: PeerUp, standing: Standing, bit: int) -> None:
        self.id, self.bit = up.peer, bit
        self.standing = standing
        self.topics: dict[bytes, None] = {}
        """Those that it said it is on, the oldest first."""
        self.early: dict[bytes, None] | None = None
        """Topics of ours for which it sent GRAFT while nothing could be sent to it."""
        self.unwanted: BoundedMap[bytes, float] | None = None
        """Messages that it doesn't want, and how long that holds."""
        self.window = -1
        """The heartbeat that the three counts below belong to."""
        self.offers = self.asked = self.answered = 0
        self.flooded_at = self.bytes_at = self.entries_at = -1e9
        self.renew(up)

    def renew(self, up: PeerUp) -> None:
        self.sends, self.idontwant, self.dialled, self.group = up.takes, up.idontwant, up.dialled, up.group

    def count_in(self, window: int) -> None:
        if window != self.window:
            self.window = window
            self.offers = self.asked = self.answered = 0


class _Topic:
    """A topic that this node is on. ``within`` are the bits of its mesh, ``on`` of all who are on it."""

    __slots__ = ("mesh", "name", "on", "validator", "within")

    def __init__(self, name: str, validator: Validator, on: int) -> None:
        self.name, self.validator, self.on = name, validator, on
        self.mesh: dict[PeerId, _Peer] = {}
        self.within = 0

    def take_in(self, peer: _Peer) -> None:
        self.mesh[peer.id] = peer
        self.within |= peer.bit

    def drop(self, peer: _Peer) -> bool:
        """False where it was not in the mesh."""
        self.within &= ~peer.bit
        return self.mesh.pop(peer.id, None) is not None


class GossipRouter:
    """See the module. Messages are ``bytes``, the stream is always 0, commands are ``GossipCommand``.

    ``seqno`` is the number of the first message, and higher at each start of a node: seconds since the epoch
    times 2^32 will do. ``known_topic`` says of which names it is remembered that a peer is on them.

    Each connected peer has a bit, so that a set of peers is a number: who has a message, who is in a mesh.
    Such sets are looked at for each copy of a message; sets of ids cost several times as much time and room.
    """

    def __init__(
        self,
        *,
        peer: PeerId,
        sign: Signer,
        draw: Draw,
        seqno: int,
        check: Check = holds,
        decode: Decode = decode_rpc,
        encode: Encode = Control.encode,
        parameters: Parameters | None = None,
        known_topic: Callable[[bytes], bool] = lambda _name: True,
    ) -> None:
        self._parameters = limits = parameters or Parameters()
        self._peer, self._raw_peer, self._sign, self._check = peer, _raw(peer), sign, check
        self._decode, self._encode = decode, encode
        self._draw, self._seqno, self._known_topic = draw, seqno, known_topic
        self._peers: dict[PeerId, _Peer] = {}
        self._taken = self._sending = self._dialled = self._blamed = 0
        """Bits of peers: all, those that take messages, those that we dialled, those that did wrong."""
        self._topics: dict[bytes, _Topic] = {}
        self._left: BoundedMap[PeerId, Record] = BoundedMap(limits.scores_kept_max)
        self._seen: SeenIds[bytes] = SeenIds(limits.seen_s, limits.seen_max)
        self._said: SeenIds[tuple[bytes, bytes]] = SeenIds(limits.duplicate_s, limits.duplicates_max)
        self._brought: BoundedMap[tuple[bytes, bytes], dict[PeerId, int]] = BoundedMap(limits.duplicates_max)
        self._cache = MessageCache(limits)
        self._promises = Promises(limits)
        self._whole: dict[Any, Kept] = {}
        """RPCs of one accepted message and nothing else: most copies are the same bytes."""
        self._forwards: dict[bytes, Kept] = {}
        """Accepted messages that are about to be forwarded."""
        self._forward_at = NEVER
        self._effects: list[Effect] = []
        self._control: dict[PeerId, Control] = {}
        self._beat_at = NEVER
        """When the heartbeat is set to."""
        self._must_beat_at = NEVER
        """When it has something to do besides offering messages and forgetting them."""
        self._opportunity_at = self._sweep_at = 0.0
        self._counts = Counts()
        self._bytes = self._copies = 0
        """The two counts that grow with each message."""
        # Allowances: see ``_Peer``. What is left of one is less than 1 when it is paid later than this.
        self._byte_s, self._entry_s = 1 / limits.bytes_per_s, 1 / limits.entries_per_s
        self._bytes_ahead_s = (limits.bytes_burst - 1) / limits.bytes_per_s
        self._entries_ahead_s = (limits.entries_burst - 1) / limits.entries_per_s

    # ---- what the role asks

    @property
    def counts(self) -> Counts:
        """What was done since the start; ``entries`` and ``checks`` are the work that peers caused.

        Under ``sent.`` stand messages, IWANT by RPCs, and IHAVE, GRAFT and PRUNE by topics.
        """
        found = Counts(self._counts)
        for name, count in (("bytes", self._bytes), ("duplicates", self._copies)):
            if count:
                found[name] = count
        return found

    def topic_peers(self, topic: str) -> tuple[PeerId, ...]:
        """The peers that said they are on a topic, sorted."""
        name = topic.encode()
        return tuple(sorted(peer.id for peer in self._peers.values() if name in peer.topics))

    def mesh(self, topic: str) -> tuple[PeerId, ...]:
        """Our neighbours on a topic, sorted; none where it isn't joined."""
        held = self._topics.get(topic.encode())
        return tuple(sorted(held.mesh)) if held is not None else ()

    def score(self, peer: PeerId, now: float) -> float:
        """A peer's score; 0 for who isn't connected."""
        known = self._peers.get(peer)
        return known.standing.score(now) if known is not None else 0.0

    def held(self) -> dict[str, int]:
        """How much is kept: counts, and bytes of messages."""
        return {
            "peers": len(self._peers),
            "topics": len(self._topics),
            "names": sum(len(peer.topics) for peer in self._peers.values()),
            "mesh": sum(len(topic.mesh) for topic in self._topics.values()),
            "unwanted": sum(len(peer.unwanted or ()) for peer in self._peers.values()),
            "backoffs": sum(len(each.backoffs) for each in self._records()),
            "seen": len(self._seen),
            "said": len(self._said),
            "forwards": len(self._forwards),
            "messages": len(self._cache),
            "message_bytes": self._cache.bytes,
            "promises": len(self._promises),
            "asked": self._promises.asked,
            "scores": len(self._left),
        }

    def _records(self) -> list[Record]:
        return [*(peer.standing.record for peer in self._peers.values()), *self._left.values()]

    # ---- the machine

    def handle(self, event: Event, now: float) -> Sequence[Effect]:
        """Never raises for what a peer sends."""
        # By type, not by patterns: this runs for each message. Streams are the shell's: ``HalfClosed`` and
        # ``Closed`` say nothing here.
        if type(event) is Received:
            return self.received(event.peer, event.message, now)
        if type(event) is TimerFired:
            if event.key == FORWARD and self._forward_at < NEVER:
                self._forward_at = NEVER
                self._forward_due(now)
            elif event.key == HEARTBEAT and self._beat_at < NEVER:
                self._beat_at = self._must_beat_at = NEVER
                self._plan(now, offers=self._heartbeat(now))
        elif type(event) is Command:
            self._command(event.value, now)
        return self._decided()

    def _decided(self) -> Sequence[Effect]:
        if self._control:
            self._say(self._control)
            self._control = {}
        if not self._effects:
            return ()
        taken, self._effects = self._effects, []
        return taken

    def _say(self, controls: dict[PeerId, Control]) -> None:
        for peer, control in controls.items():
            if (known := self._peers.get(peer)) is not None and known.sends:
                self._effects.append(Send(peer, 0, self._encode(control)))
                self._count_sent(control)

    def _count_sent(self, control: Control) -> None:
        for name, entries in (("ihave", control.ihave), ("graft", control.graft), ("prune", control.prune)):
            if entries:
                self._counts[f"sent.{name}"] += len(entries)
        if control.iwant:
            self._counts["sent.iwant"] += 1

    def _tell(self, peer: PeerId) -> Control:
        control = self._control.get(peer)
        if control is None:
            control = self._control[peer] = Control()
        return control

    def _fault(self, peer: _Peer, name: FaultName, now: float) -> None:
        """Something that an honest peer doesn't do, or hardly ever: it costs the peer its score as well."""
        self._counts[f"fault.{name}"] += 1
        self._blamed |= peer.bit
        if name == "refused":
            peer.standing.invalid(now)
        else:
            peer.standing.misbehaved(now)
        self._effects.append(Emit(Fault(peer.id, name, FAULT_WEIGHTS[name])))
        self._wake(now)  # its score may have fallen: the mesh is looked at

    # ---- commands

    def _command(self, command: GossipCommand, now: float) -> None:
        match command:
            case PeerUp():
                self._peer_up(command, now)
            case PeerPaused(peer=peer):
                if (paused := self._peers.get(peer)) is not None:
                    self._leave_meshes(paused, now)
                    paused.sends = False
                    self._sending &= ~paused.bit
            case PeerDown(peer=peer):
                if (gone := self._peers.pop(peer, None)) is not None:
                    self._leave_meshes(gone, now)
                    self._left.put(peer, gone.standing.record)
                    self._promises.forget(peer)
                    self._forget(gone.bit)
            case Join(topic=name, validator=validator):
                self._join(name, validator, now)
            case Leave(topic=name):
                self._leave(name.encode(), now)
            case Publish(topic=name, data=data):
                self._publish(name, data, now)
            case _:
                assert_never(command)

    def _peer_up(self, up: PeerUp, now: float) -> None:
        known = peer = self._peers.get(up.peer)
        if peer is None:
            bit = ~self._taken & (self._taken + 1)  # the lowest one that is free
            self._taken |= bit
            standing = Standing(self._parameters, self._left.pop(up.peer))
            peer = self._peers[up.peer] = _Peer(up, standing, bit)
            if not standing.record.is_blameless:
                self._blamed |= bit
            for kept in self._forwards.values():
                if kept.message.author == _raw(up.peer):
                    kept.have |= bit
        else:
            peer.renew(up)
            self._wake(now)
        self._sending = self._sending | peer.bit if up.takes else self._sending & ~peer.bit
        self._dialled = self._dialled | peer.bit if up.dialled else self._dialled & ~peer.bit
        if self._topics and up.takes:
            hello = encode_subscriptions(dict.fromkeys(self._topics, True))
            self._effects.append(Send(up.peer, 0, hello))
        if known is not None and up.takes and known.early:
            early, known.early = list(known.early), None
            self._heed_grafts(known, early, now)

    def _forget(self, bit: int) -> None:
        """The peer with this bit is gone, and another one may get it."""
        self._taken &= ~bit
        self._sending &= ~bit
        self._dialled &= ~bit
        self._blamed &= ~bit
        for joined in self._topics.values():
            joined.on &= ~bit
        self._cache.forget(bit)
        for kept in (
            *self._forwards.values(),
            *self._whole.values(),
        ):  # those that found no room are only here
            kept.have &= ~bit

    def _leave_meshes(self, peer: _Peer, now: float) -> None:
        for topic in self._topics.values():
            self._drop(topic, peer, now)

    def _drop(self, joined: _Topic, peer: _Peer, now: float) -> bool:
        """Take a peer out of a mesh without a word to it; false where it was in none."""
        if not joined.drop(peer):
            return False
        peer.standing.pruned()
        self._wake(now)
        return True

    def _join(self, name: str, validator: Validator, now: float) -> None:
        topic = name.encode()
        if not 0 < len(topic) <= TOPIC_MAX:
            msg = f"the name of a topic has 1 to {TOPIC_MAX} bytes, not {len(topic)}"
            raise ValueError(msg)
        if (joined := self._topics.get(topic)) is not None:
            joined.validator = validator
            return
        on = sum(peer.bit for peer in self._peers.values() if topic in peer.topics)
        self._topics[topic] = _Topic(name, validator, on)
        self._announce(topic, on=True)
        self._fill(topic, self._topics[topic], now)
        self._wake(now)

    def _leave(self, topic: bytes, now: float) -> None:
        left = self._topics.pop(topic, None)
        if left is None:
            return
        for peer in left.mesh.values():
            self._prune(topic, peer, now, self._parameters.unsubscribe_backoff_s)
        self._announce(topic, on=False)

    def _announce(self, topic: bytes, *, on: bool) -> None:
        told = encode_subscriptions({topic: on})
        self._effects += [Send(peer.id, 0, told) for peer in self._peers.values() if peer.sends]

    def _publish(self, name: str, data: bytes, now: float) -> None:
        topic = name.encode()
        joined = self._topics.get(topic)
        verdict = ACCEPT if joined is None else joined.validator(self._peer, data)
        if verdict.kind != "accept":
            self._counts["refused_own"] += 1
            return
        self._seqno = (self._seqno + 1) % _SEQNO_MAX
        seqno = self._seqno.to_bytes(SEQNO_BYTES, "big")
        signature = self._sign(signed_bytes(self._raw_peer, data, seqno, topic))
        message = Message.of(author=self._raw_peer, seqno=seqno, topic=topic, data=data, signature=signature)
        self._counts["published"] += 1
        self._seen.add(message.id, now)
        if verdict.key is not None:
            self._said.add((topic, verdict.key), now)
        kept = self._keep(message, now)
        if joined is not None:
            self._effects.append(Emit(Delivered(name, self._peer, data)))
        if self._parameters.flood_publish:
            least = self._parameters.score.publish_threshold
            on_topic = self._on(topic)
            receivers = [p for p in on_topic if self._is_fit(topic, p, now, least)]
        elif joined is not None and joined.mesh:
            receivers = list(joined.mesh.values())
        else:  # this is what 1.0 keeps a fanout for: we draw it anew for each message
            receivers = self._chosen(self._on(topic), self._parameters.degree)
        self._send(kept, receivers)

    # ---- what a peer sends

    def received(self, sender: PeerId, payload: Any, now: float) -> Sequence[Effect]:
        """What ``handle`` does with ``Received``."""
        peer = self._peers.get(sender)
        if peer is None:
            return ()
        size = len(payload)
        self._bytes += size
        bytes_at, entries_at = peer.bytes_at, peer.entries_at
        peer.bytes_at = bytes_at = (max(now, bytes_at)) + size * self._byte_s
        entries_at = max(entries_at, now)
        # One entry is for the RPC itself: one of no bytes is work, too.
        peer.entries_at = entries_at + self._entry_s
        if bytes_at > now + self._bytes_ahead_s or entries_at > now + self._entries_ahead_s:
            peer.entries_at = entries_at
            self._flood(peer, now)
        elif self._blamed & peer.bit and self._is_graylisted(peer, now):
            self._counts["graylisted"] += 1
        elif (known := self._whole.get(payload)) is not None and known.seen_until > now:
            peer.entries_at += WHOLE_ENTRIES * self._entry_s
            self._copies += 1
            known.have |= peer.bit
            if known.forward_at >= NEVER or self._lacking(known):
                return ()
            self._drop_forward(known)
        else:
            self._read(peer, payload, now)
        return self._decided()

    def _read(self, peer: _Peer, payload: Any, now: float) -> None:
        size = len(payload)
        try:
            rpc = self._decode(payload)
        except ProtocolError:
            peer.entries_at += min(size // 2, ENTRIES_MAX) * self._entry_s
            self._fault(peer, "malformed", now)
            return
        peer.entries_at += rpc.entries * self._entry_s
        self._counts["entries"] += rpc.entries
        most = self._parameters.entries_per_list
        if rpc.subscriptions:
            for change in islice(rpc.subscriptions, most):
                self._subscription(peer, change.topic, now, on=change.subscribe)
        if rpc.publish:
            accepted = [kept for sent in rpc.publish if (kept := self._sent(peer, sent, now)) is not None]
            if accepted and rpc.is_one_message and size <= WHOLE_BYTES_MAX:
                self._remember_whole(payload, accepted[0], now)
        if (control := rpc.control) is not None:
            if control.graft:
                self._heed_grafts(peer, [each.topic for each in islice(control.graft, most)], now)
            if control.prune:
                self._heed_prunes(peer, islice(control.prune, most), now)
            if control.ihave:
                self._heed_offers(peer, control.ihave, now)
            if control.iwant:
                self._heed_wants(peer, control.iwant, now)
            if control.idontwant:
                self._heed_unwanted(peer, control.idontwant, now)

    def _remember_whole(self, payload: Any, kept: Kept, now: float) -> None:
        kept.seen_until = now + self._parameters.seen_s
        if len(self._whole) >= WHOLE_MAX:
            del self._whole[next(iter(self._whole))]
        self._whole[payload] = kept

    def _flood(self, peer: _Peer, now: float) -> None:
        self._counts["dropped"] += 1
        if now - peer.flooded_at >= self._parameters.heartbeat_s:
            peer.flooded_at = now
            self._fault(peer, "flood", now)

    def _subscription(self, peer: _Peer, topic: bytes, now: float, *, on: bool) -> None:
        if not 0 < len(topic) <= TOPIC_MAX:
            return
        joined = self._topics.get(topic)
        if not on:
            peer.topics.pop(topic, None)
            if peer.early is not None:
                peer.early.pop(topic, None)
            if joined is not None:
                joined.on &= ~peer.bit
            if joined is not None and self._drop(joined, peer, now):
                # It may come back, and isn't grafted at once: coming and going costs others work.
                self._back_off(peer, topic, now, self._parameters.unsubscribe_backoff_s)
            return
        if topic in peer.topics or not (joined is not None or self._known_topic(topic)):
            return
        if not self._remember(peer, topic) or joined is None or not peer.sends:
            return
        if len(self._cache):
            self._wake(now)  # it may be offered what we have
        if len(joined.mesh) >= self._parameters.degree_low or peer.id in joined.mesh:
            return
        if not self._parameters.graft_at_once:
            return
        # At once, and not at the next heartbeat: whoever joins hears of adverts within a round trip.
        if not self._backs_off(peer, topic, now) and self._is_fit(topic, peer, now, 0.0):
            self._graft(topic, joined, peer, now)

    def _remember(self, peer: _Peer, topic: bytes) -> bool:
        """Note that a peer is on a topic: the oldest name goes, but those that we are on stay longest."""
        if topic not in peer.topics and len(peer.topics) >= self._parameters.topics_per_peer:
            gone = next((each for each in peer.topics if each not in self._topics), None)
            if gone is None:
                return False
            del peer.topics[gone]  # one that we are not on: no mesh of ours knows of it
        peer.topics[topic] = None
        if (joined := self._topics.get(topic)) is not None:
            joined.on |= peer.bit
        return True

    # ---- messages

    def _sent(self, peer: _Peer, sent: Published, now: float) -> Kept | None:
        """Look at a message that a peer sent; what is kept of it where it was accepted."""
        topics = sent.topics
        joined = self._topics.get(topics[0]) if topics else None
        if joined is None and len(topics) < 2:  # noqa: PLR2004  of more, one may be ours
            self._counts["off_topic"] += 1
            return None
        if sent.id is not None and self._seen.has(sent.id, now):
            self._duplicate(peer, self._cache.get(sent.id) or self._forwards.get(sent.id))
            return None
        if peer.standing.muted(now) or not peer.standing.checks.take(now):
            self._counts["unchecked"] += 1
            return None
        try:
            message = sent.message()
        except ProtocolError:
            if any(topic in self._topics for topic in islice(topics, self._parameters.entries_per_list)):
                self._fault(peer, "refused", now)
            return None
        return self._judge(peer, joined, message, now) if joined is not None else None

    def _duplicate(self, peer: _Peer, kept: Kept | None) -> None:
        self._copies += 1
        if kept is not None:
            kept.have |= peer.bit
            if kept.forward_at < NEVER and not self._lacking(kept):
                self._drop_forward(kept)

    def _judge(self, peer: _Peer, joined: _Topic, message: Message, now: float) -> Kept | None:
        """What is kept of a message on a topic of ours, where it is accepted."""
        public_key = public_key_in(message.author)
        if public_key is None or message.author == self._raw_peer or not key_fits(message, public_key):
            self._counts["ignored"] += 1  # implementations differ here: nobody is charged for it
            return None
        self._counts["checks"] += 1
        if not self._check(public_key, message):
            self._fault(peer, "refused", now)
            return None
        # From here on the id belongs to this message: nobody else can make one with it that passes.
        self._seen.add(message.id, now)
        self._promises.kept(message.id)
        if message.size >= IDONTWANT_FROM and self._parameters.idontwant:
            for other in joined.mesh.values():
                if other is not peer and other.idontwant:
                    self._tell(other.id).idontwant.append(message.id)
        author, data = peer_id_of(public_key), message.data
        verdict = joined.validator(author, data)
        if verdict.kind == "reject":
            self._fault(peer, "refused", now)
        elif verdict.kind == "ignore":
            self._counts["ignored"] += 1
        elif self._is_news(peer, message.topic, verdict.key, now):
            peer.standing.checks.spend(-1)  # only what came to nothing counts
            peer.standing.first(now)
            self._counts["delivered"] += 1
            kept = self._keep(message, now)
            kept.have = peer.bit
            if (at_author := self._peers.get(author)) is not None:
                kept.have |= at_author.bit
            self._effects.append(Emit(Delivered(joined.name, author, data)))
            self._forward(joined, kept, now)
            return kept
        return None

    def _is_news(self, peer: _Peer, topic: bytes, said: bytes | None, now: float) -> bool:
        """Whether nothing with this key was accepted on the topic of late. Who brings it twice replays it."""
        if said is None:
            return True
        key = (topic, said)
        news = self._said.add(key, now)
        brought: dict[PeerId, int] = {} if news else self._brought.get(key) or {}
        if len(brought) < BROUGHT_MAX or peer.id in brought:
            brought[peer.id] = brought.get(peer.id, 0) + 1
        if not news:
            self._counts["replays"] += 1
            if brought.get(peer.id, 0) >= REPLAYS_FROM:
                self._fault(peer, "replay", now)
        self._brought.put(key, brought)
        return news

    def _keep(self, message: Message, now: float) -> Kept:
        kept = self._cache.put(message, now)
        if kept.until > now:
            # Only who is outside the mesh is offered it. Where nobody is, the next thing is to forget it.
            joined = self._topics.get(message.topic)
            offered = joined is not None and self._outside(joined)
            self._set_beat(now + self._parameters.heartbeat_s if offered else kept.until)
        return kept

    def _send(self, kept: Kept, receivers: Iterable[_Peer]) -> None:
        message = kept.message
        small = message.size < IDONTWANT_FROM
        found = [peer for peer in receivers if peer.sends and (small or kept.id not in (peer.unwanted or ()))]
        if found:
            payload = message.encode()
            self._counts["sent.messages"] += len(found)
            for peer in found:
                kept.have |= peer.bit
                self._effects.append(Send(peer.id, 0, payload))

    def _forward(self, joined: _Topic, kept: Kept, now: float) -> None:
        """Soon: two neighbours that have a message at once would send it to one another."""
        limits = self._parameters
        at = now + limits.forward_delay_s * self._draw()
        lacking = joined.within & ~kept.have
        if not lacking:
            return
        if not limits.forward_delay_s or len(self._forwards) >= limits.forwards_max:
            self._send(kept, [each for each in joined.mesh.values() if each.bit & lacking])
            return
        kept.forward_at = at
        self._forwards[kept.id] = kept
        self._wake_forward(at)

    def _lacking(self, kept: Kept) -> int:
        """The neighbours that may not have the message."""
        joined = self._topics.get(kept.message.topic)
        return joined.within & ~kept.have if joined is not None else 0

    def _drop_forward(self, kept: Kept) -> None:
        """Everybody has it: nothing is left to wake up for, unless others wait."""
        kept.forward_at = NEVER
        del self._forwards[kept.id]
        if not self._forwards:
            self._forward_at = NEVER
            self._effects.append(CancelTimer(FORWARD))

    def _forward_due(self, now: float) -> None:
        waiting = self._forwards
        for kept in [each for each in waiting.values() if each.forward_at <= now]:
            kept.forward_at = NEVER
            del waiting[kept.id]
            joined = self._topics.get(kept.message.topic)
            if joined is not None and (lacking := joined.within & ~kept.have):
                self._send(kept, [each for each in joined.mesh.values() if each.bit & lacking])
        if waiting:
            self._wake_forward(min([each.forward_at for each in waiting.values()]))

    def _wake_forward(self, at: float) -> None:
        if at < self._forward_at:
            self._forward_at = at
            self._effects.append(SetTimer(FORWARD, at))

    # ---- control messages: nothing is kept or answered of a topic that we are not on

    def _heed_grafts(self, peer: _Peer, topics: Iterable[bytes], now: float) -> None:
        limits = self._parameters
        too_early = False
        for topic in dict.fromkeys(topics):
            joined = self._topics.get(topic)
            if joined is None or peer.id in joined.mesh:
                continue
            if not peer.sends:  # it has us in its mesh from now on, and hears the answer later
                peer.early = peer.early or {}
                peer.early[topic] = None
                continue
            full = limits.refuse_when_full and len(joined.mesh) >= limits.degree_high and not peer.dialled
            victim = self._crowding(joined, peer, now) if full else None
            full = full and victim is None
            if self._backs_off(peer, topic, now):
                too_early = True
            elif not full and self._is_fit(topic, peer, now, 0.0) and self._remember(peer, topic):
                if victim is not None:
                    joined.drop(victim)
                    self._prune(topic, victim, now, limits.prune_backoff_s)
                    self._wake(now)
                joined.take_in(peer)
                peer.standing.grafted(now)
                continue
            peer.entries_at = max(peer.entries_at, now) + limits.refused_graft_entries * self._entry_s
            self._back_off(peer, topic, now, limits.prune_backoff_s)
            self._tell(peer.id).prune[topic] = limits.prune_backoff_s
        if too_early:  # once, for however many topics: a node that starts anew knows of no back-off
            self._fault(peer, "graft", now)

    def _crowding(self, joined: _Topic, peer: _Peer, now: float) -> _Peer | None:
        """Who of a full mesh gives way to a peer from elsewhere: the worst of the group with most places.

        That group must have two more than the newcomer's, else the two would take places in turns. Peers
        without a group, and those that we dialled, keep theirs.
        """
        places = Counter(each.group for each in joined.mesh.values() if each.group is not None)
        if not places:
            return None
        group, most = places.most_common(1)[0]
        if most < (places[peer.group] if peer.group is not None else 0) + 2:
            return None
        crowd = [each for each in joined.mesh.values() if each.group == group and not each.dialled]
        return min(crowd, key=lambda each: each.standing.score(now), default=None)

    def _heed_prunes(self, peer: _Peer, prunes: Iterable[Any], now: float) -> None:
        limits = self._parameters
        for prune in prunes:
            joined = self._topics.get(prune.topic)
            if joined is None:
                continue
            self._drop(joined, peer, now)
            if peer.early is not None:
                peer.early.pop(prune.topic, None)
            wanted = prune.backoff or limits.prune_backoff_s
            self._back_off(peer, prune.topic, now, min(wanted, limits.backoff_max_s))

    def _heed_offers(self, peer: _Peer, offers: Sequence[Any], now: float) -> None:
        limits = self._parameters
        if self._blamed & peer.bit and not self._may_gossip(peer, now):
            return
        peer.count_in(int(now / limits.heartbeat_s))
        peer.offers += 1
        if peer.offers > limits.offers_per_heartbeat:
            self._counts["offers_ignored"] += 1
            return
        ids: Sequence[bytes] = [
            each
            for offer in islice(offers, limits.entries_per_list)
            if offer.topic in self._topics
            for each in islice(offer.ids, limits.ids_per_rpc)
        ]
        unknown = self._cache.note_offers(ids[: limits.ids_per_rpc], peer.bit)
        self._put_off_offers(now)
        if not unknown:
            return
        wanted: dict[bytes, None] = {}
        for message_id in self._seen.missing(unknown, now):
            if peer.asked + len(wanted) >= limits.wants_per_heartbeat:
                break
            if 0 < len(message_id) <= ID_MAX and self._promises.may_ask(message_id, peer.id, now):
                wanted[message_id] = None
        if wanted and peer.sends:
            peer.asked += len(wanted)
            for message_id in wanted:
                self._promises.ask(message_id, peer.id, now)
            watched = list(wanted)[int(self._draw() * len(wanted))]
            self._promises.watch(watched, peer.id, now)
            self._wake(now)
            self._tell(peer.id).iwant.extend(wanted)

    def _heed_wants(self, peer: _Peer, wants: Sequence[Any], now: float) -> None:
        limits = self._parameters
        if not wants or not peer.sends or not self._may_gossip(peer, now):
            return
        peer.count_in(int(now / limits.heartbeat_s))
        ids = (each for want in islice(wants, limits.entries_per_list) for each in want.ids)
        found: list[Message] = []
        for message_id in dict.fromkeys(islice(ids, limits.wants_per_rpc)):
            if peer.answered >= limits.answer_bytes_per_heartbeat:
                self._counts["wants_ignored"] += 1
                break
            message = self._cache.serve(message_id, peer.bit, now)
            if message is not None:
                peer.answered += message.size
                found.append(message)
        if found:
            self._counts["served"] += len(found)
            self._counts["sent.messages"] += len(found)
            self._effects.append(Send(peer.id, 0, encode_publish(found)))

    def _heed_unwanted(self, peer: _Peer, unwanted: Sequence[Any], now: float) -> None:
        limits = self._parameters
        if peer.unwanted is None:
            peer.unwanted = BoundedMap(limits.unwanted_max)
        ids = (each for entry in islice(unwanted, limits.entries_per_list) for each in entry.ids)
        for message_id in islice(ids, limits.ids_per_rpc):
            if 0 < len(message_id) <= ID_MAX:
                peer.unwanted.put(message_id, now + limits.promise_s)

    # ---- the mesh

    def _on(self, topic: bytes) -> list[_Peer]:
        return [peer for peer in self._peers.values() if peer.sends and topic in peer.topics]

    def _outside(self, joined: _Topic) -> int:
        """The peers on a topic of ours that are not in its mesh."""
        return joined.on & self._sending & ~joined.within

    def _is_small(self, topic: bytes, peer: _Peer) -> bool:
        """Whether fewer than ``degree_low`` others are on the topic: then nobody can be done without."""
        low = self._parameters.degree_low
        others = (each for each in self._peers.values() if each is not peer and topic in each.topics)
        return sum(1 for _ in islice(others, low)) < low

    def _is_fit(self, topic: bytes, peer: _Peer, now: float, least: float) -> bool:
        if peer.standing.record.is_blameless:
            return True
        return peer.standing.score(now) >= least or self._is_small(topic, peer)

    def _may_gossip(self, peer: _Peer, now: float) -> bool:
        if peer.standing.record.is_blameless and self._parameters.score.gossip_threshold <= 0:
            return True
        return peer.standing.score(now) >= self._parameters.score.gossip_threshold

    def _is_graylisted(self, peer: _Peer, now: float) -> bool:
        if peer.standing.score(now) >= self._parameters.score.graylist_threshold:
            return False
        shared = [topic for topic in peer.topics if topic in self._topics]
        return not any(self._is_small(topic, peer) for topic in shared)

    def _backs_off(self, peer: _Peer, topic: bytes, now: float) -> bool:
        until = peer.standing.record.backoffs.get(topic)
        return until is not None and until > now

    def _back_off(self, peer: _Peer, topic: bytes, now: float, seconds: float) -> None:
        if seconds > 0:
            backoffs = peer.standing.record.backoffs
            backoffs.put(topic, max(now + seconds, backoffs.get(topic) or 0.0))

    def _graft(self, topic: bytes, joined: _Topic, peer: _Peer, now: float) -> None:
        joined.take_in(peer)
        peer.standing.grafted(now)
        self._tell(peer.id).graft[topic] = None

    def _prune(self, topic: bytes, peer: _Peer, now: float, backoff_s: int) -> None:
        peer.standing.pruned()
        self._back_off(peer, topic, now, backoff_s)
        self._tell(peer.id).prune[topic] = backoff_s

    def _candidates(self, topic: bytes, joined: _Topic, now: float) -> list[_Peer]:
        outside = self._outside(joined)
        return [
            peer
            for peer in self._peers.values()
            if peer.bit & outside
            and not self._backs_off(peer, topic, now)
            and self._is_fit(topic, peer, now, 0.0)
        ]

    def _fill(self, topic: bytes, joined: _Topic, now: float) -> None:
        """Graft until the mesh has its degree, as far as there are peers."""
        missing = self._parameters.degree - len(joined.mesh)
        if missing > 0:
            among = self._candidates(topic, joined, now)
            for peer in self._chosen(among, missing, beside=joined.mesh.values()):
                self._graft(topic, joined, peer, now)

    def _chosen(self, among: list[_Peer], count: int, *, beside: Iterable[_Peer] = ()) -> list[_Peer]:
        """``count`` of these at random. P6: those come first whose group has the fewest places so far."""
        taken = [peer.group for peer in beside if peer.group is not None]
        if len(among) <= count or taken:
            self._shuffle(among)
            return among if len(among) <= count else _spread(among, count, Counter(taken))
        # Nobody has a place yet: mostly a few draws are enough, of which all come from elsewhere.
        chosen: list[_Peer] = []
        passed: list[_Peer] = []
        for last in range(len(among) - 1, -1, -1):
            at = int(self._draw() * (last + 1))
            peer, among[at] = among[at], among[last]
            if peer.group is not None and peer.group in taken:
                passed.append(peer)
                continue
            if peer.group is not None:
                taken.append(peer.group)
            chosen.append(peer)
            if len(chosen) == count:
                return chosen
        return chosen + _spread(passed, count - len(chosen), Counter(taken))

    def _shuffle(self, items: list[Any]) -> None:
        for last in range(len(items) - 1, 0, -1):
            other = int(self._draw() * (last + 1))
            items[last], items[other] = items[other], items[last]

    # ---- the heartbeat

    def _heartbeat(self, now: float) -> bool:
        """Whether messages are to be offered at the next one, too."""
        self._counts["heartbeats"] += 1
        for peer_id in self._promises.broken(now):
            if (peer := self._peers.get(peer_id)) is not None:
                self._fault(peer, "promise", now)
        for topic, joined in self._topics.items():
            self._mend(topic, joined, now)
        if now >= self._opportunity_at and self._parameters.opportunistic_peers:
            self._opportunity_at = now + self._parameters.opportunistic_s
            for topic, joined in self._topics.items():
                self._graft_better(topic, joined, now)
        offers = self._offer(now)
        self._cache.sweep(now)
        self._seen.sweep(now)
        self._said.sweep(now)
        if now >= self._sweep_at:
            self._sweep_at = now + BACKOFF_SWEEP_S
            for record in self._records():
                record.sweep(now)
        for peer in self._peers.values():
            if peer.unwanted is not None:
                _sweep(peer.unwanted, now)
        return offers

    def _mend(self, topic: bytes, joined: _Topic, now: float) -> None:
        limits = self._parameters
        if self._blamed & joined.within:
            for peer in [p for p in joined.mesh.values() if not self._is_fit(topic, p, now, 0.0)]:
                joined.drop(peer)
                self._prune(topic, peer, now, limits.prune_backoff_s)
        if len(joined.mesh) < limits.degree_low:
            self._fill(topic, joined, now)
        elif len(joined.mesh) > limits.degree_high:
            self._cut(topic, joined, now)
        outbound = (joined.within & self._dialled).bit_count()
        if len(joined.mesh) >= limits.degree_low and outbound < limits.degree_out:
            dialled = [peer for peer in self._candidates(topic, joined, now) if peer.dialled]
            for peer in self._chosen(dialled, limits.degree_out - outbound, beside=joined.mesh.values()):
                self._graft(topic, joined, peer, now)

    def _cut(self, topic: bytes, joined: _Topic, now: float) -> None:
        """Keep the best, of the others a random choice, and enough of those that we dialled."""
        limits = self._parameters
        peers = list(joined.mesh.values())
        rest = sorted(peers, key=lambda peer: -_level(peer.standing.score(now)))
        best: list[_Peer] = []
        while len(best) < limits.degree_score:
            level = _level(rest[0].standing.score(now))
            equals = [peer for peer in rest if _level(peer.standing.score(now)) == level]
            best += self._chosen(equals, limits.degree_score - len(best), beside=best)
            rest = [peer for peer in rest if peer not in best]
        chosen = self._chosen(list(rest), limits.degree - len(best), beside=best)
        kept = [*best, *chosen]
        lacking = limits.degree_out - sum(peer.dialled for peer in kept)
        spare = [peer for peer in rest if peer.dialled and peer not in chosen][: max(0, lacking)]
        if spare:
            kept = [*spare, *[p for p in kept if p.dialled], *[p for p in kept if not p.dialled]]
            kept = kept[: limits.degree]
        keep = {peer.id for peer in kept}
        for peer in peers:
            if peer.id not in keep:
                joined.drop(peer)
                self._prune(topic, peer, now, limits.prune_backoff_s)

    def _graft_better(self, topic: bytes, joined: _Topic, now: float) -> None:
        """v1.1, "Opportunistic Grafting": where the mesh serves us badly, try better peers."""
        limits = self._parameters
        scores = sorted(peer.standing.score(now) for peer in joined.mesh.values())
        if len(scores) < 2:  # noqa: PLR2004  the others are grafted anyhow
            return
        median = scores[len(scores) // 2]
        if median < limits.score.opportunistic_graft_threshold:
            better = [p for p in self._candidates(topic, joined, now) if p.standing.score(now) > median]
            for peer in self._chosen(better, limits.opportunistic_peers, beside=joined.mesh.values()):
                self._graft(topic, joined, peer, now)

    def _offer(self, now: float) -> bool:
        """Tell peers outside the mesh what we have and they may lack (v1.0, "Gossip Emission").

        Whether there is such a message at the next heartbeat, too.
        """
        limits = self._parameters
        again, until = False, now + limits.heartbeat_s
        for topic, offered in self._cache.offered(now).items():
            joined = self._topics.get(topic)
            if joined is None or not (outside := self._outside(joined)):
                continue
            lacking = 0
            for kept in offered:
                lack = outside if limits.offer_to_holders else outside & ~kept.have
                lacking |= lack
                again = again or (lack != 0 and kept.offered_until >= until)
            if not lacking:
                continue
            others = [peer for peer in self._peers.values() if peer.bit & outside]
            if self._blamed & outside:
                others = [peer for peer in others if self._may_gossip(peer, now)]
            count = max(limits.degree_lazy, int(limits.gossip_factor * len(others)))
            newest = offered[-limits.wants_per_rpc :]
            for peer in self._chosen(others, count):
                if bit := peer.bit & lacking:
                    bit = 0 if limits.offer_to_holders else bit
                    if ids := [kept.id for kept in newest if not kept.have & bit]:
                        self._tell(peer.id).ihave[topic] = ids
        return again

    def _may_offer(self, now: float) -> bool:
        """Whether a peer outside a mesh may lack a message that is offered; looks at some of them only."""
        for number, kept in enumerate(self._cache.newest_offered(now), start=1):
            joined = self._topics.get(kept.message.topic)
            if joined is not None and self._outside(joined) & ~kept.have:
                return True
            if number == OFFERED_LOOKED_AT:
                return True
        return False

    # ---- when the next heartbeat is

    def _wake(self, now: float) -> None:
        """Something is to be done at the next heartbeat."""
        self._beat_by(now + self._parameters.heartbeat_s)

    def _beat_by(self, at: float) -> None:
        self._must_beat_at = min(self._must_beat_at, at)
        self._set_beat(at)

    def _set_beat(self, at: float) -> None:
        """As ``_beat_by``, for offers, which may be put off again, and for what is only to be forgotten."""
        if at < self._beat_at:
            self._beat_at = at
            self._effects.append(SetTimer(HEARTBEAT, at))

    def _put_off_offers(self, now: float) -> None:
        """A peer has told what it has. Where nobody lacks anything now, no heartbeat is needed to offer it:
        of two peers that are in no mesh of one another, one offers, and not both."""
        beat_at, must = self._beat_at, self._must_beat_at
        if beat_at >= NEVER or must <= beat_at or self._parameters.offer_to_holders:
            return
        ends_at = self._cache.ends_at()
        if beat_at <= now or ends_at is None or ends_at <= beat_at or self._may_offer(now):
            return
        self._beat_at = min(must, ends_at)
        self._effects.append(SetTimer(HEARTBEAT, self._beat_at))

    def _plan(self, now: float, *, offers: bool) -> None:
        """After a heartbeat: set the timer for the next one that has something to do, if any has."""
        earliest = now + self._parameters.heartbeat_s
        if self._parameters.always_beat:
            self._beat_by(earliest)
            return
        if offers:
            self._set_beat(earliest)
        elif (ends_at := self._cache.ends_at()) is not None:
            self._set_beat(max(earliest, ends_at))
        if (due := self._due(now)) is not None:
            self._beat_by(max(earliest, due))

    def _due(self, now: float) -> float | None:
        moments = [self._promises.next_at()]
        for topic, joined in self._topics.items():
            size = len(joined.mesh)
            if size > self._parameters.degree_high:
                return now
            if size < self._parameters.degree_low:
                moments.append(self._next_candidate_at(topic, joined, now))
        return min((each for each in moments if each is not None), default=None)

    def _next_candidate_at(self, topic: bytes, joined: _Topic, now: float) -> float | None:
        """When a mesh that is too small can be filled: as soon as the first back-off is over."""
        outside = self._outside(joined)
        waits = [
            peer.standing.record.backoffs.get(topic) or now
            for peer in self._peers.values()
            if peer.bit & outside
        ]
        return min(waits, default=None)


def _spread(left: list[_Peer], count: int, places: Counter[str]) -> list[_Peer]:
    """``count`` of these in their order, whoever's group has the fewest places so far before the others."""
    chosen: list[_Peer] = []
    while len(chosen) < count:
        least = min(0 if peer.group is None else places[peer.group] for peer in left)
        passed: list[_Peer] = []
        for peer in left:
            if len(chosen) == count or (peer.group is not None and places[peer.group] > least):
                passed.append(peer)
                continue
            chosen.append(peer)
            if peer.group is not None:
                places[peer.group] += 1
        left = passed
    return chosen


def _raw(peer: PeerId) -> bytes:
    try:
        return bytes(base58.b58decode(peer))
    except ValueError:
        return peer.encode()


def _level(score: float) -> float:
    """Scores that differ less than this are equal: then P6 decides."""
    return round(score, 1)


def _sweep(times: BoundedMap[bytes, float], now: float) -> None:
    """Forget those that are over: all live equally long, so that the oldest are in front."""
    while len(times):
        first = next(iter(times))
        if (times.get(first) or 0.0) > now:
            return
        times.pop(first)
