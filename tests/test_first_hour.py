"""The first hour, walked: the commands of docs/first-hour.md as they are printed, in a fresh home.

A block of ``text`` is what the command before it must print, as in the README's walk. The agent is a stand-in
that asks one question, for the real ones are not installed by ``make install``. The first commands are what
these tests stand on.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from p2pnode.gateway.dashboard.dashboard import PAGE_HEADER
from tests.cli.test_launch import ASKER
from tests.test_readme import Walk, bare, blocks, said

TEXT = (Path(__file__).parent.parent / "docs" / "first-hour.md").read_text(encoding="utf-8")
COMMANDS_MAX = 6
FEE = 10_000
"""Of a session, in token units: what the host of the development chain asks beside its tokens."""
ELSEWHERE = {
    "git clone REPOSITORY p2pnode",
    "make -C p2pnode install",
    ". p2pnode/.venv/bin/activate",
}
AFTER = {"p2pnode stop --data-dir p2pnode-dev/host", "p2pnode chain stop"}
"""They end what the hour has begun, and are no part of it."""


@pytest.fixture
def walk(tmp_path: Path) -> Iterator[Walk]:
    made = Walk(tmp_path)
    (tmp_path / "bin" / "aider").write_text(ASKER)
    (tmp_path / "bin" / "aider").chmod(0o755)
    made.env["SAID"] = str(tmp_path / "said.json")
    yield made
    made.end()
    shutil.rmtree(tmp_path, ignore_errors=True)


def commands() -> list[str]:
    return [bare(line) for each in blocks(TEXT) if each.language == "sh" for line in each.text.splitlines()]


def test_it_takes_six_commands_each_of_which_is_one() -> None:
    found = [each for each in commands() if each not in AFTER]
    assert len(found) == COMMANDS_MAX
    assert set(found) >= ELSEWHERE
    assert [each for each in found if "&&" in each or ";" in each] == []
    assert {each.language for each in blocks(TEXT)} == {"sh", "text"}


@pytest.mark.long
def test_a_host_earns_what_an_agent_asks_and_its_link_lets_a_browser_in(walk: Walk) -> None:
    printed, link = "", ""
    for block in blocks(TEXT):
        if block.language == "text":
            if not printed.startswith("elsewhere"):
                assert said(block.text, printed), f"expected:\n{block.text}\nprinted:\n{printed}"
            continue
        for command in map(bare, block.text.splitlines()):
            if command in ELSEWHERE or command in AFTER:
                printed = "elsewhere"
                continue
            printed = walk.run(["bash", "-c", command.replace(":8080", ":0")])
            if "run aider" in command:  # what aider says is not ours
                printed = "elsewhere"
            link = link or "".join(re.findall(r"http://127\.0\.0\.1:\d+/dashboard/#\S+", printed))
        if "run aider" in block.text:
            assert json.loads((walk.home / "said.json").read_text())["usage"]["completion_tokens"] == 8
            _look(link)


def _look(link: str) -> None:
    """Open the page as a browser does: it shows what the agent's question has earned."""
    address, _, token = link.partition("/dashboard/#")
    with httpx.Client(base_url=address, headers={"Origin": address}, timeout=30) as browser:
        first = {PAGE_HEADER: "sign-in"}
        signed = browser.post("/dashboard/api/sign-in", json={"token": token}, headers=first)
        assert signed.status_code == 200, signed.text
        again = browser.post("/dashboard/api/sign-in", json={"token": token}, headers=first)
        assert again.status_code == 403, "a link works once"
        browser.headers[PAGE_HEADER] = signed.json()["secret"]
        money = browser.get("/dashboard/api/money").json()["earned"]
    assert money["sessions"] == 1
    assert money["earned"] + money["owed"] >= FEE
