"""``attacks.*``: what an honest client gets of a host while strangers of another prefix attack it.

The host, the attackers and the client are a process each, over loopback. The host counts loopback addresses
by their /24. The client comes from 127.0.0.1, the attackers from five addresses of another /24, with the ids
and rates of which they once stopped a host. Each attack is compared with questions before and after it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from typing import Any, Final

import trio

from p2pnode.bench.attackers import ATTACKS
from p2pnode.bench.figure import Measurement
from p2pnode.bench.options import BenchOptions, Take
from p2pnode.bench.processes import Child, child
from p2pnode.client.client import Client
from p2pnode.config import NodeConfig
from p2pnode.errors import P2PNodeError
from p2pnode.net.multiaddrs import endpoint, parse, split_peer
from p2pnode.protocols.inference.messages import SamplingParams

_IPS: Final = [f"127.0.7.{n}" for n in range(1, 6)]
_IDS: Final = 2
_QUESTIONS: Final = 5
_WARM_UP_S: Final = 3.0
_ANSWER_S: Final = 30.0
_COMMAND_S: Final = 30.0


async def measure_attacks(options: BenchOptions, take: Take) -> None:
    """All figures of the suite."""
    names = ["grafts", "handshakes"] if options.quick else list(ATTACKS)
    host = {"engine": "scripted", "slots": 4, "n_ctx": 2048, "by_prefix": True}
    async with child("host_process", host) as (_, told):
        address, peer = split_peer(told["multiaddr"])
        victim = {"peer": peer, "port": endpoint(parse(address))[1]}
        async with child("attack_process", victim) as (attackers, _):
            asker = _Asker(options, told["multiaddr"], told["model"])
            await asker.first_token_s()  # lazy imports, the engine's first answer
            found = [
                await _attacked(asker, attackers, name, 1 if options.quick else _QUESTIONS) for name in names
            ]
    worst = max(found, key=lambda one: one.ratio)
    details = {one.name: {"ratio": round(one.ratio, 2), "ms": one.shown} for one in found}
    take(
        "attacks.first_token",
        Measurement(value=worst.under, baseline=worst.quiet, ratio=worst.ratio, details=details),
    )
    refused = sum(one.refused for one in found)
    asked = sum(len(one.times) + one.refused for one in found)
    take(
        "attacks.refused",
        Measurement(
            value=refused, baseline=asked, ratio=refused / asked, details={o.name: o.refused for o in found}
        ),
    )


@dataclass(frozen=True, slots=True)
class _Attacked:
    name: str
    quiet: float
    times: list[float] = field(default_factory=list)
    refused: int = 0

    @property
    def under(self) -> float:
        """The median under the attack; the longest wait where no question was answered."""
        return median(self.times) if self.times else _ANSWER_S

    @property
    def ratio(self) -> float:
        return self.under / self.quiet

    @property
    def shown(self) -> dict[str, Any]:
        return {"quiet": round(self.quiet * 1e3, 1), "under": [round(each * 1e3, 1) for each in self.times]}


async def _attacked(asker: _Asker, attackers: Child, name: str, questions: int) -> _Attacked:
    quiet = [await asker.first_token_s() for _ in range(questions)]
    told = {"begin": name, "ids": _IDS, "ips": _IPS}
    await attackers.ask(told, deadline_s=_COMMAND_S)
    await trio.sleep(_WARM_UP_S)
    times, refused = [], 0
    for _ in range(questions):
        try:
            times.append(await asker.first_token_s())
        except (P2PNodeError, trio.TooSlowError):
            refused += 1
    await attackers.ask({"end": name}, deadline_s=_COMMAND_S)
    quiet += [await asker.first_token_s() for _ in range(questions)]
    return _Attacked(name, median(quiet), times, refused)


@dataclass(frozen=True, slots=True)
class _Asker:
    """A client of another origin than the attackers'."""

    options: BenchOptions
    multiaddr: str
    model: str

    async def first_token_s(self) -> float:
        """Seconds from a fresh network to the first token. Raises ``P2PNodeError`` or ``TooSlowError``."""
        config = NodeConfig(data_dir=self.options.scratch / "asker", mdns=False)
        sampling = SamplingParams(tokens_max=4, temperature=0.0)
        with trio.fail_after(_ANSWER_S):
            async with Client(config) as client:
                began = trio.current_time()
                async with client.chat(
                    "hello", model=self.model, peer=self.multiaddr, sampling=sampling
                ) as answer:
                    async for _ in answer:
                        if answer.ids:
                            return trio.current_time() - began
        raise P2PNodeError("the answer had no token")
