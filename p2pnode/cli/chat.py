"""``p2pnode chat``: a conversation in the terminal, with history."""

from __future__ import annotations

import re
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Final

import typer

from p2pnode.cli.ask import (
    CloseOption,
    ContextOption,
    DiscoveryOption,
    EquivalentOption,
    FormatOption,
    HedgeOption,
    MaxCostOption,
    MaxSpendOption,
    MaxTokensOption,
    MinReputationOption,
    NeverOption,
    OnlyOption,
    PeerOption,
    SchemaOption,
    SeedOption,
    StopOption,
    SystemOption,
    TemperatureOption,
    ToolChoiceOption,
    ToolOption,
    TopPOption,
    VerifiedOption,
    WaitOption,
    checked_context,
    checked_hedge,
    finish,
    make_filters,
    make_sampling,
    prompt_options,
    seed_given,
    show,
)
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
    configure,
)
from p2pnode.cli.output import Output, error_fields
from p2pnode.cli.tool_results import (
    NO_RESULT,
    SKIP,
    UNASKED_MAX,
    ToolProgram,
    running,
    shown,
    wanted,
    why_not_run,
)
from p2pnode.cli.user_input import PromptInterruptedError, UserInput
from p2pnode.errors import LocalError, P2PNodeError, RefusedError

if TYPE_CHECKING:
    import trio

    from p2pnode.client.interface import Answer, Conversation
    from p2pnode.protocols.inference.messages import Tool, ToolCall

ToolCommandOption = Annotated[
    str | None,
    typer.Option(
        "--tool-command",
        help="A program that gives the results of calls: it gets the tool's name as its argument and the "
        "call's arguments as JSON on standard input. You are asked before each run, but with --yes.",
    ),
]
RunUnaskedOption = Annotated[
    bool,
    typer.Option(
        "--yes",
        help=f"Run --tool-command unasked, {UNASKED_MAX} times for a question at most. Without it the next "
        "line of input, in a pipe too, decides: an empty one runs it.",
    ),
]
_COMMAND: Final = re.compile(r"/\w+")
_HELP: Final = (
    "/new starts over, /retry asks again, /exit or Ctrl-D leaves\n"
    "/go goes on with an answer that was cut short, Ctrl-C stops an answer\n"
    'a paste is one message, and so is all between """ and """'
)
_LEFT_TOLD: Final = 4
"""The tokens that are left are told once they are fewer than the context through this."""


def chat(
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
    tool_command: ToolCommandOption = None,
    yes: RunUnaskedOption = False,
    schema: SchemaOption = None,
    answer_format: FormatOption = None,
    chain: ChainOption = None,
    max_spend: MaxSpendOption = None,
    close: CloseOption = False,
    wait: WaitOption = 0.0,
    max_cost: MaxCostOption = None,
    accept_equivalent: EquivalentOption = None,
    only: OnlyOption = None,
    never: NeverOption = None,
    verified: VerifiedOption = None,
    min_reputation: MinReputationOption = 0.0,
    hedge: HedgeOption = None,
    context: ContextOption = "refuse",
    store: StoreOption = None,
    s5_url: S5UrlOption = None,
    no_save: NoSaveOption = False,
    mdns: MdnsOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    log_level: LogOption = "error",
) -> None:
    """Talk with a model; the conversation so far goes along with each message.

    Where it calls a tool, you give the result, or a program of yours does: see --tool and --tool-command.
    """
    from p2pnode.cli.runner import run_async

    configure(log_level)
    output = Output(as_json=as_json, data_dir=data_dir)
    chats: list[Chat] = []

    async def run() -> None:
        from p2pnode.client.chat_options import ChatOptions

        sampling = make_sampling(max_tokens, temperature, top_p, stop)
        asked = prompt_options(tool, tool_choice, schema, answer_format)
        program = find_program(tool_command, asked.get("tools", ()), yes=yes)
        options = ChatOptions(
            model=model,
            peer=peer,
            system=system,
            sampling=sampling,
            seed=seed_given(seed),
            filters=make_filters(
                max_cost,
                only,
                never,
                accept_equivalent,
                verified=verified,
                min_reputation=min_reputation,
                data_dir=data_dir,
            ),
            context=checked_context(context),
            hedge=checked_hedge(hedge),
            **asked,
        )
        with UserInput(sys.stdin, quiet=as_json, edits=True) as lines:
            async with open_client(
                output, data_dir, bootstrap, model=model, peer=peer, no_discovery=no_discovery, mdns=mdns,
                chain=chain, spend_session_max=max_spend, closes=close, wait_s=wait, stores=store,
                s5_url=s5_url,
            ) as client:  # fmt: skip

                async def begin() -> Conversation:
                    return await client.new_conversation(options, keep=not no_save)

                chats.append(Chat(output, lines, await begin(), begin, program))
                await chats[0].run()

    def interrupt() -> bool:
        return chats[0].interrupt() if chats else False

    run_async(run, on_error=output.failed, on_interrupt=interrupt, again=True)
    leave_as_failed(chats)


def leave_as_failed(chats: Sequence[Chat]) -> None:
    """Exit as `ask` does where a message was not answered and nobody at a terminal saw it."""
    from p2pnode.cli.runner import exit_code

    failure = chats[0].failure if chats else None
    if failure is not None and not sys.stdin.isatty():
        raise typer.Exit(exit_code(failure))


def find_program(name: str | None, tools: tuple[Tool, ...], *, yes: bool) -> ToolProgram | None:
    """The program of ``--tool-command``. Raises ``UsageError``."""
    from p2pnode.errors import UsageError

    if name is None:
        return None
    if not tools:
        msg = "--tool-command gives the results of tools: name them with --tool"
        raise UsageError(msg)
    return ToolProgram.find(name, asks=not yes)


class Chat:
    """The loop of a conversation in the terminal; ``begin`` makes a new one."""

    def __init__(
        self,
        output: Output,
        lines: UserInput,
        conversation: Conversation,
        begin: Callable[[], Awaitable[Conversation]],
        program: ToolProgram | None = None,
    ) -> None:
        """``program`` gives the results of calls."""
        self._output, self._lines, self._conversation, self._begin = output, lines, conversation, begin
        self._program = program
        self._scope: trio.CancelScope | None = None
        self.failure: P2PNodeError | None = None
        """Why the last message that was not answered was not; None once it was asked again with success."""

    def interrupt(self) -> bool:
        """Ctrl-C: stop the answer that streams, or leave when none does."""
        if self._scope is None:
            self._output.end_echo()
            return False
        self._scope.cancel()
        return True

    async def run(self) -> None:
        """Until the end of the input or /exit."""
        self._output.event("chat", {}, text=_HELP)
        while (line := await self._next()) is not None:
            match line.strip():
                case "":
                    continue
                case "/exit" | "/quit":
                    return
                case "/help":
                    self._output.event("help", {}, text=_HELP)
                case "/new":
                    self._conversation = await self._begin()
                    self._output.event("new", {}, text="a new conversation")
                case "/retry":
                    await self._retry()
                case "/go":
                    await self.go_on()
                case command if _COMMAND.fullmatch(command):
                    self._output.event(
                        "unknown_command", {"command": command}, text=f"{command} is no command: see /help"
                    )
                case _:
                    if self._program is not None:
                        self._program.begin_turn()
                    await self._answer(self._conversation.ask(line))

    async def _next(self) -> str | None:
        """What is typed next.

        Ctrl-C twice with nothing typed ends the chat, as one Ctrl-C ends other commands.
        """
        asked = False
        while True:
            try:
                return await self._lines.next()
            except PromptInterruptedError as pressed:
                if asked and pressed.empty:
                    raise KeyboardInterrupt from None
                asked = pressed.empty
                if asked:
                    self._output.event("asking", {}, text="(Ctrl-C again leaves)")

    async def go_on(self) -> None:
        """Go on with the answer that was cut short, if there is one."""
        if self._conversation.cut_short:
            self.failure = None
            await self._answer(self._conversation.go_on())
        else:
            self._output.event("nothing_to_go_on", {}, text="no answer was cut short")

    async def _retry(self) -> None:
        if self._conversation.has_question:
            self.failure = None
            await self._answer(self._conversation.again())
        else:
            self._output.event("nothing_to_retry", {}, text="nothing was asked yet")

    async def _answer(self, answer: Answer) -> None:
        """Print an answer and, while it calls tools, get their results and print what follows from them."""
        await self._print(answer)
        while (calls := self._conversation.calls) and answer.usage is not None:
            results: list[str] = []
            for call in calls:
                result = await self._result(call)
                if result is None:
                    self._output.event("calls_left", {}, text="[no results: ask something else]")
                    return
                results.append(result)
            answer = self._conversation.give_results(results)
            await self._print(answer)

    async def _result(self, call: ToolCall) -> str | None:
        """The result of a call; None where the user leaves it."""
        program, fields = self._program, {"id": call.id, "name": call.name, "arguments": call.arguments}
        typed: str | None = ""
        runs = program is not None and not why_not_run(call)
        if program is None or program.must_ask() or not runs:
            self._output.event("result_wanted", fields, text=wanted(call, program))
            try:
                typed = await self._lines.next()
            except PromptInterruptedError:
                return None
        if typed is None:
            return None
        if typed.strip() == SKIP:
            return NO_RESULT
        if typed.strip() or program is None or not runs:
            return typed
        result = await self._run(program, call)
        if result is not None:
            told = {"id": call.id, "name": call.name, "result": result}
            self._output.event("result", told, text=f"[{program.path} says: {shown(result)}]")
        return result

    async def _run(self, program: ToolProgram, call: ToolCall) -> str | None:
        """What the program says; None where Ctrl-C stops it."""
        import trio

        result = None
        fields = {"id": call.id, "name": call.name, "program": program.path}
        self._output.event("running", fields, text=running(call, program))
        try:
            with self._lines.held_back(), trio.CancelScope() as self._scope:
                result = await program.run(call)
        finally:
            self._scope = None
        return result

    async def _print(self, answer: Answer) -> None:
        import trio

        failure: P2PNodeError | None = None
        try:
            with self._lines.held_back(), trio.CancelScope() as self._scope:
                async with answer:
                    await show(self._output, answer)
        except P2PNodeError as error:
            # Ours ends the conversation, but not one that holds a part of an answer.
            if isinstance(error, LocalError) and not answer.ids:
                raise
            failure = error
        finally:
            self._scope = None
        finish(self._output, answer)
        self._tell_context(answer)
        if failure is not None:
            self.failure = failure
            overflows = isinstance(failure, RefusedError) and failure.code == "context_overflow"
            ways = "" if overflows else " (/retry asks again, /new starts over)"  # it would overflow again
            text = f"{self._output.error_text(failure)}{ways}"
            self._output.event("turn.failed", error_fields(failure), text=text)
        elif answer.usage is None:
            self._output.event("stopped", {}, text="[stopped: /go goes on, /retry asks again]")

    def _tell_context(self, answer: Answer) -> None:
        usage = answer.usage
        if usage is not None and usage.n_ctx > 0 and usage.context_left * _LEFT_TOLD <= usage.n_ctx:
            left = f"{usage.context_left} of {usage.n_ctx} tokens are left for this conversation"
            self._output.note(f"[{left}: /new starts over]")
