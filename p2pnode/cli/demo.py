"""``p2pnode demo``: see it work on this machine."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from p2pnode.cli.output import Output

if TYPE_CHECKING:
    from p2pnode.demo import Row


def demo() -> None:
    """Run three hosts and a client on loopback for a minute: find, stream, dial, survive a lost host."""
    from p2pnode.cli.options import configure
    from p2pnode.cli.running import run_async

    configure("error")
    output = Output(as_json=False)

    def write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    async def run() -> None:
        from p2pnode.demo import Demo

        _table(await Demo(lambda line: write(line + "\n"), write).run())

    run_async(run, on_error=output.failed)


def _table(rows: list[Row]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("step", "host", "tokens in", "tokens out", "first token", "tokens/s", title="what happened")
    for row in rows:
        table.add_row(
            row.step,
            row.host,
            str(row.tokens_in),
            str(row.tokens_out),
            f"{row.ttft_s:.2f} s",
            f"{row.tokens_per_s:.0f}",
        )
    Console(highlight=False).print("", table)
