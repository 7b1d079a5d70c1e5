"""``p2pnode run`` and ``connect``: a program that asks through the gateway, with a key of its own.

JSON events of ``connect``::

    connect{program, url, model, environment, unset, arguments, file?, merge?, source}: what the program
            reads; the key stands in it
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from p2pnode.cli.keys import BudgetOption, PerDayOption
from p2pnode.cli.options import (
    BootstrapOption,
    ChainOption,
    DataDirOption,
    JsonOption,
    LogOption,
    MdnsOption,
    ModelOption,
    blaming,
    configure,
    data_of,
    units_of,
)
from p2pnode.cli.output import Output
from p2pnode.platforms import HANGUP

if TYPE_CHECKING:
    from p2pnode.launch.programs import Program, Settings
    from p2pnode.node.datadir import DataDir, RunningGateway

NameArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="codex, claude, opencode, aider, goose or crush.")
]
_SIGNALLED: Final = 128
"""A shell's exit code of a program that a signal ended is this and the signal's number."""
_NONE: Final = "none"


def run(
    name: NameArgument,
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[-- ARGS]", help="What the program gets as it stands.")
    ] = None,
    model: ModelOption = None,
    budget: BudgetOption = None,
    per_day: PerDayOption = None,
    bootstrap: BootstrapOption = None,
    chain: ChainOption = None,
    mdns: MdnsOption = None,
    data_dir: DataDirOption = None,
    log_level: LogOption = "error",
) -> None:
    """Run a program on the network: `p2pnode run codex -- exec "fix the test"`. It gets a key of its own.

    A gateway is started where none runs, and ended with the program. What the program reads is set for this
    run only; a file of its own that had to be changed is put back, by the next run if this one crashes.
    """
    from p2pnode.cli.runner import run_plain

    configure(log_level)
    output = Output(as_json=False, data_dir=data_dir)
    codes: list[int] = []

    def act() -> None:
        from p2pnode.launch.borrowed_files import borrowed
        from p2pnode.launch.programs import arguments_of, environment_of, fill

        program = _program(name)
        command = _installed(program)
        data = _ready(data_dir, output)
        with _settings(data, program, model, (budget, per_day), (bootstrap, chain, mdns)) as settings:
            environment = {key: each for key, each in os.environ.items() if key not in program.unset}
            environment |= environment_of(program, settings)
            file = program.file
            borrowing = (
                nullcontext()
                if file is None
                else borrowed(data.launch, _place(program), fill(file.merge, settings))
            )
            with borrowing:
                line = [command, *arguments_of(program, settings), *(arguments or ())]
                codes.append(_handed_over(line, environment))

    run_plain(act, on_error=output.failed)
    raise typer.Exit(codes[0])


def connect(
    name: NameArgument,
    model: ModelOption = None,
    budget: BudgetOption = None,
    per_day: PerDayOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    log_level: LogOption = "error",
) -> None:
    """Print what a program reads to ask through the gateway that runs, with a key, for copying."""
    from p2pnode.cli.runner import run_plain

    configure(log_level)
    output = Output(as_json=as_json, data_dir=data_dir)

    def act() -> None:
        from p2pnode.errors import ConfigError

        program = _program(name)
        data = _ready(data_dir, output)
        gateway = data.running_gateway()
        if gateway is None:
            raise ConfigError("no gateway runs on this data dir: start it with `p2pnode gateway`")
        settings = _settings_for(data, program, model, (budget, per_day), gateway)
        _print(output, program, settings)

    run_plain(act, on_error=output.failed)


def _program(name: str) -> Program:
    from p2pnode.launch.programs import program_named

    return program_named(name)


def _installed(program: Program) -> str:
    import shutil

    from p2pnode.errors import ConfigError

    found = shutil.which(program.command)
    if found is None:
        raise ConfigError(
            f"{program.command} is not installed, or not on the PATH. To have it: {program.install}"
        )
    return found


def _ready(data_dir: Path | None, output: Output) -> DataDir:
    """The data dir, with the files put back that a run which crashed has left changed."""
    from p2pnode.launch.borrowed_files import put_back_all

    data = data_of(data_dir)
    data.prepare()
    for path in put_back_all(data.launch):
        output.note(f"{path} was put back: an earlier run had ended without doing so")
    return data


@contextmanager
def _settings(
    data: DataDir,
    program: Program,
    model: str | None,
    budgets: tuple[str | None, str | None],
    network: tuple[list[str] | None, str | None, bool | None],
) -> Iterator[Settings]:
    """What the program is to use, while there is a gateway."""
    from p2pnode.launch.gateway_process import using_gateway

    bootstrap, chain, mdns = network
    flags = [flag for each in bootstrap or () for flag in ("--bootstrap", each)]
    flags += [] if chain is None else ["--chain", chain]
    flags += [] if mdns is None else ["--mdns" if mdns else "--no-mdns"]
    wanted = _model(model, data)
    flags += ["--alias", f"*={wanted}"]
    with using_gateway(data, data.launch, flags) as gateway:
        yield _settings_for(data, program, model, budgets, gateway)


def _settings_for(
    data: DataDir,
    program: Program,
    model: str | None,
    budgets: tuple[str | None, str | None],
    gateway: RunningGateway,
) -> Settings:
    from p2pnode.launch.gateway_process import context_of
    from p2pnode.launch.programs import Settings

    wanted = _model(model, data)
    key = _key(data, program, *budgets)
    context = context_of(gateway, key, wanted)
    return Settings(url=gateway.url, key=key, model=wanted, context=context)


def _model(name: str | None, data: DataDir) -> str:
    """The model's name, as the gateway takes it. Raises ``UsageError``."""
    from p2pnode.client.question import resolve_model
    from p2pnode.config import DEFAULT_MODEL

    wanted = name if name is not None else DEFAULT_MODEL
    with blaming("--model"):
        resolve_model(wanted, data.models)
    return wanted


def _key(data: DataDir, program: Program, budget: str | None, per_day: str | None) -> str:
    """The secret of the program's key, which is made at its first run and kept beside the others.

    A budget that is named is that of the key from now on; what was spent on it stays.
    """
    import secrets
    import time
    from dataclasses import replace

    import trio

    from p2pnode.files import read_secret_or_none, write_private
    from p2pnode.payments.books import open_journal
    from p2pnode.payments.keys import KeyBook, KeyLimits

    path = data.launch / f"{program.name}.key"
    data.launch.mkdir(mode=0o700, parents=True, exist_ok=True)
    changes: dict[str, Any] = {}
    for field, flag, text in (("total_max", "--budget", budget), ("day_max", "--per-day", per_day)):
        if text is not None:
            changes[field] = None if text == _NONE else units_of(text, flag)

    async def find_or_make() -> str:
        async with open_journal(data.journal) as journal:
            book = KeyBook(journal, wall=time.time, draw=secrets.token_bytes)
            secret = (read_secret_or_none(path) or "").strip()
            key = book.find(secret) if secret else None
            if key is None or key.revoked_at is not None:
                name = _free_name(book, f"run-{program.name}")
                made = await book.new(name, replace(KeyLimits(), **changes))
                write_private(path, f"{made.secret}\n".encode())
                return made.secret
            if changes:
                await book.change(key.name, replace(key.limits, **changes))
            return secret

    return trio.run(find_or_make)


def _free_name(book: Any, wanted: str) -> str:
    """A name that no key has: the user may have made one of this name, whose secret is not known here."""
    taken = {each.name for each in book.all() if each.revoked_at is None}
    names = (wanted, *(f"{wanted}-{count}" for count in range(2, len(taken) + 3)))
    return next(each for each in names if each not in taken)


def _place(program: Program) -> Path:
    """Where the program's own file is. Raises ``UsageError``."""
    from p2pnode.files import user_path

    assert program.file is not None  # noqa: S101 - asked of those that have one
    root = os.environ.get(program.file.root) or program.file.root_default
    return user_path(root) / program.file.path


def _handed_over(line: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a program with this terminal, and return its exit code as a shell gives it.

    Ctrl-C is the program's: the terminal sends it to both, and only the program decides what follows. What
    would end this process alone is passed on, so that all is put back when the program has ended.
    """
    child: subprocess.Popen[bytes] | None = None

    def pass_on(number: int, _frame: object) -> None:
        if child is not None:
            child.send_signal(number)

    # Handlers, and not SIG_IGN, which a program would inherit.
    before = {each: signal.signal(each, pass_on) for each in (signal.SIGTERM, HANGUP) if each is not None}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, lambda _number, _frame: None)
    try:
        child = subprocess.Popen(list(line), env=dict(environment))  # noqa: S603 - the user named the program
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if code >= 0 else _SIGNALLED - code


def _print(output: Output, program: Program, settings: Settings) -> None:
    from p2pnode.launch.programs import arguments_of, environment_of, fill

    environment, arguments = environment_of(program, settings), arguments_of(program, settings)
    merge = None if program.file is None else fill(program.file.merge, settings)
    if output.as_json:
        fields: dict[str, Any] = {
            "program": program.name, "url": settings.url, "model": settings.model,
            "environment": environment, "unset": list(program.unset), "arguments": arguments,
            "source": program.source,
        }  # fmt: skip
        if program.file is not None:
            fields |= {"file": str(_place(program)), "merge": merge}
        output.event("connect", fields)
        return
    lines = [f"unset {name}" for name in program.unset]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
    lines.append(shlex.join([program.command, *arguments]))
    if merge is not None:
        import json

        output.note(f"Put this into {_place(program)}:\n{json.dumps(merge, indent=2)}")
    output.result("\n".join(lines))
