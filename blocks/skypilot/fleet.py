"""Replicas as SkyPilot's clusters: in public clouds, on Kubernetes, on Slurm."""

import json
import logging
import secrets
import shlex
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from threading import Lock, Thread
from time import monotonic
from typing import Any, Self

from filelock import FileLock
from prefect.blocks.core import Block
from pydantic import ConfigDict, Field, HttpUrl, PrivateAttr, field_validator

from blocks.engines.block import check_task
from blocks.engines.known import words
from blocks.engines.openai import OpenAIEngine
from blocks.errors import NoCapacity, Refused, SkyferryError, Unavailable, Unexplained
from blocks.fields import OfItsKind, Secret
from blocks.files import write_atomically
from blocks.on_machine.node import CannotServe, File, encode_files
from blocks.ports.fleet import (
    POOLING,
    EngineBuild,
    EngineChoice,
    EngineSettings,
    Replica,
    ReplicaOrder,
    ResolvedEngine,
)
from blocks.ports.market import Offer, Stock, is_within
from blocks.ports.store import Store
from blocks.replica_tls import Authority, new_identity, release_key
from blocks.skypilot.blame import find_ours, who_is_to_blame
from blocks.skypilot.clusters import Cluster, SkyPilot, not_the_cell, reason
from blocks.skypilot.disk import disk_size
from blocks.skypilot.engine import resolve, task_of
from blocks.skypilot.infra import Rate
from blocks.skypilot.market import SkyPilotMarket
from blocks.skypilot.names import cluster_name
from blocks.skypilot.sdk import speak_with
from blocks.stores.kinds import AnyStore
from blocks.stores.mirrors import MirroredFile, files_of, manifest_of

SECRETS = "~/skyferry/secrets.sh"
"""Where the machine finds what nobody else may know."""
KIND = "SKYFERRY_KIND"
"""By which a task is told of what kind the model is; those of version 0.1 do not know it."""
READ_SECONDS = 1
ASKED_SIDE_BY_SIDE = 16
"""Engines; one that is silent takes seconds."""
LOG_LINES = 50
SLURM = "slurm/"


class SkyPilotFleet(OfItsKind, Block):
    """Runs each replica as a cluster of SkyPilot's, wherever SkyPilot can rent one."""

    _block_type_name = "SkyPilot Fleet"
    _block_type_slug = "skypilot-fleet"
    _documentation_url = HttpUrl("https://docs.skypilot.co")
    model_config = ConfigDict(hide_input_in_errors=True)

    directory: Path = Field(
        title="Directory",
        description="Where this machine keeps the last words of replicas that are gone, and whose turn it is.",
    )
    store: AnyStore = Field(
        title="Store", description="The bucket that holds the mirrors of the models, as the rented machines reach it."
    )
    further_stores: list[AnyStore] = Field(
        default_factory=list,
        title="Further stores",
        description="Other buckets with mirrors, as the rented machines reach them: a machine reads from the one whose "
        "Near names its cell most exactly, if the whole mirror is there, and from Store otherwise.",
    )
    task: str = Field(
        default="",
        title="Task",
        description="The engine as a SkyPilot task in YAML, without a place to run, for services that have no Engine "
        "block, and for releases of version 0.1; left empty, the task of the service's engine.",
    )
    authority: Authority | None = Field(
        default=None,
        title="Authority",
        description="What vouches for the replicas; without it they speak plain HTTP and ask for no key, "
        "which is for loopback only.",
    )
    api_server: Secret = Field(
        default=None,
        title="API server",
        description="The address of SkyPilot's API server, with the password if it has one in it; left empty, "
        "the one that SkyPilot's own settings name, or one that is started on this machine.",
    )
    rates: tuple[Rate, ...] = Field(
        default=(),
        title="Rates",
        description="What Slurm and Kubernetes clusters cost: nothing is ever placed where nobody has named a price.",
    )
    port: int = Field(
        default=8000,
        ge=1024,
        le=65535,
        title="Port",
        description="The port of a replica that has its machine for itself; the gateway has to reach it.",
    )
    slurm_first_port: int = Field(
        default=20_000,
        ge=1024,
        le=65535,
        title="First port on Slurm",
        description="Replicas on a Slurm node share its ports and get one each, from this one on.",
    )
    slurm_last_port: int = Field(
        default=29_999,
        ge=1024,
        le=65535,
        title="Last port on Slurm",
        description="The last port that a replica on a Slurm node may get.",
    )
    launch_timeout_seconds: float = Field(
        default=1800,
        gt=0,
        title="Time for a launch (s)",
        description="A cell that has not given a machine and set it up by then counts as one without capacity.",
    )
    # It looks at the job alone and the engine is the job, so an engine that nobody asks anything is not idle.
    autodown_minutes: int | None = Field(
        default=10,
        ge=1,
        title="Given back after (min)",
        description="A machine whose engine has ended is given back by itself so many minutes later, "
        "even if nobody looks; left empty, it is kept.",
    )
    refresh_seconds: float = Field(
        default=30,
        ge=0,
        title="Looked after every (s)",
        description="How often each engine is asked whether it is well, and SkyPilot and the clouds about those that "
        "did not answer twice in a row.",
    )
    address_hours: int = Field(
        default=24,
        ge=1,
        le=168,
        title="Weights can be fetched for (h)",
        description="How long the signed addresses hold at which a machine reads the weights.",
    )

    _installation: str = PrivateAttr(default="")
    _inherited: frozenset[str] = PrivateAttr(default=frozenset())

    @field_validator("task")
    @classmethod
    def _is_a_task(cls, task: str) -> str:
        return check_task(task) if task else task

    def of_installation(self, installation: str, inherited: Collection[str] = ()) -> Self:
        fleet = self.model_copy()
        fleet._installation, fleet._inherited = installation, frozenset(inherited)  # noqa: SLF001 - its own
        return fleet

    def offers(self, cells: Sequence[str], accelerators: Sequence[str]) -> tuple[Offer, ...]:
        return self._market.offers(cells, accelerators)

    def stock(self, offers: Sequence[Offer]) -> tuple[Stock, ...]:
        return self._market.stock(offers)

    def resolve_engine(self, choice: EngineChoice, earlier: Collection[EngineBuild] = ()) -> ResolvedEngine:
        return resolve(choice, self.task, self.store, earlier)

    def launch(self, order: ReplicaOrder, offer: Offer) -> Replica:
        """Start or adopt the replica; returns once its machine is set up and the engine's job was handed to it."""
        called = self._called(order.name)
        with FileLock(self._home / f"{called}.lock"):
            adopted = self._adopt(order.name)
            # With secrets in it, where a launch was killed.
            shutil.rmtree(self._sent(called), ignore_errors=True)
            if adopted is not None:
                return adopted
            with self._turn(offer.cell):
                self._start(order, offer)
            self._watch.forget()
            if (started := self._standing(order.name)) is not None:
                return self._replica(started)
            raise Unavailable(f"replica {order.name} was launched in {offer.cell} and is gone already; try again")

    def replicas(self, service: str) -> tuple[Replica, ...]:
        """From what SkyPilot last heard, a second old at most; they are looked after every `refresh_seconds`.

        A machine whose engine has ended counts as none: it is replaced by the next launch, or gives itself back.
        """
        own = map(self._replica, filter(self._is_own, self._listed()))
        return tuple(replica for replica in own if replica.service == service)

    def every_replica(self) -> tuple[Replica, ...]:
        """Those of every service and installation that SkyPilot's API server knows of."""
        return tuple(map(self._replica, self._listed()))

    def stop(self, name: str) -> None:
        """Take it down, also in the middle of a launch; the cloud itself has been asked once this returns."""
        skypilot, called = self._skypilot, self._called(name)
        skypilot.cancel_launch(called)
        if (cluster := self._standing(name)) is None:
            return
        self._keep_log(cluster.name)
        try:
            skypilot.down(cluster.name)
        except Unavailable as error:
            raise Unavailable(f"replica {name} may still run: {error}") from None
        self._watch.forget()
        if self._standing(name) is not None:
            raise Unavailable(f"replica {name} ({cluster.name}) was taken down and is still there; try again")

    def has_ended(self, name: str) -> bool:
        """Its job has, on a machine that is there to say so."""
        cluster = self._standing(name)
        return cluster is not None and cluster.is_up and self._skypilot.jobs([cluster])[cluster.hash] == "ended"

    def log_tail(self, name: str) -> str:
        cluster = self._standing(name)
        printed = self._skypilot.log_tail(cluster.name, LOG_LINES) if cluster and cluster.is_up else None
        if printed:
            return printed
        kept = self._log(cluster.name if cluster else self._called(name))
        return kept.read_text() if kept.exists() else ""

    def key_of(self, release: str) -> str | None:
        return None if self.authority is None else release_key(self.authority, release)

    @property
    def replica_ca(self) -> str | None:
        """The authority that vouches for its replicas, in PEM; None where nothing does."""
        return None if self.authority is None else self.authority.certificate

    def _called(self, name: str) -> str:
        return cluster_name(self._installation, name)

    def _listed(self) -> list[Cluster]:
        found = self._watch.clusters(self.refresh_seconds, self._answers)
        return sorted(found, key=lambda cluster: (cluster.metadata["SKYFERRY_REPLICA"], cluster.name))

    def _is_own(self, cluster: Cluster) -> bool:
        """It says so; or it says nothing, being older than that, and its release is one of ours from that time."""
        whose = _installation_of(cluster)
        return whose == self._installation or (not whose and cluster.metadata["SKYFERRY_RELEASE"] in self._inherited)

    def _standing(self, name: str) -> Cluster | None:
        """The cluster of that replica of ours, by whatever name; Refused where a stranger has the name."""
        clusters, called = self._skypilot.clusters(), self._called(name)
        own = [c for c in clusters if _is_a_replica(c) and c.metadata["SKYFERRY_REPLICA"] == name and self._is_own(c)]
        if not own and any(cluster.name == called for cluster in clusters):
            raise Refused(
                f"a cluster called {called}, as {name} would be, is not Skyferry's; end it: `sky down {called}`"
            )
        return min(own, key=lambda cluster: cluster.name != called, default=None)

    def _adopt(self, name: str) -> Replica | None:
        """The replica of that name, wherever it is; what is left of one, after a half or an end, is taken down."""
        skypilot = self._skypilot
        skypilot.wait_for_launch(self._called(name), self.launch_timeout_seconds)
        if (known := self._standing(name)) is None:
            return None
        if known.is_up and self._answers(known):
            return self._replica(known)
        job = skypilot.jobs([known])[known.hash] if known.is_up else "none"
        if job == "unknown" and not skypilot.look_up([known.name]):
            self._watch.forget()
            return None
        if job in {"going on", "unknown"}:
            return self._replica(known)
        self.stop(name)
        return None

    def _start(self, order: ReplicaOrder, offer: Offer) -> None:
        called = self._called(order.name)
        sent = self._sent(called)
        try:
            task = self._task(order, offer, self._port(offer.cell), sent)
            self._skypilot.launch(
                called, task, autodown_minutes=self.autodown_minutes, timeout_seconds=self.launch_timeout_seconds
            )
        except (Refused, Unavailable):
            raise
        except Exception as error:  # noqa: BLE001 - SkyPilot raises whatever its own parts raise
            if (lost := not_the_cell(error)) is not None:
                raise lost from None  # it may have been launched: the next try finds it
            raise self._why_not(order, offer, error) from None
        finally:
            shutil.rmtree(sent, ignore_errors=True)

    def _why_not(self, order: ReplicaOrder, offer: Offer, error: Exception) -> SkyferryError:
        """What SkyPilot's error means, with nothing left behind."""
        if (own := find_ours(error)) is None:
            self.stop(order.name)
            if isinstance(error, TimeoutError):
                return NoCapacity(offer.cell, f"no machine was ready within {self.launch_timeout_seconds:g} s")
            is_known = who_is_to_blame(error) == "the cell's"
            return (NoCapacity if is_known else Unexplained)(offer.cell, reason(error))
        refusal = (
            f"{order.name} cannot be launched, and that is no matter of {offer.cell}: {type(own).__name__}: "
            f"{reason(own)}; mend the credentials, the account or the task that it names (`sky check` tells of the "
            f"first two), and run this again; nothing else was asked"
        )
        try:
            self.stop(order.name)
        except Unavailable as left:
            refusal = f"{refusal}; what was begun may still be there: {left}"
        return Refused(refusal)

    def _task(self, order: ReplicaOrder, offer: Offer, port: int, sent: Path) -> Mapping[str, Any]:
        """The engine's task with a place, a name, and all that the machine has to know."""
        started = task_of(order, self.task, self.store, self._make(sent))
        task = started.parsed
        if order.engine.kind in POOLING and KIND not in task["run"]:
            raise Refused(
                f"the engine's task does not read {KIND}, so it would be started for chats and {order.name} is of kind "
                f"{order.engine.kind!r}; release the model with the task of this version, from deployments/engines"
            )
        names = {"service": order.service, "release": order.release, "replica": order.name}
        names |= {"installation": self._installation} if self._installation else {}
        given = {name: value for name, value in (task.get("resources") or {}).items() if name != "accelerators"}
        return {
            **{name: value for name, value in task.items() if name != "secrets"},
            "name": order.name,
            "resources": {
                **given,
                **disk_size(given, order, offer),
                "infra": offer.cell,
                "labels": {**(given.get("labels") or {}), **{f"skyferry-{what}": name for what, name in names.items()}},
                **({"accelerators": {offer.accelerator: offer.accelerators}} if offer.accelerators else {}),
                **({"instance_type": offer.instance} if offer.instance else {}),
                **({"use_spot": True} if offer.use_spot else {}),
                **({} if offer.cell.startswith(SLURM) else {"ports": port}),  # there nothing is closed
            },
            "envs": {
                **(task.get("envs") or {}),
                **_metadata(order, offer, port, is_tls=self.authority is not None),
                "SKYFERRY_INSTALLATION": self._installation,
            },
            "file_mounts": {
                **started.mounts,
                SECRETS: str(self._write_secrets(order, offer.cell, sent)),
            },
            # SkyPilot's own secrets stand on the command lines of a Slurm node, where each of its users can read them.
            "run": f". {SECRETS}\n{task['run']}",
        }

    def _nearest_mirror(self, order: ReplicaOrder, cell: str, files: Collection[MirroredFile]) -> Store:
        """The store that has all these files and is said to be nearest to the cell."""
        stores = (self.store, *self.further_stores)
        near = [(len(name), store) for store in stores for name in store.near if is_within(cell, name)]
        for _, store in sorted(near, key=itemgetter(0), reverse=True):
            try:
                if (found := manifest_of(store, order.mirror_prefix)) is not None and {*files} <= {*found.files}:
                    return store
            except (Unavailable, Refused) as error:
                logging.getLogger(__name__).warning("%s reads its weights from farther away: %s", order.name, error)
        return self.store

    @staticmethod
    def _make(sent: Path) -> Path:
        """For this user's eyes only."""
        sent.mkdir(mode=0o700, parents=True)
        return sent

    def _write_secrets(self, order: ReplicaOrder, cell: str, sent: Path) -> Path:
        """Hashes are what the service's own store says, whichever store the bytes come from."""
        mirrored = files_of(self.store, order.mirror_prefix)
        store = self._nearest_mirror(order, cell, mirrored)
        try:
            files = encode_files(
                [
                    File(
                        path=file.path,
                        size_bytes=file.size_bytes,
                        sha256=file.sha256,
                        url=store.presigned_url(order.mirror_prefix + file.path, self.address_hours * 3600),
                    )
                    for file in mirrored
                ]
            )
        except CannotServe as error:
            raise Refused(str(error)) from None
        values = {"SKYFERRY_FILES": files, **_for_the_engine(order.engine.build)}
        if self.authority is not None:
            identity = new_identity(self.authority, datetime.now(UTC))
            values |= {
                "SKYFERRY_CERTIFICATE": identity.certificate,
                "SKYFERRY_PRIVATE_KEY": identity.private_key.get_secret_value(),
                "SKYFERRY_API_KEY": release_key(self.authority, order.release),
            }
        path = sent / "secrets.sh"
        path.touch(mode=0o600)
        path.write_text("".join(f"export {name}={shlex.quote(value)}\n" for name, value in values.items()))
        return path

    def _port(self, cell: str) -> int:
        """On Slurm one that no other replica there has; by chance, so that the next try misses a stranger's."""
        if not cell.startswith(SLURM):
            return self.port
        taken = {
            cluster.metadata.get("SKYFERRY_PORT")
            for cluster in self._skypilot.clusters()
            if cluster.metadata.get("SKYFERRY_CELL", "").startswith(_slurm_cluster(cell))
        }
        free = [port for port in range(self.slurm_first_port, self.slurm_last_port + 1) if str(port) not in taken]
        if not free:
            raise Refused(
                f"every port from {self.slurm_first_port} to {self.slurm_last_port} is a replica's on {cell}; "
                f"allow the fleet more ports"
            )
        return secrets.choice(free)

    @contextmanager
    def _turn(self, cell: str) -> Iterator[None]:
        """One launch at a time on a Slurm cluster: SkyPilot's daemons there race for a port, and engines would."""
        lock = self._home / f"{_slurm_cluster(cell).replace('/', '-')}.turn"
        with FileLock(lock) if cell.startswith(SLURM) else nullcontext():
            yield

    def _replica(self, cluster: Cluster) -> Replica:
        metadata = cluster.metadata
        dollars = metadata["SKYFERRY_DOLLARS_PER_HOUR"]
        return Replica(
            name=metadata["SKYFERRY_REPLICA"],
            service=metadata["SKYFERRY_SERVICE"],
            release=metadata["SKYFERRY_RELEASE"],
            cell=metadata["SKYFERRY_CELL"],
            address=self._address(cluster),
            is_tls=metadata["SKYFERRY_IS_TLS"] == "yes",
            launched_at=cluster.launched_at,
            dollars_per_hour=float(dollars) if dollars else None,
        )

    def _address(self, cluster: Cluster) -> str:
        if not cluster.is_up or not cluster.host:
            return ""
        if cluster.metadata["SKYFERRY_CELL"].startswith(SLURM):  # of whose endpoints SkyPilot says nothing
            return f"{cluster.host}:{cluster.metadata['SKYFERRY_PORT']}"
        return self._watch.endpoint(cluster, int(cluster.metadata["SKYFERRY_PORT"]))

    def _answers(self, cluster: Cluster) -> bool:
        """Its engine does, so its machine is there and its job goes on: nobody else need be asked."""
        with suppress(Refused, Unavailable):
            replica = self._replica(cluster)
            return bool(replica.address) and OpenAIEngine(self.key_of, self.replica_ca).is_healthy(replica)
        return False

    def _keep_log(self, called: str) -> None:
        with suppress(Unavailable):  # a machine that answers nobody is taken down all the same
            if printed := self._skypilot.log_tail(called, LOG_LINES):
                self._home.mkdir(parents=True, exist_ok=True)
                write_atomically(self._log(called), printed)

    @property
    def _market(self) -> SkyPilotMarket:
        speak_with(self.api_server)
        return SkyPilotMarket(rates=self.rates)

    @property
    def _skypilot(self) -> SkyPilot:
        return SkyPilot(self.api_server)

    @property
    def _watch(self) -> "Watch":
        return _watch_of(self._skypilot)

    @property
    def _home(self) -> Path:
        return self.directory / "skypilot"

    def _log(self, called: str) -> Path:
        return self._home / f"{called}.log"

    def _sent(self, called: str) -> Path:
        return self._home / "sent" / called


class Watch:
    """What stands, asked about once a second for everybody in this process; whether it still runs, now and then."""

    def __init__(self, skypilot: SkyPilot) -> None:
        self._skypilot = skypilot
        self._reading, self._refreshing = Lock(), Lock()
        self._read: tuple[Cluster, ...] = ()
        self._read_at = self._refreshed_at = float("-inf")
        self._ended: frozenset[str] = frozenset()
        self._silent: frozenset[str] = frozenset()
        self._endpoints: dict[str, str] = {}

    def clusters(self, refresh_seconds: float, answers: Callable[[Cluster], bool]) -> tuple[Cluster, ...]:
        """Skyferry's, without those whose job has ended. Nobody waits for the clouds: what they say shows later."""
        if monotonic() - self._refreshed_at >= refresh_seconds and self._refreshing.acquire(blocking=False):
            Thread(target=self._refresh, args=(answers,), name="skypilot-refresh", daemon=True).start()
        with self._reading:
            if monotonic() - self._read_at >= READ_SECONDS:
                self._read = tuple(filter(_is_a_replica, self._skypilot.clusters()))
                self._read_at = monotonic()
            return tuple(cluster for cluster in self._read if cluster.hash not in self._ended)

    def endpoint(self, cluster: Cluster, port: int) -> str:
        """Asked until there is one: a cluster keeps it."""
        if not (known := self._endpoints.get(cluster.hash, "")):
            known = self._endpoints[cluster.hash] = self._skypilot.endpoint(cluster.name, port)
        return known

    def forget(self) -> None:
        """Something was launched or taken down."""
        self._read_at = float("-inf")

    def _refresh(self, answers: Callable[[Cluster], bool]) -> None:
        """Minutes where a cluster answers nobody. What nobody can be asked about counts as being there."""
        try:
            running = [cluster for cluster in self._skypilot.clusters() if cluster.is_up and _is_a_replica(cluster)]
            # SkyPilot starts two Pythons on a machine to say how its job is; an engine that answers has said it.
            with ThreadPoolExecutor(ASKED_SIDE_BY_SIDE) as pool:
                well = [*pool.map(answers, running)]
            silent = [cluster for cluster, is_well in zip(running, well, strict=True) if not is_well]
            # For the second time in a row: an engine that was just launched is about to answer.
            asked = [cluster for cluster in silent if cluster.hash in self._silent]
            self._silent = frozenset(cluster.hash for cluster in silent)
            jobs = self._skypilot.jobs(asked)
            self._ended = frozenset(key for key, job in jobs.items() if job == "ended")
            # A machine that has told of its job is there; of the others their cloud has to tell, which takes longer.
            self._skypilot.look_up([cluster.name for cluster in asked if jobs[cluster.hash] == "unknown"])
        except (Refused, Unavailable) as error:
            logging.getLogger(__name__).warning("What SkyPilot's clusters do is not known: %s", error)
        finally:
            self._refreshed_at = monotonic()
            self.forget()
            self._refreshing.release()


# Prefect pickles a block for every task, and all its copies in a process share what was read.
@lru_cache(maxsize=4)
def _watch_of(skypilot: SkyPilot) -> Watch:
    return Watch(skypilot)


def _metadata(order: ReplicaOrder, offer: Offer, port: int, *, is_tls: bool) -> Mapping[str, str]:
    """What the machine is told, and what SkyPilot tells again whoever asks for its clusters."""
    engine: EngineSettings = order.engine
    return {
        "SKYFERRY_SERVICE": order.service,
        "SKYFERRY_RELEASE": order.release,
        "SKYFERRY_REPLICA": order.name,
        "SKYFERRY_CELL": offer.cell,
        "SKYFERRY_DOLLARS_PER_HOUR": "" if offer.dollars_per_hour is None else str(offer.dollars_per_hour),
        "SKYFERRY_IS_TLS": "yes" if is_tls else "no",
        "SKYFERRY_PORT": str(port),
        "SKYFERRY_CONTEXT_TOKENS": str(engine.context_tokens),
        "SKYFERRY_PARALLEL_REQUESTS": str(engine.parallel_requests),
        KIND: engine.kind,
        "SKYFERRY_ACCELERATORS": str(max(1, offer.accelerators)),
    }


def _for_the_engine(build: EngineBuild | None) -> Mapping[str, str]:
    """What node.py adds to the engine's command line and environment; nothing where the task says it all."""
    if build is None:
        return {}
    arguments, environment = words(build.flags), dict(build.environment)
    return {
        **({"SKYFERRY_ENGINE_ARGUMENTS": json.dumps(arguments)} if arguments else {}),
        **({"SKYFERRY_ENGINE_ENVIRONMENT": json.dumps(environment)} if environment else {}),
    }


def _installation_of(cluster: Cluster) -> str:
    """Empty where nobody said it."""
    return cluster.metadata.get("SKYFERRY_INSTALLATION", "")


def _is_a_replica(cluster: Cluster) -> bool:
    """Launched as one: somebody's own cluster may have a task with such an environment, and another name."""
    if (replica := cluster.metadata.get("SKYFERRY_REPLICA")) is None:
        return False
    whose = _installation_of(cluster)
    # Before there were installations, a cluster was called what its replica is called.
    return cluster.name == cluster_name(whose, replica) or (not whose and cluster.name == replica)


def _slurm_cluster(cell: str) -> str:
    """Without the partition."""
    return "/".join(cell.split("/")[:2])
