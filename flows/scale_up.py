"""Scale up: the live release's replicas back in time for the morning."""

from collections.abc import Sequence
from datetime import datetime, time
from functools import partial
from typing import Annotated
from uuid import UUID
from zoneinfo import ZoneInfo, available_timezones

from prefect import get_run_logger
from prefect.runtime import deployment
from pydantic import AfterValidator, Field

from blocks.errors import Refused, Unavailable
from flows.policy.releases.ledger import ask_for
from flows.policy.releases.scale import next_time, when_to_start
from flows.runtime.parameters import LateHours, Parameters, ReadyTimeout, flow_with
from flows.runtime.runs import own_run_id, run_later, see_that_it_is_not_late
from flows.steps.place import start_replicas, tell_what_started
from flows.steps.service import open_service
from flows.tasks.fleet import Started
from flows.tasks.ledger import read_record, update_ledger


def _known_time_zone(name: str) -> str:
    if name not in available_timezones():
        raise ValueError(f"there is no time zone {name!r}; give one like Europe/Berlin")
    return name


class ScaleUpParameters(Parameters):
    """Bring the live release back to its replicas by day."""

    ready_by: time | None = Field(
        default=None,
        title="Ready by",
        description="The time of day by which they are ready; the start is timed from earlier starts. Empty: now.",
    )
    time_zone: Annotated[str, AfterValidator(_known_time_zone)] = Field(
        default="UTC", title="Time zone", description="The time zone of that time of day."
    )
    ready_timeout_seconds: ReadyTimeout = 1800
    late_hours: LateHours = 12

    @property
    def zone(self) -> ZoneInfo:
        return ZoneInfo(self.time_zone)


@flow_with(
    ScaleUpParameters,
    name="scale-up",
    run_name=lambda given: f"scale-up-{given.service}",
)
def scale_up(given: ScaleUpParameters) -> Sequence[Started]:
    """Start the live release's missing replicas; with `ready_by`, as late as earlier starts say is early enough."""
    service = open_service(given.service)
    see_that_it_is_not_late("scale-up", given.late_hours)
    record = read_record(service.store, service.name)
    if record.live is None:
        raise Refused(f"service {service.name!r} has no live release to scale up; release a model first")
    now = datetime.now(given.zone)
    if given.ready_by is not None and deployment.id is not None:
        start_at = when_to_start(next_time(given.ready_by, now), record.start_seconds)
        if start_at > now:
            return _run_again_at(start_at, given)
    # First: what cannot be had now, reconcile goes on trying to bring back.
    update_ledger(service.store, service.name, partial(ask_for, replicas=None))
    started = start_replicas(service, record.live, given.ready_timeout_seconds)
    tell_what_started(service, started)
    return started


def _run_again_at(start_at: datetime, given: ScaleUpParameters) -> Sequence[Started]:
    """Hand over to a run of the same deployment at that time, so that no process has to stay alive until then."""
    get_run_logger().info(
        "Starting at %s is early enough; a run is scheduled for then.", f"{start_at:%Y-%m-%d %H:%M:%S %Z}"
    )
    later = given.model_copy(update={"ready_by": None}).model_dump(mode="json")
    # A retry finds the run that the first try scheduled.
    if why_not := run_later(UUID(deployment.id), later, start_at, key=f"scale-up-after-{own_run_id()}"):
        raise Unavailable(f"the run that is to start the replicas at {start_at:%H:%M:%S %Z} was not planned: {why_not}")
    return ()
