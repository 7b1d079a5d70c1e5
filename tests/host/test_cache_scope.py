"""Whose prefix cache a prompt uses: that of its session and its cache key, and of nobody else."""

from __future__ import annotations

from trio.testing import MockClock

from p2pnode.client.chat_options import ChatOptions
from p2pnode.models.manifest import SCRIPTED
from p2pnode.protocols.inference.messages import SamplingParams
from tests.node.world import scripted_host, world

SAMPLING = SamplingParams(tokens_max=4, temperature=0)


async def test_turns_of_one_session_share_a_cache_under_one_key_only(autojump_clock: MockClock) -> None:
    async with world() as w:
        host = await w.add([scripted_host()])
        async with w.client(host.node.multiaddrs[:1]) as client:
            reused, sessions = list[int](), set[bytes]()
            for key in (b"a" * 16, b"a" * 16, b"b" * 16, None, None, b"a" * 16):
                answer = client.answer(
                    "Hello there", ChatOptions(model=SCRIPTED, sampling=SAMPLING, cache_key=key)
                )
                async for _ in answer:
                    pass
                assert answer.usage is not None
                reused.append(answer.usage.reused)
                sessions |= {item.session for item in answer.bill}
            assert len(sessions) == 1
            assert [bool(count) for count in reused] == [False, True, False, False, True, True]


async def test_conversations_of_one_session_share_none(autojump_clock: MockClock) -> None:
    async with world() as w:
        host = await w.add([scripted_host()])
        async with w.client(host.node.multiaddrs[:1]) as client:
            reused, sessions = [], set()
            for _ in range(2):
                conversation = await client.new_conversation(
                    ChatOptions(model=SCRIPTED, sampling=SAMPLING, system="Be brief."), keep=False
                )
                for question in ("one", "two"):
                    answer = conversation.ask(question)
                    async for _piece in answer:
                        pass
                    assert answer.usage is not None
                    reused.append(bool(answer.usage.reused))
                    sessions |= {item.session for item in answer.bill}
            assert len(sessions) == 1
            assert reused == [False, True, False, True]
