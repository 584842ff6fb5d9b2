"""Roll back by hand: all traffic to the release that is known to be good."""

from prefect import flow

from flows.plans import RollBackPlan
from flows.policy.releases.ledger import ServiceRecord
from flows.steps.service import open_service
from flows.steps.undo import roll_back_to_stable
from flows.tasks.ledger import read_record


@flow(name="roll-back", flow_run_name="roll-back-{plan.service}")
def roll_back(plan: RollBackPlan) -> ServiceRecord:
    """End the release in progress, whoever runs it; or go back to the one before the live one while it is warm."""
    service = open_service(plan.service)
    return roll_back_to_stable(service, read_record(service.store, service.name), plan.reason)
