"""Read and write the ledger: one JSON document a service, written only over the version that was read."""

from functools import partial

import stamina
from prefect.runtime import task_run

from blocks.errors import Conflict
from blocks.ports import Records
from flows.policy.ledger import ServiceRecord, ledger_key
from flows.tasks import act


def record_of(records: Records, service: str) -> ServiceRecord:
    """What stands now; for code that looks so often that a task run each time would bury the others."""
    found = records.get(ledger_key(service))
    return ServiceRecord() if found is None else ServiceRecord.model_validate_json(found.body)


read_record = act(task_run_name="read-ledger-of-{service}")(record_of)


def _name_of_step() -> str:
    return f"ledger-{task_run.parameters['step'].func.__name__}"


@act(task_run_name=_name_of_step)
def amend(records: Records, service: str, step: partial[ServiceRecord]) -> ServiceRecord:
    """Take one step; where somebody else wrote meanwhile, take it from what stands now."""
    for attempt in stamina.retry_context(on=Conflict, attempts=8, wait_initial=0.05, wait_max=1):
        with attempt:
            found = records.get(ledger_key(service))
            before = ServiceRecord() if found is None else ServiceRecord.model_validate_json(found.body)
            after = step(before)
            if after != before:
                body = after.model_dump_json(indent=1).encode()
                records.put(ledger_key(service), body, replacing=found.etag if found else None)
            return after
    raise AssertionError  # stamina either returns from the block above or raises
