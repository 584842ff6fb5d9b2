"""Put the embedded stack's blocks and deployments into its Prefect server: `… -m deployments.local.register HOME`."""

import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from prefect.cli import app as prefect
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkQueueFilter,
    WorkQueueFilterName,
)
from prefect.client.schemas.objects import StateType
from prefect.exceptions import ObjectAlreadyExists
from prefect.states import Crashed
from prefect.workers.process import ProcessWorker

from blocks.haproxy.gateway import HAProxyGateway
from blocks.hubs.hugging_face import HuggingFaceHub
from blocks.local.fleet import LocalFleet
from blocks.local.processes import MARK, marked
from blocks.service import Service
from deployments.local.settings import SERVICE, Home, StackSettings
from deployments.local.stack import POOL, Stack, prefect_file

DOCUMENT = "local"
ACTING = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING, StateType.PAUSED]
"""A run that waits for a person has a process that waits; only one that is suspended has none."""


def register(home: Home, settings: StackSettings) -> None:
    """Blocks for this stack, written over those of an earlier `up`, and the work pool."""
    store = settings.seaweed(home).store
    hub = HuggingFaceHub(endpoint=settings.hub_url)
    gateway = HAProxyGateway(admin_socket=home.gateway / "admin.sock")
    fleet = LocalFleet(directory=home.fleet, store=store)
    for block in (store, hub, gateway, fleet):
        block.save(DOCUMENT, overwrite=True)
    Service(
        name=SERVICE,
        endpoint=settings.endpoint,
        hub=hub,
        store=store,
        fleet=fleet,
        gateway=gateway,
        replicas=2,
        night_replicas=1,
        # A processor core is no GPU: it takes seconds to read a page that no replica has read before, and longer while
        # something else keeps it busy. A candidate that is sound must not fail for that, so these limits are wide. And
        # three requests a second prove little in the minute that a person looks on: good news is taken on trust.
        error_percent=10,
        missed_harm_percent=50,
        warm_up_seconds=2,
        first_token_p95_ms=15_000,
        token_p95_ms=None,  # an answer here has a dozen tokens, and a few such tell no pace
        slower_than_stable=3,
        first_token_margin_ms=10_000,
        minimum_requests=12,
        probes_per_stage=0,  # they would take the core that users' answers need
    ).save(SERVICE, overwrite=True)
    template = _job_template(home)
    with get_client(sync_client=True) as client:
        try:
            client.create_work_pool(WorkPoolCreate(name=POOL, type="process", base_job_template=template))
        except ObjectAlreadyExists:
            # The directory, which it names, may have been moved.
            client.update_work_pool(POOL, WorkPoolUpdate(base_job_template=template))


def tell_of_the_dead(stack: Stack) -> None:
    """Of each run whose process has gone, and whose worker too: nobody else will ever say that it has ended.

    Until somebody does, Prefect keeps its place under the deployment's limit, so that reconcile never runs again, and
    what it acted for is in its hands.
    """
    queues = [part.queue for part in stack.parts if part.queue and part.daemon.find() is None]
    standing = set[str]()
    for process in marked(stack.home.flow_runs):
        with suppress(psutil.Error, OSError):  # it ends just now
            standing.add(process.environ().get("PREFECT__FLOW_RUN_ID", ""))
    with get_client(sync_client=True) as client:
        found = client.read_flow_runs(
            work_queue_filter=WorkQueueFilter(name=WorkQueueFilterName(any_=queues)),
            flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=ACTING))),
        )
        for run in found:
            if str(run.id) not in standing and run.state_name != "Suspended":
                client.set_flow_run_state(run.id, Crashed(message="its process is gone"), force=True)


def _job_template(home: Home) -> dict[str, Any]:
    """Runs that go on where their worker is killed."""
    template = ProcessWorker.get_default_base_job_template()
    variables = template["variables"]["properties"]
    # A run that outlives its worker would end at its next line of log, for want of a reader; Prefect has the lines.
    variables["stream_output"]["default"] = False
    # With the worker's own mark it would be taken for the worker, and nobody would start another one.
    variables["env"]["default"] = {MARK: str(home.flow_runs)}
    return template


def main() -> None:
    home = Home(Path(sys.argv[1]))
    settings = StackSettings.read(home)
    if settings is None:
        sys.exit(f"{home.path} holds no stack; run `skyferry up` first")
    register(home, settings)
    tell_of_the_dead(Stack(home, settings))
    # What `prefect deploy --all` does, in this process, which has taken its seconds to import all of it.
    sys.argv = ["prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(prefect_file())]
    prefect()


if __name__ == "__main__":
    main()
