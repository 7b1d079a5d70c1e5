"""``p2pnode chain dev|stop|faucet|deploy|status``: the chain that sessions are paid on.

JSON events::

    dev      chain.ready{url, chain_id, profile, state, new, block} funded{address, usdc, ether_wei, fab}
             with --with-wallets: wallets{host{data_dir, address}, client{…}}
             with --background: background{pid, log}
    stop     stopped{pid}
    faucet   funded{address, usdc, ether_wei, fab}
    deploy   chain.offer{chain_id, deployer, contracts, gas, cost_max_wei, treasury, usdc}
             contract{name, address, transaction, gas} chain.deployed{profile}
    status   chain{name, chain_id, block, timestamp, gas_price_wei, contracts, token, treasury, endpoints,
             wallet?, usdc?, earned?, ether_wei?}
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from p2pnode.cli.dev_chain import run_dev_chain, stop_dev_chain, tell_gift
from p2pnode.cli.options import (
    ChainOption,
    Commands,
    DataDirOption,
    JsonOption,
    LogOption,
    YesOption,
    address_of,
    blaming,
    build_config,
    configure,
    data_of,
    units_of,
)
from p2pnode.cli.output import Output
from p2pnode.cli.user_input import confirm
from p2pnode.money import ETHER_DIGITS, FAB_DIGITS, USDC_DIGITS
from p2pnode.words import one_line

if TYPE_CHECKING:
    from p2pnode.chain.deployer import DeploymentQuote
    from p2pnode.chain.evm.order_book import OrderBook, SentOrder
    from p2pnode.chain.evm.rpc import RpcEndpoints
    from p2pnode.chain.profile import ChainProfile
    from p2pnode.chain.wallet.wallet import Wallet

chain_app = Commands(help="The chain that sessions are paid on.", no_args_is_help=True)
chain_app.command("dev")(run_dev_chain)
chain_app.command("stop")(stop_dev_chain)


@chain_app.command()
def faucet(
    address: Annotated[str, typer.Argument(help="The account (0x…).")],
    amount: Annotated[str, typer.Argument(help="USDC, such as 25 or 0.5.")],
    ether: Annotated[str, typer.Option(help="Ether for gas, such as 1 or 0.05.")] = "0",
    fab: Annotated[str, typer.Option(help="FAB for stake and votes, such as 1000.")] = "0",
    chain: ChainOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    log_level: LogOption = "error",
) -> None:
    """Give an account USDC (and ether and FAB) on a development chain; refused on any other."""
    from p2pnode.cli.runner import run_async

    configure(log_level)
    output = Output(as_json=as_json, data_dir=data_dir)

    async def run() -> None:
        import secrets

        from p2pnode.chain.dev.jsonrpc import UNKNOWN_METHOD
        from p2pnode.chain.evm.rpc_answers import RpcError
        from p2pnode.errors import ConfigError
        from p2pnode.payments.books import need_profile

        account, usdc = address_of(address, "ADDRESS"), units_of(amount, "AMOUNT", USDC_DIGITS)
        ether_wei, fab_units = units_of(ether, "--ether", ETHER_DIGITS), units_of(fab, "--fab", FAB_DIGITS)
        found = need_profile(build_config(data_dir, chain=chain))
        async with _open_endpoints(found.rpc_urls, found.chain_id, found.genesis) as endpoints:
            try:
                # A request whose answer was lost is made again: the chain gives once for one number.
                order = "0x" + secrets.token_hex(16)
                given = ["0x" + account.hex(), hex(usdc), hex(ether_wei), order, hex(fab_units)]
                await endpoints.request("dev_fund", given)
            except RpcError as error:
                if error.code != UNKNOWN_METHOD and "method" not in error.said:
                    raise
                msg = (
                    f"{found.shown_name} is no development chain: nothing is given away there. "
                    "Send the account USDC (and ether for gas) from another one"
                )
                raise ConfigError(msg) from error
        tell_gift(output, account, usdc, ether_wei, fab_units)

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
    output = Output(as_json=as_json, data_dir=data_dir)

    async def run() -> None:
        import time

        from p2pnode.chain.deployer import CREATE, first_block, quote
        from p2pnode.chain.profile import profile_of
        from p2pnode.files import refuse_taken, user_path
        from p2pnode.payments.books import open_journal
        from p2pnode.payments.journal.orders import WalletOnChain
        from p2pnode.payments.orders import JournalOrders

        paid_to = address_of(treasury, "--treasury")
        token = None if usdc is None else address_of(usdc, "--usdc")
        path = user_path(profile_out or data_of(data_dir).chain)
        with blaming("--profile-out"):
            refuse_taken(path, force=None)  # before anything is paid for
        wallet = _wallet(data_dir)
        journal_path = data_of(data_dir).journal
        async with open_journal(journal_path) as journal, _open_endpoints(tuple(rpc), None) as endpoints:
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
            await _create(output, endpoints, offer, wallet, book, lambda: journal.orders(mine, CREATE))
        _write_profile(output, made, path)

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
    output = Output(as_json=as_json, data_dir=data_dir)

    async def run() -> None:
        from p2pnode.chain.addresses import shown_address
        from p2pnode.chain.profile import ADDRESS_FIELDS, verify
        from p2pnode.chain.wallet.wallet import open_wallet
        from p2pnode.node.identity import wallet_files
        from p2pnode.payments.books import need_profile, open_ledger

        found = need_profile(build_config(data_dir, chain=chain))
        async with _open_endpoints(found.rpc_urls, found.chain_id, found.genesis) as endpoints:
            await verify(found, endpoints)
        wallet = open_wallet(wallet_files(data_of(data_dir)))
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
    """Say which creations of an earlier run are on their way, and wait for them."""
    from p2pnode.chain.deployer import wait_mined

    _tell_all(output, orders)
    for each in orders:
        await wait_mined(endpoints, each, book)


async def _create(
    output: Output,
    endpoints: RpcEndpoints,
    offer: DeploymentQuote,
    wallet: Wallet,
    book: OrderBook,
    under_way: Callable[[], list[SentOrder]],
) -> None:
    """Unlock the wallet and create the contracts, one after the other. Interrupted, say what is under way."""
    import trio

    from p2pnode.chain.addresses import shown_address
    from p2pnode.chain.deployer import carry_out
    from p2pnode.node.identity import passphrase_of

    def created(step: Any, receipt: Any) -> None:
        fields = {
            "name": step.contract, "address": shown_address(step.address),
            "transaction": "0x" + receipt.hash.hex(), "gas": receipt.gas_used,
        }  # fmt: skip
        output.event("contract", fields, text=f"{step.contract:<16}{fields['address']}")

    sign = await trio.to_thread.run_sync(wallet.unlock, await passphrase_of(wallet))
    try:
        await carry_out(endpoints, offer, sign, created, book)
    except trio.Cancelled:
        _tell_all(output, under_way())
        raise


def _write_profile(output: Output, profile: ChainProfile, path: Path) -> None:
    from p2pnode.chain.profile import profile_text
    from p2pnode.errors import ConfigError
    from p2pnode.files import write_new

    try:
        write_new(path, profile_text(profile).encode())
    except ConfigError:
        output.result(profile_text(profile).rstrip())  # what was paid for must not be lost with the file
        raise
    output.event("chain.deployed", {"profile": str(path)}, text=f"the profile is {path}")


def _tell_all(output: Output, orders: list[SentOrder]) -> None:
    from p2pnode.cli.plans import order_reporter

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


def _wallet(data_dir: Path | None) -> Any:
    from p2pnode.chain.wallet.wallet import open_wallet
    from p2pnode.errors import ConfigError
    from p2pnode.extras import need
    from p2pnode.node.identity import wallet_files

    need("a wallet", "pay")
    data = data_of(data_dir)
    wallet = open_wallet(wallet_files(data))
    if wallet is None:
        msg = f"there is no wallet in {data.root}: make one with `p2pnode wallet new`"
        raise ConfigError(msg)
    return wallet


def _open_endpoints(urls: tuple[str, ...], chain_id: int | None, genesis: bytes | None = None) -> Any:
    """A context manager of the endpoints at ``urls``; it closes them at its end."""
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
