"""The demo's wallets: what the chain says of them, and accounts that must add up to the unit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import trio

from p2pnode.chain.addresses import address_from
from p2pnode.chain.profile import load_profile
from p2pnode.demo.bills import SessionBill, by_session, dues
from p2pnode.demo.machine import Machine
from p2pnode.demo.processes import events_of
from p2pnode.errors import LocalError
from p2pnode.payments.books import open_ledger

CLIENT_USDC: Final = 5_000_000
SETTLED_WITHIN_S: Final = 120.0
"""Each look takes two commands, which a busy machine needs ten seconds for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MoneyRow:
    """Somebody's money in USDC units; ``due`` by the tokens that the client received."""

    who: str
    before: int
    after: int
    due: int


@dataclass(slots=True)
class Wallets:
    """Wallets by name; ``client`` is the one that pays and has no ether."""

    root: Path
    profile: Path
    accounts: dict[str, str] = field(default_factory=dict)
    owners: dict[str, str] = field(default_factory=dict)
    """By whom each wallet's conversations are counted where they are stored."""

    async def make_wallets(self, hosts: Sequence[str]) -> None:
        """A wallet each, two at a time; ether for the hosts, USDC for the client."""
        limiter = trio.CapacityLimiter(2)

        async def make(name: str, usdc: int, ether: int) -> None:
            async with limiter:
                to = f"--show-phrase-to={self.words_of(name)}"
                made = await events_of("wallet", "new", "--random", to, f"--data-dir={self.root / name}")
                self.accounts[name], self.owners[name] = made[-1]["address"], made[-1]["owner"]
                funded = (self.accounts[name], str(usdc), f"--ether={ether}")
                await events_of("chain", "faucet", *funded, f"--chain={self.profile}")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(make, "client", CLIENT_USDC // 1_000_000, 0)
            for name in hosts:
                nursery.start_soon(make, name, 0, 1)

    def words_of(self, name: str) -> Path:
        """The file with the twelve words of a wallet."""
        return self.root / f"{name}.words"

    async def transactions(self, name: str) -> int:
        """How many transactions an account has sent."""
        async with open_ledger(load_profile(self.profile)) as ledger:
            return int(
                await ledger.rpc.request("eth_getTransactionCount", [self.accounts[name], "latest"]), 16
            )

    async def wait_settled(self, machine: Machine) -> list[dict[str, Any]]:
        """The paid sessions a machine knows of, when all are settled. Raises ``LocalError``."""
        paid: list[dict[str, Any]] = []
        with trio.move_on_after(SETTLED_WITHIN_S):
            while True:
                await machine.run("funds", machine.chain)
                listed = await machine.run("sessions", "list")
                paid = [each for each in listed if each["event"] == "session"]
                if all(each["state"] == "settled" for each in paid):
                    return paid
                await trio.sleep(1)
        waiting = [each["session"][:16] for each in paid if each["state"] != "settled"]
        which = f"sessions {', '.join(waiting)}" if waiting else "the sessions"
        msg = f"{which} were not settled within {SETTLED_WITHIN_S:g} s"
        raise LocalError(msg)

    async def audit(self, machines: Sequence[Machine], host_of: Mapping[str, str]) -> list[MoneyRow]:
        """Who has what, and what each should have by the bills. Raises ``LocalError`` for a unit too few.

        Each machine's journal must agree with the bills of all of them, in every session it knows of.
        """
        bills = by_session(item for machine in machines for item in machine.items)
        known: set[str] = set()
        for machine in machines:
            for each in await self.wait_settled(machine):
                known.add(each["session"])
                _check_session(machine, each, bills.get(each["session"]))
        if known != bills.keys():
            msg = f"{len(bills)} sessions were billed, the journals know of {len(known)}"
            raise LocalError(msg)
        rows = [await self._row(who, units) for who, units in dues(bills.values(), host_of).items()]
        for row in rows:
            if row.after - row.before != row.due:
                msg = f"{row.who} has {row.after - row.before} units more than before; {row.due} were due"
                raise LocalError(msg)
        return rows

    async def _row(self, who: str, due: int) -> MoneyRow:
        async with open_ledger(load_profile(self.profile)) as ledger:
            if who == "client":
                account = await ledger.balances(address_from(self.accounts["client"]))
                if account.ether:
                    msg = "the client has ether"
                    raise LocalError(msg)
                return MoneyRow(who=who, before=CLIENT_USDC, after=account.usdc, due=due)
            address = ledger.domains.treasury if who == "treasury" else address_from(self.accounts[who])
            earned = (await ledger.balances(address)).earned
        return MoneyRow(who=who if who == "treasury" else f"host {who}", before=0, after=earned, due=due)


def _check_session(machine: Machine, listed: Mapping[str, Any], bill: SessionBill | None) -> None:
    """What the chain recorded is what the bills of all its answers said. Raises ``LocalError``."""
    session = listed["session"]
    if bill is None:
        msg = f"session {session[:16]} is in {machine.data.name}'s journal and on no bill"
        raise LocalError(msg)
    if listed["amount"] != bill.price:
        msg = (
            f"session {session[:16]} was settled at {listed['amount']}; the client was billed {bill.price} "
            f"for {bill.billed_in} tokens in and {bill.tokens_out} out"
        )
        raise LocalError(msg)
