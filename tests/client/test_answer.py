"""Answers on whole nodes in memory: sessions are kept, and a host that fails at once is replaced.

What happens later in an answer is in ``test_failover.py``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace

import pytest
import trio
import trio.lowlevel
from trio.testing import MockClock

from p2pnode.client.chat_options import ChatOptions
from p2pnode.client.client import Client
from p2pnode.client.ranking import Filters
from p2pnode.errors import NoHostError, RefusedError, RemoteError
from p2pnode.limits import DEFAULT_LIMITS
from p2pnode.models.manifest import SCRIPTED
from p2pnode.models.scripted import Faults
from p2pnode.net.stream import Stream
from p2pnode.protocols.framing.codec import pack_frame
from p2pnode.protocols.inference.commands import Ask
from p2pnode.protocols.inference.messages import CODEC, ChatMessage, PromptBody, Refuse, SamplingParams
from tests.client.failing import engine_of, hosts, seeds
from tests.client.support import ask, misbehave, whole
from tests.node.world import Member, World, scripted_host, world


async def two_hosts(w: World, *, bad: dict[str, object] | None = None) -> tuple[Member, Member]:
    """A host that will misbehave, and a good one that is slower to load and thus comes second."""
    first = await w.add([scripted_host(**(bad or {}))])
    second = await w.add([scripted_host()], bootstrap=first.node.multiaddrs[:1])
    await trio.sleep(5)
    return first, second


def prefer(client: Client, member: Member) -> None:
    """Make a host look best."""
    client.searches.note_answer(member.node.peer_id, 0.001, 10_000.0)


async def test_a_conversation_uses_one_session(autojump_clock: MockClock) -> None:
    async with world() as w:
        host = await w.add([scripted_host()])
        async with w.client(host.node.multiaddrs[:1]) as client:
            for turn in range(4):
                await whole(ask(client, f"question {turn}"))
        assert host.host is not None
        assert host.host.totals.sessions == 1
        assert host.host.totals.turns == 4


async def test_turns_that_end_as_promised_and_those_that_do_not_are_counted_with_what_receipts_cover(
    autojump_clock: MockClock,
) -> None:
    async with world() as w:
        bad, good = await two_hosts(w, bad={"tokens_per_s": 50})
        async with w.client(bad.node.multiaddrs[:1]) as client:
            prefer(client, bad)
            kept = client.searches.measured[bad.node.peer_id].kept
            first = ask(client, tokens=80)
            await whole(first)
            known = client.searches.measured[bad.node.peer_id]
            assert (known.kept, known.broken, known.receipted) == (kept + 1, 0, len(first.ids))
            stopped = ask(client, tokens=80)
            async with stopped:
                await anext(stopped)
            assert client.searches.measured[bad.node.peer_id].kept == kept + 1  # the user ended it
            engine_of(bad).faults = Faults(crash_after_tokens=5, crashes=99)
            await whole(ask(client, tokens=80))
            known = client.searches.measured[bad.node.peer_id]
            assert (known.kept, known.broken) == (kept + 1, 1)
            assert client.searches.measured[good.node.peer_id].kept == 1
            ranking = await client.hosts(SCRIPTED, Filters(reputation_min=0.5))
            reasons = {each.advert.peer: each.excluded for each in ranking.excluded}
            assert f"{kept + 1} of {kept + 2} turns ended as promised" in reasons[bad.node.peer_id]


async def test_an_answer_says_how_much_of_the_context_its_conversation_takes(
    autojump_clock: MockClock,
) -> None:
    async with world() as w:
        host = await w.add([scripted_host(n_ctx=300)])
        async with w.client(host.node.multiaddrs[:1]) as client:
            conversation = await client.new_conversation(
                ChatOptions(model=SCRIPTED, sampling=SamplingParams(tokens_max=20, temperature=0)), keep=False
            )
            used = []
            for turn in range(3):
                answer = conversation.ask(f"question {turn}")
                await whole(answer)
                assert answer.usage is not None
                assert answer.usage.n_ctx == 300
                assert answer.usage.context_used == answer.usage.tokens_in + answer.usage.tokens_out
                used.append(300 - answer.usage.context_left)
            assert used == sorted(set(used))


async def test_two_answers_at_once_share_one_session_and_both_are_whole(autojump_clock: MockClock) -> None:
    async with world() as w:
        host = await w.add([scripted_host(tokens_per_s=100)])
        async with w.client(host.node.multiaddrs[:1]) as client:
            texts: dict[str, str] = {}

            async def one(question: str) -> None:
                texts[question] = await whole(ask(client, question))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(one, "a")
                nursery.start_soon(one, "b")
            assert texts["a"] != texts["b"]
            assert {await whole(ask(client, "a"))} == {texts["a"]}
        assert host.host is not None
        assert host.host.totals.sessions == 1


async def crash(w: World, host: Member) -> None:
    w.crash(host)


async def crash_the_engine(w: World, host: Member) -> None:
    engine_of(host).faults = Faults(crash_after_tokens=0, crashes=2)


async def drain(w: World, host: Member) -> None:
    w.nursery.start_soon(host.node.aclose)
    await trio.sleep(0.5)


async def refuse(w: World, host: Member) -> None:
    async def handler(stream: Stream) -> None:
        await stream.receive_some()
        await stream.send_all(pack_frame(CODEC.encode(Refuse(code="capacity", detail="full"))))
        await stream.aclose()

    misbehave(host, handler)


async def reset(w: World, host: Member) -> None:
    async def handler(stream: Stream) -> None:
        await stream.receive_some()
        await stream.reset()

    misbehave(host, handler)


async def say_nothing(w: World, host: Member) -> None:
    async def handler(stream: Stream) -> None:
        await trio.sleep_forever()

    misbehave(host, handler)


async def talk_nonsense(w: World, host: Member) -> None:
    async def handler(stream: Stream) -> None:
        await stream.receive_some()
        await stream.send_all(b"\x05nonsense")
        await stream.aclose()

    misbehave(host, handler)


@pytest.mark.parametrize(
    "trouble",
    [crash, crash_the_engine, drain, refuse, reset, say_nothing, talk_nonsense],
    ids=lambda f: f.__name__,
)
async def test_before_the_first_token_another_host_answers(
    trouble: object, autojump_clock: MockClock
) -> None:
    async with world() as w:
        bad, good = await two_hosts(w)
        async with w.client([bad.node.multiaddrs[0], good.node.multiaddrs[0]]) as client:
            prefer(client, bad)
            await client.hosts(SCRIPTED)
            await trouble(w, bad)  # type: ignore[operator]
            answer = ask(client)
            await whole(answer)
            assert answer.host == good.node.peer_id
            assert answer.usage is not None
            assert answer.usage.tokens_out == 80


async def test_without_another_host_the_reason_of_the_last_one_is_raised(autojump_clock: MockClock) -> None:
    async with world() as w:
        host = await w.add([scripted_host()])
        async with w.client(host.node.multiaddrs[:1]) as client:
            await client.hosts(SCRIPTED)
            await refuse(w, host)
            with pytest.raises(RefusedError, match='capacity: that host says "full"') as caught:
                await whole(ask(client))
            assert caught.value.code == "capacity"


async def test_cancelling_mid_answer_frees_the_slot_and_keeps_the_session(autojump_clock: MockClock) -> None:
    async with world() as w:
        host = await w.add([scripted_host(tokens_per_s=20)])
        async with w.client(host.node.multiaddrs[:1]) as client:
            with trio.CancelScope() as scope:
                async with ask(client, tokens=1000) as answer:
                    async for _ in answer:
                        assert engine_of(host).statistics().active == 1
                        scope.cancel()
            assert scope.cancelled_caught
            assert answer.text
            await trio.sleep(1)
            assert engine_of(host).statistics().active == 0
            await whole(ask(client, tokens=10))
        assert host.host is not None
        assert host.host.totals.sessions == 1
        assert host.host.totals.turns == 2


async def test_an_answer_that_is_left_early_is_cancelled_too(autojump_clock: MockClock) -> None:
    async with world() as w:
        host = await w.add([scripted_host(tokens_per_s=20)])
        async with w.client(host.node.multiaddrs[:1]) as client:
            async with ask(client, tokens=1000) as answer:
                await anext(answer)
            await trio.sleep(0.2)
            assert engine_of(host).statistics().active == 0
            assert len(answer.ids) < 100


async def leave_by_break(client: Client) -> None:
    async for _ in ask(client, tokens=1000):
        break


async def leave_by_error(client: Client) -> None:
    with suppress(ZeroDivisionError):
        async for _ in ask(client, tokens=1000):
            raise ZeroDivisionError


async def leave_by_timeout(client: Client) -> None:
    with trio.move_on_after(3):
        async for _ in ask(client, tokens=1000):
            pass


@pytest.mark.parametrize("leave", [leave_by_break, leave_by_error, leave_by_timeout])
async def test_leaving_the_loop_frees_the_slot_at_once_and_keeps_the_session(
    autojump_clock: MockClock, leave: Callable[[Client], Awaitable[None]]
) -> None:
    async with world() as w:
        host = await w.add([scripted_host(tokens_per_s=20)])
        async with w.client(host.node.multiaddrs[:1]) as client:
            await leave(client)
            await trio.sleep(1)
            assert engine_of(host).statistics().active == 0
            await whole(ask(client, tokens=10))
        assert host.host is not None
        assert (host.host.totals.sessions, host.host.totals.turns) == (1, 2)
        assert host.host.totals.tokens_out < 100


async def test_an_answer_of_a_conversation_is_left_as_easily_and_what_came_of_it_is_noted(
    autojump_clock: MockClock,
) -> None:
    async with world() as w:
        host = await w.add([scripted_host(tokens_per_s=20)])
        async with w.client(host.node.multiaddrs[:1]) as client:
            sampling = SamplingParams(tokens_max=1000, temperature=0)
            conversation = await client.new_conversation(
                ChatOptions(model=SCRIPTED, sampling=sampling), keep=False
            )
            async for _ in conversation.ask("hello"):
                break
            await trio.sleep(1)
            assert engine_of(host).statistics().active == 0
            assert conversation.cut_short
            assert host.host is not None
            assert len(conversation.messages[-1].ids) == host.host.totals.tokens_out


async def test_an_answer_that_is_kept_and_not_read_gives_its_slot_back_and_goes_on_when_it_is_read(
    autojump_clock: MockClock,
) -> None:
    async with world() as w:
        host = await w.add([scripted_host(tokens_per_s=20)])
        async with w.client(host.node.multiaddrs[:1]) as client:
            expected = await whole(ask(client, tokens=1500))
            answer = ask(client, tokens=1500)
            text = await anext(answer)
            await trio.sleep(2 * DEFAULT_LIMITS.stall_s)
            assert engine_of(host).statistics().active == 0
            assert answer.ids  # and they are not lost:
            async for piece in answer:
                text += piece
            assert text == answer.text == expected
            assert len(answer.ids) == 1500
            ranking = await client.hosts(SCRIPTED)
            assert [each.advert.peer for each in ranking.chosen] == [host.node.peer_id]
            assert client.searches.measured[host.node.peer_id].failure_rate == 0
        assert host.host is not None
        assert host.host.totals.sessions == 1


async def test_leaving_loop_and_client_together_ends_the_turn_in_order(autojump_clock: MockClock) -> None:
    async with world() as w:
        host = await w.add([scripted_host(tokens_per_s=20)])
        async with w.client(host.node.multiaddrs[:1]) as client:
            async for _ in ask(client, tokens=1000):
                break
        await trio.sleep(1)
        assert host.host is not None
        assert (host.host.sessions, host.host.totals.turns) == (0, 1)
        assert host.host.totals.tokens_out < 100


async def test_a_slow_consumer_holds_the_host_back_and_loses_nothing(autojump_clock: MockClock) -> None:
    async with world() as w:
        host = await w.add([scripted_host()])
        async with w.client(host.node.multiaddrs[:1]) as client:
            expected = await whole(ask(client, tokens=1500))
            answer = ask(client, tokens=1500)
            text = await anext(answer)
            await trio.sleep(20)  # nobody reads
            assert host.host is not None
            assert host.host.totals.turns == 1  # it could have finished in no time
            async for piece in answer:
                text += piece
                await trio.sleep(0.05)
            assert text == answer.text == expected
            assert len(answer.ids) == 1500


async def test_a_client_that_leaves_with_an_open_answer_leaves_no_task(autojump_clock: MockClock) -> None:
    async with world() as w:
        host = await w.add([scripted_host(tokens_per_s=20)])
        await trio.sleep(5)
        before = trio.lowlevel.current_statistics().tasks_living
        async with w.client(host.node.multiaddrs[:1]) as client:
            answer = ask(client, tokens=1000)
            await anext(answer)
        await trio.sleep(5)
        assert trio.lowlevel.current_statistics().tasks_living <= before
        assert engine_of(host).statistics().active == 0
        assert host.host is not None
        assert host.host.sessions == 0


async def test_a_host_that_breaks_the_protocol_is_remembered_and_an_honest_refusal_is_not(
    autojump_clock: MockClock,
) -> None:
    async with world() as w:
        host = await w.add([scripted_host()])
        async with w.client(host.node.multiaddrs[:1]) as client:
            for _ in range(5):
                with pytest.raises(RefusedError):
                    await whole(ask(client, "x" * 5000))
            assert (await client.hosts(SCRIPTED)).chosen
            await talk_nonsense(w, host)
            client.pool.close()
            await client.pool.wait_closed()
            with pytest.raises(RemoteError):
                await whole(ask(client))
            ranking = await client.hosts(SCRIPTED)
            assert not ranking.chosen
            assert "broke the protocol" in ranking.excluded[0].excluded
            with pytest.raises(NoHostError, match="broke the protocol"):
                await whole(ask(client))


async def test_an_idle_session_that_just_died_is_opened_anew_with_the_same_host(
    autojump_clock: MockClock,
) -> None:
    async with world() as w:
        host = await w.add([scripted_host()])
        async with w.client(host.node.multiaddrs[:1]) as client:
            await whole(ask(client))
            await host.node.network.disconnect(client.node.peer_id)  # the client asks before it can know
            answer = ask(client)
            await whole(answer)
            assert answer.host == host.node.peer_id
        assert host.host is not None
        assert host.host.totals.sessions == 2


async def test_a_new_session_that_dies_is_not_opened_again_and_again(autojump_clock: MockClock) -> None:
    async with world() as w:
        host = await w.add([scripted_host()])
        tried = 0

        async def handler(stream: Stream) -> None:
            nonlocal tried
            tried += 1
            await stream.reset()

        misbehave(host, handler)
        async with w.client(host.node.multiaddrs[:1]) as client:
            with pytest.raises(RemoteError):
                await whole(ask(client))
        assert tried == 1


async def test_filters_are_walls_when_asking_too(autojump_clock: MockClock) -> None:
    async with world() as w:
        host = await w.add([scripted_host()])
        async with w.client(host.node.multiaddrs[:1]) as client:
            with pytest.raises(NoHostError, match="context of 2048 tokens is below the needed 4096"):
                await whole(client.chat("hi", model=SCRIPTED, filters=Filters(n_ctx_min=4096)))
            assert await whole(client.chat("hi", model=SCRIPTED, filters=Filters(n_ctx_min=2048)))


async def _paid_and_free(w: World) -> tuple[Member, Member]:
    paid, free = await two_hosts(w)
    assert paid.host is not None
    await paid.host.reprice(paid.host.models[0].model, price_in=1, price_out=2)
    return paid, free


async def test_a_paid_host_that_is_named_refuses_and_nobody_else_is_asked(autojump_clock: MockClock) -> None:
    async with world() as w:
        paid, free = await _paid_and_free(w)
        async with w.client([paid.node.multiaddrs[0]]) as client:
            with pytest.raises(
                RefusedError, match=r"payment_required: that host asks 0.000001/0.000002 USDC"
            ) as caught:
                await whole(ask(client, peer=paid.node.multiaddrs[0]))
            assert caught.value.code == "payment_required"
        assert free.host is not None
        assert free.host.totals.turns == 0


async def test_among_paid_and_free_hosts_a_free_one_answers(autojump_clock: MockClock) -> None:
    async with world() as w:
        paid, free = await _paid_and_free(w)
        async with w.client([paid.node.multiaddrs[0]]) as client:
            prefer(client, paid)
            answer = ask(client)
            await whole(answer)
            assert answer.host == free.node.peer_id


async def test_a_host_that_asks_for_money_since_its_advert_is_passed_over(autojump_clock: MockClock) -> None:
    async with world() as w:
        host, other = await two_hosts(w)
        async with w.client([host.node.multiaddrs[0], other.node.multiaddrs[0]]) as client:
            prefer(client, host)

            async def refuse_the_free(stream: Stream) -> None:
                await stream.receive_some()
                refusal = Refuse(code="payment_required", detail="prices went up")
                await stream.send_all(pack_frame(CODEC.encode(refusal)))
                await stream.aclose()

            misbehave(host, refuse_the_free)
            answer = ask(client)
            await whole(answer)
            assert answer.host == other.node.peer_id


async def test_leaving_while_the_stream_opens_leaves_no_session_at_the_host(
    autojump_clock: MockClock,
) -> None:
    async with world() as w:
        host = await w.add([scripted_host()])
        assert host.host is not None
        async with w.client(host.node.multiaddrs[:1]) as client:
            (candidate,) = (await client.hosts(SCRIPTED)).chosen
            wanted = Ask(PromptBody(messages=(ChatMessage.of("user", "hi"),), seed=bytes(16)), 100)
            opened = False
            for milliseconds in range(5, 200, 5):
                with trio.move_on_after(milliseconds / 1000):
                    session = await client.pool.open(candidate, wanted)
                    session.close()
                    opened = True
                await trio.sleep(1)
                assert host.host.sessions == 0, f"left behind after {milliseconds} ms"
                if opened:
                    break
            assert opened


async def test_the_first_token_does_not_wait_for_others(autojump_clock: MockClock) -> None:
    async with world(limits=replace(DEFAULT_LIMITS, flush_interval_s=1.0)) as w:
        members = await hosts(w, 1, tokens_per_s=10.0)
        async with w.client(seeds(members)) as client, ask(client) as answer:
            await anext(answer)
            assert len(answer.ids) == 1
            await anext(answer)
            assert len(answer.ids) > 1 + 8
