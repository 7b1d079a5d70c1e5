"""``p2pnode demo``: a chain, hosts that are paid, nodes that store and a client, all on loopback.

Each is a process of its own and everything runs through the command line a user has. The client knows one
bootstrap multiaddr and has USDC and no ether. It lists the hosts, streams an answer, and dials another host
with discovery off. Then a host is lost to SIGKILL in the middle of an answer: another one goes on with it.
A new machine takes the conversation up from the twelve words alone, and hands the killed host, which is
back, what it is still owed. In the end every unit must be where the tokens say.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import trio

from p2pnode.demo.bills import SESSION_FEE, Item, check_failover
from p2pnode.demo.machine import Asked, Machine, kept_on
from p2pnode.demo.nodes import HOSTS, Nodes
from p2pnode.demo.processes import STEP_DEADLINE_S, NodeProcess, Processes, each_event, program
from p2pnode.demo.recovery import resume_elsewhere
from p2pnode.demo.wallets import MoneyRow, Wallets
from p2pnode.errors import LocalError
from p2pnode.money import usdc_text

_PER_SESSION: Final = 2
QUESTION: Final = "Describe in detail how a letter travels from the sender to the receiver."
_KILLED_AFTER_PIECES: Final = 5
"""Some 20 to 40 tokens; twice as many where the machine is busy."""
_TOKENS_MAX: Final = 160
_SHORTEST_S: Final = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerRow:
    """An answer, as a row of the table."""

    step: str
    host: str
    tokens_in: int
    tokens_out: int
    ttft_s: float
    tokens_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BillRow:
    """A host's item on the bill of one answer; ``cost`` in USDC units."""

    host: str
    what: str
    tokens_in: int
    tokens_out: int
    cost: int


class Demo:
    """``say`` prints a line, ``stream`` a piece of an answer. After the run: the tables."""

    _nodes: Nodes

    def __init__(self, say: Callable[[str], None], stream: Callable[[str], None]) -> None:
        self._say, self._stream = say, stream
        self.rows: list[AnswerRow] = []
        self.bill: list[BillRow] = []
        self.money: list[MoneyRow] = []

    async def run(self) -> None:
        """Run all steps. Raises ``LocalError`` when one fails."""
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
        wallets = Wallets(root, await processes.chain())
        await wallets.make_wallets(HOSTS)
        client, new = (
            Machine(root / name, f"--chain={wallets.profile}", self._say, self._stream)
            for name in ("client", "new-machine")
        )
        self._say("starting three hosts of the default model that ask for money, and two nodes that store")
        self._nodes = nodes = Nodes(processes, self._say, client.chain)
        await nodes.start(wallets.owners)
        first = nodes.hosts[0].multiaddrs[0]
        self._say(f"\nthe client knows one multiaddr: {first}")
        await self._list(client, first)
        await self._count_transactions(wallets, client, await self._ask(client, first))
        await self._dial_directly(client, nodes.hosts[2])
        lost = await lose_a_host(client, nodes, first)
        self._itemise(lost)
        await nodes.bring_back(lost.killed.peer)
        asked = await resume_elsewhere(
            new,
            wallets.words_of("client"),
            first,
            conversation=lost.conversation,
            said=[("user", QUESTION), ("assistant", lost.asked.text)],
            paid=client.items,
            owed=lost.killed,
        )
        self._record("resumed elsewhere", asked)
        await self._settle(wallets, [client, new], lost)

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

    async def _count_transactions(self, wallets: Wallets, client: Machine, host: str) -> None:
        await wallets.wait_settled(client)
        sent, paid = await wallets.transactions(host), await wallets.transactions("client")
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

    async def _settle(self, wallets: Wallets, machines: list[Machine], lost: Lost) -> None:
        self.money = await wallets.audit(machines, self._nodes.host_of)
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
        self.rows.append(_answer_row(step, self._name(asked.host), asked.done))

    def _itemise(self, lost: Lost) -> None:
        killed, other = self._name(lost.killed.peer), self._name(lost.other.peer)
        self._record(f"{killed} killed, {other} went on", lost.asked)
        held = lost.killed.tokens_out
        self.bill = [
            _bill_row(killed, f"the prompt; the first {held} tokens", lost.killed),
            _bill_row(other, f"prompt and those {held} again; the rest", lost.other),
        ]

    def _name(self, peer: str) -> str:
        return self._nodes.name(peer)


@dataclass(frozen=True, slots=True)
class Lost:
    """The answer, the item of the host that was killed, and that of the host which went on."""

    asked: Asked
    killed: Item
    other: Item

    @property
    def conversation(self) -> str:
        """The conversation's id."""
        return str(self.asked.events["conversation.kept"][-1]["conversation"])


async def lose_a_host(client: Machine, nodes: Nodes, bootstrap: str) -> Lost:
    """Ask, and kill the host that the client chose. Raises ``LocalError`` where no other host goes on."""
    client.say(f'\n$ p2pnode ask --bootstrap … --store … "{QUESTION}"')
    client.say("  (nodes D and E are to keep it; its host is killed in the middle of the answer)")
    killed: list[NodeProcess] = []

    def on_event(_event: dict[str, Any], asked: Asked) -> None:
        if asked.pieces >= _KILLED_AFTER_PIECES and not killed:
            killed.append(nodes.kill(asked.host))

    stores = [f"--store={node.multiaddrs[0]}" for node in nodes.stores]
    flags = (f"--max-tokens={_TOKENS_MAX}", f"--bootstrap={bootstrap}", *stores)
    asked = await client.answer("ask", QUESTION, *flags, on_event=on_event)
    if not killed or "failover" not in asked.events:
        msg = "no host was lost in the middle of the answer"
        raise LocalError(msg)
    held = asked.events["failover"][-1]["held"]
    first, second = check_failover(asked.items, killed=killed[0].peer_id, held=held)
    deposit = usdc_text(asked.events["signing"][-1]["deposit"])
    client.say(
        f"  SIGKILL to host {nodes.name(first.peer)}: host {nodes.name(second.peer)} went on after {held} "
        f"tokens, {asked.gap_s:.2f} s later, for a deposit of {deposit}\n"
        f"  the conversation is kept, sealed, on {kept_on(asked, len(stores))} other nodes"
    )
    return Lost(asked, first, second)


def _answer_row(step: str, host: str, done: Mapping[str, Any]) -> AnswerRow:
    """The row of an answer that ended with the event ``done``."""
    return AnswerRow(
        step=step,
        host=host,
        tokens_in=done["tokens_in"],
        tokens_out=done["tokens_out"],
        ttft_s=done["ttft_s"],
        tokens_per_s=done["tokens_out"] / max(done["total_s"] - done["ttft_s"], _SHORTEST_S),
    )


def _bill_row(host: str, what: str, item: Item) -> BillRow:
    """The row of an item."""
    return BillRow(host=host, what=what, tokens_in=item.tokens_in, tokens_out=item.tokens_out, cost=item.cost)
