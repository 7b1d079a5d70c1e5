"""``p2pnode sessions``: conversations, and the paid sessions of this data dir, bought and served."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from p2pnode.cli.client import HERE_ONLY, ReplicationNotices, make_client
from p2pnode.cli.conversations import (
    check_answered,
    conversation_fields,
    conversation_row,
    export,
    forget,
    known_here,
    reading,
    resume,
    tell_losses,
    tell_recovery,
    turn_fields,
    turn_lines,
)
from p2pnode.cli.options import (
    BootstrapOption,
    ChainOption,
    Commands,
    DataDirOption,
    JsonOption,
    LogOption,
    MdnsOption,
    S5UrlOption,
    StoreOption,
    YesOption,
    all_meant,
    build_config,
    configure,
    data_of,
    one_meant,
)
from p2pnode.cli.output import Output, shorten
from p2pnode.cli.user_input import confirm
from p2pnode.words import one_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from p2pnode.client.client import Client
    from p2pnode.payments.journal.journal import BoughtSession, HostedSession, Journal
    from p2pnode.storage.conversations.records import SavedConversation
    from p2pnode.storage.conversations.stored_conversation import StoredConversation

_NEED_CHAIN = (
    "[paid sessions are taken over together with their chain: name its profile with --chain, or put it at "
    "chain.toml in the data dir]"
)
sessions_app = Commands(help="Conversations and paid sessions of this data dir.", no_args_is_help=True)
SessionArgument = Annotated[str, typer.Argument(help="A session id, or how it begins.")]
EitherArgument = Annotated[
    str, typer.Argument(help="The id of a conversation or of a paid session, or how it begins.")
]
RecoverOption = Annotated[
    bool, typer.Option("--recover", help="Ask the replicas first, as on a machine that knows nothing yet.")
]
OnChainOption = Annotated[
    bool, typer.Option("--on-chain", help="Ask the chain, also where the host keeps the session: takes gas.")
]
BranchOption = Annotated[
    int | None, typer.Option(min=1, help="Show a line that lost against another machine's, by its number.")
]

for command in (resume, export, forget):
    sessions_app.command()(command)


@sessions_app.command("list")
def list_sessions(
    recover: RecoverOption = False,
    bootstrap: BootstrapOption = None,
    store: StoreOption = None,
    s5_url: S5UrlOption = None,
    chain: ChainOption = None,
    mdns: MdnsOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    log_level: LogOption = "error",
) -> None:
    """List conversations, then paid sessions: those bought, those served."""
    from p2pnode.cli.runner import run_async

    configure(log_level)
    output = Output(as_json=as_json, data_dir=data_dir)

    async def run() -> None:
        from p2pnode.client.conversations import recovered_of

        recovery = None
        if recover:
            client = make_client(
                output, data_dir, bootstrap, mdns=mdns, discovery=True, chain=chain,
                stores=store, s5_url=s5_url,
            )  # fmt: skip
            async with client:
                recovery = recovered_of(await client.conversations.recover())
            tell_recovery(output, recovery)
        async with known_here(build_config(data_dir)) as archive:
            conversations = await archive.conversations() if archive is not None else ()
        rows = _paid_rows(data_dir)
        _print_all(output, conversations, rows, recovered=recover)
        if recovery is not None and recovery.sessions and not rows:
            output.note(_NEED_CHAIN)
        if conversations and ReplicationNotices(data_of(data_dir)).here_only:
            output.note(f"[kept on this machine. {HERE_ONLY}]")
        if recovery is not None:
            check_answered(recovery)

    run_async(run, on_error=output.failed)


def _print_all(
    output: Output, conversations: Sequence[SavedConversation], rows: list[dict[str, Any]], *, recovered: bool
) -> None:
    if output.as_json:
        for each in conversations:
            output.event("conversation", conversation_fields(each))
        for row in rows:
            output.event("session", row)
        return
    if conversations:
        output.table(
            ("conversation", "changed", "title"), map(conversation_row, conversations), folds="title"
        )
    if conversations and rows:
        output.result("")
    if rows:
        output.table(("paid session", "as", "state", "with", "deposit", "amount"), map(_row, rows))
    if not (conversations or rows):
        hint = "" if recovered else " (--recover asks the replicas)"
        output.result(f"no conversations and no paid sessions here yet{hint}")


def _paid_rows(data_dir: Any) -> list[dict[str, Any]]:
    journal = _journal(data_dir)
    if journal is None:
        return []
    from p2pnode.views.sessions import session_fields

    try:
        rows = [session_fields(each) for each in journal.purchases()]
        return rows + [session_fields(each) for each in journal.hosted()]
    finally:
        journal.close()


@sessions_app.command()
def show(
    session: EitherArgument,
    branch: BranchOption = None,
    bootstrap: BootstrapOption = None,
    store: StoreOption = None,
    s5_url: S5UrlOption = None,
    mdns: MdnsOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    log_level: LogOption = "error",
) -> None:
    """Show one conversation, or one paid session: its terms, its best voucher, its receipts."""
    from p2pnode.cli.runner import run_async

    configure(log_level)
    output = Output(as_json=as_json, data_dir=data_dir)

    async def run() -> None:
        from p2pnode.views.sessions import session_fields, terms_fields

        client = make_client(
            output, data_dir, bootstrap, mdns=mdns, discovery=True, stores=store, s5_url=s5_url
        )
        async with reading(client, build_config(data_dir), session) as (saved, opened):
            if opened is not None:
                _refuse_two(data_dir, session)
                await _show_conversation(output, saved, opened, branch)
                return
        journal = _known(_journal(data_dir), session, "conversation or paid session")
        try:
            found = _find(journal, session, "conversation or paid session")
            receipts = len(journal.receipts(found.session)) or len(journal.taken(found.session))
            fields = {**session_fields(found), **terms_fields(found), "receipts": receipts}
        finally:
            journal.close()
        if as_json:
            output.event("session", fields)
        else:
            output.result("\n".join(f"{name:<13} {_shown(name, value)}" for name, value in fields.items()))

    run_async(run, on_error=output.failed)


@sessions_app.command()
def close(
    session: SessionArgument,
    yes: YesOption = False,
    on_chain: OnChainOption = False,
    bootstrap: BootstrapOption = None,
    chain: ChainOption = None,
    mdns: MdnsOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    log_level: LogOption = "error",
) -> None:
    """End a session by hand, asking first: its host closes it, or you settle it as host, or ask the chain."""
    from p2pnode.cli.runner import run_async

    configure(log_level)
    output = Output(as_json=as_json, data_dir=data_dir)

    async def run() -> None:
        import time

        from p2pnode.cli.plans import order_reporter
        from p2pnode.payments.books import books_of
        from p2pnode.payments.settlement import close_session
        from p2pnode.views.sessions import session_fields

        # Asked before the chain is: a mistyped id is told at once.
        journal = _known(_journal(data_dir), session)
        try:
            meant = _find(journal, session)
        finally:
            journal.close()
        what = (
            f"session {meant.session.hex()[:16]} with {shorten(session_fields(meant)['peer'])} will be ended"
        )
        if meant.state != "settled":  # else there is nothing to end: only what it was settled at is told
            await confirm(output, f"{what}: nothing more can be bought or sold in it", yes=yes)
        config = build_config(data_dir, chain=chain)
        if _is_left(meant) and not on_chain:
            client = make_client(output, data_dir, bootstrap, mdns=mdns, discovery=False, chain=chain)
            await _close_left(output, client, meant)
            return
        async with books_of(config, sends=True, tell=order_reporter(output)) as books:
            found = _find(books.journal, meant.session.hex())
            done = await close_session(found, books, int(time.time()))
        fields = {"session": found.session.hex(), "outcome": done.outcome, "until": done.until}
        output.event("closed", fields, text=done.words)

    run_async(run, on_error=output.failed)


def _is_left(record: BoughtSession | HostedSession) -> bool:
    """Whether it is a client's session that its host keeps."""
    from p2pnode.payments.journal.journal import BoughtSession

    return isinstance(record, BoughtSession) and record.state == "open" and record.keep_s > 0


async def _close_left(output: Output, client: Client, record: Any) -> None:
    """Have its host close a session that was left, and say which of three it is: settled now, asked of the
    host when it is back, or free at a date at the latest."""
    from p2pnode.contract_rules import CHALLENGE_S
    from p2pnode.errors import UsageError
    from p2pnode.money import usdc_text
    from p2pnode.payments.books import need_profile, open_journal
    from p2pnode.payments.redelivery import close_at_host
    from p2pnode.payments.settlement import CALL_GAS
    from p2pnode.protocols.typed_data import market_domain

    profile = need_profile(client.runtime.config)
    async with client, open_journal(client.runtime.data.journal) as journal:
        node = client.node
        if await journal.bought_take(record.session, int(node.wall())) is None:
            msg = "another command uses this session now, or its time with its host is up: try again later"
            raise UsageError(msg)
        market = market_domain(profile.chain_id, profile.job_marketplace)
        why = await close_at_host(record, journal, market, node.network, limits=node.limits)
    rest, free_at = record.terms.deposit - record.due, record.terms.expiry + CHALLENGE_S
    short = record.session.hex()[:8]
    outcome, words = "settled", f"its host settles it now: {usdc_text(rest)} come back"
    if why:
        outcome = "asked"
        words = (
            f"its host does not answer ({one_line(why)}): the next commands ask it again, and it "
            "settles then. "
            f"{usdc_text(rest)} are free at the latest at {_shown('expiry', free_at)}, when anyone may bring "
            f"the refund. {output.command(f'sessions close {short} --on-chain')} asks the chain now, for the "
            f"gas of a call (about {CALL_GAS:,}) and a day's wait"
        )
    fields = {"session": record.session.hex(), "outcome": outcome, "until": free_at if why else None}
    output.event("closed", fields, text=words)


def _journal(data_dir: Any) -> Journal | None:
    from p2pnode.payments.journal.journal import Journal

    path = data_of(data_dir).journal
    return Journal.open(path) if path.exists() else None


def _refuse_two(data_dir: Any, begins: str) -> None:
    """Raise ``UsageError`` when a beginning that is a conversation's is a paid session's too."""
    from p2pnode.errors import UsageError

    if all_meant(_paid_rows(data_dir), begins, lambda row: str(row["session"])):
        msg = f"a conversation and a paid session begin with {begins!r}: give more of the id"
        raise UsageError(msg)


def _known(journal: Journal | None, begins: str, what: str = "paid session") -> Journal:
    from p2pnode.errors import UsageError

    if journal is None:
        raise UsageError(_nothing(begins, what))
    return journal


def _nothing(begins: str, what: str) -> str:
    return f"no {what} begins with {begins!r}: see `p2pnode sessions list`"


async def _show_conversation(
    output: Output, saved: SavedConversation, opened: StoredConversation, branch: int | None
) -> None:
    from p2pnode.errors import UsageError

    links, turns, losses = opened.branches, opened.turns, opened.losses
    if branch is not None:
        if branch > len(links):
            msg = f"--branch {branch}: it has {len(links)} branches"
            raise UsageError(msg)
        turns, losses = await opened.branch(links[branch - 1])
    fields = {**conversation_fields(saved), "branches": len(links)}
    if output.as_json:
        output.event("conversation", {**fields, "turns": [turn_fields(turn) for turn in turns]})
    else:
        output.result(turn_lines(turns))
        if links and branch is None:
            text = f"[{len(links)} branches lost against another machine's line: --branch 1 shows the first]"
            output.note(text)
    tell_losses(output, losses)


def _find(journal: Journal, begins: str, what: str = "paid session") -> BoughtSession | HostedSession:
    every: list[BoughtSession | HostedSession] = [*journal.purchases(), *journal.hosted()]
    return one_meant(every, begins, _id_of, what)


def _id_of(record: BoughtSession | HostedSession) -> str:
    return record.session.hex()


def _shown(name: str, value: Any) -> str:
    """A field for people: money in USDC, times in words."""
    from datetime import UTC, datetime

    from p2pnode.money import usdc_text

    if name in {"price_in", "price_out"}:
        return f"{usdc_text(value)} per million tokens"
    if name in {"deposit", "amount", "session_fee", "tip"}:
        return usdc_text(value)
    if name in {"expiry", "valid_before"}:
        return f"{datetime.fromtimestamp(value, UTC):%Y-%m-%d %H:%M} UTC"
    return str(value)


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
