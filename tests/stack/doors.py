"""What a stranger without any key is told at a port, in every protocol that a part of the stack speaks."""

import ssl
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from socket import create_connection

import psutil

from blocks.local.processes import marked

PATIENCE_SECONDS = 2
PATHS = (
    # Of Prefect's server; of the hub; of llama.cpp and vLLM, by way of the gateway or not.
    *(
        "/api/health",
        "/api/admin/settings",
        "/api/version",
        "/api/openapi.json",
        "/api/flow_runs/filter",
        "/ui-settings",
    ),
    *("/api/models/maker/tiny", "/content/maker/tiny/r1/tiny.gguf"),
    # Out of the hub's directory.
    *("/api/models/%2e%2e/store", "/%2e%2e/store/resolve/security/store.key", "/api/models/*/*"),
    *("/health", "/metrics", "/props", "/slots", "/v1/models", "/v1/chat/completions", "/completion", "/tokenize"),
    # Of SeaweedFS: S3, master, volume, filer.
    *("/", "/skyferry", "/skyferry/ledger/chat.json", "/healthz", "/status", "/stats/disk", "/debug/pprof/"),
    *("/dir/assign", "/dir/status", "/col/delete?collection=nobody", "/vol/vacuum", "/cluster/status", "/submit"),
    *(
        "/1,0123456789",
        "/admin/assign_volume",
        "/ui/index.html",
        "/buckets/skyferry/",
        "/topics/",
        "/?Action=ListUsers",
    ),
)
METHODS = ("GET", "POST", "PUT", "DELETE")
HTTP_2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""How a client of gRPC begins; a server that takes it answers with settings of its own."""
SETTINGS = 4


@dataclass(frozen=True)
class Endpoint:
    """A port of the stack, and the process that has it."""

    host: str
    port: int
    process: psutil.Process

    def told(self) -> Iterator[str]:
        """Each request, by plain TCP and by TLS, to which a stranger got more than a refusal."""
        for by, context in (("", None), ("TLS ", _any_certificate())):
            if len(said := self._ask(HTTP_2, context)) > SETTINGS and said[3] == SETTINGS:
                yield f"{by}HTTP/2"
            if context is not None and not self._ask(_request("GET", "/"), context):
                return  # it speaks no TLS, or with its own clients only
            for method in METHODS:
                for path in PATHS:
                    status = _status(self._ask(_request(method, path), context))
                    if status is not None and status < 400:
                        yield f"{by}{method} {path}"

    def _ask(self, request: bytes, context: ssl.SSLContext | None) -> bytes:
        """The first bytes of what it says; none where it breaks off, or says nothing for seconds."""
        with suppress(OSError), create_connection((self.host, self.port), PATIENCE_SECONDS) as plain:
            connection = context.wrap_socket(plain) if context else plain
            connection.sendall(request)
            return connection.recv(1000)
        return b""


def doors(home: Path) -> list[Endpoint]:
    """Every port on which any process of the stack listens."""
    found = {
        (connection.laddr.ip, connection.laddr.port): process
        for process in marked(home)
        for connection in _connections(process)
        if connection.status == psutil.CONN_LISTEN
    }
    return [Endpoint(host, port, process) for (host, port), process in found.items()]


def _connections(process: psutil.Process) -> list:
    try:
        return process.net_connections("inet")
    except psutil.Error:  # it has ended
        return []


def _request(method: str, path: str) -> bytes:
    """With a foreign Host, as of a page that has rebound its name, and with no content type, as a page may send."""
    body = b"{}" if method in {"POST", "PUT"} else b""
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: rebound.example\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _status(said: bytes) -> int | None:
    return int(said.split()[1]) if said.startswith(b"HTTP/1.") else None


def _any_certificate() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context
