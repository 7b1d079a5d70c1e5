"""The configuration: flags over the file over the defaults, and every mistake named with its remedy."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.config import MONEY, NodeConfig, load_config
from p2pnode.errors import ConfigError, UsageError


def _load(tmp_path: Path, text: str, **flags: object) -> NodeConfig:
    path = tmp_path / "config.toml"
    path.write_text(text)
    return load_config(path, flags)


def test_flags_win_over_the_file_and_the_file_over_the_defaults(tmp_path: Path) -> None:
    config = _load(
        tmp_path, 'slots = 8\nmdns = false\nmodels = ["a", "b"]', slots=2, mdns=None, data_dir=tmp_path
    )
    assert (config.slots, config.mdns, config.models) == (2, False, ("a", "b"))
    assert config.n_ctx == NodeConfig().n_ctx
    assert config.data_dir == tmp_path


def test_no_file_is_all_defaults(tmp_path: Path) -> None:
    assert load_config(tmp_path / "none.toml", {}) == NodeConfig()
    assert load_config(tmp_path / "none.toml", {"slots": None}) == NodeConfig()


def test_the_fault_of_a_flag_is_told_from_that_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^--price-in must be from 0"):
        _load(tmp_path, "", price_in="10001")
    with pytest.raises(ConfigError, match=r"config\.toml: price_in must be from 0") as caught:
        _load(tmp_path, "price_in = 10001")
    assert not isinstance(caught.value, UsageError)


@pytest.mark.parametrize("written", ["0.1", '"0.1"', "1e-1", "0.100000"])
def test_money_in_the_file_is_usdc_and_exact(tmp_path: Path, written: str) -> None:
    config = _load(tmp_path, f"price_in = {written}\nsession_fee = {written}\nspend_day_max = {written}")
    assert (config.price_in, config.session_fee, config.spend_day_max) == (100_000,) * 3


def test_a_whole_number_is_usdc_too_and_flags_speak_the_same_language(tmp_path: Path) -> None:
    assert _load(tmp_path, "price_in = 5", price_out="0.5") == NodeConfig(
        price_in=5_000_000, price_out=500_000
    )


@pytest.mark.parametrize("written", ["-1", "true", "[1]", '"5 USDC"', "0.0000001", "inf", "1000000"])
@pytest.mark.parametrize("name", MONEY)
def test_what_is_no_amount_of_usdc_is_an_error_that_names_it(tmp_path: Path, name: str, written: str) -> None:
    with pytest.raises(ConfigError, match=rf"config\.toml: {name} must be"):
        _load(tmp_path, f"{name} = {written}")


def test_the_data_dir_is_no_setting_of_the_file_that_lies_in_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'data_dir' is no setting"):
        _load(tmp_path, "data_dir = '/somewhere'")


@given(name=st.sampled_from(["price_in", "price_out", "n_ctx", "slots", "threads"]), value=st.integers())
def test_a_number_is_either_taken_as_it_is_or_refused_by_name(name: str, value: int) -> None:
    try:
        config = NodeConfig(**{name: value})  # type: ignore[arg-type]
    except ConfigError:
        with pytest.raises(ConfigError, match=rf"^{name} must be from \d+ to \d+"):
            NodeConfig(**{name: value})  # type: ignore[arg-type]
    else:
        assert getattr(config, name) == value


OWNER = "0b" * 32


@pytest.mark.parametrize("rules", [(), ("anyone",), ("sessions", OWNER), (OWNER.upper(), "cd" * 32)])
def test_whom_a_node_stores_for_is_taken_as_it_is_written(rules: tuple[str, ...]) -> None:
    assert NodeConfig(store_for=rules).store_for == rules


@pytest.mark.parametrize("rule", ["", "session", "Anyone", OWNER[:-1], OWNER + "0", "0x" + OWNER, "zz" * 32])
def test_whom_a_node_stores_for_must_make_sense(rule: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^store_for must name owner keys \(64 hex digits\), sessions or"):
        NodeConfig(store_for=("anyone", rule))
    with pytest.raises(UsageError, match=r"^--store-for must name owner keys"):
        _load(tmp_path, "", store_for=[rule])
