"""A headless Chromium that tests drive: pages are opened, keys typed, elements clicked.

It is told what to do over a pair of pipes in the browser's own protocol (Chrome DevTools), so
nothing beside the browser is needed.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

__all__ = ["Browser", "open_browser"]

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
]


# Where to click an element: null while there is none, or while another one lies above it.
_AT_REST = """selector => {
  const element = document.querySelector(selector)
  if (!element) return null
  element.scrollIntoView({block: "center", behavior: "instant"})
  const box = element.getBoundingClientRect()
  const [x, y] = [box.x + box.width / 2, box.y + box.height / 2]
  const top = document.elementFromPoint(x, y)
  return top && element.contains(top) ? [x, y] : null
}"""


@contextlib.contextmanager
def open_browser(profile: Path) -> Iterator[Browser]:
    """A browser with one page; the test is skipped where there is none.

    With MODWRIGHT_REQUIRE_BROWSER=1 its absence is an error.
    """
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        if os.environ.get("MODWRIGHT_REQUIRE_BROWSER") == "1":
            pytest.fail("MODWRIGHT_REQUIRE_BROWSER=1, but no chromium is on the PATH")
        pytest.skip("no chromium on the PATH")
    their_in, our_out = os.pipe()
    our_in, their_out = os.pipe()
    # The browser reads from descriptor 3 and writes to 4. The shell puts the pipes there, from
    # numbers that are out of the way of these two.
    ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 100) for end in (their_in, their_out)]
    plumbing = f'exec "$@" 3<&{ends[0]} 4>&{ends[1]}'
    process = subprocess.Popen(
        ["bash", "-c", plumbing, "bash", program, *FLAGS, f"--user-data-dir={profile}"],
        pass_fds=ends,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for end in (their_in, their_out, *ends):
        os.close(end)
    try:
        yield Browser(our_in, our_out)
    finally:
        process.terminate()
        process.wait(timeout=30)
        os.close(our_in)
        os.close(our_out)


class Browser:
    """One page of a running browser.

    Attributes:
        asked: addresses of everything that pages asked for.
        errors: what scripts threw and what the console called an error.
    """

    def __init__(self, inlet: int, outlet: int) -> None:
        self._in, self._out, self._read, self._number = inlet, outlet, b"", 0
        self.asked: list[str] = []
        self.errors: list[str] = []
        self._session = ""
        target = self._send("Target.createTarget", url="about:blank")["targetId"]
        attached = self._send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Network", "Runtime"):
            self._send(f"{domain}.enable")

    def resize(self, width: int, height: int = 900) -> None:
        """The width in CSS pixels; a phone's is below what a window can have."""
        self._send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )

    def prefer(self, scheme: str) -> None:
        """What the reader's system prefers: "light" or "dark"."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self._send("Emulation.setEmulatedMedia", features=features)

    def open(self, address: str) -> None:
        """Goes to an address and waits until the page is loaded."""
        self._send("Page.navigate", url=address)
        self.wait(f"document.readyState === 'complete' && location.href === {json.dumps(address)}")

    def arrive(self, ending: str) -> None:
        """Waits until a click has led to an address that ends so, and that page is loaded."""
        there = f"location.pathname.endsWith({json.dumps(ending)})"
        self.wait(f"document.readyState === 'complete' && {there}")

    def evaluate(self, script: str) -> Any:
        """The value of an expression in the page."""
        answer = self._send("Runtime.evaluate", expression=script, returnByValue=True)
        if "exceptionDetails" in answer:
            raise AssertionError(f"{script}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def wait(self, condition: str, seconds: float = 60) -> Any:
        """Waits until an expression is true and returns its value."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            # A page that is being left answers with an error.
            with contextlib.suppress(AssertionError):
                value = self.evaluate(condition)
                if value:
                    return value
            time.sleep(0.05)
        raise AssertionError(f"never true: {condition}; the page says {self.errors or 'nothing'}")

    def click(self, selector: str) -> None:
        """A real click into the middle of the first element that matches, once it stands still."""
        find = f"(({_AT_REST})({json.dumps(selector)}))"
        before = None
        while (place := self.wait(find)) != before:
            before = place
            time.sleep(0.1)
        for kind in ("mousePressed", "mouseReleased"):
            x, y = place
            self._send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def type(self, text: str) -> None:
        """Types into the element that has the focus, key by key: pages listen to the keys."""
        for letter in text:
            self._send("Input.dispatchKeyEvent", type="keyDown", text=letter, key=letter)
            self._send("Input.dispatchKeyEvent", type="keyUp", key=letter)

    def screenshot(self, file: Path, whole: bool = False) -> None:
        """A PNG of what is seen, or of the whole page."""
        found = self._send("Page.captureScreenshot", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(found["data"]))

    # The protocol: JSON messages, each closed by a zero byte

    def _send(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise AssertionError(f"{method}: {answer['error']['message']}")
                result: dict[str, Any] = answer["result"]
                return result
            self._note(answer)

    def _receive(self, seconds: float = 120) -> dict[str, Any]:
        while b"\0" not in self._read:
            ready, _, _ = select.select([self._in], [], [], seconds)
            more = os.read(self._in, 1 << 20) if ready else b""
            if not more:
                raise AssertionError("the browser does not answer")
            self._read += more
        message, _, self._read = self._read.partition(b"\0")
        answer: dict[str, Any] = json.loads(message)
        return answer

    def _note(self, event: dict[str, Any]) -> None:
        told = event.get("params", {})
        if event.get("method") == "Network.requestWillBeSent":
            self.asked.append(told["request"]["url"])
        elif event.get("method") == "Runtime.exceptionThrown":
            details = told["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", details["text"]))
        elif event.get("method") == "Runtime.consoleAPICalled" and told["type"] == "error":
            self.errors.append(" ".join(str(a.get("value", a)) for a in told["args"]))
