"""``p2pnode chat``: a conversation in the terminal, with history."""

from __future__ import annotations

import re
import sys
from typing import Any, Final

from p2pnode.cli.ask import (
    DiscoveryOption,
    MaxSpendOption,
    MaxTokensOption,
    PeerOption,
    SeedOption,
    StopOption,
    SystemOption,
    TemperatureOption,
    TopPOption,
    finish,
    make_client,
    make_sampling,
)
from p2pnode.cli.lines import Lines
from p2pnode.cli.options import (
    BootstrapOption,
    ChainOption,
    DataDirOption,
    JsonOption,
    LogOption,
    MdnsOption,
    ModelOption,
    check_target,
    configure,
)
from p2pnode.cli.output import Output, error_fields

_COMMAND: Final = re.compile(r"/\w+")
_HELP: Final = (
    "/new starts over, /retry asks again, /go goes on with an answer that was cut short, /exit or Ctrl-D "
    "leaves; Ctrl-C stops an answer"
)


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
    chain: ChainOption = None,
    max_spend: MaxSpendOption = None,
    mdns: MdnsOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    log_level: LogOption = "error",
) -> None:
    """Talk with a model; the conversation so far goes along with each message."""
    from p2pnode.cli.running import run_async

    configure(log_level)
    output = Output(as_json=as_json)
    talk: list[_Talk] = []

    async def run() -> None:
        check_target(model, peer, no_discovery=no_discovery)
        sampling = make_sampling(max_tokens, temperature, top_p, seed, stop)
        client = make_client(
            output,
            data_dir,
            bootstrap,
            mdns=mdns,
            discovery=not no_discovery and peer is None,
            chain=chain,
            spend_session_max=max_spend,
        )
        options = {"model": model, "peer": peer, "system": system, "sampling": sampling}
        with Lines(sys.stdin, quiet=as_json) as lines:
            async with client:
                talk.append(_Talk(client, output, lines, options))
                await talk[0].run()

    def interrupt() -> bool:
        return talk[0].interrupt() if talk else False

    run_async(run, on_error=output.failed, on_interrupt=interrupt, again=True)


class _Talk:
    """The loop of one conversation."""

    def __init__(self, client: Any, output: Output, lines: Lines, options: dict[str, Any]) -> None:
        import trio

        self._client, self._output, self._lines, self._options = client, output, lines, options
        self._history: list[dict[str, str]] = []
        self._scope: trio.CancelScope | None = None
        self._cut: Any = None
        """The last answer, if it isn't whole."""

    def interrupt(self) -> bool:
        """Ctrl-C: stop the answer that streams, or leave when none does."""
        if self._scope is None:
            return False
        self._scope.cancel()
        return True

    async def run(self) -> None:
        self._output.event("chat", {}, text=_HELP)
        while (line := await self._lines.next()) is not None:
            match line.strip():
                case "":
                    continue
                case "/exit" | "/quit":
                    return
                case "/help":
                    self._output.event("help", {}, text=_HELP)
                case "/new":
                    self._history.clear()
                    self._cut = None
                    self._output.event("new", {}, text="a new conversation")
                case "/retry":
                    await self._retry()
                case "/go":
                    await self._go_on()
                case command if _COMMAND.fullmatch(command):
                    self._output.event("unknown_command", {"command": command}, text=f"{command}? {_HELP}")
                case _:
                    self._drop("user")  # a question that failed would make this one fail too
                    self._history.append({"role": "user", "content": line})
                    await self._answer()

    async def _retry(self) -> None:
        self._drop("assistant")
        if self._history:
            await self._answer()
        else:
            self._output.event("nothing_to_retry", {}, text="nothing was asked yet")

    async def _go_on(self) -> None:
        if self._cut is None:
            self._output.event("nothing_to_go_on", {}, text="no answer was cut short")
            return
        self._drop("assistant")
        await self._answer(self._client.go_on(self._cut))

    def _drop(self, role: str) -> None:
        while self._history and self._history[-1]["role"] == role:
            self._history.pop()

    async def _answer(self, answer: Any = None) -> None:
        import trio

        from p2pnode.errors import LocalError, P2PNodeError

        if answer is None:
            answer = self._client.chat(list(self._history), **self._options)
        failure: P2PNodeError | None = None
        try:
            with trio.CancelScope() as self._scope:
                async with answer:
                    async for piece in answer:
                        self._output.piece(piece)
        except P2PNodeError as error:
            # Ours ends the conversation, but not one that holds a part of an answer.
            if isinstance(error, LocalError) and not answer.ids:
                raise
            failure = error
        finally:
            self._scope = None
        if answer.text:
            self._history.append({"role": "assistant", "content": answer.text})
        self._cut = answer if answer.usage is None and answer.ids else None
        finish(self._output, answer)
        if failure is not None:
            text = f"p2pnode: {failure} (/retry asks again, /new starts over)"
            self._output.event("turn.failed", error_fields(failure), text=text)
        elif answer.usage is None:
            self._output.event("stopped", {}, text="[stopped]")
