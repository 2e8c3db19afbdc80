"""A real Chromium for tests of pages: without one, or without playwright, they are skipped."""

import contextlib
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

FLAGS = (
    "--no-sandbox",  # CI runs as root
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--use-fake-device-for-media-stream",  # a microphone that beeps once a second
)
NAMES = ("chromium", "chromium-browser", "google-chrome")
DESKTOP = {"viewport": {"width": 1100, "height": 900}}
PHONE = {
    "viewport": {"width": 390, "height": 844},
    "device_scale_factor": 2,
    "has_touch": True,
    "is_mobile": True,
}


@contextlib.contextmanager
def chromium() -> Iterator["Browser"]:
    """A headless Chromium: Debian's, or another that is installed."""
    api = pytest.importorskip("playwright.sync_api", reason='pip install -e ".[browser]"')
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip("no Chromium: apt-get install chromium")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(FLAGS))
        yield browser
        browser.close()


@contextlib.contextmanager
def opened(browser: "Browser", url: str, **options: Any) -> Iterator["Page"]:
    """A page in a window of its own, with storage of its own.

    At the end of the block it must have asked no other host, and raised no error.

    Args:
      browser: from `chromium`.
      url: what to open.
      options: of the window, such as `PHONE`.
    """
    asked, errors = [], []
    context = browser.new_context(**{**DESKTOP, **options})
    context.on("request", lambda request: asked.append(request.url))
    context.on("weberror", lambda error: errors.append(str(error.error)))
    page = context.new_page()
    page.set_default_timeout(60_000)  # a busy machine
    page.goto(url)
    yield page
    context.close()
    home = urlsplit(url).netloc
    assert asked
    assert {urlsplit(each).netloc for each in asked if not each.startswith("blob:")} == {home}
    assert not errors
