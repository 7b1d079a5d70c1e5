"""``RegistryRules``: what NodeRegistry does, in Python. Pure and exact: no clock, no I/O.

The checks and their order are those of ``contracts/NodeRegistry.vy``, and so are the reasons. A differential
test compares the two. Each method raises ``RevertedError``, or returns what remains to be done: nothing has
changed until that is called.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from p2pnode.chain.ledger import (
    AddStake,
    Approve,
    EscrowState,
    LedgerEvent,
    NodeRecord,
    Rebond,
    Register,
    Slash,
    Slashed,
    StakeCall,
    Unbond,
    WithdrawStake,
)
from p2pnode.chain.memory.fab_rules import FabRules
from p2pnode.chain.memory.market_rules import Commit, Context
from p2pnode.chain.memory.token_rules import require
from p2pnode.contract_rules import BPS, REPORTER_BPS, STAKE_MIN, UNBONDING_S
from p2pnode.ids import SessionId
from p2pnode.protocols.crypto import recover_address
from p2pnode.protocols.inference.messages import Receipt
from p2pnode.protocols.inference.receipts import link_root, receipt_digest
from p2pnode.protocols.typed_data import Domain, session_id

_NOBODY = NodeRecord()


class RegistryRules:
    """``session`` gives the state of a session of the market; the registry and FAB are at these addresses."""

    def __init__(
        self,
        market: Domain,
        session: Callable[[SessionId], EscrowState],
        tokens: FabRules,
        *,
        registry: bytes,
        fab: bytes,
    ) -> None:
        self._market, self._session = market, session
        self._tokens, self._registry, self._fab = tokens, registry, fab
        self._nodes: dict[bytes, NodeRecord] = {}
        self._keys: set[tuple[bytes, bytes]] = set()
        self._punished: set[tuple[SessionId, int, int]] = set()

    def node(self, host: bytes) -> NodeRecord:
        """A host, by its wallet."""
        return self._nodes.get(host, _NOBODY)

    def registrants(self, peer_key: bytes) -> tuple[bytes, ...]:
        """The wallets that are registered with this peer key now."""
        return tuple(host for host, node in self._nodes.items() if node.peer_key == peer_key)

    def decide(self, call: StakeCall, context: Context, allowed: Approve | None = None) -> Commit:
        """The effect of a call; ``allowed`` as in ``RegistryLedger.estimate``. Raises ``RevertedError``."""
        match call:
            case Register():
                return self._register(call, context.sender, allowed)
            case AddStake():
                return self._add_stake(call, context.sender, allowed)
            case Unbond():
                return self._unbond(call, context)
            case Rebond():
                return self._rebond(context.sender)
            case WithdrawStake():
                return self._withdraw(call, context)
            case Slash():
                return self._slash(call, context.sender, context.block)

    def _register(self, call: Register, host: bytes, allowed: Approve | None) -> Commit:
        require(any(call.peer_key) and any(call.receipt_key), "NodeRegistry: zero key")
        staked = self._check_add(host, call.amount, allowed)

        def commit() -> list[LedgerEvent]:
            self._take(host, call.amount)
            self._nodes[host] = replace(
                self.node(host), stake=staked, peer_key=call.peer_key, receipt_key=call.receipt_key
            )
            self._keys.add((host, call.receipt_key))
            return []

        return commit

    def _add_stake(self, call: AddStake, host: bytes, allowed: Approve | None) -> Commit:
        require(any(self.node(host).receipt_key), "NodeRegistry: not registered")
        staked = self._check_add(host, call.amount, allowed)

        def commit() -> list[LedgerEvent]:
            self._take(host, call.amount)
            self._nodes[host] = replace(self.node(host), stake=staked)
            return []

        return commit

    def _check_add(self, host: bytes, amount: int, allowed: Approve | None) -> int:
        """The stake afterwards."""
        staked = self.node(host).stake + amount
        require(staked >= STAKE_MIN, "NodeRegistry: stake too low")
        if amount > 0:
            given = allowed.amount if allowed is not None and allowed.spender == self._registry else None
            self._tokens.check_take(host, self._registry, amount, given)
        return staked

    def _take(self, host: bytes, amount: int) -> None:
        if amount > 0:
            self._tokens.take(host, self._registry, amount)

    def _unbond(self, call: Unbond, context: Context) -> Commit:
        node = self.node(context.sender)
        require(0 < call.amount <= node.stake, "NodeRegistry: bad amount")
        left = node.stake - call.amount
        require(left == 0 or left >= STAKE_MIN, "NodeRegistry: stake too low")

        def commit() -> list[LedgerEvent]:
            self._nodes[context.sender] = replace(
                node,
                stake=left,
                unbonding=node.unbonding + call.amount,
                unbonds_at=context.at + UNBONDING_S,
            )
            return []

        return commit

    def _rebond(self, host: bytes) -> Commit:
        node = self.node(host)
        require(node.unbonding > 0, "NodeRegistry: nothing unbonding")
        staked = node.stake + node.unbonding
        require(staked >= STAKE_MIN, "NodeRegistry: stake too low")

        def commit() -> list[LedgerEvent]:
            self._nodes[host] = replace(node, stake=staked, unbonding=0, unbonds_at=0)
            return []

        return commit

    def _withdraw(self, call: WithdrawStake, context: Context) -> Commit:
        node = self.node(context.sender)
        require(any(call.to) and call.to not in (self._registry, self._fab), "NodeRegistry: bad recipient")
        require(node.unbonding > 0, "NodeRegistry: nothing unbonding")
        require(context.at >= node.unbonds_at, "NodeRegistry: too early")

        def commit() -> list[LedgerEvent]:
            self._nodes[context.sender] = replace(node, unbonding=0, unbonds_at=0)
            self._tokens.move(self._registry, call.to, node.unbonding)
            return []

        return commit

    def _slash(self, call: Slash, sender: bytes, block: int) -> Commit:
        terms, one, other = call.terms, call.one, call.other
        session = session_id(self._market, terms)
        epoch, seq = one.epoch, one.checkpoint.seq
        require(self._session(session).status != "none", "NodeRegistry: no such session")
        require((terms.host, terms.receipt_key) in self._keys, "NodeRegistry: not the host's key")
        place = (session, epoch, seq)
        require(place not in self._punished, "NodeRegistry: already punished")
        roots = [_root(each, seq) for each in (one, other)]
        require(roots[0] != roots[1], "NodeRegistry: no conflict")
        for receipt, root in zip((one, other), roots, strict=True):
            signer = recover_address(receipt_digest(session, epoch, root), receipt.checkpoint.signature)
            require(signer == terms.receipt_key, "NodeRegistry: bad signature")
        node = self.node(terms.host)
        amount = node.stake + node.unbonding
        require(amount > 0, "NodeRegistry: nothing at stake")
        reward = 0 if sender == terms.host else amount * REPORTER_BPS // BPS

        def commit() -> list[LedgerEvent]:
            self._punished.add(place)
            self._nodes[terms.host] = replace(node, stake=0, unbonding=0, unbonds_at=0)
            self._tokens.burn(self._registry, amount - reward)
            self._tokens.move(self._registry, sender, reward)
            return [
                Slashed(
                    session=session,
                    host=terms.host,
                    reporter=sender,
                    amount=amount,
                    reward=reward,
                    block=block,
                )
            ]

        return commit


def _root(receipt: Receipt, seq: int) -> bytes:
    """The hash of a link. The contract is given one place for both receipts, and hashes each link with it."""
    return link_root(receipt.previous, replace(receipt.checkpoint, seq=seq))
