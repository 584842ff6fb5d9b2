"""What a person fills in: the parameters of each flow, checked before anything is spent."""

from datetime import time
from itertools import pairwise
from typing import Annotated, Any, Self, TypeVar
from zoneinfo import ZoneInfo, available_timezones

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from blocks.ports.fleet import EngineSettings, ModelKind
from flows.policy.placement.plan import PlacementRules


def _rising_to_100(stages: tuple[int, ...]) -> tuple[int, ...]:
    if any(low >= high for low, high in pairwise((0, *stages))) or not stages or stages[-1] != 100:  # noqa: PLR2004 - %
        raise ValueError(f"the stages {list(stages)} do not rise to 100; give something like [5, 15, 30, 50, 100]")
    return stages


def _known_time_zone(name: str) -> str:
    if name not in available_timezones():
        raise ValueError(f"there is no time zone {name!r}; give one like Europe/Berlin")
    return name


Stages = Annotated[tuple[int, ...], AfterValidator(_rising_to_100)]
TimeZone = Annotated[str, AfterValidator(_known_time_zone)]


ReadyTimeout = Annotated[
    float,
    Field(
        gt=0,
        title="Ready within (seconds)",
        description="A replica that answers nothing by then is taken down again, and the run fails.",
    ),
]
LateHours = Annotated[
    float,
    Field(
        gt=0,
        title="Late, at most (hours)",
        description="A run that was planned for an hour and begins later than this after it is refused; one that a "
        "person starts is never late.",
    ),
]
OrphanedAfterHours = Annotated[
    float,
    Field(
        ge=1,
        title="Orphaned after (hours)",
        description="Uploads that began earlier and are no object yet are aborted: no file takes longer.",
    ),
]
REPO = r"^[\w.-]+/[\w.-]+$"
P = TypeVar("P", bound="Plan")


class Plan(BaseModel):
    """The parameters of one flow run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    service: str = Field(title="Service", description="The name of the Service block that users call.")

    def part(self, kind: type[P]) -> P:
        """The plan of one link of the chain, with what this one says of it."""
        return kind(**{name: getattr(self, name) for name in kind.model_fields if name in type(self).model_fields})


class ModelPlan(Plan):
    """Which model."""

    repo: str = Field(
        title="Model",
        description="The repository on the service's hub, such as Qwen/Qwen3-8B.",
        pattern=REPO,
    )
    revision: str = Field(
        default="main",
        title="Revision",
        description="A branch, tag or commit; it is pinned to its commit when the run starts.",
    )


class MirrorPlan(ModelPlan):
    """Copy a model into the service's stores."""

    allow: tuple[str, ...] = Field(
        default=(),
        title="Only these files",
        description="Patterns such as *.safetensors; without any, every file of the model is mirrored.",
    )
    ignore: tuple[str, ...] = Field(
        default=(), title="Not these files", description="Patterns of files that are left out, such as original/*."
    )
    pickle_weights: bool = Field(
        default=False,
        title="Pickled weights too",
        description="Mirror weights that run code when they are loaded; only from a maker whom you trust with that.",
    )
    python_code: bool = Field(
        default=False,
        title="Code too",
        description="Mirror Python files and the like, and models whose configs name such code (auto_map); only from a "
        "maker whom you trust with that.",
    )
    egress_dollars_per_gb: float | None = Field(
        default=None,
        ge=0,
        title="Price of traffic ($ per GB)",
        description="What you pay for bytes that leave your cloud; without it, list prices are shown.",
    )

    @property
    def wanted(self) -> dict[str, Any]:
        """Which files, as `choose_files` takes it."""
        return {name: getattr(self, name) for name in ("allow", "ignore", "pickle_weights", "python_code")}


class VerifyPlan(Plan):
    """Read mirrors back."""

    repo: str = Field(title="Model", description="The repository, such as Qwen/Qwen3-8B.", pattern=REPO)
    commit: str | None = Field(
        default=None,
        title="Commit",
        description="The commit that was mirrored; without one, every mirror of the model is read.",
        pattern=r"^[0-9a-f]{40}$",
    )
    sample_percent: float = Field(
        default=100,
        gt=0,
        le=100,
        title="Sample (%)",
        description="About this share of the bytes is read, in whole files that another run chooses otherwise.",
    )


class CollectPlan(Plan):
    """Delete mirrors that nobody needs."""

    keep_newest: int = Field(
        default=2, ge=1, title="Keep the newest", description="So many mirrors of each repository stay in any case."
    )
    orphaned_after_hours: OrphanedAfterHours = 48
    dry_run: bool = Field(default=True, title="Dry run", description="Show what would be deleted, and delete nothing.")


class FleetPlan(ModelPlan):
    """The replicas of a release."""

    context_tokens: int = Field(
        default=4096,
        ge=1,
        title="Context window (tokens)",
        description="The longest prompt plus answer that one request may have.",
    )
    parallel_requests: int = Field(
        default=4,
        ge=1,
        title="Parallel requests",
        description="How many requests one replica answers at the same time; further ones wait.",
    )
    kind: ModelKind = Field(
        default="chat",
        title="Kind of model",
        description="What the model is for: chat, completion (it goes on with a text), embedding, or rerank. It is "
        "started, probed and judged as that, and a kind that the model cannot be is refused.",
    )
    placement: PlacementRules = Field(
        default=PlacementRules(),
        title="Placement",
        description="Where the replicas may run, on what, and for how much.",
    )
    ready_timeout_seconds: ReadyTimeout = 1800
    engine_version: str = Field(
        default="",
        title="Engine's version",
        description="For this release, in place of that of the service's engine, such as 0.34.0.",
        pattern=r"^([A-Za-z0-9][A-Za-z0-9.+!_-]*)?$",
    )
    engine_flags: dict[str, Any] = Field(
        default={},
        title="Engine's flags",
        description='For this release, over those of the service\'s engine, such as {"max-num-batched-tokens": 8192}; '
        "null takes one away.",
    )
    engine_environment: dict[str, str] = Field(
        default={},
        title="Engine's environment",
        description="For this release, over that of the service's engine; never a secret, for ledgers show it.",
    )

    @property
    def engine(self) -> EngineSettings:
        return EngineSettings(self.context_tokens, self.parallel_requests, self.kind)


class ProvisionPlan(FleetPlan):
    """Start the replicas of a release."""

    plan_only: bool = Field(
        default=False,
        title="Only plan",
        description="Show where the replicas would run and what they would cost, from what the hub says of the model; "
        "start nothing.",
    )


class PromotePlan(Plan):
    """Move traffic to the release in progress, stage by stage."""

    stages_percent: Stages = Field(
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


class ReleasePlan(PromotePlan, FleetPlan, MirrorPlan):
    """The whole chain: mirror, provision, promote, and retire what was there before."""

    keep_warm_seconds: float = Field(
        default=900,
        ge=0,
        title="Keep the old fleet warm (seconds)",
        description="The replaced release stays ready to take the traffic back for this long before it is stopped.",
    )


class RollBackPlan(Plan):
    """Give all traffic back to the live release and stop the candidate."""

    reason: str = Field(title="Reason", description="Why; it is kept in the ledger.", min_length=1)


class ScaleDownPlan(Plan):
    """Stop the replicas that are not needed."""

    replicas: int | None = Field(
        default=None,
        ge=0,
        title="Replicas left",
        description="How many replicas stay; without a number, the service's replicas at night.",
    )
    keep: tuple[str, ...] = Field(
        default=(), title="Keep", description="Names of replicas or releases that are left alone."
    )
    to_zero: bool = Field(
        default=False,
        title="Down to zero",
        description="Allow the last healthy replica to be stopped: users then get errors, or the outside provider.",
    )
    drain_timeout_seconds: float = Field(
        default=900,
        gt=0,
        title="Drain within (seconds)",
        description="A replica that is still busy, or cannot be asked, after this time is not stopped.",
    )
    even_if_busy: bool = Field(
        default=False,
        title="Even if busy",
        description="Stop such a replica all the same, for one that hangs would stay for ever; its requests are lost.",
    )
    dry_run: bool = Field(default=False, title="Dry run", description="Show what would be stopped, and stop nothing.")
    late_hours: LateHours = 2


class ReapPlan(Plan):
    """Stop the replicas, and abort the uploads, that belong to nobody."""

    grace_seconds: float = Field(
        default=3600,
        ge=0,
        title="Grace (seconds)",
        description="A replica that is younger than this is left alone, whatever the ledger says of it.",
    )
    orphaned_after_hours: OrphanedAfterHours = 48
    dry_run: bool = Field(
        default=True, title="Dry run", description="Show what would be stopped and aborted, and do neither."
    )


class ScaleUpPlan(Plan):
    """Bring the live release back to its replicas by day."""

    ready_by: time | None = Field(
        default=None,
        title="Ready by",
        description="The time of day by which they are ready; the start is timed from earlier starts. Empty: now.",
    )
    time_zone: TimeZone = Field(default="UTC", title="Time zone", description="The time zone of that time of day.")
    ready_timeout_seconds: ReadyTimeout = 1800
    late_hours: LateHours = 12

    @property
    def zone(self) -> ZoneInfo:
        return ZoneInfo(self.time_zone)


class ReconcilePlan(Plan):
    """Bring back what was asked for and is missing."""

    ready_timeout_seconds: ReadyTimeout = 1800
