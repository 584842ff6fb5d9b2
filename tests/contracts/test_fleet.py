"""What every fleet keeps to: the one in memory, processes on this machine, SkyPilot's clusters on Slurm."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import stamina

from blocks.engines.openai import OpenAIEngine
from blocks.errors import EngineEnded, Refused, Unavailable
from blocks.local.fleet import LocalFleet, fetch_weights
from blocks.local.processes import Daemon, end, marked
from blocks.ports.fleet import EngineSettings, Fleet, ReplicaOrder
from blocks.ports.market import Offer
from blocks.ports.store import Store
from blocks.skypilot.fleet import SkyPilotFleet
from blocks.skypilot.names import cluster_name
from blocks.stores.s3 import S3Store
from tests.fakes.fleet import OFFER, FakeFleet
from tests.fakes.store import FakeStore
from tests.live.running import offer_in, skypilot_fleet
from tests.live.slurm_lab import SlurmLab
from tests.servers import running_seaweedfs  # noqa: F401 - the fixture s3_store
from tests.tiny_gguf import write_tiny_gguf

ORDER = ReplicaOrder(
    "chat-1a-0", "chat", "1a", "models/maker/tiny/1/", EngineSettings(context_tokens=512, parallel_requests=1)
)
ANOTHER = replace(ORDER, name="chat-2b-0", release="2b")


@dataclass(frozen=True)
class Case:
    fleet: Fleet
    kill: Callable[[str], None]
    """The replica dies behind the fleet's back."""
    offer: Offer = OFFER
    notices_seconds: float = 1
    """How long it may take until the fleet knows."""


def publish(store: Store, prefix: str, files: Mapping[str, bytes]) -> None:
    """Make a mirror of these files."""
    described = [
        {"path": path, "size_bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}
        for path, body in files.items()
    ]
    for path, body in files.items():
        store.write(prefix + path, body)
    _, maker, name, commit, _ = prefix.split("/")
    manifest = {"repo": f"{maker}/{name}", "commit": commit, "license": None, "files": described}
    manifest |= {"source": "tests", "mirrored_at": "2026-01-01T00:00:00Z", "tool": "tests"}
    store.put(f"{prefix}skyferry-manifest.json", json.dumps(manifest).encode(), replacing=None)


HOME = "models/maker/m/1/"


@pytest.fixture(scope="module")
def mirrored(s3_store: S3Store, tmp_path_factory: pytest.TempPathFactory) -> S3Store:
    """A store with a mirror of a tiny model, and of one that llama.cpp cannot read."""
    weights = write_tiny_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf").read_bytes()
    publish(s3_store, ORDER.mirror_prefix, {"README.md": b"# Tiny", "tiny.gguf": weights})
    publish(s3_store, "models/maker/unreadable/1/", {"unreadable.gguf": b"no weights"})
    return s3_store


@pytest.fixture
def local_fleet(tmp_path: Path, mirrored: S3Store) -> Iterator[LocalFleet]:
    yield LocalFleet(directory=tmp_path / "fleet", store=mirrored)
    end([*marked(tmp_path)], grace_seconds=1)


@pytest.fixture(scope="module")
def slurm_fleet(
    slurm_lab: SlurmLab, mirrored: S3Store, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SkyPilotFleet]:
    with skypilot_fleet(tmp_path_factory.mktemp("fleet"), mirrored, slurm_lab) as fleet:
        yield fleet


@pytest.fixture
def slurm_case(slurm_fleet: SkyPilotFleet, slurm_lab: SlurmLab) -> Case:
    """A launch takes half a minute, so what a test leaves is adopted by the next one that launches it."""

    def cancel(name: str) -> None:
        (job,) = (
            job for job, (title, _) in slurm_lab.queue("beta").items() if title.startswith(cluster_name("", name))
        )
        slurm_lab.cancel("beta", job)

    return Case(slurm_fleet, cancel, offer_in("beta"), notices_seconds=60)


CASES = ["fake", pytest.param("local", marks=pytest.mark.server)]
on_slurm_too = pytest.mark.parametrize(
    "case", [*CASES, pytest.param("slurm", marks=[pytest.mark.live, pytest.mark.timeout(600)])], indirect=True
)
"""A launch there takes half a minute: a few tests have to do, and each goes on with what the one before it has left."""


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    if request.param == "fake":
        fake = FakeFleet()
        return Case(fake, fake.kill)
    if request.param == "slurm":
        return request.getfixturevalue("slurm_case")
    fleet: LocalFleet = request.getfixturevalue("local_fleet")
    return Case(fleet, lambda name: kill(fleet, name))


def kill(fleet: LocalFleet, name: str) -> None:
    process = Daemon(name, fleet.directory / "replicas").find()
    assert process is not None
    process.kill()
    process.wait()


@on_slurm_too
def test_a_launched_replica_is_what_was_ordered(case: Case) -> None:
    """It carries the order's names and is listed for its service, and for no other."""
    replica = case.fleet.launch(ORDER, case.offer)
    assert (replica.name, replica.service, replica.release) == (ORDER.name, ORDER.service, ORDER.release)
    assert case.fleet.replicas("chat") == (replica,)
    assert case.fleet.replicas("embed") == ()


def test_launching_again_adopts(case: Case) -> None:
    """A second launch of the same name gives the replica that runs."""
    assert case.fleet.launch(ORDER, case.offer) == case.fleet.launch(ORDER, case.offer)
    assert len(case.fleet.replicas("chat")) == 1


@on_slurm_too
def test_replicas_do_not_share_an_address(case: Case) -> None:
    """Two replicas stand at two addresses, and both are listed, whatever their release."""
    first = case.fleet.launch(ORDER, case.offer)
    second = case.fleet.launch(ANOTHER, case.offer)
    assert first.address != second.address
    assert case.fleet.replicas("chat") == (first, second)


def test_installations_see_only_their_own(case: Case) -> None:
    """The same order of two is two replicas; each lists, adopts and stops its own."""
    one, other = case.fleet.of_installation("aa"), case.fleet.of_installation("bb")
    replica = one.launch(ORDER, case.offer)
    assert other.replicas("chat") == case.fleet.replicas("chat") == ()
    other.stop(ORDER.name)
    assert other.launch(ORDER, case.offer).address != replica.address
    assert one.launch(ORDER, case.offer) == replica
    other.stop(ORDER.name)
    assert one.replicas("chat") == (replica,)


def test_what_bears_no_mark_is_its_heirs(case: Case) -> None:
    """As from before there were installations: it is adopted by whose release it is of, and by no other."""
    old = case.fleet.launch(ORDER, case.offer)
    heir, stranger = case.fleet.of_installation("aa", [ORDER.release]), case.fleet.of_installation("bb")
    assert heir.replicas("chat") == (old,)
    assert stranger.replicas("chat") == ()
    assert heir.launch(ORDER, case.offer) == old
    stranger.stop(ORDER.name)
    heir.stop(ORDER.name)
    assert case.fleet.replicas("chat") == ()


def test_a_replica_that_runs_or_was_stopped_has_not_ended(case: Case) -> None:
    """Only an engine that ended by itself has."""
    case.fleet.launch(ORDER, case.offer)
    assert not case.fleet.has_ended(ORDER.name)
    case.fleet.stop(ORDER.name)
    assert not case.fleet.has_ended(ORDER.name)


@on_slurm_too
def test_a_stopped_replica_is_gone(case: Case) -> None:
    """It is not listed any more; stopping it once more, or one that never was, is no error."""
    case.fleet.launch(ANOTHER, case.offer)
    case.fleet.stop(ANOTHER.name)
    assert ANOTHER.name not in {replica.name for replica in case.fleet.replicas("chat")}
    case.fleet.stop(ANOTHER.name)
    case.fleet.stop("never-was")


def test_stopping_one_leaves_the_others(case: Case) -> None:
    """Only the replica of that name ends, also where another's name begins with it."""
    other = case.fleet.launch(replace(ORDER, name=f"{ORDER.name}0"), case.offer)
    case.fleet.launch(ORDER, case.offer)
    case.fleet.stop(ORDER.name)
    assert case.fleet.replicas("chat") == (other,)


@on_slurm_too
def test_a_killed_replica_is_not_listed_and_can_be_launched_anew(case: Case) -> None:
    """A fleet tells of what runs, not of what it once started."""
    case.fleet.launch(ORDER, case.offer)
    case.kill(ORDER.name)
    for attempt in stamina.retry_context(on=AssertionError, attempts=None, timeout=case.notices_seconds, wait_max=0.5):
        with attempt:
            assert case.fleet.replicas("chat") == ()
    again = case.fleet.launch(ORDER, case.offer)
    assert case.fleet.replicas("chat") == (again,)


@on_slurm_too
def test_the_log_outlives_its_replica(case: Case) -> None:
    """What a replica printed can be read after its end; where nothing was printed there is nothing."""
    case.fleet.launch(ORDER, case.offer)
    for attempt in stamina.retry_context(on=AssertionError, attempts=None, timeout=60, wait_max=1):
        with attempt:
            assert "is served at" in case.fleet.log_tail(ORDER.name)
    case.fleet.stop(ORDER.name)
    assert "is served at" in case.fleet.log_tail(ORDER.name)
    assert case.fleet.log_tail("never-was") == ""


@pytest.mark.server
def test_launches_at_the_same_time_start_one_process(local_fleet: LocalFleet) -> None:
    """However many ask for one name at once, there is one process, and all are told of it."""
    with ThreadPoolExecutor(4) as pool:
        launched = set(pool.map(local_fleet.launch, [ORDER] * 4, [OFFER] * 4))
    assert len(launched) == 1
    assert len([*marked(local_fleet.directory)]) == 1


@pytest.mark.server
def test_replicas_of_one_model_share_its_weights(local_fleet: LocalFleet) -> None:
    """Replicas launched at the same time fetch the weights once and leave nothing half-written."""
    with ThreadPoolExecutor(2) as pool:
        orders = [replace(ORDER, name=name) for name in ("a", "b")]
        assert len({replica.address for replica in pool.map(local_fleet.launch, orders, [OFFER] * 2)}) == 2
    (weights,) = (local_fleet.directory / "weights").glob("*.gguf")
    assert weights.stem == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert [*weights.parent.glob("*.part")] == []


@pytest.mark.server
def test_another_fleet_block_finds_the_same_replicas(local_fleet: LocalFleet) -> None:
    """What runs is known from the directory, so a flow that starts again finds it."""
    replica = local_fleet.launch(ORDER, OFFER)
    assert local_fleet.model_copy().replicas("chat") == (replica,)


@pytest.mark.server
def test_a_replica_becomes_ready(local_fleet: LocalFleet) -> None:
    """The address answers as an OpenAI-compatible engine does, and only who has the release's key."""
    replica = local_fleet.launch(ORDER, OFFER)
    engine = OpenAIEngine(key_of=local_fleet.key_of)
    for attempt in stamina.retry_context(on=AssertionError, attempts=None, timeout=10, wait_max=0.05):
        with attempt:
            assert engine.is_healthy(replica)
    assert engine.complete(replica)
    for key in (None, local_fleet.key_of("another release")):
        with pytest.raises(Unavailable, match="HTTP 401"):
            OpenAIEngine(key_of=lambda _, key=key: key).complete(replica)


@pytest.mark.server
def test_weights_that_cannot_be_loaded_end_the_replica(local_fleet: LocalFleet) -> None:
    """A replica that dies as it loads is not listed, and its log says why."""
    with suppress(EngineEnded):  # it may end before or after it listens
        local_fleet.launch(replace(ORDER, mirror_prefix="models/maker/unreadable/1/"), OFFER)
    for attempt in stamina.retry_context(on=AssertionError, attempts=None, timeout=10, wait_max=0.05):
        with attempt:
            assert local_fleet.replicas("chat") == ()
    assert "failed to load model" in local_fleet.log_tail(ORDER.name)
    assert local_fleet.has_ended(ORDER.name)


@pytest.mark.server
def test_more_context_than_the_model_has_ends_the_replica(local_fleet: LocalFleet) -> None:
    """A replica that could not give a request the context that was ordered does not run, and says what it could."""
    local_fleet.launch(replace(ORDER, engine=EngineSettings(context_tokens=100_000, parallel_requests=1)), OFFER)
    for attempt in stamina.retry_context(on=AssertionError, attempts=None, timeout=10, wait_max=0.05):
        with attempt:
            assert local_fleet.replicas("chat") == ()
    assert "choose a context of 4096 tokens or fewer" in local_fleet.log_tail(ORDER.name)


def test_weights_are_fetched_once(tmp_path: Path) -> None:
    """Weights that are there already are not read from the store again."""
    store = FakeStore()
    publish(store, HOME, {"m.gguf": b"weights"})
    fetched = fetch_weights(store, HOME, tmp_path)
    del store.objects[f"{HOME}m.gguf"]
    assert fetch_weights(store, HOME, tmp_path) == fetched
    assert fetched.read_bytes() == b"weights"


def test_corrupted_weights_are_refused_and_removed(tmp_path: Path) -> None:
    """Weights with another sha256 than their manifest's are no weights; sound ones can be fetched afterwards."""
    store = FakeStore()
    publish(store, HOME, {"m.gguf": b"weights"})
    sound = store.objects[f"{HOME}m.gguf"]
    store.corrupt(f"{HOME}m.gguf")
    with pytest.raises(Refused, match="sha256"):
        fetch_weights(store, HOME, tmp_path)
    assert [path for path in tmp_path.iterdir() if path.suffix != ".lock"] == []
    store.objects[f"{HOME}m.gguf"] = sound
    assert fetch_weights(store, HOME, tmp_path).read_bytes() == b"weights"


@pytest.mark.parametrize("files", [{"README.md": b"", "model.safetensors": b""}, {"q4.gguf": b"", "q8.gguf": b""}])
def test_a_mirror_without_exactly_one_gguf_is_refused(files: dict[str, bytes], tmp_path: Path) -> None:
    """The refusal lists what there is instead."""
    store = FakeStore()
    publish(store, HOME, files)
    with pytest.raises(Refused, match=", ".join(files)):
        fetch_weights(store, HOME, tmp_path)


def test_half_a_mirror_is_refused(tmp_path: Path) -> None:
    """Without a manifest nothing is launched from a mirror."""
    store = FakeStore()
    publish(store, HOME, {"m.gguf": b"weights"})
    del store.objects[f"{HOME}skyferry-manifest.json"]
    with pytest.raises(Refused, match="mirror the model first"):
        fetch_weights(store, HOME, tmp_path)


def test_weights_that_do_not_fit_the_disk_are_refused_before_they_come(tmp_path: Path) -> None:
    """With the room that there is and the room that they take."""
    store = FakeStore()
    publish(store, HOME, {"m.gguf": b"weights"})
    manifest = store.get(HOME + "skyferry-manifest.json")
    assert manifest is not None
    huge = manifest.body.replace(b'"size_bytes": 7', b'"size_bytes": 4398046511104')
    store.put(HOME + "skyferry-manifest.json", huge, replacing=manifest.etag)
    with pytest.raises(Refused, match=r"GiB free and m\.gguf takes 4096\.0 GiB; make room there"):
        fetch_weights(store, HOME, tmp_path)
    assert [path for path in tmp_path.iterdir() if path.suffix != ".lock"] == []


def test_a_store_that_breaks_off_leaves_nothing_behind(tmp_path: Path) -> None:
    """Half the weights are removed, and the error is the store's own."""

    class BreaksOff(FakeStore):
        def read(self, key: str, start: int = 0, size_bytes: int | None = None) -> Iterator[bytes]:
            yield from super().read(key, start, size_bytes or 1)
            raise Unavailable("the store broke off")

    store = BreaksOff()
    publish(store, HOME, {"m.gguf": b"weights"})
    with pytest.raises(Unavailable, match="broke off"):
        fetch_weights(store, HOME, tmp_path)
    assert [path for path in tmp_path.iterdir() if path.suffix != ".lock"] == []
