"""A peer that was written from the SPECs alone, in JavaScript and without libp2p: whatever it had to look up
elsewhere would be missing in a SPEC."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
import trio

import p2pnode
from p2pnode.chain.profile import load_profile
from p2pnode.chain.wallet.phrase import words_in
from p2pnode.models.catalogue import DEFAULT_MODEL, Catalogue
from p2pnode.models.manifest import scripted_model_id
from p2pnode.node.invite import make_invite
from p2pnode.protocols.adverts.messages import PROTOCOL as ADVERTS
from p2pnode.protocols.inference.messages import PROTOCOL as INFERENCE
from tests.cli.support import Program, ask, give, join, run, start, wallet
from tests.net import interop_cases as cases
from tests.net.foreign import PING, Foreign, Ours, foreign
from tests.net.support import running

pytestmark = pytest.mark.interop

ROOT: Final = Path(__file__).parents[2]
VECTORS_MIN: Final = 300
TOKENS: Final = 80
"""More than a window: without an `ack` for each receipt the answer would not end."""
PACE: Final = ("--scripted-tokens-per-s", 300)
"""So slow that turns that were asked together are answered together."""
READ_CREDIT: Final = 256
LONG: Final = 400
"""More than the read credit that a turn begins with."""
PLACES: Final = "Llanfairpwllgwyngyllgogerychwyrndrobwllllantysiliogogogoch, " * 5
"""So long that a call with it takes more than the read credit of the turn beside it."""
WEATHER: Final = {
    "name": "weather",
    "parameters": json.dumps(
        {"type": "object", "properties": {"places": {"enum": [PLACES]}}, "required": ["places"]}
    ),
}
COUNT: Final = {"type": "object", "properties": {"numbers": {"type": "string"}}, "required": ["numbers"]}
QUESTION: Final = "which ships?"
WORDS: Final = "abandon amount liar amount expire adjust cage candy arch gather drum buyer"


@pytest.fixture
async def other(second: Path, tmp_path: Path) -> AsyncIterator[Foreign]:
    """The process."""
    command = ["node", "peer.mjs", cases.DHT_PROTOCOL]
    async with foreign(command, second, log=tmp_path / "second.log", listen=()) as process:
        yield process
        assert await process.call("failures") == []


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Program]:
    """A host of ours with the scripted engine."""
    with join(tmp_path, "host", *PACE) as program:
        yield program


@pytest.fixture
def conversation(tmp_path: Path, host: Program) -> dict[str, Any]:
    """A question that was asked of the host, and that the host keeps, sealed; and the words that open it."""
    wallet(tmp_path / "first")
    ran = ask(tmp_path / "first", QUESTION, "--bootstrap", host.multiaddr, "--max-tokens", 9, "--json")
    (kept,) = ran.named("conversation.kept")
    assert (ran.code, kept["kept"]) == (0, True), ran
    shown = run("sessions", "show", kept["conversation"], "--json", "--data-dir", tmp_path / "first")
    return {
        "sid": kept["conversation"],
        "words": " ".join(words_in((tmp_path / "first.words").read_text())),
        "shown": shown.events[0],
    }


def test_it_makes_every_vector_itself(second: Path) -> None:
    done = subprocess.run(
        ["node", "vectors.mjs", str(ROOT)], cwd=second, capture_output=True, text=True, timeout=60, check=True
    )
    told = json.loads(done.stdout)
    assert told["failed"] == []
    assert told["checked"] >= VECTORS_MIN


@pytest.mark.parametrize("dialler", ["ours", "theirs"])
async def test_each_greets_the_other(other: Foreign, dialler: str) -> None:
    ours = Ours()
    async with running(ours.network):
        if dialler == "ours":
            assert await ours.network.connect(other.addrs[0]) == other.peer_id
        else:
            await other.call("join", invite=make_invite([ours.address("tcp")]))
        await cases.check_ping(ours, other)
        told = await other.call("identified", peer=ours.network.peer_id)
        assert PING in told["protocols"]
        assert {each.split("/p2p/")[0] for each in ours.network.multiaddrs} <= set(told["addrs"])


async def test_it_gets_a_checked_answer_from_a_host(other: Foreign, host: Program) -> None:
    peer = host.multiaddr.rsplit("/", 1)[1]
    await other.call("dial", addr=host.multiaddr)
    told = await other.call("identified", peer=peer)
    assert {ADVERTS, INFERENCE} <= set(told["protocols"])
    (advert,) = await other.call("advert", peer=peer)
    model = scripted_model_id().hex()
    assert (advert["p"], advert["o"][0]["m"]) == (peer, model)
    sheet = await other.call("sheet", peer=peer)
    assert (sheet["offers"][0]["name"], sheet["offers"][0]["profile"]["engine"]) == ("scripted", "scripted")
    await other.call("open", peer=peer, model=model)
    said = await other.call("turns", 30, turns=[user(QUESTION, sampling={"tokens_max": TOKENS})])
    (answer,) = said["answers"]
    assert (answer["ids"], answer["reason"]) == (TOKENS, "length")
    assert answer["text"]
    assert len(said["receipts"]) == -(-TOKENS // 32)
    sampling = {"tokens_max": TOKENS, "stop": ["never there", " "]}
    (stopped,) = (await other.call("turns", 30, turns=[user(QUESTION, sampling=sampling)]))["answers"]
    assert (stopped["reason"], stopped["stop"]) == ("stop", " ")
    await other.call("close")


def user(text: str, **others: Any) -> dict[str, Any]:
    """A turn of one question; what else the prompt says goes by its names on the wire."""
    return {"messages": [{"role": "user", "text": text}], **others}


def hold_a_session(told: Told, opened: dict[str, Any]) -> dict[str, Any]:
    """Two turns at once, one of them with a call of a tool; the turn with its result; the long one again.

    Returns what the process says of the session at its end.
    """
    assert opened["turns_max"] > 1
    long = user("Tell me all.", sampling={"tokens_max": LONG, "temperature": 0})
    asked = user("Rain?", tools=[WEATHER], tool_choice="required", parallel_tool_calls=False)
    both = told.call("turns", turns=[{**long, "late": True}, asked])
    answer, call = both["answers"]
    assert (answer["ids"], answer["reason"]) == (LONG, "length")
    (called,) = call["calls"]
    assert (call["reason"], call["text"], called["name"]) == ("tool_calls", "", "weather")
    assert call["format"] == "hermes/1"
    assert called["pieces"] > 1
    assert json.loads(called["arguments"]) == {"places": PLACES}
    assert any(receipt["turns"] == [1, 2] for receipt in both["receipts"])
    # The long one gets new read credit when it has used up what it had and the other one is over.
    order = [turn for turn, count in both["order"] for _ in range(count)]
    call_over = len(order) - order[::-1].index(2)
    assert 0 < order[:call_over].count(1) <= READ_CREDIT
    assert answer["stops"] == 1
    assert {start["cause"] for start in answer["starts"]} <= {"credit"}
    made = {"id": "c1", "name": "weather", "arguments": called["arguments"]}
    said = [
        *asked["messages"],
        {"role": "assistant", "tool_calls": [made]},
        {"role": "tool", "tool_call_id": "c1", "text": "rain, all day"},
    ]
    more = {"messages": said, "tools": [WEATHER], "sampling": {"tokens_max": 20}}
    whole: dict[str, Any] = told.call("turns", turns=[more, long])
    rain, again = whole["answers"]
    assert (rain["ids"], rain["calls"], len(rain["text"])) == (20, [], 20)
    assert again["text"] == answer["text"]
    told.call("close")
    return whole


class Told:
    """The process, for tests that run commands of ours in this one."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.address: str = self._line()["ready"]["addrs"][0]

    def call(self, command: str, **arguments: Any) -> Any:
        """The result of a command."""
        answer = self._answer(command, arguments)
        assert "error" not in answer, answer
        return answer["result"]

    def failure(self, command: str, **arguments: Any) -> str:
        """Why a command failed."""
        error: str = self._answer(command, arguments)["error"]
        return error

    def _answer(self, command: str, arguments: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"id": 1, "do": command, **arguments}).encode() + b"\n")
        self._process.stdin.flush()
        return self._line()

    def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        told: dict[str, Any] = json.loads(self._process.stdout.readline())
        return told


@pytest.fixture
def told(second: Path) -> Iterator[Told]:
    command = ["node", "peer.mjs", cases.DHT_PROTOCOL, "told"]
    with subprocess.Popen(command, cwd=second, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield Told(process)
        finally:
            process.kill()


def test_a_client_of_ours_gets_a_checked_answer_from_it(told: Told, tmp_path: Path) -> None:
    flags = ["--peer", told.address, "--max-tokens", TOKENS, "--json"]
    ran = ask(tmp_path / "client", QUESTION, *flags, model=told.call("model"))
    assert ran.code == 0, ran
    text = "".join(each["text"] for each in ran.named("text"))
    assert text == " ".join(str(number) for number in range(1, TOKENS + 1))
    (done,) = ran.named("done")
    assert (done["tokens_out"], done["checkpoints"], done["tokens_in"]) == (TOKENS, 3, len(QUESTION))


async def test_a_client_of_ours_asks_it_two_questions_at_once_in_one_session(
    other: Foreign, tmp_path: Path
) -> None:
    tool = {"type": "function", "function": {"name": "count", "parameters": COUNT}}
    said: dict[str, p2pnode.Answer] = {}

    async def ask_one(question: str, **others: Any) -> None:
        sampling = p2pnode.SamplingParams(tokens_max=LONG)
        said[question] = client.chat(
            question, model=DEFAULT_MODEL, peer=other.addrs[0], sampling=sampling, **others
        )
        assert "".join([piece async for piece in said[question]]) == said[question].text

    # Tools go only to models of which it is known what a host may bill for them.
    model = Catalogue.load().find(DEFAULT_MODEL).model_id
    assert model is not None
    await other.call("serve", model=model.hex())
    client = p2pnode.Client(discovery=False, data_dir=tmp_path)
    async with client, trio.open_nursery() as nursery:
        nursery.start_soon(ask_one, "all of them")
        nursery.start_soon(partial(ask_one, "by a tool", tools=[tool]))
    numbers = [str(number) for number in range(1, LONG + 1)]
    assert said["all of them"].text == " ".join(numbers)
    (call,) = said["by a tool"].tool_calls
    assert call.name == "count"
    assert json.loads(call.arguments) == {"numbers": " ".join(numbers[: LONG // 2 - 1])}
    (order,) = await other.call("served")
    assert sorted(set(order)) == [1, 2]
    assert order != sorted(order)
    assert order != sorted(order, reverse=True)


def test_hosts_shows_what_its_sheet_says(told: Told, tmp_path: Path) -> None:
    flags = ["--bootstrap", told.address, "--model", told.call("model"), "--no-mdns", "--json"]
    ran = run("hosts", *flags, "--data-dir", tmp_path / "client")
    (host,) = ran.named("host")
    assert (host["engine"], host["addresses"]) == ("counting 1", [told.address.partition("/p2p/")[0]])


@contextmanager
def paid_session(told: Told, folder: Path, keep_s: int = 0) -> Iterator[tuple[Program, dict[str, Any]]]:
    """A host of ours with a chain, and what the process says of the paid session that it opened there."""
    prices = ("--price-in", "0.5", "--price-out", "2", "--session-fee", "0.001")
    with start(folder, "chain", ["chain", "dev", "--port", 0, "--data-dir", folder / "chain"]) as chain:
        profile = Path(chain.wait_event("chain.ready")["profile"])
        give(profile, wallet(folder / "paid"), usdc="0", ether="1")
        give(profile, told.call("payer"), usdc="1")
        known = load_profile(profile)
        contracts = {
            "id": known.chain_id,
            "url": known.rpc_urls[0],
            "market": known.job_marketplace.hex(),
            "token": known.usdc.hex(),
        }
        with join(folder, "paid", *PACE, *prices, "--chain", profile) as host:
            told.call("dial", addr=host.multiaddr)
            peer, model = host.multiaddr.rsplit("/", 1)[1], scripted_model_id().hex()
            terms = {"deposit": 100_000, "chain": contracts, "keep_s": keep_s}
            yield host, told.call("open", peer=peer, model=model, **terms)


def test_it_has_two_turns_at_once_and_a_call_of_a_tool_in_one_session(told: Told, host: Program) -> None:
    told.call("dial", addr=host.multiaddr)
    peer, model = host.multiaddr.rsplit("/", 1)[1], scripted_model_id().hex()
    opened = told.call("open", peer=peer, model=model)
    said = hold_a_session(told, opened)
    assert (said["vouchers"], said["cost"]) == (0, 0)


def test_it_has_texts_embedded_beside_a_question_as_a_client_of_ours_has(
    told: Told, host: Program, tmp_path: Path
) -> None:
    texts = ["the sea is wide", "a ledger of debts", "Llanfair, €"]
    told.call("dial", addr=host.multiaddr)
    peer, model = host.multiaddr.rsplit("/", 1)[1], scripted_model_id().hex()
    told.call("open", peer=peer, model=model)
    said = told.call("turns", turns=[{"embed": texts}, user(QUESTION, sampling={"tokens_max": TOKENS})])
    embedded, answer = said["answers"]
    assert (embedded["reason"], embedded["ids"], answer["ids"]) == ("stop", 0, TOKENS)
    assert embedded["tokens_in"] == sum(len(text.encode()) + 1 for text in texts)
    assert any(1 in receipt["ended"] for receipt in said["receipts"])
    told.call("close")
    ran = run(
        "embed", *texts, "--json", "--model", "scripted", "--no-mdns", "--bootstrap", host.multiaddr,
        "--data-dir", tmp_path / "ours",
    )  # fmt: skip
    assert [each["embedding"] for each in ran.named("embedding")] == embedded["vectors"]


def test_it_pays_for_two_turns_at_once_in_one_session(told: Told, tmp_path: Path) -> None:
    with paid_session(told, tmp_path) as (host, opened):
        said = hold_a_session(told, opened)
        # One for the input of each turn, and one for each receipt.
        assert said["vouchers"] == 4 + len(said["receipts"])
        settled = host.wait_event("settled")
        assert (settled["session"], settled["amount"]) == (opened["session"], said["cost"])


def test_two_turns_of_a_paid_session_go_on_where_a_stream_was_lost(told: Told, tmp_path: Path) -> None:
    with paid_session(told, tmp_path) as (host, opened):
        one, two = (user(text, sampling={"tokens_max": LONG, "temperature": 0}) for text in ("One?", "Two?"))
        cut = told.call("turns", turns=[one, two], lose_at=LONG)
        assert [answer["ids"] for answer in cut["answers"]] == [LONG, LONG]
        assert {turn for turn, _ in cut["order"]} == {1, 2}
        said = told.call("turns", turns=[one, two])
        assert [each["text"] for each in said["answers"]] == [each["text"] for each in cut["answers"]]
        told.call("close")
        settled = host.wait_event("settled")
        assert (settled["session"], settled["amount"]) == (opened["session"], said["cost"])


def leave_and_go_on(told: Told, peer: str, opened: dict[str, Any]) -> dict[str, Any]:
    """A turn, the session is left, resumed and has two turns more; meanwhile another holder is refused.

    Returns what the process says of the session at its end.
    """
    assert opened["keep_s"] > 0
    question = user(QUESTION, sampling={"tokens_max": TOKENS})
    before = told.call("turns", turns=[question])
    left = told.call("leave", seconds=600)
    assert (left["until"] > time.time(), left["generation"]) == (True, 0)
    resumed = told.call("resume", peer=peer)
    assert (resumed["session"], resumed["generation"]) == (opened["session"], 1)
    assert "in_use" in told.failure("resume", peer=peer)  # it draws a holder each time
    said: dict[str, Any] = told.call("turns", turns=[question, question])
    assert [answer["turn"] for answer in said["answers"]] == [1, 2]
    assert [answer["ids"] for answer in said["answers"]] == [TOKENS, TOKENS]
    assert said["cost"] >= before["cost"]
    told.call("close")
    return said


def test_it_leaves_a_free_session_and_goes_on_with_it(told: Told, host: Program) -> None:
    told.call("dial", addr=host.multiaddr)
    peer, model = host.multiaddr.rsplit("/", 1)[1], scripted_model_id().hex()
    leave_and_go_on(told, peer, told.call("open", peer=peer, model=model, keep_s=3600))


def test_it_leaves_a_paid_session_and_goes_on_with_it(told: Told, tmp_path: Path) -> None:
    with paid_session(told, tmp_path, keep_s=3600) as (host, opened):
        said = leave_and_go_on(told, host.multiaddr.rsplit("/", 1)[1], opened)
        settled = host.wait_event("settled")
        assert (settled["session"], settled["amount"]) == (opened["session"], said["cost"])


def test_it_pays_a_host_of_ours_to_the_token(told: Told, tmp_path: Path) -> None:
    with paid_session(told, tmp_path) as (host, opened):
        said = told.call("turns", turns=[user(QUESTION, sampling={"tokens_max": TOKENS})])
        (answer,) = said["answers"]
        assert (answer["ids"], answer["reason"], len(said["receipts"])) == (TOKENS, "length", 3)
        assert said["cost"] > 1000  # the fee, and what the tokens cost
        told.call("close")
        settled = host.wait_event("settled")
        assert (settled["session"], settled["amount"]) == (opened["session"], said["cost"])


async def test_it_recovers_what_a_client_of_ours_stored(
    other: Foreign, host: Program, conversation: dict[str, Any]
) -> None:
    peer = host.multiaddr.rsplit("/", 1)[1]
    await other.call("dial", addr=host.multiaddr)
    found = await other.call("recover", peer=peer, words=conversation["words"])
    (one,) = found["conversations"]
    assert (one["sid"], one["title"]) == (conversation["sid"], QUESTION)
    assert one["turns"] == [turn["text"] for turn in conversation["shown"]["turns"]]
    assert one["turns"][0] == QUESTION


def test_a_client_of_ours_recovers_what_it_stored(told: Told, tmp_path: Path) -> None:
    turns = [["user", "Which ships?"], ["assistant", "Brigs, schooners, ketches."]]
    words, data_dir = tmp_path / "words", tmp_path / "fresh"
    words.write_text(WORDS)
    with join(tmp_path, "store", "--client-only", "--store-for", "anyone") as store:
        told.call("dial", addr=store.multiaddr)
        peer = store.multiaddr.rsplit("/", 1)[1]
        sid = told.call("store", peer=peer, words=WORDS, title="Ships", turns=turns)
        restored = run("wallet", "restore", "--phrase-file", words, "--random", "--data-dir", data_dir)
        assert restored.code == 0, restored
        flags = ["--no-mdns", "--data-dir", data_dir, "--bootstrap", store.multiaddr]
        recovered = run("sessions", "list", "--recover", "--json", *flags)
        assert recovered.code == 0, recovered
        (listed,) = recovered.named("conversation")
        assert (listed["conversation"], listed["title"]) == (sid, "Ships")
        shown = run("sessions", "show", sid, "--json", *flags)
        assert shown.code == 0, shown
        found = [[turn["role"], turn["text"]] for turn in shown.events[0]["turns"]]
        assert found == turns
        assert all(turn["whole"] for turn in shown.events[0]["turns"])
