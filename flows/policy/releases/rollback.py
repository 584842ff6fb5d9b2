"""Could stable take all of its traffic back now? If not, no weight rises: a roll-back would be no rescue."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from blocks.ports.engine import Load
from blocks.ports.gateway import Server
from flows.policy.gating.decide import Ruling


def rollback_blockers(
    servers: Sequence[Server], loads: Mapping[str, Load | None], *, had: int, parallel_requests: int
) -> str:
    """Why stable could not, in words; nothing where it could.

    `servers` are those in its slot, and `had` how many there were when its candidate got the first weight; `loads` are
    what its engines say, by address. A queue is short where no more wait than its replicas answer at the same time.
    """
    up = [server.address for server in servers if server.state == "up"]
    blockers: list[str] = []
    if not servers and not had:
        blockers.append("no replica of it is at the gateway; run scale-up, which starts them")
    elif len(up) < max(had, len(servers)):
        states = ", ".join(f"{server.address} is {server.state}" for server in servers if server.state != "up")
        blockers.append(f"{len(up)} of its {max(had, len(servers))} replicas are up{f' ({states})' if states else ''}")
    known = [loads.get(address) for address in up]
    if unknown := [address for address, load in zip(up, known, strict=True) if load is None]:
        blockers.append(f"nobody knows how long the queue of {', '.join(unknown)} is")
    waiting, at_once = sum(load.waiting for load in known if load is not None), len(up) * parallel_requests
    if waiting > at_once:
        blockers.append(f"{waiting} requests wait at its replicas, which answer {at_once} at a time")
    return "; ".join(blockers)


def alone_answering(servers: Sequence[Server], healthy: Collection[str], going: Collection[str]) -> frozenset[str]:
    """Of the addresses that are to go, those that answer users while nobody who stays does; none where somebody does.

    `healthy` are the addresses whose engines say so themselves: the gateway notices a death, and a start, a second
    late. What is to stay has to be up for both; of what is to go either is enough, for it can still be stopped later.
    In which slot a server stands is no matter: a slot without any is answered for by the other one.
    """
    staying = {server.address for server in servers if server.address not in going and server.state == "up"}
    leaving = {s.address: s.state for s in servers if s.address in going and s.state != "draining"}
    answering = {address for address, state in leaving.items() if state == "up" or address in healthy}
    return frozenset(answering) if staying.isdisjoint(healthy) else frozenset()


def hold_while_blocked(ruling: Ruling, blockers: str, elapsed_seconds: float, deadline_seconds: float) -> Ruling:
    """Of a stage that would be passed: it is held for as long as the way back is barred, up to its deadline."""
    if ruling.verdict != "promote" or not blockers:
        return ruling
    is_late = elapsed_seconds >= deadline_seconds
    return replace(ruling, verdict="roll back" if is_late else "hold", blockers=blockers)
