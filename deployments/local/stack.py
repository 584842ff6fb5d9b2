"""The embedded stack: a real Prefect server and worker, S3 store, model hub and gateway, on loopback."""

import os
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from datetime import datetime
from importlib import resources
from pathlib import Path

import httpx

from blocks.errors import Refused, Unavailable
from blocks.files import write_private
from blocks.local.fleet import LocalFleet
from blocks.local.processes import Daemon, by_whom, end, is_free, marked
from deployments.haproxy.config import (
    GatewaySettings,
    OutsideProvider,
    check_configuration,
    command,
    write_configuration,
)
from deployments.local.hub import REPO, fill_hub
from deployments.local.settings import HOST, SERVICE, Home, StackSettings
from flows.policy.releases.ledger import ServiceRecord, ledger_key

POOL = "local"
START_SECONDS = 120
POLL_SECONDS = 0.2
UNDO_SECONDS = 30
"""How long a release that is in progress may take to give users back what they had, when all is stopped."""
FALLBACK_HOST, FALLBACK_KEY = "SKYFERRY_FALLBACK_HOST", "SKYFERRY_FALLBACK_KEY"
"""Environment variables that name an outside OpenAI-compatible provider, and hold the key for it."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Part:
    """One process of the stack."""

    title: str
    daemon: Daemon
    command: list[str]
    address: str
    port: int | None
    """Where it listens, if it does."""
    answers: Callable[[], bool]
    further_ports: tuple[int, ...] = ()
    queue: str = ""
    """The work queue that it works off, if it is a worker."""
    env: Mapping[str, str] = field(default_factory=dict)
    grace_seconds: float = 10

    @property
    def is_healthy(self) -> bool:
        """Whether it runs and answers; whoever else has its port and answers there is not it."""
        runs = self.daemon.find() is not None if self.port is None else self.daemon.listens(self.port)
        return runs and self.answers()


@dataclass(frozen=True)
class Stack:
    home: Home
    settings: StackSettings

    @property
    def env(self) -> dict[str, str]:
        """What every process of Prefect's finds in its environment; no secret."""
        return {
            "PREFECT_HOME": str(self.home.prefect),
            "PREFECT_API_URL": self.settings.api_url,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
            "PREFECT_SERVER_UI_V2_ENABLED": "false",  # the V2 interface asks an analytics host from the browser
            "PREFECT_UI_API_URL": self.settings.api_url,
            # Else any page that a browser on this machine shows could start flows.
            "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": self.settings.ui_url,
            "PREFECT_WORKER_QUERY_SECONDS": "2",
            # One write a task run locks SQLite so often that clients are told to come back in two seconds.
            "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "100",
            "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "100",
            # Prefect cuts off what is behind the point: with less than a second its server would spin without a pause.
            "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
            "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_BATCH_SIZE": "100",
            # In its memory, which is the default, a server that was started again would free no place that a run holds,
            # and would have the runs that hold one ended after some minutes.
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        }

    @property
    def client_env(self) -> dict[str, str]:
        """What a process needs to use the stack's Prefect; with the key that its API asks for."""
        # Whoever may call the API may run commands as this user, through a deployment's job variables.
        return self.env | ({"PREFECT_API_AUTH_STRING": self.settings.api_auth} if self.settings.api_key else {})

    @property
    def worker_env(self) -> dict[str, str]:
        return self.client_env | {"TMPDIR": str(self.home.temporary)}

    @property
    def server_env(self) -> dict[str, str]:
        return self.env | {"PREFECT_SERVER_API_AUTH_STRING": self.settings.api_auth}

    @property
    def parts(self) -> tuple[Part, ...]:
        """In the order in which they start; they stop in the opposite one."""
        home, settings = self.home, self.settings
        store = settings.seaweed(home)
        prefect = [sys.executable, "-m", "prefect"]
        return (
            Part(
                "Prefect server",
                Daemon("prefect-server", home.run),
                [*prefect, "server", "start", "--host", HOST, "--port", str(settings.ui_port)],
                settings.ui_url,
                settings.ui_port,
                lambda: _answers(f"{settings.api_url}/health", 200),
                env=self.server_env,
            ),
            Part(
                "model hub",
                Daemon("hub", home.run),
                [
                    *(sys.executable, "-m", "deployments.local.hub"),
                    *("--directory", str(home.hub), "--port", str(settings.hub_port)),
                ],
                settings.hub_url,
                settings.hub_port,
                lambda: _answers(f"{settings.hub_url}/api/models/{REPO}", 200),
            ),
            Part(
                "object store",
                Daemon("store", home.run),
                store.command(),
                f"http://{HOST}:{settings.store_ports.s3}",
                settings.store_ports.s3,
                lambda: _answers(f"http://{HOST}:{settings.store_ports.s3}"),
                further_ports=astuple(settings.store_ports),
                grace_seconds=1,  # it takes a quarter of a minute to end by itself, and loses nothing when it is killed
            ),
            Part(
                "gateway",
                Daemon("gateway", home.run),
                command(home.gateway),
                settings.endpoint,
                settings.gateway_port,
                lambda: _answers(settings.endpoint),
            ),
            self._worker("Prefect worker", Daemon("worker", home.run), "local", "default", "--limit", "4"),
            self._worker("urgent worker", Daemon("urgent-worker", home.run), "urgent", "urgent"),
        )

    def _worker(self, title: str, daemon: Daemon, name: str, queue: str, *options: str) -> Part:
        return Part(
            title,
            daemon,
            [
                *(sys.executable, "-m", "prefect", "worker", "start"),
                *("--pool", POOL, "--work-queue", queue, "--type", "process", "--name", name),
                *options,
            ],
            f"work pool {POOL}, queue {queue}",
            port=None,
            answers=lambda: self._has_reported(name, daemon),
            queue=queue,
            env=self.worker_env,
        )

    def _has_reported(self, worker: str, daemon: Daemon) -> bool:
        """Whether it has told Prefect that it is there, since its process began: one that cannot takes no run."""
        if (process := daemon.find()) is None:
            return False
        try:
            answer = httpx.post(
                f"{self.settings.api_url}/work_pools/{POOL}/workers/filter",
                json={},
                auth=("skyferry", self.settings.api_key),
                timeout=2,
                trust_env=False,
            )
            reports = {found["name"]: found["last_heartbeat_time"] for found in answer.raise_for_status().json()}
        except httpx.HTTPError:
            return False
        report = reports.get(worker)
        return report is not None and datetime.fromisoformat(report).timestamp() >= process.create_time()

    @property
    def fleet(self) -> LocalFleet:
        return LocalFleet(directory=self.home.fleet, store=self.settings.seaweed(self.home).store)

    @property
    def record(self) -> ServiceRecord:
        found = self.settings.seaweed(self.home).store.get(ledger_key(SERVICE))
        return ServiceRecord() if found is None else ServiceRecord.model_validate_json(found.body)

    def up(self, say: Say) -> None:
        """Start what is not running yet, and put blocks and deployments in place."""
        # Taken out of this environment: of all the processes to come, only the gateway needs it.
        key = os.environ.pop(FALLBACK_KEY, "")
        servers = [part for part in self.parts if part.port is not None]
        workers = [part for part in self.parts if part.port is None]
        _refuse_taken_ports(servers)
        self._prepare(key)
        for part in servers:
            # All of them first: they get ready side by side.
            secret = {FALLBACK_KEY: key} if part.title == "gateway" else {}
            part.daemon.start(part.command, env={**part.env, **secret})
        for part in servers:
            say(f"starting the {part.title}")
            wait_until_healthy(part)
        say("making the bucket")
        self.settings.seaweed(self.home).wait_until_ready()
        say("registering blocks and deployments")
        self._register()
        for worker in workers:
            worker.daemon.start(worker.command, env=worker.env)
        for worker in workers:
            say(f"starting the {worker.title}")
            wait_until_healthy(worker)

    def down(self, say: Say) -> None:
        """End every process that carries this stack's mark: flow runs first, then the worker, and the server last."""
        say("ending flow runs")
        # While all else is there, so that they can undo what they are at, and tell Prefect; the worker would kill them.
        end([*marked(self.home.flow_runs)], UNDO_SECONDS)
        for part in reversed(self.parts):
            say(f"stopping the {part.title}")
            part.daemon.stop(part.grace_seconds)
        self.settings.seaweed(self.home).remove_sockets()
        # Replicas, flow runs, and whatever a crash has left without a pid file.
        end([*marked(self.home.path)], grace_seconds=5)
        if left := [*marked(self.home.path)]:
            raise Unavailable(f"still running after SIGKILL: {', '.join(str(process.pid) for process in left)}")
        for pid_file in self.home.path.rglob("*.pid"):
            pid_file.unlink()

    def is_up(self) -> bool:
        return all(part.is_healthy for part in self.parts)

    def is_running(self) -> bool:
        """Whether any of it is."""
        return any(part.daemon.find() is not None for part in self.parts)

    def _prepare(self, fallback_key: str) -> None:
        home = self.home
        for directory in (*(home.run, home.prefect, home.store, home.hub, home.gateway, home.fleet, home.temporary),):
            directory.mkdir(parents=True, exist_ok=True)
            directory.chmod(0o700)  # Prefect keeps the key to its secrets beside its database
        fill_hub(self.home.hub)
        self.settings.seaweed(self.home).prepare()
        host = os.environ.get(FALLBACK_HOST)
        if host is not None and not fallback_key:
            raise Refused(f"{FALLBACK_HOST} names {host}, and {FALLBACK_KEY} is not set; set both or neither")
        outside = OutsideProvider(host, FALLBACK_KEY) if host is not None else None
        write_configuration(
            GatewaySettings(
                run_directory=self.home.gateway,
                services={SERVICE: f"{HOST}:{self.settings.gateway_port}"},
                outside=outside,
            )
        )
        check_configuration(self.home.gateway, {**os.environ, FALLBACK_KEY: fallback_key})
        lines = [f"export {name}={shlex.quote(value)}\n" for name, value in self.client_env.items()]
        write_private(self.home.env_file, "".join(lines))

    def _register(self) -> None:
        """As a daemon, so that the next `up` or `down` finds what one that was killed has left."""
        daemon = Daemon("register", self.home.run)
        daemon.stop()
        process = daemon.start(
            [sys.executable, "-m", "deployments.local.register", str(self.home.path)],
            env=self.client_env,
            cwd=self.home.path,
        )
        code = process.wait()
        daemon.stop()
        if code != 0:
            raise Unavailable(f"Prefect did not take the blocks and deployments:\n{daemon.log_tail(60)}")


def prefect_file() -> Path:
    """The project's own in a checkout, the packaged copy in an installation."""
    package = Path(str(resources.files("deployments")))
    return next(path for path in (package / "prefect.yaml", package.parent / "prefect.yaml") if path.exists())


def _refuse_taken_ports(parts: Sequence[Part]) -> None:
    """Before anything starts: those that run keep their ports, and the others' have to be free."""
    for part in parts:
        if part.daemon.find() is not None:
            continue
        for port in (part.port, *part.further_ports):
            if port is not None and not is_free(HOST, port):
                raise Refused(
                    f"port {port} on {HOST}, which the {part.title} needs, is in use{by_whom(port)}; free it; "
                    f"where it is not the store's, `skyferry down` and `skyferry up` give the stack another"
                )


def wait_until_healthy(part: Part) -> None:
    """Unavailable, with its last words, where the process has died or does not get ready in time."""
    deadline = time.monotonic() + START_SECONDS
    while not part.is_healthy:
        if part.daemon.find() is None:
            raise Unavailable(f"the {part.title} died as it started; its last words:\n{part.daemon.log_tail()}")
        if time.monotonic() > deadline:
            raise Unavailable(
                f"the {part.title} was not ready within {START_SECONDS} s; its last words:\n{part.daemon.log_tail()}"
            )
        time.sleep(POLL_SECONDS)


def _answers(url: str, status: int | None = None) -> bool:
    try:
        answer = httpx.get(url, timeout=2, trust_env=False)
    except httpx.HTTPError:
        return False
    return status is None or answer.status_code == status
