"""From where a node can be reached, as far as its own addresses show, and what its owner can do about it.

Addresses don't show whether a router or a firewall lets others in: only a peer outside could try that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from p2pnode.net.address_policy import scope_of, widest
from p2pnode.net.multiaddrs import endpoint, host_of, parse, without_peer

ReachCode: TypeAlias = Literal[
    "global", "ipv6_only", "private_only", "shared_only", "this_machine_only", "no_network"
]
"""These values are stable, because scripts read them."""


@dataclass(frozen=True, slots=True)
class Reachability:
    """``detail`` and ``remedy`` are for people; ``remedy`` is empty where nothing needs to be done."""

    code: ReachCode
    detail: str
    remedy: str = ""


def reach_code(announced: Sequence[str], multiaddrs: Sequence[str], *, listens_on_all: bool) -> ReachCode:
    """The code for a node's addresses. ``listens_on_all``: its owner did not choose where it listens."""
    match widest(announced):
        case "global":
            return "global" if any(_is_global_v4(each) for each in announced) else "ipv6_only"
        case "private" | "link-local":
            return "private_only"
        case "shared":
            return "shared_only"
        case _:
            if any(scope_of(each) == "shared" for each in multiaddrs):
                return "shared_only"
            return "no_network" if listens_on_all else "this_machine_only"


def _is_global_v4(address: str) -> bool:
    """Whether it is a global IPv4 address, or a name, whatever that resolves to."""
    return scope_of(address) == "global" and not address.startswith(("/ip6/", "/dns6/"))


def reachability(code: str, multiaddrs: Sequence[str]) -> Reachability:
    """The description of a ``ReachCode``, which may have been read from a file."""
    where = ", ".join(dict.fromkeys(host_of(each) for each in multiaddrs if scope_of(each) != "loopback"))
    port = next((endpoint(parse(without_peer(each)))[1] for each in multiaddrs), 4001)
    match code:
        case "global":
            return Reachability(
                code, "it has a global address; only a peer outside can tell whether that works"
            )
        case "ipv6_only":
            return Reachability(
                code,
                "it has global addresses of IPv6 only: nobody without IPv6 reaches it, nor anybody where the "
                "router lets nobody in",
                f"open TCP port {port} in your router's IPv6 firewall; for IPv4, forward that port to this "
                f"machine and start with --announce /ip4/YOUR-PUBLIC-ADDRESS/tcp/{port}",
            )
        case "private_only":
            return Reachability(
                code,
                f"only private addresses are known ({where}): nobody outside this network can reach it",
                f"forward TCP port {port} of your router to this machine, and start with "
                f"--announce /ip4/YOUR-PUBLIC-ADDRESS/tcp/{port}",
            )
        case "shared_only":
            return Reachability(
                code,
                f"{where} is of a carrier's NAT or an overlay network: nobody outside that can reach it",
                "in an overlay network, start with --announce and that address; behind a carrier's NAT, "
                "which forwards no port, use IPv6 or a machine elsewhere",
            )
        case "this_machine_only":
            return Reachability(code, "it listens on this machine only, as --listen or config.toml says")
        case _:
            return Reachability(
                "no_network",
                "this machine has no network: only programs on it can reach this node",
                "connect it; the node goes on, looks again every few seconds, and says when that changes",
            )
