"""The record of a service's releases, and the steps that it may take from one state to the next."""

import hashlib
import json
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from blocks.errors import Refused
from blocks.ports.fleet import EngineBuild, EngineSettings, ReplicaOrder
from blocks.ports.gateway import Slot
from blocks.stores.mirrors import mirror_prefix
from flows.policy.gating.decide import Verdict
from flows.policy.gating.engines import Engines
from flows.policy.gating.evidence import Evidence, Probed
from flows.policy.gating.limits import Limits
from flows.policy.placement.plan import PlacementRules

State = Literal["in progress", "live", "retiring", "stopping", "retired", "rolled back"]
"""`retiring` is replaced and still warm: a roll-back may return to it. `stopping` is past that."""
ENDED = frozenset({"retired", "rolled back"})
SLACK = timedelta(seconds=5)
"""What a server may have rounded off of a moment."""
KEPT_RELEASES = 50
KEPT_STARTS = 20
KEPT_EVIDENCE = 10
"""Of so many releases: the record is read at each look at a stage, and has to stay small."""


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class Stage(Frozen):
    """One weight of the candidate, and how its gates ruled."""

    share_percent: int
    verdict: Verdict
    reason: str
    requests: int
    seconds: float
    evidence: Evidence | None = None
    """What it was ruled on, and `limits` by what: `skyferry replay` rules on it again. None where it is long ago."""
    limits: Limits | None = None
    probed: Probed | None = None
    """None where no probe was sent, too."""
    engines: Engines | None = None
    """What the engines did meanwhile; nothing is ruled by it."""
    barred_by: str = ""
    """Why stable could not have taken its traffic back when the gates had passed the stage."""


class Release(Frozen):
    """One mirror and one engine configuration for one service."""

    id: str
    service: str
    repo: str
    commit: str
    engine: EngineSettings
    slot: Slot
    state: State
    run_id: str
    """The Prefect flow run that acts for it; of a chain of flows, the outermost."""
    opened_at: datetime
    installation: str = Field(default="", pattern=r"^([0-9a-f]{16})?$")
    """Whose mark its replicas bear; empty where an earlier version opened it."""
    placement: PlacementRules = PlacementRules()
    """Where its replicas may run; no part of what it is."""
    stages: tuple[Stage, ...] = ()
    closing_reason: str = ""
    version: int = 0
    """Of the ledger, when this release came to its state and stages; 0 where version 0.1 brought it there."""
    warm_until: datetime | None = None
    """How long a replaced release is kept ready; None where the run that replaced it keeps it so."""

    @field_validator("state", mode="before")
    @classmethod
    def _by_its_name_of_today(cls, state: object) -> object:
        """Ledgers of version 0.1 call it otherwise."""
        return "in progress" if state == "under way" else state

    @property
    def mirror_prefix(self) -> str:
        return mirror_prefix(self.repo, self.commit)


class Shortage(Frozen):
    """Fewer replicas than were asked for, now or a moment ago, and what has been tried."""

    since: datetime
    tries: int
    last_try_at: datetime
    reason: str
    """Why the last try did not end it, or that it did: what came back may be gone again in a minute."""


class ServiceRecord(Frozen):
    """All that is known of a service's releases, oldest first."""

    version: int = 0
    """Counts the steps; version 0.1 counted none."""
    releases: tuple[Release, ...] = ()
    start_seconds: tuple[float, ...] = ()
    """How long the last replicas took from launch to ready."""
    wanted: int | None = None
    """How many replicas of the live release were asked for last; None is the service's number by day."""
    shortage: Shortage | None = None
    """None once as many as were asked for have served for a while."""

    @property
    def has_users(self) -> bool:
        """Whether anybody counts on an answer: a release is live, and nobody has asked for no replica of it."""
        return self.live is not None and self.wanted != 0

    def in_state(self, state: State) -> Release | None:
        return next((release for release in reversed(self.releases) if release.state == state), None)

    @property
    def live(self) -> Release | None:
        return self.in_state("live")

    @property
    def in_progress(self) -> Release | None:
        return self.in_state("in progress")

    @property
    def retiring(self) -> Release | None:
        return self.in_state("retiring")

    @property
    def replaced(self) -> tuple[Release, ...]:
        """Those that still have replicas, though the live one took over."""
        return tuple(release for release in self.releases if release.state in {"retiring", "stopping"})

    def release(self, release: str) -> Release:
        return next(known for known in self.releases if known.id == release)

    def with_release(self, changed: Release) -> "ServiceRecord":
        """In its place; one that is opened again after its end comes last, as a new one does."""
        standing = [release.id for release in self.releases if release.state not in ENDED or changed.state in ENDED]
        if changed.id in standing:
            releases = tuple(changed if release.id == changed.id else release for release in self.releases)
        else:
            releases = (*(release for release in self.releases if release.id != changed.id), changed)
        surplus = max(0, len(releases) - KEPT_RELEASES)
        forgotten = {release.id for release in [r for r in releases if r.state in ENDED][:surplus]}
        return self.model_copy(update={"releases": tuple(r for r in releases if r.id not in forgotten)})


def counted(before: ServiceRecord, after: ServiceRecord) -> ServiceRecord:
    """The record after a step, with the number of its version on it and on each release that the step has moved."""
    if after == before:
        return before
    version = before.version + 1
    had = {release.id: (release.state, len(release.stages)) for release in before.releases}
    releases = tuple(
        release
        if had.get(release.id) == (release.state, len(release.stages))
        else release.model_copy(update={"version": version})
        for release in after.releases
    )
    return after.model_copy(update={"version": version, "releases": releases})


LEDGERS = "ledger/"
"""The prefix of all ledgers in a store."""


def ledger_key(service: str) -> str:
    return f"{LEDGERS}{service}.json"


def release_id(service: str, repo: str, commit: str, engine: EngineSettings) -> str:
    """A name for all that makes the release's replicas what they are, the same at each retry.

    Of a release that records no engine it is what version 0.1 made of it.
    """
    if engine.build is None and engine.kind == "chat":
        settings = f"context_tokens={engine.context_tokens}, parallel_requests={engine.parallel_requests}"
        said = f"({service!r}, {repo!r}, {commit!r}, EngineSettings({settings}))"
    else:
        said = json.dumps([service, repo, commit, asdict(engine)], sort_keys=True)
    return f"{service}-{hashlib.sha256(said.encode()).hexdigest()[:8]}"


def is_standing_unrecorded(record: ServiceRecord, release: str) -> bool:
    """Whether that release is live or in progress, from a time when releases recorded no engine.

    It is still the one that is asked for, as long as nobody has chosen an engine: else the first run after an upgrade
    would be a new release of what users have.
    """
    return any(standing.id == release and standing.engine.build is None for standing in _standing(record))


def opened_by(record: ServiceRecord, run_id: str, repo: str, commit: str, engine: EngineSettings) -> Release | None:
    """The release in progress of that run, where it is of this model: whatever blocks say by now, its engine stands."""
    release = record.in_progress
    if release is None or release.run_id != run_id or (release.repo, release.commit) != (repo, commit):
        return None
    return release if replace(release.engine, build=None) == replace(engine, build=None) else None


def _standing(record: ServiceRecord) -> tuple[Release, ...]:
    return tuple(release for release in (record.live, record.in_progress) if release is not None)


def earlier_builds(record: ServiceRecord) -> tuple[EngineBuild, ...]:
    """The engines of the service's releases, the newest first."""
    return tuple(r.engine.build for r in reversed(record.releases) if r.engine.build is not None)


def replica_orders(release: Release, count: int) -> list[ReplicaOrder]:
    """One order a replica; the names are the same at each retry, so that it adopts what an earlier try has started."""
    return [
        ReplicaOrder(
            name=f"{release.id}-{number}",
            service=release.service,
            release=release.id,
            mirror_prefix=release.mirror_prefix,
            engine=release.engine,
        )
        for number in range(count)
    ]


def open_release(
    record: ServiceRecord,
    service: str,
    repo: str,
    commit: str,
    engine: EngineSettings,
    *,
    placement: PlacementRules,
    run_id: str,
    ended_run_id: str | None,
    now: datetime,
    installation: str = "",
) -> ServiceRecord:
    """Begin a release in the free slot, or go on with it where an earlier run of it, `ended_run_id`, died."""
    wanted = release_id(service, repo, commit, engine)
    if record.live is not None and record.live.id == wanted:
        return record
    if (standing := record.in_progress) is not None:
        if standing.id == wanted:
            taken = take_over(record, run_id, ended_run_id)
            return taken.with_release(owned_by(taken, run_id).model_copy(update={"placement": placement}))
        raise Refused(
            f"service {service!r} already has release {standing.id} in progress (flow run {standing.run_id}); "
            f"let it end, or end it with roll-back"
        )
    if record.replaced:
        names = ", ".join(f"{old.id} is {old.state}{_until(old.warm_until)}" for old in record.replaced)
        raise Refused(
            f"both slots of service {service!r} are taken: {names}; wait for its run of retire-release, or run that "
            f"flow now"
        )
    slot: Slot = "green" if record.live is not None and record.live.slot == "blue" else "blue"
    return record.with_release(
        Release(
            id=wanted,
            service=service,
            repo=repo,
            commit=commit,
            engine=engine,
            slot=slot,
            state="in progress",
            run_id=run_id,
            opened_at=now,
            installation=installation,
            placement=placement,
        )
    )


def _until(moment: datetime | None) -> str:
    return f" and warm until {moment:%H:%M:%S %Z}" if moment is not None else ""


def take_over(record: ServiceRecord, run_id: str, ended_run_id: str | None) -> ServiceRecord:
    """Let another run act for the release that is in progress, once the run that did, `ended_run_id`, has ended."""
    release = record.in_progress
    if release is None:
        raise Refused("no release is in progress; start one with provision-fleet or release-model")
    if release.run_id == run_id:
        return record
    if release.run_id != ended_run_id:
        raise Refused(
            f"release {release.id} is in the hands of flow run {release.run_id}, which has not ended; "
            f"wait, cancel it, or end the release with roll-back"
        )
    return record.with_release(release.model_copy(update={"run_id": run_id}))


def note_stage(record: ServiceRecord, run_id: str, stage: Stage) -> ServiceRecord:
    release = owned_by(record, run_id)
    if release.stages[-1:] == (stage,):
        return record  # the step is taken again where the answer to its writing was lost
    record = record.with_release(release.model_copy(update={"stages": (*release.stages, stage)}))
    for old in record.releases[:-KEPT_EVIDENCE]:
        bare = tuple(
            stage.model_copy(update={"evidence": None, "limits": None, "probed": None, "engines": None})
            for stage in old.stages
        )
        record = record.with_release(old.model_copy(update={"stages": bare}))
    return record


def note_start(record: ServiceRecord, seconds: float) -> ServiceRecord:
    return record.model_copy(update={"start_seconds": (*record.start_seconds, seconds)[-KEPT_STARTS:]})


def ask_for(record: ServiceRecord, replicas: int | None) -> ServiceRecord:
    """So many of the live release are to run from now on, whatever was asked for before; None: as many as by day."""
    return record.model_copy(update={"wanted": replicas, "shortage": None})


def note_shortage(record: ServiceRecord, reason: str, now: datetime) -> ServiceRecord:
    """What was asked for was tried to be brought back once more."""
    before = record.shortage
    shortage = Shortage(
        since=before.since if before else now,
        tries=before.tries + 1 if before else 1,
        last_try_at=now,
        reason=reason,
    )
    return record.model_copy(update={"shortage": shortage})


def end_shortage(record: ServiceRecord) -> ServiceRecord:
    return record.model_copy(update={"shortage": None})


def go_live(record: ServiceRecord, run_id: str) -> ServiceRecord:
    """The candidate has all traffic: it is live, with as many replicas as by day, and the one before it retires."""
    if record.in_progress is None and record.live is not None and record.live.run_id == run_id:
        return record
    release = owned_by(record, run_id)
    if record.live is not None:
        record = record.with_release(record.live.model_copy(update={"state": "retiring"}))
    return ask_for(record.with_release(release.model_copy(update={"state": "live"})), None)


def keep_warm(record: ServiceRecord, release: str, until: datetime) -> ServiceRecord:
    """The replaced release stays ready until then; one that is replaced no more is left as it is."""
    replaced = record.release(release)
    if replaced.state != "retiring":
        return record
    return record.with_release(replaced.model_copy(update={"warm_until": until}))


def why_not_to_retire(record: ServiceRecord, release: str, planned_for: datetime | None) -> str:
    """Why there is nothing to do, in words; nothing where it is to retire. Refused where it was not replaced.

    `planned_for` is the moment that was planned for it; None where a person wants it now.
    """
    found = next((known for known in record.releases if known.id == release), None)
    if found is None or found.state not in {"retiring", "stopping", "retired"}:
        replaced = ", ".join(old.id for old in record.replaced) or "none"
        raise Refused(
            f"release {release} is {found.state if found else 'not in the ledger'}, so it is not retired; those that "
            f"were replaced and may be: {replaced}"
        )
    if found.state == "retired":
        return f"{release} has retired already"
    if planned_for is not None and found.warm_until is not None and found.warm_until > planned_for + SLACK:
        return f"{release} was live and replaced again meanwhile{_until(found.warm_until)}; another run stops it then"
    return ""


def begin_stopping(record: ServiceRecord, release: str) -> ServiceRecord:
    """From here on nobody may roll back to it; one that is live again meanwhile stays."""
    return _moved(record, release, {"retiring"}, "stopping")


def retire(record: ServiceRecord, release: str) -> ServiceRecord:
    """Its replicas are gone."""
    return _moved(record, release, {"stopping"}, "retired")


def _moved(record: ServiceRecord, release: str, allowed: set[State], state: State) -> ServiceRecord:
    standing = record.release(release)
    return record.with_release(standing.model_copy(update={"state": state})) if standing.state in allowed else record


def what_to_back_out(record: ServiceRecord) -> Release:
    """The release in progress; or else the live one, if the release before it still stands warm to take over."""
    if record.in_progress is not None:
        return record.in_progress
    if record.live is None or record.retiring is None:
        raise Refused(
            "there is nothing to roll back to: no release is in progress, and none before the live one is warm"
        )
    return record.live


def back_out(record: ServiceRecord, release: str, reason: str) -> ServiceRecord:
    """End that release; where it was live, the one before it is live again, with as many replicas as by day."""
    if record.release(release).state == "rolled back":
        return record
    bad = what_to_back_out(record)
    if bad.id != release:
        raise Refused(f"release {release} is {record.release(release).state}: it can be rolled back no more")
    before = record.retiring if bad.state == "live" else None
    record = _rolled_back(record, bad, reason)
    return (
        record
        if before is None
        else ask_for(record.with_release(before.model_copy(update={"state": "live", "warm_until": None})), None)
    )


def _rolled_back(record: ServiceRecord, release: Release, reason: str) -> ServiceRecord:
    return record.with_release(release.model_copy(update={"state": "rolled back", "closing_reason": reason}))


def owned_by(record: ServiceRecord, run_id: str) -> Release:
    """The release in progress; Refused where this run does not act for it, or no longer."""
    release = record.in_progress
    if release is None or release.run_id != run_id:
        holder = f"flow run {release.run_id}" if release else "nobody"
        raise Refused(f"flow run {run_id} no longer acts for the release in progress, {holder} does; it has to stop")
    return release
