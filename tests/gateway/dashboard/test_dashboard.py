"""The dashboard's API: who gets in, what each section says, and the chat page's stream."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from p2pnode.gateway.dashboard.dashboard import PAGE_HEADER
from tests.gateway.dashboard.support import DashboardStage, dashboard_stage
from tests.node.world import Member

API = "/dashboard/api"
ASK: dict[str, Any] = {
    "model": "scripted",
    "messages": [{"role": "user", "content": "hello"}],
    "max_tokens": 60,
    "temperature": 0,
}


def events_of(text: str) -> list[tuple[str, Any]]:
    """Server-sent events as pairs of a name and its data."""
    found = []
    for frame in text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in frame.splitlines() if not line.startswith(":"))
        if "data" in lines:
            found.append((lines.get("event", ""), json.loads(lines["data"])))
    return found


async def test_who_is_not_signed_in_from_this_very_page_gets_nothing(tmp_path: Path) -> None:
    async with dashboard_stage(tmp_path) as s, s.browser() as browser:
        node = f"{API}/node"
        assert (await browser.get(node)).status_code == 200
        cases: list[tuple[int, dict[str, str]]] = [
            (403, {"host": "rebound.example"}),
            (403, {"host": "rebound.example:80", "origin": "http://rebound.example:80"}),
            (403, {"origin": "https://page.example"}),
            (403, {"origin": "null"}),
            (403, {"origin": s.url.replace("127.0.0.1", "localhost")}),
            (403, {"sec-fetch-site": "cross-site"}),
            (403, {"sec-fetch-site": "same-site"}),
            (401, {PAGE_HEADER: ""}),
            (401, {PAGE_HEADER: "0" * 64}),
            (401, {"cookie": "p2pnode_dashboard_1=1.2.3"}),
        ]
        for status, headers in cases:
            answer = await browser.get(node, headers=headers)
            assert answer.status_code == status, (headers, answer.text)
            assert answer.json()["error"]["message"]
        cookie = browser.cookies
        browser.cookies = httpx.Cookies()
        assert (await browser.get(node)).status_code == 401  # the page's secret alone
        browser.cookies = cookie
        assert (await browser.post(f"{API}/chat", json=ASK, headers={PAGE_HEADER: ""})).status_code == 401
        assert (await browser.get(f"{API}/nothing")).status_code == 404
        assert stat.S_IMODE(s.key_file.stat().st_mode) == 0o600


async def test_a_link_works_once_and_signing_out_ends_every_session(tmp_path: Path) -> None:
    async with dashboard_stage(tmp_path) as s, s.browser() as browser:
        token = {"token": s.link().partition("#")[2]}
        header = {PAGE_HEADER: "sign-in"}
        sign_in = f"{API}/sign-in"
        assert (await browser.post(sign_in, json=token, headers={"origin": "http://x"})).status_code == 403
        async with httpx.AsyncClient(base_url=s.url) as form:  # what a form of another page could send
            assert (await form.post(sign_in, json=token)).status_code == 403
            assert (await form.post(sign_in, content=b"{}", headers=header)).status_code == 415
        first = await browser.post(sign_in, json=token, headers=header)
        assert first.status_code == 200
        cookie = first.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert "path=/dashboard" in cookie
        again = await browser.post(sign_in, json=token, headers=header)
        assert again.status_code == 403
        assert "used already" in again.json()["error"]["message"]
        other = {"token": "ffffffff." + "0" * 32 + "." + "0" * 64}
        assert (await browser.post(sign_in, json=other, headers=header)).status_code == 403
        browser.headers[PAGE_HEADER] = first.json()["secret"]
        assert (await browser.get(f"{API}/node")).status_code == 200
        saved = dict(browser.cookies)
        assert (await browser.post(f"{API}/sign-out", json={})).status_code == 200
        browser.cookies = httpx.Cookies(saved)
        assert (await browser.get(f"{API}/node")).status_code == 401


async def test_the_pages_are_of_this_package_and_may_load_nothing_else(tmp_path: Path) -> None:
    async with dashboard_stage(tmp_path) as s, httpx.AsyncClient(base_url=s.url) as http:
        page = await http.get("/dashboard/")
        assert page.status_code == 200
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert page.headers["x-frame-options"] == "DENY"
        assert (await http.get("/dashboard", follow_redirects=True)).text == page.text
        assert (await http.get("/dashboard/static/../app.py")).status_code == 404
        assert (await http.get("/dashboard/static/%2e%2e%2fapp.py")).status_code == 404
        assert (await http.post("/dashboard/")).status_code == 405
        assert (await http.get("/dashboard/", headers={"host": "rebound.example"})).status_code == 403
        assert (await http.get("/health")).json()["status"] == "ok"  # the gateway's own paths are as before


async def test_each_section_says_what_the_node_sees(tmp_path: Path) -> None:
    async with dashboard_stage(tmp_path, 3) as s, s.browser() as browser:
        peers = {each.node.peer_id for each in s.members}
        market = (await browser.get(f"{API}/market")).json()
        assert {each["peer"] for each in market["hosts"]} == peers
        assert [each["place"] for each in market["hosts"]] == [1, 2, 3]
        assert market["hosts"][0]["why"].startswith("asked first: free")
        (model,) = market["models"]
        assert (model["model"], model["hosts"], model["servable"]) == ("scripted", 3, 3)
        host = (await browser.get(f"{API}/hosts/{s.members[1].node.peer_id}")).json()
        assert host["answers_now"]
        assert host["offers"][0]["engine"].startswith("scripted")
        assert (await browser.get(f"{API}/hosts/nobody")).status_code == 404
        node = (await browser.get(f"{API}/node")).json()
        assert node["peers"] >= 1
        assert node["host"] is None
        network = (await browser.get(f"{API}/network")).json()
        assert network["minutes"][-1]["hosts"] == 3
        for name in ("money", "sessions", "requests", "storage", "log"):
            answer = await browser.get(f"{API}/{name}")
            assert answer.status_code == 200, answer.text
            assert "error" not in answer.json()


async def test_the_chat_streams_and_says_when_another_host_goes_on(tmp_path: Path) -> None:
    async with dashboard_stage(tmp_path, 2, tokens_per_s=40.0) as s, s.browser() as browser:
        text, hosts, end = "", list[str](), dict[str, Any]()
        async with browser.stream("POST", f"{API}/chat", json=ASK) as answer:
            assert answer.status_code == 200
            buffered = ""
            async for piece in answer.aiter_text():
                buffered += piece
                whole, _, buffered = buffered.rpartition("\n\n")
                for name, data in events_of(whole):
                    match name:
                        case "host":
                            hosts.append(data["host"])
                        case "said":
                            text += data["text"]
                            if len(hosts) == 1 and len(text) > 20:
                                s.world.crash(member_of(s, hosts[0]))
                        case "end":
                            end = data
                        case _:
                            raise AssertionError(name)
        assert len(hosts) == 2
        assert hosts[0] != hosts[1]
        assert (end["finish"], end["context_full"]) == ("length", False)
        assert end["tokens_out"] == 60
        requests = (await browser.get(f"{API}/requests")).json()
        assert requests["last"][0]["outcome"] == "ok"
        assert requests["last"][0]["host"] == hosts[1]
        assert "failover" in [each["event"] for each in requests["events"]]


def member_of(s: DashboardStage, peer: str) -> Member:
    """The host of this id."""
    return next(each for each in s.members if each.node.peer_id == peer)


@pytest.mark.long
async def test_what_is_wrong_with_a_question_is_told(tmp_path: Path) -> None:
    async with dashboard_stage(tmp_path) as s, s.browser() as browser:
        for status, body in ((404, {**ASK, "model": "none"}), (400, {**ASK, "n": 2}), (400, {"model": 5})):
            answer = await browser.post(f"{API}/chat", json=body)
            assert answer.status_code == status, answer.text
            assert answer.json()["error"]["message"]


@pytest.mark.long
async def test_events_come_when_something_changes_and_end_with_the_server(tmp_path: Path) -> None:
    async with dashboard_stage(tmp_path) as s, s.browser() as browser:
        url = f"{API}/events?sections=node,requests,nothing"
        with trio.fail_after(10):
            async with browser.stream("GET", url) as watched:
                pieces = watched.aiter_text()
                seen = ""
                while "event: node" not in seen or "event: requests" not in seen:
                    seen += await anext(pieces)
                await browser.post("/v1/chat/completions", json=ASK, headers={"origin": ""})
                s.dashboard.close()
                async for piece in pieces:
                    seen += piece
        assert "event: nothing" not in seen
