"""Put replicas under traffic, and take them out again without a request lost."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from prefect import get_run_logger, unmapped

from blocks.errors import SkyferryError, Unavailable
from blocks.ports.fleet import Replica
from blocks.ports.gateway import Server, Slot
from blocks.service import Service
from flows.policy.releases.rollback import alone_answering
from flows.tasks.engine import who_is_healthy
from flows.tasks.fleet import list_replicas, stop_replica, wait_until_idle
from flows.tasks.gateway import attach, detach, drain, hand_over_key, list_servers


def put_in_slot(service: Service, slot: Slot, release: str, replicas: Sequence[Replica]) -> None:
    """Let the gateway send that slot's requests to these replicas of a release, with the key that they ask for."""
    hand_over_key(service.fleet, service.gateway, service.name, slot, release)
    for replica in replicas:
        attach(service.gateway, service.name, slot, replica)


class LastToAnswer(Unavailable):
    """Who was to be stopped answers users, and nobody else does."""


def see_that_others_answer(service: Service, going: Sequence[Replica], servers: Sequence[Server]) -> None:
    """LastToAnswer where users are answered by those that are to go, and by nobody who stays."""
    addresses = {replica.address for replica in going}
    if addresses.isdisjoint(server.address for server in servers):
        return  # no request reaches them
    alone = alone_answering(servers, healthy_replicas(service), addresses)
    if last := sorted(replica.name for replica in going if replica.address in alone):
        raise LastToAnswer(f"nobody but {', '.join(last)} answers the users of {service.name}, so they go on")


def healthy_replicas(service: Service) -> frozenset[str]:
    """The addresses of the service's replicas whose engines say that they are well."""
    return who_is_healthy(service.engine_client, [r for r in list_replicas(service.fleet, service.name) if r.address])


def stop_replicas(
    service: Service,
    replicas: Sequence[Replica],
    *,
    drain_timeout_seconds: float,
    even_if_busy: bool = False,
    even_if_last: bool = False,
    within_seconds: float | None = None,
) -> tuple[Replica, ...]:
    """Drain, wait until nothing is in flight, stop, verify gone; returns those that stayed because they were busy.

    One that is still busy after the timeout, or cannot be asked, takes traffic again, unless `even_if_busy`.
    So does one that somebody puts back meanwhile. LastToAnswer, with all of them in traffic, where nobody else answers
    users, before or by the time that they are idle, unless `even_if_last`. Unavailable where one is not stopped
    `within_seconds`, for whoever has no more time to look on, or to look twice; what stops it goes on.
    """
    begun = time.monotonic()
    listed = list_servers(service.gateway, service.name)
    if not even_if_last:
        see_that_others_answer(service, replicas, listed)
    servers = {server.address: server for server in listed}
    placed = [servers[replica.address] for replica in replicas if replica.address in servers]
    for server in placed:
        drain(service.gateway, service.name, server.slot, server.address)
    idle = wait_until_idle.map(
        unmapped(service.gateway), unmapped(service.engine_client), list(replicas), unmapped(drain_timeout_seconds)
    ).result()
    busy = {r.name for r, is_idle in zip(replicas, idle, strict=True) if not is_idle}
    if placed and within_seconds is None:
        busy |= _look_again(service, replicas, servers, even_if_last=even_if_last)
    stayed = tuple(replica for replica in replicas if replica.name in busy and not even_if_busy)
    for replica in stayed:
        get_run_logger().warning("%s is busy, cannot be asked, or was put back; it stays", replica.name)
    _put_back(service, stayed, servers)
    left = None if within_seconds is None else within_seconds - (time.monotonic() - begun)
    _stop_and_detach(service, [replica for replica in replicas if replica not in stayed], servers, left)
    return stayed


def _look_again(
    service: Service, replicas: Sequence[Replica], before: Mapping[str, Server], *, even_if_last: bool
) -> set[str]:
    """The names of those that somebody has put back while they drained; LastToAnswer as before that.

    To drain may take a quarter of an hour: whoever was to stay may have died in it, or drain for another run, which
    looks again as well.
    """
    try:
        servers = list_servers(service.gateway, service.name)
        if not even_if_last:
            going = {replica.address for replica in replicas}
            as_before = [
                replace(s, state=before[s.address].state) if s.address in going & before.keys() else s for s in servers
            ]
            see_that_others_answer(service, replicas, as_before)
    except SkyferryError:
        _put_back(service, replicas, before)
        raise
    up = {server.address for server in servers if server.state == "up"}
    return {replica.name for replica in replicas if replica.address in up}


def _put_back(service: Service, replicas: Sequence[Replica], before: Mapping[str, Server]) -> None:
    """Into traffic, those that had some."""
    for replica in replicas:
        server = before.get(replica.address)
        if server is not None and server.state != "draining":
            attach(service.gateway, service.name, server.slot, replica)


def _stop_and_detach(
    service: Service, replicas: Sequence[Replica], servers: Mapping[str, Server], within_seconds: float | None
) -> None:
    """All of them side by side; the gateway forgets those that are gone, and no other."""
    begun = time.monotonic()
    stopping = {replica: stop_replica.submit(service.fleet, replica) for replica in replicas}
    for stopped in stopping.values():
        # Prefect's own wait for several futures with a timeout does not note that they are done.
        stopped.wait(None if within_seconds is None else max(0.0, within_seconds - (time.monotonic() - begun)))
    for replica, stopped in stopping.items():
        if stopped.state.is_completed() and (server := servers.get(replica.address)) is not None:
            detach(service.gateway, service.name, server.slot, server.address)
    for stopped in stopping.values():
        if stopped.state.is_final():
            stopped.result()  # raises what kept it from being stopped
    if late := sorted(replica.name for replica, stopped in stopping.items() if not stopped.state.is_final()):
        raise Unavailable(
            f"{', '.join(late)} did not stop in the time that was left; run scale-down later, which ends what the "
            f"ledger has given up"
        )


def stop_release(service: Service, release: str, *, drain_timeout_seconds: float) -> None:
    """Stop every replica of a release; Unavailable where some are still busy, which are then left alone."""
    replicas = [r for r in list_replicas(service.fleet, service.name) if r.release == release]
    stayed = stop_replicas(service, replicas, drain_timeout_seconds=drain_timeout_seconds)
    if stayed:
        names = ", ".join(replica.name for replica in stayed)
        raise Unavailable(
            f"{names} of {release} were still busy after {drain_timeout_seconds:g} s; run scale-down later"
        )
