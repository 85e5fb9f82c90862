"""A real S3-compatible server for tests (moto's, in its own process), and a proxy before it that fails on purpose."""

from __future__ import annotations

import http.client
import itertools
import random
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

import pytest

HOST = "127.0.0.1"
UNAVAILABLE = b"<Error><Code>ServiceUnavailable</Code><Message>not now</Message></Error>"


@contextmanager
def s3_server() -> Iterator[int]:
    """Start the server and yield its port."""
    pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = int(probe.getsockname()[1])
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", HOST, "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as server:
        try:
            for _ in range(600):
                try:
                    socket.create_connection((HOST, port), 1).close()
                    break
                except OSError:
                    time.sleep(0.1)
            yield port
        finally:
            server.kill()


def use_s3(patch: pytest.MonkeyPatch, port: int) -> None:
    """Point every S3 client of this process and its children at a port, as a user does: by the environment."""
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{HOST}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        patch.setenv(name, value)


def make_bucket(port: int) -> str:
    """Create an empty bucket and return its URL."""
    name = f"rfss-{uuid.uuid4().hex[:12]}"
    connection = http.client.HTTPConnection(HOST, port, timeout=30)
    connection.request("PUT", f"/{name}")
    assert connection.getresponse().status == 200
    connection.close()
    return f"s3://{name}"


def check_keys(port: int, after: float) -> None:
    """Let the server refuse unknown keys, as real ones do, after so many requests (moto's own switch)."""
    connection = http.client.HTTPConnection(HOST, port, timeout=30)
    connection.request("POST", "/moto-api/reset-auth", str(after).encode())
    assert connection.getresponse().status == 200
    connection.close()


class FlakyProxy:
    """Passes requests on to a server, and fails a share of them in the ways that networks and stores fail.

    A failing request is refused with a 503, cut off before it reaches the server, or carried out and its answer lost.

    Args:
        port: of the server.
        share: of the requests that fail.
        seed: of the draw.
    """

    def __init__(self, port: int, share: float = 0.0, seed: int = 0) -> None:
        self.share = share
        self.away = False
        """Whether every request is cut off."""
        self.requests: list[tuple[str, str]] = []
        """(method, path) of what reached the server."""
        self.failed = 0
        draw, lock = random.Random(seed), threading.Lock()
        ways = itertools.cycle(("refuse", "cut", "lose"))
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def _pass_on(self) -> None:
                body = self._body()
                with lock:
                    fails = proxy.away or draw.random() < proxy.share
                    way = ("cut" if proxy.away else next(ways)) if fails else ""
                    proxy.failed += fails
                if way == "refuse":
                    self._answer(503, {"Content-Type": "application/xml"}, UNAVAILABLE)
                    return
                if way == "cut":
                    self.close_connection = True
                    return
                upstream = http.client.HTTPConnection(HOST, port, timeout=60)
                try:
                    headers = {
                        k: v for k, v in self.headers.items() if k.lower() not in ("transfer-encoding", "expect")
                    }
                    upstream.request(self.command, self.path, body, headers)
                    answer = upstream.getresponse()
                    data = answer.read()
                    with lock:
                        proxy.requests.append((self.command, self.path))
                finally:
                    upstream.close()
                if way == "lose":
                    self.close_connection = True
                    return
                kept = {k: v for k, v in answer.getheaders() if k.lower() not in ("connection", "transfer-encoding")}
                self._answer(answer.status, kept, data)

            do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = do_HEAD = _pass_on  # noqa: N815

            def _body(self) -> bytes | None:
                length = self.headers.get("Content-Length")
                return self.rfile.read(int(length)) if length is not None else None

            def _answer(self, status: int, headers: dict[str, str], data: bytes) -> None:
                self.send_response_only(status)
                for name, value in headers.items():
                    if name.lower() != "content-length" or self.command == "HEAD":
                        self.send_header(name, value)
                if self.command != "HEAD":
                    self.send_header("Content-Length", str(len(data)))
                # One packet: head and body apart would wait for each other (Nagle, delayed acknowledgement).
                head = self._headers_buffer  # type: ignore[attr-defined]
                self.wfile.write(b"".join([*head, b"\r\n", b"" if self.command == "HEAD" else data]))
                head.clear()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer((HOST, 0), Handler)
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def reset(self) -> None:
        """Let every request pass, and forget those that did."""
        self.share, self.away, self.failed = 0.0, False, 0
        self.requests.clear()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
