"""``p2pnode funds``: where every cent of a wallet is, how to withdraw what was earned, and how to send it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import typer

from p2pnode.cli.options import (
    ChainOption,
    Commands,
    DataDirOption,
    JsonOption,
    LogOption,
    YesOption,
    address_of,
    build_config,
    configure,
    units_of,
)
from p2pnode.cli.output import Output, shorten
from p2pnode.cli.plans import DryRunOption, carry_out, ended_text, locked_wallet, order_reporter
from p2pnode.cli.user_input import confirm
from p2pnode.money import FAB_DIGITS, USDC_DIGITS
from p2pnode.words import count_of

if TYPE_CHECKING:
    from p2pnode.cli.output import Output
    from p2pnode.payments.books import Books
    from p2pnode.payments.funds import Funds, LeftDeposit


_SETTLEMENT_S: Final = 15.0
"""A host settles some seconds after its client left; it takes a block or two."""
funds_app = Commands(help="Where every cent is: wallet, escrow, owed, earned, stuck and why.")


@funds_app.callback(invoke_without_command=True)
def funds(
    context: typer.Context,
    chain: ChainOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    log_level: LogOption = "error",
) -> None:
    """Show where every cent of this wallet is: as payer and as host."""
    if context.invoked_subcommand is not None:
        return
    from p2pnode.cli.runner import run_async

    configure(log_level)
    output = Output(as_json=as_json, data_dir=data_dir)

    async def run() -> None:
        import time

        from p2pnode.payments.books import books_of
        from p2pnode.payments.funds import funds as add_up
        from p2pnode.payments.funds import reconcile

        async with books_of(build_config(data_dir, chain=chain)) as books:
            await reconcile(books.journal, books.ledger, int(time.time()))
            found = await add_up(books.journal, books.ledger, books.wallet.address, int(time.time()))
            waiting = await books.orders.look_up()
        _print(output, found, books.wallet.account)
        for each in waiting:
            order_reporter(output)(each)

    run_async(run, on_error=output.failed)


@funds_app.command()
def withdraw(
    to: Annotated[
        str | None,
        typer.Option("--to", help="The address (0x…) that gets the money; this wallet's own without it."),
    ] = None,
    amount: Annotated[
        str | None, typer.Option(help="How much, in USDC; all that is withdrawable without it.")
    ] = None,
    yes: YesOption = False,
    anew: Annotated[
        bool,
        typer.Option(
            "--anew", help="Wait no more for an earlier withdrawal that nobody can find. It may pay twice."
        ),
    ] = False,
    chain: ChainOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    log_level: LogOption = "error",
) -> None:
    """Take earned money out of the market to any address, asking first. The wallet pays the gas."""
    from p2pnode.cli.runner import run_async

    configure(log_level)
    output = Output(as_json=as_json, data_dir=data_dir)

    async def run() -> None:
        from p2pnode.chain.addresses import shown_address
        from p2pnode.chain.ledger import Withdraw
        from p2pnode.errors import ChainError, ConfigError
        from p2pnode.money import usdc_text
        from p2pnode.payments.books import books_of

        wanted = None if amount is None else units_of(amount, "--amount")
        other = None if to is None else address_of(to, "--to")
        config, kind = build_config(data_dir, chain=chain), Withdraw.__name__
        async with books_of(config, sends=True, tell=order_reporter(output)) as books:
            if anew:
                await books.orders.give_up(kind)
            if earlier := await books.orders.earlier(kind):
                # Whether the same is wanted again, only a person knows: nothing is ordered in this run.
                for each in earlier:
                    found = {"order": each.order.words, "ending": each.ending}
                    output.event("order.ended", found, text=ended_text(each))
                if any(each.ending != "done" for each in earlier):
                    msg = "an earlier withdrawal was not carried out: run the command again to order it anew"
                    raise ChainError(msg)
                return
            earned = await _withdrawable(output, books, wanted or 1)
            units = earned if wanted is None else wanted
            recipient = books.wallet.address if other is None else other
            if not 0 < units <= earned:
                msg = f"{usdc_text(earned)} can be withdrawn, not {usdc_text(units)}"
                if wanted is None:
                    msg = f"nothing can be withdrawn now: {output.command('funds')} shows where the money is"
                raise ConfigError(msg)
            what = f"{usdc_text(units)} will be sent to {shown_address(recipient)}"
            await confirm(output, f"{what}: nobody can bring it back", yes=yes)
            done = await books.orders.transact(Withdraw(recipient, units))
        fields = {
            "to": shown_address(recipient),
            "amount": units,
            "transaction": "0x" + done.transaction.hex(),
        }
        output.event("withdrawn", fields, text=f"{usdc_text(units)} sent to {fields['to']}")

    run_async(run, on_error=output.failed)


@funds_app.command()
def send(
    amount: Annotated[str, typer.Argument(help="How much, such as 25 or 0.5.")],
    token: Annotated[str, typer.Argument(metavar="usdc|fab", help="Of what.")],
    to: Annotated[str, typer.Argument(metavar="ADDRESS", help="The account that gets it (0x…).")],
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    chain: ChainOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    log_level: LogOption = "error",
) -> None:
    """Send USDC or FAB from this wallet to any account, asking first. The wallet pays the gas."""
    from p2pnode.cli.runner import run_async

    configure(log_level)
    output = Output(as_json=as_json, data_dir=data_dir)

    async def run() -> None:
        from p2pnode.chain.ledger import Transfer, TransferFab
        from p2pnode.errors import UsageError
        from p2pnode.payments.plans import send as plan_send

        if token.lower() not in ("usdc", "fab"):
            raise UsageError(f"usdc|fab: {token[:40]!r} is neither")
        is_fab, recipient = token.lower() == "fab", address_of(to, "ADDRESS")
        units = units_of(amount, "AMOUNT", FAB_DIGITS if is_fab else USDC_DIGITS)
        config = build_config(data_dir, chain=chain)
        async with locked_wallet(config) as wallet:
            account, ledger = wallet.account, wallet.ledger
            if is_fab:
                held = (await ledger.fab(account)).balance
                plan = plan_send(TransferFab(recipient, units), held, account)
            else:
                held = (await ledger.balances(account)).usdc
                plan = plan_send(Transfer(recipient, units), held, account)
            await carry_out(output, wallet, plan, dry_run=dry_run, yes=yes)

    run_async(run, on_error=output.failed)


async def _withdrawable(output: Output, books: Books, wanted: int) -> int:
    """What can be withdrawn. Waits some seconds for a settlement under way where that is too little."""
    import trio

    earned, told = 0, False
    with trio.move_on_after(_SETTLEMENT_S):
        while True:
            earned = (await books.ledger.balances(books.wallet.address)).earned
            if earned >= wanted or not books.journal.hosted("open", "over"):
                break
            if not told:
                output.event("settlement.waiting", text="waiting for a settlement that is under way")
            told = True
            await trio.sleep(1)
    return earned


def _print(output: Output, found: Funds, account: str) -> None:
    from p2pnode.money import ether_text, usdc_text
    from p2pnode.views.funds import funds_fields

    fields = {"account": account, **funds_fields(found)}
    if output.as_json:
        output.event("funds", fields)
        return
    rows = [
        ("wallet", found.wallet, f"{account}, with {ether_text(found.ether_wei or 0)} for gas"),
        ("authorised", found.authorised, "signed away; hosts may take it until the authorisations end"),
        ("escrow", found.escrow, "deposits of open sessions"),
        ("  signed", found.signed, "of it, what vouchers give to hosts"),
        ("spent", found.spent, "sessions that were settled"),
        ("owed", found.owed, "to this host: sessions not settled yet, a tenth of it the treasury's"),
        ("earned", found.earned, "settled for this host, a tenth of it the treasury's"),
        ("withdrawable", found.withdrawable, f"{output.command('funds withdraw')} brings it to the wallet"),
    ]
    output.table(
        ("where", "amount", "what"),
        [(name, usdc_text(units) if units is not None else "?", what) for name, units, what in rows],
        folds="what",
    )
    if found.elsewhere:
        output.result(_elsewhere(found.elsewhere))
        for session in found.elsewhere_open:
            output.result(f"  {session.hex()[:16]} is not settled")
        if found.elsewhere_open:
            close = output.command("sessions close ID --chain PROFILE")
            output.result(f"  {close} settles one on the chain it is of")
    for left_there in found.left:
        output.result(_left_text(left_there))
    for each in found.stuck:
        output.result(
            f"stuck: {usdc_text(each.units)} in {each.session.hex()[:16]}: {each.why}{_when(each.until)}"
        )


def _left_text(left: LeftDeposit) -> str:
    """A deposit that is left with a host, as a line for people."""
    from p2pnode.money import usdc_text

    kept = f", kept there until {_day(left.until)}" if left.until is not None else ""
    free_at = _day(left.refund_at)
    return (
        f"left: {usdc_text(left.units)} with {shorten(str(left.host))} in {left.session.hex()[:16]}, "
        f"{usdc_text(left.signed)} of it signed{kept}; the rest is free on {free_at} at the latest"
    )


def _elsewhere(count: int) -> str:
    return (
        f"not counted: {count_of(count, 'paid session')} of another chain than this profile's, or of a "
        "development chain that was made anew"
    )


def _when(until: int | None) -> str:
    return "" if until is None else f" ({_day(until)})"


def _day(at: int) -> str:
    from datetime import UTC, datetime

    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M} UTC"
