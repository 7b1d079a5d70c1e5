"""How a command shows what it would send to the chain, asks, and sends it; and how orders are told of.

Of each plan: what it does in words, then what the gas costs, then the question, then one line for each
transaction. The wallet is unlocked after the answer, so that who types a passphrase knows what it signs.
``--dry-run`` ends before the question, and signs nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from p2pnode.cli.output import Output
from p2pnode.cli.user_input import confirm

if TYPE_CHECKING:
    from p2pnode.chain.evm.ledger import EvmLedger
    from p2pnode.chain.evm.order_book import SentOrder
    from p2pnode.chain.ledger import Outcome
    from p2pnode.config import NodeConfig
    from p2pnode.payments.orders import Tell
    from p2pnode.payments.plans import Plan, Quote

DryRunOption: TypeAlias = Annotated[
    bool,
    typer.Option("--dry-run", help="Try it on the chain and say what it costs; sign and send nothing."),
]


@dataclass(frozen=True, slots=True)
class LockedWallet:
    """A data dir's wallet as it stands on its chain: it can be looked at, and signs nothing."""

    config: NodeConfig
    ledger: EvmLedger
    account: bytes


@asynccontextmanager
async def locked_wallet(config: NodeConfig) -> AsyncIterator[LockedWallet]:
    """Open it. Raises ``ConfigError`` where there is no chain or no wallet, and ``ChainError``."""
    from p2pnode.errors import ConfigError
    from p2pnode.payments.books import need_profile, open_ledger

    profile, account = need_profile(config), wallet_address(config)
    if account is None:
        msg = f"there is no wallet in {config.data_dir}: make one with `p2pnode wallet new`"
        raise ConfigError(msg)
    async with open_ledger(profile) as ledger:
        yield LockedWallet(config, ledger, account)


def wallet_address(config: NodeConfig) -> bytes | None:
    """The account of a data dir's wallet; None where there is none. It stays locked."""
    from p2pnode.chain.wallet.wallet import open_wallet
    from p2pnode.node.datadir import DataDir
    from p2pnode.node.identity import wallet_files

    wallet = open_wallet(wallet_files(DataDir(config.data_dir)))
    return None if wallet is None else wallet.address


async def carry_out(
    output: Output, wallet: LockedWallet, plan: Plan, *, dry_run: bool, yes: bool
) -> list[Outcome]:
    """Show the plan and its cost, ask, unlock the wallet, and send. Empty for a dry run.

    Raises ``PlanError`` where the chain would refuse it, and what ``confirm`` and the ledger raise.
    """
    from p2pnode.payments.books import books_of
    from p2pnode.payments.plans import quote, require_ether

    found = await quote(wallet.ledger, plan, wallet.account, ether_price=wallet.config.ether_usd)
    _show(output, plan, found, dry_run=dry_run)
    require_ether(found, wallet.account)
    if dry_run:
        return []
    await confirm(output, "this will be signed with the wallet's key, and sent", yes=yes)
    done = []
    async with books_of(wallet.config, sends=True, tell=order_reporter(output)) as books:
        for call in plan.calls:
            outcome = await books.orders.transact(call)
            fields = {
                "call": type(call).__name__,
                "transaction": "0x" + outcome.transaction.hex(),
                "gas": outcome.gas_used,
                "fee_wei": outcome.fee_wei,
            }
            output.event("sent", fields, text=f"done: {fields['transaction']}")
            done.append(outcome)
    return done


def _show(output: Output, plan: Plan, found: Quote, *, dry_run: bool) -> None:
    from p2pnode.money import ether_text, usdc_text
    from p2pnode.payments.plans import about, listed_words

    fields: dict[str, Any] = {
        "calls": [
            {"call": type(call).__name__, "words": words}
            for call, words in zip(plan.calls, plan.words, strict=True)
        ],
        "gas": found.gas,
        "gas_price_wei": found.gas_price_wei,
        "cost_wei": found.cost_wei,
        "cost": found.cost,
        "untried": found.untried,
        "dry_run": dry_run,
    }
    in_usdc = (
        f", about {usdc_text(found.cost)}"
        if found.cost is not None
        else " (in USDC: not known; set ether_usd, the price of an ether, in config.toml)"
    )
    lines = [output.with_data_dir(each) for each in listed_words(plan)]
    lines.append(f"gas: about {found.gas:,} units, {ether_text(about(found.cost_wei))}{in_usdc}")
    if found.untried:
        lines.append(
            "the last step could not be tried yet: this RPC endpoint tries nothing as if the first were done"
        )
    if dry_run:
        lines.append("dry run: the chain would take this; nothing was signed or sent")
    output.event("plan", fields, text="\n".join(lines))


# ---- orders to the chain


def order_reporter(output: Output) -> Tell:
    """A function that says, on a line of its own, that an order was sent and is not seen yet."""

    def tell(order: SentOrder) -> None:
        fields = {
            "transaction": _hash(order), "order": order.order.words, "kind": order.order.kind,
            "nonce": order.nonce, "sent_at": order.sent_at,
        }  # fmt: skip
        output.event("order.waiting", fields, text=waiting_text(order))

    return tell


def waiting_text(order: SentOrder) -> str:
    """An order that was sent and is not seen yet, as a line for people."""
    return f"sent, not seen yet: {_hash(order)} ({order.order.words}); it is not ordered a second time"


def ended_text(order: SentOrder) -> str:
    """What became of an order that an earlier command sent, as a line for people."""
    shown = "0x" + order.transaction.hex() if order.transaction is not None else "no transaction"
    said = {
        "done": f"was carried out ({shown})",
        "failed": f"was refused by the contract ({shown})",
        "displaced": f"was not carried out: another transaction of this wallet has its nonce ({shown})",
        "given up": "was given up",
        None: "is on its way",
    }
    return f"{order.order.words}: {said[order.ending]}"


def _hash(order: SentOrder) -> str:
    return "0x" + order.versions[-1].hash.hex() if order.versions else "?"
