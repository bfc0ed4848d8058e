"""The page of `syncd ui` in a real browser, over the real daemon."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from support.browser import ENTER, TAB, Browser
from support.receiver import Receiver, reply
from support.waiting import DEADLINE
from support.world import World, secret

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HOSTILE = "<img src=x onerror=alert(1)>"
OVERFLOW = "const e = document.documentElement; return e.scrollWidth > e.clientWidth"
FOCUSED = """
const e = document.activeElement, label = e.labels && e.labels[0];
return (label || e).textContent.trim()
"""


@pytest.fixture
def world(need: Callable[..., None]) -> Iterator[World]:
    need("chromium", "chromedriver")
    with World() as world:
        world.publish({"client-secret": secret("0"), "smtp-password": secret("0"), "evil": b"0"})
        world.map(
            "client-secret",
            "smtp-password",
            paths={HOSTILE: f"{world.mount}/evil", "kafka-key": f"{world.mount}/kafka-key"},
        )
        yield world


@pytest.fixture
def browser(world: World) -> Iterator[Browser]:
    with Browser() as browser:
        yield browser


AS_USER = """
import sys
from syncd.commands.main import main
from syncd.system.identity import Identity, become
# it may read this Python, which can be another user's, and is that user to the daemon
become(Identity("user", int(sys.argv[1]), int(sys.argv[1]), (), ("cap_dac_read_search",)))
del sys.argv[1]
main()
"""
USER = 4242


class Page:
    """`syncd ui` over a world, and its address; run by root, or by another user."""

    def __init__(self, world: World, user: int | None = None) -> None:
        how = ["-m", "syncd"] if user is None else ["-c", AS_USER, str(user)]
        self._process = subprocess.Popen(
            [sys.executable, *how, "ui", "--socket", f"{world.directory}/s"],
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(DEADLINE)
        assert self._process.stdout is not None
        self._process.stdout.close()


def test_the_page(world: World, browser: Browser) -> None:
    """It shows what is, as text only, and what changes, without a reload or an error."""
    with Receiver() as receiver:
        hook = {"name": "hook", "kind": "webhook", "url": receiver.url}
        world.configure(api={"socket": f"{world.directory}/s"}, consumers=[hook])
        with world.daemon() as daemon, Page(world) as address:
            browser.open(address)
            browser.wait_for("secret kafka-key is missing", "#attention")
            browser.wait_for("live", "#connection")
            assert browser.run("return location.hash") == ""
            assert browser.run("return document.cookie") == ""
            browser.wait_for(HOSTILE, "#secrets-table")  # shown, not run
            assert not browser.run("return document.images.length")
            browser.run("window.same = true")
            world.publish({"client-secret": secret("1")})
            daemon.wait_for("secret.changed", secret="client-secret")
            browser.wait_for("client-secret modified, Client/client-secret", "#timeline")
            browser.wait_for("delivered to hook", "#secrets-table")
            assert browser.run("return window.same")
            assert browser.text("#consumers-table tbody th") == "hook"
            for script, said in ((reply(503), "not acknowledged in "), (None, "acknowledged in ")):
                receiver.script(*([script] if script else []))
                browser.run("document.querySelector('button[data-action=test]').click()")
                browser.wait_for(f"hook: {said}", "#outcome")
            assert "status 204" in browser.text("#outcome")
            assert receiver.requests[-1].events[0]["type"] == "io.syncd.ping"
            assert browser.accessible("button[data-action=test]") == [("button", "Test hook")]
            assert browser.console() == []


def test_a_subscriber_with_a_scope(world: World, browser: Browser) -> None:
    """It sees its own secrets and events alone, no error of a consumer, and no button."""
    os.chmod(world.directory, 0o755)
    dead = {"name": "audit-log", "kind": "webhook", "url": "http://127.0.0.1:9/"}
    scope = [{"resource_type": "Client", "id": "client-secret"}]
    mine = {"name": "mine", "uid": USER, "scope": scope}
    api = {"socket": f"{world.directory}/s", "socket_mode": "0666", "subscribers": [mine]}
    world.configure(api=api, consumers=[dead])
    with world.daemon() as daemon, Page(world, USER) as address:
        world.publish({"smtp-password": secret("1")})
        daemon.wait_for("delivery.retry")
        world.publish({"client-secret": secret("1")})
        daemon.wait_for("secret.changed", secret="client-secret")
        browser.open(address)
        browser.wait_for("client-secret modified", "#timeline")
        browser.wait_for("pending for audit-log", "#secrets-table")
        assert browser.text("#count") == "1 of 1"
        assert browser.run("return document.querySelectorAll('#timeline li').length") == 1
        assert not browser.run("return document.querySelectorAll('td button').length")
        shown = browser.text()
        for hidden in ("smtp-password", "kafka-key", "127.0.0.1:9", HOSTILE):
            assert hidden not in shown
        assert browser.text("#attention") == "consumer audit-log is failing"
        # and the server that the command runs has no way to act, either
        asked = """return fetch(location.pathname + "v1/consumers/audit-log/test",
            {method: "POST"}).then((answer) => answer.status)"""
        assert browser.run(asked) == 404
        assert len(browser.console()) == 1  # of that answer


def test_a_second_browser(world: World, browser: Browser) -> None:
    """An address opens once; the first browser keeps its session across a reload."""
    world.configure(api={"socket": f"{world.directory}/s"})
    with world.daemon(), Page(world) as address, Browser() as other:
        browser.open(address)
        browser.wait_for("client-secret", "#secrets-table")
        other.open(address)
        other.wait_for("used already; run syncd ui again", "#connection")
        assert "client-secret" not in other.text()
        browser.open(address.partition("#")[0])
        browser.wait_for("client-secret", "#secrets-table")


def test_a_daemon_that_restarts(world: World, browser: Browser) -> None:
    """The page says that it cannot be reached, and goes on when it can."""
    world.configure(api={"socket": f"{world.directory}/s"})
    with world.daemon() as daemon, Page(world) as address:
        browser.open(address)
        browser.wait_for("live", "#connection")
        daemon.stop()
        browser.wait_for("cannot reach the daemon", "#connection")
        daemon.start()
        browser.wait_for("live", "#connection")
        world.publish({"smtp-password": secret("1")})
        browser.wait_for("smtp-password modified", "#timeline")


def test_for_everybody(world: World, browser: Browser) -> None:
    """Narrow or wide, light or dark, by keyboard alone, and by names that are read aloud."""
    long = "a-" * 100
    world.publish({long: secret("0")})
    world.map("client-secret", "kafka-key", long)
    dead = {"name": "audit-log", "kind": "webhook", "url": "http://127.0.0.1:9/"}
    world.configure(api={"socket": f"{world.directory}/s"}, consumers=[dead])
    with world.daemon() as daemon, Page(world) as address:
        world.publish({"client-secret": secret("1")})
        daemon.wait_for("secret.changed", secret="client-secret")
        browser.open(address)
        browser.wait_for("failing", "#consumers-table")
        browser.wait_for("pending for audit-log", "#secrets-table")
        for width in (360, 1280):
            browser.resize(width, 800)
            assert not browser.run(OVERFLOW), f"{width} px"
        shades = {}
        for scheme in ("light", "dark"):
            browser.prefer(scheme)
            style = "getComputedStyle(document.body)"
            colours = browser.run(f"return [{style}.backgroundColor, {style}.color]")
            back, front = (sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in colours)
            shades[scheme] = back > front
        assert shades == {"light": True, "dark": False}

        browser.resize(360, 800)
        labels = [
            name for _, name in browser.accessible("input, button, a, table, section:not([hidden])")
        ]
        assert "" not in labels
        assert browser.accessible("#secrets-table table") == [("table", "Secrets")]
        assert browser.accessible("#filter") == [("searchbox", "Filter by name or scope")]
        assert browser.accessible("#timeline") == [("log", "Timeline")]
        rows = {role for role, _ in browser.accessible("#secrets-table tbody > tr > *")}
        assert rows == {"rowheader", "cell"}

        order = []
        for _ in range(6):
            browser.press(TAB)
            order.append(browser.run(FOCUSED))
        wanted = ["Skip to secrets", "Filter by name or scope", "Only problems"]
        assert order == [*wanted, "Test", "Retry", "Pause"]
        browser.press(ENTER)
        assert browser.run("return document.activeElement.ariaPressed") == "true"
        browser.run("document.querySelector('#filter').focus()")
        browser.press(*"kafka")
        browser.wait_for("1 of 3", "#count")
        assert browser.console() == []
