"""FAB: a supply made once, allowances by signature, and a burn."""

from __future__ import annotations

import pytest

from p2pnode.chain.ledger import RevertedError
from tests.chain.contracts.digests import fab_domain, permit_digest
from tests.chain.contracts.support import ADDRESS, FAB, World, malleable_twin, sign

SUPPLY = 10**9 * FAB
HOLDER, HOST = ADDRESS["deployer"], ADDRESS["host"]


def test_the_supply_is_made_once_and_only_shrinks(world: World) -> None:
    assert world.fab.read("totalSupply") == world.fab.read("balanceOf", HOLDER) == SUPPLY
    world.fab.send(HOLDER, "burn", 5)
    assert world.fab.read("totalSupply") == world.fab.read("balanceOf", HOLDER) == SUPPLY - 5
    assert not [entry for entry in world.fab.artifact.abi if "mint" in entry.get("name", "")]


def test_transfers_are_bounded_by_balance_and_allowance(world: World) -> None:
    for call, reason in (
        (("transfer", HOST, 1), "balance too low"),
        (("transferFrom", HOLDER, HOST, 1), "allowance too low"),
        (("burn", 1), "balance too low"),
    ):
        with pytest.raises(RevertedError, match=f"FAB: {reason}"):
            world.fab.send(HOST, *call)
    with pytest.raises(RevertedError, match="FAB: zero address"):
        world.fab.send(HOLDER, "transfer", bytes(20), 1)
    world.fab.send(HOLDER, "approve", HOST, 3)
    world.fab.send(HOST, "transferFrom", HOLDER, HOST, 3)
    assert world.fab.read("balanceOf", HOST) == 3
    assert world.fab.read("allowance", HOLDER, HOST) == 0


def test_a_permit_is_used_once_before_its_deadline_and_by_its_owners_key_only(world: World) -> None:
    deadline = world.chain.now + 600

    def permit(signer: str = "deployer", **changes: int) -> bytes:
        fields = {"amount": 9, "nonce": 0, "deadline": deadline} | changes
        domain = fab_domain(changes.pop("chain_id", world.chain.chain_id), world.fab.address)
        fields.pop("chain_id", None)
        return sign(signer, permit_digest(domain, owner=HOLDER, spender=HOST, **fields))

    def send(signature: bytes, until: int = deadline) -> None:
        v, r, s = signature[64], signature[:32], signature[32:64]
        world.fab.send(ADDRESS["stranger"], "permit", HOLDER, HOST, 9, until, v, r, s)

    good = permit()
    for bad in (
        permit("host"), permit(amount=8), permit(nonce=1), permit(deadline=deadline + 1),
        permit(chain_id=1), malleable_twin(good), good[:64] + b"\0",
    ):  # fmt: skip
        with pytest.raises(RevertedError, match="FAB: bad signature"):
            send(bad)
    with pytest.raises(RevertedError, match="FAB: expired"):
        send(permit(deadline=world.chain.now), until=world.chain.now)
    send(good)
    assert world.fab.read("allowance", HOLDER, HOST) == 9
    with pytest.raises(RevertedError, match="FAB: bad signature"):
        send(good)


def test_nobody_permits_in_the_zero_addresss_name(world: World) -> None:
    with pytest.raises(RevertedError, match="FAB: bad signature"):
        world.fab.send(HOST, "permit", bytes(20), HOST, 9, world.chain.now + 60, 27, bytes(32), bytes(32))
