"""``TokenRules``: what USDC does, in Python: balances, blacklist, pause, EIP-3009 authorisations. Pure and
exact.

The checks and their order are those of ``contracts/USDC.vy`` (and of Circle's own token), and so are the
reasons. ``check_…`` raises ``RevertedError`` and changes nothing; ``move`` and ``use`` carry out what was
checked.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Final, TypeAlias

from p2pnode.chain.ledger import NO_REASON, RevertedError
from p2pnode.protocols.crypto import Recover, recover_address
from p2pnode.protocols.typed_data import Domain, authorisation_digest

SignatureCheck: TypeAlias = Callable[[bytes, bytes], bool]
"""What a contract wallet answers (ERC-1271): whether this signature over this digest is valid for it."""

SIGNATURE_MAX: Final = 2048
_PLAIN_SIGNATURE: Final = 65
_HALF_ORDER: Final = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0


def require(holds: bool, reason: str) -> None:
    """Raise ``RevertedError`` unless the condition holds."""
    if not holds:
        raise RevertedError(reason)


class TokenRules:
    """``wallets`` are the accounts with code."""

    def __init__(
        self,
        domain: Domain,
        wallets: dict[bytes, SignatureCheck],
        *,
        recover: Recover = recover_address,
    ) -> None:
        self._domain, self._wallets, self._recover = domain, wallets, recover
        self.balances: defaultdict[bytes, int] = defaultdict(int)
        self.blacklisted: set[bytes] = set()
        self.used: set[tuple[bytes, bytes]] = set()
        """Authorisations that can't be used (again): who signed, and the nonce."""
        self.paused = False

    def transfer(self, sender: bytes, to: bytes, amount: int) -> None:
        """``transfer`` by ``sender``."""
        self.check_transfer(sender, to, amount)
        self.move(sender, to, amount)

    def check_transfer(self, sender: bytes, to: bytes, amount: int) -> None:
        """Raise ``RevertedError`` where a transfer would."""
        require(not self.paused, "Pausable: paused")
        self._check(sender)
        self._check(to)
        require(any(to), "ERC20: transfer to the zero address")
        require(amount <= self.balances.get(sender, 0), "ERC20: transfer amount exceeds balance")

    def move(self, sender: bytes, to: bytes, amount: int) -> None:
        """Carry out a transfer that was checked."""
        self.balances[sender] -= amount
        self.balances[to] += amount

    def check_receive(
        self, payer: bytes, to: bytes, amount: int, *, valid_before: int, nonce: bytes, signature: bytes,
        at: int,
    ) -> None:  # fmt: skip
        """Raise ``RevertedError`` where ``receiveWithAuthorization`` by ``to`` would, at this time."""
        require(len(signature) <= SIGNATURE_MAX, NO_REASON)
        require(not self.paused, "Pausable: paused")
        self._check(payer)
        self._check(to)
        require(at < valid_before, "FiatTokenV2: authorization is expired")
        require((payer, nonce) not in self.used, "FiatTokenV2: authorization is used or canceled")
        digest = authorisation_digest(
            self._domain, payer=payer, to=to, amount=amount, valid_before=valid_before, nonce=nonce
        )
        require(self._is_valid(payer, digest, signature), "FiatTokenV2: invalid signature")
        self.check_transfer(payer, to, amount)

    def use(self, payer: bytes, to: bytes, amount: int, nonce: bytes) -> None:
        """Carry it out: the authorisation is used."""
        self.used.add((payer, nonce))
        self.move(payer, to, amount)

    def cancel(self, payer: bytes, nonce: bytes) -> None:
        """``cancelAuthorization``, without a check of its signature."""
        require(not self.paused, "Pausable: paused")
        require((payer, nonce) not in self.used, "FiatTokenV2: authorization is used or canceled")
        self.used.add((payer, nonce))

    def _check(self, account: bytes) -> None:
        require(account not in self.blacklisted, "Blacklistable: account is blacklisted")

    def _is_valid(self, signer: bytes, digest: bytes, signature: bytes) -> bool:
        """Whether a signature is valid: by ERC-1271 where the account has code, else by its key. A
        malformed signature of a key reverts."""
        if (wallet := self._wallets.get(signer)) is not None:
            return wallet(digest, signature)
        require(len(signature) == _PLAIN_SIGNATURE, "ECRecover: invalid signature length")
        s = int.from_bytes(signature[32:64], "big")
        require(s <= _HALF_ORDER, "ECRecover: invalid signature 's' value")
        require(signature[64] in (27, 28), "ECRecover: invalid signature 'v' value")
        found = self._recover(digest, signature)
        require(found is not None, "ECRecover: invalid signature")
        return found == signer
