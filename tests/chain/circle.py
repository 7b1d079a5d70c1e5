"""Circle's own FiatTokenV2_2 behind its proxy, from published bytecode: for ``make test-circle``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from p2pnode.chain.abi import Artifact
from p2pnode.chain.dev.embedded import Contract, EmbeddedChain
from p2pnode.protocols.crypto import abi_encode, keccak256

MINTED_MAX = 10**30


def circle_usdc(chain: EmbeddedChain, package: Path) -> Contract:
    """Deploy and initialise it as on Base; the first account mints, blacklists and pauses.

    The last account is the proxy's admin, and so can't use the token.
    """
    ruler, admin = chain.accounts[0], chain.accounts[-1]

    def load(name: str) -> dict[str, Any]:
        path = package / "artifacts" / "hardhat" / "contracts" / name
        return dict(json.loads(path.read_text()))

    def create(sender: bytes, code: str, arguments: bytes = b"") -> bytes:
        return chain.send(sender, b"", bytes.fromhex(code.removeprefix("0x")) + arguments).contract

    checker = create(ruler, load("util/SignatureChecker.sol/SignatureChecker.json")["bytecode"])
    token = load("v2/FiatTokenV2_2.sol/FiatTokenV2_2.json")
    code = token["bytecode"].removeprefix("0x")
    for file in token["linkReferences"].values():
        for place in file["SignatureChecker"]:
            start = 2 * place["start"]
            code = code[:start] + checker.hex() + code[start + 40 :]
    proxy = load("v1/FiatTokenProxy.sol/FiatTokenProxy.json")["bytecode"]
    usdc = Contract(
        chain,
        Artifact("FiatTokenV2_2", tuple(token["abi"]), b""),
        create(admin, proxy, abi_encode(create(ruler, code))),
    )
    usdc.send(ruler, "initialize", "USDC", "USDC", "USD", 6, ruler, ruler, ruler, ruler)
    usdc.send(ruler, "initializeV2", "USD Coin")
    usdc.send(ruler, "initializeV2_1", keccak256(b"lost and found")[:20])
    usdc.send(ruler, "initializeV2_2", [], "USDC")
    usdc.send(ruler, "configureMinter", ruler, MINTED_MAX)
    return usdc
