"""Headless Chromium over the W3C WebDriver protocol: JSON over HTTP, which needs no library."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.http1 import PATIENCE
from tests.http1.process import free_port, wait_until

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # W3C WebDriver §11.4
_BAD = ("WARNING", "SEVERE")
KEYS = {"Tab": "\ue004", "Enter": "\ue007", "Escape": "\ue00c", "Space": " "}


def missing() -> str | None:
    """Why there is no browser here; None when there is one."""
    for program in ("chromium", "chromedriver"):
        if shutil.which(program) is None:
            return f"no {program} here (Debian: apt-get install chromium chromium-driver)"
    return None


class BrowserError(AssertionError):
    """The browser could not do it."""


class Chromium:
    """One browser with one tab. Use as a context."""

    def __init__(self, folder: Path) -> None:
        self._port = free_port()
        self._log = (folder / "chromedriver.log").open("wb")
        self._driver = subprocess.Popen(
            ["chromedriver", f"--port={self._port}"],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )
        self._session = ""
        try:
            wait_until(self._ready, "chromedriver", 20)
            made = self._call(
                "POST",
                "/session",
                {
                    "capabilities": {
                        "alwaysMatch": {
                            "browserName": "chrome",
                            "goog:loggingPrefs": {"browser": "ALL"},
                            "goog:chromeOptions": {
                                "args": [*FLAGS, f"--user-data-dir={folder / 'profile'}"]
                            },
                        }
                    }
                },
            )
            self._session = f"/session/{made['sessionId']}"
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Chromium:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the browser and its driver."""
        try:
            if self._session:
                self._call("DELETE", self._session)
        finally:
            self._driver.terminate()
            self._driver.wait(PATIENCE)
            self._log.close()

    def _ready(self) -> bool:
        try:
            return bool(self._call("GET", "/status")["ready"])
        except (OSError, urllib.error.URLError):
            return False

    def _call(self, method: str, path: str, body: object = None) -> Any:
        data = None if method != "POST" else json.dumps(body or {}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self._port}{path}",
            data,
            {"Content-Type": "application/json"},
            method=method,
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as reply:
                return json.loads(reply.read())["value"]
        except urllib.error.HTTPError as error:
            with error:
                problem = json.loads(error.read())["value"]
            raise BrowserError(f"{problem['error']}: {problem['message'][:500]}") from None

    # --- the tab --------------------------------------------------------------------------------

    def open(self, url: str) -> None:
        """Load a page."""
        self._call("POST", f"{self._session}/url", {"url": url})

    def back(self) -> None:
        """The back button."""
        self._call("POST", f"{self._session}/back")

    @property
    def url(self) -> str:
        """The address shown."""
        return str(self._call("GET", f"{self._session}/url"))

    def run(self, script: str, *arguments: object) -> Any:
        """The result of a function's body."""
        body = {"script": script, "args": list(arguments)}
        return self._call("POST", f"{self._session}/execute/sync", body)

    def run_async(self, script: str, *arguments: object) -> Any:
        """What a function's body gives to its last argument, a callback."""
        body = {"script": script, "args": list(arguments)}
        return self._call("POST", f"{self._session}/execute/async", body)

    def devtools(self, command: str, **parameters: object) -> Any:
        """A command of the DevTools protocol."""
        body = {"cmd": command, "params": parameters}
        return self._call("POST", f"{self._session}/goog/cdp/execute", body)

    def console(self) -> list[str]:
        """What the console said since the last call, warnings and worse."""
        entries = self._call("POST", f"{self._session}/se/log", {"type": "browser"})
        return [f"{e['level']}: {e['message']}" for e in entries if e["level"] in _BAD]

    def screenshot(self, file: Path, *, whole: bool = True) -> None:
        """Save what is to be seen, or the whole page."""
        taken = self.devtools("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(taken["data"]))

    # --- looking and acting ---------------------------------------------------------------------

    def find(self, selector: str) -> str:
        """The element's ID; fails at once when there is none."""
        body = {"using": "css selector", "value": selector}
        return str(self._call("POST", f"{self._session}/element", body)[ELEMENT])

    def click(self, selector: str) -> None:
        """As a mouse does: only what can be seen and is not covered."""
        self._call("POST", f"{self._session}/element/{self.find(selector)}/click")

    def hover(self, selector: str) -> None:
        """Put the mouse on the middle of it."""
        move = {"type": "pointerMove", "origin": {ELEMENT: self.find(selector)}, "x": 0, "y": 0}
        mouse = {"type": "pointer", "id": "mouse", "actions": [move]}
        self._call("POST", f"{self._session}/actions", {"actions": [mouse]})

    def type(self, selector: str, text: str) -> None:
        """Into a field."""
        element = self.find(selector)
        self._call("POST", f"{self._session}/element/{element}/value", {"text": text})

    def press(self, *keys: str) -> None:
        """Keys, one after the other, to whatever has the focus."""
        actions = [
            {"type": kind, "value": KEYS.get(key, key)}
            for key in keys
            for kind in ("keyDown", "keyUp")
        ]
        keyboard = {"type": "key", "id": "keyboard", "actions": actions}
        self._call("POST", f"{self._session}/actions", {"actions": [keyboard]})

    def text(self, selector: str = "body") -> str:
        """What a person reads there; empty when there is no such element."""
        script = "return document.querySelector(arguments[0])?.innerText ?? ''"
        return str(self.run(script, selector))

    def wait_for_text(self, wanted: str, selector: str = "body", seconds: float = PATIENCE) -> None:
        """Until it is to be read there."""
        self.wait(lambda: wanted in self.text(selector), f"{wanted!r} in {selector}", seconds)

    def wait(self, condition: Callable[[], bool], what: str, seconds: float = PATIENCE) -> None:
        """Until the condition holds; on failure the error shows the page's text."""
        try:
            wait_until(condition, what, seconds)
        except AssertionError as error:
            raise BrowserError(f"{error}; shown:\n{self.text()[:3000]}") from None

    def size(self, width: int, height: int, *, phone: bool = False) -> None:
        """The window, in CSS pixels."""
        self.devtools(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )

    def scheme(self, name: str) -> None:
        """`light` or `dark`: what the system prefers."""
        features = [{"name": "prefers-color-scheme", "value": name}]
        self.devtools("Emulation.setEmulatedMedia", features=features)
        deadline = time.monotonic() + PATIENCE
        while not self.run(f"return matchMedia('(prefers-color-scheme: {name})').matches"):
            assert time.monotonic() < deadline, "the scheme does not change"
