"""``p2pnode demo``: see it work on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from p2pnode.cli.output import Output
from p2pnode.money import usdc_number

if TYPE_CHECKING:
    from p2pnode.demo.demo import AnswerRow, BillRow
    from p2pnode.demo.wallets import MoneyRow


def demo() -> None:
    """Run a chain, hosts, storing nodes and a client on loopback: pay, lose a host in mid-answer, recover."""
    from p2pnode.cli.options import configure
    from p2pnode.cli.runner import run_async

    configure("error")
    output = Output(as_json=False)

    def write(text: str) -> None:
        output.raw(text.encode(errors="replace"))

    async def run() -> None:
        from p2pnode.demo.demo import Demo
        from p2pnode.extras import need

        need("the demo", "host", "dev-chain")
        shown = Demo(lambda line: write(line + "\n"), write)
        await shown.run()
        _table(output, shown.rows)
        _bill(output, shown.bill)
        _money(output, shown.money)

    run_async(run, on_error=output.failed)


def _table(output: Output, rows: list[AnswerRow]) -> None:
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
    output.show("")
    output.show(table)


def _bill(output: Output, rows: list[BillRow]) -> None:
    from rich.table import Table

    columns = ("host", "for", "tokens in", "tokens out", "cost")
    table = Table(*columns, title="the bill of the answer whose host was killed (USDC)")
    for row in rows:
        table.add_row(row.host, row.what, str(row.tokens_in), str(row.tokens_out), usdc_number(row.cost))
    output.show("")
    output.show(table)


def _money(output: Output, rows: list[MoneyRow]) -> None:
    from rich.table import Table

    table = Table("who", "before", "after", "change", "due", title="where the money went (USDC)")
    for row in rows:
        numbers = (row.before, row.after, row.after - row.before, row.due)
        table.add_row(row.who, *map(usdc_number, numbers))
    output.show("")
    output.show(table)
