"""Scale up: the live release's replicas back in time for the morning."""

from collections.abc import Sequence
from datetime import datetime
from functools import partial

from prefect import flow, get_run_logger
from prefect.deployments import run_deployment
from prefect.runtime import deployment

from blocks.errors import Refused
from flows.plans import ScaleUpPlan
from flows.policy.releases.ledger import ask_for
from flows.policy.releases.scale import next_time, when_to_start
from flows.runtime.runs import own_run_id, see_that_it_is_not_late
from flows.steps.place import start_replicas
from flows.steps.service import open_service
from flows.tasks.fleet import Started
from flows.tasks.ledger import read_record, update_ledger


@flow(name="scale-up", flow_run_name="scale-up-{plan.service}")
def scale_up(plan: ScaleUpPlan) -> Sequence[Started]:
    """Start the live release's missing replicas; with `ready_by`, as late as earlier starts say is early enough."""
    service = open_service(plan.service)
    see_that_it_is_not_late("scale-up", plan.late_hours)
    record = read_record(service.store, service.name)
    if record.live is None:
        raise Refused(f"service {service.name!r} has no live release to scale up; release a model first")
    now = datetime.now(plan.zone)
    if plan.ready_by is not None and deployment.id is not None:
        start_at = when_to_start(next_time(plan.ready_by, now), record.start_seconds)
        if start_at > now:
            return _run_again_at(start_at, plan)
    # First: what cannot be had now, reconcile goes on trying to bring back.
    update_ledger(service.store, service.name, partial(ask_for, replicas=None))
    return start_replicas(service, record.live, plan.ready_timeout_seconds)


def _run_again_at(start_at: datetime, plan: ScaleUpPlan) -> Sequence[Started]:
    """Hand over to a run of the same deployment at that time, so that no process has to stay alive until then."""
    get_run_logger().info(
        "Starting at %s is early enough; a run is scheduled for then.", f"{start_at:%Y-%m-%d %H:%M:%S %Z}"
    )
    run_deployment(
        deployment.id,
        parameters={"plan": plan.model_copy(update={"ready_by": None}).model_dump(mode="json")},
        scheduled_time=start_at,
        timeout=0,
        idempotency_key=f"scale-up-after-{own_run_id()}",  # a retry finds the run that the first try scheduled
        as_subflow=False,
    )
    return ()
