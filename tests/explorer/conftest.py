"""One browser for each module; each page is a file, and loads nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from attn_core.explorer import computing_page, write_page

NAMES = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


def lacking(what: str) -> None:
    if os.environ.get("GAT_REQUIRE_BROWSER") == "1":
        pytest.fail(f"GAT_REQUIRE_BROWSER=1, but there is no {what}")
    pytest.skip(f"needs {what}")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        lacking("Chromium (Debian: apt-get install chromium)")
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        lacking("playwright (pip install playwright)")
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=program, args=OPTIONS)
        yield browser
        browser.close()


@pytest.fixture
def show(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Opens a page; whatever it asks for or complains of fails the test."""
    wrong: list[str] = []
    contexts = []

    def open_page(
        path: Path | None = None,
        fragment: str = "",
        size: tuple[int, int] = (1280, 900),
        **options: Any,
    ) -> Any:
        path = path or write_page(tmp_path / "page.html", computing_page())
        width, height = size
        options = {"locale": "en-GB", "viewport": {"width": width, "height": height}, **options}
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(8000)
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on(
            "request", lambda r: r.url.partition("#")[0] == path.as_uri() or wrong.append(r.url)
        )
        page.goto(path.as_uri() + (f"#{fragment}" if fragment else ""))
        settle(page)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not wrong


@pytest.fixture
def blank(browser: Any) -> Iterator[Any]:
    """An empty page, to run modules in."""
    page = browser.new_page()
    yield page
    page.close()


def settle(page: Any) -> None:
    """Wait until what was changed is drawn."""
    page.evaluate("() => new Promise(r => requestAnimationFrame(() => requestAnimationFrame(r)))")
