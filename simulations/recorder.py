"""What a run tells: tables of measurements, the graph, and a hash of what happened.

Every table and column is declared here, in :data:`TABLES`. The *trace hash* is over application events (an
advert accepted, a lookup ended, a token delivered, a settlement …) in the order in which they happened. Two
runs with the same hash did the same, whatever messages carried it.

This module knows neither machines nor files. A column is an ``array`` of 8 bytes a value, so that a million
rows of five columns take 40 MB.
"""

from __future__ import annotations

import math
import struct
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final, Literal, TypeAlias

Kind: TypeAlias = Literal["int", "float", "str", "bool"]
Value: TypeAlias = int | float | str | bool
TABLES: Final[Mapping[str, Mapping[str, Kind]]] = {
    # One row a published message. `audience`: nodes online and subscribed then, without the origin.
    "published": {
        "message": "int", "topic": "str", "origin": "int", "at_s": "float", "bytes": "int", "audience": "int",
    },
    # One row for the first delivery of a message at a node. `message` is the number in `published`.
    "messages": {"message": "int", "node": "int", "at_s": "float", "delay_s": "float", "hops": "int"},
    # One row a lookup. `kind`: hosts, peers, providers. `failed`: peers that did not answer.
    "lookups": {
        "at_s": "float", "node": "int", "kind": "str", "seconds": "float", "hops": "int", "asked": "int",
        "found": "int", "failed": "int",
    },
    # One row a question. `outcome`: done, failed, refused, no_host, cut. `hosts`: how many served it.
    # `gap_s`: the longest wait inside of the answer. `fraud`: what a host did wrong, "" for nothing.
    "sessions": {
        "at_s": "float", "client": "int", "host": "int", "outcome": "str", "first_token_s": "float",
        "total_s": "float", "tokens_in": "int", "tokens_out": "int", "hosts": "int", "gap_s": "float",
        "cost": "int", "fraud": "str", "found": "bool",
    },
    # One row a change of the ledger, in token units. `kind`: mint, deposit, settle, refund, withdraw, slash,
    # stake. `total`: all the money that the ledger holds after it.
    "ledger": {
        "at_s": "float", "kind": "str", "payer": "int", "payee": "int", "amount": "int", "fee": "int",
        "total": "int",
    },
    # One row a turn of a conversation: how long it took until a quorum had it, NaN where the machine was lost
    # before. `weak`: the quorum counts the user's own machine.
    "kept": {"at_s": "float", "node": "int", "seconds": "float", "weak": "bool"},
    # One row for a user who is back on a new machine: how long it took to find the conversation. `turns`: of
    # those that a quorum had; `lost`: of these, how many were not found.
    "recoveries": {"at_s": "float", "node": "int", "seconds": "float", "turns": "int", "lost": "int"},
    # One row a node, at the end. `hosts_known_s`: seconds from its first search to three verified hosts.
    # `gas`: what a host paid for it, in token units; `left`: how often a session was left with it;
    # `postponed`: settlements that waited for cheaper gas. `turns`: what a user wrote; `turns_lost`: of those
    # that a quorum had, how many the last machine did not find.
    "nodes": {
        "node": "int", "role": "str", "region": "str", "nat": "str", "joined_at_s": "float",
        "online_s": "float", "starts": "int", "published": "int", "delivered": "int", "duplicates": "int",
        "ihave": "int", "iwant": "int", "graft": "int", "prune": "int", "messages_sent": "int",
        "bytes_sent": "int", "bytes_received": "int", "cpu_s": "float", "mesh": "int", "book": "int",
        "hosts_known_s": "float", "served": "int", "tokens": "int", "earned": "int", "spent": "int",
        "costs": "int", "gas": "int", "left": "int", "postponed": "int", "turns": "int", "turns_lost": "int",
    },
    # A figure as it was at a time: how many nodes are online, how many entries the books hold …
    "samples": {"at_s": "float", "name": "str", "value": "float"},
}  # fmt: skip
CHECKPOINT_EVENTS: Final = 256
"""Events between two checkpoints: two runs that differ are compared by these."""
_FLUSH_BYTES: Final = 1 << 16
_TEXTS_MAX: Final = 1 << 14


class Column:
    """The values of one column: an array of numbers; for text, an array of places in ``words``."""

    __slots__ = ("_places", "kind", "values", "words")

    def __init__(self, kind: Kind) -> None:
        self.kind: Kind = kind
        self.values: array[int] | array[float] = array("d" if kind == "float" else "q")
        self.words: list[str] = []
        """Each text once, in the order in which it came."""
        self._places: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Iterator[Value]:
        match self.kind:
            case "str":
                return (self.words[int(place)] for place in self.values)
            case "bool":
                return (value != 0 for value in self.values)
            case "int" | "float":
                return iter(self.values)

    def appender(self) -> Callable[[Value], None]:
        """The quickest way to add a value. It raises ``TypeError`` for one of another kind."""
        return self._append_text if self.kind == "str" else self.values.append  # type: ignore[return-value]

    def _append_text(self, value: Value) -> None:
        if not isinstance(value, str):
            msg = f"a text was expected, not {value!r}"
            raise TypeError(msg)
        place = self._places.get(value)
        if place is None:
            place = self._places[value] = len(self.words)
            self.words.append(value)
        self.values.append(place)


class Table:
    """A table: columns of the same length, by name."""

    __slots__ = ("_appenders", "_empty", "columns", "name")

    def __init__(self, name: str, columns: Mapping[str, Kind]) -> None:
        self.name = name
        self.columns = {column: Column(kind) for column, kind in columns.items()}
        self._appenders = {column: each.appender() for column, each in self.columns.items()}
        self._empty = {column: _EMPTY[kind] for column, kind in columns.items()}

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, column: str) -> Column:
        return self.columns[column]

    def add(self, values: Mapping[str, Value]) -> None:
        """Add a row. A column left out gets 0, "" or, a float, NaN. Raises ``KeyError``, ``TypeError``."""
        for column in values:
            if column not in self.columns:
                msg = f"the table {self.name} has no column {column!r}: known are {', '.join(self.columns)}"
                raise KeyError(msg)
        row = {**self._empty, **values}
        for column, value in row.items():
            if self.columns[column].kind != "str" and isinstance(value, str):
                msg = f"{self.name}.{column} takes numbers, not {value!r}"
                raise TypeError(msg)
        for column, append in self._appenders.items():
            append(row[column])

    def appender(self) -> Callable[..., None]:
        """A function that adds a row. It takes the values of all columns in their order, and is quick."""
        appends = tuple(self._appenders.values())

        def add(*values: Value) -> None:
            for append, value in zip(appends, values, strict=True):
                append(value)

        return add

    def digest(self) -> bytes:
        """A hash of all its values, equal where the tables are equal bit for bit."""
        found = blake2b(self.name.encode(), digest_size=32)
        for name, column in self.columns.items():
            words = "\0".join(column.words)
            found.update(f"\0{name}\0{len(column)}\0{words}\0".encode())
            found.update(column.values.tobytes())
        return found.digest()


_EMPTY: Final[Mapping[Kind, Value]] = {"int": 0, "float": math.nan, "str": "", "bool": False}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The trace after so many events: the last one's time, and the first 8 bytes of the hash."""

    events: int
    at_s: float
    digest: bytes


class Recorder:
    """What one run tells. Nodes are numbers from 0; times are simulated seconds.

    ``heard`` is called with each event as it happens: its time, node, kind and values.
    """

    def __init__(
        self, heard: Callable[[float, int, str, tuple[Value | bytes, ...]], None] | None = None
    ) -> None:
        self._heard = heard
        self.tables: dict[str, Table] = {name: Table(name, columns) for name, columns in TABLES.items()}
        self.edges: list[tuple[int, int, str]] = []
        """Of the graph at the end: two nodes, and what joins them."""
        self.counts: dict[str, int] = {}
        """How many events of each kind there were."""
        self.checkpoints: list[Checkpoint] = []
        self._hash = blake2b(digest_size=32)
        self._waiting = bytearray()
        self._texts: dict[str, bytes] = {}
        self._events = 0
        self._sample = self.tables["samples"].appender()

    def row(self, table: str, **values: Value) -> None:
        """Add a row.

        Raises ``KeyError`` for an unknown table or column, ``TypeError`` for a value of another kind.
        """
        if table not in self.tables:
            msg = f"there is no table {table!r}: known are {', '.join(self.tables)}"
            raise KeyError(msg)
        self.tables[table].add(values)

    def appender(self, table: str) -> Callable[..., None]:
        """A quick way to add rows of one table: it takes the values of all columns, in their order."""
        return self.tables[table].appender()

    def sample(self, at_s: float, name: str, value: float) -> None:
        """A figure as it is now."""
        self._sample(at_s, name, value)

    def edge(self, node: int, other: int, kind: str = "mesh") -> None:
        """An edge of the graph at the end of the run."""
        self.edges.append((node, other, kind))

    def event(self, at_s: float, node: int, kind: str, *values: Value | bytes) -> None:
        """Something that happened to an application, for the trace hash.

        ``at_s`` counts as whole microseconds.
        """
        waiting = self._waiting
        waiting.extend(_HEAD.pack(round(at_s * 1_000_000), node, len(values)))
        waiting.extend(self._text(kind))
        for value in values:
            if type(value) is str:
                waiting.extend(self._text(value))
            else:
                _pack(waiting, value)
        self.counts[kind] = self.counts.get(kind, 0) + 1
        if self._heard is not None:
            self._heard(at_s, node, kind, values)
        self._events += 1
        if self._events % CHECKPOINT_EVENTS == 0:
            self._flush()
            self.checkpoints.append(Checkpoint(self._events, at_s, self._hash.digest()[:8]))
        elif len(waiting) > _FLUSH_BYTES:
            self._flush()

    @property
    def trace_hash(self) -> str:
        """The hash of all events so far, in hexadecimal."""
        self._flush()
        return self._hash.hexdigest()

    @property
    def tables_hash(self) -> str:
        """A hash over all tables, in hexadecimal. It covers what no event tells, such as message counts."""
        found = blake2b(digest_size=32)
        for table in self.tables.values():
            found.update(table.digest())
        return found.hexdigest()

    def _text(self, text: str) -> bytes:
        """A text as ``_pack`` has it. Kinds and peers are told of again and again."""
        packed = self._texts.get(text)
        if packed is None:
            into = bytearray()
            _pack(into, text)
            packed = bytes(into)
            if len(self._texts) < _TEXTS_MAX:
                self._texts[text] = packed
        return packed

    def _flush(self) -> None:
        self._hash.update(self._waiting)
        self._waiting.clear()


_HEAD: Final = struct.Struct(">qqB")
_SIZE: Final = struct.Struct(">BI")
_REAL: Final = struct.Struct(">Bd")


def _pack(into: bytearray, value: Value | bytes) -> None:
    """Append a value in a form that no other value has."""
    match value:
        case str():
            data = value.encode()
            into.extend(_SIZE.pack(1, len(data)) + data)
        case bytes():
            into.extend(_SIZE.pack(2, len(value)) + value)
        case float():
            into.extend(_REAL.pack(3, value))
        case int():  # bool too: True is 1
            data = value.to_bytes((value.bit_length() + 8) // 8, "big", signed=True)
            into.extend(_SIZE.pack(4, len(data)) + data)
