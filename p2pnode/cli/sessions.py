"""``p2pnode sessions``: paid sessions of this data dir, as their client and as their host."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from p2pnode.cli.options import ChainOption, DataDirOption, JsonOption, LogOption, build_config, configure
from p2pnode.cli.output import Output, shorten

if TYPE_CHECKING:
    from p2pnode.node.journal import BoughtSession, HostedSession, Journal

sessions_app = typer.Typer(help="Paid sessions of this data dir.", no_args_is_help=True)
SessionArgument = Annotated[str, typer.Argument(help="A session id, or how it begins.")]


@sessions_app.command("list")
def list_sessions(
    data_dir: DataDirOption = None, as_json: JsonOption = False, log_level: LogOption = "error"
) -> None:
    """List paid sessions: those bought, then those served."""
    from p2pnode.cli.running import run_async

    configure(log_level)
    output = Output(as_json=as_json)

    async def run() -> None:
        journal = _journal(data_dir)
        if journal is None:
            _say_none(output)
            return
        try:
            rows = [_bought(each) for each in journal.purchases()]
            rows += [_hosted(each) for each in journal.hosted()]
        finally:
            journal.close()
        if as_json:
            for row in rows:
                output.event("session", row)
        elif rows:
            output.table(("session", "as", "state", "with", "deposit", "amount"), map(_row, rows))
        else:
            _say_none(output)

    run_async(run, on_error=output.failed)


@sessions_app.command()
def show(
    session: SessionArgument,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    log_level: LogOption = "error",
) -> None:
    """Show one session: its terms, its best voucher, its receipts."""
    from p2pnode.cli.running import run_async

    configure(log_level)
    output = Output(as_json=as_json)

    async def run() -> None:
        journal = _known(_journal(data_dir), session)
        try:
            found = _find(journal, session)
            receipts = len(journal.receipts(found.session)) or len(journal.taken(found.session))
            fields = {**_fields(found), **_terms(found), "receipts": receipts}
        finally:
            journal.close()
        if as_json:
            output.event("session", fields)
        else:
            output.result("\n".join(f"{name:<12} {value}" for name, value in fields.items()))

    run_async(run, on_error=output.failed)


@sessions_app.command()
def close(
    session: SessionArgument,
    chain: ChainOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    log_level: LogOption = "error",
) -> None:
    """End a session by hand: settle it as its host, or ask the chain for the rest of the deposit."""
    from p2pnode.cli.running import run_async

    configure(log_level)
    output = Output(as_json=as_json)

    async def run() -> None:
        import time

        from p2pnode.node.books import books_of
        from p2pnode.node.closing import close_session

        # Asked before the chain is: a mistyped id is told at once.
        journal = _known(_journal(data_dir), session)
        try:
            _find(journal, session)
        finally:
            journal.close()
        async with books_of(build_config(data_dir, chain=chain), sends=True) as books:
            found = _find(books.journal, session)
            done = await close_session(found, books, int(time.time()))
        fields = {"session": found.session.hex(), "outcome": done.outcome, "until": done.until}
        output.event("closed", fields, text=done.words)

    run_async(run, on_error=output.failed)


def _journal(data_dir: Any) -> Journal | None:
    from p2pnode.node.datadir import DataDir
    from p2pnode.node.journal import Journal

    path = DataDir(build_config(data_dir).data_dir).journal
    return Journal.open(path) if path.exists() else None


def _known(journal: Journal | None, session: str) -> Journal:
    from p2pnode.errors import UsageError

    if journal is None:
        msg = f"no session begins with {session!r}: there is no paid session here yet"
        raise UsageError(msg)
    return journal


def _say_none(output: Output) -> None:
    if not output.as_json:
        output.result("no paid sessions yet")


def _find(journal: Journal, begins: str) -> BoughtSession | HostedSession:
    from p2pnode.errors import UsageError

    wanted = begins.lower().removeprefix("0x")
    every: list[BoughtSession | HostedSession] = [*journal.purchases(), *journal.hosted()]
    found = [each for each in every if each.session.hex().startswith(wanted)]
    if not found:
        msg = f"no session begins with {begins!r}: see `p2pnode sessions list`"
        raise UsageError(msg)
    if len({each.session for each in found}) > 1:
        msg = f"{len(found)} sessions begin with {begins!r}: give more of the id"
        raise UsageError(msg)
    return found[0]


def _fields(record: BoughtSession | HostedSession) -> dict[str, Any]:
    from p2pnode.node.journal import BoughtSession

    return _bought(record) if isinstance(record, BoughtSession) else _hosted(record)


def _bought(record: BoughtSession) -> dict[str, Any]:
    signed = record.voucher.amount if record.voucher is not None else 0
    return {
        "session": record.session.hex(),
        "as": "client",
        "state": record.state,
        "peer": record.host,
        "deposit": record.terms.deposit,
        "amount": signed if record.spent is None else record.spent,
    }


def _hosted(record: HostedSession) -> dict[str, Any]:
    signed = record.voucher.amount if record.voucher is not None else 0
    return {
        "session": record.session.hex(),
        "as": "host",
        "state": record.state,
        "peer": record.peer,
        "deposit": record.terms.deposit,
        "amount": signed if record.amount is None else record.amount,
    }


def _terms(record: BoughtSession | HostedSession) -> dict[str, Any]:
    from p2pnode.chain.addresses import shown_address

    terms, voucher = record.terms, record.voucher
    return {
        "payer": shown_address(terms.payer),
        "host": shown_address(terms.host),
        "price_in": terms.price_in,
        "price_out": terms.price_out,
        "session_fee": terms.session_fee,
        "tip": terms.tip,
        "expiry": terms.expiry,
        "tokens_in": voucher.tokens_in if voucher is not None else 0,
        "tokens_out": voucher.tokens_out if voucher is not None else 0,
    }


def _row(fields: dict[str, Any]) -> list[str]:
    from p2pnode.money import usdc_text

    return [
        fields["session"][:16],
        fields["as"],
        fields["state"],
        shorten(fields["peer"]),
        usdc_text(fields["deposit"]),
        usdc_text(fields["amount"]),
    ]
