"""Whatever fails, users keep what they had, and what was started for the candidate is stopped."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from prefect import get_run_logger

from blocks.errors import SkyferryError
from blocks.service import Service
from flows.drain import LAST_RESORT_SECONDS, stop_release
from flows.policy.ledger import ServiceRecord, back_out
from flows.tasks.gateway import give_share
from flows.tasks.ledger import amend, read_record
from flows.tasks.runs import own_run_id


class RolledBack(SkyferryError):
    """The candidate did not pass, or a person said no; users are back on what they had."""


@contextmanager
def users_keep_what_they_had(service: Service) -> Iterator[None]:
    """On any error, cancellation too, undo the release under way if it is this run's, and raise the error again."""
    try:
        yield
    except BaseException as error:
        release = read_record(service.store, service.name).under_way
        if release is not None and release.run_id == own_run_id():
            get_run_logger().error("Giving all traffic back to what stood before: %s", error)
            roll_back_to_stable(service, str(error) or type(error).__name__)
        raise


def roll_back_to_stable(service: Service, reason: str) -> ServiceRecord:
    """Give all traffic to the release that stays, record the decision, then stop the other's replicas."""
    before = read_record(service.store, service.name)
    after = back_out(before, reason)
    if after.live is not None:
        give_share(service.gateway, service.name, after.live.slot, 100)
    after = amend(service.store, service.name, partial(back_out, reason=reason))
    given_up = before.under_way or before.live
    if given_up is not None:
        stop_release(service, given_up.id, even_if_busy=True, drain_timeout_seconds=LAST_RESORT_SECONDS)
    return after
