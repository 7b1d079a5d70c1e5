"""What signatures are made for, read from the chain and compared with what we compute.

A wrong domain would make every signature worthless, and the contract's "bad signature" would not say why.
"""

from __future__ import annotations

from typing import Any, Final

from p2pnode.chain.abi import Function, artifact
from p2pnode.chain.addresses import shown_address
from p2pnode.chain.calldata import terms_tuple
from p2pnode.chain.evm.node import EvmNode
from p2pnode.chain.ledger import Domains, RevertedError, UnavailableError
from p2pnode.errors import ChainError
from p2pnode.ids import ModelId
from p2pnode.protocols.crypto import keccak256
from p2pnode.protocols.inference.messages import SessionTerms
from p2pnode.protocols.typed_data import Domain, market_domain, session_id

_EIP5267: Final = Function(
    "eip712Domain", (), ("bytes1", "string", "string", "uint256", "address", "bytes32", "uint256[]")
)
_SAMPLE: Final = SessionTerms(
    payer=b"\x01" * 20, host=b"\x02" * 20, voucher_key=b"\x03" * 20, receipt_key=b"\x04" * 20,
    model=ModelId(b"\x05" * 32), deposit=6, price_in=7, price_out=8, session_fee=9, tip=10, expiry=11,
    salt=b"\x0c" * 32,
)  # fmt: skip


async def read_domains(
    node: EvmNode, *, chain_id: int, market: bytes, usdc: bytes, node_registry: bytes
) -> Domains:
    """Ask token and market. Raises ``ChainError`` that names what doesn't fit."""
    name, version = await _token_name(node, usdc)
    token = Domain(name=name, version=version, chain_id=chain_id, contract=usdc)
    separator = bytes(await read(node, "USDC", usdc, "DOMAIN_SEPARATOR"))
    if keccak256(b"\x19\x01" + separator + bytes(32)) != token.digest(bytes(32)):
        msg = (
            f'usdc {shown_address(usdc)} says it is "{name}" version "{version}" on chain {chain_id}, but '
            "its DOMAIN_SEPARATOR is another's: no payer could sign for it. Correct usdc in the chain profile"
        )
        raise ChainError(msg)
    ours = market_domain(chain_id, market)
    if bytes(await read(node, "JobMarketplace", market, "session_id", terms_tuple(_SAMPLE))) != session_id(
        ours, _SAMPLE
    ):
        msg = (
            f"job_marketplace {shown_address(market)} numbers sessions in another way (another version?): "
            "correct job_marketplace in the chain profile"
        )
        raise ChainError(msg)
    if await read(node, "JobMarketplace", market, "usdc") != usdc:
        msg = (
            f"job_marketplace {shown_address(market)} is paid in another token: correct usdc in the chain "
            "profile"
        )
        raise ChainError(msg)
    treasury = bytes(await read(node, "JobMarketplace", market, "treasury"))
    return Domains(market=ours, token=token, node_registry=node_registry, treasury=treasury)


async def read(node: EvmNode, contract: str, address: bytes, name: str, *arguments: Any) -> Any:
    """One view of a contract. Raises ``ChainError`` if what stands there doesn't have it."""
    return await _ask(node, contract, address, artifact(contract).function(name, len(arguments)), *arguments)


async def _token_name(node: EvmNode, usdc: bytes) -> tuple[str, str]:
    """EIP-5267 where the token has it, else its ``name`` and ``version``."""
    try:
        found = await _ask(node, "EIP-5267 token", usdc, _EIP5267)
    except UnavailableError:
        raise
    except ChainError:
        return str(await read(node, "USDC", usdc, "name")), str(await read(node, "USDC", usdc, "version"))
    return str(found[1]), str(found[2])


async def _ask(node: EvmNode, contract: str, address: bytes, function: Function, *arguments: Any) -> Any:
    no_such = (
        f"what stands at {shown_address(address)} is no {contract} (it has no {function.name}): correct "
        "the address in the chain profile"
    )
    try:
        answer = await node.call(address, function.encode(arguments))
    except RevertedError as error:
        raise ChainError(no_such) from error
    try:
        return function.decode(answer)
    except (ChainError, OverflowError) as error:
        raise ChainError(no_such) from error
