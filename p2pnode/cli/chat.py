"""``p2pnode chat``: a conversation in the terminal, with history."""

from __future__ import annotations

from typing import Any

from p2pnode.cli.ask import (
    DiscoveryOption,
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
from p2pnode.cli.options import (
    BootstrapOption,
    DataDirOption,
    JsonOption,
    LogOption,
    MdnsOption,
    ModelOption,
    configure,
)
from p2pnode.cli.output import Output

_HELP = "/new starts over, /retry asks again, /exit or Ctrl-D leaves; Ctrl-C stops an answer"


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
    mdns: MdnsOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    log_level: LogOption = "error",
) -> None:
    """Talk with a model; the conversation so far goes along with each message."""
    from p2pnode.cli.running import run_async
    from p2pnode.errors import UsageError

    configure(log_level)
    output = Output(as_json=as_json)
    talk: list[_Talk] = []

    async def run() -> None:
        if no_discovery and peer is None:
            msg = "--no-discovery needs --peer MULTIADDR: there is nobody to ask"
            raise UsageError(msg)
        sampling = make_sampling(max_tokens, temperature, top_p, seed, stop)
        client = make_client(
            output, data_dir, bootstrap, mdns=mdns, discovery=not no_discovery and peer is None
        )
        async with client:
            talk.append(
                _Talk(client, output, {"model": model, "peer": peer, "system": system, "sampling": sampling})
            )
            await talk[0].run()

    def interrupt() -> bool:
        return talk[0].interrupt() if talk else False

    run_async(run, on_error=output.failed, on_interrupt=interrupt, again=True)


class _Talk:
    """The loop of one conversation."""

    def __init__(self, client: Any, output: Output, options: dict[str, Any]) -> None:
        import trio

        self._client, self._output, self._options = client, output, options
        self._history: list[dict[str, str]] = []
        self._scope: trio.CancelScope | None = None

    def interrupt(self) -> bool:
        """Ctrl-C: stop the answer that streams, or leave when none does."""
        if self._scope is None:
            return False
        self._scope.cancel()
        return True

    async def run(self) -> None:
        self._output.event("chat", {}, text=_HELP)
        while (line := await self._read_line()) is not None:
            match line.strip():
                case "":
                    continue
                case "/exit" | "/quit":
                    return
                case "/help":
                    self._output.event("help", {}, text=_HELP)
                case "/new":
                    self._history.clear()
                    self._output.event("new", {}, text="a new conversation")
                case "/retry":
                    if self._history:
                        while self._history[-1]["role"] == "assistant":
                            self._history.pop()
                        await self._answer()
                case _:
                    self._history.append({"role": "user", "content": line})
                    await self._answer()

    async def _read_line(self) -> str | None:
        import sys

        import trio

        if not self._output.as_json and sys.stdin.isatty():
            sys.stderr.write("> ")
            sys.stderr.flush()
        # The thread can't be interrupted; it is left behind when the process ends.
        line = await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True)
        return line.rstrip("\n") if line else None

    async def _answer(self) -> None:
        import trio

        from p2pnode.errors import RemoteError

        answer = self._client.chat(list(self._history), **self._options)
        try:
            with trio.CancelScope() as self._scope:
                async with answer:
                    async for piece in answer:
                        self._output.piece(piece)
        except RemoteError as error:
            self._output.event(
                "failed", {"message": str(error)}, text=f"p2pnode: {error} (/retry asks again)"
            )
        finally:
            self._scope = None
        if answer.text:
            self._history.append({"role": "assistant", "content": answer.text})
        finish(self._output, answer)
