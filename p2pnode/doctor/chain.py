"""Checks of money: the chain profile, the endpoints behind it, the wallet, and what waits in the journal."""

from __future__ import annotations

import time
from typing import Final

import trio

from p2pnode.chain.ledger import ChainMadeAnewError, UnavailableError
from p2pnode.config import NodeConfig
from p2pnode.doctor.finding import Finding, ok, problem, warning
from p2pnode.errors import ChainError, ConfigError, StorageError
from p2pnode.money import ether_text, fab_text, usdc_text
from p2pnode.node.datadir import DataDir
from p2pnode.node.identity import known_host_keys
from p2pnode.payments.books import books_of, profile_of_config, profile_path
from p2pnode.payments.funds import of_market, why_unsettled
from p2pnode.payments.gas_budget import GasBudget
from p2pnode.payments.journal.journal import HostedSession, Journal
from p2pnode.protocols.typed_data import market_domain

CHAIN_DEADLINE_S: Final = 15.0
_SETTLEMENTS: Final = 10
_SETTLE_GAS: Final = 100_000


class ChainChecks:
    """Checks of a data dir that pays or is paid. Where it does neither, there is nothing to find."""

    def __init__(self, config: NodeConfig) -> None:
        self._config = config
        self._data = DataDir(config.data_dir)

    async def chain(self) -> Finding:
        """Whether an RPC endpoint answers, and its chain is the one of the profile."""
        path = profile_path(self._config)
        if path is None:
            if self._config.asks_money:
                remedy = f"name a chain profile in {self._data.config} (chain = …), or leave the prices out"
                return problem(
                    "chain", "no_chain", "prices are set and there is no chain to be paid on", remedy
                )
            return ok("chain", "none is configured: sessions are free")
        try:
            with trio.fail_after(CHAIN_DEADLINE_S):
                return await self._look()
        except ChainMadeAnewError as error:
            detail, _, remedy = str(error).partition(". ")
            return problem("chain", "chain_made_anew", detail, remedy)
        except UnavailableError as error:
            remedy = "check the network, or add another endpoint to rpc_urls; open sessions go on meanwhile"
            return problem("chain", "chain_unreachable", str(error), remedy)
        except trio.TooSlowError:
            detail = f"no answer within {CHAIN_DEADLINE_S:g} s"
            return problem("chain", "chain_unreachable", detail, "add a faster endpoint to rpc_urls")
        except (ConfigError, ChainError) as error:
            return problem("chain", "chain_wrong", str(error), f"correct {path}")

    async def _look(self) -> Finding:
        if not self._data.wallet.exists():
            remedy = "make one with `p2pnode wallet new`"
            return warning("chain", "no_wallet", "a chain is configured and there is no wallet", remedy)
        async with books_of(self._config) as books:
            account, head = await books.ledger.balances(books.wallet.address), await books.ledger.head()
            record = await books.ledger.node(books.wallet.address)
        is_host = self._config.asks_money
        needed = _SETTLEMENTS * _SETTLE_GAS * head.gas_price_wei
        if is_host and account.ether < needed:
            detail = (
                f"{ether_text(account.ether)} for gas; {_SETTLEMENTS} settlements take {ether_text(needed)}"
            )
            return warning("chain", "gas_low", detail, f"send ether to {books.wallet.account}")
        budget = GasBudget(ether_price=self._config.ether_usd, day_max=self._config.gas_day_max)
        fee, price = self._config.session_fee, head.gas_price_wei
        if is_host and (why := budget.why_not_open(fee=fee, gas_price_wei=price, spent_day_wei=0)):
            remedy = "raise session_fee, or wait: no paid session is opened meanwhile, open ones go on"
            return warning("chain", "gas_dear", why, remedy)
        own = known_host_keys(self._data)
        if record.stake and own is not None and own != (record.peer_key, record.receipt_key):
            detail = f"{fab_text(record.stake)} are at stake for other keys than those of this data dir"
            return warning(
                "chain", "stake_elsewhere", detail, "name its keys with `p2pnode stake keys`: until then "
                "nobody counts this host as staked"
            )  # fmt: skip
        staked = f"; {fab_text(record.stake)} at stake" if record.stake else ""
        unknown = "; ether_usd is not set in config.toml, so gas is not held against the session fee"
        missing = unknown if is_host and not budget.known else ""
        return ok("chain", f"block {head.block}; {usdc_text(account.usdc)} in the wallet{staked}{missing}")

    async def journal(self) -> Finding:
        """Whether the journal is whole, and no session waits longer than it should."""
        if not self._data.journal.exists():
            return ok("journal", "no paid session yet")
        try:
            journal = Journal.open(self._data.journal)
            try:
                await trio.to_thread.run_sync(journal.verify)
                now = int(time.time())
                over = self._of_this_chain(journal.hosted("over"))
                waiting = [r for r in over if why_unsettled(r, now - 600) is not None]
            finally:
                journal.close()
        except StorageError as error:
            return problem("journal", "journal_damaged", str(error), "restore it from your backup")
        if waiting:
            detail = f"{len(waiting)} sessions should have been settled: see `p2pnode funds`"
            return warning("journal", "unsettled", detail, "start the host with `p2pnode join`")
        return ok("journal", "whole, and nothing waits")

    def _of_this_chain(self, records: list[HostedSession]) -> list[HostedSession]:
        """Leave out sessions of another chain, or of one that was made anew: they can't be settled."""
        profile = profile_of_config(self._config)
        if profile is None:
            return records
        return of_market(records, market_domain(profile.chain_id, profile.job_marketplace))
