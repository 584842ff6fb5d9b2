"""What SkyPilot's fleet sends to a machine, and how it reads what SkyPilot says; tests/live has the rest."""

import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import pytest
import yaml
from pydantic import ValidationError

from blocks.errors import Refused, Unavailable
from blocks.local.processes import free_port
from blocks.on_machine.node import File, decode_files
from blocks.ports.fleet import EngineSettings, ReplicaOrder
from blocks.ports.market import Offer
from blocks.ports.store import MANIFEST
from blocks.replica_tls import new_authority
from blocks.skypilot.clusters import Cluster, Job, SkyPilot, not_the_cell, reason
from blocks.skypilot.fleet import SkyPilotFleet, Watch
from blocks.stores.mirrors import Manifest, MirroredFile
from blocks.stores.s3 import S3Store
from tests.servers import running_seaweedfs  # noqa: F401 - the fixture s3_store

ORDER = ReplicaOrder(
    "chat-1a-0", "chat", "1a", "models/maker/sent/1/", EngineSettings(context_tokens=512, parallel_requests=3)
)
SPOT = Offer(
    cell="aws/us-east-1",
    accelerator="L4",
    accelerators=2,
    accelerator_gib=24,
    host_gib=64,
    use_spot=True,
    dollars_per_hour=0.5,
    instance="g6.12xlarge",
)
SLURM = Offer("slurm/alpha", "CPU", 0, 0, 16, use_spot=False, dollars_per_hour=None)
TASK = """
resources: {disk_size: 100, accelerators: H100, labels: {team: nlp}}
envs: {SKYFERRY_SERVICE: null, OWN: kept}
secrets: {SKYFERRY_API_KEY: null}
file_mounts: {~/skyferry/node.py: blocks/on_machine/node.py, ~/data: s3://bucket/data}
run: python3 node.py
"""


class ResourcesUnavailableError(Exception):
    """As SkyPilot has it."""

    def __init__(self, words: str, *history: Exception) -> None:
        super().__init__(words)
        self.failover_history = list(history)


class ApiServerConnectionError(RuntimeError):
    """As SkyPilot has it."""


class ApiServerAuthenticationError(RuntimeError):
    """As SkyPilot has it."""


@pytest.fixture
def fleet(s3_store: S3Store, tmp_path: Path) -> SkyPilotFleet:
    if s3_store.get(ORDER.mirror_prefix + MANIFEST) is None:
        _mirror_into(s3_store)
    authority = new_authority(datetime.now(UTC))
    return SkyPilotFleet(directory=tmp_path, store=s3_store, task=TASK, authority=authority)


@pytest.mark.server
def test_a_machine_in_a_cloud_is_asked_for_as_offered(fleet: SkyPilotFleet, tmp_path: Path) -> None:
    """Place, machine and port are the plan's, whatever the task says; its other wishes and labels are kept."""
    task = fleet._task(ORDER, SPOT, 8000, tmp_path / "sent")
    assert task["resources"] == {
        "disk_size": 100,
        "infra": "aws/us-east-1",
        "accelerators": {"L4": 2},
        "instance_type": "g6.12xlarge",
        "use_spot": True,
        "ports": 8000,
        "labels": {
            "team": "nlp",
            "skyferry-service": "chat",
            "skyferry-release": "1a",
            "skyferry-replica": "chat-1a-0",
        },
    }
    assert task["envs"]["OWN"] == "kept"
    assert task["envs"]["SKYFERRY_ACCELERATORS"] == "2"


@pytest.mark.server
def test_a_machine_in_a_cloud_has_a_disk_for_what_it_fetches(fleet: SkyPilotFleet, tmp_path: Path) -> None:
    """More than the task asks for, where the weights take more; on a Slurm node nothing can be asked for."""
    big = replace(ORDER, disk_bytes=500 << 30)
    assert fleet._task(big, SPOT, 8000, tmp_path / "sent")["resources"]["disk_size"] == 564
    assert fleet._task(big, SLURM, 8000, tmp_path / "there")["resources"]["disk_size"] == 100


@pytest.mark.server
def test_a_task_that_knows_no_kinds_starts_no_other_than_chats(fleet: SkyPilotFleet, tmp_path: Path) -> None:
    """As version 0.1's: the machine would be paid for, and its engine of no use. What reads it is told."""
    embeds = replace(ORDER, engine=replace(ORDER.engine, kind="embedding"))
    assert fleet._task(ORDER, SPOT, 8000, tmp_path / "sent")["envs"]["SKYFERRY_KIND"] == "chat"
    with pytest.raises(
        Refused, match=r"does not read SKYFERRY_KIND, .* is of kind 'embedding'; release the model with the task"
    ):
        fleet._task(embeds, SPOT, 8000, tmp_path / "there")
    knows = fleet.model_copy(update={"task": "run: serve $SKYFERRY_KIND"})
    assert knows._task(embeds, SPOT, 8000, tmp_path / "here")["envs"]["SKYFERRY_KIND"] == "embedding"


def test_a_slurm_cluster_is_asked_for_what_it_has(fleet: SkyPilotFleet, tmp_path: Path) -> None:
    """On processors no accelerator is named, and no port: Slurm opens none."""
    resources = fleet._task(ORDER, SLURM, 23_456, tmp_path / "sent")["resources"]
    assert resources["infra"] == "slurm/alpha"
    assert not {"accelerators", "ports", "use_spot", "instance_type"} & {*resources}


@pytest.mark.server
def test_weights_come_from_the_nearest_whole_mirror(fleet: SkyPilotFleet, tmp_path: Path) -> None:
    """Of the stores that are near, the one that names the cell most exactly, and has the mirror."""
    near = {name: _store_like(_own(fleet), name) for name in ("aws", "aws/us-east-1", "gcp")}
    fleet = fleet.model_copy(update={"further_stores": [*near.values()]})

    def read_from(offer: Offer) -> str:
        task = fleet._task(ORDER, offer, 8000, tmp_path / "sent")
        words = shlex.split(Path(task["file_mounts"]["~/skyferry/secrets.sh"]).read_text())
        (files,) = (word.partition("=")[2] for word in words if word.startswith("SKYFERRY_FILES="))
        shutil.rmtree(tmp_path / "sent")
        return decode_files(files)[0].url.split("/")[3]

    assert read_from(SPOT) == _own(fleet).bucket
    _mirror_into(near["aws"])
    assert read_from(SPOT) == near["aws"].bucket
    _mirror_into(near["aws/us-east-1"])
    assert read_from(SPOT) == near["aws/us-east-1"].bucket
    assert read_from(replace(SPOT, cell="aws/us-east-2")) == near["aws"].bucket
    assert read_from(replace(SPOT, cell="gcp/us-east1")) == read_from(SLURM) == _own(fleet).bucket


def _own(fleet: SkyPilotFleet) -> S3Store:
    assert isinstance(fleet.store, S3Store)
    return fleet.store


def _store_like(store: S3Store, near: str) -> S3Store:
    other = store.model_copy(update={"bucket": f"near-{uuid4()}", "near": (near,)})
    other.create_bucket()
    return other


SHA256 = "0" * 64


def _mirror_into(store: S3Store, *files: MirroredFile) -> None:
    manifest = Manifest(
        repo="maker/sent",
        commit="1",
        license=None,
        files=files or (MirroredFile(path="a.gguf", size_bytes=1, sha256=SHA256),),
        source="tests",
        mirrored_at=datetime(2026, 1, 1, tzinfo=UTC),
        tool="tests",
    )
    store.put(ORDER.mirror_prefix + MANIFEST, manifest.model_dump_json().encode(), replacing=None)


@pytest.mark.server
@pytest.mark.parametrize(
    "theirs",
    [
        MirroredFile(path="a.gguf", size_bytes=1, sha256="f" * 64),
        MirroredFile(path="a.gguf", size_bytes=2, sha256=SHA256),
        MirroredFile(path="b.gguf", size_bytes=1, sha256=SHA256),
        None,
    ],
    ids=["another hash", "another size", "another file", "no manifest"],
)
def test_hashes_come_from_the_services_own_store(
    fleet: SkyPilotFleet, tmp_path: Path, theirs: MirroredFile | None
) -> None:
    """Who may write to a further store does not choose what is served: where it says otherwise it is passed by."""
    near = _store_like(_own(fleet), "aws")
    if theirs is None:
        near.put(ORDER.mirror_prefix + MANIFEST, b"", replacing=None)
    else:
        _mirror_into(near, theirs)
    fleet = fleet.model_copy(update={"further_stores": [near]})
    (file,) = _files_sent(fleet, SPOT, tmp_path)
    assert (file.path, file.size_bytes, file.sha256) == ("a.gguf", 1, SHA256)
    assert file.url.split("/")[3] == _own(fleet).bucket


def _files_sent(fleet: SkyPilotFleet, offer: Offer, tmp_path: Path) -> list[File]:
    task = fleet._task(ORDER, offer, 8000, tmp_path / "sent")
    words = shlex.split(Path(task["file_mounts"]["~/skyferry/secrets.sh"]).read_text())
    (files,) = (word.partition("=")[2] for word in words if word.startswith("SKYFERRY_FILES="))
    return decode_files(files)


@pytest.mark.server
def test_a_near_store_that_does_not_answer_holds_nobody_up(fleet: SkyPilotFleet, tmp_path: Path) -> None:
    """The weights come from farther away then."""
    silent = fleet.store.model_copy(update={"endpoint_url": f"http://127.0.0.1:{free_port()}", "near": ["aws"]})
    fleet = fleet.model_copy(update={"further_stores": [silent]})
    task = fleet._task(ORDER, SPOT, 8000, tmp_path / "sent")
    assert "SKYFERRY_FILES" in Path(task["file_mounts"]["~/skyferry/secrets.sh"]).read_text()


@pytest.mark.server
def test_secrets_go_by_a_file_and_by_nothing_else(fleet: SkyPilotFleet, tmp_path: Path) -> None:
    """Neither the task nor its environment has them; the file is its owner's alone and a shell can read it."""
    task = fleet._task(ORDER, SPOT, 8000, tmp_path / "sent")
    sent = Path(task["file_mounts"]["~/skyferry/secrets.sh"])
    assert sent.stat().st_mode & 0o077 == 0
    lines = [line.removeprefix("export ").partition("=") for line in shlex.split(sent.read_text()) if line != "export"]
    values = {name: value for name, _, value in lines}
    assert values["SKYFERRY_API_KEY"] == fleet.key_of("1a")
    assert "PRIVATE KEY" in values["SKYFERRY_PRIVATE_KEY"]
    (file,) = decode_files(values["SKYFERRY_FILES"])
    assert (file.path, file.size_bytes, file.sha256) == ("a.gguf", 1, SHA256)
    assert "models/maker/sent/1/a.gguf" in file.url
    said = yaml.safe_dump(dict(task))
    assert not any(value in said for value in values.values())
    assert "secrets" not in task


@pytest.mark.server
def test_a_tasks_files_are_found_wherever_it_is_launched(fleet: SkyPilotFleet, tmp_path: Path) -> None:
    """Relative paths are Skyferry's own root's; buckets stay buckets."""
    mounts = fleet._task(ORDER, SPOT, 8000, tmp_path / "sent")["file_mounts"]
    assert Path(mounts["~/skyferry/node.py"]).samefile("blocks/on_machine/node.py")
    assert mounts["~/data"] == "s3://bucket/data"


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("run: [", "no YAML"),
        ("just words", "no `run`"),
        ("setup: echo", "no `run`"),
        ("{run: x, resources: {any_of: [{infra: aws}]}}", "leave that to the plan"),
    ],
)
def test_what_is_no_task_is_refused(task: str, words: str) -> None:
    """Before anything is launched, and in words."""
    store = S3Store(bucket="mirrors")
    with pytest.raises(ValidationError, match=words):
        SkyPilotFleet(directory=Path("nowhere"), store=store, task=task)


def test_without_an_authority_there_is_no_key() -> None:
    """Such replicas speak plain HTTP, for loopback."""
    fleet = SkyPilotFleet(directory=Path("nowhere"), store=S3Store(bucket="mirrors"), task="run: serve")
    assert fleet.key_of("1a") is None
    assert fleet.replica_ca is None


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ResourcesUnavailableError("None.", ValueError("\x1b[31mno\x1b[0m  L4\nleft")), "no L4 left"),
        (
            ResourcesUnavailableError("There is none. To fix: a manual"),
            "There is none; it has none, or nobody answers there",
        ),
        (
            ResourcesUnavailableError(f"Failed to acquire resources for {'x' * 300}.\nReason: the token has expired"),
            "the token has expired",
        ),
        (
            ResourcesUnavailableError("None.", ValueError("Failed to acquire resources (GPU) in x. Reason: no GPU")),
            "no GPU",
        ),
        (ValueError("x" * 1000), "x" * 300 + " …"),
    ],
)
def test_a_cells_reason_is_one_line(error: Exception, said: str) -> None:
    """What the cell itself said, without colours and without SkyPilot's advice."""
    assert reason(error) == said


def test_the_api_servers_own_trouble_is_no_cells() -> None:
    """A server that does not answer may be tried again, one that lets nobody in may not; all else is the cell's."""
    assert isinstance(not_the_cell(ApiServerConnectionError("gone")), Unavailable)
    assert isinstance(not_the_cell(ApiServerAuthenticationError("who?")), Refused)
    assert not_the_cell(ResourcesUnavailableError("none")) is None


@dataclass(frozen=True)
class FakeSkyPilot(SkyPilot):
    """Its clusters are called after what it says of their jobs."""

    asked_of_jobs: list[str] = field(default_factory=list)
    looked_up: list[str] = field(default_factory=list)

    def clusters(self) -> tuple[Cluster, ...]:
        return tuple(
            Cluster(name, name, is_up=name != "none", host="node", metadata={"SKYFERRY_REPLICA": name}, launched_at=0)
            for name in ("ended", "going on", "none", "unknown", "well")
        )

    def jobs(self, clusters: Sequence[Cluster]) -> Mapping[str, Job]:
        said: dict[str, Job] = {"ended": "ended", "going on": "going on", "unknown": "unknown"}
        self.asked_of_jobs.extend(cluster.name for cluster in clusters)
        return {cluster.hash: said[cluster.name] for cluster in clusters}

    def look_up(self, names: Sequence[str]) -> tuple[Cluster, ...]:
        self.looked_up.extend(names)
        return ()


def test_only_silent_replicas_are_asked_about() -> None:
    """And at the second look, for the first may have come just after their launch.

    SkyPilot says of them which have ended, and those alone are listed no more; their clouds say it of the rest.
    """
    skypilot = FakeSkyPilot()
    watch = Watch(skypilot)
    for asked_before in ([], ["ended", "going on", "unknown"]):
        watch._refreshing.acquire()
        watch._refresh(lambda cluster: cluster.name == "well")
        assert skypilot.asked_of_jobs == asked_before
    assert skypilot.asked_of_jobs == ["ended", "going on", "unknown"]
    assert skypilot.looked_up == ["unknown"]
    listed = [cluster.name for cluster in watch.clusters(refresh_seconds=60, answers=lambda _: False)]
    assert listed == ["going on", "none", "unknown", "well"]


def test_skypilot_is_not_imported_before_it_is_asked() -> None:
    """Whoever rents no machines never waits for it."""
    script = "import sys, blocks.skypilot.fleet; sys.exit('sky' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
