"""``p2pnode keys …``: a key with a budget for each app or person that asks through this data dir.

The secret goes to stdout once, when the key is made; people read the rest on stderr. JSON events::

    new       key.made{secret, …} as key; the secret is shown nowhere else
    list, show, set
              key{id, name, state, budget, per_day, spent, spent_day, claimed, price_in_max, price_out_max,
              models, made_at, expires_at, revoked_at}: token units, and null for what has no limit; state is
              valid, expired or revoked
    revoke    key.revoked{…} as key
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from p2pnode.cli.options import (
    Commands,
    DataDirOption,
    JsonOption,
    LogOption,
    blaming,
    configure,
    data_of,
    units_of,
)
from p2pnode.cli.output import Output

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from p2pnode.payments.keys import Key, KeyBook, KeyLimits

keys_app = Commands(
    help="Keys with budgets: one for each app or person that asks through this data dir.",
    no_args_is_help=True,
)
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The key's name, as `keys list` shows it.")]
BudgetOption = Annotated[
    str | None, typer.Option("--budget", help="What may be spent in all, in USDC: 5 or 0.50. none: any.")
]
PerDayOption = Annotated[
    str | None, typer.Option("--per-day", help="What may be spent in 24 hours, in USDC. none: any.")
]
PriceInOption = Annotated[
    str | None,
    typer.Option("--max-price-in", help="USDC per million input tokens, at most. none: any."),
]
PriceOutOption = Annotated[
    str | None,
    typer.Option("--max-price-out", help="USDC per million output tokens, at most. none: any."),
]
ModelsOption = Annotated[
    list[str] | None,
    typer.Option("--model", help="A model that may be used: a name or an id. Repeatable. none: any."),
]
ExpiresOption = Annotated[
    str | None,
    typer.Option("--expires", help="When it ends: in 12h, 30d or 8w, or a day as 2030-01-31. none: never."),
]
_NONE: Final = "none"
_SECONDS: Final = {"h": 3600, "d": 86_400, "w": 7 * 86_400}


@keys_app.command()
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose it is, such as codex or my-laptop.")],
    budget: BudgetOption = None,
    per_day: PerDayOption = None,
    max_price_in: PriceInOption = None,
    max_price_out: PriceOutOption = None,
    model: ModelsOption = None,
    expires: ExpiresOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    log_level: LogOption = "error",
) -> None:
    """Make a key and print its secret, once: `p2pnode keys new codex --budget 5 --per-day 1`."""
    output = Output(as_json=as_json, data_dir=data_dir)

    async def run(book: KeyBook) -> None:
        from p2pnode.payments.keys import KeyLimits

        limits = _changed(KeyLimits(), data_dir, budget, per_day, max_price_in, max_price_out, model, expires)
        with blaming(""):
            made = await book.new(name, limits)
        if as_json:
            output.event("key.made", {**_fields(book, made.key), "secret": made.secret})
            return
        output.result(made.secret)
        output.note(
            f"The key {name!r} was made{_limits_text(made.key)}. Above is its secret: it is shown only now. "
            f"{output.command(f'keys revoke {name}')} ends it"
        )

    _with_book(run, output, data_dir, log_level, makes=True)


@keys_app.command("set")
def change(
    name: NameArgument,
    budget: BudgetOption = None,
    per_day: PerDayOption = None,
    max_price_in: PriceInOption = None,
    max_price_out: PriceOutOption = None,
    model: ModelsOption = None,
    expires: ExpiresOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    log_level: LogOption = "error",
) -> None:
    """Change a key's limits: what is not named stays, and what was spent is not forgotten."""
    output = Output(as_json=as_json, data_dir=data_dir)

    async def run(book: KeyBook) -> None:
        found = book.named(name)
        given = (budget, per_day, max_price_in, max_price_out, model, expires)
        with blaming(""):
            key = await book.change(name, _changed(found.limits, data_dir, *given))
        _show(output, book, key)

    _with_book(run, output, data_dir, log_level)


@keys_app.command("list")
def list_(
    with_old: Annotated[bool, typer.Option("--all", help="Also those that expired or were revoked.")] = False,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    log_level: LogOption = "error",
) -> None:
    """Show the keys, what each has spent, and what is left of its budget."""
    output = Output(as_json=as_json, data_dir=data_dir)

    async def run(book: KeyBook) -> None:
        keys = book.all() if with_old else book.valid()
        if as_json:
            for each in keys:
                output.event("key", _fields(book, each))
        elif keys:
            columns = ("name", "state", "spent", "of", "in 24 h", "of", "ends")
            output.table(columns, [_row(book, each) for each in keys])
        else:
            output.result("there is no key that is valid")

    _with_book(run, output, data_dir, log_level)


@keys_app.command()
def show(
    name: NameArgument,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    log_level: LogOption = "error",
) -> None:
    """Show one key: its limits, and what was spent on it."""
    output = Output(as_json=as_json, data_dir=data_dir)

    async def run(book: KeyBook) -> None:
        _show(output, book, book.named(name))

    _with_book(run, output, data_dir, log_level)


@keys_app.command()
def revoke(
    name: NameArgument,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    log_level: LogOption = "error",
) -> None:
    """End a key: nothing more is asked with it from now on. It can't be taken back; make a new one."""
    output = Output(as_json=as_json, data_dir=data_dir)

    async def run(book: KeyBook) -> None:
        key = await book.revoke(name)
        text = f"The key {key.name!r} was revoked. What it spent stays on record (`p2pnode keys list --all`)"
        output.event("key.revoked", _fields(book, key), text=output.with_data_dir(text))

    _with_book(run, output, data_dir, log_level)


def _with_book(
    act: Callable[[KeyBook], Awaitable[None]],
    output: Output,
    data_dir: Path | None,
    log_level: str,
    *,
    makes: bool = False,
) -> None:
    """Do something with the keys of a data dir; ``makes`` its journal where there is none."""
    from p2pnode.cli.runner import run_async

    configure(log_level)

    async def run() -> None:
        import secrets
        import time

        from p2pnode.errors import ConfigError
        from p2pnode.payments.books import open_journal
        from p2pnode.payments.keys import KeyBook

        data = data_of(data_dir)
        if makes:
            data.prepare()
        elif not data.journal.exists():
            raise ConfigError("there is no key in this data dir yet: `p2pnode keys new NAME` makes one")
        async with open_journal(data.journal) as journal:
            await act(KeyBook(journal, wall=time.time, draw=secrets.token_bytes))

    run_async(run, on_error=output.failed)


def _changed(
    limits: KeyLimits,
    data_dir: Path | None,
    budget: str | None,
    per_day: str | None,
    price_in: str | None,
    price_out: str | None,
    models: list[str] | None,
    expires: str | None,
) -> KeyLimits:
    """The limits with those that were typed. Raises ``UsageError`` that names the flag."""
    from dataclasses import replace

    changes: dict[str, Any] = {}
    for field, flag, text in (
        ("total_max", "--budget", budget),
        ("day_max", "--per-day", per_day),
        ("price_in_max", "--max-price-in", price_in),
        ("price_out_max", "--max-price-out", price_out),
    ):
        if text is not None:
            changes[field] = None if text == _NONE else units_of(text, flag)
    if models is not None:
        changes["models"] = () if models == [_NONE] else tuple(_model(each, data_dir) for each in models)
    if expires is not None:
        changes["expires_at"] = None if expires == _NONE else _time(expires)
    return replace(limits, **changes)


def _model(name: str, data_dir: Path | None) -> bytes:
    from p2pnode.client.question import resolve_model

    with blaming("--model"):
        return resolve_model(name, data_of(data_dir).models).model


def _time(text: str) -> int:
    """Epoch seconds of a time to come. Raises ``UsageError``."""
    import time
    from datetime import UTC, datetime

    from p2pnode.errors import UsageError

    count, unit = text[:-1], text[-1:]
    if count.isascii() and count.isdigit() and len(count) <= 4 and unit in _SECONDS:  # noqa: PLR2004 - 27 years in days
        return int(time.time()) + int(count) * _SECONDS[unit]
    try:
        return int(datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC).timestamp())
    except ValueError:
        msg = f"--expires: {text[:40]!r} is no time: give 12h, 30d or 8w, or a day such as 2030-01-31"
        raise UsageError(msg) from None


# ---- what is shown


def _show(output: Output, book: KeyBook, key: Key) -> None:
    if output.as_json:
        output.event("key", _fields(book, key))
        return
    from p2pnode.models.catalogue import shown_name
    from p2pnode.money import usdc_text

    limits, used = key.limits, book.usage(key)
    lines = [
        f"name      {key.name} ({_state(book, key)})",
        f"id        {key.id.hex()}",
        f"spent     {usdc_text(used.total)} of {_most(limits.total_max)}",
        f"in 24 h   {usdc_text(used.day)} of {_most(limits.day_max)}",
    ]
    if used.claimed:
        lines.append(f"claimed   {usdc_text(used.claimed)} more by answers under way")
    for what, price in (("in", limits.price_in_max), ("out", limits.price_out_max)):
        if price is not None:
            lines.append(f"price {what:3} at most {usdc_text(price)} per million tokens")
    if limits.models:
        lines.append(f"models    {', '.join(shown_name(each) for each in limits.models)}")
    lines.append(f"ends      {_moment(limits.expires_at)}")
    output.lines("\n".join(lines))


def _fields(book: KeyBook, key: Key) -> dict[str, Any]:
    from p2pnode.views.keys import key_fields

    return key_fields(book, key)


def _state(book: KeyBook, key: Key) -> str:
    from p2pnode.views.keys import key_state

    return key_state(book, key)


def _row(book: KeyBook, key: Key) -> list[str]:
    from p2pnode.money import usdc_number

    used = book.usage(key)
    return [
        key.name,
        _state(book, key),
        usdc_number(used.total),
        _most(key.limits.total_max),
        usdc_number(used.day),
        _most(key.limits.day_max),
        _moment(key.limits.expires_at),
    ]


def _most(units: int | None) -> str:
    from p2pnode.money import usdc_text

    return "no limit" if units is None else usdc_text(units)


def _moment(seconds: int | None) -> str:
    from datetime import UTC, datetime

    return "never" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _limits_text(key: Key) -> str:
    from p2pnode.money import usdc_text

    limits = key.limits
    parts = []
    if limits.total_max is not None:
        parts.append(f"at most {usdc_text(limits.total_max)} in all")
    if limits.day_max is not None:
        parts.append(f"at most {usdc_text(limits.day_max)} in 24 hours")
    return f": it may spend {' and '.join(parts)}" if parts else "; it has no budget of its own"
