"""Opinions on models: they cost a bond, lock votes, and evict nobody. Attacks by name."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from p2pnode.chain.dev.embedded import Receipt
from p2pnode.chain.ledger import RevertedError
from tests.chain.contracts.support import ADDRESS, DAY, FAB, World

BOND = 1_000 * FAB
QUORUM = 10_000_000 * FAB
WEEK = 7 * DAY
MANIFEST = b'{"architecture":"llama","n_ctx":2048}'
MODEL = hashlib.sha256(b"p2pnode/model/1\0" + MANIFEST).digest()


@pytest.fixture(autouse=True)
def holders(world: World) -> None:
    for name in ("host", "rival", "stranger"):
        world.fab.send(ADDRESS["deployer"], "transfer", ADDRESS[name], 2 * QUORUM)
        world.fab.send(ADDRESS[name], "approve", world.models.address, 2 * QUORUM)


def send(world: World, sender: str, name: str, *arguments: Any) -> Receipt:
    return world.models.send(ADDRESS[sender], name, *arguments)


def fab(world: World, who: str) -> int:
    return int(world.fab.read("balanceOf", ADDRESS[who]))


def accepted(world: World, number: int) -> bool:
    return bool(world.models.read("is_accepted", number))


def test_a_models_id_is_the_hash_that_nodes_compute(world: World) -> None:
    receipt = send(world, "host", "propose", MANIFEST)
    (event,) = world.models.events(receipt)
    assert event.fields["model_id"] == MODEL
    assert event.fields["manifest"] == MANIFEST


def test_a_vote_with_a_quorum_accepts_and_everything_comes_back(world: World) -> None:
    held = {name: fab(world, name) for name in ("host", "rival", "stranger")}
    send(world, "host", "propose", MANIFEST)
    send(world, "stranger", "vote", 1, True, QUORUM)
    send(world, "rival", "vote", 1, False, QUORUM - 1)
    assert not accepted(world, 1)
    world.chain.travel(WEEK)
    assert accepted(world, 1)
    send(world, "payer", "unlock", 1, ADDRESS["stranger"])
    send(world, "payer", "unlock", 1, ADDRESS["rival"])
    send(world, "payer", "return_bond", 1)
    assert {name: fab(world, name) for name in held} == held
    assert int(world.fab.read("balanceOf", world.models.address)) == 0


@pytest.mark.parametrize(("yes", "no"), [(QUORUM - 1, 0), (QUORUM, QUORUM), (QUORUM, QUORUM + 1)])
def test_a_tie_a_minority_or_too_few_votes_accept_nothing(world: World, yes: int, no: int) -> None:
    send(world, "host", "propose", MANIFEST)
    send(world, "stranger", "vote", 1, True, yes)
    if no:
        send(world, "rival", "vote", 1, False, no)
    world.chain.travel(WEEK)
    assert not accepted(world, 1)


def test_voting_twice_with_the_same_tokens_is_refused(world: World) -> None:
    send(world, "host", "propose", MANIFEST)
    send(world, "stranger", "vote", 1, True, 2 * QUORUM)
    with pytest.raises(RevertedError, match="FAB: "):
        send(world, "stranger", "vote", 1, True, 1)
    with pytest.raises(RevertedError, match="vote is on"):
        send(world, "stranger", "unlock", 1, ADDRESS["stranger"])
    with pytest.raises(RevertedError, match="FAB: balance too low"):
        world.fab.send(ADDRESS["stranger"], "transfer", ADDRESS["rival"], 1)


def test_votes_and_bonds_come_back_once(world: World) -> None:
    send(world, "host", "propose", MANIFEST)
    send(world, "stranger", "vote", 1, True, 5)
    send(world, "rival", "propose", MANIFEST)
    with pytest.raises(RevertedError, match="vote is on"):
        send(world, "host", "return_bond", 1)
    world.chain.travel(WEEK)
    send(world, "host", "return_bond", 1)
    send(world, "stranger", "unlock", 1, ADDRESS["stranger"])
    with pytest.raises(RevertedError, match="bond is back"):
        send(world, "host", "return_bond", 1)
    with pytest.raises(RevertedError, match="nothing locked"):
        send(world, "stranger", "unlock", 1, ADDRESS["stranger"])
    with pytest.raises(RevertedError, match="nothing locked"):
        send(world, "host", "unlock", 1, ADDRESS["host"])


def test_a_rival_with_a_duplicate_proposal_and_all_the_votes_evicts_nobody(world: World) -> None:
    send(world, "host", "propose", MANIFEST)
    send(world, "host", "vote", 1, True, QUORUM)
    world.chain.travel(WEEK)
    send(world, "rival", "propose", MANIFEST)
    send(world, "rival", "vote", 2, False, QUORUM)
    with pytest.raises(RevertedError, match="vote is over"):
        send(world, "rival", "vote", 1, False, 1)
    world.chain.travel(WEEK)
    assert accepted(world, 1)
    assert not accepted(world, 2)
    terms = world.opened_terms(model=MODEL)
    world.close(terms, world.voucher(terms))


def test_a_proposal_needs_a_bond_and_a_manifest(world: World) -> None:
    with pytest.raises(RevertedError, match="FAB: "):
        send(world, "payer", "propose", MANIFEST)
    with pytest.raises(RevertedError, match="no manifest"):
        send(world, "host", "propose", b"")
    with pytest.raises(RevertedError, match="no such proposal"):
        send(world, "host", "vote", 1, True, 1)
    send(world, "host", "propose", MANIFEST)
    with pytest.raises(RevertedError, match="bad amount"):
        send(world, "host", "vote", 1, True, 0)
    assert not accepted(world, 9)


def test_attestations_speak_in_ones_own_name_only_and_can_be_taken_back(world: World) -> None:
    send(world, "host", "attest", MODEL, b"\1" * 32)
    send(world, "rival", "attest", MODEL, b"\2" * 32)
    assert world.models.read("attestation", MODEL, ADDRESS["host"]) == b"\1" * 32
    send(world, "host", "attest", MODEL, bytes(32))
    assert world.models.read("attestation", MODEL, ADDRESS["host"]) == bytes(32)
    assert world.models.read("attestation", MODEL, ADDRESS["rival"]) == b"\2" * 32


def test_votes_never_gate_a_session(world: World) -> None:
    unheard_of = world.opened_terms(model=bytes(32))
    world.close(unheard_of, world.voucher(unheard_of))
