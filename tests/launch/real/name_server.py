"""A name server on loopback that knows no name, and remembers which ones it was asked for."""

from __future__ import annotations

import socket
from typing import Any

import trio

_PORT = 53
_HEAD = 12
_NO_SUCH_NAME = b"\x81\x83"


def name_in(question: bytes) -> str:
    """The name that a DNS question asks for."""
    labels, place = [], _HEAD
    while place < len(question) and (length := question[place]):
        labels.append(question[place + 1 : place + 1 + length].decode(errors="replace"))
        place += 1 + length
    return ".".join(labels).lower()


async def serve_names(asked: set[str], *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
    """Answer each question with "no such name", and add the name to ``asked``."""
    with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        await udp.bind(("127.0.0.1", _PORT))
        task_status.started()
        while True:
            question, peer = await udp.recvfrom(512)
            asked.add(name_in(question))
            end = question.find(b"\0", _HEAD) + 5
            await udp.sendto(
                question[:2] + _NO_SUCH_NAME + question[4:6] + bytes(6) + question[_HEAD:end], peer
            )
