"""A real browser opens the stack: the README's snippet as written, and what a refused page sees."""

import os
import re
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, sync_playwright

from muster import Broadcaster
from tests.support import ROOT
from tests.support.deployment import ORIGIN, Deployment, unique
from tests.support.waiting import until

README = ROOT / "README.md"


@pytest.fixture
def page() -> Iterator[Page]:
    """An empty page of an allowed site, in Chromium from the PATH."""
    program = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
    if program is None and not os.environ.get("CI"):
        pytest.skip("no Chromium is on the PATH")
    assert program, "no Chromium is on the PATH: .ci/run installs it"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=program,
            args=[
                "--no-sandbox",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
            ],
        )
        try:
            # A page of a public site asks its user before it opens a socket of this machine.
            page = browser.new_context(permissions=["local-network-access"]).new_page()
            page.route(
                f"{ORIGIN}/", lambda route: route.fulfill(body="<!doctype html>", content_type="text/html")
            )
            page.goto(f"{ORIGIN}/")
            yield page
        finally:
            browser.close()


def test_readme_snippet_shows_a_broadcast(
    deployment: Deployment, broadcaster: Broadcaster, page: Page
) -> None:
    user = deployment.user()
    snippets = re.findall(r"```js\n(.*?)```", README.read_text(), re.DOTALL)
    (snippet,) = [text for text in snippets if "new WebSocket(" in text]
    text = unique("text")

    page.evaluate(
        """([url, jwt, code]) => {
          globalThis.websocketUrl = url;
          globalThis.freshToken = async () => jwt;
          (0, eval)(code);
        }""",
        [deployment.outputs.websocket_url, deployment.token(user.user_id), snippet],
    )
    until(lambda: deployment.connections_of(user.user_id), "the browser's connection")
    with page.expect_console_message(lambda message: text in message.text, timeout=10_000):
        broadcaster.start("alert", {"users": [user.user_id]}, {"text": text})


@pytest.mark.parametrize("token", ["garbage", "header.payload.signature"])
def test_refused_page_gets_an_error_and_no_row(deployment: Deployment, page: Page, token: str) -> None:
    events = page.evaluate(
        """([url, jwt]) => new Promise((resolve) => {
          const events = [];
          const socket = new WebSocket(url, ["muster", jwt]);
          socket.onopen = () => events.push("open");
          socket.onerror = () => events.push("error");
          socket.onclose = ({ code }) => resolve([...events, code]);
        })""",
        [deployment.outputs.websocket_url, token],
    )

    assert events == ["error", 1006]


def test_selected_subprotocol_is_muster(deployment: Deployment, page: Page) -> None:
    token = deployment.token(deployment.user().user_id)

    selected = page.evaluate(
        """([url, jwt]) => new Promise((resolve, reject) => {
          const socket = new WebSocket(url, ["muster", jwt]);
          socket.onopen = () => { resolve(socket.protocol); socket.close(); };
          socket.onerror = () => reject(new Error("refused"));
        })""",
        [deployment.outputs.websocket_url, token],
    )

    assert selected == "muster"
