"""``p2pnode chain dev|stop|faucet|deploy|status``: the chain that sessions are paid on.

JSON events::

    dev      chain.ready{url, chain_id, profile, state, new, block} funded{address, usdc, ether_wei}
             with --with-wallets: wallets{host{data_dir, address}, client{…}}
             with --background: background{pid, log}
    stop     stopped{pid}
    faucet   funded{address, usdc, ether_wei}
    deploy   chain.offer{chain_id, deployer, contracts, gas, cost_max_wei, treasury, usdc}
             contract{name, address, transaction, gas} chain.deployed{profile}
    status   chain{name, chain_id, block, timestamp, gas_price_wei, contracts, token, treasury, endpoints,
             wallet?, usdc?, earned?, ether_wei?}
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from p2pnode.cli.background import BackgroundOption, ReadyFileOption, run_in_background, stop_holder
from p2pnode.cli.dev_chain import DEV_FOLDER, DevFolder
from p2pnode.cli.options import (
    ChainOption,
    Commands,
    DataDirOption,
    JsonOption,
    LogOption,
    YesOption,
    blaming,
    build_config,
    configure,
    units_of,
)
from p2pnode.cli.output import Output
from p2pnode.cli.user_input import confirm
from p2pnode.money import ETHER_DIGITS, USDC_DIGITS
from p2pnode.words import one_line

if TYPE_CHECKING:
    from p2pnode.chain.deployer import DeploymentQuote
    from p2pnode.chain.dev.devchain import DevChain
    from p2pnode.chain.evm.order_book import OrderBook, SentOrder
    from p2pnode.chain.evm.rpc import RpcEndpoints
    from p2pnode.chain.profile import ChainProfile

chain_app = Commands(help="The chain that sessions are paid on.", no_args_is_help=True)
_STATE_SUFFIX = ".sqlite"
_PORT = 8545
_HOST_WEI = 10**18
_CLIENT_USDC = 20_000_000
_FUND_HELP = "Give this account USDC at the start: 0x…=25 or 0x…=0.5. May be repeated."


@chain_app.command("dev")
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
    output = Output(as_json=as_json)

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
    """Until cancelled."""
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
            _told_of_gift(output, address, usdc, ether_wei)
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


@chain_app.command("stop")
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
    output = Output(as_json=as_json)

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
    found: Path = DevFolder(DEV_FOLDER).profile if with_wallets else _data(data_dir).chain
    return user_path(found)


def _make_parent(path: Path, data_dir: Path | None, *, ours: bool) -> None:
    from p2pnode.files import not_writable

    if ours and path == _data(data_dir).chain.expanduser().absolute():
        _data(data_dir).prepare()
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


@chain_app.command()
def faucet(
    address: Annotated[str, typer.Argument(help="The account (0x…).")],
    amount: Annotated[str, typer.Argument(help="USDC, such as 25 or 0.5.")],
    ether: Annotated[str, typer.Option(help="Ether for gas, such as 1 or 0.05.")] = "0",
    chain: ChainOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    log_level: LogOption = "error",
) -> None:
    """Give an account USDC (and ether) on a development chain; refused on any other."""
    from p2pnode.cli.runner import run_async

    configure(log_level)
    output = Output(as_json=as_json)

    async def run() -> None:
        import secrets

        from p2pnode.chain.dev.jsonrpc import UNKNOWN_METHOD
        from p2pnode.chain.evm.rpc_answers import RpcError
        from p2pnode.errors import ConfigError

        account, usdc = _address(address, "ADDRESS"), units_of(amount, "AMOUNT", USDC_DIGITS)
        ether_wei = units_of(ether, "--ether", ETHER_DIGITS)
        found = _profile(data_dir, chain)
        async with _endpoints(found.rpc_urls, found.chain_id, found.genesis) as endpoints:
            try:
                # A request whose answer was lost is made again: the chain gives once for one number.
                order = "0x" + secrets.token_hex(16)
                given = ["0x" + account.hex(), hex(usdc), hex(ether_wei), order]
                await endpoints.request("dev_fund", given)
            except RpcError as error:
                if error.code != UNKNOWN_METHOD and "method" not in error.said:
                    raise
                msg = (
                    f"{found.shown_name} is no development chain: nothing is given away there. "
                    "Send the account USDC (and ether for gas) from another one"
                )
                raise ConfigError(msg) from error
        _told_of_gift(output, account, usdc, ether_wei)

    run_async(run, on_error=output.failed)


@chain_app.command()
def deploy(
    rpc: Annotated[list[str], typer.Option("--rpc", help="URL of a node. May be repeated.")],
    treasury: Annotated[
        str, typer.Option(help="Who gets a tenth of every settlement (0x…), for ever: a multisig contract.")
    ],
    usdc: Annotated[
        str | None,
        typer.Option(help="The token's address; without it a development token is deployed as well."),
    ] = None,
    profile_out: Annotated[
        Path | None,
        typer.Option("--profile-out", help="Write the profile here; without it chain.toml in the data dir."),
    ] = None,
    name: Annotated[str, typer.Option(help="What the profile calls the chain.")] = "",
    yes: YesOption = False,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    log_level: LogOption = "error",
) -> None:
    """Deploy all contracts from this wallet and write their profile. Shows the cost and asks first."""
    from p2pnode.cli.runner import run_async

    configure(log_level)
    output = Output(as_json=as_json)

    async def run() -> None:
        import time

        import trio

        from p2pnode.chain.addresses import shown_address
        from p2pnode.chain.deployer import CREATE, carry_out, first_block, quote
        from p2pnode.chain.profile import profile_of, profile_text
        from p2pnode.errors import ConfigError
        from p2pnode.files import refuse_taken, user_path, write_new
        from p2pnode.node.identity import passphrase_of
        from p2pnode.payments.books import open_journal
        from p2pnode.payments.journal.orders import WalletOnChain
        from p2pnode.payments.orders import JournalOrders

        paid_to = _address(treasury, "--treasury")
        token = None if usdc is None else _address(usdc, "--usdc")
        path = user_path(profile_out or _data(data_dir).chain)
        with blaming("--profile-out"):
            refuse_taken(path, force=None)  # before anything is paid for
        wallet = _wallet(data_dir)
        journal_path = _data(data_dir).journal
        async with open_journal(journal_path) as journal, _endpoints(tuple(rpc), None) as endpoints:
            chain_id = int(await endpoints.request("eth_chainId", []), 16)
            genesis = await first_block(endpoints)
            book = JournalOrders(journal, time.time, genesis)
            mine = WalletOnChain(chain_id, wallet.address, genesis)
            await _earlier_creations(output, endpoints, journal.orders(mine, CREATE), book)
            offer = await quote(
                endpoints, deployer=wallet.address, treasury=paid_to, usdc=token,
                created=journal.orders_done(mine, CREATE),
            )  # fmt: skip
            # The checks a profile makes of itself, before anything is paid for.
            made = profile_of(offer.plan.addresses, chain_id=offer.chain_id, rpc_urls=tuple(rpc), name=name)
            _show_offer(output, offer, paid_to)
            await confirm(output, "the contracts will be sent, and paid for", yes=yes)
            sign = await trio.to_thread.run_sync(wallet.unlock, await passphrase_of(wallet))

            def created(step: Any, receipt: Any) -> None:
                fields = {
                    "name": step.contract, "address": shown_address(step.address),
                    "transaction": "0x" + receipt.hash.hex(), "gas": receipt.gas_used,
                }  # fmt: skip
                output.event("contract", fields, text=f"{step.contract:<16}{fields['address']}")

            try:
                await carry_out(endpoints, offer, sign, created, book)
            except trio.Cancelled:
                _tell_all(output, journal.orders(mine, CREATE))
                raise
        try:
            write_new(path, profile_text(made).encode())
        except ConfigError:
            output.result(profile_text(made).rstrip())  # what was paid for must not be lost with the file
            raise
        output.event("chain.deployed", {"profile": str(path)}, text=f"the profile is {path}")

    run_async(run, on_error=output.failed)


@chain_app.command("status")
def chain_status(
    chain: ChainOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    log_level: LogOption = "error",
) -> None:
    """Check a profile against its chain; show its head, gas price, contracts and this wallet's balances."""
    from p2pnode.cli.runner import run_async

    configure(log_level)
    output = Output(as_json=as_json)

    async def run() -> None:
        from p2pnode.chain.addresses import shown_address
        from p2pnode.chain.profile import ADDRESS_FIELDS, verify
        from p2pnode.chain.wallet.wallet import open_wallet
        from p2pnode.node.identity import wallet_files
        from p2pnode.payments.books import open_ledger

        found = _profile(data_dir, chain)
        async with _endpoints(found.rpc_urls, found.chain_id, found.genesis) as endpoints:
            await verify(found, endpoints)
        wallet = open_wallet(wallet_files(_data(data_dir)))
        async with open_ledger(found) as ledger:
            head = await ledger.head()
            held = None if wallet is None else await ledger.balances(wallet.address)
            domains, endpoint_list = ledger.domains, ledger.status()
        fields: dict[str, Any] = {
            "name": found.shown_name, "chain_id": found.chain_id, "block": head.block,
            "timestamp": head.timestamp, "gas_price_wei": head.gas_price_wei,
            "contracts": {each: shown_address(getattr(found, each)) for each in ADDRESS_FIELDS},
            "token": one_line(f"{domains.token.name} (version {domains.token.version})"),
            "treasury": shown_address(domains.treasury),
            "endpoints": [
                {"endpoint": each.endpoint, "error": each.last_error if each.resting else None}
                for each in endpoint_list
            ],
        }  # fmt: skip
        if wallet is not None and held is not None:
            fields |= {
                "wallet": wallet.account, "usdc": held.usdc, "earned": held.earned, "ether_wei": held.ether,
            }  # fmt: skip
        if as_json:
            output.event("chain", fields)
        else:
            output.result("\n".join(_status_lines(fields)))

    run_async(run, on_error=output.failed)


def _status_lines(fields: dict[str, Any]) -> list[str]:
    from datetime import UTC, datetime

    from p2pnode.money import ether_text, gwei_text, usdc_text

    at = datetime.fromtimestamp(fields["timestamp"], UTC)
    lines = [
        f"chain            {fields['name']} (id {fields['chain_id']}), the profile is right",
        f"head             block {fields['block']}, {at:%Y-%m-%d %H:%M:%S} UTC",
        f"gas price        {gwei_text(fields['gas_price_wei'])}",
        f"token            {fields['token']}",
        f"treasury         {fields['treasury']}",
        *(f"{name:<17}{address}" for name, address in fields["contracts"].items()),
        *(
            f"rpc              {each['endpoint']}: {each['error'] or 'answers'}"
            for each in fields["endpoints"]
        ),
    ]
    if "wallet" in fields:
        lines += [
            f"wallet           {fields['wallet']}",
            f"  in hand        {usdc_text(fields['usdc'])}, {ether_text(fields['ether_wei'])}",
            f"  withdrawable   {usdc_text(fields['earned'])}",
        ]
    return lines


async def _earlier_creations(
    output: Output, endpoints: RpcEndpoints, orders: list[SentOrder], book: OrderBook
) -> None:
    """Say which are on their way, and wait for them."""
    from p2pnode.chain.deployer import wait_mined

    _tell_all(output, orders)
    for each in orders:
        await wait_mined(endpoints, each, book)


def _tell_all(output: Output, orders: list[SentOrder]) -> None:
    from p2pnode.cli.funds import order_reporter

    for each in orders:
        order_reporter(output)(each)


def _show_offer(output: Output, offer: DeploymentQuote, treasury: bytes) -> None:
    from p2pnode.chain.addresses import shown_address
    from p2pnode.money import ether_text

    contracts = [step.contract for step in offer.plan.steps[offer.done :]]
    gas = sum(offer.gas[offer.done :])
    addresses = offer.plan.addresses
    fields = {
        "chain_id": offer.chain_id, "deployer": shown_address(offer.deployer), "contracts": contracts,
        "gas": gas, "cost_max_wei": offer.cost_max_wei, "treasury": shown_address(treasury),
        "usdc": shown_address(addresses.usdc),
    }  # fmt: skip
    own_token = any(step.contract == "USDC" for step in offer.plan.steps)
    token = "a development token, worth nothing" if own_token else "the token that is there"
    advice = "" if offer.treasury_has_code else "\n  (a plain account: a multisig contract would be safer)"
    goes_on = f"an earlier run created {offer.done} contracts already; it goes on\n" if offer.done else ""
    text = (
        f"{goes_on}{len(contracts)} contracts will be created on chain {offer.chain_id}: "
        f"{', '.join(contracts)}\n"
        f"from {fields['deployer']}, which has {ether_text(offer.ether)}\n"
        f"for about {fields['gas']} gas, at most {ether_text(offer.cost_max_wei)}\n"
        f"paid in {fields['usdc']}: {token}\n"
        f"a tenth of every settlement goes to {fields['treasury']}{advice}\n"
        "nobody can change or stop them afterwards"
    )
    output.event("chain.offer", fields, text=text)


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


def _told_of_gift(output: Output, address: bytes, usdc: int, ether_wei: int) -> None:
    from p2pnode.chain.addresses import shown_address
    from p2pnode.money import ether_text, usdc_text

    fields = {"address": shown_address(address), "usdc": usdc, "ether_wei": ether_wei}
    given = [usdc_text(usdc)] * (usdc > 0) + [ether_text(ether_wei)] * (ether_wei > 0)
    output.event("funded", fields, text=f"{fields['address']} was given {' and '.join(given) or 'nothing'}")


def _gift(text: str, flag: str, digits: int) -> tuple[bytes, int]:
    address, _, amount = text.partition("=")
    return _address(address, flag), units_of(amount, flag, digits)


def _address(text: str, flag: str) -> bytes:
    from p2pnode.chain.addresses import address_from
    from p2pnode.errors import UsageError

    try:
        return address_from(text)
    except ValueError as error:
        raise UsageError(f"{flag}: {error}") from error


def _data(data_dir: Path | None) -> Any:
    from p2pnode.node.datadir import DataDir

    return DataDir(build_config(data_dir).data_dir)


def _profile(data_dir: Path | None, chain: str | None) -> ChainProfile:
    from p2pnode.errors import ConfigError
    from p2pnode.payments.books import profile_of_config

    found = profile_of_config(build_config(data_dir, chain=chain))
    if found is None:
        msg = f"no chain is configured: name a profile with --chain, or put one at {_data(data_dir).chain}"
        raise ConfigError(msg)
    return found


def _wallet(data_dir: Path | None) -> Any:
    from p2pnode.chain.wallet.wallet import open_wallet
    from p2pnode.errors import ConfigError
    from p2pnode.extras import need
    from p2pnode.node.identity import wallet_files

    need("a wallet", "pay")
    data = _data(data_dir)
    wallet = open_wallet(wallet_files(data))
    if wallet is None:
        msg = f"there is no wallet in {data.root}: make one with `p2pnode wallet new`"
        raise ConfigError(msg)
    return wallet


def _endpoints(urls: tuple[str, ...], chain_id: int | None, genesis: bytes | None = None) -> Any:
    """As a context manager: closed at its end."""
    import random
    from contextlib import asynccontextmanager

    import trio

    from p2pnode.chain.evm.rpc import RpcEndpoints
    from p2pnode.extras import need

    need("a chain", "pay")

    @asynccontextmanager
    async def opened() -> Any:
        jitter = random.SystemRandom().random
        endpoints = RpcEndpoints(urls, chain_id=chain_id, genesis=genesis, jitter=jitter)
        try:
            yield endpoints
        finally:
            with trio.CancelScope(shield=True):
                await endpoints.aclose()

    return opened()
