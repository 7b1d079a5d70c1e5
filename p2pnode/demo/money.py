"""The demo's money: wallets, what the chain says of them, and a bill that must add up to the unit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import trio

from p2pnode.chain.addresses import address_from
from p2pnode.chain.profile import load_profile
from p2pnode.demo.processes import events_of
from p2pnode.errors import LocalError
from p2pnode.node.money import open_ledger

PRICE_IN: Final = 1_000_000
PRICE_OUT: Final = 2_000_000
SESSION_FEE: Final = 10_000
"""USDC units: 1 and 2 USDC per million tokens, 1 cent a session."""
CLIENT_USDC: Final = 5_000_000
SETTLED_WITHIN_S: Final = 30.0
PRICES: Final = (f"--price-in={PRICE_IN}", f"--price-out={PRICE_OUT}", f"--session-fee={SESSION_FEE}")
_TREASURY_SHARE: Final = 10


def bill_of(tokens_in: int, tokens_out: int) -> int:
    """What a session of these counts costs, in USDC units."""
    return SESSION_FEE + -(-(tokens_in * PRICE_IN + tokens_out * PRICE_OUT) // 1_000_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class MoneyRow:
    """One line of the table: USDC units."""

    who: str
    before: int
    after: int
    due: int
    """What it should have gained or paid, by the tokens that the client received."""


@dataclass(slots=True)
class Money:
    """Wallets by name; ``client`` is the one that pays and has no ether."""

    root: Path
    profile: Path
    accounts: dict[str, str] = field(default_factory=dict)

    async def make_wallets(self, hosts: Sequence[str]) -> None:
        """A wallet each; ether for the hosts, USDC for the client."""
        for name in (*hosts, "client"):
            phrase = self.root / f"{name}.words"
            made = await events_of(
                "wallet", "new", "--random", f"--show-phrase-to={phrase}", f"--data-dir={self.root / name}"
            )
            self.accounts[name] = made[-1]["address"]
        for name in hosts:
            await self._give(name, "0", "1")
        await self._give("client", str(CLIENT_USDC // 1_000_000), "0")

    async def _give(self, name: str, usdc: str, ether: str) -> None:
        await events_of(
            "chain", "faucet", self.accounts[name], usdc, f"--ether={ether}", f"--chain={self.profile}"
        )

    async def transactions(self, name: str) -> int:
        """How many an account has sent."""
        async with open_ledger(load_profile(self.profile)) as ledger:
            return int(
                await ledger.rpc.request("eth_getTransactionCount", [self.accounts[name], "latest"]), 16
            )

    async def wait_settled(self) -> list[dict[str, Any]]:
        """The client's sessions, when all that were opened are settled. Raises ``LocalError``."""
        sessions: list[dict[str, Any]] = []
        with trio.move_on_after(SETTLED_WITHIN_S):
            while True:
                await events_of("funds", f"--data-dir={self.root / 'client'}", f"--chain={self.profile}")
                sessions = await events_of("sessions", "list", f"--data-dir={self.root / 'client'}")
                if all(each["state"] == "settled" for each in sessions):
                    return sessions
                await trio.sleep(1)
        waiting = [each["session"][:16] for each in sessions if each["state"] != "settled"]
        msg = f"sessions {', '.join(waiting)} were not settled within {SETTLED_WITHIN_S:g} s"
        raise LocalError(msg)

    async def audit(self, sessions: Sequence[dict[str, Any]], host_of: dict[str, str]) -> list[MoneyRow]:
        """Who has what, and what each should have. Raises ``LocalError`` when a unit is missing."""
        due: dict[str, int] = dict.fromkeys((*host_of.values(), "treasury", "client"), 0)
        for each in sessions:
            data = f"--data-dir={self.root / 'client'}"
            (shown,) = await events_of("sessions", "show", each["session"], data)
            bill = bill_of(shown["tokens_in"], shown["tokens_out"])
            if each["amount"] != bill:
                msg = (
                    f"session {each['session'][:16]} was settled at {each['amount']}, its tokens cost {bill}"
                )
                raise LocalError(msg)
            treasury = (bill - SESSION_FEE) // _TREASURY_SHARE
            due[host_of[each["peer"]]] += bill - treasury
            due["treasury"] += treasury
            due["client"] -= bill
        rows = [await self._row(who, units) for who, units in due.items()]
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
