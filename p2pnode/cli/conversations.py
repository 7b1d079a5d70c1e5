"""``p2pnode sessions resume|export|forget``, and what all ``sessions`` commands show of conversations."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from p2pnode.cli.ask import (
    CloseOption,
    ContextOption,
    MaxCostOption,
    MaxSpendOption,
    MaxTokensOption,
    MinReputationOption,
    NeverOption,
    OnlyOption,
    SeedOption,
    StopOption,
    TemperatureOption,
    TopPOption,
    VerifiedOption,
    WaitOption,
    checked_context,
    make_filters,
    make_sampling,
    seed_given,
    stream,
)
from p2pnode.cli.client import SHORT, make_client, open_client
from p2pnode.cli.options import (
    BootstrapOption,
    ChainOption,
    DataDirOption,
    ForceOption,
    JsonOption,
    LogOption,
    MdnsOption,
    ModelOption,
    S5UrlOption,
    StoreOption,
    YesOption,
    all_meant,
    build_config,
    configure,
    id_beginning,
    one_meant,
)
from p2pnode.cli.output import Output, shorten
from p2pnode.cli.user_input import confirm
from p2pnode.words import count_of, one_line

if TYPE_CHECKING:
    from p2pnode.cli.chat import Chat
    from p2pnode.client import interface
    from p2pnode.client.client import Client
    from p2pnode.client.interface import Conversation
    from p2pnode.config import NodeConfig
    from p2pnode.storage.conversations.records import Loss, SavedConversation
    from p2pnode.storage.conversations.turns import Turn

ConversationArgument = Annotated[str, typer.Argument(help="A conversation's id, or how it begins.")]


def resume(
    conversation: ConversationArgument,
    question: Annotated[
        str | None, typer.Argument(help="The next question; without one, talk on as in `chat`.")
    ] = None,
    model: ModelOption = None,
    bootstrap: BootstrapOption = None,
    store: StoreOption = None,
    s5_url: S5UrlOption = None,
    max_tokens: MaxTokensOption = 512,
    temperature: TemperatureOption = 0.7,
    top_p: TopPOption = 0.95,
    seed: SeedOption = None,
    stop: StopOption = None,
    chain: ChainOption = None,
    max_spend: MaxSpendOption = None,
    close: CloseOption = False,
    wait: WaitOption = 0.0,
    max_cost: MaxCostOption = None,
    only: OnlyOption = None,
    never: NeverOption = None,
    verified: VerifiedOption = None,
    min_reputation: MinReputationOption = 0.0,
    context: ContextOption = "refuse",
    mdns: MdnsOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    log_level: LogOption = "error",
) -> None:
    """Take a conversation up again, from this machine or from its replicas: its cut answer first."""
    from p2pnode.cli.chat import Chat, leave_as_failed
    from p2pnode.cli.runner import run_async
    from p2pnode.cli.user_input import UserInput

    configure(log_level)
    output = Output(as_json=as_json, data_dir=data_dir)
    chats: list[Chat] = []

    async def run() -> None:
        from p2pnode.client.chat_options import ChatOptions

        sampling = make_sampling(max_tokens, temperature, top_p, stop)
        options = ChatOptions(
            model=model,
            sampling=sampling,
            seed=seed_given(seed),
            filters=make_filters(max_cost, only, never, verified=verified, min_reputation=min_reputation),
            context=checked_context(context),
        )
        async with open_client(
            output, data_dir, bootstrap, model=model, mdns=mdns, chain=chain, spend_session_max=max_spend,
            stores=store, s5_url=s5_url, closes=close, wait_s=wait,
        ) as client:  # fmt: skip
            saved = await find_anywhere(client, conversation, output)
            resumed = await client.resume(saved.sid, options)
            tell_losses(output, resumed.losses)
            # Another question may stand in for one of which nothing came: no host may take that.
            if resumed.cut_short and not (resumed.unanswered and question is not None):
                await stream(output, resumed, resumed.go_on())
            if question is not None:
                await stream(output, resumed, resumed.ask(question))
                return

            async def begin() -> Conversation:
                return await client.new_conversation(options)

            with UserInput(sys.stdin, quiet=as_json, edits=True) as lines:
                chats.append(Chat(output, lines, resumed, begin))
                await chats[0].run()

    def interrupt() -> bool:
        return chats[0].interrupt() if chats else False

    run_async(run, on_error=output.failed, on_interrupt=interrupt, again=True)
    leave_as_failed(chats)


def export(
    conversation: ConversationArgument,
    path: Annotated[Path | None, typer.Argument(help="A new file; standard output without it.")] = None,
    force: ForceOption = False,
    bootstrap: BootstrapOption = None,
    store: StoreOption = None,
    s5_url: S5UrlOption = None,
    mdns: MdnsOption = None,
    data_dir: DataDirOption = None,
    log_level: LogOption = "error",
) -> None:
    """Write a conversation as JSON: its turns, who gave which part of them, its branches."""
    from p2pnode.cli.runner import run_async

    configure(log_level)
    output = Output(as_json=False, data_dir=data_dir)

    async def run() -> None:
        from p2pnode.files import refuse_taken, write_new
        from p2pnode.storage.conversations.export import exported

        if path is not None:
            refuse_taken(path, force=force)
        client = make_client(
            output, data_dir, bootstrap, mdns=mdns, discovery=True, stores=store, s5_url=s5_url
        )
        async with reading(client, build_config(data_dir), conversation) as (_, opened):
            if opened is None:
                find((), conversation)
            whole = await exported(opened)
        text = json.dumps(whole, indent=2, ensure_ascii=False) + "\n"
        if path is None:
            output.raw(text.encode())
        else:
            write_new(path, text.encode(), mode=0o600, force=force)

    run_async(run, on_error=output.failed)


def forget(
    conversation: ConversationArgument,
    yes: YesOption = False,
    bootstrap: BootstrapOption = None,
    store: StoreOption = None,
    s5_url: S5UrlOption = None,
    mdns: MdnsOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    log_level: LogOption = "error",
) -> None:
    """Delete a conversation here and on its replicas, for good and on all your machines. Asks first."""
    from p2pnode.cli.runner import run_async

    configure(log_level)
    output = Output(as_json=as_json, data_dir=data_dir)

    async def run() -> None:
        client: Client = make_client(
            output, data_dir, bootstrap, mdns=mdns, discovery=True, stores=store, s5_url=s5_url
        )
        async with client:
            saved = await find_anywhere(client, conversation, output)
            what = f"conversation {saved.sid.hex()[:SHORT]} ({one_line(saved.title)}) will be deleted"
            await confirm(output, f"{what} here and on its replicas, for good", yes=yes)
            await client.conversations.forget(saved.sid)
        output.event("forgotten", {"conversation": saved.sid.hex()}, text="[forgotten]")

    run_async(run, on_error=output.failed)


# ---- parts


def find(known: Sequence[SavedConversation], begins: str) -> SavedConversation:
    """The conversation whose id begins so. Raises ``UsageError`` for none and for several."""
    return one_meant(known, begins, _id_of, "conversation")


def _id_of(saved: SavedConversation) -> str:
    return saved.sid.hex()


async def find_anywhere(client: interface.Client, begins: str, output: Output) -> SavedConversation:
    """A conversation that is known here, or that a replica shows.

    Raises ``UsageError``, ``LocalError``, and ``NoHostError`` where nobody else could be asked.
    """
    found = await client.find_conversation(id_beginning(begins))
    if found.recovered is not None:
        tell_recovery(output, found.recovered)
        check_answered(found.recovered, before=f"no conversation here begins with {begins!r}, and ")
    return find(found.conversations, begins)


@asynccontextmanager
async def known_here(config: NodeConfig) -> AsyncIterator[Any]:
    """The archive of a data dir that keeps conversations; None of one that doesn't."""
    from p2pnode.node.datadir import DataDir
    from p2pnode.storage.conversations.replicator import open_archive

    data = DataDir(config.data_dir)
    if not (data.storage_key.exists() and data.store.exists()):
        yield None
        return
    async with open_archive(config) as archive:
        yield archive


@asynccontextmanager
async def reading(client: Client, config: NodeConfig, begins: str) -> AsyncIterator[tuple[Any, Any]]:
    """A conversation of the list, from this machine or, if it isn't here yet, from its replicas.

    Two times None where the list has none. Raises ``UsageError``, ``LocalError``.
    """
    from p2pnode.storage.conversations.reader import ConversationLostError

    async with known_here(config) as archive:
        known = await archive.conversations() if archive is not None else ()
        if not all_meant(known, begins, _id_of):
            yield None, None
            return
        saved = find(known, begins)
        try:
            opened = await archive.open(saved.sid, ask=False)
        except ConversationLostError:
            opened = None
        if opened is not None:
            yield saved, opened
            return
    async with client:
        yield saved, await client.conversations.open(saved.sid)


def tell_recovery(output: Output, recovery: interface.Recovered) -> None:
    """Tell who answered, and what is missing."""
    others = recovery.answered
    fields = {
        "conversations": recovery.conversations,
        "sessions": recovery.sessions,
        "replicas": others,
        "failed": len(recovery.failures),
        "revision": recovery.revision,
    }
    failed = f", {len(recovery.failures)} did not" if recovery.failures else ""
    text = (
        f"[{count_of(others, 'other node')} answered{failed}: "
        f"{count_of(recovery.conversations, 'conversation')}, "
        f"{count_of(recovery.sessions, 'paid session')}. What none of them shows can't be known of]"
    )
    output.event("recovered", fields, text=text if others else "")
    tell_losses(output, recovery.losses)


def check_answered(recovery: interface.Recovered, *, before: str = "") -> None:
    """Raise ``NoHostError`` where no other node answered; ``before`` begins its message."""
    from p2pnode.errors import NoHostError

    if recovery.answered:
        return
    reasons = "".join(f"; {shorten(peer)}: {why}" for peer, why in recovery.failures.items())
    msg = (
        f"{before}no other node answered, so nothing could be recovered yet{reasons}. Nothing is lost: "
        "try again with --store and the invite of a node that keeps your conversations, or with --bootstrap "
        "and the invite of any node that runs (it prints that when it starts)"
    )
    raise NoHostError(msg)


def tell_losses(output: Output, losses: Sequence[Any]) -> None:
    """Tell what should be there and is missing."""
    for loss in losses:
        output.event("loss", loss_fields(loss), text=loss_words(loss))


# ---- how conversations are shown


def conversation_fields(saved: SavedConversation) -> dict[str, Any]:
    """A conversation of the list, for scripts."""
    from p2pnode.models.manifest import model_id_text

    return {
        "conversation": saved.sid.hex(),
        "title": saved.title,
        "created": saved.created,
        "updated": saved.updated,
        "model": model_id_text(saved.model) if saved.model is not None else None,
    }


def conversation_row(saved: SavedConversation) -> list[str]:
    """A conversation of the list, for people."""
    return [saved.sid.hex()[:SHORT], moment(saved.updated), saved.title]


def turn_fields(turn: Turn) -> dict[str, Any]:
    """A turn for scripts; ``hosts`` gave a part of it each."""
    return {
        "role": turn.role,
        "text": turn.text,
        "finish": turn.finish,
        "whole": turn.whole,
        "tokens": len(turn.ids),
        "cost": turn.cost,
        "hosts": list(dict.fromkeys(piece.host for piece in turn.pieces if piece.host is not None)),
    }


def turn_lines(turns: Iterable[Turn]) -> str:
    """Turns for people."""
    shown = []
    for turn in turns:
        cut = "" if turn.role != "assistant" or turn.finish else " (cut short)"
        gap = "" if turn.whole else " (a part of it is missing)"
        shown.append(f"{turn.role}{cut}{gap}:\n{turn.text}")
    return "\n\n".join(shown)


def loss_fields(loss: Loss) -> dict[str, Any]:
    """What is missing, for scripts."""
    return {"kind": loss.kind, "conversation": loss.sid.hex(), "revision": loss.seq, "detail": loss.detail}


def loss_words(loss: Loss) -> str:
    """What is missing, for people."""
    return f"[missing in {loss.sid.hex()[:SHORT]}: {one_line(loss.detail)}]"


def moment(epoch: int) -> str:
    """A time for people, in UTC."""
    return f"{datetime.fromtimestamp(epoch, UTC):%Y-%m-%d %H:%M}"
