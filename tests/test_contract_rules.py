"""The package's constants of the contracts are those of the Vyper sources."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from p2pnode import contract_rules

CONTRACTS = Path(__file__).parents[1] / "chain" / "contracts"
NAMES = {
    "SESSION_FEE_MAX": ("JobMarketplace.vy", "SESSION_FEE_MAX"),
    "DURATION_MAX_S": ("JobMarketplace.vy", "DURATION_MAX"),
    "CHALLENGE_S": ("JobMarketplace.vy", "CHALLENGE"),
    "CLAIMS_MAX": ("JobMarketplace.vy", "CLAIMS_MAX"),
    "TOKENS_PER_PRICE": ("JobMarketplace.vy", "TOKENS_PER_PRICE"),
    "BPS": ("JobMarketplace.vy", "BPS"),
    "TREASURY_BPS": ("JobMarketplace.vy", "TREASURY_BPS"),
    "REPORTER_BPS": ("NodeRegistry.vy", "REPORTER_BPS"),
    "STAKE_MIN": ("NodeRegistry.vy", "STAKE_MIN"),
    "UNBONDING_S": ("NodeRegistry.vy", "UNBONDING"),
    "BOND": ("ModelRegistry.vy", "BOND"),
    "QUORUM": ("ModelRegistry.vy", "QUORUM"),
    "VOTING_S": ("ModelRegistry.vy", "VOTING"),
    "MANIFEST_BYTES_MAX": ("ModelRegistry.vy", "MANIFEST_MAX"),
}


def constant(file: str, name: str) -> int:
    """A constant's value in a Vyper source."""
    pattern = rf"^{name}: (?:public\()?constant\(uint256\)\)? = (.+)$"
    found = re.findall(pattern, (CONTRACTS / file).read_text(), re.MULTILINE)
    assert len(found) == 1, f"{name} stands {len(found)} times in {file}"
    count, _, power = found[0].partition(" * 10**")
    value = ast.literal_eval(count)
    assert isinstance(value, int)
    return value * int("1".ljust(1 + int(power or 0), "0"))


@pytest.mark.parametrize("name", NAMES)
def test_a_constant_is_the_one_of_the_contract(name: str) -> None:
    assert getattr(contract_rules, name) == constant(*NAMES[name])


def test_every_constant_of_the_module_is_compared() -> None:
    assert {name for name in vars(contract_rules) if name.isupper()} == NAMES.keys()


def test_both_contracts_give_shares_in_parts_of_the_same_number() -> None:
    assert constant("NodeRegistry.vy", "BPS") == contract_rules.BPS


def test_a_constant_that_is_not_there_is_told() -> None:
    with pytest.raises(AssertionError, match="stands 0 times"):
        constant("JobMarketplace.vy", "NO_SUCH_CONSTANT")


@pytest.mark.parametrize(("earned", "share"), [(0, 0), (9, 0), (10, 1), (19, 1), (1_000_000, 100_000)])
def test_the_treasury_takes_a_tenth_rounded_down(earned: int, share: int) -> None:
    assert contract_rules.treasury_share(earned) == share
