"""A development chain in the test's process, with paid hosts and paying clients on it.

They run as processes that die where they are told to, or in this process, on the same data dirs.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pytest
import trio

from p2pnode import SamplingParams
from p2pnode.chain.dev.devchain import DevChain, open_dev_chain
from p2pnode.chain.evm.ledger import EvmLedger
from p2pnode.chain.ledger import LedgerEvent, RequestClose, SessionClosed, SessionOpened
from p2pnode.chain.profile import write_profile
from p2pnode.chain.wallet.wallet import Wallet, open_or_make_wallet
from p2pnode.client.client import Client
from p2pnode.errors import RemoteError
from p2pnode.host.join import Join, JoinOptions
from p2pnode.ids import SessionId
from p2pnode.models.manifest import SCRIPTED
from p2pnode.node.datadir import DataDir
from p2pnode.node.identity import wallet_files
from p2pnode.payments.books import books_of
from p2pnode.payments.journal.journal import Journal
from p2pnode.protocols.inference.messages import Checkpoint, Receipt
from tests.crash.mortal import quick
from tests.crash.parties import ETHER, FEE, LISTEN, PRICE_IN, PRICE_OUT, QUESTION, RICH, TOKENS, Party
from tests.crash.processes import DEADLINE_S


@dataclass
class Asked:
    """What became of a question. ``streams`` is set when its first piece came."""

    ids: list[int] = field(default_factory=list)
    error: RemoteError | None = None
    streams: trio.Event = field(default_factory=trio.Event)


@dataclass
class CrashWorld:
    """One chain, and who lives on it."""

    folder: Path
    chain: DevChain
    profile: Path
    ledger: EvmLedger
    seen: list[tuple[SessionId, Checkpoint]]
    """Receipts that clients in this process took."""

    async def party(self, name: str, *, usdc: int = 0, ether: int = 0, **config: Any) -> Party:
        """Somebody new, with money."""
        data = DataDir(self.folder / name)
        data.prepare()
        wallet = await trio.to_thread.run_sync(open_or_make_wallet, wallet_files(data))
        await self.fund(wallet, usdc=usdc, ether=ether)
        values = {"data_dir": str(data.root), "chain": str(self.profile), "mdns": False, **config}
        return Party(data, wallet, values)

    async def host(self, name: str = "host") -> Party:
        """A host with ether for its gas. It keeps no session that a client left: it settles it at once."""
        return await self.party(
            name, ether=ETHER, models=["scripted"], listen=[LISTEN],
            price_in=PRICE_IN, price_out=PRICE_OUT, session_fee=FEE, keep_hours=0,
        )  # fmt: skip

    async def client(self, name: str = "client") -> Party:
        """A client without any."""
        return await self.party(name, usdc=RICH)

    async def ask(self, client: Party, peer: str, tokens: int = TOKENS) -> Asked:
        """One question in a client of its own, which leaves in order."""
        asked = Asked()
        async with asking(client) as chat:
            await chat(asked, peer, tokens)
        return asked

    async def events(self) -> list[LedgerEvent]:
        """All there ever were."""
        found: list[LedgerEvent] = []
        cursor, caught_up = 0, False
        while not caught_up:
            page = await self.ledger.events(cursor)
            found += page.events
            cursor, caught_up = page.cursor, page.caught_up
        return found

    async def request_close(self, client: Party) -> None:
        """A payer that goes to the chain itself, with no voucher to show. It needs ether for that."""
        await self.fund(client.wallet, ether=ETHER)
        (bought,) = client.purchases()
        async with books_of(client.node_config, sends=True) as books:
            await books.ledger.transact(RequestClose(bought.terms))

    async def fund(self, wallet: Wallet, *, usdc: int = 0, ether: int = 0) -> None:
        """The faucet: USDC units and wei."""
        await self.rpc("dev_fund", wallet.account, usdc, ether)

    async def rpc(self, method: str, *params: Any) -> Any:
        """What only a development chain can do."""
        return await self.ledger.rpc.request(method, params)

    async def pending(self, party: Party) -> int:
        """Its transactions that are sent and not mined."""
        account = party.wallet.account
        counts = [await self.rpc("eth_getTransactionCount", account, tag) for tag in ("pending", "latest")]
        return int(counts[0], 16) - int(counts[1], 16)

    async def opened(self, session: SessionId) -> int:
        events = await self.events()
        return sum(isinstance(each, SessionOpened) and each.session == session for each in events)

    async def closed(self, session: SessionId) -> list[SessionClosed]:
        events = await self.events()
        return [each for each in events if isinstance(each, SessionClosed) and each.session == session]

    async def usdc(self, party: Party) -> int:
        return (await self.ledger.balances(party.wallet.address)).usdc

    async def earned(self, address: bytes) -> int:
        return (await self.ledger.balances(address)).earned


class Chat(Protocol):
    """Asks once and notes what became of it."""

    async def __call__(self, asked: Asked, peer: str, tokens: int, model: str = ...) -> None: ...


@asynccontextmanager
async def asking(client: Party, **limits: float) -> AsyncIterator[Chat]:
    """A client in this process; its session stays open between questions."""
    async with Client(client.node_config, limits=quick(**limits), remember=False, discovery=False) as made:

        async def chat(asked: Asked, peer: str, tokens: int, model: str = SCRIPTED) -> None:
            answer = made.chat(
                QUESTION,
                model=model,
                peer=peer,
                sampling=SamplingParams(tokens_max=tokens, temperature=0),
            )
            try:
                async for _ in answer:
                    asked.streams.set()
            except RemoteError as error:
                asked.error = error
            asked.ids += answer.ids

        yield chat


@asynccontextmanager
async def joined(host: Party, *, tokens_per_s: float | None = None, **limits: float) -> AsyncIterator[str]:
    """The host in this process, ready; its multiaddr. It leaves in order."""
    ready = trio.Event()
    addresses: list[str] = []

    def report(event: str, fields: dict[str, object]) -> None:
        if event == "ready":
            found = fields["multiaddrs"]
            assert isinstance(found, list)
            addresses.append(found[0])
            ready.set()

    options = JoinOptions(limits=quick(**limits), scripted_tokens_per_s=tokens_per_s)
    join = Join(host.node_config, options, report)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(join.run)
        with trio.fail_after(DEADLINE_S):
            await ready.wait()
        yield addresses[0]
        join.stop()


@asynccontextmanager
async def crash_world(folder: Path) -> AsyncIterator[CrashWorld]:
    """A chain with nobody on it."""
    seen: list[tuple[SessionId, Checkpoint]] = []
    profile = folder / "chain.toml"
    async with open_dev_chain() as chain:
        write_profile(profile, chain.profile())
        ledger = await EvmLedger.of_profile(chain.profile())
        try:
            with noting_receipts(seen):
                yield CrashWorld(folder, chain, profile, ledger, seen)
        finally:
            with trio.CancelScope(shield=True):
                await ledger.aclose()


@contextmanager
def noting_receipts(seen: list[tuple[SessionId, Checkpoint]]) -> Iterator[None]:
    """Put every receipt that a client in this process writes into its journal into ``seen`` too."""
    written = Journal.bought_receipt

    def noting(journal: Journal, session: SessionId, receipt: Receipt, now: int) -> None:
        seen.append((session, receipt.checkpoint))
        written(journal, session, receipt, now)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "bought_receipt", noting)
        yield


async def until(holds: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> None:
    """Poll: processes and chains have no other way to tell."""
    until_s = time.monotonic() + deadline_s
    while not await holds():
        assert time.monotonic() < until_s, f"not in time: {what}"
        await trio.sleep(0.05)
