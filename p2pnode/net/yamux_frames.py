"""The 12-byte header of yamux (hashicorp/yamux ``spec.md``), and the numbers of the protocol.

Knows nothing of connections or streams.
"""

from __future__ import annotations

import struct
from typing import Final

HEADER: Final = struct.Struct("!BBHII")  # version, type, flags, stream id, length
HEADER_BYTES: Final = HEADER.size

DATA: Final = 0
WINDOW_UPDATE: Final = 1
PING: Final = 2
GO_AWAY: Final = 3

SYN: Final = 1
ACK: Final = 2
FIN: Final = 4
RST: Final = 8

GO_AWAY_NORMAL: Final = 0
GO_AWAY_PROTOCOL_ERROR: Final = 1

WINDOW_INITIAL: Final = 256 * 1024
"""Both sides start each stream with this credit; the protocol fixes it."""
WINDOW_LIMIT: Final = 0xFFFFFFFF
"""No window can hold more: its size is a number of 32 bits."""


def frame(kind: int, flags: int, stream_id: int, length: int) -> bytes:
    """One header; the body of a DATA frame follows it."""
    return HEADER.pack(0, kind, flags, stream_id, length)
