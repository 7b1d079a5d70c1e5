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
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
AREAS = ("chain", "models", "protocols", "simulations", "storage")
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]

_GRAPH = """
import grimp, json
graph = grimp.build_graph("p2pnode", cache_dir=None)
print(json.dumps({each: sorted(graph.find_modules_directly_imported_by(each)) for each in graph.modules}))
"""

_LINT = """
import contextlib, io, json, sys
from pathlib import Path
from importlinter.cli import lint_imports

def lint(*contracts):
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        code = lint_imports(config_filename="pyproject.toml", limit_to_contracts=contracts, no_cache=True)
    return code, told.getvalue()
"""
_LINT_ALL = f"{_LINT}\nprint(json.dumps(lint()))"
# One process for all: to start a linter takes longer than to lint.
_BREAK_EACH = f"""{_LINT}
reports = {{}}
for contract, offences in json.load(sys.stdin)["offences"].items():
    whole = {{Path(path): Path(path).read_text() for path, _ in offences}}
    for path, offence in offences:
        Path(path).write_text(f"{{whole[Path(path)]}}\\n{{offence}}\\n")
    reports[contract] = lint(contract)
    for path, text in whole.items():
        path.write_text(text)
print(json.dumps(reports))
"""
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


def _python(program: str, root: Path, **given: Any) -> Any:
    """What a program prints as JSON, in a Python that finds the package below ``root``."""
    ran = subprocess.run(
        [sys.executable, "-c", program],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), "COLUMNS": "200"},
        input=json.dumps(given),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources; nothing in it is run."""
    root = tmp_path_factory.mktemp("tree")
    shutil.copy(ROOT / "pyproject.toml", root)
    ignore = shutil.ignore_patterns("__pycache__", "*.gguf")
    for folder in ("p2pnode", *AREAS):
        shutil.copytree(ROOT / folder, root / folder, symlinks=True, ignore=ignore)
    return root


@pytest.fixture(scope="module")
def reports(copied: Path) -> dict[str, tuple[int, str]]:
    """What the linter says of each contract alone, with its offences alone: an exit code and a text."""
    found: dict[str, tuple[int, str]] = _python(_BREAK_EACH, copied, offences=OFFENCES)
    return found


def test_every_contract_has_an_offence_that_breaks_it() -> None:
    assert {contract["id"] for contract in CONTRACTS} == set(OFFENCES)


def test_the_contracts_hold_as_the_sources_stand() -> None:
    code, said = _python(_LINT_ALL, ROOT)
    assert code == 0, said
    assert f"Contracts: {len(CONTRACTS)} kept, 0 broken." in said


@pytest.mark.parametrize("contract", OFFENCES)
def test_a_contract_fails_when_it_is_broken(reports: dict[str, tuple[int, str]], contract: str) -> None:
    code, said = reports[contract]
    assert code == 1
    assert "Contracts: 0 kept, 1 broken." in said
    flat = said.replace("\n", " ")
    for path, offence in OFFENCES[contract]:
        importer = path.removesuffix(".py").replace("/", ".")
        imported = offence.split("import ")[-1] if not offence.startswith("from") else offence.split()[1]
        assert f"{importer} -> {imported.strip()}" in flat, said


# ---- cycles


def cycle_in(root: Path) -> list[str]:
    """One cycle of the modules below ``root``, or none. Imports for type checkers and in functions count."""
    imports: dict[str, list[str]] = _python(_GRAPH, root)
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
def test_a_cycle_is_found_however_it_is_hidden(copied: Path, offence: str) -> None:
    module = copied / "p2pnode/protocols/inference/host_turn.py"
    whole = module.read_text()
    module.write_text(f"{whole}\nfrom typing import TYPE_CHECKING\n{offence}\n")
    cycle = cycle_in(copied)
    module.write_text(whole)  # other tests read the copy too
    assert {f"p2pnode.protocols.inference.{each}" for each in ("host_turn", "open_session")} <= {*cycle}
