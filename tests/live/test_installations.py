"""Two installations on one real SkyPilot, each with a service `chat` and the same model."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from uuid import uuid4

import pytest

from blocks.ports.fleet import EngineSettings, Replica
from blocks.replica_tls import new_authority
from blocks.service import Service
from blocks.skypilot.clusters import SkyPilot
from blocks.skypilot.fleet import SkyPilotFleet
from blocks.stores.s3 import S3Store
from flows.policy.placement.plan import PlacementRules
from flows.policy.releases.ledger import ServiceRecord, go_live, ledger_key, open_release, replica_orders
from flows.reap import reap_orphans
from flows.scale_down import scale_down
from flows.steps.service import open_service, serving
from flows.tasks.ledger import step_on
from tests.fakes.gateway import FakeGateway
from tests.flows.conftest import prefect_api  # noqa: F401 - the fixture
from tests.live.running import offer_in, publish_nothing, skypilot_fleet
from tests.live.slurm_lab import SlurmLab
from tests.servers import running_seaweedfs  # noqa: F401 - the fixture s3_store

pytestmark = [pytest.mark.live, pytest.mark.timeout(600)]

REPO, COMMIT = "maker/none", "0" * 40


@dataclass(frozen=True)
class Installed:
    """A live release with one replica, as one installation has it."""

    service: Service
    replica: Replica

    @property
    def replicas(self) -> tuple[Replica, ...]:
        with serving(self.service):
            return open_service("chat").fleet.replicas("chat")


@pytest.fixture(name="install", scope="module")
def installer(
    slurm_lab: SlurmLab,
    s3_store: S3Store,
    tmp_path_factory: pytest.TempPathFactory,
    prefect_api: None,  # noqa: ARG001, F811 - a fixture that is only to run
) -> Iterator[Callable[[str], Installed]]:
    directory = tmp_path_factory.mktemp("fleets")
    authority = new_authority(datetime.now(UTC))
    with skypilot_fleet(directory, s3_store, slurm_lab, authority) as fleet:
        yield partial(install, fleet, s3_store, directory)


def install(fleet: SkyPilotFleet, template: S3Store, directory: Path, name: str) -> Installed:
    """With a store, and so a ledger and an id, of its own."""
    store = template.model_copy(update={"bucket": f"{name}-{uuid4()}"})
    store.create_bucket()
    own = fleet.model_copy(update={"store": store, "directory": directory / name})
    service = Service.model_construct(
        name="chat",
        endpoint="",
        store=store,
        further_stores=[],
        fleet=own,
        gateway=FakeGateway("chat"),
        night_replicas=1,
    )
    record = step_on(store, ledger_key("chat"), ServiceRecord, _as_live)
    assert record.live is not None
    publish_nothing(store, record.live.mirror_prefix)
    with serving(service):
        (order,) = replica_orders(record.live, 1)
        replica = open_service("chat").fleet.launch(order, offer_in("beta"))
    service.gateway.attach("chat", "blue", replica.address, is_tls=True)
    return Installed(service, replica)


def _as_live(record: ServiceRecord) -> ServiceRecord:
    now, engine = datetime.now(UTC), EngineSettings(context_tokens=512, parallel_requests=1)
    record = open_release(
        record, "chat", REPO, COMMIT, engine, placement=PlacementRules(), run_id="1", ended_run_id=None, now=now
    )
    return go_live(record, "1")


def test_one_that_is_scaled_to_zero_and_reaped_takes_nothing_from_the_other(
    install: Callable[[str], Installed], slurm_lab: SlurmLab
) -> None:
    """Same service, same release, same names of replicas: production's still runs, answers, and is listed."""
    production, staging = install("production"), install("staging")
    assert production.replica.name == staging.replica.name
    assert production.replica.address != staging.replica.address
    assert production.replicas == (production.replica,)
    assert len(slurm_lab.queue("beta")) == 2
    with serving(staging.service):
        scale_down(service="chat", replicas=0, to_zero=True, even_if_busy=True, drain_timeout_seconds=1)
        assert reap_orphans(service="chat", dry_run=False, grace_seconds=0).replicas == ()
    assert staging.replicas == ()
    assert production.replicas == (production.replica,)
    assert production.service.engine_client.is_healthy(production.replica)
    (job,) = slurm_lab.queue("beta").values()
    (left,) = SkyPilot().clusters()
    assert job[0].startswith(left.name)
    assert left.metadata["SKYFERRY_REPLICA"] == production.replica.name
