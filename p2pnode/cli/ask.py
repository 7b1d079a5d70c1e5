"""``p2pnode ask``: one question, streamed to stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from p2pnode.cli.client import open_client
from p2pnode.cli.options import (
    BootstrapOption,
    ChainOption,
    DataDirOption,
    JsonOption,
    LogOption,
    MdnsOption,
    ModelOption,
    NoSaveOption,
    S5UrlOption,
    StoreOption,
    blaming,
    configure,
    data_of,
    units_of,
)
from p2pnode.cli.output import Output, shorten
from p2pnode.cli.tool_results import call_line
from p2pnode.cli.user_input import READ_MAX, read_all
from p2pnode.words import ended_words, one_line

if TYPE_CHECKING:
    from p2pnode.ids import ModelId

PeerOption = Annotated[
    str | None, typer.Option("--peer", help="Dial this multiaddr and no other; nothing is searched.")
]
DiscoveryOption = Annotated[bool, typer.Option("--no-discovery", help="Search nowhere: needs --peer.")]
MaxTokensOption = Annotated[int, typer.Option("--max-tokens", help="Longest answer, in tokens.")]
TemperatureOption = Annotated[float, typer.Option(help="0 is greedy; higher is more random, up to 2.")]
TopPOption = Annotated[
    float, typer.Option(help="Sample from the most likely tokens of this total probability.")
]
SeedOption = Annotated[int | None, typer.Option(help="Makes sampling repeatable on one engine.")]
StopOption = Annotated[
    list[str] | None, typer.Option(help="End the answer before this text. May be repeated.")
]
MaxSpendOption = Annotated[
    str | None, typer.Option("--max-spend", help="Sign for at most this much a session, in USDC: 0.5.")
]
EquivalentOption = Annotated[
    list[str] | None,
    typer.Option(
        "--accept-equivalent",
        help="A model that you take for the one you ask for, such as another file of the same weights: its "
        "hosts are asked when none of yours is left, also in the middle of an answer. It must have the same "
        "tokens. May be repeated.",
    ),
]
MaxCostOption = Annotated[
    str | None,
    typer.Option(
        "--max-cost",
        help="Ask no host where an answer could cost more than this, in USDC: 0.01. Nothing is signed then.",
    ),
]
OnlyOption = Annotated[
    list[str] | None,
    typer.Option("--only", help="Ask only this host: a peer id or a wallet (0x…). May be repeated."),
]
NeverOption = Annotated[
    list[str] | None,
    typer.Option("--never", help="Never ask this host: a peer id or a wallet (0x…). May be repeated."),
]
MinReputationOption = Annotated[
    float,
    typer.Option(
        "--min-reputation",
        min=0,
        max=1,
        help="Ask only hosts that ended at least this share of their turns here as promised, from 0 to 1: "
        "the lower end of a 95% interval, which is 0 for a host that you never asked.",
    ),
]
VerifiedOption = Annotated[
    bool | None,
    typer.Option(
        "--verified/--no-verified",
        help="Ask only hosts whose weights can be held against a hash, or any. By default that matters where "
        "the answer is paid.",
    ),
]
HedgeOption = Annotated[
    str | None,
    typer.Option(
        "--hedge",
        metavar="free|always|never",
        help="Ask a second host where the first token is later than this host's were: one that is free, any "
        "(the question is then paid twice where that costs money), or none. By default a free one.",
    ),
]
ContextOption = Annotated[
    str,
    typer.Option(
        "--context",
        help="For a conversation that is too long for every host: refuse it, or drop-oldest to leave out its "
        "oldest messages, which is told.",
    ),
]
CloseOption = Annotated[
    bool,
    typer.Option(
        "--close", help="End the session with the host, which then settles: the next one has a fee."
    ),
]
WaitOption = Annotated[
    float,
    typer.Option(
        "--wait", min=0, help="Wait this many seconds for a session that another of your commands uses."
    ),
]
SystemOption = Annotated[str | None, typer.Option(help="A system message that precedes the conversation.")]
ToolOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--tool",
        help="A JSON file with a tool, or a list of them, as OpenAI's API has them. May be repeated. "
        "Calls are printed; `ask` runs nothing.",
    ),
]
ToolChoiceOption = Annotated[
    str, typer.Option("--tool-choice", help="auto, none, required, or the name of the tool to call.")
]
SchemaOption = Annotated[
    Path | None, typer.Option("--schema", help="A JSON Schema that the answer fits: a file.")
]
FormatOption = Annotated[
    str | None, typer.Option("--format", help="text, or json for an answer that is JSON. Not with --schema.")
]
MessagesOption = Annotated[
    Path | None,
    typer.Option(
        "--messages",
        help="A JSON file with the conversation so far, as OpenAI's API has it, calls and their results too. "
        "It is not kept.",
    ),
]
_MEASURABLE_S: Final = 0.05


def ask(
    question: Annotated[
        str | None, typer.Argument(help="The question; - reads it from standard input.")
    ] = None,
    model: ModelOption = None,
    peer: PeerOption = None,
    no_discovery: DiscoveryOption = False,
    bootstrap: BootstrapOption = None,
    max_tokens: MaxTokensOption = 512,
    temperature: TemperatureOption = 0.7,
    top_p: TopPOption = 0.95,
    seed: SeedOption = None,
    stop: StopOption = None,
    system: SystemOption = None,
    tool: ToolOption = None,
    tool_choice: ToolChoiceOption = "auto",
    schema: SchemaOption = None,
    answer_format: FormatOption = None,
    messages: MessagesOption = None,
    chain: ChainOption = None,
    max_spend: MaxSpendOption = None,
    close: CloseOption = False,
    wait: WaitOption = 0.0,
    max_cost: MaxCostOption = None,
    accept_equivalent: EquivalentOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what it could cost at each host, and ask none.")
    ] = False,
    only: OnlyOption = None,
    never: NeverOption = None,
    verified: VerifiedOption = None,
    min_reputation: MinReputationOption = 0.0,
    hedge: HedgeOption = None,
    store: StoreOption = None,
    s5_url: S5UrlOption = None,
    no_save: NoSaveOption = False,
    mdns: MdnsOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    log_level: LogOption = "error",
) -> None:
    """Ask one question; the answer streams to stdout, everything else goes to stderr."""
    from p2pnode.cli.runner import run_async

    configure(log_level)
    output = Output(as_json=as_json, data_dir=data_dir)

    async def run() -> None:
        from p2pnode.client.chat_options import ChatOptions

        sampling = make_sampling(max_tokens, temperature, top_p, stop)
        said = await _conversation_of(output, messages, question)
        filters = make_filters(
            max_cost, only, never, accept_equivalent,
            verified=verified, min_reputation=min_reputation, data_dir=data_dir,
        )  # fmt: skip
        options = ChatOptions(
            model=model,
            peer=peer,
            system=system,
            sampling=sampling,
            seed=seed_given(seed),
            filters=filters,
            hedge=checked_hedge(hedge),
            **prompt_options(tool, tool_choice, schema, answer_format),
        )
        async with open_client(
            output, data_dir, bootstrap, model=model, peer=peer, no_discovery=no_discovery, mdns=mdns,
            chain=chain, spend_session_max=max_spend, closes=close, wait_s=wait, stores=store, s5_url=s5_url,
        ) as client:  # fmt: skip
            if dry_run:
                print_estimates(output, await client.estimate(said, options))
                return
            if isinstance(said, str) and not options.tools:
                conversation = await client.new_conversation(options, keep=not no_save)
                with blaming(""):
                    answer = conversation.ask(said)
                await stream(output, conversation, answer)
            else:  # what is kept of a conversation has no calls
                with blaming(""):
                    answer = client.answer(said, options)
                await stream(output, None, answer)

    run_async(run, on_error=output.failed)


def prompt_options(
    tool: list[Path] | None, tool_choice: str, schema: Path | None, answer_format: str | None
) -> dict[str, Any]:
    """What the flags say of tools and of the answer's form. Raises ``UsageError`` that names the flag."""
    if not tool and tool_choice == "auto" and schema is None and answer_format is None:
        return {}  # what checks them takes long to import
    from p2pnode.client.chat_options import tools_of
    from p2pnode.client.question import check_question
    from p2pnode.errors import UsageError
    from p2pnode.protocols.inference.messages import ChatMessage, PromptBody, ResponseFormat

    given: list[Any] = []
    for path in tool or ():
        read = _json_of(path, "--tool")
        given += read if isinstance(read, list) else [read]
    with blaming("--tool"):
        tools = tools_of(given)
    if schema is not None and answer_format is not None:
        msg = "--schema and --format don't go together: leave --format out, for what fits a schema is JSON"
        raise UsageError(msg)
    if answer_format not in (None, "text", "json"):
        msg = f"--format: {answer_format!r} is neither text nor json"
        raise UsageError(msg)
    form = ResponseFormat(kind="json_object") if answer_format == "json" else ResponseFormat()
    if schema is not None:
        form = ResponseFormat(kind="json_schema", body=json.dumps(_json_of(schema, "--schema")))
    choice = tool_choice if tool_choice in ("auto", "none", "required") else f"name:{tool_choice}"
    # Each flag by itself, and before a node starts: hosts would say the same, later.
    body = PromptBody(messages=(ChatMessage.of("user", "?"),), seed=bytes(16), tools=tools)
    with blaming("--tool"):
        check_question(body)
    with blaming("--tool-choice"):
        check_question(replace(body, tool_choice=choice))
    with blaming("--schema"):
        check_question(replace(body, response_format=form))
    return {"tools": tools, "tool_choice": choice, "response_format": form}


def _json_of(path: Path, flag: str) -> Any:
    from p2pnode.errors import UsageError
    from p2pnode.protocols.inference.prompt_rules import JSON_DEPTH_MAX

    try:
        with path.open("rb") as file:
            read = file.read(READ_MAX + 1)
        if len(read) > READ_MAX:
            raise UsageError(f"{flag}: {path} has more than {READ_MAX >> 20} MiB: is it the right file?")
        return json.loads(read)
    except OSError as error:
        raise UsageError(f"{flag}: {path} can't be read: {error.strerror}") from error
    except RecursionError as error:
        msg = f"{flag}: {path} is nested deeper than {JSON_DEPTH_MAX} levels, the most that is taken"
        raise UsageError(msg) from error
    except ValueError as error:
        raise UsageError(f"{flag}: {path} is no JSON: {error}") from error


async def _conversation_of(output: Output, messages: Path | None, question: str | None) -> Any:
    """The question, or a conversation with the question at its end, if there is one."""
    from p2pnode.errors import UsageError

    if messages is None:
        if question is None:
            msg = "ask something: give a question, or a conversation with --messages"
            raise UsageError(msg)
        return await _text_of(output, question)
    said = _json_of(messages, "--messages")
    if not isinstance(said, list):
        msg = f"--messages: {messages} is no list of messages"
        raise UsageError(msg)
    if question is None:
        return said
    return [*said, {"role": "user", "content": await _text_of(output, question)}]


def make_filters(
    max_cost: str | None,
    only: list[str] | None,
    never: list[str] | None,
    equivalent: list[str] | None = None,
    *,
    verified: bool | None = None,
    min_reputation: float = 0.0,
    data_dir: Path | None = None,
) -> Any:
    """Which hosts may be asked. Raises ``UsageError`` that names the flag."""
    from p2pnode.client.host_rules import HostRules
    from p2pnode.client.ranking import Filters

    with blaming("--only"):
        rules = HostRules.of(only=only or ())
    with blaming("--never"):
        rules = replace(rules, never=HostRules.of(never=never or ()).never)
    equivalents: tuple[ModelId, ...] = ()
    if equivalent:
        from p2pnode.client.question import resolve_model

        models_dir = data_of(data_dir).models
        with blaming("--accept-equivalent"):
            equivalents = tuple(resolve_model(name, models_dir).model for name in equivalent)
    return Filters(
        cost_max=None if max_cost is None else units_of(max_cost, "--max-cost"),
        rules=rules,
        equivalents=equivalents,
        reputation_min=min_reputation,
        verified=verified_of(verified),
    )


def verified_of(flag: bool | None) -> Any:
    """What ``--verified`` and ``--no-verified`` mean; None for neither: then the configuration says."""
    return None if flag is None else "always" if flag else "never"


def checked_context(context: str) -> Any:
    """The value of ``--context``. Raises ``UsageError``."""
    from typing import get_args

    from p2pnode.client.chat_options import ContextChoice
    from p2pnode.errors import UsageError

    if context not in get_args(ContextChoice):
        msg = f"--context: {context!r} is not one of {', '.join(get_args(ContextChoice))}"
        raise UsageError(msg)
    return context


def checked_hedge(hedge: str | None) -> Any:
    """The value of ``--hedge``; None where it is not given. Raises ``UsageError``."""
    from p2pnode.config import HEDGES
    from p2pnode.errors import UsageError

    if hedge is not None and hedge not in HEDGES:
        msg = f"--hedge: {hedge!r} is not one of {', '.join(HEDGES)}"
        raise UsageError(msg)
    return hedge


def print_estimates(output: Output, estimates: Sequence[Any]) -> None:
    """What a question could cost at each host. Raises ``NoHostError`` where none may be asked."""
    from p2pnode.errors import NoHostError

    told = [_estimate_fields(each) for each in estimates]
    if output.as_json:
        for fields in told:
            output.event("estimate", fields)
    else:
        _print_estimates(output, told)
    if all(fields["excluded"] for fields in told):
        raise NoHostError("no host of this model may be asked, for the reasons above: allow more")


def _print_estimates(output: Output, told: Sequence[dict[str, Any]]) -> None:
    from p2pnode.money import usdc_number

    may = [fields for fields in told if not fields["excluded"]]
    if may:
        size = f"{may[0]['tokens_in_max']} tokens in and {may[0]['tokens_out_max']} out"
        output.note(f"[at most {size}, in USDC; nothing is signed, and nobody was asked]")
        rows = [
            [
                shorten(fields["peer"]),
                usdc_number(fields["cost_in"]),
                usdc_number(fields["cost_out"]),
                usdc_number(fields["fee"]),
                usdc_number(fields["cost_max"]) if fields["priced"] else "free",
                str(fields["n_ctx"]),
            ]
            for fields in may
        ]
        output.table(("peer", "input", "output", "fee", "at most", "context"), rows)
    for fields in told:
        if fields["excluded"]:
            why = output.with_data_dir(one_line(fields["excluded"]))
            output.result(f"  {shorten(fields['peer'])}  {why}")


def _estimate_fields(estimate: Any) -> dict[str, Any]:
    from p2pnode.client.ranking import is_priced

    candidate, turn, cost = estimate.candidate, estimate.turn, estimate.cost
    return {
        "peer": candidate.advert.peer,
        "tokens_in_max": turn.tokens_in,
        "tokens_out_max": turn.tokens_out,
        "cost_in": cost.tokens_in,
        "cost_out": cost.tokens_out,
        "fee": cost.fee,
        "cost_max": cost.total,
        "priced": is_priced(candidate.offer),
        "n_ctx": candidate.offer.n_ctx,
        "trusted": candidate.trusted,
        "excluded": candidate.excluded,
    }


async def stream(output: Output, conversation: Any, answer: Any) -> None:
    """Print an answer as it comes, then its bill; for one that was cut short, print how to go on with it."""
    import trio

    from p2pnode.errors import P2PNodeError, RefusedError

    hopeless = False
    try:
        async with answer:
            await show(output, answer)
    except P2PNodeError as error:
        # Asked again it would be refused again.
        hopeless = isinstance(error, RefusedError) and error.code == "context_overflow"
        finish(output, answer)
        raise
    except trio.Cancelled:
        output.end_line()
        output.event("interrupted", {"text": answer.text}, text="[interrupted]")
        raise
    finally:
        if conversation is not None and conversation.cut_short and conversation.is_kept and not hopeless:
            with trio.CancelScope(shield=True):
                await conversation.wait_written()
            sid = conversation.sid.hex() if conversation.sid is not None else ""
            what, then = (
                ("cut short", "goes on with the answer") if answer.ids else ("unanswered", "asks again")
            )
            text = f"[{what}: {output.command(f'sessions resume {sid[:8]}')} {then}]"
            output.event("cut_short", {"conversation": sid, "held": len(answer.ids)}, text=text)
    finish(output, answer)


async def show(output: Output, answer: Any) -> None:
    """Print an answer as it comes: its content as text, calls of tools each on a line, thoughts for scripts.

    Scripts get an event for each piece, so that arguments stream.
    """
    shown = 0
    async for said in answer.events():
        shown = _show_calls(output, answer, shown, upto=said.call if said.channel == "call" else None)
        match said.channel:
            case "content":
                output.piece(said.text)
            case "reasoning":
                output.event("reasoning", {"text": said.text})
            case "call":
                fields = {"index": said.call, "arguments": said.text}
                if said.name:
                    fields |= {"id": answer.tool_calls[said.call].id, "name": said.name}
                output.event("tool_call", fields)
            case _:
                pass
    _show_calls(output, answer, shown, upto=len(answer.tool_calls))
    if answer.tool_calls and not answer.text_checked:
        output.event(
            "not_checked",
            {},
            text="[text not checked against the tokens: `p2pnode models pull` fetches what that needs]",
        )


def _show_calls(output: Output, answer: Any, shown: int, *, upto: int | None) -> int:
    """Print calls that are over; returns how many are printed."""
    calls = answer.tool_calls
    over = len(calls) if upto is None else upto
    for call in calls[shown:over]:
        output.end_line()
        if not output.as_json:
            output.result(call_line(call))
    return max(shown, over)


async def _text_of(output: Output, question: str) -> str:
    from p2pnode.errors import UsageError

    text = await read_all(sys.stdin, output) if question == "-" else question
    if not text.strip():
        msg = "the question is empty: give some text"
        raise UsageError(msg)
    return text.encode(errors="replace").decode()


def make_sampling(max_tokens: int, temperature: float, top_p: float, stop: list[str] | None) -> Any:
    """Checked sampling values. Raises ``UsageError`` that names the flag."""
    from p2pnode.errors import EngineError, UsageError
    from p2pnode.models.validation import validate_sampling
    from p2pnode.protocols.inference.messages import SamplingParams

    values: dict[str, Any] = {
        "tokens_max": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "stop": tuple(stop or ()),
    }
    sampling = SamplingParams(**values)
    try:
        validate_sampling(sampling)
    except EngineError as error:
        flags = {"tokens_max": "max-tokens", "top_p": "top-p"}
        field, _, rest = str(error).partition(" ")
        msg = f"--{flags.get(field, field)} {rest}"
        raise UsageError(msg) from error
    return sampling


def seed_given(seed: int | None) -> bytes | None:
    """The prompt's seed of ``--seed``; None where it is drawn. Raises ``UsageError``."""
    from p2pnode.errors import UsageError
    from p2pnode.protocols.inference.prompt_rules import seed_of

    if seed is not None and not 0 <= seed < 1 << 63:
        msg = f"--seed is {seed}; it must be an integer from 0 to {(1 << 63) - 1}"
        raise UsageError(msg)
    return seed_of(seed) if seed is not None else None


def finish(output: Output, answer: Any) -> None:
    """End the text with a newline, and tell scripts the bill; people see it where several hosts served."""
    from dataclasses import asdict

    from p2pnode.money import usdc_text

    output.end_line()
    usage, bill = answer.usage, answer.bill
    if len(bill) > 1:
        for item in bill:
            output.note(_line_of(item))
    if usage is None:
        if cost := sum(item.cost for item in bill):
            output.note(f"[{usdc_text(cost)} was paid all the same]")
        return
    took = usage.total_s - usage.ttft_s
    # What came in one piece has no speed.
    speed = f"{(usage.tokens_out - 1) / took:.0f} tokens/s, " if took > _MEASURABLE_S else ""
    cost = f", {usdc_text(usage.cost)}" if usage.cost else ""
    where = f"from {shorten(str(answer.host))}" if len(bill) <= 1 else f"from {len(bill)} hosts"
    items = [{**asdict(item), "session": item.session.hex()} for item in bill]
    text = (
        f"[{usage.tokens_in} tokens in, {usage.tokens_out} out, first after {usage.ttft_s:.2f} s, "
        f"{speed}{where}{cost}]"
    )
    output.event(
        "done",
        {"host": answer.host, "checkpoints": answer.checkpoints, **asdict(usage), "bill": items},
        text=text if bill else "",  # one that was whole already asked nobody
    )
    if bill and usage.context_full:
        longer = output.command(f"hosts --min-context {usage.n_ctx + 1}")
        output.note(
            f"[it stops in the middle: the context of {usage.n_ctx} tokens is full, so it can't go on. A new "
            f"conversation has room, and so has a host with a longer context: {longer}]"
        )
    elif bill and usage.reason == "length":
        output.note("[it stops in the middle: that is as long as --max-tokens lets an answer be]")


def _line_of(item: Any) -> str:
    """A host's item on the bill, as a line for people."""
    from p2pnode.money import usdc_text

    reused = f" ({item.reused} reused)" if item.reused else ""
    cost = f", {usdc_text(item.cost)}" if item.cost else ""
    return (
        f"[{shorten(str(item.peer))}: {item.tokens_in} tokens in{reused}, {item.tokens_out} out{cost}, "
        f"{ended_words(item.reason)}]"
    )
