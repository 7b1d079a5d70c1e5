"""Is a chain what its profile says? Asked once, at start, before anything is signed for it.

Every mistake is a ``ConfigError`` that names the field and both values: a profile of the wrong chain, an
address without code, another token, or contracts that are not wired to one another would cost money. What
signatures are made for (the EIP-712 domains) is read, and compared with our own, by ``evm/domains.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Protocol

from p2pnode.chain.abi import artifact
from p2pnode.chain.addresses import shown_address
from p2pnode.chain.ledger import UnavailableError
from p2pnode.chain.profile import ADDRESS_FIELDS, ChainProfile
from p2pnode.errors import ChainError, ConfigError

USDC_DECIMALS: Final = 6
_KIND_OF: Final = {
    "job_marketplace": "JobMarketplace", "host_earnings": "HostEarnings", "proof_system": "ProofSystem",
    "node_registry": "NodeRegistry", "model_registry": "ModelRegistry", "usdc": "USDC", "fab": "FAB",
}  # fmt: skip
_WIRES: Final = (
    ("job_marketplace", "usdc", "usdc"),
    ("host_earnings", "usdc", "usdc"),
    ("proof_system", "market", "job_marketplace"),
    ("node_registry", "fab", "fab"),
    ("node_registry", "market", "job_marketplace"),
    ("model_registry", "fab", "fab"),
)
"""A contract's field, the getter of what it was deployed with, and the field that must say the same."""


class RawRpc(Protocol):
    """Any way to ask a node."""

    async def request(self, method: str, params: Sequence[Any], /) -> Any:
        """The answer's ``result``. Raises ``UnavailableError``, and ``ChainError`` for an error."""


async def verify(profile: ChainProfile, rpc: RawRpc) -> None:
    """Raises ``ConfigError`` for what doesn't fit, and ``UnavailableError`` when nobody answers."""
    asked = _Asked(profile, rpc)
    chain_id = int(await rpc.request("eth_chainId", []), 16)
    if chain_id != profile.chain_id:
        raise asked.wrong("chain_id", f"the profile says {profile.chain_id}, the node is on {chain_id}")
    for name in ADDRESS_FIELDS:
        code = await rpc.request("eth_getCode", [asked.shown(name), "latest"])
        if not isinstance(code, str) or len(code) <= len("0x"):
            raise asked.wrong(name, f"{asked.shown(name)} has no code on chain {chain_id}")
    for name, getter, wanted in _WIRES:
        found = await asked.read(name, getter)
        if found != getattr(profile, wanted):
            has = f"the contract at {asked.shown(name)} has {getter} {shown_address(found)}"
            raise asked.wrong(name, f"{has}, but the profile's {wanted} is {asked.shown(wanted)}")
    decimals = await asked.read("usdc", "decimals")
    if decimals != USDC_DECIMALS:
        raise asked.wrong("usdc", f"the token at {asked.shown('usdc')} has {decimals} decimals, not 6")
    for getter in ("name", "version"):
        if not await asked.read("usdc", getter):
            raise asked.wrong("usdc", f"the token at {asked.shown('usdc')} has an empty {getter}()")


class _Asked:
    """Reads a profile's contracts, and words what is wrong with them."""

    def __init__(self, profile: ChainProfile, rpc: RawRpc) -> None:
        self._profile, self._rpc = profile, rpc

    async def read(self, name: str, getter: str) -> Any:
        from eth_abi.exceptions import DecodingError

        kind = _KIND_OF[name]
        function = artifact("JobMarketplace" if name == "host_earnings" else kind).function(getter, 0)
        call = {"to": self.shown(name), "data": "0x" + function.encode(()).hex()}
        try:
            answer = await self._rpc.request("eth_call", [call, "latest"])
            return function.decode(bytes.fromhex(answer.removeprefix("0x")))
        except UnavailableError:
            raise
        except (ChainError, DecodingError, ValueError, AttributeError, OverflowError) as error:
            said = f"the contract at {self.shown(name)} has no {getter}(): it is no {kind}"
            raise self.wrong(name, said) from error

    def shown(self, name: str) -> str:
        return shown_address(getattr(self._profile, name))

    def wrong(self, name: str, why: str) -> ConfigError:
        where = f"{self._profile.path}: " if self._profile.path else "chain profile: "
        return ConfigError(f"{where}{name}: {why}")
