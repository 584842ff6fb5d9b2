"""A model server for tests: it answers at once, streams, breaks off or is unwell, as the request or the test asks."""

import http.server
import json
import socket
import ssl
import struct
import threading
import time
from typing import Any, Self


class Replica:
    """Listens on a free port of loopback until it is stopped; says its name in every answer."""

    def __init__(self, name: str, tls: ssl.SSLContext | None = None) -> None:
        self.name = name
        self.is_healthy = True
        self.seen: list[dict[str, str]] = []
        """The headers of each completion asked of it, names in lower case."""
        self.asked: list[str] = []
        """The first line of each request but those for its health."""
        self.release = threading.Event()
        """Requests that `wait_for_release` are answered once it is set."""
        self.fails = False
        """Every completion ends with HTTP 500."""
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.replica = self
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.port: int = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def stop(self) -> None:
        """Gone as after SIGKILL: the port refuses and whatever is in flight breaks off."""
        self._server.shutdown()
        self._server.server_close()
        self._server.cut_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    replica: Replica

    def __init__(self, address: tuple[str, int], handler: type[http.server.BaseHTTPRequestHandler]) -> None:
        self.open: set[socket.socket] = set()
        super().__init__(address, handler)

    def get_request(self) -> tuple[socket.socket, object]:
        connection, peer = super().get_request()
        self.open.add(connection)
        return connection, peer

    def shutdown_request(self, request: socket.socket) -> None:  # pyright: ignore[reportIncompatibleMethodOverride] - TCP only
        self.open.discard(request)
        super().shutdown_request(request)

    def cut_all(self) -> None:
        for connection in list(self.open):
            _cut(connection)

    def handle_error(self, request: object, client_address: object) -> None:
        """A peer that went away is what some tests are about."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server  # pyright: ignore[reportIncompatibleVariableOverride] - the only server it is used with

    def do_GET(self) -> None:
        if self.path != "/health":
            self.server.replica.asked.append(self.requestline)
        if self.path == "/metrics":
            self._send(200, "text/plain", b"llamacpp:requests_processing 0\nllamacpp:requests_deferred 0\n")
        else:
            self._answer(200 if self.server.replica.is_healthy else 503, {"status": "ok"})

    def do_POST(self) -> None:
        self.server.replica.asked.append(self.requestline)
        asked = json.loads(self._body())
        self.server.replica.seen.append({name.lower(): value for name, value in self.headers.items()})
        if asked.get("wait_for_release"):
            self.server.replica.release.wait(timeout=30)
        if self.server.replica.fails:
            self._answer(500, {"from": self.server.replica.name})
        elif "input" in asked:  # as llama.cpp says it of an embedding, where its model is one for chats
            self._answer(501, {"error": {"code": 501, "message": "no embeddings", "type": "not_supported_error"}})
        elif "image_url" in json.dumps(asked.get("messages")):
            self._answer(500, {"error": {"code": 500, "message": "image input is not supported"}})
        elif asked.get("pieces") is not None:
            self._send_pieces(asked)
        elif asked.get("stream"):
            self._stream(asked)
        elif asked.get("max_tokens") == 1:  # of a model that reasons, nothing is to be seen of its first token
            choice = {"message": {"content": None}, "finish_reason": "length"}
            self._answer(200, {"choices": [choice], "usage": {"completion_tokens": 1}})
        elif "messages" in asked:
            self._answer(200, {"choices": [{"message": {"content": "hello"}}], "usage": {"completion_tokens": 1}})
        else:
            self._answer(asked.get("status", 200), {"from": self.server.replica.name})

    def _body(self) -> bytes:
        if self.headers["transfer-encoding"] != "chunked":
            return self.rfile.read(int(self.headers["content-length"]))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _stream(self, asked: dict[str, float]) -> None:
        """The headers at once, as real servers do, then the tokens."""
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        tokens = int(asked.get("tokens", 1))
        for number in range(tokens):
            time.sleep(asked.get("seconds_per_token", 0))
            if number == asked.get("stall_after"):
                self.server.replica.release.wait(timeout=30)
            if number == asked.get("cut_after"):
                _cut(self.connection)
                return
            choice = {"delta": {"content": '{"token": 1}'}, "finish_reason": "stop" if number + 1 == tokens else None}
            chunk = json.dumps({"from": self.server.replica.name, "token": number, "choices": [choice]})
            event = f"data: {chunk}\n\n".encode()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))
            self.wfile.flush()
        self.wfile.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")

    def _send_pieces(self, asked: dict[str, Any]) -> None:
        """A body as the test has cut it, each piece a moment after the one before."""
        self.send_response(200)
        if asked["type"]:
            self.send_header("content-type", asked["type"])
        for name, value in asked.get("answer_headers", {}).items():
            self.send_header(name, value)
        if encoding := asked.get("encoding"):
            self.send_header("content-encoding", encoding)
        if asked["type"] == "application/json" and not asked.get("without_length"):
            self.send_header("content-length", str(len(_bytes("".join(asked["pieces"])))))
        else:
            self.send_header("connection", "close")
            self.close_connection = True
        self.end_headers()
        for piece in asked["pieces"]:
            self.wfile.write(_bytes(piece))
            self.wfile.flush()
            time.sleep(asked.get("seconds_per_piece", 0.02))

    def _answer(self, status: int, body: object) -> None:
        self._send(status, "application/json", json.dumps(body).encode())

    def _send(self, status: int, kind: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name that http.server gives it
        """The gateway's log is the one under test."""


def _bytes(text: str) -> bytes:
    """A lone surrogate stands for a byte that is no text."""
    return text.encode(errors="surrogateescape")


def _cut(connection: socket.socket) -> None:
    """With a reset, as when the process is killed."""
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RDWR)
        connection.close()
    except OSError:
        return
