"""Roll back by hand: all traffic to the release that is known to be good."""

from pydantic import Field

from flows.policy.releases.ledger import ServiceRecord
from flows.runtime.parameters import Parameters, flow_with
from flows.steps.service import open_service
from flows.steps.undo import roll_back_to_stable
from flows.tasks.ledger import read_record


class RollBackParameters(Parameters):
    """Give all traffic back to the live release and stop the candidate."""

    reason: str = Field(title="Reason", description="Why; it is kept in the ledger.", min_length=1)


@flow_with(
    RollBackParameters,
    name="roll-back",
    run_name=lambda given: f"roll-back-{given.service}",
)
def roll_back(given: RollBackParameters) -> ServiceRecord:
    """End the release in progress, whoever runs it; or go back to the one before the live one while it is warm."""
    service = open_service(given.service)
    return roll_back_to_stable(service, read_record(service.store, service.name), given.reason)
