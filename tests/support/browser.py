"""A headless Chromium, by chromedriver and WebDriver (W3C) over plain HTTP."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any, Self

from support.waiting import DEADLINE, wait_until

if TYPE_CHECKING:
    from pathlib import Path

_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
_STARTED = re.compile(r"was started successfully on port (\d+)")
TAB = "\ue004"
ENTER = "\ue007"


class Browser:
    """One session with one window; closed by `with`."""

    def __enter__(self) -> Self:
        self._profile = tempfile.mkdtemp(prefix="syncd-chromium-")
        self._driver = subprocess.Popen(
            ["chromedriver", "--port=0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self._driver.stdout is not None
        port = next(found[1] for line in self._driver.stdout if (found := _STARTED.search(line)))
        self._url = f"http://127.0.0.1:{port}/session"
        arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        arguments += [f"--user-data-dir={self._profile}", "--lang=en"]
        wanted = {
            "browserName": "chrome",
            "goog:chromeOptions": {"args": arguments},
            "goog:loggingPrefs": {"browser": "ALL"},
        }
        opened = self._ask("POST", "", {"capabilities": {"alwaysMatch": wanted}})
        self._url += f"/{opened['sessionId']}"
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._ask("DELETE", "")
        finally:
            self._driver.terminate()
            self._driver.wait(DEADLINE)
            assert self._driver.stdout is not None
            self._driver.stdout.close()
            shutil.rmtree(self._profile, ignore_errors=True)

    def _ask(self, method: str, path: str, body: object = None) -> Any:
        data = None if method != "POST" else json.dumps(body or {}).encode()
        request = urllib.request.Request(f"{self._url}{path}", data, method=method)
        try:
            with urllib.request.urlopen(request, timeout=DEADLINE) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(json.load(error)["value"]["message"]) from None

    def open(self, url: str) -> None:
        self._ask("POST", "/url", {"url": url})

    def run(self, script: str, *arguments: object) -> Any:
        """The value that a script returns."""
        return self._ask("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def devtools(self, command: str, **parameters: object) -> Any:
        """Sends a command of the Chrome DevTools Protocol."""
        body = {"cmd": command, "params": parameters}
        return self._ask("POST", "/goog/cdp/execute", body)

    def resize(self, width: int, height: int) -> None:
        """The size of the page itself, which may be smaller than a window can be."""
        self.devtools(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def prefer(self, scheme: str) -> None:
        """Sets `prefers-color-scheme`."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.devtools("Emulation.setEmulatedMedia", features=[feature])

    def text(self, selector: str = "body") -> str:
        """What is shown."""
        return str(self.run("return document.querySelector(arguments[0]).innerText", selector))

    def wait_for(self, text: str, selector: str = "body") -> None:
        wait_until(lambda: text in self.text(selector), lambda: f"{text}: {self.text()}")

    def press(self, *keys: str) -> None:
        """Presses keys, one after another, where the focus is."""
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        body = {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]}
        self._ask("POST", "/actions", body)

    def accessible(self, selector: str) -> list[tuple[str, str]]:
        """Role and name, as assistive technology gets them, of the elements of a selector."""
        body = {"using": "css selector", "value": selector}
        found = [item[_ELEMENT] for item in self._ask("POST", "/elements", body)]
        return [
            (
                self._ask("GET", f"/element/{id_}/computedrole"),
                self._ask("GET", f"/element/{id_}/computedlabel"),
            )
            for id_ in found
        ]

    def console(self) -> list[str]:
        """What the browser logged since the last call: errors, and violations of the policy."""
        return [entry["message"] for entry in self._ask("POST", "/se/log", {"type": "browser"})]

    def screenshot(self, path: str | Path) -> None:
        with open(path, "wb") as file:
            file.write(base64.b64decode(self._ask("GET", "/screenshot")))
