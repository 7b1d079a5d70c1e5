"""``p2pnode chain dev|faucet|deploy|status``: the chain that sessions are paid on.

JSON events::

    dev      chain.ready{url, chain_id, profile, state, new, block} funded{address, usdc, ether_wei}
    faucet   funded{address, usdc, ether_wei}
    deploy   chain.offer{chain_id, deployer, contracts, gas, cost_max_wei, treasury, usdc}
             contract{name, address, transaction, gas} chain.deployed{profile}
    status   chain{name, chain_id, block, timestamp, gas_price_wei, contracts, token, treasury, endpoints,
             wallet?, usdc?, earned?, ether_wei?}
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from p2pnode.cli.commands import Commands
from p2pnode.cli.confirm import confirm
from p2pnode.cli.options import (
    ChainOption,
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
from p2pnode.money import ETHER_DIGITS, USDC_DIGITS

if TYPE_CHECKING:
    from p2pnode.chain.deployer import Offer
    from p2pnode.chain.profile import ChainProfile

chain_app = Commands(help="The chain that sessions are paid on.", no_args_is_help=True)
_STATE_SUFFIX = ".sqlite"
_FUND_HELP = "Give this account USDC at the start: 0x…=25 or 0x…=0.5. May be repeated."


@chain_app.command("dev")
def run_dev_chain(
    port: Annotated[int, typer.Option(help="Port on loopback; 0 takes a free one.")] = 8545,
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
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    log_level: LogOption = "error",
) -> None:
    """Run a development chain with everything deployed, until Ctrl-C. Its money is worth nothing.

    It is kept in a file beside the profile, and goes on from there at the next start.
    """
    from p2pnode.cli.running import run_async

    configure(log_level)
    output = Output(as_json=as_json)

    async def run() -> None:
        import trio

        from p2pnode.chain.dev.devchain import open_dev_chain
        from p2pnode.chain.dev.state import forget_state
        from p2pnode.chain.profile import profile_text, write_profile
        from p2pnode.files import refuse_taken, user_path

        gifts = [(*_gift(each, "--fund", USDC_DIGITS), 0) for each in fund or []]
        for each in fund_ether or []:
            address, wei = _gift(each, "--fund-ether", ETHER_DIGITS)
            gifts.append((address, 0, wei))
        path = user_path(profile or _data(data_dir).chain)
        if profile is None:
            _data(data_dir).prepare()
        refuse_taken(path, force=True)  # before anything is made beside it
        state = path.with_suffix(_STATE_SUFFIX)
        if fresh and state.exists():
            await trio.to_thread.run_sync(forget_state, state)
        async with open_dev_chain(port=port, block_time_s=block_time, state=state) as chain:
            made = chain.profile()
            _refuse_another(path, made.chain_id)
            write_profile(path, made)
            for address, usdc, ether_wei in gifts:
                await chain.fund(address, usdc=usdc, ether_wei=ether_wei)
                _told_of_gift(output, address, usdc, ether_wei)
            block = await chain.use(lambda embedded: embedded.height)
            fields = {
                "url": chain.url, "chain_id": chain.chain_id, "profile": str(path), "state": str(state),
                "new": not chain.went_on, "block": block,
            }  # fmt: skip
            since = f"goes on from block {block}" if chain.went_on else "a new chain: nobody has anything yet"
            text = (
                f"development chain on {chain.url}, {since}\n"
                f"kept in {state} (--fresh forgets it), profile {path}:"
            )
            output.event("chain.ready", fields, text=text)
            if not as_json:
                output.result(profile_text(made).rstrip())
            await trio.sleep_forever()

    run_async(run, on_error=output.failed)


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
    from p2pnode.cli.running import run_async

    configure(log_level)
    output = Output(as_json=as_json)

    async def run() -> None:
        from p2pnode.chain.dev.jsonrpc_values import UNKNOWN_METHOD
        from p2pnode.chain.evm.rpc_answers import RpcError
        from p2pnode.errors import ConfigError

        account, usdc = _address(address, "ADDRESS"), units_of(amount, "AMOUNT", USDC_DIGITS)
        ether_wei = units_of(ether, "--ether", ETHER_DIGITS)
        found = _profile(data_dir, chain)
        async with _endpoints(found.rpc_urls, found.chain_id) as endpoints:
            try:
                await endpoints.request("dev_fund", ["0x" + account.hex(), hex(usdc), hex(ether_wei)])
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
    from p2pnode.cli.running import run_async

    configure(log_level)
    output = Output(as_json=as_json)

    async def run() -> None:
        import trio

        from p2pnode.chain.addresses import shown_address
        from p2pnode.chain.deployer import carry_out, quote
        from p2pnode.chain.profile import profile_of, profile_text
        from p2pnode.errors import ConfigError
        from p2pnode.files import refuse_taken, user_path, write_new

        paid_to = _address(treasury, "--treasury")
        token = None if usdc is None else _address(usdc, "--usdc")
        path = user_path(profile_out or _data(data_dir).chain)
        with blaming("--profile-out"):
            refuse_taken(path, force=None)  # before anything is paid for
        wallet = _wallet(data_dir)
        async with _endpoints(tuple(rpc), None) as endpoints:
            offer = await quote(endpoints, deployer=wallet.address, treasury=paid_to, usdc=token)
            # The checks a profile makes of itself, before anything is paid for.
            made = profile_of(offer.plan.addresses, chain_id=offer.chain_id, rpc_urls=tuple(rpc), name=name)
            _show_offer(output, offer, paid_to)
            await confirm(output, "the contracts will be sent, and paid for", yes=yes)
            sign = await trio.to_thread.run_sync(wallet.unlock)

            def created(step: Any, receipt: Any) -> None:
                fields = {
                    "name": step.contract, "address": shown_address(step.address),
                    "transaction": "0x" + receipt.hash.hex(), "gas": receipt.gas_used,
                }  # fmt: skip
                output.event("contract", fields, text=f"{step.contract:<16}{fields['address']}")

            await carry_out(endpoints, offer, sign, created)
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
    from p2pnode.cli.running import run_async

    configure(log_level)
    output = Output(as_json=as_json)

    async def run() -> None:
        from p2pnode.chain.addresses import shown_address
        from p2pnode.chain.profile import ADDRESS_FIELDS
        from p2pnode.chain.verify import verify
        from p2pnode.chain.wallet.wallet import open_wallet
        from p2pnode.node.identity import wallet_files
        from p2pnode.node.money import open_ledger

        found = _profile(data_dir, chain)
        async with _endpoints(found.rpc_urls, found.chain_id) as endpoints:
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
            "token": f"{domains.token.name} (version {domains.token.version})",
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


def _show_offer(output: Output, offer: Offer, treasury: bytes) -> None:
    from p2pnode.chain.addresses import shown_address
    from p2pnode.money import ether_text

    contracts = [step.contract for step in offer.plan.steps]
    addresses = offer.plan.addresses
    fields = {
        "chain_id": offer.chain_id, "deployer": shown_address(offer.deployer), "contracts": contracts,
        "gas": sum(offer.gas), "cost_max_wei": offer.cost_max_wei, "treasury": shown_address(treasury),
        "usdc": shown_address(addresses.usdc),
    }  # fmt: skip
    own_token = "USDC" in contracts
    token = "a development token, worth nothing" if own_token else "the token that is there"
    advice = "" if offer.treasury_has_code else "\n  (a plain account: a multisig contract would be safer)"
    text = (
        f"{len(contracts)} contracts will be created on chain {offer.chain_id}: {', '.join(contracts)}\n"
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
        return address_from(text.strip())
    except ValueError as error:
        raise UsageError(f"{flag}: {error}") from error


def _data(data_dir: Path | None) -> Any:
    from p2pnode.node.datadir import DataDir

    return DataDir(build_config(data_dir).data_dir)


def _profile(data_dir: Path | None, chain: str | None) -> ChainProfile:
    from p2pnode.errors import ConfigError
    from p2pnode.node.money import profile_of_config

    found = profile_of_config(build_config(data_dir, chain=chain))
    if found is None:
        msg = f"no chain is configured: name a profile with --chain, or put one at {_data(data_dir).chain}"
        raise ConfigError(msg)
    return found


def _wallet(data_dir: Path | None) -> Any:
    from p2pnode.chain.wallet.wallet import open_wallet
    from p2pnode.errors import ConfigError
    from p2pnode.node.identity import wallet_files

    data = _data(data_dir)
    wallet = open_wallet(wallet_files(data))
    if wallet is None:
        msg = f"there is no wallet in {data.root}: make one with `p2pnode wallet new`"
        raise ConfigError(msg)
    return wallet


def _endpoints(urls: tuple[str, ...], chain_id: int | None) -> Any:
    """As a context manager: closed at its end."""
    import random
    from contextlib import asynccontextmanager

    import trio

    from p2pnode.chain.evm.rpc import RpcEndpoints

    @asynccontextmanager
    async def opened() -> Any:
        endpoints = RpcEndpoints(urls, chain_id=chain_id, jitter=random.SystemRandom().random)
        try:
            yield endpoints
        finally:
            with trio.CancelScope(shield=True):
                await endpoints.aclose()

    return opened()
