"""Local servers that disconnect, stall and truncate by a seed, in front of a folder or of another server."""

from __future__ import annotations

import functools
import http.client
import random
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

FAULTS = ("reset", "stall", "short")


class Server(ThreadingHTTPServer):
    """A `share` of the answers to a GET of an image fails, the same ones every time; `asked` counts the requests."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, handler: Any, share: float = 0.0, latency: float = 0.0) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.share = share
        self.latency = latency
        self.asked: dict[str, int] = {}
        self.faults: list[str] = []
        self.over = threading.Event()
        self.headers_seen: list[dict[str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def fault(self, path: str) -> str | None:
        """The fault of this request; it depends only on the path and the number of requests for it so far."""
        self.asked[path] = self.asked.get(path, 0) + 1
        chance = random.Random(f"{path} {self.asked[path]}")
        if not path.partition("?")[0].endswith((".jpg", ".zip")) or chance.random() >= self.share:
            return None
        self.faults.append(chance.choice(FAULTS))
        return self.faults[-1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that have disconnected."""


class Handler(SimpleHTTPRequestHandler):
    """A folder, with its listings."""

    server: Server
    protocol_version = "HTTP/1.1"
    timeout = 20

    def log_message(self, *args: Any) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        self.server.headers_seen.append(dict(self.headers))
        if self.server.latency:
            self.server.over.wait(self.server.latency)
        status, headers, body = self.answer()
        fault = self.server.fault(self.path)
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()
            return
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if fault else body)
        self.wfile.flush()
        if fault == "stall":
            self.server.over.wait(20)
        self.close_connection = fault is not None

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        path = Path(self.translate_path(self.path))
        if path.is_dir():
            file = self.list_directory_bytes(path)
            return 200, {"Content-Type": "text/html", "Content-Length": str(len(file))}, file
        if not path.is_file():
            return 404, {"Content-Length": "0"}, b""
        body = path.read_bytes()
        return (
            200,
            {"Content-Length": str(len(body)), "Last-Modified": self.date_time_string(path.stat().st_mtime)},
            body,
        )

    def list_directory_bytes(self, path: Path) -> bytes:
        """The page that http.server makes, without the headers that it sends first."""
        quiet = functools.partial(lambda *args: None)
        self.send_response = self.send_header = self.end_headers = quiet  # type: ignore[method-assign]
        try:
            page = self.list_directory(path)
        finally:
            del self.send_response, self.send_header, self.end_headers
        assert page is not None
        return page.read()


def in_front_of(port: int) -> type[Handler]:
    """A handler that passes everything on to a server on this machine."""

    class Proxy(Handler):
        def answer(self) -> tuple[int, dict[str, str], bytes]:
            connection = http.client.HTTPConnection("127.0.0.1", port)
            try:
                length = int(self.headers.get("Content-Length", 0))
                connection.request(self.command, self.path, self.rfile.read(length), dict(self.headers))
                response = connection.getresponse()
                body = response.read()
            finally:
                connection.close()
            kept = {k: v for k, v in response.getheaders() if k.lower() not in ("connection", "transfer-encoding")}
            return response.status, {**kept, "Content-Length": kept.get("Content-Length", str(len(body)))}, body

        do_HEAD = do_PUT = do_POST = Handler.do_GET

    return Proxy


@contextmanager
def serving(handler: Any, **settings: Any) -> Iterator[Server]:
    server = Server(handler, **settings)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        server.server_close()
        thread.join()


def folder(path: Path) -> Any:
    return functools.partial(Handler, directory=str(path))
