"""Whole releases over two Slurm clusters, under traffic."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import stamina

from blocks.errors import SkyferryError
from blocks.skypilot.fleet import SkyPilotFleet
from blocks.skypilot.names import cluster_name
from flows.policy.releases.ledger import Release
from flows.release import release_model
from tests.flows.conftest import prefect_api  # noqa: F401 - the fixture
from tests.live.world import ON_GPUS, REPO, World, running_world  # noqa: F401 - the fixture world
from tests.servers import running_seaweedfs  # noqa: F401 - the fixture s3_store

pytestmark = [pytest.mark.live, pytest.mark.timeout(600)]


def release(revision: str, **rest: Any) -> Release:
    wanted: dict[str, Any] = {
        "service": "chat",
        "repo": REPO,
        "revision": revision,
        "context_tokens": 1024,
        "parallel_requests": 2,
        **ON_GPUS.model_dump(),
        "spread": True,
        "stages_percent": (30, 100),
        "stage_seconds": 4,
        "stage_deadline_seconds": 120,
        "keep_warm_seconds": 0,
        "ready_timeout_seconds": 240,
        **rest,
    }
    return release_model(**wanted)


def test_a_release_over_two_clusters_loses_no_request(world: World) -> None:
    """Mirror, plan, a replica on each cluster, stages under traffic, the old fleet drained and down."""
    # One replica is as good a fleet to replace as two, and half as long on its way.
    world.service.replicas = 1
    first = release("v1", spread=False)
    world.service.replicas = 2
    with world.traffic() as noticed:
        second = release("v2")
    assert [stage.share_percent for stage in second.stages] == [30, 100]
    assert noticed["sent"] > 0
    assert (noticed["lost"], noticed["refused"], noticed["streams_cut"]) == (0, 0, 0)
    assert world.cells == ["slurm/alpha", "slurm/beta"]
    assert {replica.release for replica in world.fleet.every_replica()} == {second.id}
    assert len(world.jobs) == 2
    assert world.record.release(first.id).state == "retired"


def test_an_allocation_taken_away_in_a_stage_hurts_nobody(world: World) -> None:
    """The gateway moves on; the fleet is mended before the next stage, or the release rolls back."""
    assert isinstance(world.service.fleet, SkyPilotFleet)
    world.service.fleet.autodown_minutes = None  # as in tests.live.running
    with world.traffic() as noticed, meanwhile(lambda: take_away(world)):
        try:
            ended = release("v3")
        except SkyferryError:
            ended = world.record.releases[-1]
    assert ended.state in {"live", "rolled back"}
    assert noticed["lost"] == 0
    standing = {replica.release for replica in world.fleet.every_replica()}
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
        for replica in world.fleet.every_replica()
        if replica.release == candidate.id and replica.cell == "slurm/alpha"
    )
    called = cluster_name(world.installation, replica.name)
    (job,) = (job for job, (name, _) in world.lab.queue("alpha").items() if name.startswith(called))
    world.lab.cancel("alpha", job)


@stamina.retry(on=AssertionError, attempts=None, timeout=200, wait_initial=0.2, wait_max=0.5)
def with_users(world: World) -> Release:
    candidate = world.record.in_progress
    assert candidate is not None
    assert world.service.gateway.split("chat").weight_of(candidate.slot) > 0
    return candidate
