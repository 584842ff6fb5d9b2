"""Read and write the ledger: JSON documents, each written only over the version that was read."""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import stamina
from prefect.runtime import task_run
from pydantic import BaseModel, ValidationError

from blocks.errors import Conflict, Unavailable
from blocks.ports.store import ConditionalStore, VersionedObject
from flows.policy.releases.events import events_of_last_step
from flows.policy.releases.ledger import ServiceRecord, counted, ledger_key
from flows.runtime.events import emit
from flows.runtime.retries import retried_task

D = TypeVar("D", bound=BaseModel)


def document_of(records: ConditionalStore, key: str, kind: type[D]) -> D:
    """What stands under that key now, or an empty one."""
    return _parsed(records.get(key), key, kind)


def _parsed(found: VersionedObject | None, key: str, kind: type[D]) -> D:
    """Unavailable where it is no such document: to whoever needs it, that is as good as a store that is away."""
    if found is None:
        return kind()
    try:
        return kind.model_validate_json(found.body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "its text"
        raise Unavailable(
            f"{key} in the service's store is no {kind.__name__} ({where}: {first['msg']}, {error.error_count()} "
            f"mistakes in all); put an earlier version of this object back, or mend it"
        ) from error


def step_on(records: ConditionalStore, key: str, kind: type[D], step: Callable[[D], D]) -> D:
    """Take one step; where somebody else wrote meanwhile, take it from what stands now."""
    for attempt in stamina.retry_context(on=Conflict, attempts=8, wait_initial=0.05, wait_max=1):
        with attempt:
            found = records.get(key)
            before = _parsed(found, key, kind)
            after = step(before)
            if after != before:
                records.put(key, after.model_dump_json(indent=1).encode(), replacing=found.etag if found else None)
            return after
    raise AssertionError  # stamina either returns from the block above or raises


def record_of(records: ConditionalStore, service: str) -> ServiceRecord:
    """The ledger of one service; for code that looks so often that a task run each time would bury the others."""
    return document_of(records, ledger_key(service), ServiceRecord)


read_record = retried_task(task_run_name="read-ledger-of-{service}")(record_of)


def _name_of_step() -> str:
    return f"ledger-{task_run.parameters['step'].func.__name__}"


@retried_task(task_run_name=_name_of_step)
def update_ledger(records: ConditionalStore, service: str, step: partial[ServiceRecord]) -> ServiceRecord:
    """Take the step, and tell what it did to releases; also where it was taken before and its answer was lost."""
    record = step_on(records, ledger_key(service), ServiceRecord, lambda before: counted(before, step(before)))
    emit(*events_of_last_step(record))
    return record
