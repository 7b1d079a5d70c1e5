"""A client that signs its terms in earnest and then cheats: what it sends goes through a filter."""

from __future__ import annotations

import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

import trio

from p2pnode.chain.ledger import Open as OpenCall
from p2pnode.chain.ledger import Release
from p2pnode.models.manifest import scripted_model_id
from p2pnode.net.network import Network, NetworkConfig
from p2pnode.net.stream import Stream
from p2pnode.net.virtual_time import wall_clock
from p2pnode.node.driver import Driver, MessageChannel
from p2pnode.payments.escrow import HostMoney
from p2pnode.protocols.crypto import keccak256, key_address, sign_digest
from p2pnode.protocols.inference.channel import ClientPayment
from p2pnode.protocols.inference.client import ClientSession
from p2pnode.protocols.inference.client_turn import HeldSession
from p2pnode.protocols.inference.commands import (
    Ask,
    Delivered,
    End,
    Ended,
    SessionFailed,
    Start,
    TurnDone,
    TurnFailed,
)
from p2pnode.protocols.inference.messages import (
    CODEC,
    PROTOCOL,
    Accept,
    ChatMessage,
    Open,
    PromptBody,
    Quote,
    Refuse,
    SamplingParams,
    SessionTerms,
)
from p2pnode.protocols.typed_data import authorisation_digest, session_id
from tests.client.support import HELLO, HELLO_HASH
from tests.host.paid import FEE, PRICE_IN, PRICE_OUT, domains, receipt_secret, wallet_address, wallet_secret
from tests.net.memory_world import seed_of
from tests.node.world import Member, World

Filter = Callable[[Any], Any | None]
"""A message as it is sent, or another, or None to keep it back."""


def payment(name: str, member: Member, *, deposit: int = 1_000_000, **changes: Any) -> ClientPayment:
    """Terms for a host that a wallet signed; ``changes`` to the terms are signed too."""
    rng = random.Random(f"{name} {member.index}")
    voucher = keccak256(rng.randbytes(32))
    now, secret = int(wall_clock()), wallet_secret(name)
    values: dict[str, Any] = {
        "payer": wallet_address(name), "host": wallet_address(f"host {member.index}"),
        "voucher_key": key_address(voucher), "receipt_key": key_address(receipt_secret(member.index)),
        "model": scripted_model_id(), "deposit": deposit,
        "price_in": PRICE_IN, "price_out": PRICE_OUT, "session_fee": FEE, "tip": 0, "expiry": now + 86_400,
        "salt": rng.randbytes(32),
    }  # fmt: skip
    valid_before = changes.pop("valid_before", now + 500)
    terms = SessionTerms(**{**values, **changes})
    found = domains()
    digest = authorisation_digest(
        found.token,
        payer=terms.payer,
        to=found.market.contract,
        amount=terms.deposit,
        valid_before=valid_before,
        nonce=session_id(found.market, terms),
    )
    return ClientPayment(
        market=found.market,
        terms=terms,
        valid_before=valid_before,
        authorisation=sign_digest(secret, digest),
        sign=lambda told: sign_digest(voucher, told),
    )


class _Filtered(MessageChannel):
    def __init__(self, stream: Any, keep: Filter) -> None:
        super().__init__(stream, CODEC)
        self._keep = keep

    async def send(self, messages: Iterable[Any]) -> None:
        await super().send(self._kept(messages))

    def queue_now(self, messages: Iterable[Any]) -> bool:
        return super().queue_now(self._kept(messages))

    def _kept(self, messages: Iterable[Any]) -> list[Any]:
        return [kept for each in messages if (kept := self._keep(each)) is not None]


class Thief:
    """One stream of one session."""

    def __init__(self, network: Network, member: Member, paid: ClientPayment | None) -> None:
        self.network, self.member, self.payment = network, member, paid
        self.ids: list[int] = []
        self.outcome: TurnDone | TurnFailed | SessionFailed | None = None
        self.over = trio.Event()
        self.told = trio.Event()
        self.machine: ClientSession | None = None
        self.delivered = trio.Event()

    async def run(
        self,
        keep: Filter,
        *,
        question: str = "hello",
        tokens: int = 500,
        resume: HeldSession | None = None,
    ) -> None:
        """Ask one question, and stay until the host ends it or the test does."""
        self.machine = ClientSession(
            host=self.member.node.peer_id,
            stream=0,
            model=scripted_model_id(),
            salt=bytes(32),
            holder=bytes(16),
            payment=self.payment,
            resume=resume,
            peer=self.network.peer_id,
        )
        stream = await self.network.open_stream(self.member.node.peer_id, PROTOCOL)
        self._channel = MessageChannel(stream, CODEC)
        driver = Driver(self.machine, _Filtered(stream, keep), on_emit=self._emitted, write_deadline_s=30)
        body = PromptBody(
            messages=(ChatMessage.of("user", question),),
            sampling=SamplingParams(tokens_max=tokens, temperature=0),
            seed=bytes(16),
        )
        self._driver = driver
        driver.command_nowait(Start())
        self._ask = Ask(body, 200_000)
        await driver.run()
        self.over.set()

    def close(self) -> None:
        """End the session in order."""
        self._driver.command_nowait(End())

    async def half_close(self) -> None:
        """Say nothing more; read on."""
        await self._channel.stream.send_eof()

    async def say(self, message: Any) -> None:
        """Anything, on the same stream."""
        await self._channel.send([message])

    async def _emitted(self, value: Any) -> None:
        match value:
            case Delivered(ids=ids):
                self.ids.extend(ids)
                self.delivered.set()
            case TurnDone() | TurnFailed() | SessionFailed():
                self.outcome = value
                self.told.set()
                if isinstance(value, SessionFailed):
                    self._driver.stop()
            case Ended():
                self._driver.stop()
            case _ if type(value).__name__ == "Accepted" and self.machine is not None:
                if self.machine.state == "idle":
                    self._driver.command_nowait(self._ask)
            case _:
                pass


@contextlib.asynccontextmanager
async def thief(
    w: World, member: Member, paid: ClientPayment | None, *, number: int = 0
) -> AsyncIterator[Thief]:
    """A connected thief at an address of its own (``10.7.n/250.n%250+1``)."""
    network = Network(
        NetworkConfig(
            key_seed=seed_of(700 + number),
            dht="off",
            gossip=False,
            transport=w.net.transport(f"10.7.{number // 250}.{number % 250 + 1}"),
        )
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(network.run)
        await network.connect(member.node.multiaddrs[0])
        yield Thief(network, member, paid)
        await network.aclose()
        nursery.cancel_scope.cancel()


def takes_and_refuses(money: HostMoney) -> Callable[[Stream], Awaitable[None]]:
    """A host that brings the deposit home, keeps the fee, and says that it is busy."""

    async def serve(stream: Stream) -> None:
        channel = MessageChannel(stream, CODEC)
        request = await channel.receive()
        assert isinstance(request, Open)
        assert request.terms is not None
        assert request.authorisation is not None
        call = OpenCall(request.terms, request.valid_before, request.authorisation)
        await money.ledger.transact(call)
        await money.ledger.transact(Release(request.terms))
        await channel.send([Refuse(code="capacity", detail="busy")])
        await stream.aclose()

    return serve


async def quoted(stream: Stream) -> MessageChannel:
    """A host's end of a paid session: it was accepted unseen, and its first prompt, "hello", counted."""
    channel = MessageChannel(stream, CODEC)
    request = await channel.receive()
    assert isinstance(request, Open)
    assert request.terms is not None
    session = session_id(domains().market, request.terms)
    await channel.send([Accept(session=session, nonce=bytes(32), epoch=1, n_ctx=2048, session_fee=FEE)])
    await channel.receive()
    await channel.send([Quote(turn=1, prompt_hash=HELLO_HASH, tokens_in=len(HELLO))])
    return channel
