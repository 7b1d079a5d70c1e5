"""``p2pnode chain dev|stop``: a development chain, and the folder of ``--with-wallets``.

The folder holds the chain, and data dirs of a host and of a client. Each of the two has a wallet. They are
strangers to each other but for the client's first peer, and neither is looked for on the local network: what
is tried here disturbs nobody. What is there already stays as it is.
"""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from p2pnode.cli.background import BackgroundOption, ReadyFileOption, run_in_background, stop_holder
from p2pnode.cli.options import (
    DataDirOption,
    JsonOption,
    LogOption,
    address_of,
    configure,
    data_of,
    units_of,
)
from p2pnode.cli.output import Output
from p2pnode.money import ETHER_DIGITS, USDC_DIGITS

if TYPE_CHECKING:
    from p2pnode.chain.dev.devchain import DevChain
    from p2pnode.node.datadir import DataDir

DEV_FOLDER: Final = Path("p2pnode-dev")
"""In the current folder, so that its name is short to type."""
_LISTEN: Final = "/ip4/127.0.0.1/tcp/{port}"
_USUAL_PORT: Final = 4011
_HOST_CONFIG: Final = """\
# Made by `p2pnode chain dev --with-wallets`. Prices are USDC per million tokens, the fee is USDC a session.
price_in = 0.50
price_out = 1.50
session_fee = 0.01
listen = ["{listen}"]
mdns = false
"""
_CLIENT_CONFIG: Final = """\
# Made by `p2pnode chain dev --with-wallets`.
bootstrap = ["{listen}/p2p/{peer}"]
mdns = false
"""
_STATE_SUFFIX: Final = ".sqlite"
_PORT: Final = 8545
_HOST_WEI: Final = 10**18
_CLIENT_USDC: Final = 20_000_000
_FUND_HELP: Final = "Give this account USDC at the start: 0x…=25 or 0x…=0.5. May be repeated."


def run_dev_chain(
    with_wallets: Annotated[
        bool,
        typer.Option(
            "--with-wallets",
            help=f"Make a folder {DEV_FOLDER} with the chain and funded data dirs of a host and a client.",
        ),
    ] = False,
    background: BackgroundOption = False,
    port: Annotated[
        int | None, typer.Option(help="Port on loopback; 0 takes a free one. 8545 if that is free.")
    ] = None,
    profile: Annotated[
        Path | None,
        typer.Option("--profile", help="Write the profile here; without it chain.toml in the data dir."),
    ] = None,
    fund: Annotated[list[str] | None, typer.Option("--fund", help=_FUND_HELP)] = None,
    fund_ether: Annotated[
        list[str] | None, typer.Option("--fund-ether", help="Likewise, ether for gas: 0x…=1.")
    ] = None,
    block_time: Annotated[
        int | None, typer.Option("--block-time", min=1, help="Mine an empty block every so many seconds.")
    ] = None,
    fresh: Annotated[
        bool,
        typer.Option("--fresh", help="Forget the chain that is kept beside the profile: begin a new one."),
    ] = False,
    ready_file: ReadyFileOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    log_level: LogOption = "error",
) -> None:
    """Run a development chain with everything deployed, until Ctrl-C. Its money is worth nothing.

    It is kept in a file beside the profile, and goes on from there at the next start.
    """
    from p2pnode.cli.runner import run_async

    configure(log_level)
    output = Output(as_json=as_json, data_dir=data_dir)

    async def run() -> None:
        import trio

        from p2pnode.chain.dev.saved_state import forget_state
        from p2pnode.extras import need
        from p2pnode.files import refuse_taken
        from p2pnode.node.datadir import ReadyFile

        need("a development chain", "dev-chain")
        gifts = [(*_gift(each, "--fund", USDC_DIGITS), 0) for each in fund or []]
        for each in fund_ether or []:
            address, wei = _gift(each, "--fund-ether", ETHER_DIGITS)
            gifts.append((address, 0, wei))
        path = _dev_profile(profile, data_dir, with_wallets=with_wallets)
        _make_parent(path, data_dir, ours=profile is None)
        refuse_taken(path, force=True)  # before anything is made beside it
        if ready_file is not None:
            ReadyFile(ready_file).check()
        if background:
            ready = ready_file or path.with_suffix(".ready")
            log, given = path.with_suffix(".log"), ready_file is not None
            await run_in_background(output, log, ready, given=given)
            return
        folder = DevFolder(path.parent) if with_wallets else None
        if folder is not None:
            await trio.to_thread.run_sync(folder.make)
        state = path.with_suffix(_STATE_SUFFIX)
        if fresh and state.exists():
            await trio.to_thread.run_sync(forget_state, state)
        options = {
            "port": _usual_port() if port is None else port,
            "block_time_s": block_time,
            "state": state,
        }
        await _serve_dev_chain(output, path, gifts, folder, ready_file, options)

    run_async(run, on_error=output.failed)


async def _serve_dev_chain(
    output: Output,
    path: Path,
    gifts: list[tuple[bytes, int, int]],
    folder: DevFolder | None,
    ready_file: Path | None,
    options: dict[str, Any],
) -> None:
    """Serve the chain until cancelled."""
    import os

    import trio

    from p2pnode.chain.dev.devchain import open_dev_chain
    from p2pnode.chain.profile import profile_text, write_profile
    from p2pnode.node.datadir import ReadyFile

    ready = None if ready_file is None else ReadyFile(ready_file)
    async with open_dev_chain(**options) as chain:
        made = chain.profile()
        _refuse_another(path, made.chain_id)
        write_profile(path, made)
        for address, usdc, ether_wei in gifts:
            await chain.fund(address, usdc=usdc, ether_wei=ether_wei)
            tell_gift(output, address, usdc, ether_wei)
        block, state = await chain.use(lambda embedded: embedded.height), options["state"]
        fields = {
            "url": chain.url, "chain_id": chain.chain_id, "profile": str(path), "state": str(state),
            "new": not chain.went_on, "block": block,
        }  # fmt: skip
        since = f"goes on from block {block}" if chain.went_on else "a new chain: nobody has anything yet"
        text = f"development chain on {chain.url}, {since}\nkept in {state} (--fresh forgets it)"
        output.event("chain.ready", fields, text=text)
        if folder is not None:
            await _fund_folder(output, folder, chain)
        elif not output.as_json:
            output.event("", text=f"profile {path}:")
            output.result(profile_text(made).rstrip())
        try:
            if ready is not None:
                ready.write_content(json.dumps({"pid": os.getpid(), "url": chain.url}).encode())
            await trio.sleep_forever()
        finally:
            if ready is not None:
                ready.remove()


def stop_dev_chain(
    profile: Annotated[
        Path | None, typer.Option("--profile", help="The profile that the chain wrote.")
    ] = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    log_level: LogOption = "error",
) -> None:
    """End a development chain; it goes on where it was when it is started again."""
    from p2pnode.cli.runner import run_async

    configure(log_level)
    output = Output(as_json=as_json, data_dir=data_dir)

    async def run() -> None:
        from p2pnode.chain.dev.saved_state import lock_of

        here = profile is None and data_dir is None and DEV_FOLDER.is_dir()
        path = _dev_profile(profile, data_dir, with_wallets=here)
        lock = lock_of(path.with_suffix(_STATE_SUFFIX))
        await stop_holder(output, lock, f"no development chain runs on {path}")

    run_async(run, on_error=output.failed)


def _dev_profile(profile: Path | None, data_dir: Path | None, *, with_wallets: bool) -> Path:
    from p2pnode.files import user_path

    if profile is not None:
        return user_path(profile)
    found: Path = DevFolder(DEV_FOLDER).profile if with_wallets else data_of(data_dir).chain
    return user_path(found)


def _make_parent(path: Path, data_dir: Path | None, *, ours: bool) -> None:
    from p2pnode.files import not_writable, user_path

    if ours and path == user_path(data_of(data_dir).chain):
        data_of(data_dir).prepare()
        return
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise not_writable(path.parent, error) from error


def _usual_port() -> int:
    from p2pnode.net.transports import is_free

    return _PORT if is_free(f"/ip4/127.0.0.1/tcp/{_PORT}") else 0


async def _fund_folder(output: Output, folder: DevFolder, chain: DevChain) -> None:
    """Give each wallet what it needs where it has nothing, and say what to type next."""
    from p2pnode.chain.addresses import shown_address
    from p2pnode.chain.profile import write_profile
    from p2pnode.config import load_config
    from p2pnode.money import ether_text, price_text, usdc_text

    host, client = folder.wallet_address(folder.host), folder.wallet_address(folder.client)
    held = await chain.use(lambda embedded: embedded.ether(host))
    if not held:
        await chain.fund(host, ether_wei=_HOST_WEI)
    usdc = await chain.use(lambda _: int(chain.deployment.usdc.read("balanceOf", client)))
    if not usdc:
        await chain.fund(client, usdc=_CLIENT_USDC)
    for data in (folder.host, folder.client):
        write_profile(data.chain, chain.profile())
    asked = load_config(folder.host.config, {})
    price = price_text(asked.price_in, asked.price_out, asked.session_fee)
    fields = {
        "host": {"data_dir": str(folder.host.root), "address": shown_address(host)},
        "client": {"data_dir": str(folder.client.root), "address": shown_address(client)},
    }
    shown = folder.shown
    text = (
        f"host    {shown / 'host'}: {ether_text(held or _HOST_WEI)} for gas; asks {price}\n"
        f"client  {shown / 'client'}: {usdc_text(usdc or _CLIENT_USDC)}\n"
        f"next    p2pnode join --background --data-dir {shown / 'host'}\n"
        f'        p2pnode ask --data-dir {shown / "client"} "What is a token?"'
    )
    output.event("wallets", fields, text=text)


def _refuse_another(path: Path, chain_id: int) -> None:
    """A profile of a real chain must not be lost to a development chain."""
    from p2pnode.chain.profile import load_profile
    from p2pnode.errors import ConfigError

    if not path.exists():
        return
    try:
        held = load_profile(path).chain_id
    except ConfigError:
        held = 0
    if held != chain_id:
        msg = f"{path} is no profile of a development chain: name another file with --profile"
        raise ConfigError(msg)


def tell_gift(output: Output, address: bytes, usdc: int, ether_wei: int, fab: int = 0) -> None:
    from p2pnode.chain.addresses import shown_address
    from p2pnode.money import ether_text, fab_text, usdc_text

    fields = {"address": shown_address(address), "usdc": usdc, "ether_wei": ether_wei, "fab": fab}
    given = [usdc_text(usdc)] * (usdc > 0) + [ether_text(ether_wei)] * (ether_wei > 0)
    given += [fab_text(fab)] * (fab > 0)
    output.event("funded", fields, text=f"{fields['address']} was given {' and '.join(given) or 'nothing'}")


def _gift(text: str, flag: str, digits: int) -> tuple[bytes, int]:
    address, _, amount = text.partition("=")
    return address_of(address, flag), units_of(amount, flag, digits)


# ---- the folder


@dataclass(frozen=True, slots=True)
class DevFolder:
    """The folder of ``--with-wallets``. Nothing is made until :meth:`make`."""

    root: Path

    @property
    def profile(self) -> Path:
        return self.root / "chain.toml"

    @property
    def host(self) -> DataDir:
        from p2pnode.node.datadir import DataDir

        return DataDir(self.root / "host")

    @property
    def client(self) -> DataDir:
        from p2pnode.node.datadir import DataDir

        return DataDir(self.root / "client")

    def make(self) -> None:
        """Make what is missing. Blocks for some seconds. Raises ``ConfigError``, ``ChainError``."""
        from p2pnode.files import write_atomic
        from p2pnode.node.keys import PeerKey, load_or_create_seed
        from p2pnode.storage.key_file import ensure_storage_key

        for data in (self.host, self.client):
            data.prepare()
            self.wallet_address(data)
            ensure_storage_key(data)
        if not self.host.config.exists():
            listen = _LISTEN.format(port=_free_port())
            peer = PeerKey(load_or_create_seed(self.host.peer_key)).peer_id
            write_atomic(self.client.config, _CLIENT_CONFIG.format(listen=listen, peer=peer).encode())
            write_atomic(self.host.config, _HOST_CONFIG.format(listen=listen).encode())

    @property
    def shown(self) -> Path:
        """The folder's path, relative to the current folder where that is possible."""
        here = Path.cwd()
        return self.root.relative_to(here) if self.root.is_relative_to(here) else self.root

    @staticmethod
    def wallet_address(data: DataDir) -> bytes:
        """The address of a data dir's wallet, which is made where there is none."""
        from p2pnode.chain.wallet.wallet import open_or_make_wallet
        from p2pnode.node.identity import wallet_files

        return open_or_make_wallet(wallet_files(data)).address


def _free_port() -> int:
    from p2pnode.net.transports import is_free

    if is_free(_LISTEN.format(port=_USUAL_PORT)):
        return _USUAL_PORT
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
