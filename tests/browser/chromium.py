"""A headless Chromium that opens one page from disk, driven over its DevTools protocol."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import websocket

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_NOISE = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")
# No rendering of text or colours that depends on the machine, and a window that no screen shows.
_OPTIONS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-allow-origins=*")


class Browser:
    """The page that is open: `noise` is what it wrote to its console, `requests` the addresses it asked for."""

    def __init__(self, socket: websocket.WebSocket) -> None:
        self.noise: list[str] = []
        self.requests: list[str] = []
        self._socket = socket
        self._number = 0
        self._opened = 0
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        offline = {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        self.call("Network.emulateNetworkConditions", **offline)

    def call(self, method: str, **params: Any) -> Any:
        """What a method of the protocol gives."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv())
            if message.get("id") == self._number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                return message["result"]
            if message.get("method") in _NOISE:
                self.noise.append(json.dumps(message["params"])[:1000])
            if message.get("method") == "Network.requestWillBeSent":
                self.requests.append(message["params"]["request"]["url"])

    def open(self, page: Path, section: str = "run") -> None:
        """Open a report and wait until it can be used."""
        self._opened += 1
        # Another section of the page that is open would not be loaded anew.
        self.call("Page.navigate", url=f"{page.as_uri()}?{self._opened}#{section}")
        self.until(f"location.search === '?{self._opened}'")
        self.until("document.body?.dataset.ready === ''")

    def js(self, expression: str) -> Any:
        """The value of an expression, awaited if it is a promise."""
        found = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(f"{expression}: {json.dumps(found['exceptionDetails'])[:1000]}")
        return found["result"].get("value")

    def until(self, condition: str, seconds: float = 60) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + seconds
        while not self.js(condition):
            if time.monotonic() > end:
                raise TimeoutError(f"{condition}; console: {self.noise}")
            time.sleep(0.02)

    def text(self, selector: str) -> str:
        """The text of an element."""
        return str(self.js(f"document.querySelector({json.dumps(selector)}).textContent"))

    def texts(self, selector: str) -> list[str]:
        """The texts of all elements that match."""
        found = self.js(f"[...document.querySelectorAll({json.dumps(selector)})].map(one => one.textContent)")
        return [str(text) for text in found]

    def show(self, section: str) -> None:
        """Change to a section by a click on its name."""
        self.js(f"document.querySelector('nav a[href=\"#{section}\"]').click()")
        self.until(f"document.body.dataset.drawn.startsWith({json.dumps(section + ' ')})")
        self.until(f"!document.getElementById({json.dumps(section)}).hidden")

    def choose(self, select: str, value: object) -> None:
        """Choose an option, or type a value, as a user does."""
        place = f"document.getElementById({json.dumps(select)})"
        self.js(
            f"{place}.value = {json.dumps(str(value))};"
            f"['input', 'change'].forEach(kind => {place}.dispatchEvent(new Event(kind)))"
        )

    def mouse(self, kind: str, x: float, y: float, *, held: bool = False) -> None:
        """Move the mouse, or press or release its left button, at a place of the window."""
        pressed = held or kind == "mousePressed"
        button = {"button": "left", "buttons": int(pressed)} if held or kind != "mouseMoved" else {}
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, clickCount=int(kind != "mouseMoved"), **button)

    def click(self, x: float, y: float) -> None:
        """Click at a place of the window."""
        self.mouse("mouseMoved", x, y)
        self.mouse("mousePressed", x, y)
        self.mouse("mouseReleased", x, y)

    def drag(self, places: list[tuple[float, float]]) -> None:
        """Press the mouse at the first place, move it along the others, and release it at the last."""
        self.mouse("mouseMoved", *places[0])
        self.mouse("mousePressed", *places[0])
        for place in places[1:]:
            self.mouse("mouseMoved", *place, held=True)
        self.mouse("mouseReleased", *places[-1])

    def resize(self, width: int, height: int, *, dark: bool = False) -> None:
        """A window of that size, on a phone if it is narrow, in light or dark colours."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 500,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def picture(self, path: Path) -> None:
        """Write a PNG of the window."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


@contextmanager
def browsing(folder: Path) -> Iterator[Browser]:
    """A browser whose profile is in that folder. Raises `RuntimeError` where there is no Chromium."""
    program = next((found for name in _NAMES if (found := shutil.which(name))), None)
    if program is None:
        raise RuntimeError(f"none of {', '.join(_NAMES)} is installed: apt-get install chromium")
    command = [program, *_OPTIONS, "--remote-debugging-port=0", f"--user-data-dir={folder}", "about:blank"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            socket = websocket.create_connection(_address(folder / "DevToolsActivePort"), timeout=120)
            try:
                yield Browser(socket)
            finally:
                socket.close()
        finally:
            process.terminate()


def _address(file: Path) -> str:
    """Where the page's protocol is, once the browser has written its port."""
    end = time.monotonic() + 60
    while not file.exists() or "\n" not in file.read_text():
        if time.monotonic() > end:
            raise TimeoutError("Chromium has not started within a minute")
        time.sleep(0.05)
    port = file.read_text().split()[0]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as answer:
        pages = [page for page in json.load(answer) if page["type"] == "page"]
    return str(pages[0]["webSocketDebuggerUrl"])
