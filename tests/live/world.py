"""A service whose replicas are SkyPilot's jobs on two Slurm clusters."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from blocks.local.processes import Daemon
from blocks.replica_tls import new_authority
from blocks.service import Service
from blocks.skypilot.fleet import SkyPilotFleet
from blocks.stores.s3 import S3Store
from flows.policy.placement.plan import PlacementRules
from flows.policy.releases.installation import INSTALLATION_KEY, Installation
from flows.policy.releases.ledger import ServiceRecord, ledger_key
from flows.steps.service import serving
from tests.flows.conftest import prefect_api  # noqa: F401 - the fixture
from tests.gateway.running import running_gateway
from tests.live.running import stop_all
from tests.live.slurm_lab import REPLICA_PORTS, SlurmLab
from tests.servers import local_hub, running_seaweedfs  # noqa: F401 - the fixture s3_store
from tests.tiny_gguf import tiny_gguf

REPO = "maker/tiny"
MODELS = {REPO: {name: {"tiny.gguf": tiny_gguf(), "README.md": name.encode()} for name in ("v1", "v2", "v3")}}
ON_GPUS = PlacementRules(accelerators=("L4", "A100"))


@dataclass(frozen=True)
class World:
    service: Service
    lab: SlurmLab
    directory: Path

    @property
    def fleet(self) -> SkyPilotFleet:
        assert isinstance(self.service.fleet, SkyPilotFleet)
        return self.service.fleet

    @property
    def record(self) -> ServiceRecord:
        found = self.service.store.get(ledger_key("chat"))
        return ServiceRecord() if found is None else ServiceRecord.model_validate_json(found.body)

    @property
    def installation(self) -> str:
        """The id that its replicas' clusters are called by."""
        found = self.service.store.get(INSTALLATION_KEY)
        assert found is not None
        return Installation.model_validate_json(found.body).id

    @property
    def cells(self) -> list[str]:
        return sorted(replica.cell for replica in self.fleet.every_replica())

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


@pytest.fixture(name="world", scope="module")
def running_world(slurm_lab: SlurmLab, s3_store: S3Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A service whose replicas are SkyPilot's jobs on two Slurm clusters, behind a gateway that speaks TLS to them."""
    directory = tmp_path_factory.mktemp("world")
    # A bucket of its own, and so a ledger.
    store = S3Store.model_validate({**s3_store.model_dump(), "bucket": f"world-{uuid4()}"})
    store.create_bucket()
    authority = new_authority(datetime.now(UTC))
    task = (resources.files("deployments") / "engines" / "llama_cpp.yaml").read_text()
    fleet = SkyPilotFleet(
        directory=directory / "fleet",
        store=store,
        # The lab's machines are small, and have the engine's packages already.
        task="resources: {cpus: 1, memory: 1}\n"
        + task.replace("SKYFERRY_PYTHON: python3", f"SKYFERRY_PYTHON: {slurm_lab.python}"),
        authority=authority,
        slurm_first_port=REPLICA_PORTS.start,
        slurm_last_port=REPLICA_PORTS.stop - 1,
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
            store=store,
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
            token_margin_ms=10_000,
            minimum_requests=10,
        )
        with serving(service):
            yield World(service, slurm_lab, directory)
        stop_all()
