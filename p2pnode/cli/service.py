"""``p2pnode service``: have the system start the node with the user's session, and again when it fails.

On Linux that is a unit of systemd's user manager, on macOS an agent of launchd. What is written, and which
programs are called, follows from :func:`service_for` alone, so that ``--dry-run`` prints exactly that.
"""

from __future__ import annotations

import plistlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import typer

from p2pnode.cli.options import Commands, DataDirOption, JsonOption, LogOption, configure, data_of
from p2pnode.cli.output import Output
from p2pnode.platforms import user_id

service_app = Commands(
    help="Start the node with your session, and again when it fails (systemd, launchd).", no_args_is_help=True
)
MARK: Final = "made by `p2pnode service install`"
STOP_S: Final = 60
"""A node that is stopped lets answers end and settles; its own deadlines take 23 s together."""
USAGE: Final = 2
"""The exit code of flags that are wrong: to start again with them would help nobody."""
_NAME_MAX: Final = 64
_DEADLINE_S: Final = 60
NameOption = Annotated[
    str, typer.Option("--name", help="What the system calls it, where you run several nodes.")
]


@dataclass(frozen=True, slots=True)
class Service:
    """A service of one system: its file, and the commands that bring it in, tell of it, and take it out."""

    path: Path
    text: bytes
    install: tuple[tuple[str, ...], ...]
    status: tuple[str, ...]
    uninstall: tuple[tuple[str, ...], ...]
    hint: str = ""


def service_for(
    platform: str, name: str, arguments: Sequence[str], *, home: Path, log: Path, uid: int
) -> Service | None:
    """The service that runs ``arguments`` (a program and what it is given); None where the system has none
    that is known here. ``platform`` is ``sys.platform``."""
    if platform == "linux":
        path, unit = home / ".config" / "systemd" / "user" / f"{name}.service", f"{name}.service"
        control = ("systemctl", "--user")
        return Service(
            path,
            systemd_unit(arguments).encode(),
            ((*control, "daemon-reload"), (*control, "enable", "--now", unit)),
            (*control, "status", "--no-pager", unit),
            ((*control, "disable", "--now", unit),),
            "it runs while you are logged in; `loginctl enable-linger` has it run from the machine's start. "
            f"`journalctl --user -u {unit}` shows its log",
        )
    if platform == "darwin":
        path, label = home / "Library" / "LaunchAgents" / f"{name}.plist", f"gui/{uid}/{name}"
        return Service(
            path,
            launchd_plist(name, arguments, log),
            (("launchctl", "bootstrap", f"gui/{uid}", str(path)),),
            ("launchctl", "print", label),
            (("launchctl", "bootout", label),),
            f"its log is {log}",
        )
    return None


def systemd_unit(arguments: Sequence[str]) -> str:
    """The unit's text."""
    return "\n".join(
        (
            f"# {MARK}: a change here is lost when that is run again",
            "[Unit]",
            "Description=p2pnode, a node in a marketplace for LLM inference",
            "After=network-online.target",
            "",
            "[Service]",
            f"ExecStart={' '.join(map(_quoted, arguments))}",
            "Restart=on-failure",
            "RestartSec=10",
            f"RestartPreventExitStatus={USAGE}",
            # The engine's processes end with the answers that they make, not before.
            "KillMode=mixed",
            f"TimeoutStopSec={STOP_S}",
            "UMask=0077",
            "NoNewPrivileges=yes",
            "",
            "[Install]",
            "WantedBy=default.target",
            "",
        )
    )


def _quoted(word: str) -> str:
    """One word of a command line as systemd reads it: it knows %, $ and backslashes even inside quotes."""
    inner = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{inner}"'


def launchd_plist(name: str, arguments: Sequence[str], log: Path) -> bytes:
    """The agent's property list."""
    return plistlib.dumps(
        {
            "Label": name,
            "Comment": MARK,
            "ProgramArguments": list(arguments),
            "RunAtLoad": True,
            "KeepAlive": {"SuccessfulExit": False},
            "ThrottleInterval": 10,
            "ExitTimeOut": STOP_S,
            "ProcessType": "Background",
            "Umask": 0o077,
            "StandardOutPath": str(log),
            "StandardErrorPath": str(log),
        }
    )


DryOption = Annotated[
    bool, typer.Option("--dry-run", help="Print the file and the commands; write and run nothing.")
]


@service_app.command()
def install(
    context: typer.Context,
    join_options: Annotated[
        list[str] | None,
        typer.Argument(metavar="[-- JOIN_OPTIONS]", help="What `p2pnode join` is given.", show_default=False),
    ] = None,
    name: NameOption = "p2pnode",
    dry_run: DryOption = False,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    log_level: LogOption = "error",
) -> None:
    """Run `p2pnode join` with your session from now on."""

    given = tuple(join_options or ())
    _check_join(context, given)

    def work(output: Output) -> None:
        data = data_of(data_dir)
        arguments = [sys.executable, "-P", "-m", "p2pnode", "join", "--data-dir", str(data.root.absolute())]
        service = _service(name, [*arguments, *given], data.root / "service.log")
        if dry_run:
            _print(output, service)
            return
        _refuse_others_file(service.path)
        service.path.parent.mkdir(parents=True, exist_ok=True)
        from p2pnode.files import write_atomic

        write_atomic(service.path, service.text)
        for command in service.install:
            _call(command)
        text = f"installed  {service.path}\n{service.hint}"
        output.report("service.installed", {"path": str(service.path)}, text=text)

    _run(work, data_dir, as_json=as_json, log_level=log_level)


@service_app.command()
def status(
    name: NameOption = "p2pnode",
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    log_level: LogOption = "error",
) -> None:
    """Say what the system knows of the service; exit code 1 where it is not installed, or not running."""

    def work(output: Output) -> None:
        from p2pnode.errors import LocalError

        service = _service(name, [], Path())
        if not service.path.exists():
            raise LocalError(f"{service.path} is not there: {output.command('service install')} makes it")
        code, said = _said(service.status)
        output.report("service", {"path": str(service.path), "running": code == 0, "said": said}, text=said)
        if code:
            raise LocalError(f"the service does not run: {service.hint or 'see above'}")

    _run(work, data_dir, as_json=as_json, log_level=log_level)


@service_app.command()
def uninstall(
    name: NameOption = "p2pnode",
    dry_run: DryOption = False,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    log_level: LogOption = "error",
) -> None:
    """Stop the service, and start it no more. The data dir stays as it is."""

    def work(output: Output) -> None:
        from p2pnode.errors import ConfigError

        service = _service(name, [], Path())
        if dry_run:
            output.lines("\n".join([*(" ".join(each) for each in service.uninstall), f"rm {service.path}"]))
            return
        if not service.path.exists():
            raise ConfigError(f"{service.path} is not there: nothing is installed under that name")
        _refuse_others_file(service.path)
        for command in service.uninstall:
            _said(command)  # it may not run, or not be known any more: the file goes in any case
        service.path.unlink()
        output.report("service.removed", {"path": str(service.path)}, text=f"removed    {service.path}")

    _run(work, data_dir, as_json=as_json, log_level=log_level)


def _run(work: Callable[[Output], None], data_dir: Path | None, *, as_json: bool, log_level: str) -> None:
    from p2pnode.cli.runner import run_async

    configure(log_level)
    output = Output(as_json=as_json, data_dir=data_dir)

    async def run() -> None:
        work(output)

    run_async(run, on_error=output.failed)


def _service(name: str, arguments: Sequence[str], log: Path) -> Service:
    """Raises ``ConfigError`` for a system without a manager of services that is known here."""
    from p2pnode.errors import ConfigError, UsageError

    plain = name.replace("-", "").replace("_", "").replace(".", "")
    if not (plain.isascii() and plain.isalnum()) or len(name) > _NAME_MAX or not name[0].isalnum():
        raise UsageError(f"--name: {name[:_NAME_MAX]!r} may have letters, digits, -, _ and . only")
    uid = user_id()
    found = service_for(sys.platform, name, arguments, home=Path.home(), log=log.absolute(), uid=uid)
    if found is None:
        msg = (
            f"this system ({sys.platform}) has no manager of services that p2pnode knows: start "
            "`p2pnode join` by its own means (on Windows a task that runs when you log on)"
        )
        raise ConfigError(msg)
    return found


def _check_join(context: typer.Context, given: Sequence[str]) -> None:
    """Raise click's errors for flags that ``join`` doesn't take: the system would start it for ever."""
    own = {"--background", "--data-dir", "--json"}
    if clash := [each for each in given if each.partition("=")[0] in own]:
        msg = f"{clash[0]} is not for a service: leave it out (--data-dir goes before the --)"
        raise typer.BadParameter(msg)
    # By way of the context: a module of the command line does not import what puts them together.
    join = context.find_root().command.commands["join"]  # type: ignore[attr-defined]
    with join.make_context("join", list(given)):
        pass


def _refuse_others_file(path: Path) -> None:
    """Raise ``UsageError`` where a file stands there that nobody here made."""
    from p2pnode.errors import UsageError

    if path.exists() and MARK.encode() not in path.read_bytes():
        raise UsageError(f"{path} was not made by p2pnode: choose another name with --name, or move it away")


def _print(output: Output, service: Service) -> None:
    text = service.text.decode()
    commands = [" ".join(each) for each in service.install]
    if output.as_json:
        output.event("service.plan", {"path": str(service.path), "text": text, "commands": commands})
        return
    # As it is, also on a narrow terminal: a line of the file that is broken is none of it.
    output.result("\n".join([f"# {service.path}", text, "# then", *commands]))


def _call(command: Sequence[str]) -> None:
    """Raises ``LocalError`` where it fails."""
    from p2pnode.errors import LocalError

    code, said = _said(command)
    if code:
        # As with su and sudo, in a container, and on a system without systemd.
        no_session = "connect to bus" in said
        hint = (
            ": log in as this user, or start the node with `p2pnode join --background`" if no_session else ""
        )
        raise LocalError(f"`{' '.join(command)}` failed: {said or f'exit code {code}'}{hint}")


def _said(command: Sequence[str]) -> tuple[int, str]:
    """The exit code of a command, and what it said. Raises ``ConfigError`` where there is none."""
    from p2pnode.errors import ConfigError
    from p2pnode.words import printable

    if shutil.which(command[0]) is None:
        raise ConfigError(f"there is no `{command[0]}` here: this needs systemd (Linux) or launchd (macOS)")
    ran = subprocess.run(  # noqa: S603 - a command of ours, without a shell
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_DEADLINE_S, check=False
    )
    return ran.returncode, printable((ran.stdout + ran.stderr).strip())
