"""A chain profile: read, written, and compared with a chain. Every mistake names its field."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pnode.chain.addresses import address_from, shown_address
from p2pnode.chain.dev.blocks import Blocks
from p2pnode.chain.dev.embedded import EmbeddedChain, deploy
from p2pnode.chain.dev.jsonrpc import RpcRefusedError
from p2pnode.chain.dev.methods import EthMethods
from p2pnode.chain.dev.transaction_pool import TransactionPool
from p2pnode.chain.ledger import UnavailableError
from p2pnode.chain.profile import (
    ADDRESS_FIELDS,
    ChainProfile,
    load_profile,
    profile_of,
    profile_text,
    verify,
    write_profile,
)
from p2pnode.errors import ChainError, ConfigError
from tests.chain.contracts.support import ADDRESS

CHECKSUMMED = "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"
"""From EIP-55."""


def profile(**changes: Any) -> ChainProfile:
    usual: dict[str, Any] = {"chain_id": 84532, "rpc_urls": ("https://one.example/v2/key",)}
    usual |= {name: bytes([number + 1]) * 20 for number, name in enumerate(ADDRESS_FIELDS)}
    return ChainProfile(**(usual | changes))


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


# ---- addresses


def test_the_checksums_of_eip_55_are_ours() -> None:
    more = "0xfB6916095ca1df60bB79Ce92cE3Ea74c37c5d359", "0xD1220A0cf47c7B9Be7A2E6BA89F429762e7b9aDb"
    for text in (CHECKSUMMED, *more):
        assert shown_address(address_from(text.lower())) == text
        assert address_from(text) == bytes.fromhex(text[2:])
    assert address_from("0x" + CHECKSUMMED[2:].upper()) == address_from(CHECKSUMMED)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (CHECKSUMMED.replace("0x5aA", "0x5AA"), "checksum"),
        (CHECKSUMMED[:-1], "39"),
        (CHECKSUMMED + "0", "41"),
        (CHECKSUMMED[2:], "begins with 0x"),
        ("0x" + "g" * 40, "hex digits"),
        ("0x" + "1_" * 20, "hex digits"),
    ],
)
def test_a_mistyped_address_is_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why) as refused:
        address_from(text)
    digits = text.lower().removeprefix("0x")
    assert digits not in str(refused.value).lower()  # nobody can copy the wrong address from there


def test_an_address_may_be_pasted_over_two_lines() -> None:
    assert address_from(f" {CHECKSUMMED[:20]}\n  {CHECKSUMMED[20:]}\u200b\n") == address_from(CHECKSUMMED)


# ---- files


@given(
    name=st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    chain_id=st.integers(1, 2**63 - 1),
    cap=st.none() | st.integers(1, 2**60),
    confirmations=st.integers(1, 1000),
    genesis=st.none() | st.binary(min_size=32, max_size=32),
    addresses=st.lists(st.binary(min_size=20, max_size=20).filter(any), min_size=7, max_size=7),
)
def test_what_is_written_is_read_again(
    tmp_path_factory: pytest.TempPathFactory, addresses: list[bytes], cap: int | None, **rest: Any
) -> None:
    path = tmp_path_factory.mktemp("profile") / "chain.toml"
    made = profile(gas_price_max_wei=cap, **rest, **dict(zip(ADDRESS_FIELDS, addresses, strict=True)))
    write_profile(path, made)
    assert load_profile(path) == made


@pytest.mark.parametrize("name", ["chain_id", "rpc_urls", *ADDRESS_FIELDS])
def test_nothing_stands_in_for_a_missing_field(name: str, tmp_path: Path) -> None:
    kept = [line for line in profile_text(profile()).splitlines() if not line.startswith(name)]
    with pytest.raises(ConfigError, match=rf"chain.toml: {name} is missing"):
        load_profile(written(tmp_path / "chain.toml", "\n".join(kept)))


def test_optional_fields_may_be_left_out(tmp_path: Path) -> None:
    kept = [line for line in profile_text(profile()).splitlines() if not line.startswith("confirmations")]
    found = load_profile(written(tmp_path / "chain.toml", "\n".join(kept)))
    assert (found.confirmations, found.name, found.gas_price_max_wei) == (1, "", None)


def test_earnings_may_live_in_the_marketplace(tmp_path: Path) -> None:
    one = profile(host_earnings=b"\x01" * 20, job_marketplace=b"\x01" * 20)
    assert load_profile(written(tmp_path / "chain.toml", profile_text(one))) == one


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("usdd = 1", "'usdd' is no field of a chain profile: did you mean usdc"),
        ("zzz = 1", "known are chain_id"),
        (f'fab = "{CHECKSUMMED[:-1]}"', "fab = .*39"),
        (f'fab = "{CHECKSUMMED.replace("0x5aA", "0x5AA")}"', "fab = .*checksum"),
        ("fab = 5", "fab must be an address in quotes"),
        (f'fab = "0x{"00" * 20}"', "fab is the zero address"),
        ("chain_id = 0", "chain_id is 0"),
        ('chain_id = "84532"', "chain_id must be a whole number"),
        ("chain_id = true", "chain_id must be a whole number"),
        ("chain_id = 1.5", "chain_id must be a whole number"),
        ("confirmations = 0", "confirmations is 0"),
        ("gas_price_max_wei = 0", "gas_price_max_wei is 0"),
        ('rpc_urls = "https://one.example"', "rpc_urls must be a list"),
        ("rpc_urls = []", "rpc_urls must list 1 to 16"),
        ("rpc_urls = [7]", "rpc_urls must be a list of URLs"),
        ('rpc_urls = ["https://one.example", "ftp://secret-key"]', r"rpc_urls\[1\] must be an http"),
        ('rpc_urls = ["https://"]', r"rpc_urls\[0\]"),
        ('rpc_urls = ["https://[::1"]', r"rpc_urls\[0\]"),
        ('rpc_urls = ["https://a b.example"]', r"rpc_urls\[0\]"),
        ("name = 7", "name must be text"),
        ("= 7", "not valid TOML"),
    ],
)
def test_a_wrong_field_is_named(line: str, why: str, tmp_path: Path) -> None:
    field = line.partition(" ")[0]
    kept = [each for each in profile_text(profile()).splitlines() if each.partition(" ")[0] != field]
    with pytest.raises(ConfigError, match=why) as wrong:
        load_profile(written(tmp_path / "chain.toml", "\n".join([*kept, line])))
    assert str(wrong.value).startswith(str(tmp_path / "chain.toml"))


def test_a_url_that_may_hold_a_key_is_not_repeated_in_the_error() -> None:
    with pytest.raises(ConfigError) as wrong:
        profile(rpc_urls=("htps://rpc.example/v2/secret-key",))
    assert "secret" not in str(wrong.value)


def test_a_missing_file_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="chain dev"):
        load_profile(tmp_path / "none.toml")


# ---- against a chain


class Node:
    """An embedded chain that answers as any node; some answers may be replaced."""

    def __init__(self) -> None:
        self.chain = EmbeddedChain([b"\x01" * 32])
        first = self.chain.accounts[0]
        self.made = deploy(self.chain, first, treasury=ADDRESS["treasury"], fab_holder=first)
        self.other = deploy(self.chain, first, treasury=ADDRESS["treasury"], fab_holder=first)
        self._methods = EthMethods(
            self.chain, Blocks(self.chain), TransactionPool(self.chain), lambda: None
        ).methods()
        self.instead: dict[str, Any] = {}

    async def request(self, method: str, params: Sequence[Any], /) -> Any:
        key = params[0]["data"] if method == "eth_call" else method
        if key in self.instead:
            if isinstance(self.instead[key], Exception):
                raise self.instead[key]
            return self.instead[key]
        try:
            return self._methods[method](*params)
        except RpcRefusedError as error:
            raise ChainError(str(error)) from error

    def profile(self, **changes: Any) -> ChainProfile:
        made = profile_of(self.made.addresses, chain_id=self.chain.chain_id, rpc_urls=("http://localhost",))
        return replace(made, **changes)

    def answer(self, contract: str, getter: str, value: Any) -> None:
        """Replace what a getter says."""
        from eth_abi.abi import encode

        from p2pnode.chain.abi import artifact

        function = artifact(contract).function(getter, 0)
        self.instead["0x" + function.selector.hex()] = "0x" + encode(function.outputs, [value]).hex()


@pytest.fixture(scope="module")
def shared_node() -> Node:
    return Node()


@pytest.fixture
async def node(shared_node: Node) -> AsyncIterator[Node]:
    yield shared_node
    shared_node.instead.clear()


async def test_a_true_profile_verifies(node: Node) -> None:
    await verify(node.profile(), node)


async def test_another_chain_is_named_with_both_ids(node: Node) -> None:
    with pytest.raises(ConfigError, match=rf"chain_id: the profile says 8453, .* {node.chain.chain_id}"):
        await verify(node.profile(chain_id=8453), node)


@pytest.mark.parametrize("name", ADDRESS_FIELDS)
async def test_an_address_without_code_is_named(node: Node, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name}: 0x\w+ has no code"):
        await verify(node.profile(**{name: b"\x77" * 20}), node)


@pytest.mark.parametrize("name", ADDRESS_FIELDS)
async def test_a_contract_of_another_deployment_does_not_pass(node: Node, name: str) -> None:
    # What the other contract is wired to, or what is wired to it, gives it away.
    with pytest.raises(ConfigError, match=r"but the profile's \w+ is 0x"):
        await verify(node.profile(**{name: getattr(node.other.addresses, name)}), node)


@pytest.mark.parametrize(
    ("name", "instead"),
    [("job_marketplace", "fab"), ("usdc", "fab"), ("node_registry", "fab"), ("proof_system", "usdc")],
)
async def test_a_contract_of_another_kind_does_not_pass(node: Node, name: str, instead: str) -> None:
    with pytest.raises(ConfigError, match=r"chain profile: \w+: the contract at 0x"):
        await verify(node.profile(**{name: getattr(node.made.addresses, instead)}), node)


async def test_a_token_of_18_decimals_is_no_usdc(node: Node) -> None:
    node.answer("USDC", "decimals", 18)
    with pytest.raises(ConfigError, match=r"usdc: .* has 18 decimals, not 6"):
        await verify(node.profile(), node)


@pytest.mark.parametrize("getter", ["name", "version"])
async def test_a_token_that_can_not_be_signed_for_is_named(node: Node, getter: str) -> None:
    node.answer("USDC", getter, "")
    with pytest.raises(ConfigError, match=rf"usdc: .* empty {getter}"):
        await verify(node.profile(), node)


@pytest.mark.parametrize("answer", ["0x", "0x1234", "zz", None, 5])
async def test_an_answer_that_makes_no_sense_is_the_contracts_fault(node: Node, answer: Any) -> None:
    from p2pnode.chain.abi import artifact

    node.instead["0x" + artifact("USDC").function("version", 0).selector.hex()] = answer
    with pytest.raises(ConfigError, match=r"usdc: the contract at 0x\w+ has no version"):
        await verify(node.profile(), node)


async def test_an_rpc_that_is_away_is_not_called_a_wrong_profile(node: Node) -> None:
    node.instead["eth_getCode"] = UnavailableError("nobody answers")
    with pytest.raises(UnavailableError):
        await verify(node.profile(), node)


async def test_the_error_names_the_file_it_was_read_from(node: Node, tmp_path: Path) -> None:
    write_profile(tmp_path / "chain.toml", node.profile(chain_id=8453))
    with pytest.raises(ConfigError, match=r"chain.toml: chain_id"):
        await verify(load_profile(tmp_path / "chain.toml"), node)
