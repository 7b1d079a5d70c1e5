"""What ``join --auto`` serves: the models of the catalogue that fit this machine, and that are asked for.

Demand is what a node can see: for each model the hosts that offer it, and how many of their slots are in use.
A larger model is worth more than a small one, because clients that can choose take it.

Pure: what the machine has and what the network says are arguments.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from p2pnode.ids import ModelId
from p2pnode.models.context import gigabytes
from p2pnode.models.recommendation import N_CTX, TOKENS_PER_S_LEAST, Machine, Option
from p2pnode.protocols.adverts.messages import Advert
from p2pnode.words import count_of

MODELS_MOST: Final = 4
"""An advert always holds so many."""
_UNOFFERED: Final = 0.5
_BASE: Final = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What is seen of a model: its hosts, their slots, and the requests that they serve or hold."""

    hosts: int = 0
    slots: int = 0
    requests: int = 0

    @property
    def words(self) -> str:
        """For people."""
        if not self.hosts:
            return "no other host is seen that offers it"
        hosts = count_of(self.hosts, "host offers", "hosts offer")
        return f"{hosts} it, {self.requests} requests for {count_of(self.slots, 'slot')}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A model and what became of it; ``serve`` is whether it is chosen."""

    option: Option
    serve: bool
    why: str


def demand_seen(adverts: Iterable[Advert]) -> dict[ModelId, Demand]:
    """By model. A host tells one load for all of its models: each has an equal part of it."""
    found: dict[ModelId, Demand] = {}
    for advert in adverts:
        offers = [offer for offer in advert.offers if offer.n_ctx]
        for offer in offers:
            known = found.get(offer.model, Demand())
            found[offer.model] = Demand(
                hosts=known.hosts + 1,
                slots=known.slots + -(-advert.load.slots // len(offers)),
                requests=known.requests + -(-(advert.load.active + advert.load.queued) // len(offers)),
            )
    return found


def worth(option: Option, demand: Demand) -> float:
    """How much serving it is worth: for how much is asked of each host, and for its size."""
    pressure = demand.requests / demand.slots if demand.slots else _UNOFFERED
    shared = math.sqrt(1 + demand.hosts)
    return (_BASE + pressure) / shared * math.log2(2 + option.size_bytes / (64 << 20))


def choose(
    options: Sequence[Option],
    demand: Mapping[ModelId, Demand],
    machine: Machine,
    *,
    most: int = MODELS_MOST,
) -> tuple[Choice, ...]:
    """What to serve on ``machine``, within its memory, the worthiest first, then what is left out and why."""

    def order(option: Option) -> tuple[float, str]:
        return -worth(option, demand.get(option.model, Demand())), option.name

    chosen: list[Choice] = []
    others: list[Choice] = []
    left = {on_gpu: machine.room(on_gpu=on_gpu) for on_gpu in (False, True)}
    for each in sorted(options, key=order):
        speed, memory, room = each.speed(machine), each.memory(N_CTX), machine.room(on_gpu=each.on_gpu)
        kind = "GPU memory" if each.on_gpu else "memory"
        why = each.unusable
        if not why and memory > room:
            why = f"takes about {gigabytes(memory)} of {kind}, and {gigabytes(room)} can be had"
        elif not why and speed < TOKENS_PER_S_LEAST:
            why = f"about {speed:.1f} tokens/s on {count_of(machine.cores, 'core')}: too slow for anybody"
        elif not why and len(chosen) >= most:
            why = f"an advert holds {most} models, and these are worth more"
        elif not why and memory > left[each.on_gpu]:
            others_left = gigabytes(left[each.on_gpu])
            why = f"takes about {gigabytes(memory)}, and {others_left} are left beside those chosen"
        if why:
            others.append(Choice(option=each, serve=False, why=why))
            continue
        left[each.on_gpu] -= memory
        seen = demand.get(each.model, Demand())
        about = f"about {gigabytes(memory)} of {kind}, {seen.words}"
        chosen.append(Choice(option=each, serve=True, why=about))
    return (*chosen, *others)
