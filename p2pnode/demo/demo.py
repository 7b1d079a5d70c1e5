"""``p2pnode demo``: a chain, hosts that are paid, nodes that store and a client, all on loopback.

Each is a process of its own and everything runs through the command line a user has. The client knows one
bootstrap multiaddr and has USDC and no ether. It lists the hosts, streams an answer, and dials another host
with discovery off. Then a host is lost to SIGKILL in the middle of an answer: another one goes on with it.
A new machine takes the conversation up from the twelve words alone, and hands the killed host, which is
back, what it is still owed. In the end every unit must be where the tokens say.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import trio

from p2pnode.demo.bills import SESSION_FEE
from p2pnode.demo.losing import QUESTION, Lost, lose_a_host
from p2pnode.demo.machine import Asked, Machine
from p2pnode.demo.nodes import HOSTS, Nodes
from p2pnode.demo.processes import STEP_DEADLINE_S, NodeProcess, Processes, each_event, program
from p2pnode.demo.recovery import resume_elsewhere
from p2pnode.demo.rows import BillRow, MoneyRow, Row, bill_row, row_of
from p2pnode.demo.wallets import Money
from p2pnode.errors import LocalError
from p2pnode.money import usdc_text

_PER_SESSION: Final = 2


class Demo:
    """``say`` prints a line, ``stream`` a piece of an answer. After the run: the tables."""

    _nodes: Nodes

    def __init__(self, say: Callable[[str], None], stream: Callable[[str], None]) -> None:
        self._say, self._stream = say, stream
        self.rows: list[Row] = []
        self.bill: list[BillRow] = []
        self.money: list[MoneyRow] = []

    async def run(self) -> None:
        """All steps. Raises ``LocalError`` when one does not come out as it should."""
        with tempfile.TemporaryDirectory(prefix="p2pnode-demo-") as folder:
            root = Path(folder)
            processes = Processes(root)
            try:
                await self._run(root, processes)
            except LocalError as error:
                if fallen := processes.fallen():  # that may be why
                    raise LocalError(f"{error}\n{fallen}") from error
                raise
            finally:
                with trio.CancelScope(shield=True):
                    await processes.aclose()

    async def _run(self, root: Path, processes: Processes) -> None:
        self._say("starting a development chain; three hosts get ether for gas, the client USDC and no ether")
        money = Money(root, await processes.chain())
        await money.make_wallets(HOSTS)
        client, new = (
            Machine(root / name, f"--chain={money.profile}", self._say, self._stream)
            for name in ("client", "new-machine")
        )
        self._say("starting three hosts of the default model that ask for money, and two nodes that store")
        self._nodes = nodes = Nodes(processes, self._say, client.chain)
        await nodes.start(money.owners)
        first = nodes.hosts[0].multiaddrs[0]
        self._say(f"\nthe client knows one multiaddr: {first}")
        await self._list(client, first)
        await self._count_transactions(money, client, await self._ask(client, first))
        await self._dial_directly(client, nodes.hosts[2])
        lost = await lose_a_host(client, nodes, first)
        self._itemise(lost)
        await nodes.bring_back(lost.killed.peer)
        asked = await resume_elsewhere(
            new,
            money.words_of("client"),
            first,
            conversation=lost.conversation,
            said=[("user", QUESTION), ("assistant", lost.asked.text)],
            paid=client.items,
            owed=lost.killed,
        )
        self._record("resumed elsewhere", asked)
        await self._settle(money, [client, new], lost)

    # ---- the steps

    async def _list(self, client: Machine, bootstrap: str) -> None:
        self._say("\n$ p2pnode hosts --bootstrap …   (found by gossip and DHT, each verified by dialling it)")
        hosts, found = self._nodes.host_of, list[dict[str, Any]]()
        flags = ("--no-mdns", "--json", f"--bootstrap={bootstrap}", client.chain, client.place)
        with trio.move_on_after(STEP_DEADLINE_S):
            while len(found) < len(hosts):
                events: list[dict[str, Any]] = []
                await each_event(program("hosts", *flags), events.append)
                found = [event for event in events if event["event"] == "host"]
        if {event["peer"] for event in found} != set(hosts):
            msg = f"the client found {len(found)} hosts of {len(hosts)}"
            raise LocalError(msg)
        for event in found:
            self._say(
                f"  {event['model']}  host {self._name(event['peer'])}  {event['addresses'][0][:28]}…  "
                f"{event['n_ctx']} tokens, {event['engine']}"
            )

    async def _ask(self, client: Machine, bootstrap: str) -> str:
        question = "What is a peer-to-peer network? Answer in two sentences."
        self._say(f'\n$ p2pnode ask --bootstrap … "{question}"')
        asked = await client.answer("ask", question, "--max-tokens=64", f"--bootstrap={bootstrap}")
        self._record("found and asked", asked)
        return self._name(asked.host)

    async def _count_transactions(self, money: Money, client: Machine, host: str) -> None:
        await money.wait_settled(client)
        sent, paid = await money.transactions(host), await money.transactions("client")
        if (sent, paid) != (_PER_SESSION, 0):
            msg = f"host {host} sent {sent} transactions for one session and the client {paid}"
            raise LocalError(msg)
        self._say(f"  on the chain: {sent} transactions, both sent by host {host}: open and settle")

    async def _dial_directly(self, client: Machine, host: NodeProcess) -> None:
        question = "Name three colours."
        self._say(f'\n$ p2pnode ask --no-discovery --peer <multiaddr of host {host.name}> "{question}"')
        flags = ("--max-tokens=32", "--no-discovery", f"--peer={host.multiaddrs[0]}")
        asked = await client.answer("ask", question, *flags)
        if asked.host != host.peer_id:
            msg = "the answer came from another host than the one that was dialled"
            raise LocalError(msg)
        self._record("dialled directly", asked)

    async def _settle(self, money: Money, machines: list[Machine], lost: Lost) -> None:
        self.money = await money.audit(machines, self._nodes.host_of)
        items = [item for machine in machines for item in machine.items]
        fees = SESSION_FEE * len(items)
        tokens = sum(item.price for item in items) - fees
        treasury = next(row.after for row in self.money if row.who == "treasury")
        killed, cost = self._name(lost.killed.peer), lost.killed.cost
        self._say(
            f"\n{len(items)} sessions, settled to the unit: {usdc_text(fees)} of session fees, "
            f"{usdc_text(tokens)} for tokens:\n{usdc_text(tokens - treasury)} for the hosts, "
            f"{usdc_text(treasury)} for the treasury (a tenth, rounded down)\n"
            f"host {killed}, which was killed, got {usdc_text(cost)}: its fee, and exactly what came of it"
        )

    # ---- the tables

    def _record(self, step: str, asked: Asked) -> None:
        self.rows.append(row_of(step, self._name(asked.host), asked.done))

    def _itemise(self, lost: Lost) -> None:
        killed, other = self._name(lost.killed.peer), self._name(lost.other.peer)
        self._record(f"{killed} killed, {other} went on", lost.asked)
        held = lost.killed.tokens_out
        self.bill = [
            bill_row(killed, f"the prompt; the first {held} tokens", lost.killed),
            bill_row(other, f"prompt and those {held} again; the rest", lost.other),
        ]

    def _name(self, peer: str) -> str:
        return self._nodes.name(peer)
