"""Start and stop replicas."""

import time
from dataclasses import dataclass

from blocks.errors import Refused, Unavailable
from blocks.ports import Engine, Fleet, Pool, Replica, ReplicaOrder
from flows.tasks import act

POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Started:
    replica: Replica
    seconds: float
    """From launch to the first real completion; near zero for one that ran already."""


@act(task_run_name="start-{order.name}")
def start_replica(fleet: Fleet, engine: Engine, order: ReplicaOrder, timeout_seconds: float) -> Started:
    """Launch or adopt the replica and wait until it has completed a prompt; one that does not is taken down again."""
    begun = time.monotonic()
    replica = fleet.launch(order)
    while not engine.is_healthy(replica.address):
        if replica not in fleet.replicas(order.service):
            raise Unavailable(
                f"replica {order.name} died while it started; its last words:\n{fleet.log_tail(order.name)}"
            )
        if time.monotonic() - begun > timeout_seconds:
            last_words = fleet.log_tail(order.name)
            fleet.stop(order.name)
            raise Refused(
                f"replica {order.name} was not ready within {timeout_seconds:g} s and was taken down; "
                f"its last words:\n{last_words}"
            )
        time.sleep(POLL_SECONDS)
    engine.complete(replica.address)
    return Started(replica, time.monotonic() - begun)


@act(task_run_name="list-replicas-of-{service}")
def list_replicas(fleet: Fleet, service: str) -> tuple[Replica, ...]:
    return fleet.replicas(service)


@act(task_run_name="wait-until-idle-{replica.name}")
def wait_until_idle(pool: Pool, engine: Engine, replica: Replica, timeout_seconds: float) -> bool:
    """True once both the gateway and the engine say that nothing is in flight; unknown counts as busy."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        waiting = sum(s.in_flight for s in pool.servers(replica.service) if s.address == replica.address)
        if waiting == 0 and engine.in_flight(replica.address) == 0:
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)


@act(task_run_name="stop-{replica.name}")
def stop_replica(fleet: Fleet, replica: Replica) -> None:
    """Returns once the fleet no longer lists it."""
    fleet.stop(replica.name)
    if replica in fleet.replicas(replica.service):
        raise Unavailable(f"replica {replica.name} was stopped and is still there")
