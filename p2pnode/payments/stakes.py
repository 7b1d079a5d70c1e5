"""A host's stake in ``NodeRegistry``: what its owner may ask for, as calls and in words. Pure but for
``standing``, which reads the chain.

A stake backs one wallet, for one peer key and one receipt key. It is lost when anyone shows two receipts that
the host signed for one place of a session. It leaves in two steps: it unbonds for seven days, in which it
backs nothing and can still be lost, and is withdrawn then. Amounts are FAB's smallest unit.
"""

from __future__ import annotations

from dataclasses import dataclass

from p2pnode.chain.addresses import shown_address
from p2pnode.chain.ledger import (
    AddStake,
    FabState,
    NodeRecord,
    Rebond,
    Register,
    RegistryLedger,
    Unbond,
    WithdrawStake,
)
from p2pnode.contract_rules import STAKE_MIN, UNBONDING_S
from p2pnode.money import fab_text
from p2pnode.payments.plans import Plan, PlanError, day_text, require_fab, with_allowance
from p2pnode.words import span

_LOST = (
    "All of it is lost if this host ever signs two different receipts for one place of a session; a tenth "
    "goes to whoever shows them, the rest is destroyed."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostKeys:
    """What a stake is registered for: the 32-byte Ed25519 key of a PeerId, and a receipt key's address."""

    peer_key: bytes
    receipt_key: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class StakeStanding:
    """How a wallet stands in the registry; ``now`` is the time on the chain."""

    account: bytes
    registry: bytes
    record: NodeRecord
    fab: FabState
    now: int

    @property
    def keys(self) -> HostKeys:
        """The keys that are registered."""
        return HostKeys(peer_key=self.record.peer_key, receipt_key=self.record.receipt_key)

    @property
    def is_registered(self) -> bool:
        """Whether it ever was."""
        return any(self.record.receipt_key)


async def standing(ledger: RegistryLedger, account: bytes) -> StakeStanding:
    """Read it. Raises ``ChainError``."""
    return StakeStanding(
        account=account,
        registry=ledger.domains.node_registry,
        record=await ledger.node(account),
        fab=await ledger.fab(account),
        now=(await ledger.head()).timestamp,
    )


def bond(now: StakeStanding, keys: HostKeys, amount: int, *, more: bool) -> Plan:
    """Stake ``amount``, for these keys; ``more`` where there may be a stake already. Raises ``PlanError``."""
    held = now.record.stake
    if held and not more:
        raise PlanError(
            "already_staked",
            f"{shown_address(now.account)} has {fab_text(held)} at stake already: --more adds to it",
        )
    if amount <= 0 or held + amount < STAKE_MIN:
        raise PlanError(
            "too_little",
            f"a stake is at least {fab_text(STAKE_MIN)}: give {fab_text(max(1, STAKE_MIN - held))} or more",
        )
    require_fab(amount, now.fab.balance, now.account, "this stake")
    total = f"Stake {fab_text(amount)}"
    if held:
        total += f", so that {fab_text(held + amount)} are at stake"
    leaves = f"It can be taken out {span(UNBONDING_S)} after you ask for it (`p2pnode unstake`)."
    if now.keys == keys:
        call: AddStake | Register = AddStake(amount)
        words = f"{total}. {_LOST} {leaves}"
    else:
        call = Register(keys.peer_key, keys.receipt_key, amount)
        words = f"{total}, for the peer key and the receipt key of this data dir. {_LOST} {leaves}"
    return with_allowance(call, words, spender=now.registry, amount=amount, allowed=now.fab.to_nodes)


def change_keys(now: StakeStanding, keys: HostKeys) -> Plan:
    """Name these keys for the stake that is there. Raises ``PlanError``."""
    _require_stake(now)
    if now.keys == keys:
        raise PlanError("already_staked", "the stake is registered for the keys of this data dir already")
    words = (
        "Name the peer key and the receipt key of this data dir for the stake of "
        f"{fab_text(now.record.stake)}, in place of those that are registered. What the old receipt key "
        "signed still counts."
    )
    return Plan((Register(keys.peer_key, keys.receipt_key, 0),), (words,))


def unbond(now: StakeStanding, amount: int | None) -> Plan:
    """Begin to take ``amount`` out; all of it for None. Raises ``PlanError``."""
    _require_stake(now)
    record = now.record
    taken = record.stake if amount is None else amount
    left = record.stake - taken
    if not 0 < taken <= record.stake:
        raise PlanError("too_little", f"{fab_text(record.stake)} are at stake: take out that or less")
    if 0 < left < STAKE_MIN:
        raise PlanError(
            "too_little",
            f"{fab_text(left)} would be left, and a stake is at least {fab_text(STAKE_MIN)}: take out "
            f"{fab_text(record.stake - STAKE_MIN)} or less, or all of it",
        )
    words = (
        f"Begin to take {fab_text(taken)} out of the stake. It backs this host no more from now on, can "
        f"still be lost, and can be withdrawn in {span(UNBONDING_S)} (`p2pnode stake withdraw`)."
    )
    if left == 0:
        words += " Clients then give this host no priority as one that is staked."
    if record.unbonding:
        words += (
            f" For the {fab_text(record.unbonding)} that unbond already, which would be free on "
            f"{day_text(record.unbonds_at)}, the time begins anew, too."
        )
    return Plan((Unbond(taken),), (words,))


def rebond(now: StakeStanding) -> Plan:
    """Make all that unbonds stake again. Raises ``PlanError``."""
    record = now.record
    _require_unbonding(now)
    if record.stake + record.unbonding < STAKE_MIN:
        raise PlanError("too_little", f"a stake is at least {fab_text(STAKE_MIN)}")
    words = (
        f"Make the {fab_text(record.unbonding)} that unbond stake again: "
        f"{fab_text(record.stake + record.unbonding)} are at stake then. {_LOST}"
    )
    return Plan((Rebond(),), (words,))


def withdraw(now: StakeStanding, to: bytes) -> Plan:
    """Take out what has unbonded. Raises ``PlanError``, which says when it can be."""
    _require_unbonding(now)
    record = now.record
    if now.now < record.unbonds_at:
        raise PlanError(
            "not_unbonded",
            f"{fab_text(record.unbonding)} can be withdrawn on {day_text(record.unbonds_at)}, in "
            f"{span(record.unbonds_at - now.now)}: nothing was sent",
        )
    words = f"Withdraw {fab_text(record.unbonding)} to {shown_address(to)}: nobody can bring it back."
    return Plan((WithdrawStake(to),), (words,))


def _require_stake(now: StakeStanding) -> None:
    if now.record.stake == 0:
        also = ""
        if now.record.unbonding:
            also = f" ({fab_text(now.record.unbonding)} unbond: `p2pnode stake rebond` puts them back)"
        raise PlanError("not_staked", f"{shown_address(now.account)} has nothing at stake{also}")


def _require_unbonding(now: StakeStanding) -> None:
    if now.record.unbonding == 0:
        staked = f"; {fab_text(now.record.stake)} are at stake" if now.record.stake else ""
        raise PlanError("nothing_unbonding", f"nothing of {shown_address(now.account)} unbonds{staked}")
