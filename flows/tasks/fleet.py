"""Start and stop replicas."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count

from blocks.errors import EngineEnded, NoCapacity, NotReady, Refused, SkyferryError, Unavailable, Unsound
from blocks.http.addresses import in_one_spelling
from blocks.ports.engine import Engine
from blocks.ports.fleet import EngineBuild, EngineChoice, Fleet, Replica, ReplicaOrder, ResolvedEngine
from blocks.ports.gateway import Pool
from blocks.ports.market import Offer
from blocks.ports.store import ConditionalStore, Store
from blocks.stores.kept import keep
from flows.runtime.retries import retried_task
from flows.runtime.sleep import sleep
from flows.tasks.ledger import record_of

POLL_SECONDS = 0.5
LOOKS_A_QUESTION = 10
"""Each so many looks at a replica that starts, the ledger is asked whether it is still wanted."""


@dataclass(frozen=True)
class Started:
    replica: Replica
    seconds: float
    """From launch to the first real answer."""
    was_running: bool
    """Adopted, so that the seconds say nothing about how long a start takes."""


@retried_task(task_run_name="start-{order.name}-in-{offer.cell}")
def start_replica(
    fleet: Fleet, engine: Engine, records: ConditionalStore, order: ReplicaOrder, offer: Offer, timeout_seconds: float
) -> Started:
    """Launch or adopt the replica and wait until it has answered as its kind does; one that does not is taken down.

    Raises NoCapacity where this cell will not give the machine, or no address for it; NotReady where it gave one on
    which nothing answers in time, or nothing of use; EngineEnded where the engine ended by itself; Refused, with
    nothing left behind, where the release was given up before or meanwhile.
    """
    was_running = _standing(fleet, order) is not None
    _check_asked_for(fleet, records, order, was_running=was_running)
    try:
        started = _launch_and_wait(fleet, engine, records, order, offer, timeout_seconds, was_running=was_running)
    except Refused:
        # Whoever gave it up has stopped what stood by then, and may have spared it for those whom it answers.
        if not was_running:
            fleet.stop(order.name)
        raise
    return replace(started, was_running=was_running)


def _launch_and_wait(
    fleet: Fleet,
    engine: Engine,
    records: ConditionalStore,
    order: ReplicaOrder,
    offer: Offer,
    timeout_seconds: float,
    *,
    was_running: bool,
) -> Started:
    begun = time.monotonic()
    replica = fleet.launch(order, offer)
    for look in count():
        if look % LOOKS_A_QUESTION == 0:
            _check_asked_for(fleet, records, order, was_running=was_running)
        if replica.address and engine.is_healthy(replica):
            break
        standing = _standing(fleet, order)
        if standing is None:
            _check_asked_for(fleet, records, order, was_running=was_running)
            raise _why_gone(fleet, order, offer)
        if time.monotonic() - begun > timeout_seconds:
            raise _why_late(fleet, order, offer, standing, timeout_seconds)
        replica = standing  # some clouds give the address later
        sleep(POLL_SECONDS)
    try:
        engine.complete(replica, order.engine.kind)
    except Unsound as error:
        fleet.stop(order.name)
        # Another machine may mend it, as where this one's memory is broken; a second one says that it is the model.
        raise NotReady(offer.cell, f"{error}; it was taken down") from error
    _check_asked_for(fleet, records, order, was_running=was_running)
    return Started(_as_the_gateway_spells_it(replica), time.monotonic() - begun, was_running=False)


def _why_gone(fleet: Fleet, order: ReplicaOrder, offer: Offer) -> SkyferryError:
    """A machine that was lost is asked for anew; an engine that ended by itself would do so again."""
    has_ended, last_words = fleet.has_ended(order.name), fleet.log_tail(order.name)
    if not has_ended:
        return Unavailable(f"replica {order.name} was lost while it started; its last words:\n{last_words}")
    fleet.stop(order.name)
    return EngineEnded(
        offer.cell,
        f"the engine of {order.name} ended by itself as it started and was taken down; its last words:\n{last_words}",
    )


def _why_late(fleet: Fleet, order: ReplicaOrder, offer: Offer, standing: Replica, timeout_seconds: float) -> NoCapacity:
    last_words = fleet.log_tail(order.name)
    fleet.stop(order.name)
    if not standing.address:
        return NoCapacity(
            offer.cell,
            f"replica {order.name} ran there for {timeout_seconds:g} s and was never given an address at which the "
            f"gateway could reach it, so it was taken down: see to the load balancer, or to the ports, of that cell",
        )
    return NotReady(
        offer.cell,
        f"replica {order.name} was not ready within {timeout_seconds:g} s and was taken down; "
        f"its last words:\n{last_words}",
    )


def _standing(fleet: Fleet, order: ReplicaOrder) -> Replica | None:
    return next((replica for replica in fleet.replicas(order.service) if replica.name == order.name), None)


def _check_asked_for(fleet: Fleet, records: ConditionalStore, order: ReplicaOrder, *, was_running: bool) -> None:
    """A start may take long, and whoever gives the release up stops only the replicas that there are by then.

    Whoever asks for fewer replicas of a live one, as the night does, likewise; one that
    `was_running` is no further one, and may be the only one that answers.
    """
    record = record_of(records, order.service)
    state = record.release(order.release).state
    if state not in {"in progress", "live"}:
        raise Refused(f"release {order.release} is {state}, so {order.name} is not started")
    if state == "live" and record.wanted is not None and not was_running:
        others = [r for r in fleet.replicas(order.service) if r.release == order.release and r.name != order.name]
        if len(others) >= record.wanted:
            raise Refused(
                f"{record.wanted} replicas of {order.release} are asked for by now, and {len(others)} run, so "
                f"{order.name} is not started; run scale-up for as many as by day"
            )


@retried_task(task_run_name="resolve-the-engine")
def resolve_engine(fleet: Fleet, choice: EngineChoice, earlier: Sequence[EngineBuild]) -> ResolvedEngine:
    return fleet.resolve_engine(choice, earlier)


@retried_task(task_run_name="keep-the-engine")
def keep_engine(store: Store, texts: Mapping[str, bytes]) -> None:
    """What a release records by its hash only is there to be read for as long as the release is."""
    keep(store, texts)


@retried_task(task_run_name="list-replicas-of-{service}")
def list_replicas(fleet: Fleet, service: str) -> tuple[Replica, ...]:
    return tuple(map(_as_the_gateway_spells_it, fleet.replicas(service)))


def _as_the_gateway_spells_it(replica: Replica) -> Replica:
    """Flows look for replicas among the gateway's servers; a fleet may spell their addresses in another way."""
    return replace(replica, address=in_one_spelling(replica.address))


@retried_task(task_run_name="wait-until-idle-{replica.name}")
def wait_until_idle(pool: Pool, engine: Engine, replica: Replica, timeout_seconds: float) -> bool:
    """True once both the gateway and the engine say that nothing is in flight; unknown counts as busy.

    Nobody sends a request to a replica that has no address yet.
    """
    if not replica.address:
        return True
    deadline = time.monotonic() + timeout_seconds
    while not (_gateway_is_idle(pool, replica) and _engine_is_idle(engine, replica)):
        if time.monotonic() > deadline:
            return False
        sleep(POLL_SECONDS)
    return True


def _gateway_is_idle(pool: Pool, replica: Replica) -> bool:
    try:
        return not any(s.in_flight for s in pool.servers(replica.service) if s.address == replica.address)
    except Unavailable:
        return False


def _engine_is_idle(engine: Engine, replica: Replica) -> bool:
    load = engine.load(replica)
    return load is not None and not load.in_flight


@retried_task(task_run_name="stop-{replica.name}")
def stop_replica(fleet: Fleet, replica: Replica) -> None:
    """Returns once the fleet no longer lists it."""
    fleet.stop(replica.name)
    if any(standing.name == replica.name for standing in fleet.replicas(replica.service)):
        raise Unavailable(f"replica {replica.name} was stopped and is still there")
