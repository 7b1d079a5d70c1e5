"""The import contracts hold, and each of them fails when it is broken: a contract that can't fail is none."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
AREAS = ("chain", "models", "protocols", "simulations", "storage")
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]

_GRAPH = """
import grimp, json
graph = grimp.build_graph("p2pnode", cache_dir=None)
print(json.dumps({each: sorted(graph.find_modules_directly_imported_by(each)) for each in graph.modules}))
"""

_RUN = "from importlinter.cli import lint_imports_command as run; run()"
# contract -> a module that must not, and what it must not import
OFFENCES = {
    "layers": [
        ("p2pnode/node/node.py", "import p2pnode.host.host"),
        ("p2pnode/net/network.py", "import p2pnode.node.node"),
        (
            "p2pnode/protocols/events.py",
            "import p2pnode.models.engine",
        ),
        ("p2pnode/client/client.py", "import p2pnode.cli.output"),
        ("p2pnode/client/hosts.py", "import p2pnode.host.host"),
        ("p2pnode/models/engine.py", "import p2pnode.chain.wallet.wallet"),
        ("p2pnode/errors.py", "import p2pnode.config"),
        ("p2pnode/limits.py", "import p2pnode.ids"),
    ],
    "sans-io": [
        ("p2pnode/protocols/events.py", "import trio"),
        ("p2pnode/protocols/wire.py", "import time"),
        ("p2pnode/protocols/inference/host.py", "import random"),
        ("p2pnode/protocols/adverts/book.py", "from pathlib import Path"),
    ],
    "node-decisions": [
        ("p2pnode/node/peer_selection.py", "import trio"),
        ("p2pnode/node/advert_exchange.py", "from p2pnode.net.address_policy import scope_of"),
        ("p2pnode/host/admission.py", "def late():\n    import p2pnode.host.served_session"),
        ("p2pnode/bounded.py", "import time"),
    ],
    "gateway-faces": [
        ("p2pnode/gateway/chat.py", "import starlette"),
        ("p2pnode/gateway/turn.py", "import time"),
        ("p2pnode/gateway/fields.py", "import trio"),
    ],
    "views": [
        ("p2pnode/views/market.py", "import time"),
        ("p2pnode/gateway/dashboard/history.py", "import trio"),
    ],
    "libp2p": [
        ("p2pnode/client/client.py", "import libp2p"),
        ("p2pnode/host/host.py", "from multiaddr import Multiaddr"),
        ("p2pnode/cli/join.py", "def late():\n    import zeroconf"),
    ],
    "engines": [
        ("p2pnode/host/host.py", "import xllamacpp"),
        ("p2pnode/cli/models.py", "def late():\n    import torch"),
        ("p2pnode/net/network.py", "import exllamav2"),
    ],
    "web3": [
        ("p2pnode/payments/escrow.py", "import web3"),
        ("p2pnode/cli/funds.py", "def late():\n    import web3"),
        ("p2pnode/payments/spending.py", "import eth_tester"),
    ],
    "prometheus": [
        ("p2pnode/host/metrics.py", "import prometheus_client"),
        ("p2pnode/client/answer.py", "def late():\n    import prometheus_client"),
    ],
    "client-decisions": [
        ("p2pnode/client/failover.py", "import trio"),
        ("p2pnode/client/ranking.py", "import p2pnode.net.network"),
        ("p2pnode/client/bill.py", "import time"),
        ("p2pnode/client/history.py", "import p2pnode.node.driver"),
    ],
    "simulations": [
        ("p2pnode/simulations/world.py", "import trio"),
        ("p2pnode/simulations/links.py", "def late():\n    import p2pnode.net.network"),
        ("p2pnode/simulations/gossip.py", "import p2pnode.node.driver"),
        ("p2pnode/simulations/dht.py", "import secrets"),
    ],
    "pure-payments": [
        ("p2pnode/payments/exposure.py", "import trio"),
        ("p2pnode/payments/gas_budget.py", "def late():\n    import p2pnode.net.network"),
        ("p2pnode/payments/settlement_policy.py", "import p2pnode.chain.evm.ledger"),
        ("p2pnode/payments/spending.py", "import p2pnode.chain.evm.ledger"),
    ],
    "storage-decisions": [
        ("p2pnode/storage/replication/choice.py", "import trio"),
        ("p2pnode/storage/conversations/schedule.py", "import time"),
        ("p2pnode/storage/conversations/merge.py", "import p2pnode.node.node"),
        ("p2pnode/storage/rules.py", "def late():\n    import sqlite3"),
    ],
    "pure-parts": [
        ("p2pnode/chain/memory/market_rules.py", "import time"),
        ("p2pnode/chain/deployment_plan.py", "def late():\n    import p2pnode.chain.deployer"),
        ("p2pnode/models/text.py", "import trio"),
        ("p2pnode/net/address_policy.py", "import p2pnode.net.swarm"),
    ],
    "storage-insides": [
        ("p2pnode/client/client.py", "import p2pnode.storage.peer_store"),
        ("p2pnode/host/host.py", "import p2pnode.storage.local.index"),
        ("p2pnode/payments/redelivery.py", "import p2pnode.storage.conversations.merge"),
    ],
}


def _lint(root: Path, contract: str) -> tuple[int, str]:
    ran = subprocess.run(
        [sys.executable, "-c", _RUN, "--config", "pyproject.toml", "--no-cache", "--contract", contract],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return ran.returncode, ran.stdout + ran.stderr


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the sources; nothing in it is run."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    ignore = shutil.ignore_patterns("__pycache__", "*.gguf")
    for folder in ("p2pnode", *AREAS):
        shutil.copytree(ROOT / folder, tmp_path / folder, symlinks=True, ignore=ignore)
    return tmp_path


def test_every_contract_has_an_offence_that_breaks_it() -> None:
    assert {contract["id"] for contract in CONTRACTS} == set(OFFENCES)


def test_the_contracts_hold_as_the_sources_stand() -> None:
    for contract in OFFENCES:
        code, said = _lint(ROOT, contract)
        assert code == 0, said


@pytest.mark.parametrize("contract", OFFENCES)
def test_a_contract_fails_when_it_is_broken(tree: Path, contract: str) -> None:
    for path, offence in OFFENCES[contract]:
        module = tree / path
        module.write_text(f"{module.read_text()}\n{offence}\n")
    code, said = _lint(tree, contract)
    assert code == 1
    assert "BROKEN" in said
    flat = said.replace("\n", " ")
    for path, offence in OFFENCES[contract]:
        importer = path.removesuffix(".py").replace("/", ".")
        imported = offence.split("import ")[-1] if not offence.startswith("from") else offence.split()[1]
        assert f"{importer} -> {imported.strip()}" in flat, said


# ---- cycles


def cycle_in(root: Path) -> list[str]:
    """One cycle of the modules below ``root``, or none. Imports for type checkers and in functions count."""
    ran = subprocess.run(
        [sys.executable, "-c", _GRAPH],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    imports: dict[str, list[str]] = json.loads(ran.stdout)
    sorter: TopologicalSorter[str] = TopologicalSorter()
    for importer, imported in imports.items():
        sorter.add(importer, *imported)
    try:
        sorter.prepare()
    except CycleError as error:
        found: list[str] = error.args[1]
        return found
    return []


def test_no_module_imports_itself_by_way_of_others() -> None:
    assert cycle_in(ROOT) == []


@pytest.mark.parametrize(
    "offence",
    [
        "if TYPE_CHECKING:\n    from p2pnode.protocols.inference.open_session import OpenSession",
        "def late() -> None:\n    from p2pnode.protocols.inference import open_session",
    ],
    ids=["for a type checker", "in a function"],
)
def test_a_cycle_is_found_however_it_is_hidden(tree: Path, offence: str) -> None:
    module = tree / "p2pnode/protocols/inference/host_turn.py"
    module.write_text(f"{module.read_text()}\nfrom typing import TYPE_CHECKING\n{offence}\n")
    assert {f"p2pnode.protocols.inference.{each}" for each in ("host_turn", "open_session")} <= {
        *cycle_in(tree)
    }
