"""Retire a release that another one has replaced, once nobody is to come back to it."""

from prefect import get_run_logger
from pydantic import Field

from flows.policy.releases.ledger import Release, why_not_to_retire
from flows.runtime.parameters import Parameters, flow_with
from flows.runtime.runs import planned_for
from flows.steps.retire import stop_what_was_replaced
from flows.steps.service import open_service
from flows.tasks.ledger import read_record


class RetireParameters(Parameters):
    """Stop the replicas of a release that was replaced."""

    release: str = Field(title="Release", description="Its id, as the ledger and the reports have it.", min_length=1)


@flow_with(
    RetireParameters,
    name="retire-release",
    run_name=lambda given: f"retire-{given.release}",
)
def retire_release(given: RetireParameters) -> Release:
    """Drain and stop the replaced release; release-model schedules this for the end of the time that it stays warm.

    Refused where it is live, as after a roll-back; where it has retired already, there is nothing to do.
    """
    service = open_service(given.service)
    if why_not := why_not_to_retire(read_record(service.store, service.name), given.release, planned_for()):
        get_run_logger().info("Nothing is to do: %s.", why_not)
    else:
        stop_what_was_replaced(service)
    return read_record(service.store, service.name).release(given.release)
