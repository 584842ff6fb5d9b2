"""A fleet, where replicas run: what Skyferry asks of it, and the frozen values that cross."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, Self

from blocks.ports.market import Offer

ModelKind = Literal["chat", "completion", "embedding", "rerank"]
"""What a model is asked for: that decides how it is seen to be ready, probed, judged and sized."""

POOLING: frozenset[ModelKind] = frozenset({"embedding", "rerank"})
"""Kinds that generate nothing: a whole input is pooled into a vector or a score, so there is no first token."""


@dataclass(frozen=True)
class EngineBuild:
    """What a replica runs beside the model: all that makes it what it is, so that one started in a month is the same.

    Hashes are SHA-256 in hexadecimal, of texts that the service's store keeps under them.
    """

    name: str
    """As the registry of engines has it, such as `vllm`; empty where a task starts an engine that it does not know."""
    version: str = ""
    """Empty where the task alone knows."""
    flags: tuple[tuple[str, str], ...] = ()
    """Beside those of the task: names without dashes, sorted, each with its value in JSON."""
    environment: tuple[tuple[str, str], ...] = ()
    """Beside that of the task, sorted by name."""
    task: str = ""
    """The hash of the task's text; empty where the engine is started without one."""
    files: tuple[tuple[str, str], ...] = ()
    """What the task puts on the machine: the path there, and the hash of what lies under it."""


@dataclass(frozen=True)
class EngineChoice:
    """The engine that somebody asks for; what is empty is left to the fleet."""

    name: str = ""
    version: str = ""
    flags: Mapping[str, object] = field(default_factory=dict)
    """Names without dashes; values as in JSON."""
    environment: Mapping[str, str] = field(default_factory=dict)
    task: str = ""


@dataclass(frozen=True)
class ResolvedEngine:
    """What a choice comes to in one fleet today."""

    build: EngineBuild
    texts: Mapping[str, bytes] = field(default_factory=dict)
    """By their hash, what a replica of it is started from, and what has to be kept for as long as its releases are."""
    warnings: tuple[str, ...] = ()
    """Sentences for whoever releases it."""


@dataclass(frozen=True)
class EngineSettings:
    """How the engine is started; part of what makes a release the release that it is."""

    context_tokens: int
    """The longest prompt plus answer that one request may have."""
    parallel_requests: int
    """How many requests one replica answers at the same time; further ones wait."""
    kind: ModelKind = "chat"
    """Releases of version 0.1 name none, and were all of this one."""
    build: EngineBuild | None = None
    """None in a release that version 0.1 opened: it runs what its fleet's block says."""


@dataclass(frozen=True)
class ReplicaOrder:
    """One replica that should exist. The name is derived from the release and a number, so that a retry adopts it."""

    name: str
    service: str
    release: str
    mirror_prefix: str
    """The key prefix of the mirror in the fleet's store, ending in a slash."""
    engine: EngineSettings
    disk_bytes: int = 0
    """What the replica fills of its machine's disk, beside the system; 0 where nobody has worked it out."""


@dataclass(frozen=True)
class Replica:
    """One running copy of the engine."""

    name: str
    service: str
    release: str
    cell: str
    address: str
    """`host:port` of its OpenAI-compatible endpoint, as the gateway reaches it; empty while it has none yet."""
    is_tls: bool = False
    """It speaks TLS, with a certificate that the fleet's authority vouches for, and wants the release's key."""
    launched_at: float | None = None
    """Unix seconds; None where the fleet does not know."""
    dollars_per_hour: float | None = None
    """What it costs; None where the fleet does not know."""


class Fleet(Protocol):
    """Something that runs replicas."""

    def of_installation(self, installation: str, inherited: Collection[str] = ()) -> Self:
        """It, as one installation acts on it: what is another one's is never listed, adopted or stopped.

        `inherited` are releases whose replicas may be from a time when none was marked: these are its own as well.
        Without an installation only what is not marked can be seen and acted on.
        """
        ...

    def resolve_engine(self, choice: EngineChoice, earlier: Collection[EngineBuild] = ()) -> ResolvedEngine:
        """What replicas would be made of today. Starts and writes nothing.

        What has to be resolved for a version is taken from an `earlier` build of it, so that a release is the one that
        it was. Refused where that engine is not to be had here, or flags or environment are not as it, or Skyferry,
        needs them.
        """
        ...

    def launch(self, order: ReplicaOrder, offer: Offer) -> Replica:
        """Start the replica on that offer, or adopt the one of that name wherever it is; it need not be ready yet.

        Refused where the engine that the order records is to be had no more.
        Raises NoCapacity, with nothing left there, where the cell cannot or will not give it.
        """
        ...

    def replicas(self, service: str) -> tuple[Replica, ...]:
        """Every replica of the service that exists, of any release."""
        ...

    def stop(self, name: str) -> None:
        """End the replica and see that it is gone; gone already is no error."""
        ...

    def has_ended(self, name: str) -> bool:
        """Whether its engine ended by itself, where it is known that its machine did not: no retry mends that."""
        ...

    def log_tail(self, name: str) -> str:
        """The last lines that the replica printed; empty where there are none."""
        ...

    def key_of(self, release: str) -> str | None:
        """The API key that the release's replicas ask for; None where they ask for none."""
        ...
