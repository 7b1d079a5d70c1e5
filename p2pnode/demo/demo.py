"""``p2pnode demo``: a chain, hosts that are paid, nodes that store and a client, all on loopback.

Each is a process of its own and everything runs through the command line a user has. The client knows one
bootstrap multiaddr and has USDC and no ether. It lists the hosts and asks one question by two commands: the
second finds the session that the first one left, signs nothing and pays no fee. It dials another host with
discovery off. Then a host is lost to SIGKILL in the middle of an answer: another one goes on with it. A new
machine takes the conversation up from the twelve words alone, finds the sessions that were left, and hands
the killed host, which is back, what it is still owed. In the end the sessions are closed, one fee for each
host that was used, and every unit must be where the tokens say.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import trio

from p2pnode.demo.bills import SESSION_FEE, Item, by_session, check_failover
from p2pnode.demo.machine import Asked, Machine, kept_on
from p2pnode.demo.nodes import HOSTS, Nodes
from p2pnode.demo.processes import STEP_DEADLINE_S, NodeProcess, Processes, each_event, program
from p2pnode.demo.recovery import resume_elsewhere
from p2pnode.demo.wallets import MoneyRow, Wallets
from p2pnode.errors import LocalError
from p2pnode.money import usdc_text
from p2pnode.words import count_of

_TWICE: Final = "What is a peer-to-peer network? Answer in two sentences."
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
        await self._ask_twice(wallets, client, first)
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
        await self._close(new, first)
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

    async def _ask_twice(self, wallets: Wallets, client: Machine, bootstrap: str) -> None:
        """Ask one question by two commands: one session, one signature, one transaction, one fee."""
        answers = []
        for step in ("found and asked", "asked again, no fee"):
            self._say(f'\n$ p2pnode ask --bootstrap … "{_TWICE}"')
            asked = await client.answer("ask", _TWICE, "--max-tokens=64", f"--bootstrap={bootstrap}")
            self._record(step, asked)
            answers.append(asked)
        first, second = answers
        (one,), (other,) = first.items, second.items
        if one.session != other.session or other.fee or "signing" in second.events:
            msg = f"the second command opened a session of its own: it paid {usdc_text(other.fee)} of fees"
            raise LocalError(msg)
        host = self._name(first.host)
        sent, paid = await wallets.transactions(host), await wallets.transactions("client")
        if (sent, paid) != (1, 0):
            msg = f"host {host} sent {sent} transactions for one open session and the client {paid}"
            raise LocalError(msg)
        self._say(
            f"  the second command found the session that the first one left with host {host}: it signed "
            f"nothing,\n  and paid {usdc_text(other.cost)} instead of {usdc_text(one.cost)}\n"
            f"  on the chain: 1 transaction, the open, sent by host {host}"
        )
        (told,) = await client.run("funds", client.chain)
        (left,) = told["left"]
        self._say(
            f"$ p2pnode funds   (a deposit of {usdc_text(left['units'])} lies with host {host}, "
            f"{usdc_text(left['signed'])} of it signed, for the next command)"
        )

    async def _dial_directly(self, client: Machine, host: NodeProcess) -> None:
        question = "Name three colours."
        self._say(f'\n$ p2pnode ask --no-discovery --peer <multiaddr of host {host.name}> "{question}"')
        flags = ("--max-tokens=32", "--no-discovery", f"--peer={host.multiaddrs[0]}")
        asked = await client.answer("ask", question, *flags)
        if asked.host != host.peer_id:
            msg = "the answer came from another host than the one that was dialled"
            raise LocalError(msg)
        self._record("dialled directly", asked)

    async def _close(self, machine: Machine, bootstrap: str) -> None:
        """Close what is left: by its hosts, which settle then."""
        listed = await machine.run("sessions", "list")
        left = [each for each in listed if each["event"] == "session" and each["state"] == "open"]
        self._say("\n$ p2pnode sessions close …   (each session that was left: its host settles it now)")
        for each in left:
            seed = (f"--bootstrap={bootstrap}", "--no-mdns", machine.chain)
            (closed,) = await machine.run("sessions", "close", each["session"], "--yes", *seed)
            if closed["outcome"] != "settled":
                msg = f"session {each['session'][:16]} was not closed by its host: {closed['outcome']}"
                raise LocalError(msg)

    async def _settle(self, wallets: Wallets, machines: list[Machine], lost: Lost) -> None:
        self.money = await wallets.audit(machines, self._nodes.host_of)
        items = [item for machine in machines for item in machine.items]
        bills = by_session(items).values()
        fees = SESSION_FEE * len(bills)
        tokens = sum(bill.price for bill in bills) - fees
        treasury = next(row.after for row in self.money if row.who == "treasury")
        killed = self._name(lost.killed.peer)
        got = sum(bill.price for bill in bills if bill.session == lost.killed.session)
        hosts = len({bill.peer for bill in bills})
        if len(bills) != hosts:
            msg = f"{len(bills)} sessions were opened with {hosts} hosts: one fee a host was promised"
            raise LocalError(msg)
        answers, sessions = count_of(len(items), "answer"), count_of(len(bills), "session")
        self._say(
            f"\n{answers} in {sessions}, one with each host that was used, settled to the unit:\n"
            f"{usdc_text(fees)} of session fees, {usdc_text(tokens)} for tokens: "
            f"{usdc_text(tokens - treasury)} for the hosts, {usdc_text(treasury)} for the treasury (a tenth, "
            "rounded down)\n"
            f"host {killed}, which was killed, got {usdc_text(got)}: its fee, and exactly what came of it"
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
    signed = asked.events.get("signing", [])[-1:]
    deposit = (
        f"for a deposit of {usdc_text(signed[0]['deposit'])}"
        if signed
        else "in the session it has left there"
    )
    client.say(
        f"  SIGKILL to host {nodes.name(first.peer)}: host {nodes.name(second.peer)} went on after {held} "
        f"tokens, {asked.gap_s:.2f} s later, {deposit}\n"
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
