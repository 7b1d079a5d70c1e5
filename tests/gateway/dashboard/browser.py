"""A headless Chromium that may reach this machine only, and notes what goes wrong in it.

Playwright drives Debian's Chromium: nothing is downloaded. It runs in a thread beside the trio loop.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio

T = TypeVar("T")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WIDE, PHONE = (1280, 900), (390, 844)


def need_browser() -> Any:
    """Playwright's API; skips the test where it or a Chromium is missing."""
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="no Playwright: `pip install playwright` (without its browsers)"
    )
    if CHROMIUM is None:
        pytest.skip("no Chromium: `apt install chromium`")
    return sync_api


class Visit:
    """One page, with the errors of its console and the requests that it made off this machine."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.wrong: list[str] = []
        page.on("console", self._heard)
        page.on("pageerror", lambda error: self.wrong.append(str(error)))
        page.on("request", lambda request: self._note(request.url))

    def _heard(self, said: Any) -> None:
        if said.type in ("error", "warning"):
            self.wrong.append(said.text)

    def _note(self, url: str) -> None:
        if not url.startswith(("http://127.0.0.1:", "data:", "blob:")):
            self.wrong.append(f"a request left this machine: {url}")


@contextmanager
def visiting(
    size: tuple[int, int] = WIDE, *, dark: bool = False, url: str = "about:blank"
) -> Iterator[Visit]:
    """A fresh browser at ``url``, for a thread."""
    with need_browser().sync_playwright() as driver:
        arguments = ["--no-sandbox", "--disable-background-networking", "--disable-component-update"]
        chromium = driver.chromium.launch(executable_path=CHROMIUM, headless=True, args=arguments)
        try:
            page = chromium.new_page(
                viewport={"width": size[0], "height": size[1]},
                color_scheme="dark" if dark else "light",
                has_touch=size == PHONE,
            )
            page.set_default_timeout(20_000)
            visit = Visit(page)
            page.goto(url)
            yield visit
        finally:
            chromium.close()


async def browse(work: Callable[[], T]) -> T:
    """Run what drives a browser in a thread, beside the node."""
    return await trio.to_thread.run_sync(work, abandon_on_cancel=True)


def shoot(page: Any, path: Path, *, whole: bool = True) -> None:
    """A screenshot."""
    page.screenshot(path=str(path), full_page=whole, animations="disabled")
