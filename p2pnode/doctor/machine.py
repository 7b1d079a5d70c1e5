"""Checks of this machine: the data dir, keys, disk, ports, the model and its engine. No network."""

from __future__ import annotations

import os
import shutil
import stat
from contextlib import suppress
from typing import Final

import trio

from p2pnode.chain.wallet.passphrase import PassphraseFile
from p2pnode.chain.wallet.wallet import open_wallet
from p2pnode.config import DEFAULT_MODEL, NodeConfig
from p2pnode.doctor.finding import Finding, ok, problem, warning
from p2pnode.errors import ChainError, ConfigError, EngineError
from p2pnode.extras import why_missing
from p2pnode.files import OTHERS, read_text_or_none
from p2pnode.host.join import LISTEN_DEFAULT
from p2pnode.models.catalogue import Catalogue
from p2pnode.models.catalogue_entry import CatalogueEntry
from p2pnode.models.engine import GenerateRequest
from p2pnode.models.engines import EngineSpec, make_engine
from p2pnode.models.manifest import SCRIPTED
from p2pnode.models.pull.pull import check_weights, locate
from p2pnode.net.address_policy import check_announced, interface_addresses, is_unspecified, own_addresses
from p2pnode.net.multiaddrs import check_address, without_peer
from p2pnode.net.transports import is_free
from p2pnode.node.datadir import DataDir, RunningNode
from p2pnode.node.identity import wallet_files
from p2pnode.node.keys import PeerKey
from p2pnode.node.reachability import reach_code, reachability
from p2pnode.protocols.inference.messages import ChatMessage, PromptBody, SamplingParams
from p2pnode.words import count_of

DISK_MARGIN_BYTES: Final = 1 << 30
ENGINE_DEADLINE_S: Final = 60.0


def peer_key(data: DataDir) -> PeerKey | None:
    """The peer key of a data dir; None where there is none or it is damaged."""
    try:
        text = read_text_or_none(data.peer_key)
        return PeerKey(bytes.fromhex(text.strip())) if text is not None else None
    except (ConfigError, ValueError):
        return None


class MachineChecks:
    """Checks that need nobody else. ``running`` is the node on this data dir, if there is one."""

    def __init__(self, config: NodeConfig, running: RunningNode | None) -> None:
        self._config, self._running = config, running
        self._data = DataDir(config.data_dir)
        self._model_name = (config.models or (DEFAULT_MODEL,))[0]

    async def data_dir(self) -> Finding:
        """Whether the data dir can be written, and is no copy."""
        root = self._data.root
        if not root.exists():
            return ok("data dir", f"{root} will be made at the first start")
        if not root.is_dir() or not os.access(root, os.W_OK | os.X_OK):
            remedy = "fix its owner and permissions, or choose another with --data-dir"
            return problem("data dir", "data_dir_not_writable", f"{root} can't be written", remedy)
        try:
            self._data.look_at_place()
        except ConfigError as error:
            remedy = (
                "`p2pnode join --moved`, once, if no other node runs with these keys; "
                "a data dir of its own (--data-dir) if the original is still in use"
            )
            detail = str(error).split(", and ", maxsplit=1)[0]
            return problem("data dir", "data_dir_copied", detail, remedy)
        running = f", a node runs on it (pid {self._running.pid})" if self._running is not None else ""
        return ok("data dir", f"{root}{running}")

    async def keys(self) -> Finding:
        """Whether the keys are whole, and readable by nobody else."""
        present = [path for path in self._data.secrets if path.exists()]
        if not present:
            return ok("keys", "none yet: the first `p2pnode join` makes them")
        exposed = [path for path in present if stat.S_IMODE(path.stat().st_mode) & OTHERS]
        if exposed:
            names = ", ".join(path.name for path in exposed)
            remedy = f"chmod 600 {' '.join(str(path) for path in exposed)}"
            return problem("keys", "keys_exposed", f"{names} can be read by others", remedy)
        key = peer_key(self._data)
        if key is None and self._data.peer_key.exists():
            remedy = "restore it from your backup, or move it away to get a new identity"
            return problem("keys", "keys_damaged", "peer.key does not hold a key", remedy)
        try:
            wallet = open_wallet(wallet_files(self._data))
        except ChainError as error:
            return problem("keys", "keys_damaged", str(error), "restore it from your backup")
        source = None if wallet is None else wallet.source
        if isinstance(source, PassphraseFile) and not source.path.exists():
            detail = f"{self._data.wallet.name} is there and its passphrase is not"
            return problem("keys", "wallet_locked", detail, f"restore {source.path} from your backup")
        # A client's data dir has a wallet and no peer id.
        who = "the first `p2pnode join` makes a peer id" if key is None else f"peer id {key.peer_id}"
        return ok("keys", f"{', '.join(path.name for path in present)}: readable by you only; {who}")

    async def disk(self) -> Finding:
        """Whether there is room for a model."""
        where = self._data.root
        while not where.exists():
            where = where.parent
        free = shutil.disk_usage(where).free
        if free < DISK_MARGIN_BYTES:
            remedy = "free some space, or choose another disk with --data-dir"
            return problem("disk", "disk_low", f"{free / 1e6:.0f} MB free at {where}", remedy)
        return ok("disk", f"{free / 1e9:.1f} GB free")

    async def ports(self) -> Finding:
        """Whether a node can listen on the configured addresses."""
        if self._running is not None:
            addresses = count_of(len(self._running.multiaddrs), "address", "addresses")
            return ok("ports", f"the running node listens on {addresses}")
        wanted = self._config.listen or LISTEN_DEFAULT
        taken = [address for address in wanted if not is_free(address)]
        detail = f"another program uses {', '.join(taken)}"
        if taken and self._config.listen:
            return problem("ports", "port_taken", detail, "stop it, or listen elsewhere with --listen")
        if taken:
            remedy = "stop it to keep the usual port, or choose one with --listen"
            return warning("ports", "port_taken", f"{detail}; `join` will take any free port", remedy)
        return ok("ports", f"{count_of(len(wanted), 'address', 'addresses')} free")

    async def reach(self) -> Finding:
        """Whether others can reach the node that runs, or one that would be started now."""
        running = self._running
        addresses, code = (running.multiaddrs, running.reach) if running is not None else self._would_have()
        if not code:
            return ok("reach", "not known: the running node is of an earlier version")
        found = reachability(code, addresses)
        match found.code:
            case "global" | "this_machine_only":
                return ok("reach", found.detail)
            case code:
                return warning("reach", code, found.detail, found.remedy)

    def _would_have(self) -> tuple[tuple[str, ...], str]:
        listen = self._config.listen or LISTEN_DEFAULT
        for each in listen:
            check_address(each)
        for each in self._config.announce:
            check_announced(without_peer(each))
        found = own_addresses(listen, self._config.announce, interface_addresses)
        on_all = any(is_unspecified(each) for each in listen)
        return found.every, reach_code(found.announced, found.every, listens_on_all=on_all)

    def _entry(self) -> CatalogueEntry:
        return Catalogue.of(self._data.models).find(self._model_name)

    async def model(self) -> Finding:
        """Whether the model's weights are here, and right."""
        if self._model_name == SCRIPTED:
            return ok("model", "the scripted one needs no weights")
        pull = f"p2pnode models pull {self._model_name}"
        entry = self._entry()
        try:
            model = await locate(entry, self._data.models)  # what the next `join` would load
        except ConfigError as error:
            return problem("model", "model_corrupt", str(error), "name another file with --model")
        if model is None:
            detail = "the model is not on this machine yet"
            return warning(
                "model", "model_missing", detail, f"`{pull}` or the next `p2pnode join` fetches it"
            )
        try:
            await check_weights(model, "Fetch it again")
        except (ConfigError, OSError) as error:
            return problem("model", "model_corrupt", str(error), pull)
        return ok("model", f"{model.name}: the weights are right")

    async def engine(self) -> Finding:
        """Whether the engine loads the model and answers."""
        if missing := why_missing("serving", "host"):
            return ok("engine", f"not tried: {missing}")
        entry = None if self._model_name == SCRIPTED else self._entry()
        model = None
        if entry is not None:
            with suppress(ConfigError):  # a file that is no model: said above
                model = await locate(entry, self._data.models)
        if model is None:
            return ok("engine", "not tried: there are no weights to load")
        engine = make_engine(EngineSpec(n_ctx=512, slots=1, threads=1), model)
        try:
            with trio.fail_after(ENGINE_DEADLINE_S):
                info = await engine.load()
                body = PromptBody(messages=(ChatMessage.of("user", "Hello"),), seed=bytes(16))
                prompt = await engine.prompt(body)
                sampling = SamplingParams(tokens_max=4)
                request = GenerateRequest(
                    prompt_ids=prompt.ids, sampling=sampling, seed=0, cache_key=b"doctor"
                )
                started = trio.current_time()
                async with engine.generate(request) as events:
                    async for _ in events:
                        pass
                took = trio.current_time() - started
        except (EngineError, trio.TooSlowError) as error:
            remedy = "see the log with --log-level debug; check memory and --threads"
            return problem("engine", "engine_failed", str(error) or "no answer in time", remedy)
        finally:
            with trio.move_on_after(5, shield=True):
                await engine.aclose()
        return ok("engine", f"{info.engine} answered in {took:.1f} s")
