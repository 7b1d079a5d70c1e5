"""Stake, and losing it for two receipts in one place. Attacks by name."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest

from p2pnode.chain.abi import terms_tuple
from p2pnode.chain.dev.embedded import Receipt
from p2pnode.chain.ledger import RevertedError
from p2pnode.protocols.crypto import keccak256
from p2pnode.protocols.inference.messages import SessionTerms
from p2pnode.protocols.inference.receipts import NO_FINGERPRINT, ReceiptChain, token_hash
from tests.chain.contracts.support import ADDRESS, DAY, FAB, World, malleable_twin, sign

STAKE = 1_000 * FAB
PEER_KEY = keccak256(b"peer key")
WEEK = 7 * DAY


@dataclass(frozen=True)
class Registry:
    """The registry, with a host staked in it."""

    world: World

    def send(self, sender: str, name: str, *arguments: Any) -> Receipt:
        return self.world.nodes.send(ADDRESS[sender], name, *arguments)

    def node(self, host: str = "host") -> tuple[int, int, int]:
        """Stake, what unbonds, and when."""
        _, _, stake, unbonding, unbonds_at = self.world.nodes.read("node", ADDRESS[host])
        return stake, unbonding, unbonds_at

    def fab(self, who: str) -> int:
        return int(self.world.fab.read("balanceOf", ADDRESS[who]))

    def supply(self) -> int:
        return int(self.world.fab.read("totalSupply"))

    def slash(self, terms: SessionTerms, a: Any, b: Any, *, by: str = "stranger", **place: int) -> Receipt:
        seq, epoch = place.get("seq", 1), place.get("epoch", 3)
        return self.send(by, "slash", terms_tuple(terms), epoch, seq, a, b)


@pytest.fixture
def registry(world: World) -> Registry:
    for name in ("host", "rival"):
        world.fab.send(ADDRESS["deployer"], "transfer", ADDRESS[name], 10 * STAKE)
        world.fab.send(ADDRESS[name], "approve", world.nodes.address, 10 * STAKE)
    made = Registry(world)
    made.send("host", "register", PEER_KEY, ADDRESS["receipt key"], STAKE)
    return made


def link(
    world: World,
    terms: SessionTerms,
    answer: str,
    *,
    epoch: int = 3,
    signer: str = "receipt key",
    links: int = 1,
) -> Any:
    """The last receipt of a chain for this answer, exactly as a host signs it while streaming."""
    chain = ReceiptChain.begin(world.id_of(terms), terms.model, b"secret salt", epoch)
    previous, hashed = b"", b""
    for number in range(1, links + 1):
        previous, hashed = chain.root, token_hash([answer.encode()])
        chain.advance(10, 32 * number, hashed, NO_FINGERPRINT)
    signature = sign(signer, chain.digest())
    return previous, 10, 32 * links, hashed, NO_FINGERPRINT, signature


def test_a_liar_loses_everything_a_tenth_to_the_reporter_the_rest_burned(
    world: World, registry: Registry
) -> None:
    terms = world.opened_terms()
    supply = registry.supply()
    registry.slash(terms, link(world, terms, "yes"), link(world, terms, "no"))
    assert registry.node() == (0, 0, 0)
    assert registry.fab("stranger") == STAKE // 10
    assert registry.supply() == supply - STAKE * 9 // 10


def test_the_receipts_are_those_of_the_inference_protocol_also_deep_in_a_chain(
    world: World, registry: Registry
) -> None:
    terms = world.opened_terms()
    a, b = link(world, terms, "yes", links=5), link(world, terms, "no", links=5)
    registry.slash(terms, a, b, seq=5)
    assert registry.node() == (0, 0, 0)


def test_the_same_evidence_slashes_once_also_swapped_or_with_a_third_receipt(
    world: World, registry: Registry
) -> None:
    terms = world.opened_terms()
    yes, no, perhaps = (link(world, terms, answer) for answer in ("yes", "no", "perhaps"))
    registry.slash(terms, yes, no)
    registry.send("host", "register", PEER_KEY, ADDRESS["receipt key"], STAKE)
    for a, b in ((yes, no), (no, yes), (yes, perhaps)):
        with pytest.raises(RevertedError, match="already punished"):
            registry.slash(terms, a, b)
    assert registry.node() == (STAKE, 0, 0)


@pytest.mark.parametrize(("epoch", "links"), [(3, 2), (4, 1)])
def test_a_lie_in_another_place_costs_the_stake_again(
    world: World, registry: Registry, epoch: int, links: int
) -> None:
    terms = world.opened_terms()
    registry.slash(terms, link(world, terms, "yes"), link(world, terms, "no"))
    registry.send("host", "register", PEER_KEY, ADDRESS["receipt key"], STAKE)
    a, b = (link(world, terms, answer, epoch=epoch, links=links) for answer in ("yes", "no"))
    registry.slash(terms, a, b, epoch=epoch, seq=links)
    assert registry.node() == (0, 0, 0)


def test_a_self_report_recovers_nothing(world: World, registry: Registry) -> None:
    terms = world.opened_terms()
    held = registry.fab("host")
    registry.slash(terms, link(world, terms, "yes"), link(world, terms, "no"), by="host")
    assert registry.fab("host") == held
    assert registry.node() == (0, 0, 0)


def test_a_self_report_through_a_friend_loses_nine_tenths(world: World, registry: Registry) -> None:
    terms = world.opened_terms()
    held = registry.fab("host") + registry.fab("stranger")
    registry.slash(terms, link(world, terms, "yes"), link(world, terms, "no"), by="stranger")
    assert registry.fab("host") + registry.fab("stranger") == held + STAKE // 10


def test_a_payer_that_names_its_own_receipt_key_cannot_slash_an_honest_host(
    world: World, registry: Registry
) -> None:
    terms = world.opened_terms(receipt_key=ADDRESS["payer"])
    a, b = (link(world, terms, answer, signer="payer") for answer in ("yes", "no"))
    with pytest.raises(RevertedError, match="not the host's key"):
        registry.slash(terms, a, b)
    assert registry.node() == (STAKE, 0, 0)


def test_receipts_of_a_session_that_was_never_opened_slash_nobody(world: World, registry: Registry) -> None:
    terms = world.terms()
    with pytest.raises(RevertedError, match="no such session"):
        registry.slash(terms, link(world, terms, "yes"), link(world, terms, "no"))


def test_an_honest_host_is_never_slashed(world: World, registry: Registry) -> None:
    terms, other = world.opened_terms(), world.opened_terms()
    yes = link(world, terms, "yes")
    restarted = link(world, terms, "no", epoch=4)
    elsewhere = link(world, other, "no")
    later = link(world, terms, "yes", links=2)
    forged = link(world, terms, "no", signer="stranger")
    twin = (*yes[:5], malleable_twin(yes[5]))
    renamed = (*yes[:2], 33, *yes[3:])
    with pytest.raises(RevertedError, match="no conflict"):
        registry.slash(terms, yes, yes)
    with pytest.raises(RevertedError, match="no conflict"):
        registry.slash(terms, yes, twin)
    for second in (restarted, elsewhere, later, forged, renamed, (*yes[:3], bytes(32), *yes[4:5], b"")):
        for a, b in ((yes, second), (second, yes)):
            with pytest.raises(RevertedError, match="bad signature"):
                registry.slash(terms, a, b)
    assert registry.node() == (STAKE, 0, 0)


def test_an_instant_unstake_does_not_dodge_slashing(world: World, registry: Registry) -> None:
    terms = world.opened_terms()
    registry.send("host", "unbond", STAKE)
    with pytest.raises(RevertedError, match="too early"):
        registry.send("host", "withdraw", ADDRESS["host"])
    assert registry.node()[:2] == (0, STAKE)
    registry.slash(terms, link(world, terms, "yes"), link(world, terms, "no"))
    assert registry.node() == (0, 0, 0)
    world.chain.travel(WEEK)
    with pytest.raises(RevertedError, match="nothing unbonding"):
        registry.send("host", "withdraw", ADDRESS["host"])


def test_unbonding_from_day_one_is_no_instant_exit_for_ever(world: World, registry: Registry) -> None:
    """What unbonds backs nothing at once; what backs a host is always seven days from the door."""
    registry.send("host", "unbond", STAKE)
    assert registry.node()[0] == 0
    world.chain.travel(30 * DAY)
    registry.send("host", "rebond")
    assert registry.node() == (STAKE, 0, 0)
    with pytest.raises(RevertedError, match="nothing unbonding"):
        registry.send("host", "withdraw", ADDRESS["host"])
    registry.send("host", "unbond", STAKE)
    with pytest.raises(RevertedError, match="too early"):
        registry.send("host", "withdraw", ADDRESS["host"])


def test_unbonding_more_starts_the_week_again_for_all_of_it(world: World, registry: Registry) -> None:
    registry.send("host", "add_stake", 2 * STAKE)
    registry.send("host", "unbond", STAKE)
    world.chain.travel(WEEK - 60)
    registry.send("host", "unbond", STAKE)
    world.chain.travel(60)
    with pytest.raises(RevertedError, match="too early"):
        registry.send("host", "withdraw", ADDRESS["host"])
    world.chain.travel(WEEK)
    held = registry.fab("host")
    registry.send("host", "withdraw", ADDRESS["host"])
    assert registry.fab("host") == held + 2 * STAKE
    assert registry.node() == (STAKE, 0, 0)


def test_a_new_receipt_key_does_not_wash_away_what_the_old_one_signed(
    world: World, registry: Registry
) -> None:
    terms = world.opened_terms()
    registry.send("host", "register", PEER_KEY, ADDRESS["other receipt key"], 0)
    registry.slash(terms, link(world, terms, "yes"), link(world, terms, "no"))
    assert registry.node() == (0, 0, 0)


def test_a_host_cannot_spend_evidence_against_itself_while_nothing_is_at_stake(
    world: World, registry: Registry
) -> None:
    terms = world.opened_terms()
    yes, no = link(world, terms, "yes"), link(world, terms, "no")
    registry.send("host", "unbond", STAKE)
    world.chain.travel(WEEK)
    registry.send("host", "withdraw", ADDRESS["host"])
    with pytest.raises(RevertedError, match="nothing at stake"):
        registry.slash(terms, yes, no, by="host")
    registry.send("host", "register", PEER_KEY, ADDRESS["receipt key"], STAKE)
    registry.slash(terms, yes, no)
    assert registry.node() == (0, 0, 0)


def test_a_rival_registering_the_same_ids_evicts_nobody(world: World, registry: Registry) -> None:
    record = world.nodes.read("node", ADDRESS["host"])
    registry.send("rival", "register", PEER_KEY, ADDRESS["receipt key"], STAKE)
    assert world.nodes.read("node", ADDRESS["host"]) == record
    registry.send("host", "register", PEER_KEY, ADDRESS["receipt key"], STAKE)
    terms = world.opened_terms()
    registry.slash(terms, link(world, terms, "yes"), link(world, terms, "no"))
    assert registry.node("rival")[0] == STAKE


def test_a_conflict_in_a_rivals_session_costs_the_rival(world: World, registry: Registry) -> None:
    registry.send("rival", "register", PEER_KEY, ADDRESS["other receipt key"], STAKE)
    terms = world.opened_terms(host=ADDRESS["rival"], receipt_key=ADDRESS["other receipt key"])
    a, b = (link(world, terms, answer, signer="other receipt key") for answer in ("yes", "no"))
    with pytest.raises(RevertedError, match="no such session"):
        registry.slash(replace(terms, host=ADDRESS["host"]), a, b)
    registry.slash(terms, a, b)
    assert (registry.node()[0], registry.node("rival")[0]) == (STAKE, 0)


def test_a_closed_session_is_judged_all_the_same(world: World, registry: Registry) -> None:
    terms = world.opened_terms()
    world.close(terms, world.voucher(terms))
    registry.slash(terms, link(world, terms, "yes"), link(world, terms, "no"))
    assert registry.node() == (0, 0, 0)


def test_stake_is_never_below_the_least_and_keys_are_never_zero(world: World, registry: Registry) -> None:
    for sender, name, arguments, reason in (
        ("rival", "register", (PEER_KEY, ADDRESS["receipt key"], STAKE - 1), "stake too low"),
        ("rival", "register", (bytes(32), ADDRESS["receipt key"], STAKE), "zero key"),
        ("rival", "register", (PEER_KEY, bytes(20), STAKE), "zero key"),
        ("rival", "add_stake", (STAKE,), "not registered"),
        ("rival", "unbond", (1,), "bad amount"),
        ("rival", "rebond", (), "nothing unbonding"),
        ("host", "unbond", (0,), "bad amount"),
        ("host", "unbond", (STAKE + 1,), "bad amount"),
        ("host", "unbond", (1,), "stake too low"),
        ("stranger", "register", (PEER_KEY, ADDRESS["receipt key"], STAKE), "FAB: "),
    ):
        with pytest.raises(RevertedError, match=reason):
            registry.send(sender, name, *arguments)


def test_stake_withdrawn_to_a_contract_that_would_keep_it_is_refused(
    world: World, registry: Registry
) -> None:
    registry.send("host", "unbond", STAKE)
    world.chain.travel(WEEK)
    for to in (world.nodes.address, world.fab.address, bytes(20)):
        with pytest.raises(RevertedError, match="bad recipient"):
            registry.send("host", "withdraw", to)
    registry.send("host", "withdraw", ADDRESS["watchtower"])
    assert registry.fab("watchtower") == STAKE
