"""What becomes of a replica where a cluster fails, or who asks for it."""

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
import stamina
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL
from prefect.states import Crashed

from blocks.errors import Refused
from blocks.skypilot.fleet import SkyPilotFleet
from flows.mirror import mirror_model
from flows.provision import provision_fleet
from flows.roll_back import roll_back
from tests.flows.conftest import prefect_api  # noqa: F401 - the fixture
from tests.live.world import ON_GPUS, REPO, World, running_world  # noqa: F401 - the fixture world
from tests.servers import running_seaweedfs  # noqa: F401 - the fixture s3_store

pytestmark = [pytest.mark.live, pytest.mark.timeout(600)]

PROVISION = """
import pickle, sys
from flows.provision import provision_fleet
from flows.steps.service import serving
service, plan = pickle.load(sys.stdin.buffer)
with serving(service):
    provision_fleet(**plan)
"""


MIRROR: dict[str, Any] = {"service": "chat", "repo": REPO, "revision": "v1"}
FLEET: dict[str, Any] = MIRROR | {
    "context_tokens": 1024,
    "parallel_requests": 2,
    **ON_GPUS.model_dump(),
    "ready_timeout_seconds": 240,
}


def provision() -> None:
    mirror_model(**MIRROR)
    provision_fleet(**FLEET)


@pytest.fixture(autouse=True)
def nothing_is_left(world: World) -> Iterator[None]:
    """Before a service's first release, which is to have one replica; what a test adds goes again."""
    world.service.replicas = 1
    assert isinstance(world.service.fleet, SkyPilotFleet)
    world.service.fleet.autodown_minutes = None  # as in tests.live.running
    yield
    if world.record.in_progress is not None:
        roll_back(service="chat", reason="the test is over")
    assert world.jobs == {}


def test_a_full_cluster_is_passed_over(world: World) -> None:
    """Where alpha has no GPU left, the replica goes to beta, which costs more."""
    job = world.lab.fill("alpha")
    provision()
    world.lab.cancel("alpha", job)
    assert world.record.in_progress is not None
    assert world.cells == ["slurm/beta"]


def test_a_cluster_without_its_controller_is_passed_over(world: World) -> None:
    """It cannot say what it has, so nothing is rented there."""
    world.lab.stop_controller("alpha")
    try:
        provision()
    finally:
        world.lab.start_controller("alpha")
    assert world.record.in_progress is not None
    assert world.cells == ["slurm/beta"]


def test_where_no_cluster_has_room_nothing_is_left(world: World) -> None:
    """Each cluster's own reason is in the refusal; no job, no cluster, no open release."""
    jobs = {cluster: world.lab.fill(cluster) for cluster in ("alpha", "beta")}
    with pytest.raises(Refused, match=r"(?s)(alpha.*beta|beta.*alpha)"):
        provision()
    for cluster, job in jobs.items():
        world.lab.cancel(cluster, job)
    assert world.record.in_progress is None
    assert world.jobs == {}


def test_a_flow_killed_between_launch_and_answer_is_taken_up(world: World) -> None:
    """The next run finds the cluster that the killed one asked for; there is one, and no second."""
    fleet = world.service.fleet
    assert isinstance(fleet, SkyPilotFleet)
    mirror_model(**MIRROR)
    # The server of the tests, which only this process knows so far.
    env = {**os.environ, "PREFECT_API_URL": str(PREFECT_API_URL.value())}
    killed = subprocess.Popen([sys.executable, "-c", PROVISION], stdin=subprocess.PIPE, env=env)
    assert killed.stdin is not None
    pickle.dump((world.service, FLEET), killed.stdin)
    killed.stdin.close()
    for attempt in stamina.retry_context(on=AssertionError, attempts=None, timeout=120, wait_max=0.2):
        with attempt:
            assert len(fleet.every_replica()) == 1
    killed.kill()
    killed.wait()
    held = world.record.in_progress
    assert held is not None
    with get_client(sync_client=True) as client:  # as its worker would say
        client.set_flow_run_state(UUID(held.run_id), Crashed(), force=True)
    provision_fleet(**FLEET)
    assert len(world.jobs) == len(world.cells) == 1
    assert [*(fleet._home / "sent").iterdir()] == []  # the killed one's secrets too
