"""What a peer can do to a host through the inference protocol, and that an honest client never notices."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable

import msgpack
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from p2pnode.errors import UnreachableError
from p2pnode.models.manifest import scripted_model_id
from p2pnode.net.conduct import SLOW_S
from p2pnode.node.node import FAULTS_MAX
from p2pnode.protocols.framing.codec import FRAME_MAX, pack_frame
from p2pnode.protocols.inference.messages import (
    Ack,
    ChatMessage,
    Close,
    Open,
    Prompt,
    PromptBody,
    SamplingParams,
)
from p2pnode.protocols.wire import encode
from tests.examples import examples
from tests.host.support import attack, attacker, frame, honest_answer, read_to_end
from tests.node.world import Member, World, scripted_host, world

OPEN = Open(model=scripted_model_id(), salt=bytes(32), holder=bytes(16))


def _prompt(tokens_max: int = 10_000) -> Prompt:
    body = encode(
        PromptBody(
            messages=(ChatMessage.of("user", "hi"),),
            sampling=SamplingParams(tokens_max=tokens_max),
            seed=bytes(16),
        )
    )
    return Prompt(turn=1, part=0, last=True, total=len(body), body=body)


def _nested(depth: int) -> bytes:
    value: object = 1
    for _ in range(depth):
        value = [value]
    packed: bytes = msgpack.packb({"t": "open", "model": value})
    return packed


MALFORMED: dict[str, bytes] = {
    "an oversized frame": (FRAME_MAX + 1).to_bytes(3, "little") + b"\xff" * 10,
    "a length that never ends": b"\xff" * 16,
    "an empty frame": b"\x00",
    "deep msgpack": pack_frame(_nested(500)),
    "an array that lies about its length": pack_frame(b"\xdd\xff\xff\xff\xff"),
    "an unknown type": pack_frame(msgpack.packb({"t": "pay_me", "amount": 1})),
    "no type": pack_frame(msgpack.packb({"x": 1})),
    "a list": pack_frame(msgpack.packb([1, 2, 3])),
    "not msgpack": pack_frame(b"\xc1\xc1\xc1"),
    "a field out of bounds": pack_frame(msgpack.packb({"t": "open", "model": b"short", "salt": bytes(32)})),
    "the wrong message first": frame(Ack(seq=0)),
    "an ack from the future": frame(OPEN, Ack(seq=1 << 40)),
    "two opens": frame(OPEN, OPEN),
    "a turn out of order": frame(OPEN, Prompt(turn=9, part=0, last=True, total=0, body=b"")),
    "parts beyond the total": frame(OPEN, Prompt(turn=1, part=0, last=False, total=1, body=b"xx")),
}


async def _host(w: World) -> Member:
    return await w.add([scripted_host(tokens_per_s=500)])


def _tasks() -> int:
    return trio.lowlevel.current_statistics().tasks_living


@pytest.mark.parametrize("name", MALFORMED)
async def test_a_malformed_stream_is_ended_and_an_honest_client_is_served(
    name: str, autojump_clock: MockClock
) -> None:
    async with world() as w:
        host = await _host(w)
        async with w.client(host.node.multiaddrs[:1]) as client, attacker(w, host) as evil:
            await honest_answer(client)
            before = _tasks()
            stream = await attack(evil, host, MALFORMED[name])
            await read_to_end(stream)
            await stream.reset()
            await honest_answer(client)
            await trio.sleep(5)
            assert _tasks() <= before
            assert host.host is not None
            assert host.host.sessions == 1  # the honest client's
            assert host.node.faults.count(evil.peer_id, trio.current_time()) == 1


async def test_a_truncated_frame_is_a_fault_and_ends_the_session(autojump_clock: MockClock) -> None:
    async with world() as w:
        host = await _host(w)
        async with attacker(w, host) as evil:
            stream = await attack(evil, host, frame(OPEN)[:-3])
            await stream.aclose()
            await trio.sleep(1)
            assert host.host is not None
            assert host.host.sessions == 0
            assert host.node.faults.count(evil.peer_id, trio.current_time()) == 1


async def test_a_peer_with_many_faults_is_shunned_and_others_are_not(autojump_clock: MockClock) -> None:
    async with world() as w:
        host = await _host(w)
        async with attacker(w, host) as evil, w.client(host.node.multiaddrs[:1]) as client:
            for _ in range(FAULTS_MAX):
                await read_to_end(await attack(evil, host, MALFORMED["an unknown type"]))
                await trio.sleep(0.1)
            with contextlib.suppress(UnreachableError):
                assert await read_to_end(await attack(evil, host, frame(OPEN))) == b""
            assert host.node.network.statistics().faults == {"breach of /p2pnode/inference/1": FAULTS_MAX}
            await honest_answer(client)


@settings(examples(25), suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32))
def test_four_hundred_random_frames_a_run_never_hurt_the_host(seed: int) -> None:
    """25 runs of 400, ten in short tests: random frames against a whole node, beside an honest client."""
    rng = random.Random(seed)

    async def main() -> None:
        async with world(seed=seed) as w:
            host = await _host(w)
            async with w.client(host.node.multiaddrs[:1]) as client:
                for number in range(8):
                    async with attacker(w, host, number) as evil:
                        for _ in range(5):
                            prefix = frame(OPEN) if rng.random() < 0.5 else b""
                            noise = b"".join(
                                pack_frame(rng.randbytes(rng.randrange(1, 200))) for _ in range(10)
                            )
                            stream = await attack(evil, host, prefix + noise)
                            await stream.reset()
                await honest_answer(client)
                await trio.sleep(2 * SLOW_S)  # what was said by peers that were slowed is read later
                assert host.host is not None
                assert host.host.sessions <= 1

    trio.run(main, clock=MockClock(autojump_threshold=0))


async def test_a_silent_stream_is_dropped_after_the_first_frame_deadline(autojump_clock: MockClock) -> None:
    async with world() as w:
        host = await _host(w)
        async with attacker(w, host) as evil:
            stream = await evil.open_stream(host.node.peer_id, "/p2pnode/inference/1")
            started = trio.current_time()
            await read_to_end(stream)
            assert trio.current_time() - started < w.limits.first_frame_deadline_s + 5
            await trio.sleep(1)
            assert host.host is not None
            assert host.host.sessions == 0


async def test_a_slow_writer_of_a_prompt_does_not_hold_a_session_for_ever(autojump_clock: MockClock) -> None:
    async with world() as w:
        host = await _host(w)
        async with attacker(w, host) as evil, w.client(host.node.multiaddrs[:1]) as client:
            part = Prompt(turn=1, part=0, last=False, total=100, body=b"x")
            stream = await attack(evil, host, frame(OPEN, part))
            await read_to_end(stream, seconds=w.limits.idle_session_s + 60)
            await trio.sleep(1)
            assert host.host is not None
            assert host.host.sessions == 0
            await honest_answer(client)


async def test_a_slow_reader_stops_the_engine_at_one_window_and_is_dropped(autojump_clock: MockClock) -> None:
    async with world() as w:
        host = await _host(w)
        async with attacker(w, host) as evil, w.client(host.node.multiaddrs[:1]) as client:
            stream = await attack(evil, host, frame(OPEN, _prompt()))
            await trio.sleep(5)
            assert host.host is not None
            engine = host.host.models[0].new_engine()
            assert engine.statistics().active == 0  # credit ran out: the slot is free again
            await honest_answer(client)
            await read_to_end(stream)
            await trio.sleep(w.limits.stall_s + 5)
            assert host.host.sessions == 1
            assert host.host.totals.tokens_out < 10_000


async def test_three_hundred_streams_at_once_are_capped(autojump_clock: MockClock) -> None:
    async with world() as w:
        host = await _host(w)
        async with attacker(w, host) as evil, w.client(host.node.multiaddrs[:1]) as client:
            refused = 0

            async def one() -> None:
                nonlocal refused
                try:
                    stream = await attack(evil, host, frame(OPEN))
                    if not await stream.receive_some():
                        refused += 1
                except UnreachableError:
                    refused += 1

            async with trio.open_nursery() as nursery:
                for _ in range(300):
                    nursery.start_soon(one)
            assert host.host is not None
            assert host.host.sessions <= w.limits.sessions_per_peer
            assert refused >= 300 - w.limits.sessions_per_peer
            await honest_answer(client)


STATES: dict[str, Callable[[], bytes]] = {
    "before anything": lambda: b"",
    "opening": lambda: frame(OPEN)[:5],
    "idle": lambda: frame(OPEN),
    "reading": lambda: frame(OPEN, Prompt(turn=1, part=0, last=False, total=100, body=b"x")),
    "serving": lambda: frame(OPEN, _prompt()),
    "closed": lambda: frame(OPEN, Close()),
}


@pytest.mark.parametrize("state", STATES)
async def test_a_peer_that_resets_in_each_state_leaves_nothing_behind(
    state: str, autojump_clock: MockClock
) -> None:
    async with world() as w:
        host = await _host(w)
        async with w.client(host.node.multiaddrs[:1]) as client, attacker(w, host) as evil:
            await honest_answer(client)
            await trio.sleep(5)
            before = _tasks()
            for _ in range(5):
                stream = await attack(evil, host, STATES[state]())
                await trio.sleep(0.2)
                await stream.reset()
            await trio.sleep(5)
            assert _tasks() <= before
            assert host.host is not None
            assert host.host.sessions == 1
            assert host.host.models[0].new_engine().statistics().active == 0
            await honest_answer(client)


async def test_a_peer_that_disconnects_while_it_is_served_frees_the_engine(autojump_clock: MockClock) -> None:
    async with world() as w:
        host = await _host(w)
        async with attacker(w, host) as evil:
            await attack(evil, host, frame(OPEN, _prompt()))
            await trio.sleep(0.1)
            await evil.disconnect(host.node.peer_id)
            await trio.sleep(5)
            assert host.host is not None
            assert host.host.sessions == 0
            assert host.host.models[0].new_engine().statistics().active == 0
