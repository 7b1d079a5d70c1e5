"""Commitments: once, by the session's host, and in nobody's way. Attacks by name."""

from __future__ import annotations

import pytest

from p2pnode.chain.abi import NO_VOUCHER, terms_tuple
from p2pnode.chain.ledger import RevertedError
from tests.chain.contracts.support import ADDRESS, World

COMMITMENT = b"\1" * 32


def test_a_host_commits_once_and_cannot_change_its_mind(world: World) -> None:
    terms = world.opened_terms()
    world.proofs.send(ADDRESS["host"], "commit", terms_tuple(terms), COMMITMENT)
    assert world.proofs.read("commitment_of", world.id_of(terms)) == COMMITMENT
    with pytest.raises(RevertedError, match="already committed"):
        world.proofs.send(ADDRESS["host"], "commit", terms_tuple(terms), b"\2" * 32)


def test_a_stranger_that_replays_a_commitment_blocks_nobody(world: World) -> None:
    terms = world.opened_terms()
    with pytest.raises(RevertedError, match="not the host"):
        world.proofs.send(ADDRESS["stranger"], "commit", terms_tuple(terms), COMMITMENT)
    world.proofs.send(ADDRESS["host"], "commit", terms_tuple(terms), COMMITMENT)
    world.close(terms, world.voucher(terms))


def test_empty_commitments_and_unopened_sessions_are_refused(world: World) -> None:
    terms = world.opened_terms()
    with pytest.raises(RevertedError, match="empty commitment"):
        world.proofs.send(ADDRESS["host"], "commit", terms_tuple(terms), bytes(32))
    with pytest.raises(RevertedError, match="not open"):
        world.proofs.send(ADDRESS["host"], "commit", terms_tuple(world.terms()), COMMITMENT)


def test_a_host_that_waits_until_it_was_paid_or_asked_to_close_or_expired_cannot_commit(world: World) -> None:
    settled, asked, expired = world.opened_terms(), world.opened_terms(), world.opened_terms()
    world.close(settled, world.voucher(settled))
    world.market.send(ADDRESS["payer"], "request_close", terms_tuple(asked), NO_VOUCHER, b"")
    for terms, reason in ((settled, "not open"), (asked, "closing")):
        with pytest.raises(RevertedError, match=reason):
            world.proofs.send(ADDRESS["host"], "commit", terms_tuple(terms), COMMITMENT)
    world.chain.travel(3600)
    with pytest.raises(RevertedError, match="expired"):
        world.proofs.send(ADDRESS["host"], "commit", terms_tuple(expired), COMMITMENT)


def test_payment_never_waits_for_a_proof(world: World) -> None:
    terms = world.opened_terms()
    world.close(terms, world.voucher(terms))
    assert world.proofs.read("commitment_of", world.id_of(terms)) == bytes(32)
