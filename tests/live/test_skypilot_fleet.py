"""What only SkyPilot's fleet does, on the two real Slurm clusters of the lab."""

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest
import stamina

from blocks.errors import NoCapacity, Unavailable
from blocks.ports.fleet import EngineSettings, ReplicaOrder
from blocks.replica_tls import new_authority
from blocks.skypilot.fleet import SkyPilotFleet
from blocks.stores.s3 import S3Store
from tests.live.running import offer_in, publish_nothing, skypilot_fleet
from tests.live.slurm_lab import SlurmLab
from tests.servers import running_seaweedfs  # noqa: F401 - the fixture s3_store

pytestmark = [pytest.mark.live, pytest.mark.timeout(400)]

ORDER = ReplicaOrder(
    "chat-3c-0", "chat", "3c", "models/maker/none/1/", EngineSettings(context_tokens=512, parallel_requests=1)
)


@pytest.fixture(scope="module")
def fleet(slurm_lab: SlurmLab, s3_store: S3Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SkyPilotFleet]:
    publish_nothing(s3_store, ORDER.mirror_prefix)
    authority = new_authority(datetime.now(UTC))
    with skypilot_fleet(tmp_path_factory.mktemp("fleet"), s3_store, slurm_lab, authority) as fleet:
        yield fleet


def test_a_cluster_whose_controller_is_down_says_no(fleet: SkyPilotFleet, slurm_lab: SlurmLab) -> None:
    """It is one more cell without a machine, and nothing is left for the time when it is back."""
    slurm_lab.stop_controller("alpha")
    with pytest.raises(NoCapacity, match="slurm/alpha said no"):
        fleet.launch(ORDER, offer_in("alpha"))
    slurm_lab.start_controller("alpha")
    assert slurm_lab.queue("alpha") == {}
    assert fleet.every_replica() == ()


def test_what_a_cell_has_not_it_refuses_at_once(fleet: SkyPilotFleet) -> None:
    """More GPUs than any node has, and a cluster that nobody set up, are answers of that cell in words."""
    with pytest.raises(NoCapacity, match=r"slurm/beta said no: .*A100"):
        fleet.launch(ORDER, offer_in("beta", accelerators=16))
    with pytest.raises(NoCapacity, match="slurm/gamma said no: Cluster gamma not found"):
        fleet.launch(ORDER, replace(offer_in("beta"), cell="slurm/gamma"))


def test_secrets_are_the_replicas_own(fleet: SkyPilotFleet, slurm_lab: SlurmLab) -> None:
    """Whoever else is on the node sees command lines, which have no key in them, and may not read the file."""
    fleet.launch(ORDER, offer_in("beta"))
    key = fleet.key_of(ORDER.release)
    assert key is not None
    lines = [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
    assert any("SKYFERRY_RELEASE" in line for line in lines)
    assert not any(key in line or "PRIVATE KEY" in line for line in lines)
    (sent,) = slurm_lab.directory.glob("home/slurm-beta/.sky_clusters/*/skyferry/secrets.sh")
    assert key in sent.read_text()
    assert sent.stat().st_mode & 0o077 == 0


def test_a_replica_whose_controller_is_down_counts_as_there(fleet: SkyPilotFleet, slurm_lab: SlurmLab) -> None:
    """Nobody can be asked about it, so it is listed, and a stop that cannot be seen to work may be tried again."""
    replica = fleet.launch(ORDER, offer_in("beta"))
    slurm_lab.stop_controller("beta")
    assert fleet.replicas("chat") == (replica,)
    with pytest.raises(Unavailable, match=ORDER.name):
        fleet.stop(ORDER.name)
    slurm_lab.start_controller("beta")
    fleet.stop(ORDER.name)
    assert slurm_lab.queue("beta") == {}


def test_a_stop_ends_a_launch_that_is_under_way(fleet: SkyPilotFleet, slurm_lab: SlurmLab) -> None:
    """Whoever launches it is told that it may be tried again, and nothing is left."""
    order = replace(ORDER, name="chat-5e-0", release="5e")
    with ThreadPoolExecutor(1) as pool:
        launched = pool.submit(fleet.launch, order, offer_in("alpha"))
        for attempt in stamina.retry_context(on=AssertionError, attempts=None, timeout=60, wait_max=0.2):
            with attempt:
                assert slurm_lab.queue("alpha")
        fleet.stop(order.name)
        with pytest.raises(Unavailable):
            launched.result()
    assert slurm_lab.queue("alpha") == {}
    assert fleet.replicas("chat") == ()


def test_an_engine_that_ended_is_no_replica(fleet: SkyPilotFleet, slurm_lab: SlurmLab) -> None:
    """Its machine is still there and its last words can be read; the next launch replaces it."""
    order = replace(ORDER, name="embed-4d-0", service="embed", release="4d")
    ending = fleet.model_copy(update={"task": "{resources: {cpus: 1, memory: 1}, run: 'echo it is over; exit 1'}"})
    ending.launch(order, offer_in("alpha"))
    for attempt in stamina.retry_context(on=AssertionError, attempts=None, timeout=90, wait_max=1):
        with attempt:
            assert fleet.replicas("embed") == ()
    assert fleet.has_ended(order.name)
    assert fleet.log_tail(order.name) == "it is over"
    assert len(slurm_lab.queue("alpha")) == 1
    again = fleet.launch(order, offer_in("alpha"))
    assert fleet.replicas("embed") == (again,)
    assert len(slurm_lab.queue("alpha")) == 1
    fleet.stop(order.name)
    assert slurm_lab.queue("alpha") == {}


DEAD_SERVER = """
from pydantic import SecretStr
from blocks.errors import Unavailable
from blocks.skypilot.clusters import SkyPilot
try:
    SkyPilot(SecretStr("http://127.0.0.1:9")).clusters()
except Unavailable as error:
    print(error)
"""


def test_a_dead_api_server_is_unavailable(slurm_lab: SlurmLab) -> None:  # noqa: ARG001 - for SkyPilot's settings
    """Trying again may help, and the message says where to look; a server elsewhere is not started from here."""
    said = subprocess.run(
        [sys.executable, "-c", DEAD_SERVER], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    ).stdout
    assert "sky api info" in said
