"""``RegistryRules``: what NodeRegistry does with evidence, in Python. Pure and exact: no clock, no I/O.

The checks and their order are those of ``slash`` in ``contracts/NodeRegistry.vy``, and so are the reasons. No
call of a ledger changes a stake in other ways: ``stake`` sets it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace

from p2pnode.chain.ledger import EscrowState, Slash, Slashed
from p2pnode.chain.memory.token_rules import require
from p2pnode.contract_rules import BPS, REPORTER_BPS
from p2pnode.ids import SessionId
from p2pnode.protocols.crypto import recover_address
from p2pnode.protocols.inference.messages import Receipt
from p2pnode.protocols.inference.receipts import link_root, receipt_digest
from p2pnode.protocols.typed_data import Domain, session_id


class RegistryRules:
    """``session`` gives the state of a session of the market."""

    def __init__(self, market: Domain, session: Callable[[SessionId], EscrowState]) -> None:
        self._market, self._session = market, session
        self.stakes: defaultdict[bytes, int] = defaultdict(int)
        """FAB wei of each host, what is unbonding included."""
        self.fab: defaultdict[bytes, int] = defaultdict(int)
        """FAB wei in wallets: rewards."""
        self._keys: set[tuple[bytes, bytes]] = set()
        self._punished: set[tuple[SessionId, int, int]] = set()

    def stake(self, host: bytes, receipt_key: bytes, amount: int) -> None:
        """Register this key for a host, and add to its stake."""
        self._keys.add((host, receipt_key))
        self.stakes[host] += amount

    def slash(self, call: Slash, sender: bytes, block: int) -> Callable[[], Slashed]:
        """``slash``. Raises ``RevertedError``, or returns what remains to be done."""
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
        amount = self.stakes[terms.host]
        require(amount > 0, "NodeRegistry: nothing at stake")
        reward = 0 if sender == terms.host else amount * REPORTER_BPS // BPS
        slashed = Slashed(
            session=session, host=terms.host, reporter=sender, amount=amount, reward=reward, block=block
        )

        def commit() -> Slashed:
            self._punished.add(place)
            self.stakes[terms.host] = 0
            self.fab[sender] += reward
            return slashed

        return commit


def _root(receipt: Receipt, seq: int) -> bytes:
    """The hash of a link. The contract is given one place for both receipts, and hashes each link with it."""
    return link_root(receipt.previous, replace(receipt.checkpoint, seq=seq))
