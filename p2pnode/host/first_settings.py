"""What a first-time host is suggested, how its owner's answers are read, and the settings they make.

Pure: ``p2pnode/cli/guide.py`` looks at the machine and the network, asks, and writes.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from p2pnode.config import NodeConfig
from p2pnode.errors import ConfigError
from p2pnode.ids import ModelId
from p2pnode.models.recommendation import Recommendation
from p2pnode.money import usdc_number, usdc_units
from p2pnode.net.address_policy import check_announced
from p2pnode.net.multiaddrs import without_peer
from p2pnode.payments.price_suggestion import median_price
from p2pnode.protocols.adverts.messages import Advert

SHOWN_MAX: Final = 8
"""How many of the models that fit are shown."""
PRICE_IN_DEFAULT: Final = usdc_units("0.5")
PRICE_OUT_DEFAULT: Final = usdc_units("1.5")
"""Token units per million tokens, where nobody in the network asks for money."""
NONE: Final = "none"
"""The answer that something is not wanted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """Token units per million tokens, and where they come from, in words."""

    price_in: int
    price_out: int
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstSettings:
    """What the owner answered. Empty: as without it."""

    models: tuple[str, ...]
    chain: str = ""
    price_in: int = 0
    price_out: int = 0
    announce: tuple[str, ...] = ()

    def toml(self) -> str:
        """The file ``config.toml`` with these settings."""
        lines = ["# From the questions of the first start. Flags of `p2pnode join` go over what stands here."]
        lines.append(f"models = {_strings(self.models)}")
        if self.chain:
            lines.append(f"chain = {_string(self.chain)}")
        if self.chain or self.price_in or self.price_out:
            lines.append("# USDC per million tokens")
            lines.append(f'price_in = "{usdc_number(self.price_in)}"')
            lines.append(f'price_out = "{usdc_number(self.price_out)}"')
        if self.announce:
            lines.append(f"announce = {_strings(self.announce)}")
        return "\n".join(lines) + "\n"


def may_ask(*, terminal: bool, is_new: bool, answered: bool, as_json: bool, unasked: bool) -> bool:
    """Whether the questions are asked: only of a person at a ``terminal``, at the first start, who has
    ``answered`` none of them by a flag and does not want to be ``unasked``."""
    return terminal and is_new and not (answered or as_json or unasked)


def fitting(found: Iterable[Recommendation]) -> tuple[Recommendation, ...]:
    """The models to show, the most promising first."""
    return tuple(each for each in found if each.fits)[:SHOWN_MAX]


def suggested_model(shown: Sequence[Recommendation]) -> str:
    """The name of the one to serve by default: one whose file is here, else the most promising one; "" of
    none."""
    best = next((each for each in shown if each.option.is_here), shown[0] if shown else None)
    return best.option.name if best is not None else ""


def suggested_price(models: Sequence[ModelId], adverts: Sequence[Advert]) -> Price:
    """The median of what others ask for these models, else for any model, else a default."""
    offers = [offer for advert in adverts for offer in advert.offers if offer.price_in or offer.price_out]
    same = [offer for offer in offers if offer.model in models]
    for some, of in ((same, "for the same model"), (offers, "for other models")):
        median = median_price((each.price_in, each.price_out) for each in some)
        if median is not None:
            hosts = f"{len(some)} offer{'s' if len(some) > 1 else ''}"
            return Price(price_in=median[0], price_out=median[1], why=f"the median of {hosts} {of}")
    why = "nobody that was found asks for money, so this is only a start"
    return Price(price_in=PRICE_IN_DEFAULT, price_out=PRICE_OUT_DEFAULT, why=why)


def read_models(text: str, shown: Sequence[Recommendation], check: Callable[[str], None]) -> tuple[str, ...]:
    """Models by their number in what was shown, their name, or the path of a file. Raises ``ConfigError``;
    ``check`` raises it for a name that is none."""
    names: list[str] = []
    for each in filter(None, (part.strip() for part in text.split(","))):
        if each.isdecimal():
            if not (each.isascii() and 1 <= int(each[:4]) <= len(shown)):
                raise ConfigError(f"there is no number {each[:20]}: {_numbers(shown)}")
            names.append(shown[int(each) - 1].option.name)
        else:
            check(each)
            names.append(each)
    if not names:
        raise ConfigError(f"name a model: {_numbers(shown)}")
    return tuple(dict.fromkeys(names))


def read_price(text: str, *, output: bool = False) -> int:
    """An amount of USDC per million input or ``output`` tokens, in token units. Raises ``ConfigError``."""
    try:
        units = usdc_units(text.removesuffix("USDC").strip())
    except ValueError as error:
        raise ConfigError(f"{text[:40]!r} is no amount of USDC, such as 0.5 ({error})") from error
    # A configuration refuses what is out of bounds, in its own words.
    NodeConfig(data_dir=Path(), price_out=units) if output else NodeConfig(data_dir=Path(), price_in=units)
    return units


def read_announced(text: str, port: int) -> tuple[str, ...]:
    """Where others reach the node: a public address, a name, or a multiaddr. Raises ``ConfigError``."""
    if text.lower() in ("", NONE):
        return ()
    address = text
    if not text.startswith("/"):
        try:
            version = ipaddress.ip_address(text).version
        except ValueError:
            address = f"/dns4/{text}/tcp/{port}"
        else:
            address = f"/ip{version}/{text}/tcp/{port}"
    check_announced(without_peer(address))
    return (address,)


def read_yes(text: str) -> bool:
    """Yes or no. Raises ``ConfigError``."""
    known = {"y": True, "yes": True, "n": False, "no": False}
    if text.lower() not in known:
        raise ConfigError("type yes or no")
    return known[text.lower()]


def _numbers(shown: Sequence[Recommendation]) -> str:
    named = "the name of a model in the catalogue, or the path of a GGUF file"
    return f"type a number from 1 to {len(shown)}, {named}" if shown else f"type {named}"


def _strings(values: Sequence[str]) -> str:
    return f"[{', '.join(map(_string, values))}]"


def _string(value: str) -> str:
    # A string of JSON is one of TOML, but for the one control character that JSON leaves as it is.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
