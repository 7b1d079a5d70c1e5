"""Adverts made by hand, questions to ask, events that a client tells, and hosts that misbehave on purpose."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from p2pnode.client.client import Client
from p2pnode.client.interface import Answer
from p2pnode.ids import ModelId, PeerId
from p2pnode.models.manifest import SCRIPTED, scripted_model_id
from p2pnode.models.scripted import END, ROLE_IDS
from p2pnode.net.stream import Stream
from p2pnode.node.keys import PeerKey
from p2pnode.protocols.adverts.messages import Address, Advert, Load, Offer
from p2pnode.protocols.inference.messages import PROTOCOL, SamplingParams
from p2pnode.protocols.inference.receipts import ids_hash
from tests.net.memory_world import seed_of
from tests.node.world import Member, identity_of

MODEL = scripted_model_id()
HELLO = (ROLE_IDS["user"], *b"hello", END, ROLE_IDS["assistant"])
"""The ids of the prompt "hello" as the scripted model renders it."""
HELLO_HASH = ids_hash(HELLO)
NOW = 1_700_000_000.0


def peer(index: int) -> PeerId:
    """A valid peer id."""
    return PeerKey(seed_of(index)).peer_id


def advert(index: int, *, model: ModelId = MODEL, draining: bool = False, **offer: object) -> Advert:
    """What host ``index`` says of itself; ``active`` and ``queued`` go into its load."""
    load = Load(slots=4, active=int(str(offer.pop("active", 0))), queued=int(str(offer.pop("queued", 0))))
    values: dict[str, object] = {
        "model": model,
        "n_ctx": 2048,
        "price_in": 0,
        "price_out": 0,
    }
    return Advert(
        peer=peer(index),
        instance=bytes(8),
        seq=1,
        issued_at=int(NOW),
        expires_at=int(NOW) + 90,
        binding=identity_of(index, NOW).binding,
        addresses=(Address(multiaddr=f"/ip4/10.0.0.{index + 1}/tcp/4001"),),
        offers=(Offer(**{**values, **offer}),),  # type: ignore[arg-type]
        load=load,
        draining=draining,
    )


def ask(client: Client, text: str = "hello", *, tokens: int = 80, peer: str | None = None) -> Answer:
    """A question to the scripted model."""
    sampling = SamplingParams(tokens_max=tokens, temperature=0)
    return client.chat(text, model=SCRIPTED, peer=peer, sampling=sampling)


async def whole(answer: Answer) -> str:
    """The text of an answer, read to its end."""
    async for _ in answer:
        pass
    assert answer.usage is not None
    return answer.text


def misbehave(member: Member, handler: Callable[[Stream], Awaitable[None]]) -> None:
    """Let a host answer inference streams in its own way from now on."""
    member.node.network.serve(PROTOCOL, handler)


@dataclass
class Events:
    """What a client told its listener, in order."""

    told: list[tuple[str, dict[str, object]]] = field(default_factory=list)
    on: dict[str, Callable[[], None]] = field(default_factory=dict)
    """Called once, at the first event of that name."""

    def __call__(self, name: str, fields: dict[str, object]) -> None:
        self.told.append((name, fields))
        if name in self.on:
            self.on.pop(name)()

    def of(self, client: Client) -> None:
        """Listen to a client from now on."""
        client.runtime.on_event = self

    def named(self, name: str) -> list[dict[str, object]]:
        """The fields of the events of that name."""
        return [fields for each, fields in self.told if each == name]
