"""What a first-time host is suggested, which answers are taken, and how its settings are read back."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.config import load_config
from p2pnode.errors import ConfigError
from p2pnode.host.first_settings import (
    PRICE_IN_DEFAULT,
    PRICE_OUT_DEFAULT,
    FirstSettings,
    fitting,
    may_ask,
    read_announced,
    read_models,
    read_price,
    read_yes,
    suggested_model,
    suggested_price,
)
from p2pnode.ids import ModelId
from p2pnode.models.recommendation import Option, Recommendation
from p2pnode.protocols.adverts.messages import Advert
from tests.protocols.make_vectors import advert

MODELS = [ModelId(bytes([n]) * 32) for n in range(4)]


def found(name: str, *, fits: bool = True, here: bool = False) -> Recommendation:
    option = Option(name=name, model=MODELS[0], size_bytes=1, is_here=here)
    return Recommendation(option=option, fits=fits, memory=1, tokens_per_s=math.inf, would_fit="", why="")


def offering(*offers: tuple[ModelId, int, int]) -> Advert:
    plain = advert()
    one = plain.offers[0]
    made = tuple(
        replace(one, model=model, price_in=price_in, price_out=price_out)
        for model, price_in, price_out in offers
    )
    return replace(plain, offers=made)


def known(name: str) -> None:
    if name != "tiny":
        raise ConfigError(f"no model {name!r}")


def test_only_a_person_at_a_first_start_is_asked() -> None:
    person = {"terminal": True, "is_new": True, "answered": False, "as_json": False, "unasked": False}
    assert may_ask(**person)
    for reason, value in person.items():
        assert not may_ask(**{**person, reason: not value}), reason


def test_only_what_fits_is_shown_and_what_is_here_is_suggested() -> None:
    shown = fitting([found("large"), found("here", here=True), found("huge", fits=False)])
    assert [each.option.name for each in shown] == ["large", "here"]
    assert suggested_model(shown) == "here"
    assert suggested_model(shown[:1]) == "large"
    assert suggested_model(()) == ""


def test_a_price_is_the_median_of_the_same_model_then_of_others_then_a_default() -> None:
    same, other, free = (MODELS[0], 1_000_000, 3_000_000), (MODELS[1], 5, 7), (MODELS[0], 0, 0)
    more = (MODELS[0], 3_000_000, 5_000_000)
    price = suggested_price([MODELS[0]], [offering(same, other), offering(more, free)])
    assert (price.price_in, price.price_out) == (2_000_000, 4_000_000)
    assert "2 offers for the same model" in price.why
    price = suggested_price([MODELS[2]], [offering(other, free)])
    assert (price.price_in, price.price_out) == (5, 7)
    assert "1 offer for other models" in price.why
    price = suggested_price([MODELS[0]], [offering(free)])
    assert (price.price_in, price.price_out) == (PRICE_IN_DEFAULT, PRICE_OUT_DEFAULT)


def test_models_are_named_by_number_name_or_both() -> None:
    shown = [found("one"), found("two")]
    assert read_models("2", shown, known) == ("two",)
    assert read_models(" 1, tiny ,1", shown, known) == ("one", "tiny")


@pytest.mark.parametrize("text", ["", ",", "0", "3", "99999999999999999999", "²", "nope", "1,nope"])
def test_a_model_that_is_none_is_refused_with_what_to_type(text: str) -> None:
    with pytest.raises(ConfigError, match=r"number from 1 to 2|no model"):
        read_models(text, [found("one"), found("two")], known)


def test_a_price_is_an_amount_of_usdc_within_what_a_host_may_ask() -> None:
    assert read_price("0.5") == 500_000
    assert read_price("0 USDC", output=True) == 0
    for text in ("", "-1", "cheap", "0.0000001", "nan", "1e9", "0,5"):
        with pytest.raises(ConfigError, match=r"USDC"):
            read_price(text)
    with pytest.raises(ConfigError, match=r"price_out must be from 0 to 10000 USDC"):
        read_price("10001", output=True)


def test_an_address_is_written_as_people_know_it() -> None:
    assert read_announced("none", 4001) == ()
    assert read_announced("203.0.113.7", 4001) == ("/ip4/203.0.113.7/tcp/4001",)
    assert read_announced("2001:db8::7", 4001) == ("/ip6/2001:db8::7/tcp/4001",)
    assert read_announced("node.example.org", 4001) == ("/dns4/node.example.org/tcp/4001",)
    assert read_announced("/dns4/node.example.org/tcp/9", 4001) == ("/dns4/node.example.org/tcp/9",)


@pytest.mark.parametrize(
    "text", ["127.0.0.1", "0.0.0.0", "/ip4/203.0.113.7", "/tcp", "a b", "203.0.113.7:4001"]
)
def test_an_address_that_nobody_else_can_dial_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        read_announced(text, 4001)


def test_yes_and_no_are_read_and_nothing_else() -> None:
    assert read_yes("Y")
    assert not read_yes("no")
    with pytest.raises(ConfigError, match="yes or no"):
        read_yes("maybe")


@given(st.text(min_size=1).filter(lambda text: text.isprintable() or "\x7f" in text))
def test_settings_are_read_back_as_they_were_meant(text: str) -> None:
    import tomllib

    settings = FirstSettings(models=(text, "b"), chain=text, price_in=500_000, price_out=1)
    read = tomllib.loads(settings.toml())
    assert read == {"models": [text, "b"], "chain": text, "price_in": "0.50", "price_out": "0.000001"}


def test_settings_are_those_of_a_host(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    address = "/ip4/203.0.113.7/tcp/4001"
    settings = FirstSettings(models=("m",), chain="/c", price_in=5, price_out=7, announce=(address,))
    path.write_text(settings.toml())
    config = load_config(path, {"data_dir": tmp_path})
    assert (config.models, config.chain, config.price_in, config.price_out) == (("m",), "/c", 5, 7)
    assert config.announce == (address,)
    path.write_text(FirstSettings(models=("m",)).toml())
    config = load_config(path, {"data_dir": tmp_path})
    assert not config.asks_money
    assert config.chain == ""
