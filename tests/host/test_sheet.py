"""What a host says of itself follows from its engines and its grants; a sheet is believed by its hash."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from p2pnode.errors import ProtocolError
from p2pnode.host.sheet import Grants, Served, capabilities_of, profile_of, sheet_of
from p2pnode.models.engine import EngineFeature, EngineInfo
from p2pnode.models.manifest import SCRIPTED, scripted_model_id
from p2pnode.models.scripted import ScriptedEngine
from p2pnode.net.stream import Stream
from p2pnode.node.driver import MessageChannel
from p2pnode.protocols.adverts.messages import (
    CODEC,
    PROTOCOL,
    RECEIPTS,
    RELEASE,
    RELEASE_MIN,
    Advert,
    Capability,
    GetSheet,
    Profile,
    Sheet,
    SheetAnswer,
    SheetOffer,
)
from p2pnode.protocols.adverts.signatures import encode_sheet, profile_hash, read_sheet, sheet_hash
from tests.client.support import advert, peer
from tests.node.world import Member, scripted_host, world

INFO = EngineInfo(engine="llamacpp", quantisation="Q8_0", n_ctx=4096, slots=4, build="1.2", batch=64)
MODEL = scripted_model_id()


# ---- what follows from engines and grants


@pytest.mark.parametrize(
    ("features", "grants", "expected"),
    [
        (frozenset(), Grants(), Capability(0)),
        (frozenset({"tools", "schema"}), Grants(), Capability.TOOLS | Capability.SCHEMA),
        (frozenset({"vision"}), Grants(turns_max=2), Capability.VISION | Capability.PARALLEL_TURNS),
        (frozenset(), Grants(turns_max=1, keep_s=60), Capability.KEEP_TIME),
        (
            frozenset({"reasoning", "logprobs", "embeddings", "grammar"}),
            Grants(),
            Capability.REASONING | Capability.LOGPROBS | Capability.EMBEDDINGS | Capability.GRAMMAR,
        ),
    ],
)
def test_the_bits_say_what_the_engine_and_the_grants_say(
    features: frozenset[EngineFeature], grants: Grants, expected: Capability
) -> None:
    assert capabilities_of(replace(INFO, features=features), grants) == expected


def test_an_engine_that_is_not_loaded_can_do_nothing_yet() -> None:
    assert capabilities_of(None, Grants(turns_max=8, keep_s=60)) == Capability(0)
    assert capabilities_of(replace(INFO, remote=True), Grants()) == Capability.UPSTREAM


@pytest.mark.parametrize(
    "change",
    [
        {"engine": "other"},
        {"build": "1.3"},
        {"batch": 32},
        {"kv_types": "q8_0/q8_0"},
        {"samplers": ("top_k",)},
        {"arithmetic": b"\x01" * 32},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_changes_the_numbers_changes_the_profile(change: dict[str, object]) -> None:
    other = replace(INFO, **change)  # type: ignore[arg-type]
    assert profile_hash(profile_of(other)) != profile_hash(profile_of(INFO))


def test_places_and_context_are_no_part_of_the_profile() -> None:
    other = replace(INFO, slots=1, n_ctx=512, features=frozenset({"tools"}))
    assert profile_hash(profile_of(other)) == profile_hash(profile_of(INFO))


def test_a_sheet_tells_of_warm_and_of_cold_models_and_all_addresses() -> None:
    served = [
        Served(model=MODEL, name="warm", quantisation="Q8_0", info=INFO),
        Served(model=MODEL, name="cold", quantisation="", info=None),
    ]
    addresses = [f"/ip4/10.0.0.{number}/tcp/4001" for number in range(40)]
    grants = Grants(turns_max=8, keep_s=3600, settle_above=7)
    sheet = sheet_of(peer(1), served, addresses, grants, paid=True)
    warm, cold = sheet.offers
    assert (warm.profile, warm.slots, warm.turns_max) == (profile_of(INFO), 4, 8)
    assert (cold.profile, cold.slots) == (None, 0)
    assert (sheet.addresses, sheet.keep_s, sheet.settle_above) == (tuple(addresses[:32]), 3600, 7)
    assert sheet.evidence == (RECEIPTS,)
    assert sheet_of(peer(1), served, addresses, grants, paid=False).evidence == ()


# ---- by its hash


def _named(sheet: Sheet) -> Advert:
    return replace(advert(1), sheet=sheet_hash(encode_sheet(sheet)))


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (encode_sheet(Sheet(peer=peer(1), keep_s=2)), "not the one that the advert names"),
        (encode_sheet(Sheet(peer=peer(1))) + b"\xc0", "not the one that the advert names"),
        (b"", "not the one that the advert names"),
    ],
    ids=["another", "longer", "none"],
)
def test_a_sheet_of_another_hash_is_not_believed(body: bytes, why: str) -> None:
    with pytest.raises(ProtocolError, match=why):
        read_sheet(body, _named(Sheet(peer=peer(1))))


def test_a_sheet_that_names_another_host_is_not_believed_though_its_hash_is_right() -> None:
    sheet = Sheet(peer=peer(2))
    with pytest.raises(ProtocolError, match="another host's"):
        read_sheet(encode_sheet(sheet), _named(sheet))
    assert read_sheet(encode_sheet(sheet), replace(_named(sheet), peer=peer(2))) == sheet


def test_what_is_no_sheet_is_not_believed_though_its_hash_is_right() -> None:
    with pytest.raises(ProtocolError):
        read_sheet(b"\x80", replace(advert(1), sheet=sheet_hash(b"\x80")))


# ---- between nodes


async def _advert_of(asker: Member, host: Member) -> Advert:
    found = await asker.node.finder.contact(host.node.peer_id, (), told=host.node.multiaddrs)
    assert found is not None
    return found


async def test_a_hosts_sheet_is_fetched_once_and_has_what_the_advert_has_no_room_for(
    autojump_clock: MockClock,
) -> None:
    async with world() as w:
        host, asker = await w.add([scripted_host()]), await w.add()
        found = await _advert_of(asker, host)
        sheet = await asker.node.adverts.sheet(found)
        assert sheet == await asker.node.adverts.sheet(found)
        assert sheet is not None
        offer = sheet.offer(MODEL)
        assert isinstance(offer, SheetOffer)
        assert offer.profile is not None
        assert (offer.name, offer.profile.engine, offer.slots) == (SCRIPTED, "scripted", 4)
        assert found.offers[0].profile == profile_hash(offer.profile)
        assert sheet.addresses == ("/ip4/10.0.0.1/tcp/4001",)
        assert found.release_min == RELEASE_MIN <= RELEASE
        assert host.node.adverts.served["GetSheet"] == 1


async def test_an_advert_without_a_sheet_and_a_sheet_that_is_not_kept_any_more_give_none(
    autojump_clock: MockClock,
) -> None:
    async with world() as w:
        host, asker = await w.add([scripted_host()]), await w.add()
        found = await _advert_of(asker, host)
        assert await asker.node.adverts.sheet(replace(found, sheet=None)) is None
        assert await asker.node.adverts.sheet(replace(found, sheet=bytes(32))) is None


async def test_a_host_that_answers_with_another_sheet_breaks_the_protocol(autojump_clock: MockClock) -> None:
    async with world() as w:
        host, asker = await w.add([scripted_host()]), await w.add()
        found = await _advert_of(asker, host)

        async def lie(stream: Stream) -> None:
            channel = MessageChannel(stream, CODEC)
            assert isinstance(await channel.receive(), GetSheet)
            await channel.send([SheetAnswer(body=encode_sheet(Sheet(peer=host.node.peer_id, keep_s=9)))])
            await stream.aclose()

        host.node.network.serve(PROTOCOL, lie)
        with pytest.raises(ProtocolError, match="not the one"), trio.fail_after(60):
            await asker.node.adverts.sheet(found)


# ---- measured


class _Measured(ScriptedEngine):
    """An engine with logits: its arithmetic is what the test says, one answer after another."""

    def __init__(self, *answers: bytes) -> None:
        super().__init__()
        self.answers, self.asked = list(answers), 0

    async def arithmetic(self) -> bytes:
        self.asked += 1
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


async def _profile_after(engine: _Measured, seconds: float) -> Profile | None:
    async with world() as w:
        host, asker = await w.add([replace(scripted_host(), new_engine=lambda: engine)]), await w.add()
        await trio.sleep(seconds)
        sheet = await asker.node.adverts.sheet(await _advert_of(asker, host))
        assert sheet is not None
        return sheet.offers[0].profile


async def test_an_idle_engine_is_measured_and_its_profile_says_so(autojump_clock: MockClock) -> None:
    engine = _Measured(b"a" * 32)
    profile = await _profile_after(engine, 60)
    assert profile is not None
    assert (profile.arithmetic, engine.asked) == (b"a" * 32, 2)  # and not again


async def test_an_engine_is_not_measured_as_soon_as_it_is_loaded(autojump_clock: MockClock) -> None:
    engine = _Measured(b"a" * 32)
    profile = await _profile_after(engine, 5)
    assert profile is not None
    assert (profile.arithmetic, engine.asked) == (None, 0)


async def test_numbers_that_do_not_stay_the_same_are_measured_again_a_few_times(
    autojump_clock: MockClock,
) -> None:
    settles = _Measured(b"a" * 32, b"b" * 32, b"c" * 32)
    profile = await _profile_after(settles, 120)
    assert profile is not None
    assert (profile.arithmetic, settles.asked) == (b"c" * 32, 4)
    never = _Measured(*(bytes([number]) * 32 for number in range(40)))
    profile = await _profile_after(never, 600)
    assert profile is not None
    assert (profile.arithmetic, never.asked) == (None, 6)
