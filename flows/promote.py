"""Promote a canary: more traffic stage by stage, as long as its gates, and people where asked, say so."""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Annotated, Literal, Self

from prefect import get_run_logger
from prefect.input import RunInput
from pydantic import AfterValidator, Field, ValidationError, model_validator

from blocks.errors import Refused
from blocks.ports.fleet import Replica
from blocks.ports.gateway import Slot
from blocks.service import Service
from flows.boards.artifacts import Artifact
from flows.boards.canary import waiting_board
from flows.boards.stages import approval_question
from flows.policy.gating.alpha import alpha_of_stage
from flows.policy.gating.judge import Carried, Judge
from flows.policy.gating.kinds import limits_for
from flows.policy.gating.limits import Limits
from flows.policy.gating.probes import PART_OF_ALPHA, ProbeJudge
from flows.policy.gating.stages import stages_left
from flows.policy.releases.ledger import Release, ServiceRecord, go_live, note_stage, owned_by, take_over
from flows.runtime.parameters import Parameters, ReadyTimeout, flow_with
from flows.runtime.runs import Unanswered, ask_a_person, ended_run_of, own_run_id
from flows.steps.agreement import check_agreement
from flows.steps.place import reconcile_replicas
from flows.steps.service import open_service
from flows.steps.stage import Stable, StageWatch
from flows.steps.undo import RolledBack, rollback_on_error
from flows.tasks.fleet import list_replicas
from flows.tasks.gateway import list_servers, measure_rate, read_split, set_weight, wait_for_rollback_blockers
from flows.tasks.ledger import read_record, record_of, update_ledger

MEASURED_SECONDS = 5
"""For so long requests are counted, at most, to know how many come."""


class Approval(RunInput):
    """What a person answers; there is no default, for an empty answer must not promote."""

    decision: Literal["promote", "roll back"] = Field(
        title="Decision",
        description="Let the candidate have that much of the traffic, or give all of it back to stable.",
    )


def _rising_to_100(stages: tuple[int, ...]) -> tuple[int, ...]:
    if any(low >= high for low, high in pairwise((0, *stages))) or not stages or stages[-1] != 100:  # noqa: PLR2004 - %
        raise ValueError(f"the stages {list(stages)} do not rise to 100; give something like [5, 15, 30, 50, 100]")
    return stages


class PromoteParameters(Parameters):
    """Move traffic to the release in progress, stage by stage."""

    stages_percent: Annotated[tuple[int, ...], AfterValidator(_rising_to_100)] = Field(
        default=(5, 15, 30, 50, 100),
        title="Stages (%)",
        description="The shares of the traffic that the candidate gets one after the other, rising to 100.",
    )
    stage_seconds: float = Field(
        default=300,
        ge=0,
        title="Stage lasts at least (seconds)",
        description="No stage is passed before this time, however good it looks.",
    )
    stage_deadline_seconds: float = Field(
        default=3600,
        gt=0,
        title="Stage lasts at most (seconds)",
        description="A stage that its gates have not passed by then is rolled back.",
    )
    limits: dict[str, float | None] = Field(
        default={},
        title="Other limits",
        description='Gates for this release only, over those of the service, such as {"slower_than_stable": 1.5}.',
    )
    approve_before_percent: tuple[int, ...] = Field(
        default=(),
        title="Ask a person before (%)",
        description="Before each of these stages the run pauses, shows the evidence and asks: promote or roll back.",
    )
    approval_timeout_seconds: int = Field(
        default=3600,
        gt=0,
        title="Answer within (seconds)",
        description="Without an answer by then the release is rolled back.",
    )
    ready_timeout_seconds: ReadyTimeout = 1800

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if unknown := sorted(set(self.approve_before_percent) - set(self.stages_percent)):
            raise ValueError(f"nobody would be asked before {unknown} %: the stages are {list(self.stages_percent)}")
        if self.stage_seconds > self.stage_deadline_seconds:
            raise ValueError(
                f"a stage that lasts at least {self.stage_seconds:g} s never passes within "
                f"{self.stage_deadline_seconds:g} s; lower stage_seconds or raise stage_deadline_seconds"
            )
        return self


@flow_with(
    PromoteParameters,
    name="promote-canary",
    run_name=lambda given: f"promote-canary-of-{given.service}",
)
def promote_canary(given: PromoteParameters) -> Release:
    """Give the release in progress more of the traffic stage by stage, from the split that stands."""
    service = open_service(given.service)
    limits = limits_of(service, given)  # what is refused ends no release that stands ready
    release = _take_over(service)
    limits = limits_for(release.engine.kind, limits, given.limits)
    candidates: Sequence[Replica] = ()
    with rollback_on_error(service):
        record = read_record(service.store, service.name)
        if record.live is None or _is_asleep(service, record, record.live):
            why = "it is the first release" if record.live is None else f"no replica of {record.live.id} is asked for"
            get_run_logger().info("%s has no users to lose, for %s: it gets all traffic.", service.name, why)
            set_weight(service.gateway, service.name, release.slot, 100)
        else:
            candidates = _promote_by_stages(service, release, record.live, given, limits)
        record = update_ledger(service.store, service.name, partial(go_live, run_id=own_run_id()))
    # Outside the guard: a release that its users have and that has lost a machine is no reason to take it back.
    release = record.release(release.id)
    reconcile_replicas(service, release, candidates, given.ready_timeout_seconds)
    return release


def _is_asleep(service: Service, record: ServiceRecord, live: Release) -> bool:
    """Scaled to zero, and nothing that was left there answers: no stage has anything to compare with, or to keep."""
    return not record.has_users and not _servers_in(service, live.slot)


def _take_over(service: Service) -> Release:
    ended = ended_run_of(read_record(service.store, service.name).in_progress)
    step = partial(take_over, run_id=own_run_id(), ended_run_id=ended)
    return owned_by(update_ledger(service.store, service.name, step), own_run_id())


def _promote_by_stages(
    service: Service, release: Release, live: Release, given: PromoteParameters, limits: Limits
) -> Sequence[Replica]:
    """The replicas that the last stage began with."""
    board = Artifact(f"canary-board-{service.name}")
    standing = read_split(service.gateway, service.name).weight_of(release.slot)
    carried = Carried.after(stage.evidence for stage in release.stages if stage.evidence is not None)
    candidates = _replicas_of(service, release.id)
    stable = Stable(live, _replicas_of(service, live.id), had=_servers_in(service, live.slot))
    if not standing:
        check_agreement(service, release, live, candidates, stable.replicas)
    rate = measure_rate(service.gateway, service.name, min(MEASURED_SECONDS, given.stage_deadline_seconds / 100))
    for weight in stages_left(given.stages_percent, standing):
        if weight in given.approve_before_percent:
            _ask_a_person(release, weight, given.approval_timeout_seconds)
        # Somebody else may have ended the release since the last look, above all while a person was asked.
        owned_by(read_record(service.store, service.name), own_run_id())
        reconcile_replicas(service, release, candidates, given.ready_timeout_seconds)
        if weight * 100 > standing:
            _wait_for_rollback_blockers(service, release, given, weight, stable, board)
        candidates = _replicas_of(service, release.id)
        cells = _cells(candidates)
        alpha, kind = alpha_of_stage(given.stages_percent.index(weight), len(given.stages_percent)), release.engine.kind
        of_probes = PART_OF_ALPHA * alpha if service.probes_per_stage else 0.0
        judge = Judge(
            limits,
            release.slot,
            weight=weight / 100,
            alpha=alpha - of_probes,
            carried=carried,
            cells=cells,
            kind=kind,
        )
        watch = StageWatch(
            service,
            release,
            given.stages_percent,
            weight,
            judge,
            ProbeJudge(limits, release.slot, alpha=of_probes, cells=cells, kind=kind),
            board,
            candidates=candidates,
            stable=stable,
            requests_a_second=rate,
        )
        stage = watch.hold()
        release = owned_by(
            update_ledger(service.store, service.name, partial(note_stage, run_id=own_run_id(), stage=stage)),
            own_run_id(),
        )
        if stage.verdict == "roll back":
            raise RolledBack(stage.reason)
        carried = judge.carried()
        rate = watch.outcomes / stage.seconds if stage.seconds else rate
    return candidates


def _wait_for_rollback_blockers(
    service: Service, release: Release, given: PromoteParameters, weight: int, stable: Stable, board: Artifact
) -> None:
    """No weight rises while stable could not take all of its traffic back."""

    def blockers() -> str:
        owned_by(record_of(service.store, service.name), own_run_id())
        if words := stable.rollback_blockers(service):
            board.show(lambda: waiting_board(release, given.stages_percent, weight, words))
        return words

    if words := wait_for_rollback_blockers(weight, blockers, given.stage_deadline_seconds):
        raise RolledBack(
            f"Rolled back before {weight} %: for {given.stage_deadline_seconds:g} s stable could not have taken its "
            f"traffic back: {words}"
        )


def _servers_in(service: Service, slot: Slot) -> int:
    """Without those that a flow takes out just now, as the night does: they will not be there to come back to."""
    servers = list_servers(service.gateway, service.name)
    return sum(server.slot == slot and server.state != "draining" for server in servers)


def limits_of(service: Service, given: PromoteParameters) -> Limits:
    """What the release has to keep; Refused where the service's limits and the release's do not fit together."""
    promised = {name: getattr(service, name) for name in Limits.model_fields if hasattr(service, name)}
    times = {"minimum_seconds": given.stage_seconds, "deadline_seconds": given.stage_deadline_seconds}
    if unknown := sorted(given.limits.keys() - promised.keys()):
        raise Refused(f"limits has {', '.join(unknown)}; there are {', '.join(sorted(promised))}")
    try:
        return Limits.model_validate({**promised, **times, **given.limits})
    except ValidationError as error:
        raise Refused(
            f"the gates of service {service.name!r} and the limits of this release do not fit together: {error}"
        ) from error


def _replicas_of(service: Service, release: str) -> list[Replica]:
    return [replica for replica in list_replicas(service.fleet, service.name) if replica.release == release]


def _cells(replicas: Sequence[Replica]) -> dict[str, str]:
    """The cell of each address; where all are in one, each replica for itself."""
    one = len({replica.cell for replica in replicas}) == 1
    return {replica.address: replica.name if one else replica.cell for replica in replicas}


def _ask_a_person(release: Release, weight: int, timeout_seconds: int) -> None:
    form = Approval.with_initial_data(description=approval_question(release, weight))
    try:
        answer = ask_a_person(form, f"approval-before-{weight}", timeout_seconds)
    except Unanswered as error:
        raise RolledBack(f"Rolled back before {weight} %: {error}") from error
    # The server checks an answer against the form's schema; check it here too, where an old form may have answered.
    if answer.decision == "roll back":
        raise RolledBack(f"Rolled back before {weight} %: a person said so")
    if answer.decision != "promote":
        raise Refused(f"the answer is {answer.decision!r}; it has to be 'promote' or 'roll back'")
