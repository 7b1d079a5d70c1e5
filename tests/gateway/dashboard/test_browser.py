"""The dashboard in a real browser: three hosts, a chat, a host that dies, a phone, and no mouse.

Needs Playwright and a Chromium (`make test-dashboard` sees to the first). With `P2PNODE_AXE` naming a copy of
axe-core's `axe.min.js`, every page is examined by it, too.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.gateway.dashboard.browser import PHONE, WIDE, Visit, browse, need_browser, visiting
from tests.gateway.dashboard.support import DashboardStage, dashboard_stage
from tests.node.world import Member

pytestmark = pytest.mark.long
PAGES = ("", "chat", "models", "hosts", "sessions", "money", "network", "node")
AXE = os.environ.get("P2PNODE_AXE", "")
PATIENCE_MS = 30_000


def open_page(visit: Visit, name: str, heading: str) -> None:
    """Go to a page of the dashboard by its address."""
    visit.page.evaluate("name => { location.hash = '#/' + name; }", name)
    visit.page.get_by_role("heading", name=heading, exact=True, level=1).wait_for()


def serious_faults(page: Any) -> list[str]:
    """What axe-core finds that keeps people out."""
    page.evaluate(Path(AXE).read_text())
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{each['id']}: {each['nodes'][0]['html'][:200]}"
        for each in found["violations"]
        if each["impact"] in ("serious", "critical")
    ]


def until(page: Any, holds: str) -> None:
    """Wait until an expression holds. The page's policy allows no script that would wait inside of it."""
    for _ in range(PATIENCE_MS // 50):
        if page.evaluate(holds):
            return
        page.wait_for_timeout(50)  # of the browser's clock
    raise AssertionError(f"never came: {holds}")


def fits(page: Any) -> bool:
    """Whether nothing is wider than the screen."""
    return bool(page.evaluate("document.documentElement.scrollWidth <= innerWidth"))


@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["1280", "390"])
async def test_it_shows_three_hosts_and_a_chat_that_goes_on_when_its_host_dies(
    size: tuple[int, int], tmp_path: Path
) -> None:
    need_browser()
    async with dashboard_stage(tmp_path, 3, tokens_per_s=25.0) as s:
        token = trio.lowlevel.current_trio_token()

        def crash(peer: str) -> None:
            trio.from_thread.run_sync(s.world.crash, member_of(s, peer), trio_token=token)

        def work() -> list[str]:
            with visiting(size, url=s.link()) as visit:
                page = visit.page
                page.get_by_text("Hosts seen").wait_for()
                assert "#/" in page.url
                assert page.url.endswith("/dashboard/#/"), "the token is out of the address"
                open_page(visit, "hosts", "Hosts")
                for member in s.members:
                    page.locator(f"a[title='{member.node.peer_id}']").first.wait_for()
                open_page(visit, "chat", "Chat")
                until(page, "document.getElementById('model').value === 'scripted'")
                page.get_by_label("Your message").fill("Say something long")
                page.get_by_role("button", name="Send", exact=True).click()
                first = page.locator(".by a")
                first.wait_for(timeout=PATIENCE_MS)
                said = page.locator(".turn.assistant .said")
                until(page, "document.querySelector('.turn.assistant .said')?.textContent.length > 20")
                before = said.first.inner_text()
                died = first.get_attribute("title")
                crash(died)
                page.locator(".failover").wait_for(timeout=PATIENCE_MS)
                went_on = page.locator(".failover a").nth(1).get_attribute("title")
                assert went_on in {each.node.peer_id for each in s.members} - {died}
                assert said.first.inner_text().startswith(before.strip()[:20])
                page.get_by_role("button", name="Stop").click()
                page.get_by_text("You stopped the answer.").wait_for()
                open_page(visit, f"hosts/{went_on}", "Hosts")
                page.get_by_text("Measured here").wait_for(timeout=PATIENCE_MS)
                assert fits(page)
                return visit.wrong

        assert await browse(work) == []


async def test_a_question_that_is_typed_before_the_page_knows_what_is_kept_is_kept(tmp_path: Path) -> None:
    need_browser()
    async with dashboard_stage(tmp_path, 1, keeps=True) as s:

        def work() -> list[str]:
            with visiting(WIDE, url=s.link()) as visit:
                page, held = visit.page, list[Any]()
                # Playwright takes no method of a list.
                page.route("**/conversations", lambda route: held.append(route))  # noqa: PLW0108
                page.get_by_text("Hosts seen").wait_for()
                open_page(visit, "chat", "Chat")
                until(page, "document.getElementById('model').value === 'scripted'")
                answer_with(page, 20)
                send(page, "What is the sky?")
                until(page, "document.getElementById('prompt').value === ''")
                held[0].continue_()
                page.locator(".usage").wait_for(timeout=PATIENCE_MS)
                page.locator("#forget").wait_for()
                return visit.wrong

        assert await browse(work) == []


@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["1280", "390"])
async def test_a_conversation_goes_on_after_a_reload_and_can_be_deleted(
    size: tuple[int, int], tmp_path: Path
) -> None:
    need_browser()
    async with dashboard_stage(tmp_path, 2, keeps=True, tokens_per_s=40.0) as s:

        def work() -> None:
            with visiting(size, url=s.link()) as visit:
                page = visit.page
                page.on("dialog", lambda dialog: dialog.accept())
                page.get_by_text("Hosts seen").wait_for()
                open_page(visit, "chat", "Chat")
                until(page, "document.getElementById('model').value === 'scripted'")
                answer_with(page, 60)
                send(page, "What is the sky?")
                page.locator(".usage").wait_for(timeout=PATIENCE_MS)
                page.locator("#forget").wait_for()
                assert "p2pnode sessions resume" in page.locator(".conversations").inner_text()
                said = page.locator(".turn.assistant .said").first.inner_text()
                page.reload()
                page.get_by_role("button", name="What is the sky?").click()
                page.locator(".turn.assistant .said", has_text=said.strip()[:30]).wait_for()
                answer_with(page, 60)
                send(page, "And the sea?")
                page.locator(".usage").nth(1).wait_for(timeout=PATIENCE_MS)
                answer_with(page, 200)
                send(page, "Tell me more")
                until(page, "document.querySelectorAll('.turn.assistant .said').length === 3")
                page.get_by_role("button", name="Stop").click()
                page.get_by_text("You stopped the answer.").wait_for()
                page.reload()
                page.get_by_role("button", name="What is the sky?").click()
                answer_with(page, 200)
                page.get_by_role("button", name="Go on").click()
                page.locator(".usage").nth(2).wait_for(timeout=PATIENCE_MS)
                assert page.locator(".turn").count() == 6
                assert fits(page)
                if AXE:
                    page.wait_for_timeout(300)  # of the browser's clock: the page fades in
                    assert serious_faults(page) == []
                page.get_by_role("button", name="Delete this conversation").click()
                page.get_by_text("The conversation is deleted.").wait_for()
                page.reload()
                page.get_by_text("Nothing was said yet").wait_for()
                assert page.get_by_role("button", name="What is the sky?").count() == 0
                assert visit.wrong == []

        await browse(work)


async def test_what_helps_is_offered_where_the_context_is_full_and_going_on_is_not(tmp_path: Path) -> None:
    need_browser()
    async with dashboard_stage(tmp_path, 1, keeps=True, n_ctx=256) as s:

        def work() -> None:
            with visiting(WIDE, url=s.link()) as visit:
                page = visit.page
                page.get_by_text("Hosts seen").wait_for()
                open_page(visit, "chat", "Chat")
                until(page, "document.getElementById('model').value === 'scripted'")
                answer_with(page, 20)
                send(page, "What is the sky?")
                page.locator(".usage", has_text="the most tokens that were asked for").wait_for()
                assert page.locator(".full").count() == 0
                answer_with(page, 2000)
                send(page, "And the sea?")
                page.locator(".usage", has_text="the context is full").wait_for(timeout=PATIENCE_MS)
                page.get_by_text("so the answer can't go on").wait_for()
                send(page, "x" * 400)
                page.get_by_text("Ask something shorter").wait_for(timeout=PATIENCE_MS)
                assert page.get_by_role("button", name="Go on").count() == 0
                page.get_by_role("button", name="Begin a new conversation").click()
                page.get_by_text("Nothing was said yet").wait_for()
                assert [each for each in visit.wrong if "400" not in each] == []

        await browse(work)


def answer_with(page: Any, tokens: int) -> None:
    """Have the next answers be of so many tokens at most."""
    page.evaluate("document.querySelector('.options').open = true")
    page.get_by_label("Most tokens").fill(str(tokens))


def send(page: Any, text: str) -> None:
    """Write a message, and send it."""
    page.get_by_label("Your message").fill(text)
    page.get_by_role("button", name="Send", exact=True).click()


def member_of(s: DashboardStage, peer: str) -> Member:
    """The host of this id."""
    return next(each for each in s.members if each.node.peer_id == peer)


@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["1280", "390"])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
async def test_each_page_is_whole_and_fits_the_screen(
    size: tuple[int, int], dark: bool, tmp_path: Path
) -> None:
    need_browser()
    async with dashboard_stage(tmp_path, 3) as s:

        def work() -> None:
            with visiting(size, dark=dark, url=s.link()) as visit:
                page = visit.page
                page.get_by_text("Hosts seen").wait_for()
                for name in PAGES:
                    open_page(visit, name, name.capitalize() or "Overview")
                    until(page, "!document.body.innerText.includes('Asking the node…')")
                    assert fits(page), name
                    if AXE:
                        page.wait_for_timeout(300)  # of the browser's clock: the page fades in
                        assert serious_faults(page) == [], name
                assert visit.wrong == []

        await browse(work)


async def test_all_of_it_works_by_keyboard(tmp_path: Path) -> None:
    need_browser()
    async with dashboard_stage(tmp_path, 2) as s:

        def work() -> None:
            with visiting(url=s.link()) as visit:
                page, press = visit.page, visit.page.keyboard.press
                page.get_by_text("Hosts seen").wait_for()
                press("Tab")
                assert focused(page) == "Skip to the content"
                tab_to(page, lambda: focused(page) == "Hosts")
                press("Enter")
                page.get_by_role("heading", name="Hosts", level=1).wait_for()
                tab_to(page, lambda: focused(page) == "Host")  # the head of the first column
                press("Enter")
                page.locator("th[aria-sort=ascending]", has_text="Host").wait_for()
                press("Enter")
                page.locator("th[aria-sort=descending]", has_text="Host").wait_for()
                tab_to(page, lambda: focused(page).startswith("12D3"))
                press("Enter")
                page.get_by_text("Measured here").wait_for(timeout=PATIENCE_MS)
                tab_to(page, lambda: focused(page) == "Chat", back=True)
                press("Enter")
                until(page, "document.getElementById('model')?.value === 'scripted'")
                tab_to(page, lambda: page.evaluate("document.activeElement.id") == "prompt")
                page.keyboard.type("hello")
                press("Enter")
                page.locator(".usage").wait_for(timeout=2 * PATIENCE_MS)
                assert visit.wrong == []

        await browse(work)


def focused(page: Any) -> str:
    """The text of what has the focus."""
    return str(page.evaluate("document.activeElement.textContent")).strip(" ▴▾")


def tab_to(page: Any, there: Callable[[], bool], *, back: bool = False) -> None:
    """Press Tab until that has the focus."""
    for _ in range(60):
        page.keyboard.press("Shift+Tab" if back else "Tab")
        if there():
            return
    raise AssertionError(f"not reached by keyboard; the focus is on {focused(page)[:80]!r}")


async def test_a_browser_that_is_not_signed_in_is_told_what_to_do(tmp_path: Path) -> None:
    need_browser()
    async with dashboard_stage(tmp_path) as s:
        link = s.link()

        def work() -> None:
            with visiting(url=link) as visit:
                visit.page.get_by_text("Hosts seen").wait_for()
                visit.page.reload()  # it stays signed in
                visit.page.get_by_text("Hosts seen").wait_for()
            with visiting(url=link) as visit:
                visit.page.get_by_text("used already").wait_for()
                visit.page.get_by_text("p2pnode dashboard").first.wait_for()

        await browse(work)


async def test_it_says_why_a_host_gets_no_work(tmp_path: Path) -> None:
    need_browser()
    async with dashboard_stage(tmp_path, 2) as s:
        lost = s.members[1].node.peer_id
        for _ in range(4):
            s.client.searches.note_failure(lost, turn=True)

        def work() -> None:
            with visiting(url=s.link()) as visit:
                visit.page.get_by_text("Hosts seen").wait_for()
                open_page(visit, f"hosts/{lost}", "Hosts")
                visit.page.get_by_text("failed 4 times in a row").wait_for(timeout=PATIENCE_MS)
                visit.page.locator(".badge", has_text="Left out").wait_for()
                assert visit.wrong == []

        await browse(work)
