"""``p2pnode join``: run a node and serve models."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias

import typer

from p2pnode.cli.background import BackgroundOption
from p2pnode.cli.gateway import GatewayBeside
from p2pnode.cli.guide import Guide
from p2pnode.cli.options import (
    BootstrapOption,
    ChainOption,
    DataDirOption,
    JsonOption,
    LogOption,
    MdnsOption,
    blaming,
    build_config,
    configure,
    data_of,
    model_names,
    units_of,
)
from p2pnode.cli.output import Output, price_of, shorten
from p2pnode.cli.progress import PullProgress
from p2pnode.ids import pasted
from p2pnode.money import usdc_number, usdc_text
from p2pnode.words import count_of, ended_words

if TYPE_CHECKING:
    from p2pnode.config import ModelSettings, NodeConfig
    from p2pnode.protocols.adverts.messages import Advert

_LOOK_S: Final = 15.0
ListenOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        help="A multiaddr to listen on, as /ip4/0.0.0.0/tcp/4001 or …/tcp/4002/ws. May be repeated."
    ),
]
AnnounceOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        help="A multiaddr at which others reach this node, as /ip4/203.0.113.7/tcp/4001 for a port that "
        "your router forwards, or /dns4/node.example.org/tcp/4001. May be repeated."
    ),
]
ServedOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        help="A model to serve: a catalogue name, or the path of a GGUF file or a folder. May be repeated.",
        autocompletion=model_names,
    ),
]
ModelsArgument: TypeAlias = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="MODEL",
        help="Models to serve: catalogue names or paths of GGUF files. Those that don't fit into memory "
        "together are loaded on demand.",
        show_default=False,
        autocompletion=model_names,
    ),
]
PriceInOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(help="USDC per million input tokens, such as 0.5; 0 is free. MODEL=0.5 is for one model."),
]
PriceOutOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(help="USDC per million output tokens, such as 1.5; 0 is free. MODEL=1.5 is for one model."),
]
SessionFeeOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(help="USDC a session costs besides tokens: your gas, up to 0.25. Or MODEL=0.01."),
]
MemoryOption: TypeAlias = Annotated[
    str | None,
    typer.Option(help="What loaded models may take together, as 8GB; without it what is free at the start."),
]
UnloadOption: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--unload-after",
        help="Minutes without work after which a model is unloaded; 0: only when its memory is wanted.",
    ),
]
AutoOption: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--auto",
        help="Choose what to serve, without a question: what fits this machine and is asked for.",
    ),
]
DryRunOption: TypeAlias = Annotated[
    bool, typer.Option("--dry-run", help="With --auto: print what would be served, and leave.")
]
PinOption: TypeAlias = Annotated[
    list[str] | None, typer.Option("--pin", help="A model that stays in memory. May be repeated.")
]
SuggestOption: TypeAlias = Annotated[
    bool, typer.Option("--suggest-price", help="Print what to ask, from gas and the market, and leave.")
]
EtherPriceOption: TypeAlias = Annotated[
    str | None, typer.Option(help="The price of ether in USDC, for --suggest-price: 3000 or 2999.50.")
]
ClientOnlyOption: TypeAlias = Annotated[
    bool | None, typer.Option("--client-only", help="Take part in the network without serving a model.")
]
StoreForOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        help="Whose blobs to keep: an owner key (`p2pnode wallet show` prints yours), sessions (clients "
        "with an open session, the default) or anyone. May be repeated."
    ),
]
ShareModelsOption: TypeAlias = Annotated[
    bool | None,
    typer.Option(
        "--share-models",
        help="Give the files of the models you serve to peers that pull them, 8 MiB/s for all together.",
    ),
]
ContextOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        help="Context of one request, in tokens; without it what the model and memory allow. Or MODEL=4096."
    ),
]
SlotsOption: TypeAlias = Annotated[
    list[str] | None, typer.Option(help="Requests served at the same time. Or MODEL=2.")
]
ThreadsOption: TypeAlias = Annotated[
    int | None, typer.Option(help="Engine threads; 0 chooses: all cores but one, on two cores both.")
]
EngineOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="What loads the models: llamacpp (GGUF files), exllama (EXL2, EXL3, GPTQ and safetensors "
        "folders, on a GPU), or auto: by the model's format."
    ),
]
KvCacheOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="How keys and values are kept: FP16, or Q8, Q6 (exllama only) or Q4, which take less memory."
    ),
]
SpeculationOption: TypeAlias = Annotated[
    bool | None,
    typer.Option("--speculation", help="Let llama.cpp guess how a text that repeats itself goes on."),
]
EmbeddingsOption: TypeAlias = Annotated[
    bool | None,
    typer.Option(
        "--embeddings/--no-embeddings",
        help="Whether llama.cpp's models make vectors of texts, too: a second process, while it is asked.",
    ),
]
TensorParallelOption: TypeAlias = Annotated[
    bool | None,
    typer.Option("--tensor-parallel", help="Let exllama compute each layer on all GPUs together."),
]
UpstreamOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="Serve a model of an OpenAI-compatible server that runs already (Ollama, LM Studio, vLLM, "
        "llama.cpp, TabbyAPI, LiteLLM), as http://127.0.0.1:8080."
    ),
]
UpstreamModelOption: TypeAlias = Annotated[
    str | None, typer.Option(help="That server's name for the model; without it its first one.")
]
UpstreamTokenizerOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="What has that model's tokenizer: the path of its GGUF file or folder, or a catalogue name."
    ),
]
UpstreamKeyOption: TypeAlias = Annotated[
    str | None, typer.Option(help="A file with the key that the server asks for.")
]
S5ListenOption: TypeAlias = Annotated[
    str | None,
    typer.Option(help="Serve the store to S5 programs on this machine, as 127.0.0.1:5050; port 0 takes any."),
]
S5AccountsOption: TypeAlias = Annotated[
    bool | None,
    typer.Option(
        "--s5-accounts/--no-s5-accounts",
        help="Let programs register accounts at the S5 API, each with its share of the store; who has "
        "none then only reads.",
    ),
]
S5OriginOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        help="Let web pages of this origin use the S5 API, as https://app.example. Without --s5-accounts "
        "they may store for you. May be repeated."
    ),
]
MetricsOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="Serve this node's figures to Prometheus at this address, as 127.0.0.1:9464; port 0 takes any."
    ),
]
WhenIdleOption: TypeAlias = Annotated[
    int | None,
    typer.Option(
        help="Serve only while nobody has used this machine for so many minutes: other programs' load and "
        "keys at terminals are measured, a graphical session and the GPU are not."
    ),
]
PromptFilterOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="A program that gets each prompt as JSON on its standard input, and refuses it by an exit code "
        "other than 0: the first line that it prints is the reason. It has 10 s."
    ),
]
SelfProbeOption: TypeAlias = Annotated[
    bool | None,
    typer.Option(
        "--self-probe/--no-self-probe",
        help="Have the node ask its own idle models each 20 s, and withdraw one that fails twice.",
    ),
]
MovedOption: TypeAlias = Annotated[
    bool, typer.Option("--moved", help="Accept that the data dir was moved to a new place.")
]
ReadyOption: TypeAlias = Annotated[
    Path | None, typer.Option(help="Write peer_id, multiaddrs and pid here as JSON when ready.")
]
QuietOption: TypeAlias = Annotated[
    bool, typer.Option("--quiet", help="Print no line for each answer and each settlement.")
]


UnaskedOption: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--no-guide",
        "--yes",
        help="Ask nothing at the first start; what runs without a terminal is never asked.",
    ),
]
GatewayOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--gateway",
        help="Serve OpenAI's and Anthropic's API at HOST:PORT too, as 127.0.0.1:8080; see `p2pnode gateway`.",
    ),
]


def join(
    models: ModelsArgument = None,
    data_dir: DataDirOption = None,
    listen: ListenOption = None,
    announce: AnnounceOption = None,
    bootstrap: BootstrapOption = None,
    model: ServedOption = None,
    price_in: PriceInOption = None,
    price_out: PriceOutOption = None,
    session_fee: SessionFeeOption = None,
    suggest_price: SuggestOption = False,
    ether_usd: EtherPriceOption = None,
    chain: ChainOption = None,
    client_only: ClientOnlyOption = None,
    store_for: StoreForOption = None,
    share_models: ShareModelsOption = None,
    n_ctx: ContextOption = None,
    slots: SlotsOption = None,
    memory: MemoryOption = None,
    unload_after: UnloadOption = None,
    pin: PinOption = None,
    auto: AutoOption = False,
    dry_run: DryRunOption = False,
    threads: ThreadsOption = None,
    engine: EngineOption = None,
    kv_cache: KvCacheOption = None,
    speculation: SpeculationOption = None,
    embeddings: EmbeddingsOption = None,
    tensor_parallel: TensorParallelOption = None,
    upstream: UpstreamOption = None,
    upstream_model: UpstreamModelOption = None,
    upstream_tokenizer: UpstreamTokenizerOption = None,
    upstream_key_file: UpstreamKeyOption = None,
    s5_listen: S5ListenOption = None,
    s5_accounts: S5AccountsOption = None,
    s5_origin: S5OriginOption = None,
    metrics: MetricsOption = None,
    when_idle: WhenIdleOption = None,
    prompt_filter: PromptFilterOption = None,
    self_probe: SelfProbeOption = None,
    gateway: GatewayOption = None,
    mdns: MdnsOption = None,
    moved: MovedOption = False,
    ready_file: ReadyOption = None,
    background: BackgroundOption = False,
    quiet: QuietOption = False,
    no_guide: UnaskedOption = False,
    scripted_tokens_per_s: Annotated[float | None, typer.Option(hidden=True)] = None,
    as_json: JsonOption = False,
    log_level: LogOption = "warning",
) -> None:
    """Join the network and serve models to peers. Ctrl-C drains and leaves; twice leaves at once."""
    from p2pnode.cli.runner import run_async
    from p2pnode.host.join import Join, JoinOptions

    configure(log_level)
    output = Output(as_json=as_json, data_dir=data_dir)
    report = JoinReporter(output, quiet=quiet)

    running: list[Join] = []
    guide = Guide(output, data_dir, _adverts_seen, unasked=no_guide)
    beside = GatewayBeside.of(gateway, output, data_dir, mdns=mdns, chain=chain)
    named = [*(models or ()), *(model or ())] or None

    def configured() -> NodeConfig:
        of_all, per_model = _settings(
            {
                "price_in": price_in,
                "price_out": price_out,
                "session_fee": session_fee,
                "n_ctx": n_ctx,
                "slots": slots,
            },
            pin or (),
        )
        return build_config(
            data_dir,
            listen=listen,
            announce=announce,
            bootstrap=bootstrap,
            models=named,
            per_model=per_model or None,
            memory=memory,
            unload_minutes=unload_after,
            **of_all,
            chain=chain,
            client_only=client_only,
            store_for=[pasted(each) for each in store_for] if store_for is not None else None,
            share_models=share_models,
            threads=threads,
            engine=engine,
            kv_cache=kv_cache,
            speculation=speculation,
            embeddings=embeddings,
            tensor_parallel=tensor_parallel,
            upstream=upstream,
            upstream_model=upstream_model,
            upstream_tokenizer=upstream_tokenizer,
            upstream_key_file=upstream_key_file,
            s5_listen=s5_listen,
            s5_accounts=s5_accounts,
            s5_origins=s5_origin,
            metrics=metrics,
            when_idle=when_idle,
            prompt_filter=prompt_filter,
            self_probe=self_probe,
            mdns=mdns,
        )

    def check(config: NodeConfig) -> None:
        """Raise for what makes no sense or is missing, before anything is made or fetched."""
        if beside is not None:
            beside.check()
        _need_packages(config)
        _check(listen or (), bootstrap or (), named or (), upstream, ready_file, data_dir)
        _check_announced(config.announce, "--announce" if announce else "config.toml, announce")
        _check_programs(metrics, config)
        _check_s5(s5_listen, s5_origin or (), config.s5_listen, accounts=bool(s5_accounts))

    async def serve(config: NodeConfig) -> None:
        options = JoinOptions(
            ready_file=ready_file,
            moved=moved,
            scripted_tokens_per_s=scripted_tokens_per_s,
            before_ready=beside.told if beside else None,
        )
        await _tell_of_servers(config, report)
        running.append(Join(config, options, beside.listening_to(report) if beside else report))
        await (running[0].run() if beside is None else beside.run(running[0]))
        report("stopped", {})

    async def run() -> None:
        if suggest_price:
            await _suggest(
                output,
                build_config(data_dir, bootstrap=bootstrap, models=named, mdns=mdns, chain=chain),
                ether_usd,
            )
            return
        config = configured()
        check(config)
        _check_auto(config, auto=auto, dry_run=dry_run)
        # Whoever says what to serve, or has a program wait for this one, needs no questions.
        if await guide.asked(
            config,
            answered=any(
                (named, auto, dry_run, client_only, upstream, chain, price_in, price_out, ready_file, quiet)
            ),
        ):
            config = configured()
        if background and not dry_run:
            await _in_background(output, data_dir, ready_file)
            return
        if auto:
            from p2pnode.host.auto_join import choose_models, deploy

            adverts = await _adverts_seen(config)
            plan = await choose_models(config, adverts, report)
            if dry_run:
                return
            config = await deploy(config, plan, adverts, report)
        await serve(config)

    def interrupt() -> bool:
        output.end_echo()
        if guide.asks:
            return guide.interrupted()
        report("stopping", {})
        for each in (*running, *((beside,) if beside else ())):
            each.stop()
        return bool(running)

    run_async(run, on_error=output.failed, on_interrupt=interrupt)


async def _tell_of_servers(config: NodeConfig, report: JoinReporter) -> None:
    """Offer a person who named no model the servers that run here already; a script gets what it names."""
    if config.models or config.upstream or config.client_only or not sys.stderr.isatty():
        return
    from p2pnode.models.upstream.server import servers_here

    for server in await servers_here():
        report("upstream.found", {"url": server.url, "model": server.model, "models": list(server.models)})


async def _adverts_seen(config: NodeConfig) -> list[Advert]:
    """Live adverts of all models; none where nobody is reached in time."""
    import trio

    from p2pnode.client.client import Client
    from p2pnode.errors import RemoteError

    with trio.move_on_after(_LOOK_S), contextlib.suppress(RemoteError):
        async with Client(config, remember=False) as client:
            return await client.known_adverts()
    return []


def _check_auto(config: NodeConfig, *, auto: bool, dry_run: bool) -> None:
    """Raise ``UsageError`` for flags that contradict ``--auto``."""
    from p2pnode.errors import UsageError

    if dry_run and not auto:
        msg = "--dry-run shows what --auto would serve: give both"
        raise UsageError(msg)
    if auto and (config.models or config.upstream or config.client_only):
        msg = "--auto chooses the models itself: name none, here and in config.toml, and no --upstream"
        raise UsageError(msg)


def _settings(
    given: Mapping[str, list[str] | None], pinned: Sequence[str]
) -> tuple[dict[str, Any], dict[str, ModelSettings]]:
    """What flags say of all models, and of each. Raises ``UsageError`` where they contradict each other."""
    from dataclasses import replace

    from p2pnode.config import MONEY, ModelSettings
    from p2pnode.errors import UsageError

    of_all: dict[str, Any] = {}
    per_model: dict[str, dict[str, Any]] = {}
    for key, texts in given.items():
        flag = f"--{key.replace('_', '-')}"
        for text in texts or ():
            name, _, value = text.rpartition("=")
            place = per_model.setdefault(name, {}) if name else of_all
            read: Any = value  # an amount for all models is read by the configuration
            if key not in MONEY:
                read = _whole(value, flag)
            elif name:
                read = units_of(value, flag)
            if key in place and place[key] != read:
                whom, one = name or "all models", f"{flag} {name or 'MODEL'}={value}"
                msg = f"{flag} is given twice for {whom}, and differs: give it once, or for one model ({one})"
                raise UsageError(msg)
            place[key] = read
    made = {name: ModelSettings(**values) for name, values in per_model.items()}
    for name in pinned:
        made[name] = replace(made.get(name, ModelSettings()), pinned=True)
    return of_all, made


def _whole(text: str, flag: str) -> int:
    from p2pnode.errors import UsageError

    try:
        return int(text)
    except ValueError as error:
        raise UsageError(f"{flag}: {text!r} is no whole number") from error


async def _in_background(output: Output, data_dir: Path | None, ready_file: Path | None) -> None:
    from p2pnode.cli.background import run_in_background
    from p2pnode.errors import ConfigError

    data = data_of(data_dir)
    data.prepare()
    if data.is_locked():
        msg = f"a node runs on {data.root} already: {output.command('stop')} ends it"
        raise ConfigError(msg)
    ready = (ready_file or data.root / "node.ready").absolute()
    await run_in_background(output, data.log, ready, given=ready_file is not None)


async def _suggest(output: Output, config: NodeConfig, ether_usd: str | None) -> None:
    from dataclasses import asdict

    from p2pnode.errors import UsageError
    from p2pnode.payments.price_suggestion import suggest

    if ether_usd is None:
        msg = "--suggest-price needs --ether-usd: what one ether costs in USDC, which no chain tells"
        raise UsageError(msg)
    found = await suggest(config, units_of(ether_usd, "--ether-usd"))
    market = (
        f"{found.asked} hosts ask for money; their medians are --price-in {usdc_number(found.price_in)} "
        f"--price-out {usdc_number(found.price_out)}"
        if found.price_in is not None and found.price_out is not None
        else "nobody that was found asks for money: set the price you can live with"
    )
    fee = (
        f"a session costs {usdc_text(found.gas_cost)} of gas: --session-fee {usdc_number(found.session_fee)}"
    )
    short = "" if found.fee_covers_gas else " (the most the contract allows: it does not cover the gas now)"
    output.event(
        "suggestion",
        asdict(found),
        text=f"{market}\n{fee}{short}",
    )


def _need_packages(config: NodeConfig) -> None:
    """Raise ``MissingExtraError`` before anything is made or fetched; it names all that is missing."""
    from p2pnode.extras import Extra, need
    from p2pnode.models.manifest import SCRIPTED

    models = config.served
    # Every node has a wallet; a model that is not scripted needs an engine too.
    role: Extra = "host" if any(name != SCRIPTED for name in models) else "pay"
    if config.s5_listen:
        need("`p2pnode join` with an S5 API", role, "s5")
    if config.metrics:
        need("`p2pnode join --metrics`", role, "metrics")
    need("`p2pnode join`", role)


def _check(
    listen: Sequence[str],
    bootstrap: Sequence[str],
    models: Sequence[str],
    upstream: str | None,
    ready_file: Path | None,
    data_dir: Path | None,
) -> None:
    """Raise ``UsageError`` for flags that make no sense, before anything is made or fetched."""
    from p2pnode.models.catalogue import Catalogue
    from p2pnode.models.manifest import SCRIPTED
    from p2pnode.net.multiaddrs import check_address
    from p2pnode.node.datadir import ReadyFile
    from p2pnode.node.invite import read_bootstrap

    with blaming("--listen"):
        for address in listen:
            check_address(address)
    with blaming("--bootstrap"):
        for each in bootstrap:
            read_bootstrap(each)
    if ready_file is not None:
        ReadyFile(ready_file).check()
    if upstream:
        from p2pnode.models.upstream.http import checked_url

        with blaming("--upstream"):
            checked_url(upstream)
    catalogue = Catalogue.of(data_of(data_dir).models)
    with blaming("--model"):
        for name in models:
            if name != SCRIPTED:
                catalogue.find(name)


def _check_announced(announce: Sequence[str], where: str) -> None:
    from p2pnode.net.address_policy import check_announced
    from p2pnode.net.multiaddrs import without_peer

    with blaming(where):
        for each in announce:
            check_announced(without_peer(each))


def _check_programs(metrics: str | None, config: NodeConfig) -> None:
    """Raise for an address of metrics that is none, and for a filter that there isn't."""
    if metrics is not None:
        from p2pnode.http_server import parse_listen

        with blaming("--metrics"):
            parse_listen(metrics)
    if config.prompt_filter:
        from p2pnode.host.prompt_filter import PromptFilter

        PromptFilter(config.prompt_filter)


def _check_s5(s5_listen: str | None, origins: Sequence[str], configured: str, *, accounts: bool) -> None:
    from p2pnode.errors import UsageError
    from p2pnode.storage.s5.server.options import check_origin

    if s5_listen is not None:
        from p2pnode.storage.s5.server.options import check_s5_listen

        with blaming("--s5-listen"):
            check_s5_listen(s5_listen)
    with blaming("--s5-origin"):
        for each in origins:
            check_origin(each)
    if (origins or accounts) and not configured:
        flag = "--s5-origin" if origins else "--s5-accounts"
        msg = f"{flag} is for the S5 API, which is off: turn it on with --s5-listen 127.0.0.1:5050"
        raise UsageError(msg)


def _owners(store_for: Sequence[str]) -> str:
    """For whom blobs are kept, in words."""
    if "anyone" in store_for:
        return "anyone"
    listed = len([rule for rule in store_for if rule != "sessions"])
    some = ["clients with an open session"] if "sessions" in store_for else []
    some += [count_of(listed, "listed owner")] if listed else []
    return " and ".join(some) or "nobody else"


def _answered(fields: dict[str, Any]) -> str:
    """An answer that was served, as a line."""
    cost = f", {usdc_text(fields['cost'])}" if fields["cost"] else ""
    counts = f"{fields['tokens_in']} tokens in, {fields['tokens_out']} out{cost}"
    ended = "" if fields["reason"] in {"stop", "length"} else f" ({ended_words(str(fields['reason']))})"
    return f"{time.strftime('%H:%M:%S')}   answered {shorten(str(fields['peer']))}: {counts}{ended}"


def _context(fields: dict[str, Any]) -> str:
    """The context of a model, what it takes and what it follows from, as a line."""
    from p2pnode.models.context import gigabytes

    why = {
        "asked": "as asked",
        "model": "the model was trained for no more",
        "memory": f"half of the {gigabytes(fields['at_hand'])} at hand",
        "default": "--n-ctx gives more",
    }[fields["why"]]
    each = f"{fields['n_ctx']} tokens for each of {count_of(fields['slots'], 'request')}"
    demand = "\n           it doesn't fit beside the others: loaded on demand" if fields["on_demand"] else ""
    return f"context    {each}, {gigabytes(fields['memory'])} with the model: {why}{demand}"


def _auto(event: str, fields: dict[str, Any]) -> str:
    """What ``--auto`` found, and what it does, as lines."""
    from p2pnode.models.context import gigabytes

    match event:
        case "auto.serves":
            speed = f"{fields['tokens_per_s']} tokens/s"
            return f"chosen     {fields['name']}: {speed}, {price_of(fields)}: {fields['why']}"
        case "auto.left_out":
            return f"left out   {fields['name']}: {fields['why']}"
        case _:
            here = f"{gigabytes(fields['memory'])} of memory, {count_of(fields['cores'], 'core')}"
            seen = f"{count_of(fields['hosts_seen'], 'host')} seen"
            words = {True: "chosen  ", False: "left out"}
            models = (f"{words[each['serve']]}   {each['name']}: {each['why']}" for each in fields["models"])
            return "\n".join([f"auto       {here}, {seen}", *models])


def _leaving(event: str) -> str:
    if event == "stopped":
        return "left the network"
    if event != "stopping":
        return ""
    return f"leaving: letting answers end{' (Ctrl-C again leaves at once)' if sys.stderr.isatty() else ''}"


def _of_model(event: str, fields: dict[str, Any]) -> str:
    """What became of a model while the host runs, as a line."""
    match event:
        case "model.warm":
            return f"loaded     {fields['name']} in {fields['seconds']:.1f} s"
        case "model.cold":
            return f"unloaded   {fields['name']}"
        case "model.no_embeddings":
            return f"no vectors of {fields['name']}: {fields['reason']}"
        case "model.sick":
            return f"withdrawn  {fields['name']} does not answer: {fields['reason']}"
        case "model.well":
            return f"offered    {fields['name']} answers again"
        case "model.withdrawn":
            return f"withdrawn  {fields['name']}: {fields['reason']}"
        case _:
            return _serving(fields)


def _pause(name: str, fields: dict[str, Any]) -> str:
    """A pause of the host, or its end, as a line."""
    why = ", ".join(fields.get("why", ()))
    if name == "not_paused":
        return f"its owner had not paused this node{f'; it is paused all the same: {why}' if why else ''}"
    if name == "paused":
        return f"paused     {why}: offers are withdrawn, answers under way end"
    if name.startswith("machine."):
        return f"paused     {fields['why']}" if fields["why"] else "resumed    nobody uses this machine"
    return f"resumed    still paused: {why}" if why else "resumed    serving again"


def _serving(model: dict[str, Any]) -> str:
    """A model that is served, as a line."""
    kept = ", pinned" if model["pinned"] else ""
    cold = ", loaded on demand" if model["state"] != "warm" else ""
    return f"serving    {model['name']}, {price_of(model)}{kept}{cold}"


def _licence(fields: dict[str, Any]) -> str:
    from p2pnode.models.licences import licence_words

    return f"licence    {licence_words(fields)}"


def _gpus(fields: dict[str, Any]) -> str:
    from p2pnode.models.context import gigabytes

    each = (
        f"{one['name']}, {gigabytes(one['free'])} of {gigabytes(one['total'])} free" for one in fields["gpus"]
    )
    return f"gpus       {'; '.join(each)}"


def _upstream(fields: dict[str, Any]) -> str:
    """A server that runs here already: one whose model is served, or one that could be."""
    if "name" not in fields:
        serve = f"`--upstream {fields['url']}` serves that"
        return f"found      a server with {fields['model']} at {fields['url']}: {serve}"
    build = f" ({fields['build']})" if fields["build"] else ""
    return (
        f"upstream   {fields['name']} at {fields['url']}{build}, context {fields['n_ctx']}: trying it\n"
        "           its weights can't be held against a hash, and the offer says so"
    )


def _gas(fields: dict[str, Any]) -> str:
    """What a host has for gas, and for how many sessions that is enough, as a line."""
    from p2pnode.money import ether_text

    held, needed = fields["ether_wei"], fields["session_wei"]
    if held < needed:
        has = f"{ether_text(held)}, and a session takes {ether_text(needed)} of gas"
        return f"gas        {has}: send ether to {fields['account']}"
    return f"gas        {ether_text(held)}, enough for about {held // max(1, needed)} sessions"


def _reach_lines(fields: dict[str, Any]) -> list[str]:
    """From where the node can be reached, and the invite for others, as lines."""
    reach = fields["reach"]
    if reach["code"] == "global":
        return [f"invite     {fields['invite']}"]
    lines = [f"reach      {reach['detail']}"]
    lines += [f"           {reach['remedy']}"] if reach["remedy"] else []
    if reach["code"] == "ipv6_only":
        return [*lines, f"invite     {fields['invite']}"]
    if reach["code"] == "no_network":
        return [*lines, "invite     none yet: nobody else could use it"]
    works = "on this machine" if reach["code"] == "this_machine_only" else "inside this network"
    return [*lines, f"invite     {fields['invite']}", f"           it works {works} only"]


def _ask_of(models: Sequence[dict[str, Any]]) -> str:
    """The command that asks a host of these models."""
    from p2pnode.config import DEFAULT_MODEL
    from p2pnode.models.catalogue import shown_name
    from p2pnode.models.manifest import parse_model_id

    # A file that is in no catalogue has a name of its own, which means nothing to those who ask.
    names = [shown_name(parse_model_id(model["id"])) for model in models]
    return 'ask "…"' if not names or DEFAULT_MODEL in names else f'ask --model {names[0]} "…"'


class JoinReporter:
    """Tells people and scripts how far a start has come, and what a host serves."""

    def __init__(self, output: Output, *, quiet: bool = False) -> None:
        self._output, self._quiet = output, quiet
        self._progress: PullProgress | None = None

    def __call__(self, name: str, fields: dict[str, Any]) -> None:
        if self._quiet and name in {"answered", "settled"}:
            return
        if name == "model.progress" and not self._output.as_json:
            if self._progress is None:
                self._progress = PullProgress(self._output, str(fields["name"]))
            self._progress(fields["done"], fields["total"])
            return
        if self._progress is not None:
            self._progress.close()
            self._progress = None
        text = self._text(name, fields)
        if name == "ready":
            # A node in the background, whose words go to a log, hears no Ctrl-C.
            ways = "Ctrl-C or " if sys.stderr.isatty() else ""
            stop, ask = self._output.command("stop"), self._output.command(_ask_of(fields["models"]))
            text += f"\nready: try {ask}; {ways}{stop} leaves"
        self._output.report(name, fields, text=text)

    @staticmethod
    def _text(name: str, fields: dict[str, Any]) -> str:
        match name:
            case "identity.making":
                return f"first start: making {' and '.join(fields['making'])} in {fields['data_dir']}"
            case "identity":
                return f"peer id    {fields['peer_id']}"
            case "model":
                return f"model      {fields['name']}: verified, loading\n           {fields['id']}"
            case "context" | "gpus" | "licence" | "upstream" | "upstream.found":
                return {"context": _context, "gpus": _gpus, "licence": _licence}.get(name, _upstream)(fields)
            case "chain":
                where = f"{fields['name']} (chain {fields['chain_id']}), at {fields['account']}"
                return f"paid on    {where}\n{_gas(fields)}"
            case "listening":
                return "\n".join(f"listening  {address}" for address in fields["multiaddrs"])
            case "s5" | "metrics":
                return f"{'s5 api' if name == 's5' else name:<10} {fields['url']}"
            case "addresses":
                listening = [f"listening  {address}" for address in fields["multiaddrs"]]
                return "\n".join(["addresses changed:", *listening, *_reach_lines(fields)])
            case "ready":
                served = [_serving(each) for each in fields["models"]]
                return "\n".join(
                    [
                        *(served or ["serving    nothing: a client-only node"]),
                        f"storing    for {_owners(fields['store_for'])}",
                        *_reach_lines(fields),
                    ]
                )
            case _ if name.startswith("model.") and name not in {"model.pulling", "model.progress"}:
                return _of_model(name, fields)
            case "paused" | "not_paused" | "resumed" | "machine.used" | "machine.idle":
                return _pause(name, fields)
            case "answered":
                return _answered(fields)
            case "settled":
                return f"settled    {usdc_text(fields['amount'])}, session {fields['session'][:8]}"
            case _:
                return _auto(name, fields) if name.startswith("auto.") else _leaving(name)
