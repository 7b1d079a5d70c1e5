"""Who may be asked is the user's word, by peer id or wallet, and a stranger is never asked in its place."""

from __future__ import annotations

import pytest

from p2pnode.chain.addresses import shown_address
from p2pnode.client.host_rules import HostRules
from p2pnode.config import NodeConfig
from p2pnode.errors import ConfigError
from p2pnode.ids import host_name
from tests.client.support import advert, peer

ONE, OTHER = advert(1), advert(2)
WALLET = shown_address(ONE.binding.wallet)


@pytest.mark.parametrize(
    "name", [peer(1), f"/ip4/192.0.2.1/tcp/4001/p2p/{peer(1)}", WALLET, WALLET.lower(), f" {peer(1)} "]
)
def test_a_host_is_named_by_its_peer_id_an_address_or_its_wallet(name: str) -> None:
    assert HostRules.of(only=[name]).exclusion(ONE) == ""
    assert "to ask only others" in HostRules.of(only=[name]).exclusion(OTHER)
    assert "never to ask it" in HostRules.of(never=[name]).exclusion(ONE)
    assert HostRules.of(never=[name]).exclusion(OTHER) == ""
    assert HostRules.of(trust=[name]).trusts(ONE)
    assert not HostRules.of(trust=[name]).trusts(OTHER)


@pytest.mark.parametrize(
    "name",
    ["", "bob", "12D3…tZAyZi", peer(1)[:-1], f"{peer(1)}x", "0x1234", "0x" + "g" * 40, "/ip4/192.0.2.1"],
)
def test_what_names_no_host_is_refused_with_what_does(name: str) -> None:
    with pytest.raises(ValueError, match="whole peer id"):
        host_name(name)
    with pytest.raises(ConfigError, match="whole peer id"):
        HostRules.of(trust=[name])


def test_a_name_in_the_configuration_that_names_no_host_is_refused_there() -> None:
    assert NodeConfig(trust=(peer(1), WALLET)).trust == (peer(1), WALLET)
    with pytest.raises(ConfigError, match="names no host"):
        NodeConfig(trust=("bob",))


def test_never_counts_before_only() -> None:
    assert HostRules.of(only=[peer(1)], never=[WALLET]).exclusion(ONE) != ""


def test_who_trusts_somebody_may_ask_strangers_until_somebody_trusted_knows() -> None:
    rules = HostRules.of(trust=[peer(1)])
    assert rules.exclusion(OTHER) == ""
    kept = rules.keep_to_trusted()
    assert "a stranger" in kept.exclusion(OTHER)
    assert kept.exclusion(ONE) == ""


def test_who_trusts_nobody_has_no_strangers() -> None:
    assert HostRules().keep_to_trusted().exclusion(OTHER) == ""


def test_a_stranger_that_is_named_is_let_in() -> None:
    kept = HostRules.of(trust=[peer(1)], only=[peer(2)]).keep_to_trusted()
    assert kept.exclusion(OTHER) == ""
