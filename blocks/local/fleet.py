"""Replicas as processes on this machine: the fleet of the quickstart, and of whoever has one big machine."""

import hashlib
import json
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Self

import psutil
from filelock import FileLock
from prefect.blocks.core import Block
from pydantic import ConfigDict, Field, PrivateAttr

from blocks.engines.known import KnownEngine, LocalStart, canonical, check, words
from blocks.engines.registry import engine_named, engines
from blocks.errors import EngineEnded, Refused, Unavailable
from blocks.fields import OfItsKind
from blocks.files import write_atomically, write_private
from blocks.local.processes import Daemon, free_port
from blocks.ports.fleet import EngineBuild, EngineChoice, Replica, ReplicaOrder, ResolvedEngine
from blocks.ports.market import ON_PROCESSORS, Offer, Stock
from blocks.ports.store import Store
from blocks.replica_tls import key_from
from blocks.stores.kinds import AnyStore
from blocks.stores.mirrors import MirroredFile, files_of

ENGINE = "llama.cpp"
"""What a local fleet runs where nobody says otherwise."""
ENGINE_FIELD = "engine"
"""What the record of a replica calls its engine."""
HOST = "127.0.0.1"
POLL_SECONDS = 0.02
LEAST_MEMORY_BYTES = 256 << 20
"""With less than this to spare, not even the smallest engine would load."""


class LocalFleet(OfItsKind, Block):
    """Runs each replica as a process on this machine, on loopback: llama.cpp, or any engine with a local command."""

    _block_type_name = "Local Fleet"
    _block_type_slug = "local-fleet"
    model_config = ConfigDict(hide_input_in_errors=True)

    directory: Path = Field(
        title="Directory",
        description="Where the replicas' weights, logs and process ids are kept on this machine.",
    )
    store: AnyStore = Field(title="Store", description="The bucket that holds the mirrors of the models.")
    cell: str = Field(
        default="local",
        title="Cell",
        description="What this machine is called among the places where replicas run.",
    )
    dollars_per_hour: float = Field(
        default=0.0,
        ge=0,
        title="Dollars an hour",
        description="What one replica on this machine costs in an hour; 0 says that the machine is paid for anyway.",
    )

    environments: dict[str, Path] = Field(
        default_factory=dict,
        title="Engines' environments",
        description='Python environments on this machine that engines are installed in, such as {"vllm": "/opt/vllm"}; '
        "an engine that is not named here is looked for in Skyferry's own.",
    )

    _installation: str = PrivateAttr(default="")
    _inherited: frozenset[str] = PrivateAttr(default=frozenset())

    def of_installation(self, installation: str, inherited: Collection[str] = ()) -> Self:
        fleet = self.model_copy()
        fleet._installation, fleet._inherited = installation, frozenset(inherited)  # noqa: SLF001 - its own
        return fleet

    def offers(self, cells: Sequence[str], accelerators: Sequence[str]) -> tuple[Offer, ...]:
        """This machine and its memory; Refused where others are asked for, or any accelerator and no processors."""
        if cells and not any(self.cell == cell or self.cell.startswith(f"{cell}/") for cell in cells):
            raise Refused(f"{', '.join(cells)} is not this machine; name {self.cell}, or no cell at all")
        if accelerators and ON_PROCESSORS not in [name.upper() for name in accelerators]:
            raise Refused(
                f"{', '.join(accelerators)} is not to be had in {self.cell}, where replicas run on processors; "
                f"ask for {ON_PROCESSORS}"
            )
        return (
            Offer(
                cell=self.cell,
                accelerator=ON_PROCESSORS,
                accelerators=0,
                accelerator_gib=0.0,
                host_gib=psutil.virtual_memory().total / (1 << 30),
                use_spot=False,
                dollars_per_hour=self.dollars_per_hour,
                disk_gib=self._disk_bytes() / (1 << 30),
            ),
        )

    def _disk_bytes(self) -> int:
        """What is free, and what weights have already: those of the model may be among them."""
        there = next(path for path in (self.directory, *self.directory.absolute().parents) if path.is_dir())
        held = sum(file.stat().st_size for file in (self.directory / "weights").rglob("*") if file.is_file())
        return psutil.disk_usage(str(there)).free + held

    def stock(self, offers: Sequence[Offer]) -> tuple[Stock, ...]:
        memory, at = psutil.virtual_memory(), time.time()
        return tuple(memory_stock(offer, memory.available, memory.total, at) for offer in offers)

    def resolve_engine(self, choice: EngineChoice, earlier: Collection[EngineBuild] = ()) -> ResolvedEngine:
        """The engine as it is installed here: no other version of it is to be had."""
        del earlier  # nothing is resolved anew
        known = self._runnable(choice.name or ENGINE)
        if choice.task:
            raise Refused(f"a local fleet starts {known.name} by its own command; leave the Engine block's task empty")
        version = self._installed(known)
        if choice.version not in {"", version}:
            raise Refused(
                f"{known.name} {choice.version} is asked for, and {version} is installed on this machine; install the "
                f"other in an environment that the fleet names, or leave the version out"
            )
        warnings = check(known, choice, version)
        flags, environment = canonical(choice.flags), tuple(sorted(choice.environment.items()))
        return ResolvedEngine(EngineBuild(known.name, version, flags, environment), warnings=warnings)

    def launch(self, order: ReplicaOrder, offer: Offer) -> Replica:
        """Start or adopt the replica; Refused without sound weights, EngineEnded where its process does at once.

        Returns once the process listens, so that its address is its own and nobody else's.
        """
        home = self._home_of(order.name)
        with FileLock(home / f"{order.name}.lock"):
            if (running := _running(home, order.name)) is not None:
                return running
            known = self._recorded(order)
            weights = self._weights_for(known, order.mirror_prefix)
            port = free_port()
            replica = Replica(
                name=order.name,
                service=order.service,
                release=order.release,
                cell=offer.cell,
                address=f"{HOST}:{port}",
                launched_at=time.time(),
                dollars_per_hour=offer.dollars_per_hour,
            )
            build = order.engine.build or EngineBuild(known.name)
            assert known.local is not None  # noqa: S101 - `_runnable` has seen to it
            command = known.local(
                LocalStart(
                    python=self._python(known),
                    weights=weights,
                    host=HOST,
                    port=port,
                    service=order.service,
                    api_key=self.key_of(order.release),
                    settings=order.engine,
                    flags=words(build.flags),
                )
            )
            write_atomically(_record(home, order.name), json.dumps({**asdict(replica), ENGINE_FIELD: known.name}))
            daemon = Daemon(order.name, home)
            daemon.stop()  # where nobody can read who it is
            daemon.start(command.words, env={**dict(build.environment), **command.environment})
            _wait_until_listening(daemon, port, offer.cell, known.starts_within_seconds)
            return replica

    def _recorded(self, order: ReplicaOrder) -> KnownEngine:
        """The engine that the order's release records; Refused where this machine has it no more."""
        build = order.engine.build
        if build is None:
            return self._runnable(ENGINE)
        if build.task:
            raise Refused(
                f"release {order.release} was opened on a fleet that starts {build.name} by a task; release the model "
                f"anew on this one"
            )
        known = self._runnable(build.name)
        if (version := self._installed(known)) != build.version:
            raise Refused(
                f"release {order.release} passed its gates with {build.name} {build.version}, and {version} is "
                f"installed on this machine; install {known.package}=={build.version} again, or release the model anew"
            )
        return known

    def _runnable(self, name: str) -> KnownEngine:
        known = engine_named(name)
        if known.local is None:
            able = sorted(other.name for other in engines().values() if other.local is not None)
            raise Refused(f"{name} has no command for this machine; a local fleet runs {', '.join(able)}")
        return known

    def _python(self, known: KnownEngine) -> Path:
        """The interpreter that the engine is installed beside."""
        environment = self.environments.get(known.name)
        return Path(sys.executable) if environment is None else environment / "bin" / "python"

    def _installed(self, known: KnownEngine) -> str:
        """The version of the engine that is on this machine."""
        python = self._python(known)
        question = "import importlib.metadata as m, sys; print(m.version(sys.argv[1]))"
        try:
            if python == Path(sys.executable):
                return metadata.version(known.package)
            asked = [str(python), "-c", question, known.package]
            return subprocess.run(asked, capture_output=True, check=True, text=True, timeout=60).stdout.strip()
        except (metadata.PackageNotFoundError, OSError, subprocess.SubprocessError):
            raise Refused(
                f"{known.name} cannot be had on this machine: {python} has no {known.package}; install it there, or "
                f"name the environment that has it in the fleet's environments"
            ) from None

    def _weights_for(self, known: KnownEngine, mirror_prefix: str) -> Path:
        directory = self.directory / "weights"
        fetch = fetch_weights if known.weights == "one GGUF file" else fetch_folder
        return fetch(self.store, mirror_prefix, directory)

    def replicas(self, service: str) -> tuple[Replica, ...]:
        own = [*_running_in(self._home)]
        if self._installation:
            own += [replica for replica in _running_in(self._unmarked) if replica.release in self._inherited]
        return tuple(sorted((one for one in own if one.service == service), key=lambda one: one.name))

    def every_replica(self) -> tuple[Replica, ...]:
        """Those of every service and installation on this machine."""
        homes = [self._unmarked, *sorted(path for path in self._unmarked.glob("*") if path.is_dir())]
        return tuple(replica for home in homes for replica in _running_in(home))

    def stop(self, name: str) -> None:
        """SIGTERM, SIGKILL where that does not help, and everything forgotten but the log."""
        home = self._home_of(name)
        with FileLock(home / f"{name}.lock"):
            daemon = Daemon(name, home)
            daemon.stop(_grace_seconds(home, name))
            if (process := daemon.find()) is not None:
                raise Unavailable(f"replica {name} still runs as process {process.pid} after SIGKILL; try again")
            _record(home, name).unlink(missing_ok=True)

    def has_ended(self, name: str) -> bool:
        """Its process has, and nobody stopped it; this machine is there, or it could not be asked."""
        home = self._home_of(name)
        return _record(home, name).exists() and _running(home, name) is None

    def log_tail(self, name: str) -> str:
        return Daemon(name, self._home_of(name)).log_tail()

    def key_of(self, release: str) -> str:
        """Made from a secret in the directory: whoever else is on this machine can reach the replicas' ports too."""
        secret = self.directory / "secret"
        with FileLock(self.directory / "secret.lock"):
            if not secret.exists():
                write_private(secret, secrets.token_hex(32))
        return key_from(secret.read_text(), release)

    @property
    def replica_ca(self) -> str | None:
        """The authority that vouches for its replicas, in PEM; none does on loopback."""
        return None

    @property
    def _unmarked(self) -> Path:
        """Where replicas are that were started for no installation; those of each have a directory in there."""
        return self.directory / "replicas"

    @property
    def _home(self) -> Path:
        return self._unmarked / self._installation

    def _home_of(self, name: str) -> Path:
        """Where the replica is, or would be started."""
        old = _running(self._unmarked, name) if self._installation else None
        return self._unmarked if old is not None and old.release in self._inherited else self._home


def _record(home: Path, name: str) -> Path:
    """Who the process of that name is, and where; written before it is started."""
    return home / f"{name}.json"


def _grace_seconds(home: Path, name: str) -> float:
    """What its engine is given to end after SIGTERM; the shortest where nobody knows which engine it is."""
    try:
        engine = json.loads(_record(home, name).read_text()).get(ENGINE_FIELD, ENGINE)
    except (FileNotFoundError, ValueError, AttributeError):
        engine = ENGINE
    return engines().get(engine, engine_named(ENGINE)).ends_within_seconds


def _running(home: Path, name: str) -> Replica | None:
    try:
        recorded = json.loads(_record(home, name).read_text())
        replica = Replica(**{field: value for field, value in recorded.items() if field != ENGINE_FIELD})
    except (FileNotFoundError, ValueError, TypeError, AttributeError):
        return None  # where the machine lost its power the file may be empty
    return replica if Daemon(name, home).find() is not None else None


def _running_in(home: Path) -> Iterator[Replica]:
    for name in sorted(record.stem for record in home.glob("*.json")):
        if (replica := _running(home, name)) is not None:
            yield replica


def memory_stock(offer: Offer, available: int, total: int, at: float) -> Stock:
    """Whether there is memory to spare, in bytes; how many replicas that is depends on the model, so nobody says it."""
    words = f"{offer.cell}: {available / (1 << 30):.1f} of {total / (1 << 30):.1f} GiB of memory are free"
    return Stock("free" if available >= LEAST_MEMORY_BYTES else "none", at, 1.0, words, load=1 - available / total)


def fetch_weights(store: Store, mirror_prefix: str, directory: Path) -> Path:
    """The mirror's GGUF file in that directory, by its sha256; copied and checked where it is not there yet.

    Refused where the mirror has no manifest, not exactly one GGUF file, or one of another sha256.
    """
    file = _choose_weights(store, mirror_prefix)
    weights = directory / f"{file.sha256}.gguf"
    with FileLock(directory / f"{file.sha256}.lock"):
        if not weights.exists():
            draft = weights.with_suffix(".part")
            draft.unlink(missing_ok=True)
            _check_room(file, directory)
            try:
                _copy(store, mirror_prefix + file.path, draft, file.sha256)
                draft.replace(weights)
            finally:
                draft.unlink(missing_ok=True)
    return weights


def fetch_folder(store: Store, mirror_prefix: str, directory: Path) -> Path:
    """All files of the mirror, in a folder that is called by what they are; copied and checked where it is not there.

    Refused where the mirror has no manifest, or a file of another sha256.
    """
    files = files_of(store, mirror_prefix)
    said = json.dumps(sorted((file.path, file.sha256) for file in files))
    name = hashlib.sha256(said.encode()).hexdigest()
    folder = directory / name
    with FileLock(directory / f"{name}.lock"):
        if not folder.exists():
            draft = directory / f"{name}.part"
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir(parents=True)
            try:
                for file in files:
                    target = draft / file.path
                    target.parent.mkdir(parents=True, exist_ok=True)
                    _check_room(file, directory)
                    _copy(store, mirror_prefix + file.path, target, file.sha256)
                draft.replace(folder)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
    return folder


def _choose_weights(store: Store, mirror_prefix: str) -> MirroredFile:
    files = files_of(store, mirror_prefix)
    choices = [file for file in files if file.path.endswith(".gguf")]
    if len(choices) != 1:
        names = ", ".join(file.path for file in files)
        raise Refused(
            f"{store.url_of(mirror_prefix)} holds {len(choices)} GGUF files where llama.cpp needs one; "
            f"there are: {names or 'no files'}; release a model that has one"
        )
    return choices[0]


def _check_room(file: MirroredFile, directory: Path) -> None:
    """Before a byte is fetched: half a file is of no use, and a full disk stops more than this replica."""
    if file.size_bytes > (free := psutil.disk_usage(str(directory)).free):
        raise Refused(
            f"{directory} has {free / (1 << 30):.1f} GiB free and {file.path} takes"
            f" {file.size_bytes / (1 << 30):.1f} GiB; make room there or choose another directory"
        )


def _copy(store: Store, key: str, path: Path, sha256: str) -> None:
    digest = hashlib.sha256()
    try:
        with path.open("wb") as file:
            for chunk in store.read(key):
                digest.update(chunk)
                file.write(chunk)
    except OSError as error:
        raise Refused(f"{path} could not be written ({error}); make room there or choose another directory") from None
    if digest.hexdigest() != sha256:
        raise Refused(
            f"{store.url_of(key)} has the sha256 {digest.hexdigest()} where its manifest says {sha256}; "
            f"delete the mirror and make it anew"
        )


def _wait_until_listening(daemon: Daemon, port: int, cell: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not daemon.listens(port):
        if daemon.find() is None:
            raise EngineEnded(
                cell, f"replica {daemon.name} ended by itself as it started; its last words:\n{daemon.log_tail()}"
            )
        if time.monotonic() > deadline:
            raise Unavailable(
                f"replica {daemon.name} does not listen on port {port} after {seconds:g} s; "
                f"its last words:\n{daemon.log_tail()}"
            )
        time.sleep(POLL_SECONDS)
