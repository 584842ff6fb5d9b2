"""Engines as SkyPilot's tasks: what a release records, what is started from that, and what 0.1 has left behind."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from blocks.engines.vllm import VLLM
from blocks.errors import Refused
from blocks.files import ROOT
from blocks.ports.fleet import EngineBuild, EngineChoice, EngineSettings, ReplicaOrder
from blocks.skypilot.engine import LOCK, MOVED, resolve, task_of
from blocks.skypilot.fleet import SkyPilotFleet
from blocks.stores.kept import ENGINES, keep, sha256_of
from flows.policy.releases.ledger import ServiceRecord, is_standing_unrecorded, release_id
from tests.fakes.store import FakeStore

SAVED = ROOT / "tests/saved"
SETTINGS = EngineSettings(4096, 4)
TASK_OF_0_1 = json.loads((SAVED / "service-0.1.json").read_text())["fleet"]["task"]
CHOICE = EngineChoice("vllm", flags={"max-num-batched-tokens": 8192}, environment={"OMP_NUM_THREADS": "1"})


def order(build: EngineBuild | None) -> ReplicaOrder:
    return ReplicaOrder("chat-1a-0", "chat", "1a", "models/maker/m/1/", replace(SETTINGS, build=build))


def test_a_fleet_that_0_1_saved_starts_its_task(tmp_path: Path) -> None:
    """Its mounts name programs where they lay then, and each is found where it lies today."""
    saved = json.loads((SAVED / "service-0.1.json").read_text())
    fleet = SkyPilotFleet.model_validate({**saved["fleet"], "directory": tmp_path})
    started = task_of(order(None), fleet.task, FakeStore(), tmp_path)
    assert [*started.parsed["file_mounts"].values()][:2] == ["blocks/node.py", "blocks/key_guard.py"]
    assert started.mounts["~/skyferry/node.py"] == str(ROOT / "blocks/on_machine/node.py")
    assert all(Path(here).is_file() for here in started.mounts.values())
    assert all((ROOT / here).is_file() for here in MOVED.values())


def test_a_release_of_0_1_is_still_the_one_that_is_asked_for() -> None:
    """Read from the ledger that 0.1 wrote: its id, computed anew, is its own, and no new release begins."""
    record = ServiceRecord.model_validate_json((SAVED / "ledger-0.1.json").read_text())
    assert record.live is not None
    assert record.live.engine == SETTINGS
    wanted = release_id("chat", record.live.repo, record.live.commit, SETTINGS)
    assert wanted == record.live.id
    assert is_standing_unrecorded(record, wanted)
    other = replace(SETTINGS, build=EngineBuild("vllm", "0.33.0"))
    assert release_id("chat", record.live.repo, record.live.commit, other) != record.live.id


def test_the_task_of_0_1_is_recorded_as_the_engine_that_it_starts() -> None:
    """Name and version are read out of it; what it mounts is kept by content, but for the fleet's own node.py."""
    resolved = resolve(EngineChoice(), TASK_OF_0_1, FakeStore(), ())
    assert (resolved.build.name, resolved.build.version) == ("vllm", VLLM.flags_of)
    assert [there for there, _ in resolved.build.files] == [LOCK, "~/skyferry/vllm/key_guard.py"]
    assert {resolved.build.task, *dict(resolved.build.files).values()} == {*resolved.texts}
    assert resolved.texts[resolved.build.task] == TASK_OF_0_1.encode()


def test_what_was_recorded_is_started_whatever_the_block_says_by_then(tmp_path: Path) -> None:
    """Task and files come from the store; flags and environment reach the machine with its secrets."""
    store = FakeStore()
    resolved = resolve(CHOICE, "", store, ())
    keep(store, resolved.texts)
    started = task_of(order(resolved.build), "run: something else", store, tmp_path)
    assert started.parsed == yaml.safe_load((ROOT / VLLM.task).read_text())
    assert Path(started.mounts[LOCK]).read_bytes() == (ROOT / "deployments/engines/vllm.txt").read_bytes()
    assert Path(started.mounts[LOCK]).is_relative_to(tmp_path)
    assert started.mounts["~/skyferry/node.py"] == str(ROOT / "blocks/on_machine/node.py")


@pytest.mark.parametrize("part", ["the task", "~/skyferry/requirements.txt"])
def test_what_is_to_be_had_no_more_is_refused(part: str, tmp_path: Path) -> None:
    """It names what is gone, and of which release."""
    store = FakeStore()
    build = resolve(CHOICE, "", store, ()).build
    keep(store, resolve(CHOICE, "", store, ()).texts)
    store.delete(ENGINES + (build.task if part == "the task" else dict(build.files)[LOCK]))
    with pytest.raises(Refused, match=rf"{part} of the engine of release 1a, is in the store no more"):
        task_of(order(build), "", store, tmp_path)


def test_a_release_without_an_engine_needs_its_fleets_task(tmp_path: Path) -> None:
    """And one of a fleet without tasks is none that this one could start."""
    with pytest.raises(Refused, match="recorded no engine, and the fleet's block has no task any more"):
        task_of(order(None), "", FakeStore(), tmp_path)
    with pytest.raises(Refused, match=r"a fleet that starts llama\.cpp without a task"):
        task_of(order(EngineBuild("llama.cpp", "1")), "", FakeStore(), tmp_path)


def test_all_that_makes_an_engine_changes_what_is_recorded() -> None:
    """Flags, environment and task; and the same is the same, in whatever order it was written."""
    store = FakeStore()
    other_task = TASK_OF_0_1.replace("--disable-fastapi-docs", "--disable-fastapi-docs  ")
    choices = [
        EngineChoice("vllm"),
        CHOICE,
        replace(CHOICE, flags={}),
        replace(CHOICE, environment={}),
        EngineChoice("vllm", task=other_task),
    ]
    assert len({resolve(choice, "", store, ()).build for choice in choices}) == len(choices)
    assert resolve(CHOICE, "", store, ()) == resolve(CHOICE, "", store, ())


def test_the_fleets_own_task_is_taken_where_it_starts_that_engine() -> None:
    """Whoever has fitted it to their machines chooses flags without losing that."""
    own = TASK_OF_0_1.replace("name: skyferry-vllm", "name: ours")
    resolved = resolve(CHOICE, own, FakeStore(), ())
    assert resolved.texts[resolved.build.task] == own.encode()
    llama = EngineChoice("llama.cpp")
    assert resolve(llama, own, FakeStore(), ()).build.name == "llama.cpp"


@pytest.mark.parametrize(
    ("choice", "own_task", "said"),
    [
        (EngineChoice(), "", "give the service an Engine block"),
        (EngineChoice("sglang"), "", "no task for sglang"),
        (EngineChoice("vlm"), "", "no engine 'vlm'"),
        (EngineChoice(flags={"seed": 1}), "run: serve", "does not start it with node.py"),
        (EngineChoice("vllm", version="0.34.0", task="run: node.py vllm serve"), "", "installs what it likes"),
        (EngineChoice(task="{run: x, envs: {HF_TOKEN: a}, secrets: {B: b, C: null}}"), "", "a value for B, HF_TOKEN"),
        (EngineChoice(task="{run: x, file_mounts: {~/a: nowhere/b}}"), "", "nowhere/b on the machine"),
    ],
)
def test_what_cannot_be_started_is_refused_before_anything_is_spent(
    choice: EngineChoice, own_task: str, said: str
) -> None:
    """In words, with the thing and what to do."""
    with pytest.raises(Refused, match=said):
        resolve(choice, own_task, FakeStore(), ())


def test_a_version_keeps_the_lock_that_its_first_release_was_given() -> None:
    """Else the same release would be another one tomorrow, when the index has newer packages."""
    store, lock = FakeStore(), b"vllm==0.34.0 --hash=sha256:00\n"
    keep(store, {sha256_of(lock): lock})
    files = ((LOCK, sha256_of(lock)),)
    earlier = [EngineBuild("llama.cpp", "0.34.0", files=()), EngineBuild("vllm", "0.34.0", files=files)]
    resolved = resolve(EngineChoice("vllm", "0.34.0"), "", store, earlier)
    assert resolved.build.version == "0.34.0"
    assert dict(resolved.build.files)[LOCK] == sha256_of(lock)
    store.delete(ENGINES + sha256_of(lock))
    with pytest.raises(Refused, match=r"the lock of vllm 0\.34\.0, is in the store no more"):
        resolve(EngineChoice("vllm", "0.34.0"), "", store, earlier)
