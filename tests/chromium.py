"""A headless Chromium, driven over its DevTools protocol: enough to open a page, drag, click and read it back."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next((path for name in NAMES if (path := shutil.which(name))), None)
OPTIONS = (
    *(
        "--headless=new",
        "--no-sandbox",
        "--remote-debugging-port=0",
        "--no-first-run",
        "--disable-extensions",
    ),
    *("--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--disable-background-networking"),
    *("--host-resolver-rules=MAP * ~NOTFOUND", "--remote-allow-origins=*"),
)
"""Without a network: every name resolves to nothing."""


class Page:
    """One page."""

    def __init__(self, socket: Any) -> None:
        self._socket, self._number = socket, 0
        self.errors: list[str] = []

    def send(self, method: str, **params: Any) -> Any:
        """One command; its result."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": params}))
        while True:
            answer = json.loads(self._socket.recv(timeout=60))
            if answer.get("method") in ("Runtime.exceptionThrown", "Network.loadingFailed"):
                self.errors.append(json.dumps(answer["params"])[:1000])
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression; promises are awaited."""
        found = self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, expression: str, seconds: float = 60) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + seconds
        while not self.evaluate(f"Boolean({expression})"):
            assert time.monotonic() < end, f"not true within {seconds} s: {expression}; {self.errors}"
            time.sleep(0.1)

    def mouse(self, kind: str, x: float, y: float) -> None:
        """mousePressed, mouseMoved or mouseReleased."""
        self.send(
            "Input.dispatchMouseEvent",
            type=kind,
            x=x,
            y=y,
            button="left",
            buttons=1,
            clickCount=1,
            pointerType="mouse",
        )

    def click(self, x: float, y: float) -> None:
        """Press and release."""
        self.mouse("mousePressed", x, y)
        self.mouse("mouseReleased", x, y)

    def drag(self, start: tuple[float, float], end: tuple[float, float], steps: int = 8) -> None:
        """Press, move, release."""
        self.mouse("mousePressed", *start)
        for k in range(1, steps + 1):
            self.mouse("mouseMoved", *(a + (b - a) * k / steps for a, b in zip(start, end, strict=True)))
            time.sleep(0.03)
        self.mouse("mouseReleased", *end)

    def key(self, key: str) -> None:
        """Press a key that makes a text."""
        self.send("Input.dispatchKeyEvent", type="keyDown", key=key, text=key)
        self.send("Input.dispatchKeyEvent", type="keyUp", key=key)

    def screenshot(self, path: Path) -> None:
        """Write what is seen as PNG."""
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot")["data"]))


@contextmanager
def opened(address: str, profile: Path, *, size: tuple[int, int] = (1280, 800)) -> Iterator[Page]:
    """Open a page in a browser of its own."""
    from websockets.sync.client import connect

    assert BROWSER is not None
    command = [
        BROWSER,
        *OPTIONS,
        f"--user-data-dir={profile}",
        f"--window-size={size[0]},{size[1]}",
        "about:blank",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        note = profile / "DevToolsActivePort"
        for _ in range(600):
            if note.is_file() and note.read_text().count("\n") >= 1:
                break
            assert process.poll() is None
            time.sleep(0.1)
        port, path = note.read_text().splitlines()[:2]
        with connect(f"ws://127.0.0.1:{port}{path}", proxy=None, max_size=None) as browser:
            browser.send(json.dumps({"id": 1, "method": "Target.getTargets"}))
            targets = json.loads(browser.recv(timeout=30))["result"]["targetInfos"]
        target = next(t["targetId"] for t in targets if t["type"] == "page")
        with connect(f"ws://127.0.0.1:{port}/devtools/page/{target}", proxy=None, max_size=None) as socket:
            page = Page(socket)
            for domain in ("Page", "Runtime", "Network"):
                page.send(f"{domain}.enable")
            if size[0] < 600:
                screen = {"width": size[0], "height": size[1], "deviceScaleFactor": 2, "mobile": True}
                page.send("Emulation.setDeviceMetricsOverride", **screen)
            page.send("Page.navigate", url=address)
            yield page
    finally:
        process.terminate()
        process.wait(30)
