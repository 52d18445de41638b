"""A local file server that can be told to misbehave."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Served:
    """One file and how it is served.

    ``cuts``: the body of the n-th answer ends after so many bytes (and the connection is cut).
    ``statuses``: the first answers are these instead, as (status, headers).
    """

    body: bytes
    ranges: bool = True
    cuts: list[int] = field(default_factory=list)
    statuses: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    etag: str | None = '"v1"'
    content_type: str = "application/octet-stream"


@dataclass
class Server:
    """The running server: its files by path and what was asked for."""

    url: str
    files: dict[str, Served]
    requests: list[tuple[str, str | None]]


@contextmanager
def serve() -> Iterator[Server]:
    """Serve on a free port of 127.0.0.1 until the block ends."""
    server: Server

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            name = self.path.lstrip("/")
            asked = self.headers.get("Range")
            server.requests.append((name, asked))
            served = server.files.get(name)
            if served is None:
                return self.answer(404, {})
            if served.statuses:
                return self.answer(*served.statuses.pop(0))
            start = self.start(served, asked)
            total = len(served.body)
            if start >= total:
                return self.answer(416, {"Content-Range": f"bytes */{total}"})
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
            if served.etag:
                self.send_header("ETag", served.etag)
            self.send_header("Content-Type", served.content_type)
            self.send_header("Content-Length", str(total - start))
            self.end_headers()
            body = served.body[start:]
            if served.cuts:
                body = body[: served.cuts.pop(0)]
                self.close_connection = True
            self.wfile.write(body)

        def start(self, served: Served, asked: str | None) -> int:
            match = re.fullmatch(r"bytes=(\d+)-", asked or "")
            changed = self.headers.get("If-Range") not in (None, served.etag)
            return int(match[1]) if match and served.ranges and not changed else 0

        def answer(self, status: int, headers: dict[str, str]) -> None:
            self.send_response(status)
            for key, value in {"Content-Length": "0", **headers}.items():
                self.send_header(key, value)
            self.end_headers()

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server = Server(url=f"http://127.0.0.1:{httpd.server_address[1]}", files={}, requests=[])
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()
