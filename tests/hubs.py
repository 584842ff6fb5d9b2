"""A hub, or the host that it sends its content from, that answers as a test says, on any address of loopback."""

import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

REPO = "org/model"
COMMIT = "1" * 40
SHA1, SHA256 = "2" * 40, "3" * 64


@dataclass
class Said:
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    as_it_is: bool = False
    """Without a length: `body` is sent as it stands, and then the connection ends."""
    trickles: bool = False
    """A body without an end, a byte at a time."""
    hangs_up: bool = False
    """The connection ends after the answer, which does not say so."""


@dataclass
class Asked:
    method: str
    path: str
    headers: dict[str, str]
    """Names in lower case."""


@dataclass
class Server:
    """What was asked, and where."""

    address: str
    asked: list[Asked] = field(default_factory=list)
    stop: Callable[[], None] = lambda: None
    """Nobody listens there from then on."""

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    @property
    def paths(self) -> list[str]:
        return [asked.path for asked in self.asked]


def as_json(said: object, **headers: str) -> Said:
    return Said(headers=headers, body=json.dumps(said).encode())


class _Handler(BaseHTTPRequestHandler):
    server_of: Server
    say: Callable[[Asked], Said]
    tunnel: Callable[[socket.socket], None]
    before: bytes
    protocol_version = "HTTP/1.1"

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except OSError:
            self.close_connection = True  # the client has seen enough, or does not trust us

    def answer(self) -> None:
        asked = Asked(self.command, self.path, {name.lower(): value for name, value in self.headers.items()})
        self.server_of.asked.append(asked)
        said = type(self).say(asked)
        self.wfile.write(self.before)
        self.send_response_only(said.status)
        for name, value in said.headers.items():
            self.send_header(name, value)
        if self.command != "CONNECT" and not said.as_it_is and "Content-Length" not in said.headers:
            self.send_header("Content-Length", str(len(said.body)))
        self.end_headers()
        self.close_connection = self.close_connection or said.as_it_is or said.hangs_up
        if self.command == "CONNECT" and said.status == HTTPStatus.OK:
            type(self).tunnel(self.connection)
            self.close_connection = True
        elif self.command != "HEAD":
            self.wfile.write(said.body)
        if said.trickles:
            self.trickle(b"1\r\nx\r\n" if "Transfer-Encoding" in said.headers else b"x")

    def trickle(self, byte: bytes) -> None:
        """For ever, or until the client has had enough."""
        self.connection.settimeout(0.01)
        while True:
            self.wfile.write(byte)
            try:
                if not self.connection.recv(1):
                    return
            except TimeoutError:
                continue

    do_GET = do_HEAD = do_CONNECT = answer  # noqa: N815 - the names that http.server calls

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name in the base class
        """Say nothing."""


@contextmanager
def serving(
    say: Callable[[Asked], Said],
    host: str = "127.0.0.1",
    *,
    tls: ssl.SSLContext | None = None,
    tunnel: Callable[[socket.socket], None] = lambda _: None,
    before: bytes = b"",
) -> Iterator[Server]:
    """`tunnel` gets the connection after a CONNECT that was answered with 200; `before` is sent before each answer."""
    server = Server(host)
    parts = {"server_of": server, "say": staticmethod(say), "tunnel": staticmethod(tunnel), "before": before}
    with ThreadingHTTPServer((host, 0), type("Handler", (_Handler,), parts)) as running:
        server.address = f"{host}:{running.server_port}"

        def stop() -> None:
            running.shutdown()
            running.server_close()

        server.stop = stop
        if tls:
            running.socket = tls.wrap_socket(running.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        try:
            yield server
        finally:
            running.shutdown()


def entry(path: str, size: int = 4, **changed: object) -> dict[str, object]:
    """A small file, as the tree has it."""
    return {"type": "file", "path": path, "size": size, "oid": SHA1, **changed}


def large(path: str, size: int = 4, **changed: object) -> dict[str, object]:
    return entry(path, size, lfs={"oid": SHA256, "size": size, "pointerSize": 134, **changed})


def describing(
    *entries: dict[str, object], about: dict[str, object] | None = None, resolve: Callable[[Asked], Said] | None = None
) -> Callable[[Asked], Said]:
    """A hub with one model of these files."""
    info = {"id": REPO, "sha": COMMIT, "siblings": [], "tags": [], **(about or {})}

    def say(asked: Asked) -> Said:
        if "/tree/" in asked.path:
            return as_json(entries)
        if "/revision/" in asked.path:
            return as_json(info)
        return resolve(asked) if resolve else Said(404)

    return say
