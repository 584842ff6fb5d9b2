"""Move traffic, and watch what users see of it."""

import time
from collections.abc import Callable, Collection, Sequence

from prefect import get_run_logger

from blocks.errors import Unavailable
from blocks.ports.fleet import Fleet, Replica
from blocks.ports.gateway import Outcome, Pool, Reading, RequestLog, Router, Server, Slot, Split
from flows.policy.gating.decide import Ruling
from flows.policy.gating.outcomes import speaks
from flows.runtime.retries import retried_task
from flows.runtime.sleep import sleep

POLL_SECONDS = 1.0
LOOKS_AT_NEW = 10
"""The gateway asks each half second, and gives an answer two seconds."""
RATE_REQUESTS = 20
"""So many tell how many come in a second."""


@retried_task(task_run_name="read-split-of-{service}")
def read_split(router: Router, service: str) -> Split:
    return router.split(service)


@retried_task(task_run_name="give-{share_percent}-percent-of-{service}-to-{slot}")
def set_weight(router: Router, service: str, slot: Slot, share_percent: int) -> None:
    """The other slot gets the rest."""
    router.set_split(service, Split.giving(slot, share_percent * 100))


@retried_task(task_run_name="list-servers-of-{service}")
def list_servers(pool: Pool, service: str) -> tuple[Server, ...]:
    return pool.servers(service)


@retried_task(task_run_name="attach-{replica.name}-to-{slot}")
def attach(pool: Pool, service: str, slot: Slot, replica: Replica) -> None:
    pool.attach(service, slot, replica.address, is_tls=replica.is_tls)


@retried_task(task_run_name="give-the-gateway-the-key-of-{release}")
def hand_over_key(fleet: Fleet, pool: Pool, service: str, slot: Slot, release: str) -> None:
    """The key itself is no parameter, so that it stands in no task run."""
    pool.set_key(service, slot, fleet.key_of(release))


@retried_task(task_run_name="see-them-up-in-{slot}")
def see_them_up(pool: Pool, service: str, slot: Slot, addresses: Collection[str]) -> None:
    """Wait until the gateway has found them well, or has looked long enough: it sends nothing there before that."""
    for _ in range(LOOKS_AT_NEW):
        if not any(s.state == "down" for s in pool.servers(service) if s.slot == slot and s.address in addresses):
            return
        sleep(POLL_SECONDS)


@retried_task(task_run_name="drain-{address}-in-{slot}")
def drain(pool: Pool, service: str, slot: Slot, address: str) -> None:
    pool.drain(service, slot, address)


@retried_task(task_run_name="detach-{address}-from-{slot}")
def detach(pool: Pool, service: str, slot: Slot, address: str) -> None:
    pool.detach(service, slot, address)


@retried_task(task_run_name="hold-stage-of-{share_percent}-percent")
def hold_stage(
    log: RequestLog,
    service: str,
    share_percent: int,  # noqa: ARG001 - it names the task run
    rule: Callable[[Sequence[Outcome], bool, float], Ruling],
    already_seconds: float = 0.0,
) -> tuple[Ruling, float]:
    """Watch requests until `rule` says more than hold; it is told what ended since the last look, and how long it took.

    It is also told whether that is all that ended. A ruling that holds a cell back ends the watch too.
    """
    begun = time.monotonic() - already_seconds
    cursor = log.requests(service, after=None).cursor
    while True:
        try:
            reading = log.requests(service, after=cursor)
        except Unavailable as error:
            # Tried again as a whole, the stage would begin anew; so its deadline goes on, and no news is no pass.
            get_run_logger().warning("The request log cannot be read: %s", error)
            reading = Reading(outcomes=(), cursor=cursor, is_complete=True)
        cursor = reading.cursor
        if not reading.is_complete:
            get_run_logger().warning("Requests may have been logged and lost: the stage's evidence begins anew.")
        elapsed = time.monotonic() - begun
        ruling = rule(reading.outcomes, reading.is_complete, elapsed)
        if ruling.verdict != "hold" or ruling.bad_cells:
            return ruling, elapsed
        sleep(POLL_SECONDS)


@retried_task(task_run_name="measure-traffic-of-{service}")
def measure_rate(log: RequestLog, service: str, within_seconds: float) -> float | None:
    """Requests to a model that end in a second now, of both slots; None where the log cannot be read, or has a gap."""
    begun = time.monotonic()
    try:
        cursor = log.requests(service, after=None).cursor
        while True:
            reading = log.requests(service, after=cursor)
            elapsed = time.monotonic() - begun
            if not reading.is_complete:
                return None
            requests = sum(map(speaks, reading.outcomes))
            if requests >= RATE_REQUESTS or elapsed >= within_seconds:
                return requests / elapsed
            sleep(min(POLL_SECONDS, within_seconds - elapsed))
    except Unavailable as error:
        get_run_logger().warning("The request log cannot be read: %s", error)
        return None


@retried_task(task_run_name="see-a-way-back-before-{share_percent}-percent")
def wait_for_rollback_blockers(share_percent: int, blockers: Callable[[], str], within_seconds: float) -> str:
    """Wait until nothing blocks the way back to stable; what still does after that time, in words."""
    deadline = time.monotonic() + within_seconds
    has_told = False
    while (words := blockers()) and (left := deadline - time.monotonic()) > 0:
        if not has_told:
            get_run_logger().warning("%s %%: stable could not take its traffic back now: %s", share_percent, words)
            has_told = True
        sleep(min(POLL_SECONDS, left))
    return words
