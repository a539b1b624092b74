"""A real browser that hears everything a page says and asks for."""

from __future__ import annotations

import shutil

import pytest


@pytest.fixture(scope="module")
def browser():
    """Of a module: playwright runs an event loop until it is closed, which tests elsewhere must not find."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright, of the extra `dev`, is missing")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium on this machine")
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def visit(browser):
    """Open a page; at the end of the test it must have said nothing, and asked for nothing outside."""
    heard, contexts = [], []

    def opened(path, *, width=1440, height=900, anchor="", **settings):
        context = browser.new_context(viewport={"width": width, "height": height}, reduced_motion="reduce", **settings)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: heard.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: heard.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (heard.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: request.url.startswith("data:") or asked.append(request.url))
        asked = []
        page.goto(path.as_uri() + anchor)
        heard.extend(f"request: {url}" for url in asked[1:])
        page.on("request", lambda request: request.url.startswith("data:") or heard.append(f"request: {request.url}"))
        return page

    yield opened
    for context in contexts:
        context.close()
    assert heard == []
