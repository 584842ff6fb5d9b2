"""A hub and a store that are never the limit: one sends files without a copy, the other one reads and counts each byte.

Both keep just enough of their protocols for the clients that are compared. Nothing is stored.
"""

import argparse
import hashlib
import json
import os
import ssl
import threading
import uuid
from collections.abc import Callable
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from mmap import ACCESS_READ, mmap
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

REPO = "benchmark/model"
COMMIT = "c" * 40
BUFFER_BYTES = 4 << 20


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except ConnectionError:
            self.close_connection = True  # a client that has ended

    def say(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name in the base class
        """Say nothing."""


class Source(_Handler):
    """The Hugging Face Hub's protocol, and an index of plain files for rclone."""

    directory: Path
    hashes: dict[str, str]

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path.startswith(f"/api/models/{REPO}"):
            return self.say(200, {"Content-Type": "application/json", "X-Repo-Commit": COMMIT}, self.describe(path))
        if path == "/files/":
            links = "".join(f'<a href="{name}">{name}</a>\n' for name in self.hashes)
            return self.say(200, {"Content-Type": "text/html"}, f"<html><body>{links}</body></html>".encode())
        name = path.rpartition("/")[2]
        if name not in self.hashes:
            return self.say(404, {"X-Error-Code": "EntryNotFound"})
        if path.startswith(f"/{REPO}/resolve/"):
            size = (self.directory / name).stat().st_size
            port = self.connection.getsockname()[1]
            scheme = "https" if isinstance(self.connection, ssl.SSLSocket) else "http"
            return self.say(
                302,
                {
                    "Location": f"{scheme}://localhost:{port}/content/{name}",
                    "X-Repo-Commit": COMMIT,
                    "X-Linked-Size": str(size),
                    "X-Linked-ETag": f'"{self.hashes[name]}"',
                    "ETag": f'"{self.hashes[name]}"',
                },
            )
        return self.send(name)

    do_HEAD = do_GET  # noqa: N815 - the name that http.server calls

    def send(self, name: str) -> None:
        with (self.directory / name).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            start, end, status = 0, size - 1, 200
            if (wanted := self.headers.get("Range")) is not None:
                first, _, last = wanted.removeprefix("bytes=").partition("-")
                start, end, status = int(first), min(int(last or end), end), 206
            self.send_response(status)
            self.send_header("Content-Length", str(end - start + 1))
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("ETag", f'"{self.hashes[name]}"')
            if status == 206:
                self.send_header("Content-Range", f"bytes {start}-{end}/{size}")
            self.end_headers()
            if self.command == "GET" and isinstance(self.connection, ssl.SSLSocket):
                with mmap(file.fileno(), 0, access=ACCESS_READ) as content:
                    self.connection.sendall(memoryview(content)[start : end + 1])
                return
            while self.command == "GET" and start <= end:
                start += os.sendfile(self.connection.fileno(), file.fileno(), start, end - start + 1)

    def describe(self, path: str) -> bytes:
        sizes = {name: (self.directory / name).stat().st_size for name in self.hashes}
        if "/tree/" in path:
            return json.dumps(
                [
                    {
                        "type": "file",
                        "path": name,
                        "size": size,
                        "oid": "0" * 40,
                        "lfs": {"oid": self.hashes[name], "size": size, "pointerSize": 100},
                    }
                    for name, size in sizes.items()
                ]
            ).encode()
        siblings = [
            {
                "rfilename": name,
                "size": size,
                "blobId": "0" * 40,
                "lfs": {"sha256": self.hashes[name], "size": size, "pointerSize": 100},
            }
            for name, size in sizes.items()
        ]
        return json.dumps({"id": REPO, "modelId": REPO, "sha": COMMIT, "tags": [], "siblings": siblings}).encode()


class Sink(_Handler):
    """S3's protocol: each byte is read and counted, and gone."""

    counted_bytes = 0
    sizes: dict[str, int] = {}  # noqa: RUF012 - one sink a process
    """Of each object, and of each upload under its id: some clients look whether the object is there."""
    lock = threading.Lock()
    buffers = threading.local()

    def swallow(self) -> int:
        left = int(self.headers.get("Content-Length", 0))
        if not hasattr(self.buffers, "view"):
            self.buffers.view = memoryview(bytearray(BUFFER_BYTES))
        while left:
            left -= self.rfile.readinto1(self.buffers.view[: min(left, BUFFER_BYTES)])  # pyright: ignore[reportAttributeAccessIssue] - a BufferedReader
        return int(self.headers.get("x-amz-decoded-content-length", self.headers.get("Content-Length", 0)))

    def xml(self, status: int, body: str) -> None:
        self.say(status, {"Content-Type": "application/xml"}, f'<?xml version="1.0"?>{body}'.encode())

    def do_PUT(self) -> None:
        size, place = self.swallow(), urlsplit(self.path)
        with self.lock:
            Sink.counted_bytes += size
            if (upload := parse_qs(place.query).get("uploadId")) is not None:
                self.sizes[upload[0]] = self.sizes.get(upload[0], 0) + size
            else:
                self.sizes[unquote(place.path)] = size
        echoed = {name: value for name, value in self.headers.items() if name.lower().startswith("x-amz-checksum-")}
        self.say(200, {"ETag": f'"{uuid.uuid4().hex}"', **echoed})

    def do_POST(self) -> None:
        self.swallow()
        key = escape(unquote(urlsplit(self.path).path))
        if "uploads" in urlsplit(self.path).query.split("&")[0]:
            name = f"<Key>{key}</Key><UploadId>{uuid.uuid4()}</UploadId>"
            return self.xml(
                200, f"<InitiateMultipartUploadResult><Bucket>b</Bucket>{name}</InitiateMultipartUploadResult>"
            )
        with self.lock:
            upload = parse_qs(urlsplit(self.path).query)["uploadId"][0]
            self.sizes[unquote(urlsplit(self.path).path)] = self.sizes.pop(upload, 0)
        done = f"<Bucket>b</Bucket><Key>{key}</Key><ETag>&quot;{uuid.uuid4().hex}-1&quot;</ETag>"
        return self.xml(200, f"<CompleteMultipartUploadResult>{done}</CompleteMultipartUploadResult>")

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query, keep_blank_values=True)
        if "counted" in query:
            return self.say(200, {}, str(Sink.counted_bytes).encode())
        if "location" in query:
            return self.xml(200, "<LocationConstraint>us-east-1</LocationConstraint>")
        if "uploads" in query:
            return self.xml(
                200, "<ListMultipartUploadsResult><IsTruncated>false</IsTruncated></ListMultipartUploadsResult>"
            )
        if "list-type" in query or "delimiter" in query:
            return self.xml(200, "<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>")
        return self.xml(404, "<Error><Code>NoSuchKey</Code><Message>Nothing is kept.</Message></Error>")

    def do_HEAD(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path.strip("/").count("/") == 0:
            return self.say(200, {})
        if path not in self.sizes:
            return self.say(404, {})
        stamp = formatdate(usegmt=True)
        return self.say(
            200, {"Content-Length": str(self.sizes[path]), "ETag": '"kept-nowhere"', "Last-Modified": stamp}
        )

    def do_DELETE(self) -> None:
        self.say(204, {})


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


def serve(handler: type[_Handler], ready: Callable[[int], None], certificate: Path | None = None) -> None:
    with _Server(("127.0.0.1", 0), handler) as server:
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            # Each connection shakes hands in its own thread, not in the one that accepts them.
            server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        ready(server.server_port)
        server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=["source", "sink"])
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--certificate", type=Path, help="with its key: then it speaks HTTPS")
    given = parser.parse_args()
    if given.kind == "source":
        Source.directory = given.directory
        Source.hashes = {}
        for path in sorted(given.directory.iterdir()):
            with path.open("rb") as file:
                Source.hashes[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    handler = Source if given.kind == "source" else Sink
    serve(handler, lambda port: print(port, flush=True), given.certificate)  # noqa: T201 - who starts it reads the port


if __name__ == "__main__":
    main()
