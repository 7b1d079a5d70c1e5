"""``paid.*``: what it costs to be paid.

``voucher_cpu`` runs both sides of a session in this process, message by message, with the journals that a
host and a client keep. Its baseline is the bare signatures and one commit. ``throughput`` streams from two
hosts, one of which is paid on a development chain.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import trio

from p2pnode.bench.figure import Measurement, compared, paired
from p2pnode.bench.options import BenchOptions, Take
from p2pnode.bench.processes import joined
from p2pnode.bench.token_clock import TokenClock, question
from p2pnode.chain.dev.devchain import open_dev_chain
from p2pnode.chain.profile import write_profile
from p2pnode.chain.wallet.wallet import open_or_make_wallet
from p2pnode.client.client import Client
from p2pnode.config import NodeConfig
from p2pnode.durable import SqliteDisk, make
from p2pnode.errors import LocalError
from p2pnode.ids import PeerId, SessionId
from p2pnode.models.manifest import SCRIPTED, scripted_model_id
from p2pnode.node.datadir import DataDir
from p2pnode.node.identity import wallet_files
from p2pnode.node.keys import PeerKey
from p2pnode.payments.books import open_journal
from p2pnode.payments.journal.journal import BoughtSession, HostedSession, Journal
from p2pnode.protocols.crypto import keccak256, key_address, recover_address, sign_digest
from p2pnode.protocols.events import Command, Effect, Emit, Received, Send
from p2pnode.protocols.inference.channel import ClientPayment, HostTerms
from p2pnode.protocols.inference.client import ClientSession
from p2pnode.protocols.inference.commands import (
    Ask,
    Count,
    Counted,
    Delivered,
    Escrowed,
    Generate,
    GenTokens,
    Issued,
    Paid,
    Relay,
    Signed,
    Start,
    TokensTaken,
)
from p2pnode.protocols.inference.host import HostSession
from p2pnode.protocols.inference.messages import (
    CHECKPOINT_EVERY,
    CODEC,
    ChatMessage,
    PromptBody,
    SamplingParams,
    SessionTerms,
)
from p2pnode.protocols.inference.open_rules import HostPayment
from p2pnode.protocols.inference.replay import Piece
from p2pnode.protocols.typed_data import Domain

_STREAMS: Final = 4
_TOKENS_PER_S: Final = 500
_TOKENS: Final = 1501
_CHECKPOINTS: Final = 400
_RUN_DEADLINE_S: Final = 120.0
_SETTLED_S: Final = 4.0
"""After a paid run its sessions are settled: that must not disturb the next."""
_PRICES: Final = ("--price-in=1", "--price-out=2", "--session-fee=0.001")
_SHORTEST: Final = 0.9
_CLIENT: Final = PeerId("bench client")
_PIECE: Final = Piece(ids=tuple(range(16)), text="word " * 16)
_N_CTX: Final = 1 << 20
_WARM: Final = 10
_PLENTY: Final = 10**15
_ROW_BYTES: Final = 300
"""As long as a voucher and its receipt are in the journal."""


async def measure_paid(options: BenchOptions, take: Take) -> None:
    """Both figures."""
    checkpoints = 40 if options.quick else _CHECKPOINTS
    free = await checkpoint_cpu(options.scratch / "free", checkpoints, paid=False)
    paid = await checkpoint_cpu(options.scratch / "paid", checkpoints, paid=True)
    bare_ms = await trio.to_thread.run_sync(bare_cpu, options.scratch / "bare", checkpoints)
    take("paid.voucher_cpu", _dearer(paid, free, bare_ms))
    tokens = 101 if options.quick else _TOKENS
    async with _hosts(options) as hosts:
        await hosts.pair(-1, tokens)
        pairs = [await hosts.pair(number, tokens) for number in range(options.pairs)]
        take("paid.throughput", paired(pairs, tokens=tokens - 1, streams=_STREAMS))


def _dearer(paid: SessionCpu, free: SessionCpu, bare_ms: float) -> Measurement:
    sides = {"host": (paid.host_ms, free.host_ms), "client": (paid.client_ms, free.client_ms)}
    return compared(
        max(paid.host_ms, paid.client_ms),
        bare_ms,
        **{f"{side}_ms": round(ms, 4) for side, (ms, _) in sides.items()},
        **{f"{side}_free_ms": round(ms, 4) for side, (_, ms) in sides.items()},
        machines_alone_ms=round(max(paid.host_machine_ms, paid.client_machine_ms), 4),
    )


@dataclass(frozen=True, slots=True)
class _Hosts:
    """A free host and a paid one, and a client's data dir with money in it."""

    free: str
    paid: str
    data_dir: Path
    chain: Path

    async def pair(self, number: int, tokens: int) -> tuple[float, float]:
        """(tokens/s paid, tokens/s free), all streams together. Who goes first alternates."""
        if number % 2:
            free = await self._run(self.free, number, tokens)
            return await self._run(self.paid, number, tokens), free
        paid = await self._run(self.paid, number, tokens)
        return paid, await self._run(self.free, number, tokens)

    async def _run(self, multiaddr: str, number: int, tokens: int) -> float:
        config = NodeConfig(
            data_dir=self.data_dir, chain=str(self.chain), mdns=False,
            spend_day_max=10**10, spend_host_max=10**10,
        )  # fmt: skip
        clocks = [TokenClock(trio.current_time()) for _ in range(_STREAMS)]
        async with Client(config, discovery=False, remember=False) as client:
            with trio.fail_after(_RUN_DEADLINE_S):
                async with trio.open_nursery() as nursery:
                    for stream, clock in enumerate(clocks):
                        text = question(number + 1, stream)
                        nursery.start_soon(self._ask, client, multiaddr, text, tokens, clock)
        if multiaddr == self.paid:
            await trio.sleep(_SETTLED_S)
        if min(clock.tokens for clock in clocks) < tokens * _SHORTEST:
            msg = f"an answer ended after {min(clock.tokens for clock in clocks)} tokens of {tokens}"
            raise LocalError(msg)
        return sum(clock.tokens_per_s for clock in clocks)

    @staticmethod
    async def _ask(client: Client, multiaddr: str, text: str, tokens: int, clock: TokenClock) -> None:
        sampling = SamplingParams(tokens_max=tokens, temperature=0.0)
        async with client.chat(text, model=SCRIPTED, peer=multiaddr, sampling=sampling) as answer:
            async for _ in answer:
                clock.came(len(answer.ids))


@asynccontextmanager
async def _hosts(options: BenchOptions) -> AsyncIterator[_Hosts]:
    root = options.scratch
    engine = ("--model=scripted", f"--scripted-tokens-per-s={_TOKENS_PER_S}", "--slots=4", "--n-ctx=4096")
    async with open_dev_chain() as chain:
        profile = root / "chain.toml"
        write_profile(profile, replace(chain.profile(), name="bench"))
        for name, usdc, ether_wei in (("paid-host", 0, 10**18), ("client", 10**9, 0)):
            data = DataDir(root / name)
            data.prepare()
            wallet = await trio.to_thread.run_sync(open_or_make_wallet, wallet_files(data))
            await chain.fund(wallet.address, usdc=usdc, ether_wei=ether_wei)
        paid_flags = (*engine, *_PRICES, f"--chain={profile}")
        async with joined(root, "free-host", engine) as free, joined(root, "paid-host", paid_flags) as paid:
            yield _Hosts(free.multiaddrs[0], paid.multiaddrs[0], root / "client", profile)


# ---- both sides of a session in one task, so that the CPU of each can be told apart


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionCpu:
    """Milliseconds of CPU for each checkpoint: 32 tokens, the receipt, its answer, and what is written."""

    host_ms: float
    client_ms: float
    host_machine_ms: float
    client_machine_ms: float


class _Unlimited:
    def check(self, _spending: object) -> None:
        """All may be signed."""


async def checkpoint_cpu(folder: Path, checkpoints: int, *, paid: bool) -> SessionCpu:
    """Run one answer of so many checkpoints."""
    await trio.Path(folder).mkdir(parents=True)
    async with open_journal(folder / "host.sqlite") as host, open_journal(folder / "client.sqlite") as client:
        sides = _BothSides(host, client, paid=paid)
        await sides.open()
        for _ in range(_WARM):
            await sides.checkpoint()
        sides.spent.clear()
        for _ in range(checkpoints):
            await sides.checkpoint()
    spent = {key: ms / checkpoints for key, ms in sides.spent.items()}
    return SessionCpu(
        host_ms=spent["host"] + spent.get("host journal", 0.0),
        client_ms=spent["client"] + spent.get("client journal", 0.0),
        host_machine_ms=spent["host"],
        client_machine_ms=spent["client"],
    )


def bare_cpu(folder: Path, times: int) -> float:
    """Milliseconds of CPU for what no implementation can leave out at a side, from one process and disk.

    A signature made, one checked, and a commit of a few hundred bytes that survives a power cut.
    """
    folder.mkdir(parents=True)
    secret = keccak256(b"bare")
    row = bytes(_ROW_BYTES)
    path = folder / "bare.sqlite"
    make(path, "CREATE TABLE rows (number INTEGER PRIMARY KEY, row BLOB);", application=0, version=0)
    with closing(SqliteDisk().connect(path)) as db:
        db.execute("INSERT INTO rows VALUES (1, ?)", (row,))
        began = time.process_time()
        for number in range(times):
            digest = keccak256(number.to_bytes(8, "big"))
            recover_address(digest, sign_digest(secret, digest))
            db.execute("UPDATE rows SET row = ? WHERE number = 1", (digest + row,))
        return (time.process_time() - began) / times * 1e3


class _BothSides:
    def __init__(self, host_journal: Journal, client_journal: Journal, *, paid: bool) -> None:
        self._journals = {"host": host_journal, "client": client_journal}
        self.spent: dict[str, float] = {}
        self._wires: dict[str, deque[bytes]] = {"host": deque(), "client": deque()}
        self._run = 0
        key = PeerKey.generate(lambda count: bytes(range(count)))
        secrets = [keccak256(name) for name in (b"receipt", b"voucher", b"payer", b"wallet")]
        receipt, voucher, payer, wallet = secrets
        market = Domain(name="JobMarketplace", version="1", chain_id=1, contract=bytes([7]) * 20)
        self._terms = SessionTerms(
            payer=key_address(payer), host=key_address(wallet), voucher_key=key_address(voucher),
            receipt_key=key_address(receipt), model=scripted_model_id(), deposit=_PLENTY,
            price_in=1_000_000, price_out=2_000_000, session_fee=1_000, tip=0, expiry=1 << 40, salt=bytes(32),
        )  # fmt: skip
        selling = HostPayment(
            market=market, token=market, peer=key.peer_id, wallet=self._terms.host,
            receipt_key=self._terms.receipt_key, sign=lambda digest: sign_digest(receipt, digest),
            price_in=1_000_000, price_out=2_000_000, session_fee=1_000,
        )  # fmt: skip
        buying = ClientPayment(
            market=market, terms=self._terms, valid_before=1 << 40, authorisation=bytes(65),
            sign=lambda digest: sign_digest(voucher, digest),
        )  # fmt: skip
        self._session = buying.session
        self._voucher_secret = voucher
        granted = HostTerms(n_ctx=_N_CTX, payment=selling if paid else None)
        self._host = HostSession(
            peer=_CLIENT, stream=0, admit=lambda _open: granted,
            sign=key.sign, epoch=1, draw=bytes, terms=HostTerms(n_ctx=_N_CTX),
        )  # fmt: skip
        self._client = ClientSession(
            host=key.peer_id, stream=0, model=scripted_model_id(), salt=bytes(32), holder=bytes(16),
            payment=buying if paid else None,
        )  # fmt: skip

    async def open(self) -> None:
        """To the point where the engine speaks."""
        hosted = HostedSession(
            session=self._session, terms=self._terms, salt=bytes(32), authorisation=bytes(65),
            valid_before=1 << 40, epoch=1, peer=_CLIENT, opened_at=1,
        )  # fmt: skip
        await self._journals["host"].host_relaying(hosted)
        bought = BoughtSession(
            session=self._session, terms=self._terms, voucher_secret=self._voucher_secret,
            host=_CLIENT, addresses=(), valid_before=1 << 40, opened_at=1,
        )  # fmt: skip
        await self._journals["client"].bought(bought, _Unlimited(), 1)
        await self._do("host", self._host.start(0.0))
        await self._tell("client", Start())
        body = PromptBody(
            messages=(ChatMessage.of("user", "hello"),),
            sampling=SamplingParams(tokens_max=_N_CTX),
            seed=bytes(16),
        )
        await self._tell("client", Ask(body, 1000))
        if not self._run:
            msg = "the session did not come to its first token"
            raise LocalError(msg)

    async def checkpoint(self) -> None:
        """32 tokens, in frames of 16, and all that follows from them."""
        for _ in range(0, CHECKPOINT_EVERY, len(_PIECE.ids)):
            await self._tell("host", GenTokens(self._run, _PIECE))

    async def _tell(self, side: str, command: object) -> None:
        await self._handle(side, Command(command))
        while self._wires["host"] or self._wires["client"]:
            for to in ("host", "client"):
                while self._wires[to]:
                    before = time.process_time()
                    message = CODEC.decode(self._wires[to].popleft())
                    self._note(to, before)
                    await self._handle(to, Received(_CLIENT, 0, message))

    async def _handle(self, side: str, event: Any) -> None:
        before = time.process_time()
        machine = self._host if side == "host" else self._client
        effects = machine.handle(event, 0.0)
        other = "client" if side == "host" else "host"
        self._wires[other].extend(CODEC.encode(each.message) for each in effects if isinstance(each, Send))
        self._note(side, before)
        await self._do(side, effects)

    async def _do(self, side: str, effects: Iterable[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Emit):
                await self._emitted(side, effect.value)

    async def _emitted(self, side: str, value: object) -> None:
        before = time.process_time()
        journal, session = self._journals[side], SessionId(self._session)
        match value:
            case Relay():
                await self._tell("host", Escrowed())
            case Count(turn=turn):
                await self._tell("host", Counted(turn, 10))
            case Generate(run=run):
                self._run = run
            case Issued(receipt=receipt):
                await journal.host_issuing(session, receipt)
                self._note("host journal", before)
            case Paid(voucher=voucher):
                await journal.host_paid(session, voucher)
                self._note("host journal", before)
            case Delivered(tokens=tokens):
                await self._tell("client", TokensTaken(tokens.index + len(tokens.ids)))
            case Signed(voucher=voucher):
                await journal.signed(session, voucher, int(time.time()))
                self._note("client journal", before)
            case _:
                pass

    def _note(self, what: str, before: float) -> None:
        self.spent[what] = self.spent.get(what, 0.0) + (time.process_time() - before) * 1e3
