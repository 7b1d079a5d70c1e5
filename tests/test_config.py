"""The configuration: flags over the file over the defaults, and every mistake named with its remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.config import MONEY, ModelSettings, NodeConfig, load_config, size_bytes
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


def test_models_may_be_tables_with_settings_of_their_own(tmp_path: Path) -> None:
    text = """
        price_out = 1.5
        memory = "8GB"
        unload_minutes = 30
        [models.small]
        [models."/srv/large.gguf"]
        price_out = 3
        n_ctx = 4096
        pinned = true
    """
    config = _load(tmp_path, text)
    assert (config.models, config.memory) == (("small", "/srv/large.gguf"), 8_000_000_000)
    small, large = map(config.of_model, config.models)
    assert (small.price_out, small.n_ctx, small.slots, small.pinned) == (1_500_000, 0, 4, False)
    assert (large.price_out, large.n_ctx, large.slots, large.pinned) == (3_000_000, 4096, 4, True)
    assert config.asks_money
    over = _load(tmp_path, text, per_model={"small": ModelSettings(price_out=0, slots=1)})
    assert (over.of_model("small").price_out, over.of_model("small").slots) == (0, 1)
    assert over.of_model("/srv/large.gguf") == large


@pytest.mark.parametrize(
    ("text", "flags", "says"),
    [
        ("[models.a]\nprice_out = 1", {"price_out": "2"}, r"--price-out is for all models.*1\.00 for a"),
        (
            "[models.a]",
            {"per_model": {"b": ModelSettings(slots=1)}},
            "model b is given a setting",
        ),
        ("", {"models": ("a", "b", "a")}, "model a is named twice"),
        ("[models.a]\nprise_out = 1", {}, "did you mean price_out"),
        ("[models.a]\nslots = 900", {}, r"models\.a: slots must be from 1 to 64"),
        ("[models.a]\npinned = 3", {}, "pinned must be true or false"),
        ("[models]\na = 3", {}, r"models\.a must be a table"),
        ("", {"memory": "much"}, "'much' is no size"),
        ("unload_minutes = -1", {}, "unload_minutes must be from 0"),
    ],
)
def test_what_contradicts_itself_is_refused_in_words(
    tmp_path: Path, text: str, flags: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        _load(tmp_path, text, **flags)


def test_a_flag_for_all_models_may_say_what_the_file_says_of_one_or_name_that_one(tmp_path: Path) -> None:
    text = "[models.a]\nprice_out = 1\n[models.b]"
    assert _load(tmp_path, text, price_out="1").of_model("b").price_out == 1_000_000
    named = _load(tmp_path, text, price_out="2", per_model={"a": ModelSettings(price_out=3_000_000)})
    assert [named.of_model(name).price_out for name in named.models] == [3_000_000, 2_000_000]


@pytest.mark.parametrize(
    ("text", "size"), [("8GB", 8 * 10**9), ("1.5 GiB", 3 << 29), ("512MB", 512 * 10**6), ("77", 77)]
)
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert size_bytes(text) == size
