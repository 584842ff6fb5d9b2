"""Whole releases over two Slurm clusters, under traffic, and what becomes of them where a cluster fails."""

import json
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import stamina
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL
from prefect.states import Crashed

from blocks.errors import Refused, SkyferryError
from blocks.processes import Daemon
from blocks.replica_tls import new_authority
from blocks.s3 import S3Store
from blocks.service import Service
from blocks.skypilot_fleet import SkyPilotFleet
from flows.mirror import mirror_model
from flows.plans import MirrorPlan, ProvisionPlan, ReleasePlan, RollBackPlan, ScaleDownPlan
from flows.policy.ledger import Release, ServiceRecord, ledger_key
from flows.policy.placement import PlacementRules
from flows.provision import provision_fleet
from flows.release import release_model
from flows.roll_back import roll_back
from flows.scale_down import scale_down
from flows.tasks.service import serving
from tests.flows.conftest import prefect_api  # noqa: F401 - the fixture
from tests.gateway.running import running_gateway
from tests.live.slurm_lab import SlurmLab
from tests.servers import local_hub, running_seaweedfs  # noqa: F401 - the fixture s3_store
from tests.tiny_gguf import tiny_gguf

pytestmark = [pytest.mark.live, pytest.mark.timeout(600)]

REPO = "maker/tiny"
MODELS = {REPO: {name: {"tiny.gguf": tiny_gguf(), "README.md": name.encode()} for name in ("v1", "v2", "v3")}}
ON_GPUS = PlacementRules(accelerators=("L4", "A100"))

PROVISION = """
import pickle, sys
from flows.provision import provision_fleet
from flows.tasks.service import serving
service, plan = pickle.load(sys.stdin.buffer)
with serving(service):
    provision_fleet(plan)
"""


@dataclass(frozen=True)
class World:
    service: Service
    lab: SlurmLab
    directory: Path

    @property
    def record(self) -> ServiceRecord:
        found = self.service.store.get(ledger_key("chat"))
        return ServiceRecord() if found is None else ServiceRecord.model_validate_json(found.body)

    @property
    def cells(self) -> list[str]:
        return sorted(replica.cell for replica in self.service.fleet.replicas("chat"))

    @property
    def jobs(self) -> dict[str, str]:
        """Where each of SkyPilot's jobs is, by its id, in both queues."""
        return {
            f"{cluster}-{job}": name
            for cluster in ("alpha", "beta")
            for job, (name, _) in self.lab.queue(cluster).items()
        }

    @contextmanager
    def traffic(self) -> Iterator[dict[str, Any]]:
        """Users while the block runs; afterwards it says what became of their requests."""
        daemon, report, noticed = Daemon("traffic", self.directory), self.directory / "traffic.json", {}
        options = {"url": self.service.endpoint, "rate": "8", "users": "400", "long-share": "0", "report": report}
        command = [sys.executable, "-m", "deployments.local.traffic", *(f"--{k}={v}" for k, v in options.items())]
        daemon.start(command, env={})
        try:
            yield noticed
        finally:
            daemon.stop(grace_seconds=40)
        noticed.update(json.loads(report.read_text()))


@pytest.fixture(scope="module")
def world(slurm_lab: SlurmLab, s3_store: S3Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A service whose replicas are SkyPilot's jobs on two Slurm clusters, behind a gateway that speaks TLS to them."""
    directory = tmp_path_factory.mktemp("release")
    authority = new_authority(datetime.now(UTC))
    task = (resources.files("deployments") / "engines" / "llama_cpp.yaml").read_text()
    fleet = SkyPilotFleet(
        directory=directory / "fleet",
        store=s3_store,
        # The lab's machines are small, and have the engine's packages already.
        task="resources: {cpus: 1, memory: 1}\n"
        + task.replace("SKYFERRY_PYTHON: python3", f"SKYFERRY_PYTHON: {slurm_lab.python}"),
        authority=authority,
        refresh_seconds=20,
        launch_timeout_seconds=240,
    )
    with (
        local_hub(directory / "hub", MODELS) as hub,
        running_gateway(directory / "gateway", authority=authority) as gateway,
    ):
        service = Service(
            name="chat",
            endpoint=gateway.url().removesuffix("/chat/completions"),
            hub=hub,
            store=s3_store,
            fleet=fleet,
            gateway=gateway.by_tls,
            replicas=2,
            # Clusters, engines and users share two cores, and the tests have no hour: good news is taken on trust.
            error_percent=20,
            missed_harm_percent=50,
            warm_up_seconds=1,
            first_token_p95_ms=10_000,
            token_p95_ms=10_000,
            slower_than_stable=5,
            first_token_margin_ms=10_000,
            minimum_requests=10,
        )
        with serving(service):
            yield World(service, slurm_lab, directory)
        for replica in fleet.every_replica():
            fleet.stop(replica.name)


def release(revision: str, **rest: Any) -> Release:
    return release_model(
        ReleasePlan.model_validate(
            {
                "service": "chat",
                "repo": REPO,
                "revision": revision,
                "context_tokens": 1024,
                "parallel_requests": 2,
                "placement": ON_GPUS.model_copy(update={"spread": True}),
                "stages_percent": (30, 100),
                "stage_seconds": 4,
                "stage_deadline_seconds": 120,
                "keep_warm_seconds": 0,
                "ready_timeout_seconds": 240,
                **rest,
            }
        )
    )


def provision(revision: str, **rules: Any) -> None:
    mirror_model(MirrorPlan(service="chat", repo=REPO, revision=revision))
    provision_fleet(provision_plan(revision, **rules))


def provision_plan(revision: str, **rules: Any) -> ProvisionPlan:
    return ProvisionPlan(
        service="chat",
        repo=REPO,
        revision=revision,
        context_tokens=1024,
        parallel_requests=2,
        placement=ON_GPUS.model_copy(update=rules),
        ready_timeout_seconds=240,
    )


def test_a_release_over_two_clusters_loses_no_request(world: World) -> None:
    """Mirror, plan, a replica on each cluster, stages under traffic, the old fleet drained and down."""
    first = release("v1")
    assert world.cells == ["slurm/alpha", "slurm/beta"]
    with world.traffic() as noticed:
        second = release("v2")
    assert [stage.share_percent for stage in second.stages] == [30, 100]
    assert noticed["sent"] > 0
    assert (noticed["lost"], noticed["refused"], noticed["streams_cut"]) == (0, 0, 0)
    assert world.cells == ["slurm/alpha", "slurm/beta"]
    assert {replica.release for replica in world.service.fleet.replicas("chat")} == {second.id}
    assert len(world.jobs) == 2
    assert world.record.release(first.id).state == "retired"


def test_an_allocation_taken_away_in_a_stage_hurts_nobody(world: World) -> None:
    """The gateway moves on; the fleet is mended before the next stage, or the release rolls back."""
    with world.traffic() as noticed, meanwhile(lambda: take_away(world)):
        try:
            ended = release("v3")
        except SkyferryError:
            ended = world.record.releases[-1]
    assert ended.state in {"live", "rolled back"}
    assert noticed["lost"] == 0
    standing = {replica.release for replica in world.service.fleet.replicas("chat")}
    live = world.record.live
    assert live is not None
    assert standing == {live.id}
    assert len(world.jobs) == 2


@contextmanager
def meanwhile(act: Callable[[], None]) -> Iterator[None]:
    failures: list[BaseException] = []

    def run() -> None:
        try:
            act()
        except BaseException as error:  # noqa: BLE001 - raised below, in the thread that waits for it
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    yield
    thread.join()
    assert not failures, failures


def take_away(world: World) -> None:
    """As soon as the candidate has users, its job on alpha ends."""
    candidate = with_users(world)
    (replica,) = (
        replica
        for replica in world.service.fleet.replicas("chat")
        if replica.release == candidate.id and replica.cell == "slurm/alpha"
    )
    (job,) = (job for job, (name, _) in world.lab.queue("alpha").items() if name.startswith(replica.name))
    world.lab.cancel("alpha", job)


@stamina.retry(on=AssertionError, attempts=None, timeout=200, wait_initial=0.2, wait_max=0.5)
def with_users(world: World) -> Release:
    candidate = world.record.under_way
    assert candidate is not None
    assert world.service.gateway.split("chat").share_of(candidate.slot) > 0
    return candidate


@pytest.fixture
def only_the_live_ones(world: World) -> Iterator[World]:
    """One replica of the live release; what a test adds goes again."""
    scale_down(ScaleDownPlan(service="chat", replicas=1))
    world.service.replicas = 1
    yield world
    if world.record.under_way is not None:
        roll_back(RollBackPlan(service="chat", reason="the test is over"))
    assert len(world.jobs) == 1


def test_a_full_cluster_is_passed_over(only_the_live_ones: World) -> None:
    """Where alpha has no GPU left, the replica goes to beta, which costs more."""
    world = only_the_live_ones
    job = world.lab.fill("alpha", world.cells.count("slurm/alpha"))
    provision("v1")
    world.lab.cancel("alpha", job)
    candidate = world.record.under_way
    assert candidate is not None
    (replica,) = (r for r in world.service.fleet.replicas("chat") if r.release == candidate.id)
    assert replica.cell == "slurm/beta"


def test_a_cluster_without_its_controller_is_passed_over(only_the_live_ones: World) -> None:
    """It cannot say what it has, so nothing is rented there."""
    world = only_the_live_ones
    world.lab.stop_controller("alpha")
    try:
        provision("v1")
    finally:
        world.lab.start_controller("alpha")
    candidate = world.record.under_way
    assert candidate is not None
    (replica,) = (r for r in world.service.fleet.replicas("chat") if r.release == candidate.id)
    assert replica.cell == "slurm/beta"


def test_where_no_cluster_has_room_nothing_is_left(only_the_live_ones: World) -> None:
    """Each cluster's own reason is in the refusal; no job, no cluster, no open release."""
    world = only_the_live_ones
    before = world.jobs
    jobs = {cluster: world.lab.fill(cluster, world.cells.count(f"slurm/{cluster}")) for cluster in ("alpha", "beta")}
    with pytest.raises(Refused, match=r"(?s)(alpha.*beta|beta.*alpha)"):
        provision("v1")
    for cluster, job in jobs.items():
        world.lab.cancel(cluster, job)
    assert world.record.under_way is None
    assert world.jobs == before


def test_a_flow_killed_between_launch_and_answer_is_taken_up(only_the_live_ones: World) -> None:
    """The next run finds the cluster that the killed one asked for; there is one, and no second."""
    world = only_the_live_ones
    fleet = world.service.fleet
    assert isinstance(fleet, SkyPilotFleet)
    plan = provision_plan("v1")
    mirror_model(MirrorPlan(service="chat", repo=REPO, revision="v1"))
    # The server of the tests, which only this process knows so far.
    env = {**os.environ, "PREFECT_API_URL": str(PREFECT_API_URL.value())}
    killed = subprocess.Popen([sys.executable, "-c", PROVISION], stdin=subprocess.PIPE, env=env)
    assert killed.stdin is not None
    pickle.dump((world.service, plan), killed.stdin)
    killed.stdin.close()
    for attempt in stamina.retry_context(on=AssertionError, attempts=None, timeout=120, wait_max=0.2):
        with attempt:
            assert len(fleet.every_replica()) == 2
    killed.kill()
    killed.wait()
    held = world.record.under_way
    assert held is not None
    with get_client(sync_client=True) as client:  # as its worker would say
        client.set_flow_run_state(UUID(held.run_id), Crashed(), force=True)
    provision_fleet(plan)
    assert len(world.jobs) == 2
