"""A real gateway for tests, with certificates of its own, on free ports of loopback."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import httpx
import psutil
import trustme

from blocks.haproxy.gateway import HAProxyGateway
from blocks.local.processes import Daemon, end, free_port, marked
from blocks.ports.fleet import ModelKind
from blocks.ports.gateway import Outcome
from blocks.replica_tls import Authority
from deployments.haproxy.config import (
    AdminTLS,
    GatewaySettings,
    OutsideProvider,
    check_configuration,
    command,
    write_configuration,
)
from deployments.haproxy.reload import reload

SERVICES = ("chat", "embed")


def wait_until(what: str, holds: Callable[[], object], timeout_seconds: float = 10) -> None:
    """Ask again and again whether it holds, until it does."""
    deadline = time.monotonic() + timeout_seconds
    while not holds():
        assert time.monotonic() < deadline, f"in {timeout_seconds} s it did not come to pass that {what}"
        time.sleep(0.02)


@dataclass(frozen=True)
class RunningGateway:
    """HAProxy with the services of SERVICES, and the two ways to its admin connection."""

    settings: GatewaySettings
    by_socket: HAProxyGateway
    by_tls: HAProxyGateway
    env: Mapping[str, str]
    users: httpx.Client
    """Opens a new connection for each request."""

    @property
    def daemon(self) -> Daemon:
        return Daemon("haproxy", self.settings.run_directory)

    def start(self) -> None:
        self.daemon.start(command(self.settings.run_directory), env=self.env)
        wait_until("the gateway answers or ends", lambda: self.worker is not None or self.daemon.find() is None)
        assert self.worker is not None, f"the gateway ended as it started; its last words:\n{self.daemon.log_tail()}"

    @property
    def worker(self) -> str | None:
        """Tells one worker of HAProxy from the next; None while none answers."""
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(str(self.settings.run_directory / "admin.sock"))
                connection.sendall(b"get var proc.boot\n")
                return connection.recv(1000).decode() or None  # nothing, where it ends before it has begun
        except OSError:
            return None

    def reload(self) -> None:
        reload(self.settings.run_directory)
        self.wait_for_one_worker()

    def wait_for_one_worker(self) -> None:
        """For a moment after a reload the old one may still answer."""
        master = self.daemon.find()
        assert master is not None
        wait_until("one worker listens", lambda: sum(map(_listens, master.children())) == 1)

    def kill(self) -> None:
        """SIGKILL, to the master and its workers."""
        processes = [*marked(self.daemon.pid_file)]
        for process in processes:
            process.kill()
        # Those, and not what is still marked: one that is about to end shows no mark, and would be taken for running.
        end(processes, grace_seconds=5)

    def url(self, service: str = "chat", path: str = "/v1/chat/completions") -> str:
        return f"http://{self.settings.services[service]}{path}"

    def ask(
        self,
        user: str | None = None,
        *,
        path: str = "/v1/chat/completions",
        headers: Mapping[str, str] | None = None,
        **asked: object,
    ) -> httpx.Response:
        return self.users.post(
            self.url(path=path),
            content=json.dumps(asked),
            headers={"content-type": "application/json", **(headers or {}), **({"x-user-id": user} if user else {})},
        )

    def servers(self) -> set[tuple[str, str, str]]:
        return {(server.slot, server.address, server.state) for server in self.by_socket.servers("chat")}

    def cursor(self) -> str:
        return self.by_socket.requests("chat", None).cursor

    def outcomes(self, after: str, count: int) -> tuple[Outcome, ...]:
        """What was logged since the cursor, once it is that many; HAProxy logs after the user has the answer."""
        wait_until(
            f"{count} requests are logged", lambda: len(self.by_socket.requests("chat", after).outcomes) >= count
        )
        reading = self.by_socket.requests("chat", after)
        assert reading.is_complete
        return reading.outcomes


def _listens(process: psutil.Process) -> bool:
    try:
        return any(found.status == psutil.CONN_LISTEN for found in process.net_connections("tcp"))
    except psutil.Error:  # it has ended
        return False


@contextmanager
def running_gateway(
    run_directory: Path,
    outside: OutsideProvider | None = None,
    key: str = "",
    authority: Authority | None = None,
    request_seconds: float = 30,
    kinds: Mapping[str, ModelKind] | None = None,
) -> Iterator[RunningGateway]:
    ca = trustme.CA()
    certificate = run_directory / "gateway.pem"
    client_ca = run_directory / "ca.pem"
    run_directory.mkdir()
    ca.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(certificate)
    ca.cert_pem.write_to_path(client_ca)
    replica_ca = run_directory / "replica-ca.pem" if authority else None
    if authority and replica_ca:
        replica_ca.write_text(authority.certificate)
    client = ca.issue_cert("flows@skyferry.test")
    admin_address = f"127.0.0.1:{free_port()}"
    settings = GatewaySettings(
        run_directory=run_directory,
        services={service: f"127.0.0.1:{free_port()}" for service in SERVICES},
        kinds=kinds or {},
        admin_tls=AdminTLS(address=admin_address, certificate=certificate, client_ca=client_ca),
        replica_ca=replica_ca,
        outside=outside,
        request_seconds=request_seconds,
    )
    gateway = RunningGateway(
        settings=settings,
        by_socket=HAProxyGateway(admin_socket=run_directory / "admin.sock"),
        by_tls=HAProxyGateway(
            admin_address=admin_address,
            client_certificate=client.cert_chain_pems[0].bytes().decode(),
            client_key=client.private_key_pem.bytes().decode(),  # pyright: ignore[reportArgumentType] - pydantic wraps it
            ca_certificate=ca.cert_pem.bytes().decode(),
        ),
        env={outside.key_variable: key} if outside else {},
        users=httpx.Client(timeout=10, limits=httpx.Limits(max_keepalive_connections=0)),
    )
    write_configuration(settings)
    check_configuration(run_directory, gateway.env)
    try:
        gateway.start()
        yield gateway
    finally:
        gateway.users.close()
        gateway.daemon.stop(grace_seconds=2)


class Load:
    """A few users who ask again and again, on connections they keep, while the `with` block runs."""

    def __init__(
        self, url: str, users: int = 4, body: Mapping[str, object] | None = None, pause_seconds: float = 0
    ) -> None:
        self.answers: list[int | str] = []
        self._body, self._pause_seconds = body or {}, pause_seconds
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._use, args=(url,)) for _ in range(users)]

    def _use(self, url: str) -> None:
        with httpx.Client(timeout=10) as client:
            while not self._over.wait(self._pause_seconds):
                try:
                    self.answers.append(client.post(url, json=self._body).status_code)
                except httpx.HTTPError as error:
                    self.answers.append(repr(error))

    def goes_on(self, count: int = 50) -> None:
        """Wait for that many further answers."""
        goal = len(self.answers) + count
        wait_until(f"{count} more answers", lambda: len(self.answers) >= goal)

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
