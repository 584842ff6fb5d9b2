"""Models that embed and rank, released on real parts: llama.cpp on this machine, SeaweedFS, HAProxy, and live users."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from blocks.engines.openai import OpenAIEngine
from blocks.errors import Refused, SkyferryError
from blocks.local.fleet import LocalFleet
from blocks.local.processes import end, marked
from blocks.ports.engine import Answer
from blocks.ports.fleet import ModelKind, ReplicaOrder
from blocks.ports.gateway import WHOLE, Split
from blocks.stores.s3 import S3Store
from flows.plans import ReleasePlan
from flows.policy.releases.installation import INSTALLATION_KEY
from flows.policy.releases.ledger import Release, ServiceRecord, ledger_key
from flows.release import release_model
from flows.runtime.sleep import sleeping_with
from tests.fakes.hub import FakeHub
from tests.flows.conftest import INSTALLATION, REPO, FakeService, World
from tests.gateway.running import Load, RunningGateway, running_gateway
from tests.servers import seaweedfs
from tests.tiny_gguf import tiny_bert, tiny_gguf

EMBEDDERS: dict[str, dict[str, bytes]] = {
    "v1": {"model.gguf": tiny_bert()},
    "v2": {"model.gguf": tiny_bert(seed=1)},
    "zeros": {"model.gguf": tiny_bert(gain=0.0)},
    "wider": {"model.gguf": tiny_bert(width=128)},
    "a-chat": {"model.gguf": tiny_gguf()},
}
RERANKERS: dict[str, dict[str, bytes]] = {
    "v1": {"model.gguf": tiny_bert(ranks=True)},
    "v2": {"model.gguf": tiny_bert(ranks=True, seed=1)},
}
MODELS = {"maker/embedder": EMBEDDERS, "maker/reranker": RERANKERS}
REPOS: dict[ModelKind, str] = {"embedding": "maker/embedder", "rerank": "maker/reranker"}
PATHS: dict[ModelKind, str] = {"embedding": "/v1/embeddings", "rerank": "/v1/rerank"}
BODIES: dict[ModelKind, dict[str, object]] = {
    "embedding": {"input": ["hello", "world"]},
    "rerank": {"query": "hello", "documents": ["hello", "world"]},
}


PAUSE_SECONDS = 0.02
"""Between two requests of a user: the engines share this machine with all else."""
pytestmark = pytest.mark.timeout(300)


@dataclass
class Real:
    world: World
    gateway: RunningGateway
    store: S3Store

    @property
    def record(self) -> ServiceRecord:
        found = self.store.get(ledger_key("chat"))
        return ServiceRecord() if found is None else ServiceRecord.model_validate_json(found.body)

    def release(self, kind: ModelKind, revision: str, **others: Any) -> Release:
        return release_model(
            ReleasePlan(
                service="chat",
                revision=revision,
                kind=kind,
                context_tokens=512,
                stages_percent=(50, 100),
                stage_seconds=0,
                stage_deadline_seconds=60,
                keep_warm_seconds=0,
                **{"repo": REPOS[kind], "parallel_requests": 2, **others},
            )
        )

    def users(self, kind: ModelKind) -> Load:
        return Load(self.gateway.url(path=PATHS[kind]), users=2, body=BODIES[kind], pause_seconds=PAUSE_SECONDS)

    def dimensions(self) -> int:
        answer = httpx.post(self.gateway.url(path="/v1/embeddings"), json=BODIES["embedding"]).raise_for_status()
        return len(answer.json()["data"][0]["embedding"])


@pytest.fixture
def real(world: World, tmp_path: Path) -> Iterator[Real]:
    """Nothing is released yet."""
    with ExitStack() as stack:
        gateway = stack.enter_context(running_gateway(tmp_path / "run"))
        store = stack.enter_context(seaweedfs(tmp_path / "seaweedfs"))
        store.put(INSTALLATION_KEY, INSTALLATION.model_dump_json().encode(), replacing=None)
        fleet = LocalFleet(directory=tmp_path / "fleet", store=store)
        stack.callback(lambda: end([*marked(tmp_path / "fleet")], grace_seconds=1))
        service = world.service
        assert isinstance(service, FakeService)
        service._engine = OpenAIEngine(key_of=fleet.key_of)
        service.hub = FakeHub(MODELS)  # pyright: ignore[reportAttributeAccessIssue] - as in the world
        service.store, service.fleet, service.gateway, service.replicas = store, fleet, gateway.by_socket, 1
        # Real traffic takes its time, and between two looks there has to be some.
        stack.enter_context(sleeping_with(lambda seconds: time.sleep(seconds / 5)))
        yield Real(world, gateway, store)


@pytest.mark.parametrize("kind", ["embedding", "rerank"])
def test_a_good_release_is_promoted_by_what_its_users_ask(real: Real, kind: ModelKind) -> None:
    """Its answers are neither streamed nor words; a chat in between, which it cannot answer, says nothing of it."""
    real.release(kind, "v1")
    body = {"messages": [{"role": "user", "content": "hello"}]}
    chats = Load(real.gateway.url(), users=1, body=body, pause_seconds=10 * PAUSE_SECONDS)
    with real.users(kind) as users, chats:
        release = real.release(kind, "v2")
    assert (release.state, release.engine.kind) == ("live", kind)
    assert [stage.verdict for stage in release.stages] == ["promote", "promote"]
    assert Counter(users.answers) == {200: len(users.answers)}
    assert set(chats.answers) == {500}
    first = release.stages[0].evidence
    assert first is not None
    assert first.answered == (kind,)
    assert real.gateway.by_socket.split("chat") == Split.giving(release.slot, WHOLE)


def test_broken_releases_never_reach_the_users_of_a_good_one(real: Real) -> None:
    """Vectors of zeros, and vectors of another length: neither gets any traffic, and its replicas are gone."""
    live = real.release("embedding", "v1")
    with real.users("embedding") as users:
        with pytest.raises(SkyferryError, match="its embedding is of no use: a vector of 64 numbers is all zeros"):
            real.release("embedding", "zeros")
        with pytest.raises(
            SkyferryError, match="its vectors have 128 numbers and stable's 64, and no index takes both"
        ):
            real.release("embedding", "wider")
        users.goes_on()
    assert [(release.state, len(release.stages)) for release in real.record.releases[1:]] == [("rolled back", 0)] * 2
    fleet = real.world.service.fleet.of_installation(INSTALLATION.id)
    assert {replica.release for replica in fleet.replicas("chat")} == {live.id}
    assert Counter(users.answers) == {200: len(users.answers)}
    assert real.dimensions() == 64


def test_the_same_model_with_another_engine_keeps_its_vectors(real: Real) -> None:
    """A longer queue is another release of the same weights: compared before its first user, and promoted."""
    real.release("embedding", "v1")
    with real.users("embedding") as users:
        release = real.release("embedding", "v1", parallel_requests=1)
    assert release.state == "live"
    assert Counter(users.answers) == {200: len(users.answers)}


def test_the_same_model_that_says_other_vectors_is_rolled_back(world: World) -> None:
    """As by another pooling: it is healthy and quick, and its vectors are not those in the users' index."""
    plan = ReleasePlan(service="chat", repo=REPO, revision="v1", kind="embedding", stages_percent=(50, 100))
    world.hub.models[REPO] = EMBEDDERS  # pyright: ignore[reportIndexIssue] - made for this world
    plan = plan.model_copy(update={"context_tokens": 512, "stage_seconds": 0, "keep_warm_seconds": 0})
    release_model(plan)
    of_the_live = {replica.address for replica in world.fleet.replicas("chat")}

    def turned(order: ReplicaOrder) -> None:
        if order.engine.parallel_requests == 1:
            ports = range(9000, 9010)
            others = {f"127.0.0.1:{port}" for port in ports} - of_the_live
            world.engine.says = dict.fromkeys(others, Answer(200, vector=(0.8, 0.6), is_whole=True))

    world.fleet.on_launch = turned
    with pytest.raises(
        SkyferryError, match=r"its vector of 'Paris' has a cosine of 0\.960 to stable's, of the same model"
    ):
        release_model(plan.model_copy(update={"parallel_requests": 1}))
    assert (world.record.releases[-1].state, world.record.releases[-1].stages) == ("rolled back", ())


def test_a_kind_that_does_not_fit_costs_nothing(real: Real) -> None:
    """Neither is anything mirrored nor started where the weights, the service or the limits say that it cannot be."""
    with pytest.raises(Refused, match="a llama and names no pooling"):
        real.release("embedding", "a-chat")
    with pytest.raises(Refused, match="a bert that pools by mean, and that is no model of kind 'rerank'"):
        real.release("rerank", "v1", repo="maker/embedder")
    with pytest.raises(Refused, match="has no tokens to time"):
        real.release("embedding", "v1", limits={"token_p95_ms": 50.0})
    real.release("embedding", "v1")
    with pytest.raises(Refused, match="of kind 'embedding', whose users a model of kind 'rerank' cannot answer"):
        real.release("rerank", "v1")
    assert len(real.record.releases) == 1
