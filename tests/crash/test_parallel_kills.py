"""A host or a client that is killed at a random frame while several turns of one paid session are under way.

Real processes on a development chain. Of a killed client, what it printed of each answer is the beginning of
what one host says; started again on its journal it brings its host the last voucher it signed, to the unit.
Of a killed host, another one goes on with every answer, and the first is paid all of it when it is back.
"""

from __future__ import annotations

import random
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

import pytest
import trio

from p2pnode import SamplingParams
from p2pnode.client.client import Client
from p2pnode.client.interface import Answer
from p2pnode.models.manifest import SCRIPTED
from p2pnode.payments.journal.journal import BoughtSession, HostedSession
from p2pnode.protocols.typed_data import amount_due
from tests.client.failing import unkilled
from tests.crash.checks import wait_settled
from tests.crash.mortal import quick
from tests.crash.parties import RICH, Party
from tests.crash.points import Point
from tests.crash.processes import Forge, Program
from tests.crash.support import CrashWorld, crash_world, joined, until

TURNS: Final = 4
TOKENS: Final = 120
SPEED: Final = 100.0
"""Tokens a second: a turn takes some twenty frames."""
QUESTIONS: Final = [f"question {number}" for number in range(TURNS)]
WINDOW: Final = 32 * (TURNS + 1)
"""Output tokens that a host lets a session of so many turns owe."""
SAMPLING: Final = SamplingParams(tokens_max=TOKENS, temperature=0)
INPUTS: Final = 2
"""Inputs that a client has paid at most whose first token has not come."""

INPUT: Final = 13
"""Tokens of one question."""


async def expected() -> list[str]:
    """What one host says to each of the questions."""
    return [(await unkilled(question, TOKENS))[1] for question in QUESTIONS]


def signed(bought: BoughtSession) -> int:
    """What a client owes by the last voucher that it signed."""
    last = bought.final or bought.voucher
    return last.amount if last is not None else bought.terms.session_fee


def best_of(hosted: HostedSession) -> tuple[int, int, int]:
    """Amount, input and output of the best voucher that a host holds."""
    best = hosted.voucher
    return (
        (hosted.terms.session_fee, 0, 0) if best is None else (best.amount, best.tokens_in, best.tokens_out)
    )


async def paying_host(w: CrashWorld, name: str, keep_hours: int) -> Party:
    """One that serves all turns at once."""
    host = await w.host(name)
    host.config.update(slots=TURNS, keep_hours=keep_hours)
    return host


async def ask_all(client: Client, peer: str | None) -> list[Answer]:
    """All questions at once, to their ends."""
    answers = [client.chat(each, model=SCRIPTED, peer=peer, sampling=SAMPLING) for each in QUESTIONS]

    async def read(answer: Answer) -> None:
        async for _ in answer:
            pass

    async with trio.open_nursery() as nursery:
        for answer in answers:
            nursery.start_soon(read, answer)
    return answers


# ---- the client dies


def a_frame_of_the_client(rng: random.Random) -> Point:
    """Somewhere between its first prompt and the last of its answers."""
    name = rng.choice(["Tokens", "Tokens", "Checkpoint", "Quote", "Voucher"])
    most = {"Tokens": 50, "Checkpoint": 12, "Quote": TURNS, "Voucher": 14}[name]
    nth = rng.randint(1, most)
    return (
        Point(rng.choice(["before", "after"]), "send", name, nth)
        if name == "Voucher"
        else Point("after", "hear", name, nth)
    )


async def printed(process: Program) -> list[str]:
    """What a client had shown of each answer when it died."""
    texts = [""] * TURNS
    for said in await process.all_events():
        if said["event"] == "piece":
            texts[said["question"]] += said["text"]
    return texts


async def client_dies(w: CrashWorld, forge: Forge, point: Point, keep_hours: int) -> None:
    """One run: see the module."""
    host, client = await paying_host(w, "host", keep_hours), await w.client()
    texts = await expected()
    asked = {"questions": QUESTIONS, "tokens": TOKENS}
    async with joined(host, tokens_per_s=SPEED) as peer:
        async with forge.process("crowd", client.config, point, peer=peer, **asked) as process:
            shown = await printed(process)
        for text, whole in zip(shown, texts, strict=True):
            assert whole.startswith(text), "the beginning of what one host says, and nothing twice"
        (lost,) = client.purchases()
        (held,) = host.hosted()
        amount, paid_in, paid_out = best_of(held)
        mine = lost.final or lost.voucher
        # What the host has lags what was signed by no more than the window and the inputs ahead.
        assert amount <= signed(lost)
        if mine is not None:
            assert mine.amount == amount_due(lost.terms, mine.tokens_in, mine.tokens_out)
            assert mine.tokens_out - paid_out <= WINDOW
            assert mine.tokens_in - paid_in <= INPUTS * INPUT
        receipts = host.receipts(lost.session)
        delivered = receipts[-1].tokens_out if receipts else 0
        assert delivered - paid_out <= WINDOW

        # Started again on its journal. Where the host keeps the session, there is no second fee.
        async with Client(client.node_config, limits=quick(), remember=False, discovery=False) as made:
            answers = await ask_all(made, peer)
            assert [answer.text for answer in answers] == texts
        purchases = client.purchases()
        assert len(purchases) == (1 if keep_hours and lost.state == "open" else 2), "fees"
        for bought in purchases:
            assert bought.owed is None or bought.session == lost.session
    await all_settled(w, host, client, [each.session for each in purchases])
    if keep_hours:  # nothing that was signed is lost with it
        assert sum(each.amount or 0 for each in host.hosted()) == sum(map(signed, client.purchases()))


async def all_settled(w: CrashWorld, host: Party, client: Party, sessions: list[Any]) -> None:
    """Each once, at the host's best voucher, and the client's wallet lacks exactly that."""
    spent = 0
    for session in sessions:
        await wait_settled(w, host, session)
        (closed,) = await w.closed(session)
        assert await w.opened(session) == 1
        (record,) = [each for each in host.hosted() if each.session == session]
        assert closed.amount == best_of(record)[0]
        spent += closed.amount
    assert RICH - await w.usdc(client) == spent


# ---- the host dies


def a_frame_of_the_host(rng: random.Random) -> Point:
    """Somewhere between the first token and the last voucher."""
    if rng.random() < 0.5:
        return Point(rng.choice(["before", "after"]), "send", "Tokens", rng.randint(1, 50))
    return Point("after", "hear", "Voucher", rng.randint(1, 14))


async def host_dies(w: CrashWorld, forge: Forge, point: Point) -> None:
    """One run: see the module."""
    first, second = [await paying_host(w, name, 0) for name in ("host", "other")]
    client = await w.client()
    texts = await expected()
    async with AsyncExitStack() as stack:
        dying = await stack.enter_async_context(
            forge.process("host", first.config, point, tokens_per_s=SPEED)
        )
        address = (await dying.event("ready"))["multiaddrs"][0]
        second.config["bootstrap"] = [address]
        first.config["listen"] = [address.rpartition("/p2p/")[0]]  # it comes back where it was
        other = await stack.enter_async_context(joined(second, tokens_per_s=SPEED))
        async with Client(
            client.node_config, limits=quick(), remember=False, bootstrap=(address, other)
        ) as made:
            # Both are known, and the one that dies is preferred: it has answered fast.
            ranking = await made.hosts(SCRIPTED)
            assert len(ranking.chosen) == 2
            peer = address.rpartition("/")[2]
            for each in ranking.chosen:
                rank = 1 if each.advert.peer == peer else 2
                made.searches.note_answer(each.advert.peer, 1.0 * rank, 10_000.0 / rank)
            answers = await ask_all(made, None)
            await dying.end()
        assert [answer.text for answer in answers] == texts
        items = [item for answer in answers for item in answer.bill]
        for answer in answers:
            assert sum(item.tokens_out for item in answer.bill) == len(answer.ids) == TOKENS
        theirs = [item for item in items if item.peer == peer]
        (lost,) = [each for each in client.purchases() if each.host == peer]
        (held,) = first.hosted()
        amount, _, paid_out = best_of(held)
        mine = lost.final or lost.voucher
        assert mine is not None
        assert sum(item.cost for item in theirs) == mine.amount
        assert sum(item.tokens_out for item in theirs) == mine.tokens_out
        assert amount <= mine.amount
        assert mine.tokens_out - paid_out <= WINDOW
        # It comes back, and so does the client: it is handed the last voucher before it settles.
        async with joined(first, linger_s=15.0) as back:
            async with Client(client.node_config, limits=quick(), remember=False, bootstrap=(back,)):

                async def delivered() -> bool:
                    return all(each.owed is None for each in client.purchases())

                await until(delivered, "the last voucher is with its host")
            (again,) = first.hosted()
            assert best_of(again)[0] == mine.amount
            await wait_settled(w, first, lost.session)
        (closed,) = await w.closed(lost.session)
        assert closed.amount == mine.amount
    # Where it died after the last answer, on a busy machine, nobody else was asked.
    assert len(client.purchases()) == len({item.peer for item in items}), "one fee a host"


# ---- what is run


async def run(forge: Forge, folder: Path, seed: int) -> None:
    rng = random.Random(seed)
    async with crash_world(folder) as w:
        if seed % 2:
            await host_dies(w, forge, a_frame_of_the_host(rng))
        else:
            await client_dies(w, forge, a_frame_of_the_client(rng), keep_hours=seed % 4 // 2)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(30))
async def test_a_side_killed_at_a_random_frame_of_several_turns_loses_nothing_and_pays_nothing_twice(
    tmp_path: Path, forge: Forge, seed: int
) -> None:
    await run(forge, tmp_path, seed)
