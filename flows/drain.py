"""Put replicas under traffic, and take them out again without a request lost."""

from collections.abc import Sequence

from prefect import get_run_logger, unmapped
from prefect.futures import wait

from blocks.errors import Unavailable
from blocks.ports import Replica, Slot
from blocks.service import Service
from flows.tasks.fleet import list_replicas, stop_replica, wait_until_idle
from flows.tasks.gateway import attach, detach, drain, hand_over_key, list_servers


def put_in_slot(service: Service, slot: Slot, release: str, replicas: Sequence[Replica]) -> None:
    """Let the gateway send that slot's requests to these replicas of a release, with the key that they ask for."""
    hand_over_key(service.fleet, service.gateway, service.name, slot, release)
    for replica in replicas:
        attach(service.gateway, service.name, slot, replica)


def stop_replicas(
    service: Service, replicas: Sequence[Replica], *, drain_timeout_seconds: float, even_if_busy: bool = False
) -> tuple[Replica, ...]:
    """Drain, wait until nothing is in flight, stop, verify gone; returns those that stayed because they were busy.

    One that is still busy after the timeout, or cannot be asked, takes traffic again, unless `even_if_busy`.
    """
    servers = {server.address: server for server in list_servers(service.gateway, service.name)}
    placed = [servers[replica.address] for replica in replicas if replica.address in servers]
    for server in placed:
        drain(service.gateway, service.name, server.slot, server.address)
    idle = wait_until_idle.map(
        unmapped(service.gateway), unmapped(service.engine), list(replicas), unmapped(drain_timeout_seconds)
    ).result()
    stayed = tuple(r for r, is_idle in zip(replicas, idle, strict=True) if not is_idle and not even_if_busy)
    for replica in stayed:
        get_run_logger().warning("%s is busy, or cannot be asked; it stays", replica.name)
        server = servers.get(replica.address)
        if server is not None and server.state != "draining":
            attach(service.gateway, service.name, server.slot, replica)
    stopping = {r: stop_replica.submit(service.fleet, r) for r in replicas if r not in stayed}
    wait([*stopping.values()])
    for replica, stopped in stopping.items():
        if stopped.state.is_completed() and (server := servers.get(replica.address)) is not None:
            detach(service.gateway, service.name, server.slot, server.address)
    for stopped in stopping.values():
        stopped.result()  # raises what kept it from being stopped
    return stayed


def stop_release(service: Service, release: str, *, drain_timeout_seconds: float, even_if_busy: bool = False) -> None:
    """Stop every replica of a release; Unavailable where some are still busy, which are then left alone."""
    replicas = [r for r in list_replicas(service.fleet, service.name) if r.release == release]
    stayed = stop_replicas(service, replicas, drain_timeout_seconds=drain_timeout_seconds, even_if_busy=even_if_busy)
    if stayed:
        names = ", ".join(replica.name for replica in stayed)
        raise Unavailable(
            f"{names} of {release} were still busy after {drain_timeout_seconds:g} s; run scale-down later"
        )
