"""Conversations of the chat page that the node keeps, and goes on with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from p2pnode.client.chat_options import ChatOptions
from tests.client.machines import say
from tests.gateway.dashboard.support import dashboard_stage

API = "/dashboard/api"


async def ask(browser: httpx.AsyncClient, text: str, sid: str = "", **more: Any) -> dict[str, Any]:
    """Ask on in a conversation, or in a new one: the text of the answer, and the last event of each name."""
    keep = {"id": sid, **more.pop("keep", {})}
    more.setdefault("prompt_cache_key", "as the page names it")
    body: dict[str, Any] = {
        "model": "scripted",
        "max_tokens": 20,
        "messages": [{"role": "user", "content": text}],
    }
    found: dict[str, Any] = {"text": ""}
    async with browser.stream("POST", f"{API}/chat", json={**body, "keep": keep, **more}) as answer:
        async for frame in answer.aiter_text():
            for each in frame.split("\n\n"):
                name, _, data = each.removeprefix("event: ").partition("\ndata: ")
                if data:
                    found[name] = json.loads(data)
                    found["text"] += found[name].get("text", "")
    return found


async def test_a_conversation_of_the_page_is_kept_and_goes_on_there_and_in_a_terminal(tmp_path: Path) -> None:
    async with dashboard_stage(tmp_path, 1, keeps=True) as s, s.browser() as browser:
        assert (await browser.get(f"{API}/conversations")).json() == {"why_not": "", "conversations": []}
        first = await ask(browser, "What is the sky?")
        sid = first["kept"]["id"]
        (row,) = (await browser.get(f"{API}/conversations")).json()["conversations"]
        assert (row["id"], row["title"]) == (sid, "What is the sky?")
        second = await ask(browser, "And the sea?", sid)
        assert second["kept"] == {"id": sid, "why_not": ""}
        assert second["end"]["reused"] > 0, "the host had the conversation in its cache"
        resumed = await s.client.resume(
            bytes.fromhex(sid), ChatOptions()
        )  # as `p2pnode sessions resume` does
        assert [each.text for each in resumed.messages] == [
            "What is the sky?", first["text"], "And the sea?", second["text"],
        ]  # fmt: skip
        third = await say(resumed, "And the land?")
        await resumed.wait_written()
        turns = (await browser.get(f"{API}/conversations/{sid}")).json()["turns"]
        assert [each["role"] for each in turns] == ["user", "assistant"] * 3
        assert "".join(each["text"] for each in turns[-1]["parts"]) == third
        assert turns[1]["parts"][0]["host"] == s.members[0].node.peer_id
        assert turns[1]["tokens_out"] == first["end"]["tokens_out"]
        await ask(browser, "And what next?", sid)  # the page knows what the terminal said in between
        turns = (await browser.get(f"{API}/conversations/{sid}")).json()["turns"]
        assert [each["role"] for each in turns] == ["user", "assistant"] * 4


async def test_a_conversation_that_is_deleted_is_gone_and_an_unknown_one_is_refused(tmp_path: Path) -> None:
    async with dashboard_stage(tmp_path, 1, keeps=True) as s, s.browser() as browser:
        sid = (await ask(browser, "Hello"))["kept"]["id"]
        assert (await browser.post(f"{API}/conversations/{sid}/forget", json={})).status_code == 200
        assert (await browser.get(f"{API}/conversations")).json()["conversations"] == []
        for wrong in (sid, "00" * 16, "xyz", "00"):
            answer = await browser.get(f"{API}/conversations/{wrong}")
            assert answer.status_code == 404, wrong
            assert answer.json()["error"]["message"]
        assert (await ask(browser, "Are you there?", sid))["failed"]["code"] == "no_conversation"


async def test_nothing_is_kept_without_a_key_and_the_page_is_told_why(tmp_path: Path) -> None:
    async with dashboard_stage(tmp_path, 1) as s, s.browser() as browser:
        found = (await browser.get(f"{API}/conversations")).json()
        assert found["conversations"] == []
        assert "p2pnode wallet new" in found["why_not"]


@pytest.mark.long
async def test_tools_are_refused_in_a_conversation_that_is_kept(tmp_path: Path) -> None:
    async with dashboard_stage(tmp_path, 1, keeps=True) as s, s.browser() as browser:
        tool = {"type": "function", "function": {"name": "look"}}
        found = await ask(browser, "Hello", tools=[tool])
        assert "kept" not in found
        assert (await browser.get(f"{API}/conversations")).json()["conversations"] == []


@pytest.mark.long
async def test_an_answer_that_was_left_in_the_middle_goes_on_from_there(tmp_path: Path) -> None:
    async with dashboard_stage(tmp_path, 1, keeps=True, tokens_per_s=40.0) as s, s.browser() as browser:
        body = {"model": "scripted", "max_tokens": 60, "messages": [{"role": "user", "content": "Count"}]}
        heard = ""
        with trio.CancelScope() as listening:
            async with browser.stream("POST", f"{API}/chat", json={**body, "keep": {"id": ""}}) as answer:
                async for piece in answer.aiter_text():
                    heard += piece
                    if heard.count("event: said") > 5:
                        listening.cancel()
        (row,) = (await browser.get(f"{API}/conversations")).json()["conversations"]
        turns: list[dict[str, Any]] = []
        with trio.fail_after(10):
            while len(turns) < 2:  # the node notices within a moment that its listener left
                turns = (await browser.get(f"{API}/conversations/{row['id']}")).json()["turns"]
        cut = turns[1]
        assert cut["finish"] is None
        await ask(browser, "Count", row["id"], keep={"go_on": True}, max_tokens=60)
        whole = (await browser.get(f"{API}/conversations/{row['id']}")).json()["turns"]
        assert len(whole) == 2, "it is the same answer, and no question was asked twice"
        text = "".join(each["text"] for each in whole[1]["parts"])
        assert text.startswith("".join(each["text"] for each in cut["parts"]))
        assert whole[1]["finish"] is not None
