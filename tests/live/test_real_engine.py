"""A real engine on a real cluster: llama.cpp as the task under deployments/engines has it."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import stamina
import yaml

from blocks.openai_engine import OpenAIEngine
from blocks.ports import MANIFEST, EngineSettings, ReplicaOrder
from blocks.s3 import S3Store
from blocks.skypilot_fleet import SkyPilotFleet
from tests.live.running import offer_in, skypilot_fleet
from tests.live.slurm_lab import SlurmLab
from tests.servers import running_seaweedfs  # noqa: F401 - the fixture s3_store
from tests.tiny_gguf import write_tiny_gguf

pytestmark = [pytest.mark.live, pytest.mark.timeout(400)]

ORDER = ReplicaOrder(
    "chat-7e-0", "chat", "7e", "models/live/1/", EngineSettings(context_tokens=512, parallel_requests=2)
)
TASK = Path(__file__).parents[2] / "deployments" / "engines" / "llama_cpp.yaml"


def task_in(lab: SlurmLab) -> str:
    """The project's own task on machines that have the engine already."""
    task = yaml.safe_load(TASK.read_text())
    task["envs"]["SKYFERRY_PYTHON"] = str(lab.python)
    task["resources"] = {"cpus": 1, "memory": 1}
    return yaml.safe_dump(task)


@pytest.fixture(scope="module")
def fleet(slurm_lab: SlurmLab, s3_store: S3Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SkyPilotFleet]:
    weights = write_tiny_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf").read_bytes()
    with s3_store.upload(f"{ORDER.mirror_prefix}tiny.gguf", len(weights)) as upload:
        upload.write(weights)
    described = {"path": "tiny.gguf", "size_bytes": len(weights), "sha256": hashlib.sha256(weights).hexdigest()}
    s3_store.put(ORDER.mirror_prefix + MANIFEST, json.dumps({"files": [described]}).encode(), replacing=None)
    with skypilot_fleet(tmp_path_factory.mktemp("fleet"), s3_store, slurm_lab, task_in(slurm_lab)) as fleet:
        yield fleet


def test_a_replica_becomes_ready_on_a_cluster(fleet: SkyPilotFleet) -> None:
    """It fetches and checks its weights there, speaks TLS, wants the release's key, and completes a prompt."""
    replica = fleet.launch(ORDER, offer_in("alpha"))
    assert replica.is_tls
    engine = OpenAIEngine(key_of=fleet.key_of, replica_ca=fleet.replica_ca)
    for attempt in stamina.retry_context(on=AssertionError, attempts=None, timeout=120, wait_max=1):
        with attempt:
            assert engine.is_healthy(replica), fleet.log_tail(ORDER.name)
    assert engine.complete(replica)
    assert engine.in_flight(replica) == 0
    assert fleet.replicas("chat") == (replica,)
