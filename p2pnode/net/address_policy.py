"""``AddressPolicy``: on whose word an address is dialled, and which of our own addresses strangers learn.

An advert, a provider record, an identify message and an mDNS record are written by anybody. They may name a
machine of *our* network or a port of *our* machine, and must not make us connect to it. So a stranger's word
is enough for global addresses only. The one exception is a node that lives in a private network: every
address that its user named is private, and it has met no peer elsewhere. Then addresses near those count too.

Scopes are those of ``p2pnode.scopes``. Pure but for :func:`interface_addresses`.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import psutil

from p2pnode.errors import ConfigError
from p2pnode.net.multiaddrs import check_address, endpoint, host_of, parse, without_peer
from p2pnode.scopes import SCOPES, Scope, ip_of, scope_of_host

_Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
_PLAIN: Final = re.compile(
    r"/(?P<family>ip4|ip6)/(?P<ip>[0-9a-fA-F.:]{2,45})/tcp/(?P<port>0|[1-9][0-9]{0,4})(/ws)?(/p2p/[^/]+)?"
)
_PORT_MAX: Final = 65_535
_LOOPBACK: Final = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))
_NEAR_BITS: Final = {4: 16, 6: 48}
"""How much of a private address is the same within one network: what homes and companies use."""


def scope_of(address: str) -> Scope | None:
    """The scope of a multiaddr; None for what is no address that we could dial or listen on."""
    # Nearly all have this form, and the library takes ten times as long for it. Strangers send many.
    plain = _PLAIN.fullmatch(address)
    if plain is not None and int(plain["port"]) <= _PORT_MAX and (ip := ip_of(plain["ip"])) is not None:
        return scope_of_host(plain["ip"]) if f"ip{ip.version}" == plain["family"] else None
    try:
        check_address(without_peer(address))
    except ConfigError:
        return None
    return scope_of_host(host_of(address))


def is_unspecified(address: str) -> bool:
    """Whether it stands for all interfaces."""
    return host_of(address) in ("0.0.0.0", "::")  # noqa: S104  compared, not bound


def widest(addresses: Iterable[str]) -> Scope | None:
    """The scope from which most others can reach one of these addresses; None where there is none."""
    return min((scope for each in addresses if (scope := scope_of(each))), key=SCOPES.index, default=None)


def widest_first(addresses: Iterable[str]) -> tuple[str, ...]:
    """The addresses sorted by scope, otherwise in their order; each once."""
    unique = dict.fromkeys(addresses)
    return tuple(sorted(unique, key=lambda each: SCOPES.index(scope_of(each) or "loopback")))


def nearest_first(addresses: Iterable[str]) -> tuple[str, ...]:
    """The order to dial addresses in: plain TCP before WebSocket, narrow scopes before wide ones."""
    unique = dict.fromkeys(addresses)
    return tuple(sorted(unique, key=lambda each: ("/ws" in each, -SCOPES.index(scope_of(each) or "global"))))


def expand(addresses: Iterable[str], interfaces: Sequence[str]) -> tuple[str, ...]:
    """Replace ``0.0.0.0`` and ``::`` by the machine's addresses; the widest scope comes first."""
    machine = [each.partition("/")[0] for each in interfaces]
    found: list[str] = []
    for address in addresses:
        family, rest = address.split("/")[1], "/" + "/".join(address.split("/")[3:])
        hosts = [ip for ip in machine if (":" in ip) == (family == "ip6")]
        found += [f"/{family}/{ip}{rest}" for ip in hosts] if is_unspecified(address) else [address]
    return widest_first(found)


@dataclass(frozen=True, slots=True)
class OwnAddresses:
    """The addresses of one node.

    ``own``: where it listens now; ``every``: these and what its user announces; ``announced``: what strangers
    learn.
    """

    own: tuple[str, ...] = ()
    every: tuple[str, ...] = ()
    announced: tuple[str, ...] = ()


def own_addresses(
    listen: Sequence[str], announce: Sequence[str], interfaces: Callable[[], Sequence[str]]
) -> OwnAddresses:
    """The addresses of a node that listens on ``listen``, on a machine with these interfaces."""
    on_all = any(is_unspecified(each) for each in listen)
    own = expand(listen, interfaces()) if on_all else widest_first(listen)
    named = (each for each in listen if not is_unspecified(each) and scope_of(each) != "loopback")
    announced = to_announce(own, tuple(dict.fromkeys((*announce, *named))))
    return OwnAddresses(own, tuple(dict.fromkeys((*announce, *own))), announced)


def to_announce(addresses: Sequence[str], stated: Collection[str] = ()) -> tuple[str, ...]:
    """Our own addresses that strangers learn: first those that the user ``stated``, then global and
    private ones.

    Shared and link-local addresses mean nothing to most peers, so the user must state them. Loopback ones are
    announced only where there is no other, on a machine that is a network of its own.
    """
    own = [each for each in addresses if scope_of(each) in ("global", "private") or each in stated]
    found = tuple(dict.fromkeys((*stated, *own)))
    return found or tuple(each for each in addresses if scope_of(each) == "loopback")


def check_announced(address: str) -> None:
    """Raise ``ConfigError`` unless others could dial this address, which has no ``/p2p``."""
    check_address(address)
    host, port = endpoint(parse(address))
    example = "/ip4/203.0.113.7/tcp/4001"
    if not port:
        raise ConfigError(f"{address!r} has no port that others could dial: announce one as in {example}")
    if is_unspecified(address) or scope_of(address) in (None, "loopback", "link-local"):
        raise ConfigError(
            f"nobody else can reach {host}: announce the address at which others see this node, as {example}"
        )


def mixed(addresses: Sequence[str], count: int) -> tuple[str, ...]:
    """At most ``count`` addresses in order, of each kind while there is room.

    A kind is a transport, an IP version, and whether a relay stands between.
    """
    kinds: dict[tuple[str, bool, bool], list[str]] = {}
    for address in addresses:
        kind = (address.split("/")[1], address.endswith("/ws"), "/p2p-circuit" in address)
        kinds.setdefault(kind, []).append(address)
    rounds = max((len(each) for each in kinds.values()), default=0)
    turns = [each[i] for i in range(rounds) for each in kinds.values() if i < len(each)]
    return tuple(sorted(turns[:count], key=list(addresses).index))


def interface_addresses() -> tuple[str, ...]:
    """``address/prefix`` of each interface that is up, as ``192.168.1.5/24``.

    IPv6 link-local addresses are left out: they need a zone, which adverts can't carry.
    """
    status = psutil.net_if_stats()
    found = []
    for name, addresses in sorted(psutil.net_if_addrs().items()):
        if name in status and not status[name].isup:
            continue
        for each in addresses:
            if each.family not in (socket.AF_INET, socket.AF_INET6) or "%" in each.address:
                continue
            found.append(f"{each.address}/{_prefix(each.netmask)}")
    return tuple(dict.fromkeys(found)) or ("127.0.0.1/8",)


def on_link(address: str, interfaces: Iterable[str]) -> bool:
    """Whether the address lies within a network that one of our interfaces is in.

    Loopback counts only where this machine has no other interface, and so is a network of its own.
    """
    ip = ip_of(host_of(address))
    networks = [ipaddress.ip_interface(each).network for each in interfaces]
    others = [network for network in networks if not network.is_loopback]
    return ip is not None and any(ip in network for network in others or networks)


class AddressPolicy:
    """Decides which addresses are dialled on a stranger's word. ``trust`` takes what the user named.

    ``remotes`` gives the addresses of the peers that we are connected to.
    """

    def __init__(
        self, trusted: Iterable[str] = (), *, remotes: Callable[[], Iterable[str]] = lambda: ()
    ) -> None:
        self._networks: dict[_Network, None] = {}
        self._is_global = False
        self._remotes = remotes
        self.trust(trusted)

    def trust(self, addresses: Iterable[str], networks: Iterable[str] = ()) -> None:
        """Note addresses that the user named, and ``networks`` that a node of the same user lives in."""
        for each in addresses:
            self._is_global = self._is_global or scope_of(each) == "global"
            self._networks.update(dict.fromkeys(_near(each)))
        self._networks.update(dict.fromkeys(ipaddress.ip_network(each) for each in networks))

    @property
    def networks(self) -> tuple[str, ...]:
        """The private networks that this node lives in; none once any address of ours is global."""
        return tuple(str(network) for network in self._live_in())

    def _live_in(self) -> Collection[_Network]:
        if self._is_global or not self._networks:
            return ()
        if any(scope_of_host(host_of(remote)) == "global" for remote in self._remotes()):
            return ()
        return self._networks

    def dialable(self, addresses: Iterable[str]) -> tuple[str, ...]:
        """The addresses of a stranger's that may be dialled. A name is judged again once it is resolved."""
        networks = self._live_in()

        def allowed(address: str) -> bool:
            scope = scope_of(address)
            if scope is None or scope == "global":
                return scope is not None
            ip = ip_of(host_of(address))  # none for localhost and its like
            return ip is not None and any(ip in network for network in networks)

        return tuple(each for each in addresses if allowed(each))


def _near(address: str) -> tuple[_Network, ...]:
    scope, ip = scope_of(address), ip_of(host_of(address))
    if scope == "loopback":
        return _LOOPBACK
    if scope is None or ip is None:
        return ()
    return (ipaddress.ip_network(f"{ip}/{_NEAR_BITS[ip.version]}", strict=False),)


def _prefix(netmask: str | None) -> int:
    """How many bits of a netmask are set. Without a mask it is that of a single address."""
    try:
        mask = ipaddress.ip_address(netmask or "255.255.255.255")
    except ValueError:
        return 32
    return int(mask).bit_count()
