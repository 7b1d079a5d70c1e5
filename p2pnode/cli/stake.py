"""``p2pnode stake …`` and ``unstake``: put in, show and take out what a host can lose, or take it for a lie.

JSON events::

    bond, keys, unbond, rebond, withdraw, slash
              plan{calls, gas, gas_price_wei, cost_wei, cost, untried, dry_run}
              sent{call, transaction, gas, fee_wei} for each transaction
              order.waiting{…} as funds; then stake{…} as status, or slashed{…}
    status    stake{wallet, peer, receipt_key, stake, unbonding, unbonds_at, fab, staked, here}: FAB in its
              smallest unit; `here` says whether it is registered for the keys of this data dir
    slash     slashed{host, amount, reward, transaction}
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from p2pnode.cli.options import (
    ChainOption,
    Commands,
    DataDirOption,
    JsonOption,
    LogOption,
    YesOption,
    address_of,
    build_config,
    configure,
    units_of,
)
from p2pnode.cli.output import Output
from p2pnode.cli.plans import DryRunOption, carry_out, locked_wallet, wallet_address
from p2pnode.money import FAB_DIGITS

if TYPE_CHECKING:
    from collections.abc import Callable

    from p2pnode.chain.ledger import RegistryLedger
    from p2pnode.config import NodeConfig
    from p2pnode.payments.plans import Plan
    from p2pnode.payments.stakes import HostKeys, StakeStanding

    PlanOf: TypeAlias = Callable[[StakeStanding, NodeConfig], Plan]

stake_app = Commands(
    default="bond",
    help="A host's stake in FAB: `p2pnode stake AMOUNT` stakes, `p2pnode unstake` takes it out again.",
    no_args_is_help=True,
)
MoreOption = Annotated[bool, typer.Option("--more", help="Add to the stake that is there.")]


@stake_app.command()
def bond(
    amount: Annotated[str, typer.Argument(help="FAB, such as 1000 or 1500.5.")],
    more: MoreOption = False,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    chain: ChainOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    log_level: LogOption = "error",
) -> None:
    """Stake FAB for this data dir's host: `p2pnode stake 1000`. Clients then prefer it; a lie costs it."""
    from p2pnode.payments.stakes import bond as plan_bond

    def checked() -> PlanOf:
        units = units_of(amount, "AMOUNT", FAB_DIGITS)
        return lambda found, config: plan_bond(found, _keys(config), units, more=more)

    _order(checked, dry_run, yes, chain, data_dir, as_json, log_level)


@stake_app.command()
def keys(
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    chain: ChainOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    log_level: LogOption = "error",
) -> None:
    """Name this data dir's keys for the stake that is there, as after a move to a new data dir."""
    from p2pnode.payments.stakes import change_keys

    _order(
        lambda: lambda found, config: change_keys(found, _keys(config)),
        dry_run,
        yes,
        chain,
        data_dir,
        as_json,
        log_level,
    )


@stake_app.command()
def unbond(
    amount: Annotated[str | None, typer.Argument(help="FAB; all of the stake without it.")] = None,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    chain: ChainOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    log_level: LogOption = "error",
) -> None:
    """Begin to take stake out (also `p2pnode unstake`); seven days later `stake withdraw` brings it."""
    from p2pnode.payments.stakes import unbond as plan_unbond

    def checked() -> PlanOf:
        units = None if amount is None else units_of(amount, "AMOUNT", FAB_DIGITS)
        return lambda found, _config: plan_unbond(found, units)

    _order(checked, dry_run, yes, chain, data_dir, as_json, log_level)


@stake_app.command()
def rebond(
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    chain: ChainOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    log_level: LogOption = "error",
) -> None:
    """Make all that unbonds stake again."""
    from p2pnode.payments.stakes import rebond as plan_rebond

    _order(
        lambda: lambda found, _config: plan_rebond(found),
        dry_run,
        yes,
        chain,
        data_dir,
        as_json,
        log_level,
    )


@stake_app.command()
def withdraw(
    to: Annotated[
        str | None, typer.Option("--to", help="The address (0x…) that gets it; this wallet's own without it.")
    ] = None,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    chain: ChainOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    log_level: LogOption = "error",
) -> None:
    """Bring what has unbonded back to the wallet, or to any address."""
    from p2pnode.payments.stakes import withdraw as plan_withdraw

    def checked() -> PlanOf:
        other = None if to is None else address_of(to, "--to")
        return lambda found, _config: plan_withdraw(found, other or found.account)

    _order(checked, dry_run, yes, chain, data_dir, as_json, log_level)


@stake_app.command()
def status(
    who: Annotated[
        str | None,
        typer.Argument(metavar="PEER", help="A wallet (0x…) or a peer id; this data dir's own without it."),
    ] = None,
    chain: ChainOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    log_level: LogOption = "error",
) -> None:
    """Show what a host has at stake, what unbonds, and when that is free. Needs no wallet for others."""
    from p2pnode.cli.runner import run_async

    configure(log_level)
    output = Output(as_json=as_json, data_dir=data_dir)

    async def run() -> None:
        from p2pnode.payments.books import need_profile, open_ledger
        from p2pnode.payments.stakes import standing

        wanted, config = _who(who), build_config(data_dir, chain=chain)
        own = _own_wallet(config) if wanted is None else b""
        async with open_ledger(need_profile(config)) as ledger:
            wallets = (own,) if wanted is None else await _wallets_of(ledger, *wanted)
            for wallet in wallets:
                show_standing(output, await standing(ledger, wallet), config)

    run_async(run, on_error=output.failed)


@stake_app.command()
def slash(
    evidence: Annotated[
        Path, typer.Argument(metavar="FILE", help="Evidence, as `p2pnode sessions evidence` names it.")
    ],
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    chain: ChainOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
    log_level: LogOption = "error",
) -> None:
    """Show two receipts of a host for one place to the chain: it loses its stake, a tenth is yours."""
    from p2pnode.cli.runner import run_async

    configure(log_level)
    output = Output(as_json=as_json, data_dir=data_dir)

    async def run() -> None:
        from p2pnode.chain.addresses import shown_address
        from p2pnode.chain.ledger import Slashed
        from p2pnode.cli.options import blaming
        from p2pnode.files import user_path
        from p2pnode.money import fab_text
        from p2pnode.node.datadir import DataDir
        from p2pnode.payments.books import open_journal
        from p2pnode.payments.evidence import note_slashed, read_evidence, slash_plan
        from p2pnode.payments.stakes import standing

        with blaming("FILE"):
            found = read_evidence(user_path(evidence))
        config = build_config(data_dir, chain=chain)
        async with locked_wallet(config) as wallet:
            host = await standing(wallet.ledger, found.terms.host)
            plan = slash_plan(found, wallet.ledger.domains.market, host, wallet.account)
            for outcome in await carry_out(output, wallet, plan, dry_run=dry_run, yes=yes):
                async with open_journal(DataDir(config.data_dir).journal) as journal:
                    await note_slashed(journal, found, outcome)
                for event in outcome.events:
                    if isinstance(event, Slashed):
                        fields = {
                            "host": shown_address(event.host),
                            "amount": event.amount,
                            "reward": event.reward,
                            "transaction": "0x" + outcome.transaction.hex(),
                        }
                        text = (
                            f"host {fields['host']} lost its stake of {fab_text(event.amount)}; "
                            f"{fab_text(event.reward)} of it are yours"
                        )
                        output.event("slashed", fields, text=text)

    run_async(run, on_error=output.failed)


# ---- parts


def _order(
    checked: Callable[[], PlanOf],
    dry_run: bool,
    yes: bool,
    chain: str | None,
    data_dir: Path | None,
    as_json: bool,
    log_level: str,
) -> None:
    """Carry out the plan for how this wallet stands, and show how it stands then.

    ``checked`` checks what was typed, before a wallet is unlocked, and returns what makes the plan.
    """
    from p2pnode.cli.runner import run_async

    configure(log_level)
    output = Output(as_json=as_json, data_dir=data_dir)

    async def run() -> None:
        from p2pnode.payments.stakes import standing

        plan_of, config = checked(), build_config(data_dir, chain=chain)
        async with locked_wallet(config) as wallet:
            made = plan_of(await standing(wallet.ledger, wallet.account), config)
            if await carry_out(output, wallet, made, dry_run=dry_run, yes=yes):
                show_standing(output, await standing(wallet.ledger, wallet.account), config)

    run_async(run, on_error=output.failed)


def _keys(config: NodeConfig) -> HostKeys:
    """The keys of a data dir's host, which are made where there are none yet."""
    from p2pnode.node.datadir import DataDir
    from p2pnode.node.identity import host_keys
    from p2pnode.payments.stakes import HostKeys

    peer_key, receipt_key = host_keys(DataDir(config.data_dir))
    return HostKeys(peer_key=peer_key, receipt_key=receipt_key)


def _own_wallet(config: NodeConfig) -> bytes:
    from p2pnode.errors import ConfigError

    address = wallet_address(config)
    if address is None:
        msg = (
            f"there is no wallet in {config.data_dir}: name a host (its wallet 0x…, or its peer id), or make "
            "a wallet with `p2pnode wallet new`"
        )
        raise ConfigError(msg)
    return address


def _who(typed: str | None) -> tuple[str, bytes] | None:
    """A wallet's address, or a peer's key, after its name. Raises ``UsageError``."""
    from p2pnode.errors import ProtocolError, UsageError
    from p2pnode.ids import host_name
    from p2pnode.protocols.crypto import public_key_of

    if typed is None:
        return None
    try:
        name = host_name(typed)
        return name, address_of(typed, "PEER") if name.startswith("0x") else public_key_of(name)
    except (ValueError, ProtocolError) as error:
        raise UsageError(f"PEER: {error}") from error


async def _wallets_of(ledger: RegistryLedger, name: str, key: bytes) -> tuple[bytes, ...]:
    """The wallet that was meant, or those that registered the peer that was."""
    from p2pnode.errors import ConfigError

    if name.startswith("0x"):
        return (key,)
    found = await ledger.registrants(key)
    if not found:
        msg = (
            f"no wallet has registered the peer {name}: it has no stake. A host that moved its stake to "
            "another peer is found by its wallet (`p2pnode hosts --json` shows that)"
        )
        raise ConfigError(msg)
    return found


def show_standing(output: Output, found: StakeStanding, config: NodeConfig) -> None:
    """Print how a wallet stands in the registry of hosts."""
    from p2pnode.chain.addresses import shown_address
    from p2pnode.money import fab_text
    from p2pnode.node.datadir import DataDir
    from p2pnode.node.identity import known_host_keys
    from p2pnode.payments.plans import day_text
    from p2pnode.protocols.crypto import peer_id_of
    from p2pnode.words import span

    record, own = found.record, known_host_keys(DataDir(config.data_dir))
    registered = found.is_registered
    here = registered and own == (record.peer_key, record.receipt_key)
    fields: dict[str, Any] = {
        "wallet": shown_address(found.account),
        "peer": peer_id_of(record.peer_key) if registered else None,
        "receipt_key": shown_address(record.receipt_key) if registered else None,
        "stake": record.stake,
        "unbonding": record.unbonding,
        "unbonds_at": record.unbonds_at or None,
        "fab": found.fab.balance,
        "staked": record.stake > 0,
        "here": here,
    }
    if output.as_json:
        output.event("stake", fields)
        return
    peer = f"{fields['peer']}{' (this data dir)' if here else ''}" if registered else "none registered"
    output.result(f"wallet     {fields['wallet']}, with {fab_text(found.fab.balance)}")
    output.result(f"peer       {peer}")
    output.result(f"at stake   {fab_text(record.stake)}")
    if record.unbonding:
        left = record.unbonds_at - found.now
        when = f"free on {day_text(record.unbonds_at)}, in {span(left)}" if left > 0 else "can be withdrawn"
        output.result(f"unbonding  {fab_text(record.unbonding)}: {when}")
