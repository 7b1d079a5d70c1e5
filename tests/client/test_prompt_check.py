"""A client that has a model's files renders the prompt itself, and pays for no other one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from p2pnode.client.prompt_check import PromptRenderers
from p2pnode.client.question import KnownModel
from p2pnode.errors import ConfigError, HostFault
from p2pnode.ids import ModelId, PeerId
from p2pnode.models.catalogue import DEFAULT_MODEL, Catalogue
from p2pnode.models.manifest import Manifest, model_id_text, scripted_model_id
from p2pnode.models.prompt_files import KeptPromptFiles, PromptFiles, read_prompt_files
from p2pnode.models.prompt_maker import prompt_maker
from p2pnode.models.pull.pull import pull
from p2pnode.models.scripted import ScriptedConfig, ScriptedEngine
from p2pnode.net.stream import Stream
from p2pnode.node.driver import MessageChannel
from p2pnode.protocols.inference.embeddings import texts_hash
from p2pnode.protocols.inference.messages import (
    CODEC,
    TEMPLATE_TOKENS_MAX,
    TEMPLATE_TOKENS_PER_MESSAGE_MAX,
    Accept,
    ChatMessage,
    Open,
    PromptBody,
    Quote,
    ResponseFormat,
    Voucher,
)
from p2pnode.protocols.inference.receipts import ids_hash
from p2pnode.protocols.typed_data import session_id
from tests.client.support import HELLO, HELLO_HASH, ask, misbehave, whole
from tests.host.paid import FEE, RICH, domains, paid_world

UNKNOWN = ModelId(b"u" * 32)
BODY = PromptBody(messages=(ChatMessage.of("user", "hello"),), seed=bytes(16))


@pytest.mark.parametrize(
    ("quote", "words"),
    [
        (Quote(turn=1, tokens_in=8, prompt_hash=b"\1" * 32), "another prompt than the one that was rendered"),
        (Quote(turn=1, tokens_in=8, prompt_hash=bytes(32)), "another prompt than the one that was rendered"),
        (Quote(turn=1, tokens_in=9, prompt_hash=HELLO_HASH), "quoted 9 input tokens; there are 8"),
        (Quote(turn=1, tokens_in=7, prompt_hash=HELLO_HASH), "quoted 7 input tokens; there are 8"),
    ],
    ids=["another prompt", "no hash", "one token more", "one token less"],
)
async def test_a_quote_for_another_prompt_than_the_clients_own_is_not_paid(
    quote: Quote, words: str, tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with paid_world(tmp_path) as w:
        member, _ = await w.host()
        heard: list[object] = []

        async def quotes(stream: Stream) -> None:
            channel = MessageChannel(stream, CODEC)
            request = await channel.receive()
            assert isinstance(request, Open)
            assert request.terms is not None
            session = session_id(domains().market, request.terms)
            await channel.send(
                [Accept(session=session, nonce=bytes(32), epoch=1, n_ctx=2048, session_fee=FEE)]
            )
            await channel.receive()
            await channel.send([quote])
            while (message := await channel.receive()) is not None:
                heard.append(message)

        misbehave(member, quotes)
        async with w.client(member) as client:
            with pytest.raises(HostFault, match=words):
                await whole(ask(client))
            assert client.searches.measured[member.node.peer_id].faults == 1
        assert not [each for each in heard if isinstance(each, Voucher)]
        assert w.balance("alice") == RICH


@pytest.mark.parametrize("known", [False, True])
async def test_input_is_paid_with_the_prompt_only_at_a_host_that_finished_a_turn_for_this_wallet(
    known: bool, tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with paid_world(tmp_path) as w:
        member, _ = await w.host()
        if known:
            async with w.client(member, journal=tmp_path / "journal.sqlite") as client:
                await whole(ask(client))
        heard: list[object] = []

        async def takes(stream: Stream) -> None:
            channel = MessageChannel(stream, CODEC)
            request = await channel.receive()
            assert isinstance(request, Open)
            assert request.terms is not None
            session = session_id(domains().market, request.terms)
            await channel.send(
                [Accept(session=session, nonce=bytes(32), epoch=1, n_ctx=2048, session_fee=FEE)]
            )
            while (message := await channel.receive()) is not None:
                heard.append(message)

        misbehave(member, takes)
        async with w.client(member, journal=tmp_path / "journal.sqlite") as client:
            with trio.move_on_after(5):
                await whole(ask(client))
        vouchers = [each.tokens_in for each in heard if isinstance(each, Voucher)]
        assert vouchers == ([len(HELLO)] if known else [])


async def test_an_honest_quote_is_the_clients_own_count_and_hash(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    renderers = PromptRenderers(tmp_path)
    assert await renderers.rendered(scripted_model_id(), BODY) == (len(HELLO), HELLO_HASH)
    texts = PromptBody(embed=("a", "bc"), seed=bytes(16))
    assert await renderers.rendered(scripted_model_id(), texts) == (5, texts_hash([(97, 256), (98, 99, 256)]))
    await renderers.aclose()


@pytest.mark.parametrize("prefix", [(65, 66), (65, 4_000_000_000), tuple(b"no json")])
async def test_no_ids_that_a_host_sent_end_the_clients_own_count(
    prefix: tuple[int, ...], tmp_path: Path, autojump_clock: MockClock
) -> None:
    renderers = PromptRenderers(tmp_path)
    body = replace(BODY, response_format=ResponseFormat(kind="json_object"))
    alone = (await ScriptedEngine().prompt(body)).ids
    count, digest = len(alone) + len(prefix), ids_hash((*alone, *prefix))
    assert await renderers.rendered(scripted_model_id(), replace(body, prefix=prefix)) == (count, digest)
    await renderers.aclose()


async def test_without_the_models_files_a_quote_is_held_against_a_bound_of_bytes(tmp_path: Path) -> None:
    assert await PromptRenderers(tmp_path / "none").rendered(UNKNOWN, BODY) is None
    most = KnownModel(UNKNOWN).input_max(BODY)
    assert most == len(b"hello") + TEMPLATE_TOKENS_MAX + TEMPLATE_TOKENS_PER_MESSAGE_MAX


async def test_what_can_not_be_rendered_here_is_left_to_hosts(tmp_path: Path) -> None:
    renderers = PromptRenderers(tmp_path)
    renderers.use(UNKNOWN, ScriptedEngine(ScriptedConfig(embeddings=False)))
    assert await renderers.rendered(UNKNOWN, PromptBody(embed=("a",), seed=bytes(16))) is None
    assert await renderers.rendered(UNKNOWN, BODY) == (len(HELLO), HELLO_HASH)
    await renderers.aclose()


async def test_tools_are_not_sent_where_what_they_may_cost_is_unknown(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with paid_world(tmp_path) as w:
        member, _ = await w.host()
        async with w.client(member) as client:
            with pytest.raises(ConfigError, match="tools go only to models of the catalogue"):
                client.chat("hi", model=model_id_text(UNKNOWN), tools=[{"name": "clock"}])
            called = {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "clock"}}]}
            answered = {"role": "tool", "tool_call_id": "1", "content": "noon"}
            with pytest.raises(ConfigError, match="tools go only to models of the catalogue"):
                client.chat(
                    [{"role": "user", "content": "hi"}, called, answered], model=model_id_text(UNKNOWN)
                )


async def test_a_client_without_the_model_counts_with_what_its_host_gives(tmp_path: Path) -> None:
    entry = Catalogue.load().find(DEFAULT_MODEL)
    model = await pull(entry, tmp_path / "host")
    files = await trio.to_thread.run_sync(read_prompt_files, model)
    asked: list[str] = []

    async def fetch(
        host: PeerId, _model: ModelId, _manifest: Manifest | None, _kept: KeptPromptFiles
    ) -> PromptFiles | None:
        asked.append(host)
        return files if host == "honest" else None

    renderers = PromptRenderers(tmp_path / "client", fetch)
    assert await renderers.rendered(model.model_id, BODY) is None
    for _ in range(2):  # who has not what it should have is asked once
        assert await renderers.rendered(model.model_id, BODY, PeerId("broken")) is None
    made = await renderers.rendered(model.model_id, BODY, PeerId("honest"))
    assert made == await renderers.rendered(model.model_id, BODY)
    assert asked == ["broken", "honest"]
    await renderers.aclose()
    maker = await prompt_maker(files, 2048)
    ids = (await maker.prompt(BODY)).ids
    await maker.aclose()
    assert made == (len(ids), ids_hash(ids))
