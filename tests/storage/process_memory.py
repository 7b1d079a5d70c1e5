"""What another process has in its memory, and what lies in a folder: searched for bytes. Linux only."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

_CHUNK = 8 << 20
_MAPPED = re.compile(r"([0-9a-f]+)-([0-9a-f]+) r\S+ \S+ \S+ \S+ *(.*)")
_KERNELS = ("[vvar", "[vsyscall]")
"""Pages that the kernel lends to every process, some of them unreadable."""
_LOST_MAX = 16 << 20
"""Bytes of regions that went away between the look at the list and the look at them."""


def found_in_memory(pid: int, needles: Mapping[str, bytes]) -> set[str]:
    """Which of ``needles`` are in any readable region. Raises ``PermissionError``."""
    found: set[str] = set()
    lost = 0
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for first, last in _regions(pid):
            try:
                for piece in _pieces(memory, first, last, max(map(len, needles.values()))):
                    found.update(name for name, needle in needles.items() if needle in piece)
            except OSError:
                lost += last - first
    assert lost <= _LOST_MAX, f"{lost} bytes could not be read"
    return found


def found_in_files(folder: Path, needles: Mapping[str, bytes]) -> set[str]:
    """Which of ``needles`` are in any file in or below ``folder``, or in the name of one."""
    found: set[str] = set()
    for path in folder.rglob("*"):
        data = str(path.relative_to(folder)).encode() + (b"\0" + path.read_bytes() if path.is_file() else b"")
        found.update(name for name, needle in needles.items() if needle in data)
    return found


def encoded(texts: Mapping[str, str]) -> dict[str, bytes]:
    """Each text as a program may hold it."""
    needles = {}
    for name, text in texts.items():
        for encoding in ("utf-8", "utf-16-le", "utf-16-be"):
            needles[f"{name} in {encoding}"] = text.encode(encoding)
    return needles


def _regions(pid: int) -> Iterator[tuple[int, int]]:
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        mapped = _MAPPED.match(line)
        if mapped is not None and not mapped[3].startswith(_KERNELS):
            yield int(mapped[1], 16), int(mapped[2], 16)


def _pieces(memory: object, first: int, last: int, overlap: int) -> Iterator[bytes]:
    """A region a piece at a time; each repeats the end of the one before."""
    tail = b""
    while first < last:
        memory.seek(first)  # type: ignore[attr-defined]
        piece = memory.read(min(_CHUNK, last - first))  # type: ignore[attr-defined]
        if not piece:
            return
        yield tail + piece
        tail, first = piece[-overlap:], first + len(piece)
