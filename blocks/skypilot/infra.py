"""What SkyPilot knows of the places that can be rented in: who lets us in, which clusters there are, what they hold."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from pydantic import BaseModel, Field

from blocks.cleaning import COLOURS
from blocks.errors import Refused, Unavailable
from blocks.ports.market import ON_PROCESSORS
from blocks.skypilot.sdk import skypilot

Kind = Literal["slurm", "k8s"]
"""The clouds whose machines stand there already: their cells are counted, not looked up in a catalogue."""

KINDS: tuple[Kind, ...] = ("k8s", "slurm")
NAMED_OTHERWISE = {"kubernetes": "k8s"}
WORDS_AT_MOST = 300
KEY_REFUSED = ("permission denied", "too many authentication failures", "host key verification failed")
"""What ssh says where it lets nobody in."""

SSH_FAILED = 255
"""How ssh ends where it, and not the command over there, has failed."""


@dataclass(frozen=True)
class Place:
    """A cell's name, or the first part of one."""

    cloud: str
    region: str | None = None
    """Also the name of a Slurm cluster or a Kubernetes context."""
    zone: str | None = None
    """Also the name of a Slurm partition."""

    @classmethod
    def parse(cls, cell: str) -> "Place":
        """Refused where the name has an empty part, or more parts than a cell can have."""
        cloud, *rest = (part.strip() for part in cell.split("/"))
        cloud = NAMED_OTHERWISE.get(cloud.lower(), cloud.lower())
        if cloud == "k8s" and rest:
            rest = ["/".join(rest)]  # the contexts of EKS have slashes in their names
        if not cloud or not all(rest) or len(rest) > len(("region", "zone")):
            raise Refused(f"{cell!r} is no cell; write cloud, cloud/region or cloud/region/zone, as aws/us-east-1")
        return cls(cloud, *rest)

    def __str__(self) -> str:
        return "/".join(part for part in (self.cloud, self.region, self.zone) if part)


class Rate(BaseModel, frozen=True):
    """What a Slurm or Kubernetes cluster costs, as whoever pays for it counts."""

    cell: str = Field(
        pattern=r"^(slurm|k8s)(/.+)?$",
        title="Cell",
        description="Where it holds: slurm, slurm/alpha, slurm/alpha/<partition>, k8s or k8s/<context>; "
        "the longest name that fits wins.",
    )
    accelerator: str = Field(
        default=ON_PROCESSORS,
        title="Accelerator",
        description="What it is the rate of, as L4 or A100-80GB; CPU is for replicas on processors alone.",
    )
    dollars_per_accelerator_hour: float | None = Field(
        default=None,
        ge=0,
        title="Dollars an accelerator and hour",
        description="All that one accelerator costs, its share of the host included; leave it empty for CPU.",
    )
    dollars_per_cpu_hour: float | None = Field(
        default=None,
        ge=0,
        title="Dollars a processor and hour",
        description="What one virtual processor costs where a replica runs on processors alone.",
    )
    dollars_per_gib_hour: float | None = Field(
        default=None,
        ge=0,
        title="Dollars a GiB and hour",
        description="What one GiB of host memory costs where a replica runs on processors alone.",
    )
    accelerator_gib: float | None = Field(
        default=None,
        gt=0,
        title="Memory of the accelerator (GiB)",
        description="Needed only for accelerators that SkyPilot's catalogue does not know.",
    )


@dataclass(frozen=True)
class Node:
    """One machine of a cluster, now."""

    partitions: tuple[str, ...]
    accelerator: str | None
    accelerators: int
    free_accelerators: int | None
    """None where the cluster does not let us count."""
    processors: float | None
    free_processors: float | None
    gib: float | None


class Infra(Protocol):
    """What a market asks SkyPilot."""

    def enabled(self) -> tuple[Place, ...]:
        """The clouds that let us in, and the clusters that are set up."""
        ...

    def refusal(self, cloud: str) -> str | None:
        """Why we may not rent in that cloud, in one line; None where we may."""
        ...

    def clusters(self, kind: Kind) -> tuple[str, ...]:
        """The Slurm clusters, or Kubernetes contexts, that are set up; whether they answer is another matter."""
        ...

    def nodes(self, kind: Kind, name: str) -> tuple[Node, ...]:
        """Refused where the login refuses us, Unavailable where nothing answers."""
        ...

    def rates(self, place: Place) -> tuple[Rate, ...]:
        """What SkyPilot's own settings say of a cluster's prices."""
        ...


class SkyPilotInfra:
    """Asks the SkyPilot of this process's settings: its files where its API server is local, else that server."""

    def enabled(self) -> tuple[Place, ...]:
        sky = skypilot()
        if not _is_local():
            named: Iterable[str] = sky.get(sky.client.sdk.enabled_clouds(expand=True))
            return tuple(Place.parse(name) for name in named)
        found = sky.global_user_state.get_cached_enabled_clouds(
            sky.clouds.CloudCapability.COMPUTE, sky.skypilot_config.get_active_workspace()
        )
        names = [cloud.canonical_name() for cloud in found]
        public = [Place(name) for name in names if NAMED_OTHERWISE.get(name, name) not in KINDS]
        return (*public, *(Place(kind, name) for kind in KINDS for name in self.clusters(kind)))

    def refusal(self, cloud: str) -> str | None:
        sky = skypilot()
        if any(place.cloud == cloud for place in self.enabled()):
            return None
        if not _is_local():
            return "the SkyPilot API server has not enabled it"
        found = sky.utils.registry.CLOUD_REGISTRY.from_str(cloud)
        is_open, why = found.check_credentials(sky.clouds.CloudCapability.COMPUTE)
        first = str(why).partition("\n")[0]  # a manual follows
        return None if is_open else _in_one_line(first.removesuffix(" Run the following commands:")).rstrip(".:")

    def clusters(self, kind: Kind) -> tuple[str, ...]:
        if _is_local():
            return _set_up_here(kind)
        # A cluster that this machine's files know too need not have answered that server yet.
        served = [place.region for place in self.enabled() if place.cloud == kind and place.region]
        return tuple(sorted({*served, *_set_up_here(kind)}))

    def nodes(self, kind: Kind, name: str) -> tuple[Node, ...]:
        sky = skypilot()
        try:
            if kind == "slurm":
                found = slurm_nodes(sky.get(sky.client.sdk.slurm_node_info(slurm_cluster_name=name)))
            else:
                found = kubernetes_nodes(sky.get(sky.client.sdk.kubernetes_node_info(context=name)))
        except Exception as error:  # noqa: BLE001 - SkyPilot raises whatever its own parts raise
            raise translation(kind, name, error) from None
        if not found:
            raise Unavailable(f"{kind}/{name} names no nodes; try `sky check {kind}`")
        return found

    def rates(self, place: Place) -> tuple[Rate, ...]:
        cloud, part = ("slurm", "cluster_configs") if place.cloud == "slurm" else ("kubernetes", "context_configs")
        paths: list[tuple[str, ...]] = [(cloud, "pricing")]
        if place.region:
            paths.append((cloud, part, place.region, "pricing"))
        if place.region and place.zone:
            paths.append((cloud, part, place.region, "partition_configs", place.zone, "pricing"))
        return rates_of(place, skypilot().catalog.common.resolve_pricing_config(*paths))


def slurm_nodes(answer: Iterable[Mapping[str, Any]]) -> tuple[Node, ...]:
    """SkyPilot's list of a Slurm cluster's nodes."""
    return tuple(
        Node(
            partitions=tuple(node["partition"].replace("*", "").split(",")),
            accelerator=node["gpu_type"],
            accelerators=node["total_gpus"],
            free_accelerators=node["free_gpus"],
            processors=node["vcpu_count"],
            free_processors=node["free_vcpus"],
            gib=node["memory_gb"] or None,  # Slurm says 0 where its administrator set none
        )
        for node in answer
    )


def kubernetes_nodes(answer: Any) -> tuple[Node, ...]:
    """SkyPilot's account of a Kubernetes cluster's nodes; what is not ready, cordoned or tainted has nothing free."""
    return tuple(
        Node(
            partitions=(),
            accelerator=node.accelerator_type if node.total.get("accelerator_count") else None,
            accelerators=node.total.get("accelerator_count", 0),
            free_accelerators=free if (free := node.free.get("accelerators_available", 0)) >= 0 else None,
            processors=node.cpu_count,
            free_processors=node.cpu_free if node.is_ready and not node.is_cordoned else 0,
            gib=node.memory_gb,
        )
        for node in answer.node_info_dict.values()
    )


def rates_of(place: Place, pricing: Mapping[str, Any]) -> tuple[Rate, ...]:
    """SkyPilot's pricing of a cluster as rates. It takes what is not named for free; here that has no rate."""
    accelerators = [
        Rate(cell=str(place), accelerator=name, dollars_per_accelerator_hour=dollars)
        for name, dollars in (pricing.get("accelerators") or {}).items()
    ]
    if "cpu" not in pricing and "memory" not in pricing:
        return tuple(accelerators)
    processors = Rate(
        cell=str(place),
        dollars_per_cpu_hour=pricing.get("cpu"),
        dollars_per_gib_hour=pricing.get("memory"),
    )
    return (*accelerators, processors)


def translation(kind: Kind, name: str, error: Exception) -> Refused | Unavailable:
    """What SkyPilot raised when it was asked for a cluster's nodes."""
    detail = getattr(error, "detailed_reason", None) or ""  # what ssh or Slurm said
    words = _in_one_line(f"{error}: {detail}" if detail.strip() and detail.strip() not in str(error) else str(error))
    # Where ssh lets nobody in, SkyPilot tries again at a terminal, and that loses ssh's words; all else it hands on.
    is_refused = getattr(error, "returncode", None) == SSH_FAILED and not detail.strip()
    if is_refused or any(sign in words.lower() for sign in KEY_REFUSED):
        return Refused(f"{kind}/{name} refuses the login: {words}; mend its key, then run `sky check {kind}`")
    return Unavailable(f"{kind}/{name} does not answer: {words}; `sky check {kind}` may say more")


def _set_up_here(kind: Kind) -> tuple[str, ...]:
    clouds = skypilot().clouds
    if kind == "slurm":
        return tuple(sorted(clouds.Slurm.existing_allowed_clusters(silent=True)))
    try:
        contexts = clouds.Kubernetes.existing_allowed_contexts(silent=True)
    except ImportError:  # SkyPilot without its Kubernetes part knows no context
        return ()
    # Within a pod SkyPilot names the pod's own cluster with None, which no cell can be called.
    return tuple(sorted(name for name in contexts if name))


def _is_local() -> bool:
    return skypilot().server.common.is_api_server_local()


def _in_one_line(words: str) -> str:
    line = " ".join(COLOURS.sub("", words).split())
    return line if len(line) <= WORDS_AT_MOST else line[:WORDS_AT_MOST] + " …"
