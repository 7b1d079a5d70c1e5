"""What was seen of the network over time, in so much memory and no more. Pure; times are epoch seconds.

Two rings: a sample a minute for the last three hours, and the mean of each half hour for the last week.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean, median
from typing import Any, Final

from p2pnode.ids import ModelId
from p2pnode.protocols.adverts.messages import Advert

SAMPLE_S: Final = 60
"""Between two samples."""
_MINUTES: Final = 180
_LONG_S: Final = 1800
_LONG: Final = 336
_MODELS_MAX: Final = 12
"""Models whose numbers are kept by name; the rest counts in the sums alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The network as it was seen once. Prices are token units per million output tokens, of the hosts that
    ask for money; 0 where none does."""

    at: float
    hosts: float = 0
    models: float = 0
    slots: float = 0
    active: float = 0
    queued: float = 0
    price_out: float = 0
    hosts_of: Mapping[str, float] = field(default_factory=dict)


def sample_of(adverts: Iterable[Advert], at: float, *, names: Mapping[ModelId, str]) -> Sample:
    """What these adverts say together. ``names``: of the models to tell apart."""
    live = [each for each in adverts if not each.withdrawn and not each.draining]
    serving = [each for each in live if any(offer.n_ctx for offer in each.offers)]
    offers = [offer for each in serving for offer in each.offers if offer.n_ctx]
    prices = [offer.price_out for offer in offers if offer.price_in or offer.price_out]
    hosts_of: dict[str, float] = {}
    for offer in offers:
        name = names.get(offer.model, "")
        if name and (name in hosts_of or len(hosts_of) < _MODELS_MAX):
            hosts_of[name] = hosts_of.get(name, 0) + 1
    return Sample(
        at=at,
        hosts=len(serving),
        models=len({offer.model for offer in offers}),
        slots=sum(each.load.slots for each in serving),
        active=sum(each.load.active for each in serving),
        queued=sum(each.load.queued for each in serving),
        price_out=median(prices) if prices else 0,
        hosts_of=hosts_of,
    )


class History:
    """The samples, newest last."""

    def __init__(self) -> None:
        self._minutes: deque[Sample] = deque(maxlen=_MINUTES)
        self._long: deque[Sample] = deque(maxlen=_LONG)
        self._part: list[Sample] = []

    def add(self, sample: Sample) -> None:
        """One more."""
        if self._part and sample.at // _LONG_S != self._part[0].at // _LONG_S:
            self._long.append(_mean(self._part))
            self._part = []
        self._part.append(sample)
        del self._part[: -2 * _LONG_S // SAMPLE_S]
        self._minutes.append(sample)

    def fields(self) -> dict[str, Any]:
        """Both rings, as lists of samples."""
        return {
            "minutes": [asdict(each) for each in self._minutes],
            "half_hours": [
                asdict(each) for each in (*self._long, *([_mean(self._part)] if self._part else []))
            ],
        }


def _mean(samples: Sequence[Sample]) -> Sample:
    names = {name for each in samples for name in each.hosts_of}
    return Sample(
        at=samples[0].at,
        hosts=_of(samples, "hosts"),
        models=_of(samples, "models"),
        slots=_of(samples, "slots"),
        active=_of(samples, "active"),
        queued=_of(samples, "queued"),
        price_out=_of(samples, "price_out"),
        hosts_of={
            name: round(fmean(each.hosts_of.get(name, 0) for each in samples), 2) for name in sorted(names)
        },
    )


def _of(samples: Sequence[Sample], name: str) -> float:
    return round(fmean(getattr(each, name) for each in samples), 2)
