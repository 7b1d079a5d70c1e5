"""``p2pnode demo``: a chain, three hosts that are paid and a client, processes of their own on loopback.

Everything runs through the command line a user has. The client knows one bootstrap multiaddr and has USDC
and no ether. It lists the hosts, streams an answer, dials another host with discovery off, and loses a
host to SIGKILL before the first token: the answer then comes from another one by itself, and the lost one
settles when it is back. In the end every unit must be where the tokens say.
"""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import trio

from p2pnode.demo.money import PRICES, SESSION_FEE, Money, MoneyRow
from p2pnode.demo.processes import STEP_DEADLINE_S, HostProcess, Processes, each_event, program
from p2pnode.errors import LocalError
from p2pnode.money import usdc_text

_HOSTS: Final = ("A", "B", "C")
_PER_SESSION: Final = 2
# Long enough to prefill for seconds on one thread: time to lose the host before its first token.
_LONG_QUESTION: Final = (
    "Summarise this log in one sentence. " + "The node answered and the peer agreed. " * 60
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the summary."""

    step: str
    host: str
    tokens_in: int
    tokens_out: int
    ttft_s: float
    tokens_per_s: float


@dataclass(slots=True)
class Asked:
    """What one ``p2pnode ask --json`` said."""

    text: str = ""
    done: dict[str, Any] = field(default_factory=dict)
    tried: list[str] = field(default_factory=list)


class Demo:
    """``say`` prints a line, ``stream`` a piece of an answer."""

    def __init__(self, say: Callable[[str], None], stream: Callable[[str], None]) -> None:
        self._say, self._stream = say, stream
        self._hosts: list[HostProcess] = []
        self._chain: list[str] = []
        self.rows: list[Row] = []
        self.money: list[MoneyRow] = []

    async def run(self) -> None:
        """All steps. Raises ``LocalError`` when one does not come out as it should."""
        with tempfile.TemporaryDirectory(prefix="p2pnode-demo-") as folder:
            root = Path(folder)
            processes = Processes(root)
            try:
                await self._run(root, processes)
            finally:
                with trio.CancelScope(shield=True):
                    await processes.aclose()

    async def _run(self, root: Path, processes: Processes) -> None:
        self._say("starting a development chain; three hosts get ether for gas, the client USDC and no ether")
        money = Money(root, await processes.chain())
        self._chain = [f"--chain={money.profile}"]
        await money.make_wallets(_HOSTS)
        await self._start_hosts(processes)
        first = self._hosts[0].multiaddrs[0]
        self._say(f"\nthe client knows one multiaddr: {first}")
        await self._list(root, first)
        host = await self._ask(root, first)
        await self._count_transactions(money, host)
        await self._dial_directly(root, self._hosts[2])
        lost = await self._lose_a_host(root, first)
        await self._bring_back(processes, lost)
        sessions = await money.wait_settled()
        names = {each.peer_id: each.name for each in self._hosts}
        self.money = await money.audit(sessions, names)
        fees = SESSION_FEE * len(sessions)
        tokens = sum(each["amount"] for each in sessions) - fees
        treasury = next(row.after for row in self.money if row.who == "treasury")
        self._say(
            f"\n{len(sessions)} sessions, settled to the unit: {fees} units of session fees, {tokens} for "
            f"tokens:\n{tokens - treasury} for the hosts, {treasury} for the treasury (a tenth, rounded down)"
        )

    async def _start_hosts(self, processes: Processes) -> None:
        self._say("starting three hosts of the default model that ask for money, each a process of its own")
        flags = (*PRICES, *self._chain)
        first = await processes.host("A", (), *flags)
        more: dict[str, HostProcess] = {}
        async with trio.open_nursery() as nursery:
            for name in _HOSTS[1:]:

                async def start(name: str = name) -> None:
                    more[name] = await processes.host(name, (first.multiaddrs[0],), *flags)

                nursery.start_soon(start)
        self._hosts = [first, *(more[name] for name in _HOSTS[1:])]
        for host in self._hosts:
            self._say(f"  host {host.name}  {host.peer_id}")

    async def _count_transactions(self, money: Money, host: str) -> None:
        await money.wait_settled()
        sent, paid = await money.transactions(host), await money.transactions("client")
        if (sent, paid) != (_PER_SESSION, 0):
            msg = f"host {host} sent {sent} transactions for one session and the client {paid}"
            raise LocalError(msg)
        self._say(f"  on the chain: {sent} transactions, both sent by host {host}: open and settle")

    async def _bring_back(self, processes: Processes, lost: HostProcess) -> None:
        self._say(f"\nhost {lost.name} is started again, and settles what it was paid before it was killed")
        seed = next(host for host in self._hosts if host is not lost)
        back = await processes.host(lost.name, (seed.multiaddrs[0],), *PRICES, *self._chain)
        self._hosts[self._hosts.index(lost)] = back

    # ---- the steps

    async def _list(self, root: Path, bootstrap: str) -> None:
        self._say("\n$ p2pnode hosts --bootstrap …   (found by gossip and DHT, each verified by dialling it)")
        found: list[dict[str, Any]] = []
        with trio.move_on_after(STEP_DEADLINE_S):
            while len(found) < len(self._hosts):
                events: list[dict[str, Any]] = []
                await each_event(program("hosts", *self._client(root, bootstrap)), events.append)
                found = [event for event in events if event["event"] == "host"]
        if {event["peer"] for event in found} != {host.peer_id for host in self._hosts}:
            msg = f"the client found {len(found)} hosts of {len(self._hosts)}"
            raise LocalError(msg)
        for event in found:
            self._say(
                f"  {event['model']}  host {self._name(event['peer'])}  {event['addresses'][0][:28]}…  "
                f"{event['n_ctx']} tokens, {event['engine']}"
            )

    async def _ask(self, root: Path, bootstrap: str) -> str:
        question = "What is a peer-to-peer network? Answer in two sentences."
        self._say(f'\n$ p2pnode ask --bootstrap … "{question}"')
        asked = await self._stream_answer([question, "--max-tokens=64", *self._client(root, bootstrap)])
        self._record("found and asked", asked)
        return self._name(asked.done["host"])

    async def _dial_directly(self, root: Path, host: HostProcess) -> None:
        question = "Name three colours."
        self._say(f'\n$ p2pnode ask --no-discovery --peer <multiaddr of host {host.name}> "{question}"')
        arguments = [
            question,
            "--max-tokens=32",
            "--no-discovery",
            f"--peer={host.multiaddrs[0]}",
            *self._client(root),
        ]
        asked = await self._stream_answer(arguments)
        if asked.done["host"] != host.peer_id:
            msg = "the answer came from another host than the one that was dialled"
            raise LocalError(msg)
        self._record("dialled directly", asked)

    async def _lose_a_host(self, root: Path, bootstrap: str) -> HostProcess:
        self._say("\n$ p2pnode ask --bootstrap … <a long question>   (its host is killed while it reads it)")
        killed: list[str] = []

        def on_event(event: dict[str, Any], asked: Asked) -> None:
            # Whichever host the client chose is the one it loses.
            if event["event"] == "prefill" and not killed:
                victim = asked.tried[-1]
                killed.append(victim)
                self._say(f"  SIGKILL to host {self._name(victim)}, before its first token")
                next(h for h in self._hosts if h.peer_id == victim).process.send_signal(signal.SIGKILL)

        arguments = [_LONG_QUESTION, "--max-tokens=32", *self._client(root, bootstrap)]
        asked = await self._stream_answer(arguments, on_event)
        if not killed or asked.done["host"] in killed:
            msg = "no host was lost before its first token"
            raise LocalError(msg)
        self._record(f"host {self._name(killed[0])} lost, answered by", asked)
        return next(host for host in self._hosts if host.peer_id == killed[0])

    # ---- helpers

    async def _stream_answer(
        self, arguments: list[str], on_event: Callable[[dict[str, Any], Asked], None] | None = None
    ) -> Asked:
        asked = Asked()

        def take(event: dict[str, Any]) -> None:
            match event["event"]:
                case "host":
                    asked.tried.append(event["peer"])
                case "signing":
                    self._say(
                        f"  the client signs: deposit {usdc_text(event['deposit'])}, once for the session"
                    )
                case "text":
                    asked.text += event["text"]
                    self._stream(event["text"])
                case "done":
                    asked.done = event
                case "failed" if "exit_code" in event:
                    raise LocalError(event["message"])
                case _:
                    pass
            if on_event is not None:
                on_event(event, asked)

        await each_event(program("ask", "--seed=7", "--temperature=0.3", *arguments), take)
        self._stream("\n")
        if not asked.done or not asked.text:
            msg = "the answer did not come to its end"
            raise LocalError(msg)
        return asked

    def _record(self, step: str, asked: Asked) -> None:
        done = asked.done
        streaming_s = max(done["total_s"] - done["ttft_s"], 1e-9)
        self.rows.append(
            Row(
                step=step,
                host=self._name(done["host"]),
                tokens_in=done["tokens_in"],
                tokens_out=done["tokens_out"],
                ttft_s=done["ttft_s"],
                tokens_per_s=done["tokens_out"] / streaming_s,
            )
        )

    def _client(self, root: Path, bootstrap: str | None = None) -> list[str]:
        first = [] if bootstrap is None else [f"--bootstrap={bootstrap}"]
        return [f"--data-dir={root / 'client'}", "--no-mdns", "--json", *self._chain, *first]

    def _name(self, peer: str) -> str:
        return next((host.name for host in self._hosts if host.peer_id == peer), peer[:12])
