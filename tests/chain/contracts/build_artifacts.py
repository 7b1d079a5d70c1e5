"""Compile ``chain/contracts`` into ``chain/artifacts``; with ``--check``, only compare.

The JSON that ships is what this makes: same compiler and sources, same bytes. Metadata is left out of the
bytecode, so that a comment changes nothing.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final

from vyper.cli.vyper_compile import compile_files
from vyper.compiler.settings import Settings
from vyper.evm.opcodes import version_check

CHAIN: Final = Path(__file__).resolve().parents[3] / "chain"
CONTRACTS: Final = ("FAB", "JobMarketplace", "ModelRegistry", "NodeRegistry", "ProofSystem", "USDC")
OVERLOADS: Final = {"USDC": "interfaces/ISplitSignatures.vyi"}
"""Calls that a contract answers in ``__default__``: their ABI is added to its own."""
CODE_BYTES_MAX: Final = 24_576
"""EIP-170."""


def compile_contract(name: str, contracts: Path) -> dict[str, Any]:
    """One contract's artifact. Raises what the compiler raises, or ValueError when it is too big."""
    source = contracts / f"{name}.vy"
    settings = Settings(experimental_codegen=False)
    wanted = ("abi", "bytecode", "bytecode_runtime")
    output = next(
        iter(
            compile_files(
                [str(source)], wanted, paths=[str(contracts)], settings=settings, no_bytecode_metadata=True
            ).values()
        )
    )
    size = len(output["bytecode_runtime"]) // 2 - 1
    if size > CODE_BYTES_MAX:
        msg = f"{name} takes {size} bytes, more than a chain allows ({CODE_BYTES_MAX}): split it"
        raise ValueError(msg)
    abi = list(output["abi"])
    if name in OVERLOADS:
        path = contracts / OVERLOADS[name]
        abi += next(iter(compile_files([str(path)], ("abi",), paths=[str(contracts)]).values()))["abi"]
    return {"contract": name, "compiler": "vyper 0.4.3", "abi": abi, "bytecode": output["bytecode"]}


def render(artifact: dict[str, Any]) -> str:
    """The file's text: one ABI entry a line, so that a diff can be read."""
    head = {key: value for key, value in artifact.items() if key not in {"abi", "bytecode"}}
    lines = ",\n".join("  " + json.dumps(entry, sort_keys=True) for entry in artifact["abi"])
    fields = "".join(f" {json.dumps(key)}: {json.dumps(value)},\n" for key, value in head.items())
    return f'{{\n{fields} "abi": [\n{lines}\n ],\n "bytecode": {json.dumps(artifact["bytecode"])}\n}}\n'


def main(arguments: list[str]) -> int:
    """Write the artifacts, or say which differ. Returns the exit code."""
    assert version_check(begin="cancun")
    stale: list[str] = []
    for name in CONTRACTS:
        text = render(compile_contract(name, CHAIN / "contracts"))
        target = CHAIN / "artifacts" / f"{name}.json"
        if "--check" not in arguments:
            target.write_text(text)
        elif not target.exists() or target.read_text() != text:
            stale.append(name)
    if stale:
        sys.stderr.write(f"chain/artifacts is stale for {', '.join(stale)}: run `make contracts`\n")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
