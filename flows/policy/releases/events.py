"""What happened to releases, fleets and mirrors, for who listens: Prefect's automations, or a log of what was done.

A release's events follow from its ledger alone. Each state that a release comes to bears the number of the ledger's
version that brought it there, and an event's id is made of that: whoever tells it again, as a task does whose first
answer was lost, tells what is known already.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from uuid import UUID, uuid5

from blocks.ports.fleet import Replica
from flows.policy.releases.ledger import Release, ServiceRecord

NAMESPACE = UUID("5f0d4f0e-6d0c-5c0e-9b1a-736b79666572")
"""Of our events' ids, and of nothing else."""

Payload = Mapping[str, object]


@dataclass(frozen=True)
class Event:
    """One thing that has happened to one resource."""

    name: str
    """In the past tense, below `skyferry.`."""
    resource: str
    """Its id, such as skyferry.release.chat-1a2b3c4d; the last part is its name."""
    version: str
    """What tells this time that it happened from every other time."""
    related: Mapping[str, str] = field(default_factory=dict[str, str])
    """Ids of other resources by the role that they play in it."""
    payload: Payload = field(default_factory=dict[str, object])

    @property
    def id(self) -> UUID:
        return uuid5(NAMESPACE, f"{self.name} {self.resource} {self.version}")


def service_resource(service: str) -> str:
    return f"skyferry.service.{service}"


def events_of_last_step(record: ServiceRecord) -> tuple[Event, ...]:
    """What the step did to releases that made this version of the ledger; nothing of a ledger of version 0.1."""
    moved = [release for release in record.releases if record.version and release.version == record.version]
    is_back_out = any(release.state == "rolled back" for release in moved)
    return tuple(
        Event(
            f"skyferry.release.{name}",
            f"skyferry.release.{release.id}",
            str(record.version),
            {"service": service_resource(release.service), "model": f"skyferry.model.{release.repo}"},
            _of(release, record.version),
        )
        for release in moved
        if (name := _what_happened(release, is_back_out=is_back_out))
    )


def _what_happened(release: Release, *, is_back_out: bool) -> str:
    if release.state == "in progress" and release.stages:
        return "stage.passed" if release.stages[-1].verdict == "promote" else "stage.failed"
    return {
        "in progress": "opened",
        "live": "restored" if is_back_out else "promoted",
        "retiring": "replaced",
        "stopping": "",
        "retired": "retired",
        "rolled back": "rolled-back",
    }[release.state]


def _of(release: Release, version: int) -> Payload:
    """How it stands; of its last stage, if it had one, what users met there."""
    about: dict[str, object] = {
        "service": release.service,
        "release": release.id,
        "repo": release.repo,
        "commit": release.commit,
        "state": release.state,
        "reason": release.closing_reason,
        "flow_run_id": release.run_id,
        "ledger_version": version,
        "max_dollars_per_hour": release.placement.max_dollars_per_hour,
    }
    if not release.stages:
        return about
    last = release.stages[-1]
    return about | {
        "reason": release.closing_reason or last.reason,
        "weight_percent": last.share_percent,
        "seconds": last.seconds,
        "requests": last.requests,
        "users": last.evidence.users if last.evidence is not None else None,
    }


def fleet_scaled(
    record: ServiceRecord, service: str, *, started: Sequence[Replica] = (), stopped: Sequence[Replica] = ()
) -> Event:
    """What was started or stopped because another number is wanted, or because what was wanted had died."""
    changed = (*started, *stopped)
    prices = [replica.dollars_per_hour for replica in changed]
    return Event(
        "skyferry.fleet.scaled",
        service_resource(service),
        f"{record.version} {' '.join(sorted(replica.name for replica in changed))}",
        {f"release-{release}": f"skyferry.release.{release}" for release in sorted({r.release for r in changed})},
        {
            "service": service,
            "started": [replica.name for replica in started],
            "stopped": [replica.name for replica in stopped],
            "wanted": record.wanted,
            "dollars_per_hour": None if None in prices else sum(price for price in prices if price is not None),
            "ledger_version": record.version,
        },
    )


def mirror_written(url: str, service: str, repo: str, commit: str, sizes_bytes: Sequence[int]) -> Event:
    """A store has the whole mirror; `url` is its prefix there."""
    return Event(
        "skyferry.mirror.written",
        f"skyferry.mirror.{url}",
        f"{len(sizes_bytes)} files",  # a mirror only ever grows
        {"service": service_resource(service), "model": f"skyferry.model.{repo}"},
        {"repo": repo, "commit": commit, "files": len(sizes_bytes), "bytes": sum(sizes_bytes)},
    )
