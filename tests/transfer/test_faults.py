"""What networks, hubs and stores do to a mirror, over real HTTP: a proxy before each server does the harm."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from urllib.parse import urlsplit
from uuid import uuid4

import pytest

from blocks.errors import Refused, Unavailable
from blocks.hubs.hugging_face import HuggingFaceHub
from blocks.stores.s3 import S3Store
from flows.policy.releases.ledger import mirror_prefix
from tests.faults import Fault, FaultyProxy, faulty_proxy, slow_down
from tests.mirroring import PART_BYTES, mirror
from tests.servers import local_hub, running_seaweedfs, seaweedfs  # noqa: F401 - the fixture s3_store

pytestmark = pytest.mark.server
REPO = "maker/model"


def random_bytes(size_bytes: int, seed: int) -> bytes:
    return Random(seed).randbytes(size_bytes)  # noqa: S311 - the same bytes in each run, not a secret


FILES = {
    "model-1.safetensors": random_bytes(3 * PART_BYTES - 7, 1),
    "model-2.safetensors": random_bytes(PART_BYTES + 1, 2),
    "config.json": b"{}",
}


@pytest.fixture(scope="module")
def real_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HuggingFaceHub]:
    with local_hub(tmp_path_factory.mktemp("hub"), {REPO: {"v1": FILES}}) as hub:
        yield hub


@dataclass
class World:
    """A hub and a store, each behind a proxy, and a way past them."""

    hub: HuggingFaceHub
    store: S3Store
    hub_proxy: FaultyProxy
    store_proxy: FaultyProxy
    bucket: S3Store

    def mirror(self) -> None:
        mirror(self.hub, [self.store], REPO)

    @property
    def prefix(self) -> str:
        return mirror_prefix(REPO, self.hub.look_up(REPO, "main").commit)

    @property
    def content(self) -> dict[str, bytes]:
        return {
            found.key.removeprefix(self.prefix): b"".join(self.bucket.read(found.key))
            for found in self.bucket.list(self.prefix)
            if "manifest" not in found.key
        }

    @property
    def has_manifest(self) -> bool:
        return self.bucket.get(f"{self.prefix}skyferry-manifest.json") is not None

    @property
    def parts_sent(self) -> int:
        return self.store_proxy.count("PUT", "partNumber")

    def is_whole(self) -> bool:
        return self.has_manifest and self.content == FILES and self.bucket.unfinished("") == ()


@pytest.fixture
def world(real_hub: HuggingFaceHub, s3_store: S3Store) -> Iterator[World]:
    """Each in a bucket of its own."""
    bucket = changed(s3_store, bucket=f"b-{uuid4()}")
    bucket.create_bucket()
    with (
        faulty_proxy(urlsplit(real_hub.endpoint).netloc) as before_hub,
        faulty_proxy(urlsplit(bucket.endpoint_url or "").netloc) as before_store,
    ):
        hub = HuggingFaceHub(endpoint=f"http://{before_hub.address}", stall_seconds=0.5)
        store = changed(bucket, endpoint_url=f"http://{before_store.address}")
        yield World(hub, store, before_hub, before_store, bucket)


def changed(store: S3Store, **settings: str) -> S3Store:
    return S3Store.model_validate({**store.model_dump(), **settings})


CONTENT = "/content/maker/model"
BUSY = Fault("GET", CONTENT, "answer", 429, {"Retry-After": "1"})


@pytest.mark.parametrize(
    "fault",
    [
        Fault("GET", CONTENT, "cut"),
        Fault("GET", CONTENT, "stall"),
        Fault("GET", CONTENT, "trickle"),
        Fault("GET", CONTENT, "answer", 500),
        Fault("GET", CONTENT, "answer", 503),
        Fault("GET", "/resolve/", "answer", 502),
        Fault("GET", "/resolve/", "answer", 429),
    ],
    ids=lambda fault: f"{fault.harm}-{fault.status or fault.within}",
)
def test_what_the_hub_does_once_passes(world: World, fault: Fault) -> None:
    """A body that is cut, stalls or trickles, and an answer that may pass, cost that part alone another try."""
    world.hub_proxy.faults.append(fault)
    world.mirror()
    assert world.is_whole()
    assert world.hub_proxy.faults == []
    assert world.parts_sent == 5


def test_a_hub_that_wants_to_be_left_alone_is(world: World) -> None:
    """Retry-After is obeyed: whoever was told comes back no earlier."""
    told: list[float] = []
    came_back: list[float] = []

    def note(_method: str, path: str) -> None:
        if CONTENT in path:
            (came_back if told else told).append(time.monotonic())

    world.hub_proxy.on_request = note
    world.hub_proxy.faults += [BUSY] * 5
    world.mirror()
    assert world.is_whole()
    assert sum(moment - told[0] >= 1 for moment in came_back) >= 5
    assert world.hub_proxy.count("GET", CONTENT, 429) == 5


def test_an_expired_address_is_asked_for_anew(world: World) -> None:
    """The signed address of the content is used until it is refused; then the hub gives another one."""
    world.hub_proxy.faults += [Fault("GET", CONTENT, "answer", 403) for _ in range(2)]
    with pytest.raises(Refused, match="403"):
        world.mirror()  # the very first address is refused: that is no expiry
    world.hub_proxy.faults.clear()
    world.mirror()
    resolved = world.hub_proxy.count("GET", "/resolve/", 302)
    world.hub_proxy.faults.append(Fault("GET", CONTENT, "answer", 403))
    buffer = bytearray(100)
    model = world.hub.look_up(REPO, "main")
    large = next(file for file in model.files if file.path == "model-1.safetensors")
    world.hub.read_part(model, large, 5, memoryview(buffer))
    assert buffer == FILES["model-1.safetensors"][5:105]
    assert world.hub_proxy.count("GET", "/resolve/", 302) == resolved + 1
    assert world.is_whole()


def test_a_flipped_bit_is_read_again(world: World) -> None:
    """Once: the file is read again, and only the part that was wrong is sent again."""
    world.hub_proxy.faults.append(Fault("GET", f"{CONTENT}/", "corrupt"))
    world.mirror()
    assert world.is_whole()
    assert world.parts_sent <= 6


@pytest.mark.parametrize("path", ["model-1.safetensors", "config.json"])
def test_a_bit_that_stays_flipped_is_refused(world: World, path: str) -> None:
    """At the second reading too: refused, with no object, no part and no manifest left."""
    within = "/resolve/.*config" if path == "config.json" else "/content/.*model-1"
    world.hub_proxy.faults += [Fault("GET", within, "corrupt") for _ in range(4)]  # three parts take one each
    with pytest.raises(Refused, match=f"{path}.*read once more"):
        world.mirror()
    assert path not in world.content
    assert not world.has_manifest
    assert not [upload for upload in world.bucket.unfinished("") if upload.key.endswith(path)]


@pytest.mark.parametrize(
    ("method", "within"),
    [
        ("POST", r"\?uploads"),
        ("PUT", "partNumber=2"),
        ("POST", r"\?uploadId"),
        ("PUT", "config.json"),
        ("PUT", "skyferry-manifest.json"),
        ("GET", "list-type=2"),
    ],
)
def test_a_store_that_is_busy_once_passes(world: World, method: str, within: str) -> None:
    """SlowDown at any verb costs another try."""
    world.store_proxy.faults.append(Fault(method, within, "answer", **slow_down()))  # pyright: ignore[reportArgumentType] - see there
    world.mirror()
    assert world.is_whole()
    assert world.store_proxy.faults == []


@pytest.mark.parametrize("within", ["partNumber=1", "config.json"])
def test_bytes_that_change_on_the_way_to_the_store_are_sent_again(world: World, within: str) -> None:
    """The store finds the checksum wrong, and takes the part at the next try."""
    world.store_proxy.faults.append(Fault("PUT", within, "spoil"))
    world.mirror()
    assert world.is_whole()
    assert world.store_proxy.faults == []
    assert any(status >= 400 and within in path for _, path, status in world.store_proxy.requests)


def test_a_store_that_answers_with_a_wrong_checksum_is_not_believed(world: World) -> None:
    """It says that it has other bytes than were sent, so they are sent again."""
    wrong = {"x-amz-checksum-crc64nvme": "AAAAAAAAAAA="}
    world.store_proxy.faults.append(Fault("PUT", "partNumber=2", "headers", headers=wrong))
    world.mirror()
    assert world.is_whole()
    assert world.parts_sent == 6


def test_a_lost_answer_to_the_completion_is_no_harm(world: World) -> None:
    """The object was made and nobody was told: it is found, and the mirror is whole."""
    world.store_proxy.faults.append(Fault("POST", r"\?uploadId", "cut"))
    world.mirror()
    assert world.is_whole()


def test_no_space_says_so_and_leaves_no_manifest(real_hub: HuggingFaceHub, tmp_path: Path) -> None:
    """A store without room ends the run with its words and the story of the tries."""
    with seaweedfs(tmp_path, "-volume.max=1", "-master.volumeSizeLimitMB=8") as store:
        with pytest.raises(Unavailable, match=r"could not .* in 6 tries: try 1: .*disk has room"):
            mirror(real_hub, [store], REPO)
        assert not [found for found in store.list("models/") if "manifest" in found.key]


@pytest.mark.parametrize("seed", range(10))
def test_killed_anywhere_a_rerun_ends_with_the_source(world: World, seed: int) -> None:
    """SIGKILL at a random request to the store: the rerun sends at most one part a worker again, and leaves nothing."""
    workers = 4
    kill_at = Random(seed).randint(1, 18)  # noqa: S311 - a point in time, not a secret
    requests = 0
    child: list[subprocess.Popen[bytes]] = []

    def kill(_method: str, _path: str) -> None:
        nonlocal requests
        with world.store_proxy.lock:
            requests += 1
            due = requests == kill_at
        if due:
            child[0].send_signal(signal.SIGKILL)

    world.store_proxy.on_request = kill
    environment = {
        **os.environ,
        "HUB": world.hub.endpoint,
        "STORE": world.store.endpoint_url or "",
        "BUCKET": world.store.bucket,
        "REPO": REPO,
        "ACCESS_KEY_ID": world.store.access_key_id or "",
        "SECRET_ACCESS_KEY": world.store.secret_access_key.get_secret_value() if world.store.secret_access_key else "",
    }
    child.append(subprocess.Popen([sys.executable, "-m", "tests.mirroring"], env=environment, cwd=ROOT))
    assert child[0].wait(timeout=100) in (-signal.SIGKILL, 0)
    before = world.parts_sent
    world.store_proxy.on_request = lambda _method, _path: None
    world.mirror()
    assert world.is_whole()
    assert world.parts_sent <= 5 + workers
    assert before <= 5


ROOT = Path(__file__).parents[2]
