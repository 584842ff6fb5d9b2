"""The service block: one endpoint, what it promises, and the parts that it is made of."""

from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from importlib import resources
from typing import Any, Self

import yaml
from prefect.blocks.core import Block
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, TypeAdapter, model_validator

from blocks.engines.block import Engine as EngineBlock
from blocks.engines.block import chosen
from blocks.engines.openai import OpenAIEngine
from blocks.fields import ShownAddress
from blocks.haproxy.gateway import HAProxyGateway
from blocks.hubs.hugging_face import HuggingFaceHub
from blocks.local.fleet import LocalFleet
from blocks.ports.engine import EXPECTATIONS, Engine, Expectation, Prompt
from blocks.ports.fleet import EngineChoice, ModelKind
from blocks.ports.store import Store
from blocks.skypilot.fleet import SkyPilotFleet
from blocks.stores.kinds import AnyStore

_schemas: dict[object, dict[str, Any]] = {}


class GoldenPrompt(BaseModel):
    """What probes ask, and what has to come back."""

    prompt: str = Field(min_length=1, title="Prompt", description="The question, as a user would ask it.")
    max_tokens: int = Field(
        default=64, ge=1, title="Tokens, at most", description="The answer is cut there: probes cost the engines' time."
    )
    expects: Expectation = Field(
        default="text",
        title="Expects",
        description="What the answer has to be. Of a chat model: text that is not empty, a JSON value, or a call of "
        "the tool offered (tool). Of a completion model: a continuation. Of an embedding model: a vector. Of a model "
        "that reranks: a ranking of the documents.",
    )
    documents: list[str] = Field(
        default_factory=list,
        title="Documents",
        description="What a ranking ranks, two or more, with the prompt as the query; empty for anything else.",
    )

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.expects == "ranking" and len(self.documents) < 2:  # noqa: PLR2004 - of one there is no order
            raise ValueError(f"a ranking needs two documents or more, and {len(self.documents)} are given; add some")
        if self.documents and self.expects != "ranking":
            raise ValueError(
                f"documents are given and a {self.expects} is expected; expect a ranking, or leave them out"
            )
        return self


def _packaged_prompts(kind: ModelKind = "chat") -> list[GoldenPrompt]:
    file = resources.files("blocks.engines") / "golden_prompts.yaml"
    return _of_kind(TypeAdapter(list[GoldenPrompt]).validate_python(yaml.safe_load(file.read_text())), kind)


def _of_kind(golden: Sequence[GoldenPrompt], kind: ModelKind) -> list[GoldenPrompt]:
    return [one for one in golden if one.expects in EXPECTATIONS[kind]]


class Service(Block):
    """A named, OpenAI-compatible endpoint that users call; it outlives every release."""

    _block_type_name = "Service"
    _block_type_slug = "service"
    model_config = ConfigDict(hide_input_in_errors=True)

    name: str = Field(
        title="Name",
        description="The name of the service, as the gateway and the ledger know it.",
        pattern=r"^[a-z][a-z0-9-]{0,30}$",
    )
    endpoint: ShownAddress = Field(
        title="Endpoint",
        description="The address that users call, up to and with /v1; it is shown in reports.",
    )
    hub: HuggingFaceHub = Field(title="Model hub", description="The hub that models are mirrored from.")
    store: AnyStore = Field(title="Store", description="The bucket that holds the mirrors and the ledger.")
    further_stores: list[AnyStore] = Field(
        default_factory=list,
        title="Further stores",
        description="Buckets that mirrors are written to as well, such as one in each cloud that replicas run in.",
    )
    fleet: SkyPilotFleet | LocalFleet = Field(title="Fleet", description="What runs the replicas.")
    engine: EngineBlock | None = Field(
        default=None,
        title="Engine",
        description="What serves the models; left empty, what the fleet's own task starts, or llama.cpp on this "
        "machine.",
    )
    gateway: HAProxyGateway = Field(title="Gateway", description="What users' traffic passes through.")
    replicas: int = Field(
        default=1, ge=1, title="Replicas", description="How many replicas a release gets, and has by day."
    )
    night_replicas: int = Field(
        default=1, ge=1, title="Replicas at night", description="How many replicas the nightly scale-down leaves."
    )
    max_dollars_per_hour: float | None = Field(
        default=None,
        gt=0,
        title="Bill, at most ($ an hour)",
        description="What all replicas of the service may cost together, a candidate's beside the live ones; "
        "empty: no limit but a release's own.",
    )
    error_percent: float = Field(
        default=1.0,
        gt=0,
        lt=100,
        title="Errors, at most (%)",
        description="The percentage of requests that may fail before a candidate is rolled back.",
    )
    first_token_p95_ms: float | None = Field(
        default=500.0,
        gt=0,
        title="p95 time to first token, at most (ms)",
        description="Nineteen of twenty streamed answers begin within this time; leave it empty where nobody streams.",
    )
    token_p95_ms: float | None = Field(
        default=100.0,
        gt=0,
        title="p95 time per output token, at most (ms)",
        description="Nineteen of twenty streamed answers take this long for each token after the first, or less; leave "
        "it empty where nobody streams, or where a release changes how many tokens its engine sends at a time.",
    )
    total_p95_ms: float | None = Field(
        default=None,
        gt=0,
        title="p95 total time of an answer, at most (ms)",
        description="Of models that stream nothing, embedding and rerank: nineteen of twenty answers take no longer; "
        "leave it empty where none is promised.",
    )
    slower_than_stable: float = Field(
        default=1.1,
        ge=1,
        title="Slower than stable, excused (times)",
        description="Tokens that take up to so many times as long as stable's, the first or the others, are excused.",
    )
    first_token_margin_ms: float = Field(
        default=10.0,
        ge=0,
        title="Time to first token above stable's, excused (ms)",
        description="A time to first token that is longer than stable's by less than this is excused.",
    )
    token_margin_ms: float = Field(
        default=1.0,
        ge=0,
        title="Time per output token above stable's, excused (ms)",
        description="A time per output token that is longer than stable's by less than this is excused: no reader "
        "sees it.",
    )
    total_margin_ms: float = Field(
        default=10.0,
        ge=0,
        title="Total time above stable's, without harm (ms)",
        description="An answer of an embedding or rerank model that takes longer than stable's by less than this is "
        "excused.",
    )
    more_than_stable: float = Field(
        default=1.1,
        ge=1,
        title="More than stable, excused (times)",
        description="Up to so many times stable's failures, refusals and departures are excused.",
    )
    error_margin_percent: float = Field(
        default=0.25,
        ge=0,
        lt=100,
        title="More than stable, excused (%)",
        description="A rate of failures, refusals or departures below this is excused, however few stable has.",
    )
    false_alarm_percent: float = Field(
        default=1.0,
        gt=0,
        lt=100,
        title="False alarms, at most (alpha, %)",
        description="Of the releases that are as good as stable, so many may be rolled back by bad luck.",
    )
    missed_harm_percent: float = Field(
        default=5.0,
        gt=0,
        lt=100,
        title="Missed regressions, at most (beta, %)",
        description="Of the stages of a release that breaks a limit twice over, so many may be passed by good luck.",
    )
    minimum_requests: int = Field(
        default=50,
        ge=1,
        title="Requests a stage, at least",
        description="A stage in which the candidate answered fewer requests than this never passes.",
    )
    warm_up_seconds: float = Field(
        default=15.0,
        ge=0,
        title="Warm-up of a stage (seconds)",
        description="Times to first token of requests from before this are not judged, for caches are cold; failures "
        "are.",
    )

    probes_per_stage: int = Field(
        default=400,
        ge=0,
        title="Probes a stage, at most",
        description="Where too few users come to judge a stage in time, so many golden prompts are put to the "
        "candidate and as many to stable, at most; with 0 none is ever sent.",
    )
    golden_prompts: list[GoldenPrompt] = Field(
        default_factory=_packaged_prompts,
        min_length=1,
        title="Golden prompts",
        description="What probes ask in turn, and what has to come back; answers are compared with stable's. A model "
        "of a kind that none of them is for (completion, embedding, rerank) is asked some that are built in.",
    )

    _installation: str = PrivateAttr(default="")

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.error_margin_percent > self.error_percent:
            raise ValueError(
                f"error_margin_percent {self.error_margin_percent:g} would excuse what error_percent "
                f"{self.error_percent:g} forbids; lower the margin or raise the limit"
            )
        return self

    @classmethod
    def model_json_schema(cls, *arguments: Any, **options: Any) -> dict[str, Any]:
        """Made once: Prefect asks for it once a field whenever it saves a service, and making it takes a while."""
        key = (cls, arguments, *options.items())
        if key not in _schemas:
            _schemas[key] = super().model_json_schema(*arguments, **options)
        return deepcopy(_schemas[key])

    def of_installation(self, installation: str, inherited: Collection[str] = ()) -> Self:
        """It, as one installation acts on it: with a fleet that shows what is its own."""
        service = self.model_copy()
        service._installation = installation  # noqa: SLF001 - its own
        service.fleet = self.fleet.of_installation(installation, inherited)
        return service

    @property
    def installation(self) -> str:
        """Who acts on it; empty where no installation does."""
        return self._installation

    @property
    def stores(self) -> tuple[Store, ...]:
        """The service's own store first."""
        return (self.store, *self.further_stores)

    def prompts_for(self, kind: ModelKind) -> tuple[Prompt, ...]:
        """The golden ones that a model of that kind can be asked; where the service names none, those of the house."""
        golden = _of_kind(self.golden_prompts, kind) or _packaged_prompts(kind)
        return tuple(Prompt(one.prompt, one.max_tokens, one.expects, tuple(one.documents)) for one in golden)

    def choose_engine(
        self, version: str = "", flags: Mapping[str, Any] | None = None, environment: Mapping[str, str] | None = None
    ) -> EngineChoice | None:
        """Its engine, with what one release says otherwise; None where it is left to the fleet."""
        return chosen(self.engine, version, flags or {}, environment or {})

    @property
    def engine_client(self) -> Engine:
        """How this service's replicas are asked directly."""
        return OpenAIEngine(key_of=self.fleet.key_of, replica_ca=self.fleet.replica_ca)
