"""Inputs made from valid ones: by bytes, by values of msgpack and JSON, by words of a text. Reproducible.

Input ``number`` of a target is the same in every run with the same ``FUZZ_SEED``; whatever fails names
target, seed, number and the bytes. Knows nothing of what is attacked.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgpack

SEED: Final = int(os.environ.get("FUZZ_SEED", "1"))
LENGTH_MAX: Final = 1 << 17
_BYTES: Final = (0, 1, 0x7F, 0x80, 0xC0, 0xC1, 0xDF, 0xFF)
_NUMBERS: Final = (
    -(2**63),
    -1,
    0,
    1,
    2,
    127,
    128,
    255,
    256,
    2**16,
    2**31,
    2**32 - 1,
    2**53,
    2**63 - 1,
    2**64 - 1,
)
_TEXTS: Final = (
    "",
    "\x00",
    "\x1b[31m",
    "\u202e",
    "\r\n",
    "\ud7ff",
    "é",
    "../" * 8,
    "%s",
    "a" * 300,
    "-1",
    "1e9",
    "0x",
)
_VALUES: Final[tuple[Any, ...]] = (
    None,
    True,
    False,
    0.5,
    float("inf"),
    b"",
    b"\xff" * 33,
    [],
    {},
    [[[]]],
    {"t": "x"},
)
_WORDS: Final = (
    b"\xff",
    b"\x00",
    b"\r\n",
    b"\r\n\r\n",
    b" ",
    b"/",
    b":",
    b"%",
    b"\xc3\x28",
    b"9" * 30,
    b"-1",
    b"A" * 500,
)


@dataclass(frozen=True, slots=True)
class Input:
    """One of a target's inputs."""

    target: str
    number: int
    data: bytes

    def __str__(self) -> str:
        return f"{self.target} FUZZ_SEED={SEED} input {self.number}: {self.data[:2000].hex()}"

    @contextlib.contextmanager
    def told(self) -> Iterator[None]:
        """An error inside names this input."""
        try:
            yield
        except Exception as error:
            error.add_note(str(self))
            raise


Mutate = Callable[[random.Random, bytes, Sequence[bytes]], bytes]


def by_bytes(rng: random.Random, data: bytes, corpus: Sequence[bytes]) -> bytes:
    """Bits, bytes, pieces: changed, inserted, repeated, cut, spliced."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at = rng.randrange(len(out) + 1)
        match rng.randrange(8):
            case 0 if at < len(out):
                out[at] ^= 1 << rng.randrange(8)
            case 1 if at < len(out):
                out[at] = rng.choice(_BYTES)
            case 2:
                out[at:at] = rng.choice(_WORDS)
            case 3:
                del out[at : at + rng.choice((1, 2, 8, 64))]
            case 4:
                out[at:at] = out[at : at + rng.randrange(1, 64)] * rng.choice((1, 2, 50))
            case 5:
                other = rng.choice(corpus)
                cut = rng.randrange(len(other) + 1)
                out[at:] = other[cut:]
            case 6:
                del out[at:]
            case _:
                out[at : at + 8] = rng.randbytes(rng.randrange(9))
    return bytes(out[:LENGTH_MAX])


def by_values(rng: random.Random, value: Any) -> Any:
    """The same tree with one of its values another."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        match rng.randrange(8):
            case 0:
                return {name: each for name, each in value.items() if name != key}
            case 1:
                return {**value, rng.choice(_TEXTS): rng.choice(_VALUES)}
            case _:
                return {**value, key: by_values(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.85:
        at = rng.randrange(len(value))
        if rng.random() < 0.2:
            return value * rng.choice((0, 2, 40))
        return [*value[:at], by_values(rng, value[at]), *value[at + 1 :]]
    match rng.randrange(6):
        case 0:
            return rng.choice(_NUMBERS)
        case 1:
            return rng.choice(_TEXTS)
        case 2:
            return rng.choice(_VALUES)
        case 3 if isinstance(value, bytes):
            return by_bytes(rng, value, (value,))
        case 4 if isinstance(value, int) and not isinstance(value, bool):
            return value + rng.choice((-1, 1))
        case 5 if isinstance(value, str):
            return by_bytes(rng, value.encode("utf-8", "replace"), (value.encode(),)).decode(
                "utf-8", "replace"
            )
        case _:
            return rng.choice((value, rng.choice(_VALUES)))


def msgpack_values(rng: random.Random, data: bytes, corpus: Sequence[bytes]) -> bytes:
    """A msgpack value with other values in it; half of the time bytes are changed as well or instead."""
    if rng.random() < 0.4:
        return by_bytes(rng, data, corpus)
    try:
        changed = msgpack.packb(by_values(rng, msgpack.unpackb(data, strict_map_key=False)))
    except (ValueError, TypeError, OverflowError, RecursionError):
        return by_bytes(rng, data, corpus)
    return by_bytes(rng, changed, corpus) if rng.random() < 0.1 else bytes(changed)


def json_values(rng: random.Random, data: bytes, corpus: Sequence[bytes]) -> bytes:
    """The same for JSON."""
    if rng.random() < 0.3:
        return by_bytes(rng, data, corpus)
    try:
        return json.dumps(by_values(rng, json.loads(data))).encode()
    except (ValueError, TypeError, OverflowError, RecursionError):
        return by_bytes(rng, data, corpus)


def head_and_body(rng: random.Random, data: bytes, corpus: Sequence[bytes]) -> bytes:
    """HTTP: mostly in its lines, where the words stand."""
    head, end, body = data.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    for _ in range(rng.choice((1, 1, 2))):
        at = rng.randrange(len(lines))
        match rng.randrange(5):
            case 0:
                lines.insert(at, rng.choice(lines))
            case 1 if len(lines) > 1:
                del lines[at]
            case _:
                lines[at] = by_bytes(rng, lines[at], lines)
    return by_bytes(rng, data, corpus) if rng.random() < 0.1 else b"\r\n".join(lines) + end + body


def inputs(
    target: str,
    count: int,
    corpus: Sequence[bytes],
    mutate: Mutate = by_bytes,
    pack: Callable[[bytes], bytes] = bytes,
) -> Iterator[Input]:
    """``count`` of them; the corpus itself comes first, unchanged. ``pack`` puts what was changed in a frame.

    Now and then the frame is changed instead, or a valid one stands before.
    """
    for number in range(count):
        rng = random.Random(f"{target} {SEED} {number}")
        if number < len(corpus):
            data = pack(corpus[number])
        else:
            data = pack(mutate(rng, rng.choice(corpus), corpus))
            if pack is not bytes:
                if rng.random() < 0.4:
                    data = pack(rng.choice(corpus)) + data
                if rng.random() < 0.15:
                    data = by_bytes(rng, data, corpus)
        yield Input(target, number, data)


@dataclass
class Tally:
    """What became of a target's inputs."""

    target: str
    outcomes: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    def __str__(self) -> str:
        shares = ", ".join(f"{kind} {count}" for kind, count in self.outcomes.most_common(6))
        return f"{self.target}: {self.outcomes.total()} inputs in {self.seconds:.1f} s: {shares}"
