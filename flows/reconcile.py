"""Reconcile: what was asked for by day holds by day, also where a replica dies or hangs and nobody looks."""

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial

from prefect import get_run_logger

from blocks.errors import SkyferryError, Unavailable
from blocks.ports.fleet import Replica
from blocks.ports.gateway import Server
from blocks.service import Service
from flows.policy.releases.ledger import Release, ServiceRecord, end_shortage, note_shortage
from flows.policy.releases.reconcile import Standing, asked_for, how_it_stands, is_over, next_try_at, who_hangs
from flows.runtime.parameters import Parameters, ReadyTimeout, flow_with
from flows.runtime.runs import has_ended
from flows.runtime.sleep import sleep
from flows.steps.drain import LastToAnswer, stop_replicas
from flows.steps.place import clear_slot, start_replicas, tell_what_started
from flows.steps.service import open_service
from flows.tasks.engine import loads_of, who_is_silent
from flows.tasks.fleet import Started, list_replicas
from flows.tasks.gateway import list_servers, read_split
from flows.tasks.ledger import read_record, update_ledger

ASKED_AGAIN_SECONDS = 10.0
"""Between the two questions that a replica has to leave unanswered before it counts as hung."""
LAST_RESORT_SECONDS = 15.0
"""What a hung replica has in flight gets so long to end; most of it hangs as well."""


class ReconcileParameters(Parameters):
    """Bring back what was asked for and is missing."""

    ready_timeout_seconds: ReadyTimeout = 1800


@flow_with(
    ReconcileParameters,
    name="reconcile",
    run_name=lambda given: f"reconcile-{given.service}",
)
def reconcile(given: ReconcileParameters) -> Sequence[Started]:
    """Bring back the live release's replicas that were asked for and do not serve; returns those that were started.

    It asks for no number of its own: the night's stays the night's. A release in progress is its own run's to look
    after.
    """
    service = open_service(given.service)
    record = read_record(service.store, service.name)
    if record.live is None or not record.has_users or _is_looked_after(service, record):
        return ()
    wanted = asked_for(record, service.replicas)
    take_out_the_hung(service, record.live)
    clear_slot(service, record.live)
    standing = _standing(service, record.live, wanted)
    if not standing.missing:
        if record.shortage is not None and is_over(record.shortage, datetime.now(UTC)):
            update_ledger(service.store, service.name, partial(end_shortage))
        return ()
    if (due := next_try_at(record.shortage)) is not None and datetime.now(UTC) < due:
        get_run_logger().warning("%s; the next try is at %s.", standing.words, f"{due:%H:%M:%S %Z}")
        return ()
    return _bring_back(service, record.live, standing, given.ready_timeout_seconds)


def _is_looked_after(service: Service, record: ServiceRecord) -> bool:
    """Whether a run looks after a release in progress; Unavailable where it has traffic and no run looks at all."""
    candidate = record.in_progress
    if candidate is None:
        return False
    if not has_ended(candidate.run_id):
        get_run_logger().info("Release %s is in progress: its run looks after it.", candidate.id)
        return True
    if weight := read_split(service.gateway, service.name).weight_of(candidate.slot):
        raise Unavailable(
            f"release {candidate.id} has {weight / 100:g} % of the traffic of {service.name}, and its run "
            f"{candidate.run_id} has ended, so nobody watches it: release it again, which goes on there, or run "
            f"roll-back"
        )
    return False


def take_out_the_hung(service: Service, release: Release) -> None:
    """Stop those that say they are well, take requests, and twice in a row complete none, while another one does."""
    up = {server.address for server in _servers_of(service, release) if server.state == "up"}
    asked = [r for r in list_replicas(service.fleet, service.name) if r.release == release.id and r.address in up]
    silent = who_is_silent(service.engine_client, asked, release.engine.kind)
    if not silent or len(silent) == len(asked):
        return
    before = loads_of(service.engine_client, silent)
    sleep(ASKED_AGAIN_SECONDS)
    silent = who_is_silent(service.engine_client, silent, release.engine.kind)
    hung = who_hangs(silent, before, loads_of(service.engine_client, silent))
    if not hung:
        return
    names = ", ".join(replica.name for replica in hung)
    get_run_logger().warning("%s twice gave no completion though others do, and is replaced.", names)
    try:
        stop_replicas(service, hung, drain_timeout_seconds=LAST_RESORT_SECONDS, even_if_busy=True)
    except LastToAnswer as last:
        get_run_logger().warning("%s", last)


def _standing(service: Service, release: Release, wanted: int) -> Standing:
    replicas: Sequence[Replica] = list_replicas(service.fleet, service.name)
    return how_it_stands(release, wanted, replicas, _servers_of(service, release))


def _servers_of(service: Service, release: Release) -> list[Server]:
    return [server for server in list_servers(service.gateway, service.name) if server.slot == release.slot]


def _bring_back(
    service: Service, release: Release, standing: Standing, ready_timeout_seconds: float
) -> Sequence[Started]:
    """Where not all can be had, those that can serve, and the ledger says how often the others were tried, and why."""
    get_run_logger().warning("%s; the others are brought back.", standing.words)
    had = {replica.name for replica in standing.serving}
    started: Sequence[Started] = ()
    error: SkyferryError | None = None
    try:
        started = start_replicas(service, release, ready_timeout_seconds, wanted=standing.wanted)
    except SkyferryError as caught:
        error = caught
    back = tuple(one for one in started if not one.was_running)
    tell_what_started(service, back)
    record = read_record(service.store, service.name)
    if record.live is None or record.live.id != release.id or asked_for(record, service.replicas) != standing.wanted:
        get_run_logger().info("Something else is asked for by now, so the next run looks anew (%s).", error or "ready")
        return back
    now = _standing(service, release, standing.wanted)
    if now.missing:
        reason = str(error or "not all of them became ready")
        noted = partial(note_shortage, reason=reason, now=datetime.now(UTC))
        shortage = update_ledger(service.store, service.name, noted).shortage
        due = next_try_at(shortage)
        raise Unavailable(
            f"{now.words}{f', since {shortage.since:%Y-%m-%d %H:%M %Z}' if shortage else ''}: {reason}; the next run "
            f"of reconcile{f' after {due:%H:%M:%S %Z}' if due else ''} tries again"
        ) from error
    noted = partial(note_shortage, reason="all that were asked for serve again", now=datetime.now(UTC))
    update_ledger(service.store, service.name, noted)
    names = ", ".join(sorted({replica.name for replica in now.serving} - had))
    get_run_logger().warning("%s; back: %s.", now.words, names)
    if error is not None:
        raise error  # it is none of what is missing, as where what runs costs more than the cap
    return back
