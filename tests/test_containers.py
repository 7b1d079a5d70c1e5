"""The image and the compose file say what is here: no docker is needed to see that each file that is copied
exists, that nothing runs as root, and that each command line is one that p2pnode takes."""

from __future__ import annotations

import fnmatch
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from p2pnode.cli.app import app

ROOT = Path(__file__).parent.parent
INSTRUCTIONS = {
    "FROM", "WORKDIR", "COPY", "RUN", "ENV", "USER", "VOLUME", "EXPOSE", "STOPSIGNAL", "ENTRYPOINT", "CMD",
}  # fmt: skip


def _instructions() -> list[tuple[str, str]]:
    text = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines]


def _compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
    return found


def _accepts(arguments: list[str]) -> None:
    """Raises click's errors for a command line that p2pnode doesn't take."""
    command: Any = get_command(app)
    while (name := arguments[0]) in getattr(command, "commands", {}):
        command, arguments = command.commands[name], arguments[1:]
        if not arguments:
            break
    with command.make_context("p2pnode", list(arguments)):
        pass


def test_the_image_is_made_of_files_that_are_here_and_that_docker_is_given() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    given = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    copied = []
    for name, rest in _instructions():
        assert name in INSTRUCTIONS
        if name == "COPY" and "--from" not in rest:
            copied += [word for word in rest.split() if not word.startswith("--")][:-1]
    assert {"p2pnode", "constraints.txt", "docker/dev-node.sh"} <= set(copied)
    for each in copied:
        assert (ROOT / each).exists(), each
        assert any(fnmatch.fnmatch(each.split("/")[0], pattern) for pattern in given), each
    for area in ("chain", "models", "protocols", "simulations", "storage"):  # where the package's links lead
        assert area in copied
        assert (ROOT / "p2pnode" / area).is_symlink()


def test_nothing_runs_as_root_and_a_node_is_told_to_end_in_order() -> None:
    found = _instructions()
    last_from = max(index for index, (name, _) in enumerate(found) if name == "FROM")
    users = [rest for name, rest in found[last_from:] if name == "USER"]
    assert users == ["p2pnode"]
    assert ("STOPSIGNAL", "SIGTERM") in found
    assert "-c constraints.txt" in dict(found[:last_from])["RUN"]


def test_compose_has_a_chain_three_hosts_and_what_they_need() -> None:
    compose = _compose()
    services = compose["services"]
    assert {"chain", "host1", "host2", "host3"} <= services.keys()
    for name, service in services.items():
        for volume in service.get("volumes", ()):
            assert volume.split(":")[0] in compose["volumes"], name
        assert set(service.get("depends_on", ())) <= services.keys()
        for other, how in service.get("depends_on", {}).items():
            assert how == {"condition": "service_healthy"}
            assert "healthcheck" in services[other]
        if name != "chain":
            assert service["network_mode"] == "service:chain"
        assert service["image"] == "p2pnode"
        # A registry might have a stranger's image of that name.
        assert ("build" in service) != (service.get("pull_policy") == "never"), name
    words = [word for service in services.values() for word in service.get("command", ())]
    listens = [word for word in words if "/tcp/" in word]
    assert len(listens) == len(set(listens)) == 3  # they share one network


@pytest.mark.parametrize("name", ["chain", "host1", "host2", "host3"])
def test_each_command_line_of_compose_is_one_that_p2pnode_takes(name: str) -> None:
    service = _compose()["services"][name]
    command = list(service["command"])
    if service.get("entrypoint") == ["p2pnode-dev-node"]:
        command += ["--chain", "/chain/chain.toml", "--data-dir", "/data"]
    _accepts(command)


def test_the_commands_of_the_nodes_script_are_ones_that_p2pnode_takes() -> None:
    script = (ROOT / "docker" / "dev-node.sh").read_text()
    lines = re.findall(r"p2pnode ((?:wallet|chain) [^\n|)]*)", script)
    assert len(lines) == 3
    for line in lines:
        _accepts([word for word in line.replace('"', "").split() if word != "$@"])


def test_the_file_says_how_a_client_asks_and_the_client_can_pay_and_knows_a_first_peer() -> None:
    services = _compose()["services"]
    client, host = services["client"], services["host1"]["command"]
    assert client["entrypoint"] == ["p2pnode-dev-node"]  # which makes a wallet, and has USDC given to it
    assert client["environment"]["P2PNODE_FIRST"] == host[host.index("--ready-file") + 1]
    line = re.search(r"run --rm client (ask .*)", (ROOT / "compose.yaml").read_text())
    assert line is not None
    _accepts(line.group(1).replace('"', "").split())
