"""Stop what a release has replaced, at once or when nobody wants it back any more."""

from datetime import UTC, datetime, timedelta
from functools import partial

from prefect import get_run_logger
from prefect.runtime import deployment

from blocks.service import Service
from flows.policy.releases.ledger import Release, begin_stopping, keep_warm, retire
from flows.runtime.runs import run_later
from flows.runtime.sleep import sleep
from flows.steps.drain import stop_release
from flows.tasks.ledger import read_record, update_ledger

DRAIN_TIMEOUT_SECONDS = 900.0
"""The longest answer that a replaced replica may still be giving."""


def retire_what_was_replaced(service: Service, keep_warm_seconds: float) -> None:
    """After a time in which a roll-back would find it ready; this run waits for that only where no other one can."""
    old, now = read_record(service.store, service.name).retiring, datetime.now(UTC)
    if old is not None:
        # An earlier try has said until when already.
        until = old.warm_until or now + timedelta(seconds=keep_warm_seconds)
        if until > now:
            if _hand_over(service, old, until):
                return
            sleep((until - now).total_seconds())
    stop_what_was_replaced(service)


def _hand_over(service: Service, old: Release, until: datetime) -> bool:
    """To a run that begins then, so that no process stays alive until then; False where that could not be planned."""
    update_ledger(service.store, service.name, partial(keep_warm, release=old.id, until=until))
    name, key = f"retire-release/{deployment.name or service.name}", f"retire-{old.id}-{old.version}"
    if why_not := run_later(name, {"service": service.name, "release": old.id}, until, key=key):
        get_run_logger().warning("%s stays warm until %s, and this run waits for that: %s", old.id, _at(until), why_not)
        return False
    get_run_logger().info("%s stays warm until %s; a run of %s stops it then.", old.id, _at(until), name)
    return True


def _at(moment: datetime) -> str:
    return f"{moment:%H:%M:%S %Z}"


def stop_what_was_replaced(service: Service) -> None:
    """From the ledger's word on nobody rolls back to it, and what somebody has rolled back to meanwhile stays."""
    old = read_record(service.store, service.name).retiring
    if old is not None:
        update_ledger(service.store, service.name, partial(begin_stopping, release=old.id))
    for replaced in read_record(service.store, service.name).replaced:
        if replaced.state == "stopping":
            stop_release(service, replaced.id, drain_timeout_seconds=DRAIN_TIMEOUT_SECONDS)
            update_ledger(service.store, service.name, partial(retire, release=replaced.id))
