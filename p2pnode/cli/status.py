"""``p2pnode status`` and ``p2pnode invite``: what the node on this data dir is doing."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias

import typer

from p2pnode.cli.options import DataDirOption, JsonOption, LogOption, build_config, configure, data_of
from p2pnode.cli.output import Output, price_of
from p2pnode.words import count_of

if TYPE_CHECKING:
    from p2pnode.node.datadir import RunningGateway
    from p2pnode.views.idle import HostState


WatchOption: TypeAlias = Annotated[
    bool, typer.Option("--watch", help="Show it anew each two seconds, until Ctrl-C.")
]
WhyIdleOption: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--why-idle", help="Also say why it gets no work: its place among the hosts that it sees, and more."
    ),
]
_WATCH_S: Final = 2.0
_CLEAR: Final = "\x1b[H\x1b[J"
"""Has a terminal go to its upper left corner and forget what stands below."""


def status(
    watch: WatchOption = False,
    why_idle: WhyIdleOption = False,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    log_level: LogOption = "error",
) -> None:
    """Show the node that runs on this data dir, as its own advert describes it."""
    from p2pnode.cli.runner import run_async

    configure(log_level)
    output = Output(as_json=as_json, data_dir=data_dir)

    async def run() -> None:
        import trio

        while True:
            lines, fields = await _look(output, data_dir, why_idle=why_idle)
            if as_json:
                output.event("status", fields)
            else:
                if watch and sys.stdout.isatty():
                    sys.stdout.write(_CLEAR)
                output.lines("\n".join(lines))
            if not watch:
                return
            await trio.sleep(_WATCH_S)

    run_async(run, on_error=output.failed)


async def _look(output: Output, data_dir: Any, *, why_idle: bool) -> tuple[list[str], dict[str, Any]]:
    """The node as it is now, in lines and as fields. Raises ``P2PNodeError``."""
    gateway = data_of(data_dir).running_gateway()
    if gateway is not None and data_of(data_dir).running_node() is None:
        return [_gateway_line(gateway)], {"gateway": asdict(gateway)}
    running, advert = _running(output, data_dir), None
    from p2pnode.client.client import Client
    from p2pnode.host.totals import read_totals
    from p2pnode.money import usdc_text
    from p2pnode.node.datadir import DataDir
    from p2pnode.node.reachability import reachability
    from p2pnode.views.idle import CHAIN_AWAY, idle_fields
    from p2pnode.views.status import host_money, status_fields

    config = build_config(data_dir, mdns=False)
    async with Client(config) as client:
        advert = await client.advert_of(running.multiaddrs)
        sheets = await client.sheets([advert] if advert is not None else [])
        seen = await client.known_adverts() if why_idle else []
    sheet = sheets.get(running.peer_id)
    served, money = read_totals(DataDir(config.data_dir).totals), host_money(config)
    fields = status_fields(running, advert, sheet, served=served, ether_usd=config.ether_usd, money=money)
    fields["gateway"] = asdict(gateway) if gateway is not None else None
    state = await _state(running)
    fields["paused"], fields["chain_reachable"] = list(state.paused), state.chain_reachable
    lines = [f"peer id    {fields['peer_id']}", f"pid        {fields['pid']}"]
    lines += [f"listening  {address}" for address in running.multiaddrs]
    if running.reach:
        found = reachability(running.reach, running.multiaddrs)
        lines += [f"reach      {found.detail}"] + ([f"           {found.remedy}"] if found.remedy else [])
    lines += [
        f"serving    {m['name']} ({m['engine'] or 'cold'}, {m['n_ctx']} tokens), " + price_of(m)
        for m in fields["models"]
    ] or ["serving    nothing"]
    lines.append(f"load       {fields['active']} of {fields['slots']} slots, {fields['queued']} waiting")
    if gateway is not None:
        lines.append(_gateway_line(gateway))
    if fields["served"] is not None:
        lines.append(_served_line(fields["served"]))
    if fields["earned"] or fields["owed"]:
        earned, owed = usdc_text(fields["earned"]), usdc_text(fields["owed"])
        lines.append(f"earned     {earned} settled, {owed} not settled yet, a tenth of it the treasury's")
    if any(m["price_in"] or m["price_out"] for m in fields["models"]):
        lines.append(_gas_line(config.ether_usd))
    if not state.chain_reachable:
        lines.append(f"chain      {CHAIN_AWAY}")
    lines += [f"paused     {why}" for why in state.paused]
    if why_idle:
        every = {each.peer: each for each in (*seen, *((advert,) if advert is not None else ()))}
        idle = idle_fields(running.peer_id, list(every.values()), state, now=time.time(), reach=running.reach)
        fields["idle"] = idle
        lines += [f"why idle   {reason}" for reason in idle["reasons"]] or ["why idle   nothing is seen"]
    return lines, fields


async def _state(running: Any) -> HostState:
    """What only the running node knows; nothing where it is of an earlier version, or just ending."""
    from p2pnode.errors import LocalError
    from p2pnode.host.control import ask_running
    from p2pnode.views.idle import HostState

    told: dict[str, Any] = {}

    def take(name: str, fields: dict[str, Any]) -> None:
        if name == "state":
            told.update(fields)

    if running.control:
        with suppress(LocalError):
            await ask_running(running.control, {"do": "state"}, take)
    return HostState.of(told)


def _gateway_line(gateway: RunningGateway) -> str:
    who = "with a key" if gateway.keys_required else "without a key"
    return f"gateway    {gateway.url}/v1, {who} (process {gateway.pid})"


def _gas_line(ether_usd: int) -> str:
    from p2pnode.money import usdc_text

    if not ether_usd:
        return "gas        not held against the session fee: set ether_usd in config.toml"
    return f"gas        held against the session fee, at {usdc_text(ether_usd)} an ether"


def _served_line(served: dict[str, Any]) -> str:
    from datetime import timedelta

    up = timedelta(seconds=max(0, int(time.time()) - served["since"]))
    return (
        f"served     {count_of(served['turns'], 'answer')} in {count_of(served['sessions'], 'session')}, "
        f"{served['tokens_in']} tokens in, {served['tokens_out']} out, up for {up}"
    )


def invite(
    data_dir: DataDirOption = None, as_json: JsonOption = False, log_level: LogOption = "error"
) -> None:
    """Print the invite of the node that runs here: give it to others for their --bootstrap."""
    from p2pnode.cli.runner import run_async

    configure(log_level)
    output = Output(as_json=as_json, data_dir=data_dir)

    async def run() -> None:
        from p2pnode.node.invite import make_invite
        from p2pnode.node.reachability import reachability

        running = _running(output, data_dir)
        text = make_invite(running.announced or running.multiaddrs)
        if as_json:
            output.event("invite", {"invite": text, "reach": running.reach})
            return
        output.result(text)
        if running.reach and running.reach != "global":
            found = reachability(running.reach, running.multiaddrs)
            output.note("\n".join(each for each in (found.detail, found.remedy) if each))

    run_async(run, on_error=output.failed)


def _running(output: Output, data_dir: Any) -> Any:
    from p2pnode.errors import ConfigError

    data = data_of(data_dir)
    running = data.running_node()
    if running is None:
        msg = f"no node runs on {data.root}: start one with {output.command('join')}"
        raise ConfigError(msg)
    return running
