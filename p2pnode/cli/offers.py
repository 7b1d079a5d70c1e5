"""``p2pnode models offer|withdraw``, ``pause``, ``resume``: change what a running node serves."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from p2pnode.cli.models import NameArgument
from p2pnode.cli.options import DataDirOption, JsonOption, LogOption, configure, data_of, units_of
from p2pnode.cli.output import Output

PriceOption = Annotated[str | None, typer.Option(help="USDC per million tokens, such as 0.5; 0 is free.")]


def offer(
    name: NameArgument,
    price_in: PriceOption = None,
    price_out: PriceOption = None,
    session_fee: Annotated[str | None, typer.Option(help="USDC a session costs besides tokens.")] = None,
    n_ctx: Annotated[int | None, typer.Option(help="Context of one request, in tokens.")] = None,
    slots: Annotated[int | None, typer.Option(help="Requests served at the same time.")] = None,
    pin: Annotated[
        bool, typer.Option("--pin", help="Keep it in memory, whatever else is asked for.")
    ] = False,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    log_level: LogOption = "error",
) -> None:
    """Have the running node serve one more model: it is pulled, verified, loaded and advertised."""
    money = {"price_in": price_in, "price_out": price_out, "session_fee": session_fee}
    command: dict[str, Any] = {
        "do": "offer",
        "model": name,
        "n_ctx": n_ctx,
        "slots": slots,
        "pinned": pin or None,
    }
    for key, text in money.items():
        command[key] = units_of(text, f"--{key.replace('_', '-')}") if text is not None else None
    _ask(data_dir, command, as_json=as_json, log_level=log_level)


def withdraw(
    name: NameArgument,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    log_level: LogOption = "error",
) -> None:
    """Have the running node serve a model no longer: answers under way end, then it is unloaded."""
    _ask(data_dir, {"do": "withdraw", "model": name}, as_json=as_json, log_level=log_level)


def pause(
    data_dir: DataDirOption = None, as_json: JsonOption = False, log_level: LogOption = "error"
) -> None:
    """Have the running node serve nobody for now: offers are withdrawn, answers under way end."""
    _ask(data_dir, {"do": "pause"}, as_json=as_json, log_level=log_level)


def resume(
    data_dir: DataDirOption = None, as_json: JsonOption = False, log_level: LogOption = "error"
) -> None:
    """Have a node that was paused serve again. A restarted node serves anyway."""
    _ask(data_dir, {"do": "resume"}, as_json=as_json, log_level=log_level)


def _ask(data_dir: Any, command: dict[str, Any], *, as_json: bool, log_level: str) -> None:
    from p2pnode.cli.join import JoinReporter
    from p2pnode.cli.runner import run_async

    configure(log_level)
    output = Output(as_json=as_json, data_dir=data_dir)

    async def run() -> None:
        from p2pnode.errors import ConfigError
        from p2pnode.host.control import ask_running

        data = data_of(data_dir)
        running = data.running_node()
        if running is None or not running.control:
            msg = f"no node runs on {data.root}: start one with {output.command('join')}"
            raise ConfigError(msg)
        await ask_running(running.control, command, JoinReporter(output))

    run_async(run, on_error=output.failed)
