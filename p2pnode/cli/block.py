"""``p2pnode block|unblock|blocked``: peers that this node has nothing to do with."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from p2pnode.cli.options import DataDirOption, JsonOption, LogOption, configure, data_of
from p2pnode.cli.output import Output

if TYPE_CHECKING:
    from p2pnode.ids import PeerId
    from p2pnode.node.datadir import DataDir

PeerArgument = Annotated[
    str, typer.Argument(help="A peer id, as 12D3KooW…, or a multiaddr that ends in one.")
]


def block(
    peer: PeerArgument,
    reason: Annotated[str, typer.Option(help="Why, for yourself; it is told to nobody.")] = "",
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    log_level: LogOption = "error",
) -> None:
    """Block a peer: this node neither serves it nor asks it, from now on. Connections to it are closed."""

    def change(output: Output, data: DataDir) -> None:
        from p2pnode.node.block_list import BlockList

        found = _peer(peer)
        new = BlockList(data.blocked).add(found, reason)
        text = f"blocked {found}" if new else f"{found} was blocked already"
        output.report("blocked", {"peer": found, "new": new, "reason": reason}, text=text)

    _change(data_dir, change, as_json=as_json, log_level=log_level)


def unblock(
    peer: PeerArgument,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    log_level: LogOption = "error",
) -> None:
    """Let a peer in again that was blocked."""

    def change(output: Output, data: DataDir) -> None:
        from p2pnode.errors import UsageError
        from p2pnode.node.block_list import BlockList

        found = _peer(peer)
        if not BlockList(data.blocked).remove(found):
            raise UsageError(f"{found} is not blocked: see {output.command('blocked')}")
        output.report("unblocked", {"peer": found}, text=f"unblocked {found}")

    _change(data_dir, change, as_json=as_json, log_level=log_level)


def blocked(
    data_dir: DataDirOption = None, as_json: JsonOption = False, log_level: LogOption = "error"
) -> None:
    """List the peers that are blocked."""
    from p2pnode.cli.runner import run_async

    configure(log_level)
    output = Output(as_json=as_json, data_dir=data_dir)

    async def run() -> None:
        from p2pnode.node.block_list import BlockList

        found = BlockList(data_of(data_dir).blocked).read()
        for each in found:
            since = f"{datetime.fromtimestamp(each.since, UTC):%Y-%m-%d %H:%M} UTC"
            text = f"{each.peer}  since {since}" + (f"  {each.reason}" if each.reason else "")
            if as_json:
                output.event("peer", {"peer": each.peer, "since": each.since, "reason": each.reason})
            else:
                output.lines(text)
        if not found and not as_json:
            output.lines("no peer is blocked")

    run_async(run, on_error=output.failed)


def _change(data_dir: Any, change: Any, *, as_json: bool, log_level: str) -> None:
    """Change the list, then have a node that runs here keep to it at once."""
    from p2pnode.cli.runner import run_async

    configure(log_level)
    output = Output(as_json=as_json, data_dir=data_dir)

    async def run() -> None:
        from p2pnode.host.control import ask_running

        data = data_of(data_dir)
        change(output, data)
        running = data.running_node()
        if running is not None and running.control:
            await ask_running(running.control, {"do": "blocked"}, lambda _name, _fields: None)

    run_async(run, on_error=output.failed)


def _peer(text: str) -> PeerId:
    """The peer that was named. Raises ``UsageError``."""
    from p2pnode.errors import ConfigError, UsageError
    from p2pnode.ids import pasted
    from p2pnode.net.multiaddrs import split_peer

    named = pasted(text)
    try:
        return split_peer(named if "/" in named else f"/ip4/127.0.0.1/tcp/1/p2p/{named}")[1]
    except ConfigError as error:
        msg = f"{named[:80]!r} is no peer id: give all of it, as 12D3KooW… (logs and `hosts --json` have it)"
        raise UsageError(msg) from error
