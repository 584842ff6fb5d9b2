"""A proxy before a real server, which does the harm that networks, hubs and stores do."""

import http.client
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

Harm = Literal["answer", "cut", "stall", "trickle", "corrupt", "spoil", "headers"]
OF_ONE_HOP = {"connection", "transfer-encoding", "expect", "keep-alive", "date", "server"}


@dataclass(frozen=True)
class Fault:
    """What happens to the next request of a kind."""

    method: str
    within: str
    """A pattern found in the path and query."""
    harm: Harm
    status: int = 0
    """Of `answer`, which the server never sees."""
    headers: dict[str, str] = field(default_factory=dict)
    """Of `answer`; with `headers`, in place of the server's own."""
    body: bytes = b""


@dataclass
class FaultyProxy:
    address: str = ""
    faults: list[Fault] = field(default_factory=list)
    """Each happens once, to the first request that it is for."""
    requests: list[tuple[str, str, int]] = field(default_factory=list)
    """Method, path, and the status that the client got; 0 where it got none."""
    on_request: Callable[[str, str], None] = lambda _method, _path: None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, method: str, within: str, status: int = 200) -> int:
        return sum(m == method and within in path and s == status for m, path, s in self.requests)

    def next_fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.method == method and re.search(fault.within, path):
                    self.faults.remove(fault)
                    return fault
        return None


def slow_down(retry_after: str = "0") -> dict[str, object]:
    body = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
    return {"status": 503, "headers": {"Content-Type": "application/xml", "Retry-After": retry_after}, "body": body}


class _Handler(BaseHTTPRequestHandler):
    proxy: FaultyProxy
    target: str
    protocol_version = "HTTP/1.1"

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (ConnectionError, http.client.HTTPException):
            self.close_connection = True  # the client was killed, or did what this proxy is for

    def forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.proxy.on_request(self.command, self.path)
        fault = self.proxy.next_fault(self.command, self.path)
        if fault is not None and fault.harm == "answer":
            return self.answer(fault.status, fault.headers, fault.body, len(fault.body))
        if fault is not None and fault.harm == "spoil":
            body = bytes([body[0] ^ 0x80]) + body[1:]
        status, headers, content = self.ask(body)
        if fault is None:
            return self.answer(status, headers, content, len(content))
        return self.harm(fault, status, headers, content)

    def harm(self, fault: Fault, status: int, headers: dict[str, str], content: bytes) -> None:
        match fault.harm:
            case "cut":
                self.answer(status, headers, content[: len(content) // 2], len(content))
                self.close_connection = True
            case "stall":
                self.answer(status, headers, content[:10], len(content))
                self.connection.recv(1)  # until the client has had enough
                self.close_connection = True
            case "trickle":
                self.answer(status, headers, b"", len(content))
                self.trickle(content)
            case "corrupt":
                self.answer(status, headers, bytes([content[0] ^ 0x80]) + content[1:], len(content))
            case "headers":
                kept = {name: value for name, value in headers.items() if name not in fault.headers}
                self.answer(status, {**kept, **fault.headers}, content, len(content))
            case _:
                self.answer(status, headers, content, len(content))

    def trickle(self, content: bytes) -> None:
        """Bytes go on coming, and never enough of them; ends once the client leaves."""
        self.connection.settimeout(0.05)
        for byte in content:
            self.wfile.write(bytes([byte]))
            try:
                if not self.connection.recv(1):
                    break
            except TimeoutError:
                continue
        self.close_connection = True

    def ask(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        headers = {name: value for name, value in self.headers.items() if name.lower() not in OF_ONE_HOP}
        connection = http.client.HTTPConnection(self.target, timeout=60)
        try:
            connection.request(self.command, self.path, body or None, headers)
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        found = {name.lower(): value for name, value in response.getheaders()}
        return response.status, {n: v for n, v in found.items() if n not in OF_ONE_HOP}, content

    def answer(self, status: int, headers: dict[str, str], body: bytes, announced: int) -> None:
        self.proxy.requests.append((self.command, self.path, status))
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() != "content-length":
                self.send_header(name, value)
        length = headers.get("content-length", "0") if self.command == "HEAD" else str(announced)
        self.send_header("Content-Length", length)
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_HEAD = do_PUT = do_POST = do_PATCH = do_DELETE = forward  # noqa: N815 - the names that http.server calls

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name in the base class
        """Say nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64


@contextmanager
def faulty_proxy(target: str) -> Iterator[FaultyProxy]:
    """Before the server at `host:port`, which sees the Host that the client has signed."""
    proxy = FaultyProxy()
    handler = type("Handler", (_Handler,), {"proxy": proxy, "target": target})
    with _Server(("127.0.0.1", 0), handler) as server:
        proxy.address = f"127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield proxy
        finally:
            server.shutdown()
