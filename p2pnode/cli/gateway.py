"""``p2pnode gateway``: the APIs that programs speak, on this machine, answered by the network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self, TypeAlias

import typer

from p2pnode.cli.ask import HedgeOption, MaxSpendOption
from p2pnode.cli.client import make_client
from p2pnode.cli.options import (
    BootstrapOption,
    ChainOption,
    DataDirOption,
    JsonOption,
    LogOption,
    MdnsOption,
    blaming,
    configure,
    data_of,
)
from p2pnode.cli.output import Output

if TYPE_CHECKING:
    from pathlib import Path

    from p2pnode.client.client import Client
    from p2pnode.gateway.server import GatewayOptions, ServedGateway
    from p2pnode.host.join import Join

AliasOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--alias",
        help="PATTERN=MODEL: what names that fit the pattern mean, as 'claude-*=smollm2-135m-instruct', or "
        "'*=…' for all names that are not known. May be repeated.",
    ),
]
OriginOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--origin", help="Let web pages of this origin use it: https://app.example. Repeatable."),
]
TrustHostOption: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--trust-host",
        help="Offer tools also where the model's tokenizer can't be had, so that what a host says of calls "
        "can't be checked against what it is paid for.",
    ),
]


def gateway(
    listen: Annotated[
        str, typer.Option("--listen", help="HOST:PORT. Beyond this machine a key is always needed.")
    ] = "127.0.0.1:8080",
    bootstrap: BootstrapOption = None,
    alias: AliasOption = None,
    origin: OriginOption = None,
    trust_host: TrustHostOption = False,
    hedge: HedgeOption = None,
    chain: ChainOption = None,
    max_spend: MaxSpendOption = None,
    mdns: MdnsOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    log_level: LogOption = "warning",
) -> None:
    """Serve OpenAI's API on this machine; hosts of the network answer. Ctrl-C ends it in order."""
    import trio

    from p2pnode.cli.runner import run_async
    from p2pnode.extras import need

    configure(log_level)
    output = Output(as_json=as_json, data_dir=data_dir)
    stopping = trio.Event()

    async def run() -> None:
        need("`p2pnode gateway`", "gateway")
        options = gateway_options(listen, "--listen", alias, origin, data_dir, trust_host=trust_host)
        client = make_client(
            output,
            data_dir,
            bootstrap,
            mdns=mdns,
            discovery=True,
            chain=chain,
            spend_session_max=max_spend,
            hedge=hedge,
        )
        async with client:
            await serve_until(output, client, options, stopping)

    def interrupt() -> bool:
        output.end_echo()
        stopping.set()
        return True

    run_async(run, on_error=output.failed, on_interrupt=interrupt)


def gateway_options(
    listen: str,
    flag: str,
    alias: list[str] | None,
    origin: list[str] | None,
    data_dir: Path | None,
    *,
    trust_host: bool,
) -> GatewayOptions:
    """The options of these flags. Raises ``UsageError`` that names the flag that is wrong."""
    from p2pnode.gateway.server import GatewayOptions, read_aliases
    from p2pnode.http_server import parse_listen
    from p2pnode.storage.s5.server.options import check_origin

    with blaming(flag):
        parse_listen(listen)
    with blaming("--alias"):
        read_aliases(alias or (), data_of(data_dir).models)
    with blaming("--origin"):
        origins = tuple(check_origin(each) for each in origin or ())
    return GatewayOptions(
        listen=listen, listen_option=flag, aliases=tuple(alias or ()), origins=origins, trust_host=trust_host
    )


async def serve_until(
    output: Output, client: Client, options: GatewayOptions, stopping: Any, told: Any = None
) -> None:
    """Serve until ``stopping`` is set, and end in order. ``told`` is set when it has said where it listens;
    both are events."""
    from p2pnode.doctor.doctor import examine
    from p2pnode.gateway.metrics import measure_gateway, measure_keys, measured
    from p2pnode.gateway.server import serving_gateway

    options, metrics = measured(replace(options, checks=partial(examine, client.runtime.config)), client)
    async with serving_gateway(client, options, limits=client.runtime.limits) as running:
        if metrics is not None:
            measure_gateway(metrics, running.gateway)
            measure_keys(metrics, running.ring)
        tell_of(output.event, running)
        if told is not None:
            told.set()
        await stopping.wait()


def tell_of(tell: Callable[..., None], running: ServedGateway) -> None:
    """Say where it listens and who may use it."""
    who = f"with the key in {running.key_file}" if running.keys_required else "by programs on this machine"
    fields = {
        "url": running.url,
        "keys_required": running.keys_required,
        "key_file": str(running.key_file) if running.keys_required else "",
    }
    tell("gateway", fields, text=f"gateway    {running.url}/v1, to be used {who}")
    for link in running.dashboard_urls:
        tell("dashboard", {"url": link}, text=f"dashboard  {link}\n           (this link works once)")


class GatewayBeside:
    """The gateway of ``p2pnode join --gateway``, beside a node.

    It asks with a client of its own, as ``p2pnode ask`` does: a client finds the node by its data dir, and so
    asks its models with those of others.
    """

    def __init__(self, listen: str, output: Output, data_dir: Path | None, **flags: Any) -> None:
        import trio

        self._listen, self._output, self._data_dir, self._flags = listen, output, data_dir, flags
        self._listening, self._told, self._stopping = trio.Event(), trio.Event(), trio.Event()

    @classmethod
    def of(cls, listen: str | None, output: Output, data_dir: Path | None, **flags: Any) -> Self | None:
        """None where no gateway was asked for. ``flags`` are those of its client."""
        return None if listen is None else cls(listen, output, data_dir, **flags)

    @property
    def _options(self) -> GatewayOptions:
        return gateway_options(self._listen, "--gateway", None, None, self._data_dir, trust_host=False)

    def check(self) -> None:
        """Raise ``MissingExtraError`` where packages are missing, ``UsageError`` for what is no address."""
        from p2pnode.extras import need

        need("`p2pnode join --gateway`", "gateway")
        _ = self._options

    def listening_to(
        self, report: Callable[[str, dict[str, Any]], None]
    ) -> Callable[[str, dict[str, Any]], None]:
        """The same reporter, which tells us when the node listens."""

        def tell(name: str, fields: dict[str, Any]) -> None:
            report(name, fields)
            if name == "listening":
                self._listening.set()

        return tell

    async def told(self) -> None:
        """Wait until the gateway has said where it listens, or has failed."""
        await self._told.wait()

    def stop(self) -> None:
        """Let requests under way end, then end."""
        self._stopping.set()

    async def run(self, node: Join) -> None:
        """Run the node, and the gateway once it listens. When one of them ends, the other ends in order.

        Raises what ended the first one.
        """
        import trio

        from p2pnode.errors import P2PNodeError

        failed: list[P2PNodeError] = []

        async def serve() -> None:
            await self._listening.wait()
            try:
                async with make_client(
                    self._output, self._data_dir, None, discovery=True, **self._flags
                ) as c:
                    await serve_until(self._output, c, self._options, self._stopping, self._told)
            except P2PNodeError as error:
                failed.append(error)
                node.stop()
            finally:
                self._told.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            try:
                await node.run()
            except P2PNodeError as error:
                failed.append(error)
            self.stop()
            if not self._listening.is_set():
                nursery.cancel_scope.cancel()
        if failed:
            raise failed[0]
