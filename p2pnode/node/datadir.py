"""The data dir: it holds a node's identity, and keeps two nodes from using the same one.

``join`` and ``gateway`` hold ``node.lock`` and write ``node.json``; ``ask`` and ``chat`` only read. The dir
records its own place in ``place.json``, because a copy of it would use the same peer id as the original, and
in ``starts.json`` what tells its own adverts from a copy's.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Final

from p2pnode.errors import ConfigError, UsageError
from p2pnode.files import (
    close_to_others,
    not_writable,
    read_text_or_none,
    refuse_taken,
    special_kind,
    write_atomic,
    write_new,
)
from p2pnode.ids import PeerId
from p2pnode.locks import is_held, pid_in, try_lock, write_pid
from p2pnode.platforms import BINARY, write_at

_READY_NAMES: Final = frozenset({"peer_id", "url"})
_READY_MAX: Final = 1 << 16
INSTANCE_BYTES: Final = 8
STARTS_MAX: Final = 1024
_OURS: Final = frozenset(
    {
        "", "binding", "blocked", "calibration", "chain", "config", "dashboard", "devchain", "evidence",
        "free", "gateway", "journal", "launch", "measured", "models", "node", "peer", "peers", "phrase",
        "place", "quality", "receipt", "s5", "service", "staked", "starts", "storage", "store", "told",
        "totals", "wallet",
    }
)  # fmt: skip
"""The first part of each name that this package makes in a data dir."""


@dataclass(frozen=True, slots=True)
class RunningNode:
    """The node that runs on a data dir, as ``node.json`` describes it."""

    peer_id: PeerId
    multiaddrs: tuple[str, ...]
    pid: int
    announced: tuple[str, ...] = ()
    """Those of its addresses that it announces to strangers."""
    networks: tuple[str, ...] = ()
    """The private networks that its user named, in which it dials."""
    reach: str = ""
    """A ``ReachCode``; empty for a node of an earlier version."""
    control: str = ""
    """The path of its control socket; empty for a node that has none."""


@dataclass(frozen=True, slots=True)
class RunningGateway:
    """The gateway that runs on a data dir, as ``gateway.json`` describes it. ``url`` has no path.

    ``socket`` is that of its owner; "" where an earlier version made the file.
    """

    url: str
    pid: int
    keys_required: bool
    socket: str = ""


@dataclass(frozen=True, slots=True)
class DataDir:
    """Paths inside a data dir. Nothing is made until :meth:`prepare`."""

    root: Path

    @property
    def peer_key(self) -> Path:
        return self.root / "peer.key"

    @property
    def receipt_key(self) -> Path:
        return self.root / "receipt.key"

    @property
    def secrets(self) -> tuple[Path, ...]:
        """Files that nobody else may read."""
        return (
            self.peer_key,
            self.receipt_key,
            self.wallet,
            self.wallet_passphrase,
            self.phrase,
            self.journal,
            self.storage_key,
            self.gateway_key,
            self.dashboard,
        )

    @property
    def wallet(self) -> Path:
        return self.root / "wallet.json"

    @property
    def wallet_passphrase(self) -> Path:
        return self.root / "wallet.pass"

    @property
    def phrase(self) -> Path:
        """The entropy of the recovery phrase, in a keystore of its own."""
        return self.root / "phrase.json"

    @property
    def stakes(self) -> Path:
        return self.root / "staked.json"

    @property
    def journal(self) -> Path:
        return self.root / "journal.sqlite"

    @property
    def chain(self) -> Path:
        """The chain profile, where there is one."""
        return self.root / "chain.toml"

    @property
    def binding(self) -> Path:
        return self.root / "binding.msgpack"

    @property
    def peers(self) -> Path:
        return self.root / "peers.json"

    @property
    def measured(self) -> Path:
        return self.root / "measured.json"

    @property
    def quality(self) -> Path:
        """How well models answered here (``models/quality.py``)."""
        return self.root / "quality.json"

    @property
    def blocked(self) -> Path:
        """Peers that the owner blocked."""
        return self.root / "blocked.json"

    @property
    def free_sessions(self) -> Path:
        """Free sessions that were left with hosts, and their keys."""
        return self.root / "free.json"

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def store(self) -> Path:
        """The folder of blobs and registry entries."""
        return self.root / "store"

    @property
    def s5(self) -> Path:
        """The folder of the S5 API: its node key and partial uploads."""
        return self.root / "s5"

    @property
    def storage_key(self) -> Path:
        """The root secret of this user's saved conversations; it is derived from the recovery phrase."""
        return self.root / "storage.key"

    @property
    def config(self) -> Path:
        return self.root / "config.toml"

    @property
    def node_json(self) -> Path:
        return self.root / "node.json"

    @property
    def lock(self) -> Path:
        return self.root / "node.lock"

    @property
    def gateway_json(self) -> Path:
        """Where the gateway of this data dir listens, while it runs."""
        return self.root / "gateway.json"

    @property
    def dashboard(self) -> Path:
        """The key of the dashboard, and which of its links were used."""
        return self.root / "dashboard.json"

    @property
    def gateway_lock(self) -> Path:
        return self.root / "gateway.lock"

    @property
    def gateway_key(self) -> Path:
        """The one key of a gateway that needs one."""
        return self.root / "gateway.key"

    @property
    def launch(self) -> Path:
        """What `p2pnode run` keeps: keys of programs, files to put back, the log of its gateway."""
        return self.root / "launch"

    @property
    def hints(self) -> Path:
        """A record of hints that were shown once and need not be shown again."""
        return self.root / "told.json"

    @property
    def log(self) -> Path:
        """The log of a node that runs in the background."""
        return self.root / "node.log"

    @property
    def totals(self) -> Path:
        """The totals of the host that runs here, since it started."""
        return self.root / "totals.json"

    @property
    def place(self) -> Path:
        return self.root / "place.json"

    def prepare(self) -> None:
        """Make the dir (mode 0700) where there is none, and take from others what they may do in one that is
        there.

        Raises ``ConfigError`` when it can't be written, or when it holds other files and anybody may write in
        it: such a person could put keys of their own there.
        """
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._close_to_others()
            self.models.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise not_writable(self.root, error) from error
        if not os.access(self.root, os.W_OK | os.X_OK):
            raise not_writable(self.root, PermissionError(13, "Permission denied"))

    def _close_to_others(self) -> None:
        """Close the folder where it holds only our files; of any other folder, its owner decides."""
        held = any(path.exists() for path in self.secrets)
        if all(path.name.partition(".")[0] in _OURS for path in self.root.iterdir()):
            writable = self.root.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH)
            close_to_others(self.root, silent=not (held and writable))
        elif self.root.stat().st_mode & stat.S_IWOTH:
            msg = (
                f"everybody on this machine may write in {self.root}, so that no key is safe there: use a "
                f"folder of its own with --data-dir, or `chmod o-w {self.root}`"
            )
            raise ConfigError(msg)
        for folder in (self.models, self.store, self.s5):
            close_to_others(folder, silent=True)
        for secret in self.secrets:
            close_to_others(secret)

    def check_place(self, *, moved: bool = False) -> None:
        """Refuse a copy of another data dir; ``moved`` accepts the new place. The first start records it.

        Raises ``ConfigError``.
        """
        if not moved:
            self.look_at_place()
        try:
            handle = os.open(self.place, os.O_RDWR | os.O_CREAT | BINARY, 0o644)
            try:
                place = {"inode": self.root.stat().st_ino, "file_inode": os.fstat(handle).st_ino}
                text = json.dumps(place).encode()
                # Written in place: the file holds its own inode. The next start replaces a torn write.
                if os.read(handle, len(text) + 1) != text:
                    write_at(handle, text, 0)
                    os.ftruncate(handle, len(text))
                    os.fsync(handle)
            finally:
                os.close(handle)
        except OSError as error:
            raise not_writable(self.place, error) from error

    def look_at_place(self) -> None:
        """Raise ``ConfigError`` when this dir was copied or moved from elsewhere.

        The inodes of the folder and of ``place.json`` show it, because a copy has others. The device number
        is not compared: the same disk may have another one after each start of the machine.
        """
        text = read_text_or_none(self.place)
        if text is None:
            return
        try:
            known = json.loads(text)
            folder, file = known["inode"], known.get("file_inode")  # none: an earlier version wrote it
        except (ValueError, KeyError, TypeError, AttributeError):
            return
        here = (self.root.stat().st_ino, self.place.stat().st_ino if file is not None else None)
        if (folder, file) != here:
            msg = (
                f"{self.root} was copied, moved or restored from elsewhere, and two nodes with one identity "
                "harm each other. If no other node runs with these keys, start once with --moved. If the "
                "original is still in use, leave this folder alone and start here with a data dir of its "
                "own: --data-dir FOLDER"
            )
            raise ConfigError(msg)

    @property
    def starts(self) -> Path:
        return self.root / "starts.json"

    def known_starts(self) -> tuple[bytes, ...]:
        """The instances of the last starts, newest last; none where the file is missing or damaged."""
        try:
            return tuple(bytes.fromhex(each) for each in json.loads(read_text_or_none(self.starts) or "[]"))
        except (ValueError, TypeError):
            return ()

    def new_start(self, draw: Callable[[int], bytes] = os.urandom) -> tuple[bytes, ...]:
        """Draw an instance for this start, write it down, and return those of the last starts, newest last.

        It is on disk before anything is signed with it, so that no advert of ours is ever taken for a copy's.
        Raises ``ConfigError``.
        """
        starts = (*self.known_starts(), draw(INSTANCE_BYTES))[-STARTS_MAX:]
        write_atomic(self.starts, json.dumps([each.hex() for each in starts]).encode())
        return starts

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold ``node.lock`` for the life of a node. Raises ``ConfigError`` when another holds it."""
        with _holding(self.lock, f"another node runs on {self.root}"):
            yield

    @contextmanager
    def gateway_locked(self) -> Iterator[None]:
        """Hold ``gateway.lock`` for the life of a gateway. Raises ``ConfigError`` when another holds it."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _holding(self.gateway_lock, f"another gateway runs on {self.root}"):
            yield

    def is_locked(self) -> bool:
        """Whether a node runs on this dir."""
        return is_held(self.lock)

    def write_node_json(
        self,
        peer_id: PeerId,
        multiaddrs: Sequence[str],
        *,
        announced: Sequence[str] = (),
        networks: Sequence[str] = (),
        reach: str = "",
        control: str = "",
    ) -> None:
        """Write where this node listens and which networks it is in, for ``ask`` on this machine."""
        content = _node_fields(peer_id, multiaddrs)
        content |= {"announced": list(announced), "networks": list(networks)}
        content |= {"reach": reach, "control": control}
        write_atomic(self.node_json, json.dumps(content).encode())

    def running_node(self) -> RunningNode | None:
        """The node that runs here now; None where no node runs, whatever a stale file says."""
        text = read_text_or_none(self.node_json)
        if text is None or not self.is_locked():
            return None
        try:
            raw = json.loads(text)
            return RunningNode(
                PeerId(raw["peer_id"]),
                tuple(raw["multiaddrs"]),
                int(raw["pid"]),
                tuple(raw.get("announced", ())),
                tuple(str(ip_network(each)) for each in raw.get("networks", ())),
                str(raw.get("reach", "")),
                str(raw.get("control", "")),
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            return None

    def running_gateway(self) -> RunningGateway | None:
        """Where the gateway of this data dir listens; None where none runs, whatever a stale file says."""
        text = read_text_or_none(self.gateway_json)
        if text is None or not is_held(self.gateway_lock):
            return None
        try:
            raw = json.loads(text)
            return RunningGateway(
                str(raw["url"]), int(raw["pid"]), raw["keys_required"] is True, str(raw.get("socket", ""))
            )
        except (ValueError, KeyError, TypeError):
            return None


class ReadyFile:
    """A file, at a path that the user gave, which says that a node or a development chain is ready.

    Only what a node or a development chain wrote is written over or removed: another file there is the
    user's.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._written = path, b""

    def check(self) -> None:
        """Raise ``UsageError`` where a file is that no node wrote."""
        try:
            ours = not os.path.lexists(self._path) or self._left() is not None
        except OSError:
            ours = False
        if not ours:
            msg = f"--ready-file: {self._path} is there, and no node wrote it: name another file"
            raise UsageError(msg)
        refuse_taken(self._path, force=True)

    def clear(self, peer_id: PeerId) -> None:
        """Remove what an earlier start of this node left when it was killed; call it under the lock."""
        left = self._left()
        if left is not None and left.get("peer_id") == peer_id:
            self._path.unlink(missing_ok=True)

    def write(self, peer_id: PeerId, multiaddrs: Sequence[str]) -> None:
        """Write that a node is ready. Raises ``UsageError``."""
        self.write_content(ready_json(peer_id, multiaddrs))

    def write_content(self, content: bytes) -> None:
        """Write JSON with ``pid``, and with ``peer_id`` or ``url``. Raises ``UsageError``."""
        self.check()
        self._written = content
        write_new(self._path, content, force=True)

    def remove(self) -> None:
        """Remove the file, where it still has what this start wrote."""
        if self._written and self._content() == self._written:
            self._path.unlink(missing_ok=True)

    def _left(self) -> dict[str, Any] | None:
        """What some node wrote there; None where there is no file, or one that no node wrote."""
        content = self._content()
        try:
            left = json.loads(content) if content is not None else None
        except ValueError:
            return None
        ours = isinstance(left, dict) and "pid" in left and bool(left.keys() & _READY_NAMES)
        return left if ours else None

    def _content(self) -> bytes | None:
        """The file's bytes; None for a device or a pipe, reading which could block for ever."""
        try:
            if special_kind(self._path):
                return None
            with self._path.open("rb") as file:
                return file.read(_READY_MAX)
        except OSError:
            return None


def ready_json(peer_id: PeerId, multiaddrs: Sequence[str]) -> bytes:
    """The content of ``--ready-file``."""
    return json.dumps(_node_fields(peer_id, multiaddrs)).encode()


def _node_fields(peer_id: PeerId, multiaddrs: Sequence[str]) -> dict[str, object]:
    return {"peer_id": peer_id, "multiaddrs": list(multiaddrs), "pid": os.getpid()}


@contextmanager
def _holding(path: Path, refusal: str) -> Iterator[None]:
    """Hold a lock file, which has our pid. Raises ``ConfigError``: ``refusal`` says what holds it."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise not_writable(path, error) from error
    try:
        if not try_lock(handle):
            pid = pid_in(handle) or "unknown"
            msg = f"{refusal} (pid {pid}): stop it, or give this one a data dir of its own with --data-dir"
            raise ConfigError(msg)
        write_pid(handle)
        yield
    finally:
        os.close(handle)
