"""One real stack for all tests here, with models so small that a release takes no time of its own."""

import subprocess
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from uuid import UUID

import httpx
import psutil
import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import State, StateType
from typer.testing import CliRunner, Result

from blocks.haproxy.gateway import HAProxyGateway
from blocks.local.processes import free_port, is_free, marked
from deployments.cli import app
from deployments.local.demo import Users
from deployments.local.settings import HOST, SERVICE, Home, StackSettings
from deployments.local.stack import Stack
from flows.policy.releases.ledger import ServiceRecord
from tests.gateway.running import wait_until
from tests.tiny_gguf import write_tiny_gguf

REPO = "maker/tiny"
PATIENCE_SECONDS = 100
"""For what takes seconds while nothing else keeps the machine busy."""


def skyferry(*words: str) -> Result:
    """What a person types, and what they see; in this process, as it takes a program seconds to begin."""
    return CliRunner().invoke(app, words)


def up(home: Home, *options: str) -> subprocess.Popen[str]:
    """In a process of its own, which what it starts outlives."""
    command = [f"{sysconfig.get_path('scripts')}/skyferry", "up", "--data", str(home.path), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@dataclass(frozen=True)
class RunningStack:
    stack: Stack
    client: SyncPrefectClient

    @property
    def home(self) -> Home:
        return self.stack.home

    @property
    def data(self) -> tuple[str, str]:
        return "--data", str(self.home.path)

    @property
    def gateway(self) -> HAProxyGateway:
        return HAProxyGateway(admin_socket=self.home.gateway / "admin.sock")

    @property
    def servers(self) -> set[tuple[str, str, str]]:
        return {(server.slot, server.address, server.state) for server in self.gateway.servers(SERVICE)}

    @property
    def record(self) -> ServiceRecord:
        return self.stack.record

    @property
    def users(self) -> Users:
        return Users.of(self.stack)

    @property
    def pids(self) -> dict[str, int]:
        found = {part.title: part.daemon.find() for part in self.stack.parts}
        return {title: process.pid for title, process in found.items() if process is not None}

    @property
    def replica_processes(self) -> list[psutil.Process]:
        return [process for process in marked(self.home.fleet) if "blocks.on_machine.llama_cpp" in process.cmdline()]

    def complete(self) -> httpx.Response:
        """One completion, as a user asks for it."""
        question = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 5}
        return httpx.post(f"{self.stack.settings.endpoint}/chat/completions", json=question, timeout=30)

    def start(self, flow: str, **plan: object) -> UUID:
        """Have the worker run a deployment of the service."""
        deployment = self.client.read_deployment_by_name(f"{flow}/{SERVICE}")
        parameters = {"plan": {"service": SERVICE, **plan}}
        return self.client.create_flow_run_from_deployment(deployment.id, parameters=parameters).id

    def state(self, run: UUID) -> State:
        state = self.client.read_flow_run(run).state
        assert state is not None
        return state

    def end_of(self, run: UUID) -> State:
        wait_until("the run has ended", lambda: self.state(run).is_final(), PATIENCE_SECONDS)
        return self.state(run)

    def tries_again(self, run: UUID) -> bool:
        """Whether one of its tasks waits for its next try."""
        of_it = FlowRunFilter(id=FlowRunFilterId(any_=[run]))
        return any(task.state_name == "AwaitingRetry" for task in self.client.read_task_runs(flow_run_filter=of_it))

    def process_of(self, run: UUID) -> psutil.Process:
        """The process that runs the flow, and none that it has started."""
        runs = {process.environ().get("PREFECT__FLOW_RUN_ID"): process for process in marked(self.home.run)}
        return runs[str(run)]

    def running(self, flow: str) -> list[UUID]:
        """Its runs that are at it now."""
        of_it = FlowFilter(name=FlowFilterName(any_=[flow]))
        at_it = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.RUNNING])))
        return [run.id for run in self.client.read_flow_runs(flow_filter=of_it, flow_run_filter=at_it)]

    def kill(self, *titles: str) -> None:
        """SIGKILL to those that are not dead already; returns once what cannot be without them is gone as well."""
        for part in self.stack.parts:
            if part.title in titles and (process := part.daemon.find()) is not None:
                process.kill()
                wait_until(f"the {part.title} is gone", lambda daemon=part.daemon: daemon.find() is None)

    def bring_back(self, title: str) -> None:
        """Start one part, where `up` would look after all the others as well."""
        part = next(part for part in self.stack.parts if part.title == title)
        part.daemon.start(part.command, env=part.env)

    def remains(self) -> list[object]:
        """What there should be nothing of once it is down."""
        settings = self.stack.settings
        ports = (settings.ui_port, settings.gateway_port, settings.hub_port, *asdict(settings.store_ports).values())
        sockets = [f"seaweedfs-*-{port}.sock" for port in ports]
        return [
            *(process.pid for process in psutil.process_iter(["cmdline"]) if self._names(process.info["cmdline"])),
            *marked(self.home.path),
            *(port for port in ports if not is_free(HOST, port)),
            *(path for pattern in sockets for path in Path("/tmp").glob(pattern)),  # noqa: S108 - SeaweedFS chose it
            *self.home.path.rglob("*.pid"),
        ]

    def _names(self, command: Sequence[str] | None) -> bool:
        return any(str(self.home.path) in word for word in command or ())


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """Started as a person starts it; its hub has two revisions of a tiny model."""
    home = Home(tmp_path_factory.mktemp("stack"))
    for seed, revision in enumerate(("r1", "r2")):
        directory = home.hub / REPO / revision
        directory.mkdir(parents=True)
        write_tiny_gguf(directory / "tiny.gguf", seed)
    ports = ("--ui-port", str(free_port()), "--gateway-port", str(free_port()))
    try:
        with up(home, *ports) as starting:
            said, _ = starting.communicate()
        assert starting.returncode == 0, said
        settings = StackSettings.read(home)
        assert settings is not None
        with SyncPrefectClient(settings.api_url, auth_string=settings.api_auth) as client:
            yield RunningStack(Stack(home, settings), client)
    finally:
        skyferry("down", "--data", str(home.path))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of these are about real servers."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.server)
            item.add_marker(pytest.mark.timeout(300))
