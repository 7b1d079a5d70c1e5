"""A unix socket for other processes of the same user: in a folder that nobody else may enter.

The folder lies with the system's temporary files, for a socket's address has at most 107 bytes, and a path
in a data dir may be longer. A file in the data dir says where it is.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import trio

from p2pnode.platforms import user_id
from p2pnode.sockets import unix_socket

_BACKLOG: Final = 32


class PrivateSocket:
    """Listens from the beginning; ``run`` serves, one task a connection, and ends it."""

    def __init__(self, name: str) -> None:
        """``name`` is that of the socket's file. Raises ``OSError``."""
        self._socket = unix_socket()
        self._folder = Path(tempfile.mkdtemp(prefix="p2pnode-"))  # made with mode 0700
        self.path = self._folder / name
        self._accepting = trio.CancelScope()
        self._socket.bind(str(self.path))
        self._socket.listen(_BACKLOG)

    async def run(
        self,
        serve: Callable[[trio.SocketStream], Awaitable[None]],
        *,
        task_status: Any = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve until cancelled, or until :meth:`stop` and the end of each connection."""
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(self._socket))
        async with trio.open_nursery() as connections:
            try:
                with self._accepting:
                    await trio.serve_listeners(
                        serve, [listener], handler_nursery=connections, task_status=task_status
                    )
            finally:
                self.close()

    def close(self) -> None:
        """The socket is gone. :meth:`run` does so when it ends; this is for one that never ran."""
        self._socket.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def stop(self) -> None:
        """Take no more connections; the socket is gone."""
        self._accepting.cancel()


async def connect_private(path: str) -> trio.SocketStream:
    """Connect to a socket of the same user. Raises ``OSError``.

    The path may come from a file that a killed process left. After that anybody could have made a folder of
    this name, and would be told what we ask: so the folder has to be ours.
    """
    found = os.lstat(Path(path).parent)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != user_id():
        raise PermissionError(1, "its folder is another user's")
    return await trio.open_unix_socket(path)
