"""``p2pnode join`` without the terminal: makes a running node, and a host on it, of a configuration."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import structlog
import trio

from p2pnode.chain.addresses import shown_address
from p2pnode.chain.profile import ChainProfile
from p2pnode.chain.wallet.passphrase import terminal_kept
from p2pnode.chain.wallet.wallet import open_wallet
from p2pnode.config import DEFAULT_MODEL, ModelSettings, NodeConfig
from p2pnode.errors import ConfigError, UnreachableError
from p2pnode.extras import need
from p2pnode.files import off_the_loop, user_path
from p2pnode.host.control import ControlSocket
from p2pnode.host.host import Host, Renew
from p2pnode.host.machine_use import SAMPLE_S, IdleRule, MachineMeter
from p2pnode.host.metrics import measure_host
from p2pnode.host.model_pool import HostedEmbedder, HostedModel, PoolLimits, Report
from p2pnode.host.prompt_filter import PromptFilter
from p2pnode.host.residency import Memory
from p2pnode.host.self_probe import SelfProbe
from p2pnode.host.sheet import Grants
from p2pnode.host.totals import TotalsFile
from p2pnode.ids import ModelId, PeerId
from p2pnode.limits import DEFAULT_LIMITS, Limits
from p2pnode.metrics import Metrics, serving_metrics
from p2pnode.models.catalogue import Catalogue
from p2pnode.models.context import (
    EMBEDDER_CTX_LEAST,
    N_CTX_GPU_DEFAULT,
    ContextChoice,
    ModelMemory,
    choose_context,
    gigabytes,
    memory_at_hand,
    memory_in_all,
    memory_of,
)
from p2pnode.models.engines import (
    ANY_ENGINE,
    EngineSpec,
    engine_name_for,
    make_embedder,
    make_engine,
    only_embeds,
    parse_engine_name,
    require_engine,
)
from p2pnode.models.gguf import read_header
from p2pnode.models.licences import tell_licence
from p2pnode.models.local_models import LocalModel
from p2pnode.models.manifest import SCRIPTED, model_id, model_id_text, scripted_model_id
from p2pnode.models.pull.pull import pull
from p2pnode.models.scripted import ScriptedConfig
from p2pnode.money import price_text
from p2pnode.net.multiaddrs import split_peer, without_peer
from p2pnode.net.transports import free_listen
from p2pnode.node.block_list import BlockList
from p2pnode.node.datadir import DataDir, ReadyFile
from p2pnode.node.identity import (
    BoundChain,
    HostIdentity,
    load_or_create_identity,
    passphrase_of,
    wallet_files,
)
from p2pnode.node.invite import make_invite, read_bootstrap
from p2pnode.node.keys import PeerKey
from p2pnode.node.metrics import measure_node
from p2pnode.node.node import Node, NodeSetup
from p2pnode.node.reachability import reachability
from p2pnode.node.staked_hosts import StakedHosts
from p2pnode.payments.books import profile_of_config, stakes_of
from p2pnode.payments.escrow import HostMoney, open_host_money
from p2pnode.payments.gas_budget import SESSION_GAS, GasBudget
from p2pnode.payments.settlement_policy import settle_above
from p2pnode.storage.key_file import ensure_storage_key
from p2pnode.storage.local.store import LocalStore
from p2pnode.storage.metrics import measure_store
from p2pnode.storage.model_lists import keep_lists_fresh
from p2pnode.storage.model_peers import make_public, share_files
from p2pnode.storage.node_store import LOCAL_OWNER, StoreFor, keep_for_peers, open_store
from p2pnode.storage.public_files import PublicFiles

log = structlog.get_logger()
_CONTEXT_AMPLE = 4096
"""A context that is shorter because of other models isn't worth that they stay in memory."""
IN_USE: Final = "this machine is in use"
BY_OWNER: Final = "its owner paused it"
"""Why a host is paused that was told to by a command."""
LISTEN_DEFAULT = (
    "/ip4/0.0.0.0/tcp/4001",
    "/ip6/::/tcp/4001",
    "/ip4/0.0.0.0/tcp/4002/ws",
    "/ip6/::/tcp/4002/ws",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinOptions:
    """What one start needs beyond the configuration."""

    ready_file: Path | None = None
    moved: bool = False
    limits: Limits = DEFAULT_LIMITS
    scripted_tokens_per_s: float | None = None
    before_ready: Callable[[], Awaitable[None]] | None = None
    """Awaited before the ready file is written: what runs beside the node says first where it is."""


class Join:
    """One run of a node from its data dir. ``stop`` it from a signal handler."""

    def __init__(self, config: NodeConfig, options: JoinOptions, report: Report) -> None:
        self._config, self._options, self._report = config, options, report
        self._data = DataDir(config.data_dir)
        self._ready = None if options.ready_file is None else ReadyFile(options.ready_file)
        self._node: Node | None = None
        self._totals: TotalsFile | None = None
        self._metrics: Metrics | None = None
        self._stopping = False
        self._locals: list[LocalModel] = []
        """The models that are served, but for the scripted one."""
        self._host: Host | None = None
        self._control = ""
        """The path of the control socket."""
        self._priced = False
        """Whether this start can be paid."""
        self._memory = Memory()
        """What the models may take together. The GPUs' is asked for with the first model that needs it."""
        self._promised = self._pinned = Memory()
        """What those of this start will take, all and the pinned ones: it isn't taken yet."""
        self._starting = trio.CancelScope()

    def stop(self) -> None:
        """Drain and end; a start under way (a download, a model that loads) is given up at once."""
        self._stopping = True
        self._starting.cancel()
        if self._node is not None:
            self._node.stop()

    async def run(self) -> None:
        """Run until stopped. Raises ``LocalError``, whose message says what the user can do."""
        data, config = self._data, self._config
        bootstrap = tuple(one for each in config.bootstrap for one in read_bootstrap(each))
        data.prepare()
        with ExitStack() as stack:
            stack.enter_context(data.locked())
            if self._ready is not None:
                self._ready.check()
            await off_the_loop(partial(data.check_place, moved=self._options.moved))
            profile = self._profile()
            self._memory = Memory(self._memory_budget())
            identity: HostIdentity | None = None
            passphrase: bytes | None = None
            models: list[HostedModel] = []
            with self._starting:
                passphrase = None if profile is None else await self._passphrase()
                identity = await self._identity(profile, passphrase)
                models = await self._models()
            if self._stopping or identity is None:
                return
            listen = config.listen or free_listen(LISTEN_DEFAULT)
            starts = await off_the_loop(data.new_start)  # here: starts that fail before add nothing to it
            stakes = stakes_of(config, profile) if profile is not None else None
            self._node = node = Node(
                NodeSetup(
                    key=identity.key,
                    starts=starts,
                    listen=listen,
                    announce=_own_addresses(config.announce, identity.key.peer_id),
                    bootstrap=bootstrap,
                    saved_peers=data.peers,
                    mdns="announce" if config.mdns else "off",
                    stakes=stakes,
                    limits=self._options.limits,
                )
            )
            try:
                async with (
                    open_store(config) as store,
                    self._money(profile, passphrase) as money,
                    self._s5(store),
                    self._serving_metrics(node, store),
                    trio.open_nursery() as nursery,
                ):
                    await nursery.start(node.run)
                    try:
                        await self._begin(node, stakes, money)
                        with trio.CancelScope() as self._starting:
                            if not self._stopping:
                                node.start_soon(self._follow_addresses, node)
                                renew = partial(self._renewed, profile, passphrase)
                                await self._serve(node, identity, models, money, store, renew=renew)
                    except UnreachableError:  # a node that was stopped meanwhile takes no task any more
                        if not self._stopping:
                            raise
                    if self._stopping:
                        node.stop()
            finally:
                if stakes is not None:
                    stakes.save(data.stakes)
                data.node_json.unlink(missing_ok=True)
                data.totals.unlink(missing_ok=True)
                if self._ready is not None:
                    self._ready.remove()

    async def _begin(self, node: Node, stakes: StakedHosts | None, money: HostMoney | None) -> None:
        """Let the node be told what to do, and say where it is.

        Raises ``UnreachableError`` where it was stopped meanwhile.
        """
        await self._apply_blocks(node)
        control = ControlSocket(
            {
                "offer": self._offer,
                "withdraw": self._withdraw,
                "pause": self._pause,
                "resume": self._resume,
                "blocked": self._blocked,
                "state": self._state,
            }
        )
        self._control = str(control.path)
        try:
            node.start_soon(control.run)
        except UnreachableError:
            control.close()
            raise
        await self._write_node_json(node)
        self._report("listening", {"multiaddrs": list(node.multiaddrs)})
        if stakes is not None and money is not None:
            node.start_soon(stakes.follow, money.ledger.node)

    async def _write_node_json(self, node: Node) -> None:
        network = node.network
        write = partial(
            self._data.write_node_json,
            node.peer_id,
            network.multiaddrs,
            announced=network.announced,
            networks=network.policy.networks,
            reach=node.reach,
            control=self._control,
        )
        await off_the_loop(write)

    async def _follow_addresses(self, node: Node) -> None:
        """Write ``node.json`` whenever the node's addresses change, and report the change to its owner."""
        told = node.multiaddrs
        while True:
            await node.network.wait_changed()
            try:
                await self._write_node_json(node)
            except ConfigError as error:
                log.warning("node_json.not_written", reason=str(error))
            if told != node.multiaddrs:
                told = node.multiaddrs
                self._report("addresses", _reach_fields(node))

    def _on_host_event(self, name: str, fields: dict[str, object]) -> None:
        if self._totals is not None:
            self._totals.changed()
        self._report(name, fields)

    def _profile(self) -> ChainProfile | None:
        """The chain this host is paid on; None for a free one. Raises ``ConfigError``."""
        config = self._config
        if not config.asks_money:
            return None
        profile = profile_of_config(config)
        if profile is None:
            asked = _prices(map(config.of_model, config.served))
            msg = (
                f"prices need a chain to be paid on (asked are {asked}): name its profile with --chain or "
                f"as chain in {self._data.config}, or leave the prices out to serve free. `p2pnode chain dev "
                "--with-wallets` makes a chain to try, and a host that is paid on it"
            )
            raise ConfigError(msg)
        return profile

    async def _passphrase(self) -> bytes | None:
        """The wallet's passphrase where a person has to type it, asked once; None otherwise."""
        wallet = await trio.to_thread.run_sync(open_wallet, wallet_files(self._data))
        return await passphrase_of(wallet) if wallet is not None and wallet.source.kind == "prompt" else None

    async def _identity(self, profile: ChainProfile | None, passphrase: bytes | None) -> HostIdentity:
        """Read or make the identity and report it. A person may be asked for a passphrase, once a month."""
        data = self._data
        new, no_wallet = not data.peer_key.exists(), not data.wallet.exists()
        if new or no_wallet:
            making = ["an identity"] * new + ["a wallet"] * no_wallet
            self._report("identity.making", {"data_dir": str(data.root), "making": making})
        chain = BoundChain() if profile is None else BoundChain(profile.chain_id, profile.node_registry)
        with terminal_kept():
            identity = await trio.to_thread.run_sync(
                load_or_create_identity, data, time.time, chain, passphrase, abandon_on_cancel=True
            )
        await trio.to_thread.run_sync(ensure_storage_key, data)
        self._report("identity", {"peer_id": identity.key.peer_id, "new": new})
        if self._ready is not None:
            self._ready.clear(identity.key.peer_id)
        return identity

    async def _renewed(self, profile: ChainProfile | None, passphrase: bytes | None) -> HostIdentity:
        """The identity with a new binding. Raises ``ConfigError`` where a person would have to be asked."""
        wallet = await trio.to_thread.run_sync(open_wallet, wallet_files(self._data))
        if passphrase is None and wallet is not None and wallet.source.kind == "prompt":
            msg = (
                "the wallet has to sign for this node anew: restart `p2pnode join`, which asks its passphrase"
            )
            raise ConfigError(msg)
        chain = BoundChain() if profile is None else BoundChain(profile.chain_id, profile.node_registry)
        return await trio.to_thread.run_sync(
            load_or_create_identity, self._data, time.time, chain, passphrase
        )

    @property
    def _budget(self) -> GasBudget:
        return GasBudget(ether_price=self._config.ether_usd, day_max=self._config.gas_day_max)

    @asynccontextmanager
    async def _money(
        self, profile: ChainProfile | None, passphrase: bytes | None
    ) -> AsyncIterator[HostMoney | None]:
        if profile is None:
            yield None
            return
        async with open_host_money(self._data, profile, passphrase, self._budget) as money:
            await self._report_chain(profile, money)
            yield money

    async def _report_chain(self, profile: ChainProfile, money: HostMoney) -> None:
        """Report the chain that pays this host, and the ether that it has for gas. Raises ``ChainError``."""
        account = money.ledger.account or bytes(20)
        held, head = await money.ledger.balances(account), await money.ledger.head()
        self._report(
            "chain",
            {
                "chain_id": profile.chain_id,
                "name": profile.shown_name,
                "account": shown_address(account),
                "ether_wei": held.ether,
                "session_wei": SESSION_GAS * head.gas_price_wei,
            },
        )

    @asynccontextmanager
    async def _s5(self, store: LocalStore) -> AsyncIterator[None]:
        config, limits = self._config, self._options.limits
        if not config.s5_listen:
            yield
            return
        need("the S5 API", "s5")
        from p2pnode.storage.s5.server.server import serving_s5

        async with serving_s5(
            config.s5_listen,
            self._data,
            store,
            LOCAL_OWNER,
            accounts=config.s5_accounts,
            origins=config.s5_origins,
            limits=limits,
        ) as url:
            self._report("s5", {"url": url})
            yield

    @asynccontextmanager
    async def _serving_metrics(self, node: Node, store: LocalStore) -> AsyncIterator[None]:
        """Serve figures for Prometheus, where that is configured. Raises ``LocalError``."""
        if not self._config.metrics:
            yield
            return
        self._metrics = metrics = Metrics()
        measure_node(metrics, node)
        measure_store(metrics, store)
        async with serving_metrics(self._config.metrics, metrics) as url:
            self._report("metrics", {"url": url})
            yield

    async def _serve(
        self,
        node: Node,
        identity: HostIdentity,
        models: list[HostedModel],
        money: HostMoney | None,
        store: LocalStore,
        *,
        renew: Renew,
    ) -> None:
        policy = StoreFor(self._config.store_for)
        public = PublicFiles(self._options.limits.share_bytes_per_s)
        for local in self._locals:
            await make_public(public, local)
            if self._config.share_models:
                node.start_soon(share_files, node, public, local)
        keep_for_peers(node, store, policy.admits, public)
        node.start_soon(keep_lists_fresh, node, self._config)
        if models:
            host = Host(
                node,
                identity,
                models,
                money,
                self._on_host_event,
                renew=renew,
                grants=grants_of(self._config),
                probe=self._self_probe(node),
                prompt_filter=filter_of(self._config),
                pool=PoolLimits(
                    memory=self._memory,
                    idle_s=60 * self._config.unload_minutes,
                    waiting_max=self._options.limits.engine_queue,
                ),
            )
            self._host, self._priced = host, money is not None
            if self._config.when_idle:
                node.start_soon(self._watch_machine, host)
            policy.has_session = host.has_session
            if self._metrics is not None:
                measure_host(self._metrics, host)
            self._totals = TotalsFile(self._data.totals, host.totals)
            await host.start()
            node.start_soon(self._totals.keep)
        else:
            entry = Catalogue.load().find(DEFAULT_MODEL)
            await node.follow([entry.model_id] if entry.model_id is not None else [])
        hosts = [self._host] if self._host is not None else []
        self._report(
            "ready",
            {
                "peer_id": node.peer_id,
                **_reach_fields(node),
                "store_for": list(self._config.store_for),
                "models": [_offered_fields(host, each) for host in hosts for each in host.models],
            },
        )
        # Last: who started it in the background shows what it says until this file is there, and no longer.
        if self._ready is not None:
            if self._options.before_ready is not None:
                await self._options.before_ready()
            await off_the_loop(partial(self._ready.write, node.peer_id, node.multiaddrs))

    def _self_probe(self, node: Node) -> SelfProbe | None:
        """What asks this host's models, over a connection like a stranger's; None where that is off."""
        if not self._config.self_probe:
            return None
        setup = NodeSetup(
            key=PeerKey.generate(),
            dht="off",
            gossip=False,
            keep_connected=False,
            limits=self._options.limits,
        )
        return SelfProbe(Node(setup), node.peer_id, lambda: node.multiaddrs)

    async def _watch_machine(self, host: Host) -> None:
        """Serve only while nobody uses this machine."""
        rule, meter = IdleRule(60.0 * self._config.when_idle), MachineMeter()
        told = ""
        while True:
            sample = await trio.to_thread.run_sync(meter.sample)
            why = rule.why_in_use(sample, trio.current_time())
            if why and not told:
                host.pause(IN_USE)
            elif told and not why:
                host.resume(IN_USE)
            if why != told:
                self._report("machine.used" if why else "machine.idle", {"why": why})
            told = why
            await trio.sleep(SAMPLE_S)

    def _memory_budget(self) -> int:
        """What models may take together, in bytes. Raises ``ConfigError`` for more than the machine has."""
        asked, has = self._config.memory, memory_in_all()
        if asked > has:
            msg = f"memory is {gigabytes(asked)}, and this machine has {gigabytes(has)}: name less"
            raise ConfigError(msg)
        return asked or memory_at_hand()

    async def _models(self) -> list[HostedModel]:
        made: dict[ModelId, HostedModel] = {}
        for name in self._config.served:
            model = await self._model(name, self._config.of_model(name), self._report)
            if (other := made.get(model.model)) is not None:
                raise ConfigError(f"{name} and {other.name} are the same model: name it once")
            made[model.model] = model
        if self._config.upstream and not self._config.client_only:
            model = await self._upstream()
            made[model.model] = model
        return list(made.values())

    async def _model(self, name: str, settings: ModelSettings, report: Report) -> HostedModel:
        """Fetch a model and decide on its context. Raises ``ConfigError``."""
        config = self._config
        spec = EngineSpec(
            name="scripted",
            n_ctx=settings.n_ctx or None,
            slots=settings.slots,
            threads=config.threads or None,
            queue_max=self._options.limits.engine_queue,
            tokens_per_s=self._options.scripted_tokens_per_s,
            cache=config.kv_cache,
            speculation=config.speculation,
            tensor_parallel=config.tensor_parallel,
        )
        if name == SCRIPTED:
            return HostedModel(
                model=scripted_model_id(),
                name=SCRIPTED,
                new_engine=partial(make_engine, spec),
                n_ctx=settings.n_ctx or ScriptedConfig().n_ctx,
                pinned=bool(settings.pinned),
                price_in=settings.price_in or 0,
                price_out=settings.price_out or 0,
                session_fee=settings.session_fee or 0,
            )
        entry = Catalogue.of(self._data.models).find(name)
        if config.engine != ANY_ENGINE:
            require_engine(parse_engine_name(config.engine))  # before gigabytes are fetched
        report("model.pulling", {"name": entry.name})

        def progress(done: int, total: int | None) -> None:
            report("model.progress", {"name": entry.name, "done": done, "total": total})

        local = await pull(
            entry, self._data.models, progress=progress, on_download=partial(tell_licence, report)
        )
        self._locals.append(local)
        report("model", {"name": local.name, "id": model_id_text(local.model_id)})
        chosen = engine_name_for(local, config.engine)
        require_engine(chosen)
        embedder: HostedEmbedder | None = None
        if chosen == "llamacpp":
            spec = await off_the_loop(partial(self._calibrated, spec, local))
            header = await trio.to_thread.run_sync(read_header, local.weights_path)
            model_memory = memory_of(header, local.manifest.size_bytes)
            if only_embeds(header):
                return self._only_embedder(local, model_memory, spec, settings)
            choice = self._context(local, model_memory, settings, report)
            n_ctx, memory = choice.n_ctx, Memory(choice.memory)
            if config.embeddings:
                embedder = self._embedder(local, model_memory, spec, n_ctx, report)
        else:
            n_ctx = settings.n_ctx or min(local.manifest.n_ctx, N_CTX_GPU_DEFAULT)
            memory = await self._gpu_memory(local, settings, n_ctx)
        return HostedModel(
            model=local.model_id,
            name=local.name,
            new_engine=partial(make_engine, replace(spec, name=chosen, n_ctx=n_ctx), local),
            quantisation=local.manifest.quantisation,
            n_ctx=n_ctx,
            memory=memory,
            embedder=embedder,
            pinned=bool(settings.pinned),
            price_in=settings.price_in or 0,
            price_out=settings.price_out or 0,
            session_fee=settings.session_fee or 0,
        )

    def _calibrated(self, spec: EngineSpec, local: LocalModel) -> EngineSpec:
        """With what `p2pnode models calibrate` found for this model here, where no threads are named."""
        from p2pnode.models.llamacpp.calibrate import read_choice
        from p2pnode.models.llamacpp.engine import LlamaCppConfig

        LlamaCppConfig(cache=self._config.kv_cache)  # raises for what only other engines have
        found = None if self._config.threads else read_choice(self._data.root, local)
        return spec if found is None else replace(spec, threads=found.threads, batch=found.batch)

    async def _upstream(self) -> HostedModel:
        """The model of somebody else's server. Raises ``ConfigError`` and ``EngineError``."""
        config = self._config
        need("`p2pnode join --upstream`", "pay")
        from p2pnode.models.upstream.engine import UpstreamConfig, UpstreamEngine, find_server
        from p2pnode.models.upstream.text_model import hosted_name, manifest_of, text_model_of

        key = await off_the_loop(partial(_key_in, config.upstream_key_file))
        server = await find_server(config.upstream, config.upstream_model, key)
        local = await self._tokenizer(server.weights)
        model = await trio.to_thread.run_sync(text_model_of, local)
        manifest = manifest_of(local, server.model)
        told = [each for each in (config.n_ctx, server.n_ctx) if each]
        if not told:
            msg = f"{server.url} doesn't say how long the context of {server.model} is: name it with --n-ctx"
            raise ConfigError(msg)
        settings = UpstreamConfig(
            url=config.upstream,
            model=server.model,
            key=key,
            n_ctx=min(*told, manifest.n_ctx),
            slots=min(config.slots, server.slots),
            queue_max=self._options.limits.engine_queue,
        )
        name = hosted_name(server.model)
        self._report(
            "upstream", {"name": name, "url": server.url, "build": server.build, "n_ctx": settings.n_ctx}
        )
        return HostedModel(
            model=model_id(manifest),
            name=name,
            new_engine=lambda: UpstreamEngine(model, model.prompts(min(*told, manifest.n_ctx)), settings),
            quantisation="unknown",
            n_ctx=min(*told, manifest.n_ctx),
            price_in=config.price_in,
            price_out=config.price_out,
            session_fee=config.session_fee,
            pinned=True,
        )

    async def _tokenizer(self, weights: str) -> LocalModel:
        """A model that has the server's tokenizer: the one that was named, or the server's own file."""
        from p2pnode.models.upstream.text_model import tokenizer_at

        named = self._config.upstream_tokenizer
        if not named:
            if not weights or not await off_the_loop(Path(weights).is_file):
                msg = (
                    f"which tokenizer has the model of {self._config.upstream}? Tokens are counted with it: "
                    "name the path of its GGUF file, of its folder, or a model of the catalogue with "
                    "--upstream-tokenizer"
                )
                raise ConfigError(msg)
            return await trio.to_thread.run_sync(tokenizer_at, Path(weights))
        entry = Catalogue.of(self._data.models).find(named)
        if entry.path is not None:
            return await trio.to_thread.run_sync(tokenizer_at, entry.path)
        return await pull(entry, self._data.models, on_download=partial(tell_licence, self._report))

    def _context(
        self, local: LocalModel, memory: ModelMemory, settings: ModelSettings, report: Report
    ) -> ContextChoice:
        """The context of one request, reported. Raises ``ConfigError`` where it can't fit into memory.

        It is chosen so that the model fits beside those before it. Where that leaves it little or nothing, it
        may have the memory of those that aren't pinned: then it is loaded on demand.
        """
        slots, asked = settings.slots or 1, settings.n_ctx or 0
        choose = partial(
            choose_context, memory, asked=asked, slots=slots, quantisation=local.manifest.quantisation
        )
        beside = max(0, self._memory.main - self._promised.main)
        choice: ContextChoice | None = None
        try:
            choice = choose(at_hand=beside)
        except ConfigError:
            if self._promised.main == self._pinned.main:
                raise
        short = choice is not None and choice.why == "memory" and choice.n_ctx < _CONTEXT_AMPLE
        if choice is None or (short and self._promised.main):
            beside = max(0, self._memory.main - self._pinned.main)
            choice = choose(at_hand=beside)
        on_demand = self._promised.main + choice.memory > self._memory.main
        self._promise(Memory(choice.memory), pinned=bool(settings.pinned))
        fields = {"name": local.name, "slots": slots, "at_hand": beside, "on_demand": on_demand}
        report("context", {**fields, **asdict(choice)})
        return choice

    def _promise(self, memory: Memory, *, pinned: bool) -> None:
        self._promised += memory
        self._pinned += memory if pinned else Memory()

    def _embedder(
        self, local: LocalModel, memory: ModelMemory, spec: EngineSpec, n_ctx: int, report: Report
    ) -> HostedEmbedder | None:
        """What makes vectors of texts for a model; None where there is no memory for it.

        It should fit beside the models of this start; else it may have the memory of those that aren't
        pinned. Nothing is promised to it: it is loaded only while somebody asks for it.
        """
        for taken in (self._promised, self._pinned):
            longest = min(n_ctx, memory.embedder_context(max(0, (self._memory - taken).main)))
            if longest:
                needed = Memory(memory.embedder(longest))
                return HostedEmbedder(new_engine=partial(make_embedder, spec, local, longest), memory=needed)
        report("model.no_embeddings", {"name": local.name, "reason": "there is no memory left for them"})
        return None

    def _only_embedder(
        self, local: LocalModel, memory: ModelMemory, spec: EngineSpec, settings: ModelSettings
    ) -> HostedModel:
        """A model that makes vectors of texts and writes no answers. Raises ``ConfigError``."""
        room = max(0, (self._memory - self._pinned).main)
        n_ctx = min(memory.embedder_context(room), settings.n_ctx or memory.n_ctx_max)
        if not n_ctx:
            least = gigabytes(memory.embedder(min(EMBEDDER_CTX_LEAST, memory.n_ctx_max)))
            msg = f"{local.name} takes {least} for short texts, and {gigabytes(room)} of memory are at hand"
            raise ConfigError(f"{msg}: choose a smaller model, or free memory")
        needed = Memory(memory.embedder(n_ctx))
        self._promise(needed, pinned=bool(settings.pinned))
        return HostedModel(
            model=local.model_id,
            name=local.name,
            new_engine=partial(make_embedder, spec, local, n_ctx),
            only_embeds=True,
            quantisation=local.manifest.quantisation,
            n_ctx=n_ctx,
            memory=needed,
            pinned=bool(settings.pinned),
            price_in=settings.price_in or 0,
            price_out=settings.price_out or 0,
            session_fee=settings.session_fee or 0,
        )

    async def _gpu_memory(self, local: LocalModel, settings: ModelSettings, n_ctx: int) -> Memory:
        """What a model of ExLlama takes. Raises ``ConfigError`` where the GPUs have not so much."""
        from p2pnode.models.exllama.devices import CHILD_BYTES, gpus, needed_on_gpu
        from p2pnode.models.exllama.memory import ModelSizes, parse_cache

        if not self._memory.gpu:
            found = await gpus()
            self._memory = Memory(self._memory.main, sum(each.free for each in found))
            if self._host is not None:
                self._host.found_gpus(self._memory.gpu)
            self._report("gpus", {"gpus": [asdict(each) for each in found]})
        sizes = await off_the_loop(partial(ModelSizes.of_folder, local.path))
        needed = needed_on_gpu(
            local.name,
            sizes,
            n_ctx=n_ctx,
            slots=settings.slots or 1,
            cache=parse_cache(self._config.kv_cache),
            room=max(0, (self._memory - self._pinned).gpu),
        )
        memory = Memory(CHILD_BYTES, needed)
        self._promise(memory, pinned=bool(settings.pinned))
        return memory

    # ---- what its owner asks for while it runs

    async def _offer(self, command: Mapping[str, Any], report: Report) -> None:
        host, name = self._serving(), str(command["model"])
        own = {item.name: command.get(item.name) for item in fields(ModelSettings)}
        settings = ModelSettings(**own).over(self._config.of_model(name))
        NodeConfig(
            data_dir=self._config.data_dir, per_model={name: settings}
        )  # raises for what is out of bounds
        if (settings.price_in or settings.price_out) and not self._priced:
            msg = (
                f"this node serves free of charge, and {name} would ask {_prices([settings])}: offer it with "
                "--price-in 0 --price-out 0, or start the node with --chain and prices"
            )
            raise ConfigError(msg)
        self._promised = self._memory - host.free
        self._pinned = self._memory - host.room
        model = await self._model(name, settings, report)
        await host.offer(model)
        report("model.offered", _offered_fields(host, model))

    async def _withdraw(self, command: Mapping[str, Any], report: Report) -> None:
        host, name = self._serving(), str(command["model"])
        found = [each for each in host.models if name in (each.name, model_id_text(each.model))]
        if not found:
            served = ", ".join(each.name for each in host.models) or "none"
            raise ConfigError(f"{name} is not served here: the models are {served}")
        host.withdraw(found[0].model)
        report("model.withdrawn", {"name": found[0].name, "reason": "its owner withdrew it"})

    async def _pause(self, _command: Mapping[str, Any], report: Report) -> None:
        self._serving().pause(BY_OWNER)
        for tell in (report, self._report):  # also who looks at the node's own terminal
            tell("paused", {"why": list(self._serving().pauses)})

    async def _resume(self, _command: Mapping[str, Any], report: Report) -> None:
        is_news = self._serving().resume(BY_OWNER)
        why = list(self._serving().pauses)
        if not is_news:
            report("not_paused", {"why": why})
            return
        for tell in (report, self._report):
            tell("resumed", {"why": why})

    async def _blocked(self, _command: Mapping[str, Any], report: Report) -> None:
        if self._node is not None:
            report("blocked", {"count": await self._apply_blocks(self._node)})

    async def _apply_blocks(self, node: Node) -> int:
        """Have the node keep to its owner's block list; how many are on it. Raises ``ConfigError``."""
        blocked = await off_the_loop(BlockList(self._data.blocked).read)
        node.block([each.peer for each in blocked])
        return len(blocked)

    async def _state(self, _command: Mapping[str, Any], report: Report) -> None:
        """What only the running node knows, for ``p2pnode status``."""
        host = self._host
        report(
            "state",
            {
                "paused": list(host.pauses) if host is not None else [],
                "refusals": [asdict(each) for each in host.refusals.last] if host is not None else [],
                "refused": dict(host.refusals.counts) if host is not None else {},
                "recent": host.recent.fields() if host is not None else None,
                "chain_reachable": host is None or host.escrow is None or host.escrow.settler.reachable,
            },
        )

    def _serving(self) -> Host:
        if self._host is None or self._stopping:
            raise ConfigError("this node serves no models: start it without --client-only")
        return self._host

    @property
    def peer_id(self) -> PeerId | None:
        """This node's id; None until the identity is loaded."""
        return self._node.peer_id if self._node is not None else None


def _prices(models: Iterable[ModelSettings]) -> str:
    """What these ask, the same once."""
    asked = (price_text(each.price_in or 0, each.price_out or 0, each.session_fee or 0) for each in models)
    return "; ".join(dict.fromkeys(asked))


def _offered_fields(host: Host, model: HostedModel) -> dict[str, object]:
    return {
        "name": model.name,
        "id": model_id_text(model.model),
        "price_in": model.price_in,
        "price_out": model.price_out,
        "session_fee": model.session_fee,
        "memory": model.memory.main,
        "gpu_memory": model.memory.gpu,
        "pinned": model.pinned,
        "state": host.state_of(model.model),
    }


def _key_in(path: str) -> str:
    """The key in a file; "" where none is named. Raises ``ConfigError``."""
    if not path:
        return ""
    try:
        return user_path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        msg = f"--upstream-key-file: {path} can't be read ({error}): check the path"
        raise ConfigError(msg) from error


def _own_addresses(announce: tuple[str, ...], peer: PeerId) -> tuple[str, ...]:
    """Without the peer id, which must be this node's own where it is given. Raises ``ConfigError``."""
    for each in announce:
        if each != without_peer(each) and split_peer(each)[1] != peer:
            msg = f"{each} is to be announced, and names another peer: this node is {peer}"
            raise ConfigError(msg)
    return tuple(without_peer(each) for each in announce)


def _reach_fields(node: Node) -> dict[str, object]:
    """The node's addresses, its invite (empty while it has no address) and from where it is reached."""
    found, addresses = reachability(node.reach, node.multiaddrs), node.network.announced or node.multiaddrs
    return {
        "multiaddrs": list(node.multiaddrs),
        "invite": make_invite(addresses) if addresses else "",
        "reach": asdict(found),
    }


def grants_of(config: NodeConfig) -> Grants:
    """What a configured host grants with each session."""
    keep_s = 3600 * config.keep_hours
    return Grants(keep_s=keep_s, settle_above=settle_above(config.session_fee) if keep_s else 0)


def filter_of(config: NodeConfig) -> PromptFilter | None:
    """What may refuse prompts of a configured host. Raises ``ConfigError``."""
    return PromptFilter(config.prompt_filter) if config.prompt_filter else None
