"""A plain installation is a client. All else names the extra it needs, before it makes or asks anything."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from p2pnode.extras import MODULES
from tests.cli import without_extras
from tests.cli.support import Program, join_for_pay

BEHIND_A_DOOR = (
    "p2pnode.http_server",
    "p2pnode.gateway.app",
    "p2pnode.gateway.metrics",
    "p2pnode.gateway.server",
    "p2pnode.storage.s5.server.",
    "p2pnode.chain.dev.",
    "p2pnode.bench.",
    "p2pnode.models.exllama.",
    "p2pnode.gateway.app",
    "p2pnode.gateway.server",
    "p2pnode.gateway.dashboard.",
)
"""What imports packages of an extra at once: nobody imports it before the door is open."""


def _without(commands: list[list[str]], *, modules: bool = False) -> dict[str, Any]:
    ran = subprocess.run(
        [sys.executable, "-P", without_extras.__file__],
        input=json.dumps({"commands": commands, "modules": modules}),
        stdout=subprocess.PIPE, text=True, timeout=120, check=True,
    )  # fmt: skip
    told: dict[str, Any] = json.loads(ran.stdout)
    return told


def test_a_missing_extra_is_named_at_every_door_before_anything_is_made(tmp_path: Path) -> None:
    root = tmp_path / "data"
    place, words = f"--data-dir={root}", f"--phrase-file={tmp_path / 'words'}"
    deploy = (
        "--rpc=http://127.0.0.1:9",
        f"--treasury=0x{'1' * 40}",
        f"--profile-out={tmp_path / 'out.toml'}",
    )
    doors = [
        ("host", ["join", place]),
        ("host", ["join", "--background", place]),
        ("host,s5", ["join", "--s5-listen=127.0.0.1:0", place]),
        ("pay,metrics", ["join", "--client-only", "--metrics=127.0.0.1:0", place]),
        ("pay", ["join", "--client-only", place]),
        ("gateway", ["gateway", "--listen=127.0.0.1:0", place]),
        ("gateway", ["join", "--client-only", "--gateway=127.0.0.1:0", place]),
        ("dev-chain", ["chain", "dev", "--port=0", place]),
        ("pay", ["wallet", "new", "--random", f"--show-phrase-to={tmp_path / 'shown'}", place]),
        ("pay", ["wallet", "restore", "--random", words, place]),
        ("pay", ["wallet", "import", "--random", f"--key-file={tmp_path / 'key'}", place]),
        ("pay", ["chain", "deploy", *deploy, place]),
        ("host,dev-chain", ["demo"]),
        ("host,dev-chain", ["bench", "gas"]),
        ("sim", ["simulate", "steady", f"--out={tmp_path / 'run'}"]),
        ("sim", ["simulate", "steady", "--repeat=2", f"--out={tmp_path / 'sweep'}"]),
        ("sim", ["simulate", "show", "steady"]),
        ("cluster", ["simulate", "steady", "--cluster=local", f"--out={tmp_path / 'sweep'}"]),
    ]
    told = _without([arguments for _, arguments in doors])["commands"]
    for (extra, arguments), found in zip(doors, told, strict=True):
        assert found["code"] == 1, (arguments, found)
        assert f"`pip install 'p2pnode[{extra}]'` installs them" in found["said"], arguments
        assert found["said"].count("\n") == 1, "it is one clear error"
    assert not [each for each in tmp_path.rglob("*") if each.is_file()]


def test_a_client_needs_no_extra_to_ask_a_free_host_and_to_look_at_what_it_keeps(
    host: Program, tmp_path: Path
) -> None:
    file, place = tmp_path / "file", f"--data-dir={tmp_path / 'data'}"
    file.write_text("kept")
    asked, put, listed, sessions, checked = _without(
        [
            ["ask", "hello", "--model=scripted", f"--peer={host.multiaddr}", place],
            ["storage", "put", str(file), place],
            ["storage", "ls", place],
            ["sessions", "list", place],
            ["doctor", "--no-mdns", place],
        ]
    )["commands"]
    assert asked["code"] == 0, asked
    assert "tokens in" in asked["said"]
    assert [each["code"] for each in (put, listed, sessions, checked)] == [0, 0, 0, 0]
    assert "1 blob" in listed["said"]
    assert "not tried: serving needs packages" in checked["said"]


@pytest.mark.long
def test_a_paid_offer_is_left_out_by_who_has_not_installed_what_paying_needs(
    profile: Path, tmp_path: Path
) -> None:
    place = f"--data-dir={tmp_path / 'data'}"
    # A host of its own: one that other tests have used may know free hosts by now, and tell of them.
    with join_for_pay(tmp_path, profile) as host:
        flags = [
            "--model=scripted",
            "--no-mdns",
            f"--bootstrap={host.multiaddr}",
            f"--chain={profile}",
            place,
        ]
        hosts, asked = _without([["hosts", "--why", *flags], ["ask", "hello", *flags]])["commands"]
    assert hosts["code"] == asked["code"] == 3
    for each in (hosts, asked):
        assert "`pip install 'p2pnode[pay]'`" in each["said"], each


def test_every_module_that_is_behind_no_door_can_be_imported_without_an_extra() -> None:
    failed = _without([], modules=True)["failed"]
    assert {name for name in failed if not name.startswith(BEHIND_A_DOOR)} == set()
    known = {module for modules in MODULES.values() for module in modules}
    assert set(failed.values()) <= known | {"torch"}  # no extra of MODULES: each machine has its own build
