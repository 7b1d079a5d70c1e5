"""``Mdns``: finds peers on the LAN by mDNS (``_p2pnode._udp.local.``). zeroconf runs in a thread of its
own.

A node announces itself only on the interfaces that it listens on, which may be loopback alone. A client only
browses. What is found is a hint that anyone on the LAN may have written; it is passed on as it came, bounded.
Where multicast doesn't work, the network runs without it. This module knows nothing of connections.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Sequence
from typing import Final

import structlog
import trio
from zeroconf import ServiceBrowser, ServiceInfo, ServiceStateChange, Zeroconf

from p2pnode.bounded import BoundedMap, TokenBucket
from p2pnode.ids import PeerId
from p2pnode.net.address_policy import mixed, on_link
from p2pnode.net.multiaddrs import PeerAddresses, host_of, is_valid, with_peer, without_peer
from p2pnode.scopes import is_loopback

log = structlog.get_logger()

SERVICE: Final = "_p2pnode._udp.local."
ADDRESSES_MAX: Final = 6
TXT_VALUE_MAX: Final = 200
RESOLVE_MS: Final = 2000
CLOSE_S: Final = 2.0
RECORDS_PER_MINUTE: Final = 32
RECORDS_PER_HOST_AND_MINUTE: Final = 8
"""Announcements that name one host: several nodes may run on it."""
ADDRESSES_PER_HOST: Final = 2
"""Of one announcement: TCP and WebSocket."""
_HOSTS_MAX: Final = 256
LABEL_CHARACTERS: Final = 60
"""A DNS label holds 63 bytes; the end of a peer id is what differs."""


class Mdns:
    """One announcement and one browser. ``run`` until cancelled or ``aclose``; ``changed`` begins both
    anew.

    ``addresses`` gives what we listen on now, without what the user announces; ``interfaces`` gives this
    machine's addresses, as ``192.168.1.5/24``.
    """

    def __init__(
        self,
        peer: PeerId,
        *,
        addresses: Callable[[], Sequence[str]],
        interfaces: Callable[[], Sequence[str]],
        announce: bool,
        found: Callable[[PeerAddresses], object],
    ) -> None:
        self._peer = peer
        self._addresses, self._interfaces = addresses, interfaces
        self._announce = announce
        self._found = found
        self._stop = trio.Event()
        self._stopped = trio.Event()
        self._wake = trio.Event()
        self._rate = RecordRate()
        self._token: trio.lowlevel.TrioToken | None = None
        self._zeroconf: Zeroconf | None = None
        self._browser: ServiceBrowser | None = None

    @property
    def in_use(self) -> tuple[str, ...]:
        """The IPv4 addresses of the interfaces in use; loopback comes last."""
        if self._announces:
            own = {host_of(address) for address in self._addresses()}
        else:
            own = {each.partition("/")[0] for each in self._interfaces()}
        usable = sorted(ip for ip in own if ip.count(".") == 3)  # noqa: PLR2004  an IPv4 address
        return tuple(sorted(usable, key=is_loopback))

    @property
    def _announces(self) -> bool:
        return self._announce and bool(self._addresses())

    async def run(self) -> None:
        """Announce and browse."""
        self._token = trio.lowlevel.current_trio_token()
        try:
            while not self._stop.is_set():
                self._wake = trio.Event()
                await self._open()
                await self._wake.wait()
                await self._end()
        finally:
            await self._end()
            self._stopped.set()

    def changed(self) -> None:
        """Begin anew: our addresses have changed."""
        self._wake.set()

    def _hand_over(self, found: PeerAddresses) -> None:
        """Pass on what was found. Runs in trio's thread, where an error would end the whole program."""
        try:
            if (allowed := self._rate.allowed(found, trio.current_time())) is not None:
                self._found(allowed)
        except Exception as error:  # noqa: BLE001  a stranger's announcement
            log.warning("mdns.not_handed_over", error=f"{type(error).__name__}: {error}")

    async def aclose(self) -> None:
        """Withdraw the announcement; bounded."""
        self._stop.set()
        self._wake.set()
        if self._token is not None:
            with trio.move_on_after(CLOSE_S):
                await self._stopped.wait()

    async def _open(self) -> None:
        try:
            interfaces = self.in_use
            info = self._info(interfaces) if self._announces and interfaces else None
            if interfaces:
                await trio.to_thread.run_sync(self._start, interfaces, info, abandon_on_cancel=False)
            log.debug("mdns.started", interfaces=interfaces, announce=info is not None)
        except Exception as error:  # noqa: BLE001  no multicast, no interface: not needed to live
            log.debug("mdns.unavailable", error=f"{type(error).__name__}: {error}")

    async def _end(self) -> None:
        with trio.move_on_after(CLOSE_S, shield=True):
            await trio.to_thread.run_sync(self._close, abandon_on_cancel=True)

    # In worker threads.

    def _start(self, interfaces: Sequence[str], info: ServiceInfo | None) -> None:
        self._zeroconf = Zeroconf(interfaces=list(interfaces))
        if info is not None:
            # The name ends in our own peer id, so that nobody else uses it and no probe is needed.
            self._zeroconf.register_service(info, cooperating_responders=True)
        self._browser = ServiceBrowser(self._zeroconf, SERVICE, handlers=[self._on_change])

    def _info(self, interfaces: Sequence[str]) -> ServiceInfo:
        own = [without_peer(address) for address in self._addresses()]
        far = [address for address in own if not is_loopback(host_of(address))]
        addresses = mixed(far or own, ADDRESSES_MAX)
        texts: dict[str | bytes, str | bytes | None] = {"peer": self._peer}
        texts.update({f"a{i}": address for i, address in enumerate(addresses)})
        port = int(addresses[0].split("/")[4])
        label = self._peer[-LABEL_CHARACTERS:]
        return ServiceInfo(
            SERVICE,
            f"{label}.{SERVICE}",
            addresses=[socket.inet_aton(ip) for ip in interfaces],
            port=port,
            properties=texts,
            server=f"{label.lower()}.local.",
        )

    def _close(self) -> None:
        if self._zeroconf is not None:
            with contextlib.suppress(Exception):  # it is closed either way
                if self._browser is not None:
                    self._browser.cancel()
                self._zeroconf.close()
            self._zeroconf = None

    def _on_change(
        self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange
    ) -> None:
        if state_change is ServiceStateChange.Removed:
            return
        with contextlib.suppress(Exception):  # a malformed answer is no answer
            info = zeroconf.get_service_info(service_type, name, timeout=RESOLVE_MS)
            found = read(dict(info.properties), self._interfaces()) if info is not None else None
            if found is not None and found.peer != self._peer and self._token is not None:
                self._token.run_sync_soon(self._hand_over, found)


class RecordRate:
    """How many announcements are passed on: anybody on the LAN may write them, and each may be dialled."""

    def __init__(self) -> None:
        self._all = TokenBucket(RECORDS_PER_MINUTE / 60, RECORDS_PER_MINUTE)
        self._by_host: BoundedMap[str, TokenBucket] = BoundedMap(_HOSTS_MAX)

    def allowed(self, found: PeerAddresses, now: float) -> PeerAddresses | None:
        """The part of an announcement that is passed on: of each host two addresses, of few announcements."""
        by_host: dict[str, list[str]] = {}
        for address in found.addrs:
            by_host.setdefault(host_of(address), []).append(address)
        kept = [
            address
            for host, addresses in by_host.items()
            if self._by_host.use(host, _host_rate).take(now)
            for address in addresses[:ADDRESSES_PER_HOST]
        ]
        if not kept or not self._all.take(now):
            return None
        return PeerAddresses(peer=found.peer, addrs=tuple(kept))


def _host_rate() -> TokenBucket:
    return TokenBucket(RECORDS_PER_HOST_AND_MINUTE / 60, RECORDS_PER_HOST_AND_MINUTE)


def read(texts: dict[bytes, bytes | None], interfaces: Sequence[str]) -> PeerAddresses | None:
    """What an announcement's TXT record says; None when it makes no sense.

    Anybody on the LAN may write one, so only addresses on a network that we are on ourselves are taken.
    """
    peer = PeerId((texts.get(b"peer") or b"").decode("ascii", "replace"))
    addresses = []
    for i in range(ADDRESSES_MAX):
        value = texts.get(f"a{i}".encode()) or b""
        if value and len(value) <= TXT_VALUE_MAX:
            full = with_peer(value.decode("ascii", "replace"), peer)
            if is_valid(full) and on_link(full, interfaces):
                addresses.append(full)
    return PeerAddresses(peer=peer, addrs=tuple(addresses)) if addresses else None
