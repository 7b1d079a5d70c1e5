"""RPCs of GossipSub as protocol buffers, what is signed of a message, and its id. See ``SPEC.md``.

Wire format: libp2p's ``pubsub/gossipsub`` specifications (pubsub, v1.1, v1.2). Names of topics are bytes
here: what is no UTF-8 is nobody's topic, and costs no exception.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from p2pnode.errors import ProtocolError
from p2pnode.protocols.protobuf import Field, Schema

PROTOCOL_1_2: Final = "/meshsub/1.2.0"
PROTOCOL_1_1: Final = "/meshsub/1.1.0"
PROTOCOLS: Final = (PROTOCOL_1_2, PROTOCOL_1_1)
"""The one we like better first. What 1.2 adds is IDONTWANT."""
RPC_MAX: Final = 256 * 1024
"""Largest RPC in bytes, either way."""
ENTRIES_MAX: Final = 6144
"""Fields of one RPC, nested ones included: room for the 5,000 message ids that a stock peer may offer."""
TOPIC_MAX: Final = 100
"""Bytes of a topic's name."""
ID_MAX: Final = 96
"""Bytes of a message's id: the longest peer id, and its sequence number."""
SEQNO_BYTES: Final = 8
DATA_MAX: Final = 64 * 1024
IDONTWANT_FROM: Final = 1024
"""Bytes of data from which IDONTWANT is sent and heeded: go-libp2p-pubsub's ``IDontWantMessageThreshold``."""
SIGN_PREFIX: Final = b"libp2p-pubsub:"
_KEY_PREFIX: Final = bytes.fromhex("08011220")
"""Protocol buffers' form of an Ed25519 public key: its type, and the length of what follows."""
_AUTHOR_PREFIX: Final = bytes.fromhex("0024") + _KEY_PREFIX
"""A peer id that holds such a key itself (the identity multihash)."""
_PUBLIC_KEY_BYTES: Final = 32
_FIELDS_OF_ONE: Final = 6
"""Of an RPC of one message without a key: the message, and five fields in it."""
_MORE: Final = 0x80
"""From this byte on, a length goes on in the next."""

SUBSCRIPTION: Final = Schema("SubOpts", Field("subscribe", 1, "bool"), Field("topic", 2, "bytes"))
MESSAGE: Final = Schema(
    "Message",
    Field("author", 1, "bytes"),
    Field("data", 2, "bytes"),
    Field("seqno", 3, "bytes"),
    Field("topics", 4, "bytes", many=True),
    Field("signature", 5, "bytes"),
    Field("key", 6, "bytes"),
)
IHAVE: Final = Schema("ControlIHave", Field("topic", 1, "bytes"), Field("ids", 2, "bytes", many=True))
IWANT: Final = Schema("ControlIWant", Field("ids", 1, "bytes", many=True))
GRAFT: Final = Schema("ControlGraft", Field("topic", 1, "bytes"))
# The peers that a PRUNE names (field 2) are left unread: a stranger does not make us dial.
PRUNE: Final = Schema("ControlPrune", Field("topic", 1, "bytes"), Field("backoff", 3, "uint64"))
IDONTWANT: Final = Schema("ControlIDontWant", Field("ids", 1, "bytes", many=True))
CONTROL: Final = Schema(
    "ControlMessage",
    Field("ihave", 1, IHAVE, many=True),
    Field("iwant", 2, IWANT, many=True),
    Field("graft", 3, GRAFT, many=True),
    Field("prune", 4, PRUNE, many=True),
    Field("idontwant", 5, IDONTWANT, many=True),
)
RPC: Final = Schema(
    "RPC",
    Field("subscriptions", 1, SUBSCRIPTION, many=True),
    Field("publish", 2, MESSAGE, many=True),
    Field("control", 3, CONTROL),
)


class Message:
    """A signed message, kept as the bytes of an RPC that publishes it and does nothing else.

    Its fields are those of the wire; it is never changed. ``data``, ``seqno`` and ``signature`` are cut out
    of the bytes at each use, so that a message that waits to be served is held once.
    """

    __slots__ = ("_data_at", "_signed_at", "_signed_end", "_wire", "author", "id", "key", "size", "topic")

    def __init__(  # noqa: PLR0917  it is called in one place besides ``of``, for each message
        self,
        wire: bytes,
        signed_at: int,
        signed_end: int,
        data_at: int,
        size: int,
        author: bytes,
        seqno: bytes,
        topic: bytes,
        key: bytes,
    ) -> None:
        """``wire`` is not looked at: where its parts begin and end is told besides."""
        self._wire, self._signed_at, self._signed_end, self._data_at = wire, signed_at, signed_end, data_at
        self.author, self.topic, self.key = author, topic, key
        self.size = size
        """Bytes of ``data``."""
        self.id = author + seqno
        """As stock peers compute it."""

    @classmethod
    def of(
        cls, *, author: bytes, seqno: bytes, topic: bytes, data: bytes, signature: bytes, key: bytes = b""
    ) -> Message:
        """The message of these fields."""
        signed = signed_fields(author, data, seqno, topic)
        parts = [signed, b"\x2a", _length(len(signature)), signature]
        if key:
            parts += [b"\x32", _length(len(key)), key]
        body = b"".join(parts)
        wire = b"".join((b"\x12", _length(len(body)), body))
        signed_at = len(wire) - len(body)
        signed_end = signed_at + len(signed)
        data_at = signed_end - len(data) - len(_length(len(topic))) - len(topic) - SEQNO_BYTES - 3
        return cls(wire, signed_at, signed_end, data_at, len(data), author, seqno, topic, key)

    @property
    def data(self) -> bytes:
        """What is said."""
        return self._wire[self._data_at : self._data_at + self.size]

    @property
    def seqno(self) -> bytes:
        """The message's number, of those of its author."""
        return self.id[len(self.author) :]

    @property
    def signature(self) -> bytes:
        """The author's, of :meth:`signed`."""
        key_bytes = len(self.key) and 1 + len(_length(len(self.key))) + len(self.key)
        field = self._wire[self._signed_end : len(self._wire) - key_bytes]
        at = 1
        while field[at] >= 0x80:  # noqa: PLR2004  the length goes on
            at += 1
        return field[at + 1 :]

    def signed(self) -> bytes:
        """What its author signed: the fields 1 to 4, as they stand in the message."""
        return SIGN_PREFIX + self._wire[self._signed_at : self._signed_end]

    def encode(self) -> bytes:
        """The bytes of an RPC that publishes this message and does nothing else."""
        return self._wire


def message_of(sent: Any) -> Message:
    """The message in an entry of ``publish``. Raises ``ProtocolError`` for a form that nobody sends."""
    topics = sent.topics
    if len(topics) != 1 or not 0 < len(topics[0]) <= TOPIC_MAX:
        raise ProtocolError("a message of other than one topic, or with a name that is too long")
    author, seqno, data = sent.author, sent.seqno, sent.data
    if not author or len(author) > ID_MAX - SEQNO_BYTES or len(seqno) != SEQNO_BYTES:
        raise ProtocolError("a message without an author or a sequence number of 8 bytes")
    if len(data) > DATA_MAX:
        msg = f"a message of {len(data)} bytes; {DATA_MAX} are allowed"
        raise ProtocolError(msg)
    return Message.of(
        author=author, seqno=seqno, topic=topics[0], data=data, signature=sent.signature, key=sent.key
    )


class Published:
    """An entry of ``publish`` that nothing is checked of yet but, at most, its form."""

    __slots__ = ("_sent", "id", "topics")

    def __init__(self, sent: Any, topics: Sequence[bytes], message_id: bytes | None) -> None:
        """``sent``: what the parser read, or a ``Message``."""
        self._sent, self.topics = sent, topics
        self.id = message_id
        """None where it is longer than any that is remembered."""

    def message(self) -> Message:
        """The message. Raises ``ProtocolError`` for a form that nobody sends."""
        if not isinstance(self._sent, Message):
            self._sent = message_of(self._sent)
        return self._sent


class Rpc:
    """What the bytes of an RPC say. ``control`` is None where it has none."""

    __slots__ = ("control", "entries", "publish", "subscriptions")

    def __init__(
        self, subscriptions: Sequence[Any], publish: Sequence[Published], control: Any | None, entries: int
    ) -> None:
        self.subscriptions, self.publish, self.control = subscriptions, publish, control
        self.entries = entries
        """Its fields, nested ones included."""

    @property
    def is_one_message(self) -> bool:
        """Whether it publishes one message and does nothing else."""
        return len(self.publish) == 1 and self.control is None and not self.subscriptions


def decode_rpc(payload: bytes) -> Rpc:
    """Count the fields of an RPC, then parse it. Raises ``ProtocolError``."""
    # Most RPCs are one message or one offer, and this reads them five times as fast.
    message = _only_message(payload)
    if message is not None:
        entry = Published(message, (message.topic,), message.id)
        return Rpc((), (entry,), None, _FIELDS_OF_ONE + bool(message.key))
    offer = _only_offer(payload)
    if offer is not None:
        return Rpc((), (), offer, 3 + len(offer.ihave[0].ids))
    entries = RPC.count(payload, entries_max=ENTRIES_MAX)
    body = RPC.parse(payload)
    publish = [Published(sent, sent.topics, _id_of(sent)) for sent in body.publish]
    return Rpc(body.subscriptions, publish, body.control if body.HasField("control") else None, entries)


def _id_of(sent: Any) -> bytes | None:
    author, seqno = sent.author, sent.seqno
    return author + seqno if len(author) + len(seqno) <= ID_MAX else None


def _only_message(payload: bytes) -> Message | None:
    """The message of an RPC that is just what ``Message.encode`` writes; None where it is anything else, or
    a message of 16 KiB or more, which are left to the parser."""
    try:
        at = 2 if payload[1] < _MORE else 3
        if payload[0] != 0x12 or at + _short(payload, 1) != len(payload):  # noqa: PLR2004  the field's key
            return None
        signed_at, author_at = at, at + 2
        at = author_at + payload[at + 1]
        author = payload[author_at:at]
        if payload[signed_at] != 0x0A or payload[at] != 0x12:  # noqa: PLR2004
            return None
        size = _short(payload, at + 1)
        data_at = at + (2 if size < _MORE else 3)
        at = data_at + size
        seqno_at, topic_at = at + 2, at + 4 + SEQNO_BYTES
        if payload[at:seqno_at] != b"\x1a\x08" or payload[topic_at - 2] != 0x22:  # noqa: PLR2004
            return None
        at = topic_at + payload[topic_at - 1]
        topic, signed_end = payload[topic_at:at], at
        if payload[at] != 0x2A or payload[at + 1] >= _MORE:  # noqa: PLR2004
            return None
        at += 2 + payload[at + 1]
        key = b""
        if at != len(payload):
            key = payload[at + 2 :]
            if payload[at] != 0x32 or not 0 < payload[at + 1] == len(key) < _MORE:  # noqa: PLR2004
                return None
    except IndexError:
        return None
    # A name or an author of 128 bytes or more has a longer length before it: neither is taken.
    if not (0 < len(author) <= ID_MAX - SEQNO_BYTES and 0 < len(topic) <= TOPIC_MAX and size >= 0):
        return None
    seqno = payload[seqno_at : topic_at - 2]
    return Message(payload, signed_at, signed_end, data_at, size, author, seqno, topic, key)


class _Offer:
    """A control message of one IHAVE: all that is read of one, as the parser gives it."""

    __slots__ = ("ids", "ihave", "topic")
    graft: Sequence[Any] = ()
    prune: Sequence[Any] = ()
    iwant: Sequence[Any] = ()
    idontwant: Sequence[Any] = ()

    def __init__(self, topic: bytes, ids: list[bytes]) -> None:
        self.topic, self.ids = topic, ids
        self.ihave = (self,)


def _only_offer(payload: bytes) -> _Offer | None:
    """The IHAVE of an RPC that says nothing else, as ``Control.encode`` writes it; None where it is anything
    else, or one of 16 KiB or more."""
    end, ids = len(payload), []
    try:
        size = _short(payload, 1)
        at = 2 if size < _MORE else 3
        if payload[0] != 0x1A or at + size != end or payload[at] != 0x0A:  # noqa: PLR2004
            return None
        size = _short(payload, at + 1)
        at += 2 if size < _MORE else 3
        if at + size != end or payload[at] != 0x0A or payload[at + 1] >= _MORE:  # noqa: PLR2004
            return None
        topic_at, at = at + 2, at + 2 + payload[at + 1]
        topic = payload[topic_at:at]
        while at < end:
            if payload[at] != 0x12 or payload[at + 1] >= _MORE:  # noqa: PLR2004
                return None
            id_at, at = at + 2, at + 2 + payload[at + 1]
            ids.append(payload[id_at:at])
    except IndexError:
        return None
    return _Offer(topic, ids) if at == end and len(ids) <= ENTRIES_MAX - 3 else None


def _short(payload: bytes, at: int) -> int:
    """A length of one byte, or of two where it needs two; below 0 for any other."""
    first = payload[at]
    if first < _MORE:
        return first
    second = payload[at + 1]
    return first - _MORE + (second << 7) if 0 < second < _MORE else -len(payload)


def signed_fields(author: bytes, data: bytes, seqno: bytes, topic: bytes) -> bytes:
    """The four fields that a signature covers, in the order and form of protocol buffers."""
    return b"".join(
        (
            b"\x0a", _length(len(author)), author,
            b"\x12", _length(len(data)), data,
            b"\x1a", _length(len(seqno)), seqno,
            b"\x22", _length(len(topic)), topic,
        )
    )  # fmt: skip


def signed_bytes(author: bytes, data: bytes, seqno: bytes, topic: bytes) -> bytes:
    """What the author's key signs (pubsub specification, section "Message Signing")."""
    return SIGN_PREFIX + signed_fields(author, data, seqno, topic)


def public_key_in(author: bytes) -> bytes | None:
    """The 32-byte Ed25519 key inside a peer id; None where it holds another kind, or a hash of a key."""
    if len(author) != len(_AUTHOR_PREFIX) + _PUBLIC_KEY_BYTES or not author.startswith(_AUTHOR_PREFIX):
        return None
    return author[len(_AUTHOR_PREFIX) :]


def key_fits(message: Message, public_key: bytes) -> bool:
    """Whether the key that travels with the message, if any, is the one inside its author's id."""
    return not message.key or message.key == _KEY_PREFIX + public_key


# ---- what we send


class Control:
    """What one peer is told besides messages; gathered while an event is handled."""

    __slots__ = ("graft", "idontwant", "ihave", "iwant", "prune")

    def __init__(
        self,
        *,
        graft: dict[bytes, None] | None = None,
        prune: dict[bytes, int] | None = None,
        ihave: dict[bytes, Sequence[bytes]] | None = None,
        iwant: list[bytes] | None = None,
        idontwant: list[bytes] | None = None,
    ) -> None:
        self.graft = {} if graft is None else graft
        self.prune = {} if prune is None else prune
        """Topic, and the back-off in seconds."""
        self.ihave = {} if ihave is None else ihave
        self.iwant = [] if iwant is None else iwant
        self.idontwant = [] if idontwant is None else idontwant

    def encode(self) -> bytes:
        """The bytes of an RPC."""
        parts: list[bytes] = []  # in the order of their numbers, as protocol buffers write them
        for topic, ids in self.ihave.items():
            parts.append(_field(b"\x0a", _field(b"\x0a", topic) + _each(ids, b"\x12")))
        if self.iwant:
            parts.append(_field(b"\x12", _each(self.iwant, b"\x0a")))
        parts += [_field(b"\x1a", _field(b"\x0a", topic)) for topic in self.graft]
        for topic, backoff in self.prune.items():
            # A number that is said is said where it is 0, too.
            parts.append(_field(b"\x22", _field(b"\x0a", topic) + b"\x18" + _length(backoff)))
        if self.idontwant:
            parts.append(_field(b"\x2a", _each(self.idontwant, b"\x0a")))
        return _field(b"\x1a", b"".join(parts))

    def size(self) -> int:
        """How many bytes :meth:`encode` makes, without making them. Ids have at most ``ID_MAX`` bytes."""
        body = 0
        for topic, ids in self.ihave.items():
            body += _field_size(_field_size(len(topic)) + _ids_size(ids))
        if self.iwant:
            body += _field_size(_ids_size(self.iwant))
        for topic in self.graft:
            body += _field_size(_field_size(len(topic)))
        for topic, backoff in self.prune.items():
            body += _field_size(_field_size(len(topic)) + 1 + len(_length(backoff)))
        if self.idontwant:
            body += _field_size(_ids_size(self.idontwant))
        return _field_size(body)


def encode_subscriptions(changes: Mapping[bytes, bool]) -> bytes:
    """An RPC that tells on which topics we are (true) or are no longer (false)."""
    told = [SUBSCRIPTION.make(subscribe=on, topic=topic) for topic, on in changes.items()]
    encoded: bytes = RPC.make(subscriptions=told).SerializeToString()
    return encoded


def encode_publish(messages: Iterable[Message]) -> bytes:
    """An RPC that publishes these: RPCs of one field each, one after another, are one RPC."""
    return b"".join(message.encode() for message in messages)


def _length(length: int) -> bytes:
    if length < 0x80:  # noqa: PLR2004  one byte
        return _SHORT[length]
    out = bytearray()
    while length >= 0x80:  # noqa: PLR2004
        out.append(length & 0x7F | 0x80)
        length >>= 7
    out.append(length)
    return bytes(out)


def _field(tag: bytes, value: bytes) -> bytes:
    return tag + _length(len(value)) + value


def _each(values: Sequence[bytes], tag: bytes) -> bytes:
    if len(set(map(len, values))) == 1:  # ids of one kind of author
        head = tag + _length(len(values[0]))
        return head + head.join(values)
    return b"".join([tag + _length(len(value)) + value for value in values])


def _field_size(length: int) -> int:
    return 2 + length if length < 0x80 else 1 + len(_length(length)) + length  # noqa: PLR2004


def _ids_size(ids: Sequence[bytes]) -> int:
    return sum(map(len, ids)) + 2 * len(ids)


_SHORT: Final = tuple(bytes((length,)) for length in range(0x80))
