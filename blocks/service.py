"""The service block: one endpoint, what it promises, and the parts that it is made of."""

from typing import TYPE_CHECKING

from prefect.blocks.core import Block
from pydantic import Field

from blocks.directory_store import DirectoryStore
from blocks.google_storage import GoogleStore
from blocks.haproxy import HAProxyGateway
from blocks.hugging_face import HuggingFaceHub
from blocks.local_fleet import LocalFleet
from blocks.openai_engine import OpenAIEngine
from blocks.ports import Engine, Store
from blocks.s3 import S3Store

if TYPE_CHECKING:
    from blocks.azure_blob import AzureStore

    AnyStore = S3Store | GoogleStore | DirectoryStore | AzureStore
else:
    AnyStore = S3Store | GoogleStore | DirectoryStore
    try:
        from blocks.azure_blob import AzureStore

        AnyStore |= AzureStore
    except ModuleNotFoundError as error:
        if not str(error.name).startswith("azure"):
            raise  # without `skyferry[azure]` there is no Azure; anything else that is missing is an error


class Service(Block):
    """A named, OpenAI-compatible endpoint that users call; it outlives every release."""

    _block_type_name = "Service"
    _block_type_slug = "service"

    name: str = Field(
        title="Name",
        description="The name of the service, as the gateway and the ledger know it.",
        pattern=r"^[a-z][a-z0-9-]{0,30}$",
    )
    endpoint: str = Field(
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
    fleet: LocalFleet = Field(title="Fleet", description="What runs the replicas.")
    gateway: HAProxyGateway = Field(title="Gateway", description="What users' traffic passes through.")
    replicas: int = Field(
        default=1, ge=1, title="Replicas", description="How many replicas a release gets, and has by day."
    )
    night_replicas: int = Field(
        default=1, ge=1, title="Replicas at night", description="How many replicas the nightly scale-down leaves."
    )
    error_percent: float = Field(
        default=1.0,
        gt=0,
        lt=100,
        title="Errors, at most (%)",
        description="The share of requests that may fail before a candidate is rolled back.",
    )
    first_token_p95_ms: float | None = Field(
        default=500.0,
        gt=0,
        title="p95 time to first token, at most (ms)",
        description="Nineteen of twenty streamed answers begin within this time; leave it empty where nobody streams.",
    )
    slower_than_stable: float = Field(
        default=1.5,
        ge=1,
        title="Slower than stable, at most (times)",
        description="How many times stable's p95 time to first token the candidate's may be.",
    )
    first_token_margin_ms: float = Field(
        default=100.0,
        ge=0,
        title="Slower than stable, without harm (ms)",
        description="A p95 time to first token that is later than stable's by less than this never counts as slower.",
    )
    minimum_requests: int = Field(
        default=100,
        ge=1,
        title="Requests a stage, at least",
        description="A stage in which the candidate answered fewer requests than this never passes.",
    )

    @property
    def stores(self) -> tuple[Store, ...]:
        """The service's own store first."""
        return (self.store, *self.further_stores)

    @property
    def engine(self) -> Engine:
        """How this service's replicas are asked directly."""
        return OpenAIEngine()
