"""Engines as SkyPilot's tasks: what a release is to record of one, and what its replicas are started from later on."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from blocks.engines.known import SECRET, KnownEngine, canonical, check
from blocks.engines.lock import lock_of, version_in
from blocks.engines.registry import engine_named, engine_of_task
from blocks.errors import Refused
from blocks.files import ROOT
from blocks.ports.fleet import EngineBuild, EngineChoice, ReplicaOrder, ResolvedEngine
from blocks.ports.store import ConditionalStore
from blocks.stores.kept import read_kept, sha256_of

LOCK = "~/skyferry/requirements.txt"
"""Where a task puts what the machine installs."""
NODE = "blocks/on_machine/node.py"
MOVED = {
    "blocks/node.py": NODE,
    "blocks/llama_cpp.py": "blocks/on_machine/llama_cpp.py",
    "blocks/key_guard.py": "blocks/on_machine/key_guard.py",
}
"""What tasks that were saved with version 0.1 call Skyferry's own programs, and where they lie today."""


@dataclass(frozen=True)
class Task:
    """A task as it is started: its text parsed, and where on this machine what it mounts lies."""

    parsed: Mapping[str, Any]
    mounts: Mapping[str, Any]


def resolve(
    choice: EngineChoice, own_task: str, store: ConditionalStore, earlier: Collection[EngineBuild]
) -> ResolvedEngine:
    """A choice, as the fleet whose block has `own_task` would start it today.

    A version that Skyferry has no lock of keeps the one that an `earlier` build of it was given.
    """
    text, known = _task_for(choice, own_task)
    parsed = yaml.safe_load(text)
    _check_holds_no_secret(parsed)
    files = _files_of(parsed)
    version = choice.version
    if LOCK in files:
        version = version or version_in(files[LOCK].decode(), known.package if known else "")
    if known is not None and choice.version and version_in(files.get(LOCK, b"").decode(), known.package) != version:
        if LOCK not in files:
            raise Refused(
                f"the task of {known.name} installs what it likes, so version {version} cannot be chosen: name it in "
                f"the task, or have that install {LOCK}"
            )
        files[LOCK] = _lock(known, version, store, earlier)
    if (choice.flags or choice.environment) and "node.py" not in parsed["run"]:
        raise Refused(
            "the engine's task does not start it with node.py, which hands flags and environment over; write them into "
            "the task, or start the engine as the tasks in deployments/engines do"
        )
    warnings = check(known, choice, version)
    texts = {sha256_of(body): body for body in (text.encode(), *files.values())}
    build = EngineBuild(
        name=known.name if known else "",
        version=version,
        flags=canonical(choice.flags),
        environment=tuple(sorted(choice.environment.items())),
        task=sha256_of(text.encode()),
        files=tuple(sorted((there, sha256_of(body)) for there, body in files.items())),
    )
    return ResolvedEngine(build, texts, warnings)


def _task_for(choice: EngineChoice, own_task: str) -> tuple[str, KnownEngine | None]:
    """The choice's own task, or the fleet's where that starts the same engine, or else Skyferry's."""
    if not choice.name:
        text = choice.task or own_task
        if not text:
            raise Refused("neither the service nor its fleet says which engine; give the service an Engine block")
        return text, engine_of_task(yaml.safe_load(text)["run"])
    known = engine_named(choice.name)
    own = own_task if own_task and engine_of_task(yaml.safe_load(own_task)["run"]) is known else ""
    if text := choice.task or own:
        return text, known
    if not known.task:
        raise Refused(f"Skyferry has no task for {known.name}; give the Engine block one")
    return (ROOT / known.task).read_text(), known


def _check_holds_no_secret(parsed: Mapping[str, Any]) -> None:
    """The task's text is kept beside the mirrors, where many can read."""
    given = {name: value for name, value in (parsed.get("envs") or {}).items() if SECRET.search(name)}
    given |= parsed.get("secrets") or {}
    if held := sorted(name for name, value in given.items() if value not in {None, ""}):
        raise Refused(
            f"the engine's task holds a value for {', '.join(held)}, and would be kept in the store with it, where "
            f"many can read; leave it empty there, and have the machine find it in another way"
        )


def _files_of(parsed: Mapping[str, Any]) -> dict[str, bytes]:
    """What the task puts on the machine from Skyferry's root, by its path there.

    Not node.py: it is what the fleet of that day speaks with, and no part of the engine.
    """
    files: dict[str, bytes] = {}
    for there, here in (parsed.get("file_mounts") or {}).items():
        source = path_of(here)
        if source is None or source == ROOT / NODE:
            continue
        try:
            files[there] = source.read_bytes()
        except OSError as error:
            raise Refused(
                f"the engine's task puts {here} on the machine, and that is no file here ({error.strerror}); name a "
                f"file below Skyferry's root"
            ) from None
    return files


def _lock(known: KnownEngine, version: str, store: ConditionalStore, earlier: Collection[EngineBuild]) -> bytes:
    for build in earlier:
        if (build.name, build.version) == (known.name, version) and (kept := dict(build.files).get(LOCK)):
            return read_kept(store, kept, what=f"the lock of {known.name} {version}")
    return lock_of(known.package, version).encode()


def path_of(source: Any) -> Path | None:
    """Where a mounted file lies on this machine; None for buckets and home directories, which SkyPilot finds."""
    if not isinstance(source, str) or "://" in source or source.startswith("~"):
        return None
    return ROOT / MOVED.get(source, source)


def task_of(order: ReplicaOrder, own_task: str, store: ConditionalStore, sent: Path) -> Task:
    """What the order's replica is started from: as its release records it, or else as the fleet's block says it.

    What is kept in the store is written below `sent`. Refused where it is to be had no more.
    """
    build = order.engine.build
    if build is None:
        if not own_task:
            raise Refused(
                f"release {order.release} is from a time when releases recorded no engine, and the fleet's block has "
                f"no task any more; give it back its task, or release the model anew"
            )
        return _with_mounts(own_task, {})
    if not build.task:
        raise Refused(
            f"release {order.release} was opened on a fleet that starts {build.name} without a task; release the model "
            f"anew on this one"
        )
    what = f"of the engine of release {order.release}"
    text = read_kept(store, build.task, what=f"the task {what}").decode()
    kept: dict[str, str] = {}
    for number, (there, sha256) in enumerate(build.files):
        path = sent / "files" / str(number)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.write_bytes(read_kept(store, sha256, what=f"{there} {what}"))
        kept[there] = str(path)
    return _with_mounts(text, kept)


def _with_mounts(text: str, kept: Mapping[str, str]) -> Task:
    parsed = yaml.safe_load(text)
    mounts = parsed.get("file_mounts") or {}
    return Task(parsed, {there: kept.get(there) or str(path_of(here) or here) for there, here in mounts.items()})
