"""The file and the commands of a service are what the system's own tools read back as they were meant, and
nothing of somebody else's is written over."""

from __future__ import annotations

import configparser
import os
import plistlib
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from p2pnode.cli.service import MARK, STOP_S, launchd_plist, service_for, systemd_unit
from tests.cli.support import Ran, run

ARGUMENTS = ["/usr/bin/python3", "-m", "p2pnode", "join", "--data-dir", '/home/a b/100% "$HOME"\\x']
HOME = Path("/home/me")


def _service(platform: str) -> object:
    return service_for(platform, "p2pnode", ARGUMENTS, home=HOME, log=Path("/tmp/x.log"), uid=501)


def test_a_unit_restarts_what_fails_and_lets_answers_end() -> None:
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(systemd_unit(ARGUMENTS))
    service = dict(parser["Service"])
    assert service["Restart"] == "on-failure"
    assert service["KillMode"] == "mixed"
    assert int(service["TimeoutStopSec"]) == STOP_S
    assert service["RestartPreventExitStatus"] == "2"
    # What systemd makes of it: %% and $$ are one, and quotes are as a shell has them.
    words = [word.replace("%%", "%").replace("$$", "$") for word in shlex.split(service["ExecStart"])]
    assert words == ARGUMENTS
    assert parser["Install"]["WantedBy"] == "default.target"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_itself_finds_no_fault_in_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / "p2pnode.service"
    unit.write_text(systemd_unit(["/bin/true", "a b"]))
    ran = subprocess.run(
        ["systemd-analyze", "--user", "verify", str(unit)], capture_output=True, text=True, check=False,
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert "p2pnode.service:" not in ran.stderr


def test_an_agent_of_launchd_has_the_arguments_as_they_are() -> None:
    found = plistlib.loads(launchd_plist("p2pnode", ARGUMENTS, Path("/tmp/x.log")))
    assert found["ProgramArguments"] == ARGUMENTS
    assert found["KeepAlive"] == {"SuccessfulExit": False}
    assert found["ExitTimeOut"] == STOP_S
    assert found["Comment"] == MARK


def test_each_system_has_its_place_and_others_have_none() -> None:
    linux, mac = (
        service_for(each, "p2pnode", ARGUMENTS, home=HOME, log=Path("/l"), uid=501)
        for each in ("linux", "darwin")
    )
    assert linux is not None
    assert mac is not None
    assert linux.path == HOME / ".config/systemd/user/p2pnode.service"
    assert linux.install[-1] == ("systemctl", "--user", "enable", "--now", "p2pnode.service")
    assert "enable-linger" in linux.hint
    assert mac.path == HOME / "Library/LaunchAgents/p2pnode.plist"
    assert mac.install == (("launchctl", "bootstrap", "gui/501", str(mac.path)),)
    assert _service("win32") is None


# ---- the commands, with programs of the system that only note what they were asked


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home and a ``systemctl`` that notes what it was asked, in the folder that is returned."""
    programs = tmp_path / "bin"
    programs.mkdir()
    told = tmp_path / "told"
    program = programs / "systemctl"
    program.write_text(
        f'#!/bin/sh\necho "$@" >> {told}\ncat {tmp_path}/broken 2>/dev/null || exit 0\nexit 1\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr("sys.platform", "linux")
    return tmp_path


def _install(system: Path, *given: str) -> Ran:
    return run("service", "install", "--data-dir", system / "data", *given)


@pytest.mark.long
def test_a_service_is_installed_told_and_removed(system: Path) -> None:
    path = system / "home/.config/systemd/user/p2pnode.service"
    assert run("service", "status").code == 1
    assert _install(system, "--", "--model", "scripted", "--price-out", "0.5").code == 0
    text = path.read_text()
    assert '"join" "--data-dir"' in text
    assert '"--price-out" "0.5"' in text
    assert (system / "told").read_text().splitlines() == [
        "--user daemon-reload",
        "--user enable --now p2pnode.service",
    ]
    assert _install(system).code == 0  # again, with other options
    assert "--price-out" not in path.read_text()
    assert run("service", "status").code == 0
    assert run("service", "uninstall").code == 0
    assert not path.exists()
    assert run("service", "uninstall").code == 1


def test_a_dry_run_writes_and_runs_nothing(system: Path) -> None:
    ran = _install(system, "--dry-run", "--", "--model", "scripted")
    assert ran.code == 0
    assert "ExecStart=" in ran.out
    assert "systemctl --user enable --now p2pnode.service" in ran.out
    assert not (system / "home").exists()
    assert not (system / "told").exists()
    assert "rm " in run("service", "uninstall", "--dry-run").out


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--", "--no-such-flag"), "No such option"),
        (("--", "--background"), "is not for a service"),
        (("--", "--data-dir=/x"), "is not for a service"),
        (("--name", "../evil"), "letters, digits"),
    ],
)
def test_what_join_would_not_take_is_refused_before_anything_is_written(
    system: Path, given: tuple[str, ...], said: str
) -> None:
    ran = _install(system, *given)
    assert ran.code == 2
    assert said in ran.err
    assert not (system / "home").exists()


def test_a_file_of_somebody_else_stays(system: Path) -> None:
    path = system / "home/.config/systemd/user/p2pnode.service"
    path.parent.mkdir(parents=True)
    path.write_text("[Service]\nExecStart=/mine\n")
    for ran in (_install(system), run("service", "uninstall")):
        assert ran.code == 2
        assert "was not made by p2pnode" in ran.err
    assert path.read_text() == "[Service]\nExecStart=/mine\n"


@pytest.mark.long
def test_a_manager_that_fails_or_is_missing_is_told(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (system / "broken").write_text("")
    assert "failed: exit code 1" in _install(system).err
    (system / "broken").write_text("Failed to connect to bus: No medium found")
    said = _install(system).err
    assert "No medium found: log in as this user, or start the node with `p2pnode join --background" in said
    monkeypatch.setenv("PATH", str(system))
    assert "there is no `systemctl`" in _install(system).err
    monkeypatch.setattr("sys.platform", "win32")
    assert "no manager of services" in _install(system).err
