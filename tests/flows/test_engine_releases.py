"""An engine is released like a model: llama.cpp here, a real store and gateway, and users who go on asking."""

import random
import re
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Self
from uuid import uuid4

import httpx
import pytest

from blocks.engines.block import Engine
from blocks.engines.openai import OpenAIEngine
from blocks.errors import SkyferryError
from blocks.local.fleet import LocalFleet
from blocks.local.processes import Daemon, end, marked
from blocks.stores.s3 import S3Store
from flows.policy.releases.differences import differences
from flows.policy.releases.ledger import Release, ServiceRecord, ledger_key
from flows.release import release_model
from flows.runtime.sleep import sleeping_with
from flows.scale_up import scale_up
from flows.steps.service import serving
from tests.fakes.hub import FakeHub
from tests.flows.conftest import MODELS, REPO, FakeService
from tests.gateway.running import RunningGateway, running_gateway
from tests.servers import running_seaweedfs  # noqa: F401 - the fixture s3_store

PROMPT_LETTERS = 900
"""A token each: an engine that reads one token at a time takes many times as long as one that reads them together."""
SLOW = {"ubatch-size": 1}


class Users:
    """A few who ask long questions that no replica has read before, while the block lasts."""

    def __init__(self, url: str, users: int = 3) -> None:
        self.answers: list[int | str] = []
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._use, args=(url, seed)) for seed in range(users)]

    def _use(self, url: str, seed: int) -> None:
        letters = random.Random(seed)  # noqa: S311 - what they ask is no secret
        with httpx.Client(timeout=30) as client:
            while not self._over.is_set():
                prompt = "".join(letters.choices("abcdefghijklmnopqrstuvwxyz", k=PROMPT_LETTERS))
                asked = {"messages": [{"role": "user", "content": prompt}], "stream": True, "max_tokens": 4}
                try:
                    self.answers.append(client.post(url, json=asked).status_code)
                except httpx.HTTPError as error:
                    self.answers.append(repr(error))

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


@dataclass(frozen=True)
class Live:
    """v1 is live, as llama.cpp without any flag."""

    service: FakeService
    fleet: LocalFleet
    gateway: RunningGateway

    @property
    def record(self) -> ServiceRecord:
        found = self.service.store.get(ledger_key("chat"))
        assert found is not None
        return ServiceRecord.model_validate_json(found.body)

    @property
    def live(self) -> Release:
        assert self.record.live is not None
        return self.record.live

    @contextmanager
    def users(self) -> Iterator[Users]:
        with Users(self.gateway.url()) as users:
            yield users
        assert {*users.answers} == {200}

    def commands(self) -> dict[str, list[str]]:
        """What each replica was started with, by its name."""
        own = self.fleet.of_installation(self.record.releases[0].installation)
        daemons = {replica.name: Daemon(replica.name, own._home) for replica in own.replicas("chat")}
        found = {name: daemon.find() for name, daemon in daemons.items()}
        return {name: process.cmdline() for name, process in found.items() if process is not None}

    def scale_up_after_a_loss(self) -> list[str]:
        """One replica dies; what the one in its place is started with."""
        own = self.fleet.of_installation(self.record.releases[0].installation)
        (lost, *_) = own.replicas("chat")
        process = Daemon(lost.name, own._home).find()
        assert process is not None
        process.kill()
        process.wait()
        scale_up(service="chat")
        return self.commands()[lost.name]


def plan(revision: str = "v1", **others: object) -> dict[str, Any]:
    return (
        {"service": "chat", "repo": REPO, "revision": revision, "context_tokens": 1024, "parallel_requests": 2}
        | {"stages_percent": (50, 100), "stage_seconds": 0, "stage_deadline_seconds": 90, "keep_warm_seconds": 0}
        | others
    )


@pytest.fixture(scope="module")
def live(
    prefect_api: None,  # noqa: ARG001 - the flows run there
    s3_store: S3Store,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Live]:
    directory = tmp_path_factory.mktemp("engines")
    store = S3Store.model_validate({**s3_store.model_dump(), "bucket": f"engines-{uuid4()}"})
    store.create_bucket()
    fleet = LocalFleet(directory=directory / "fleet", store=store)
    with running_gateway(directory / "gateway") as gateway, ExitStack() as stack:
        service = FakeService.model_construct(
            name="chat",
            endpoint=gateway.url().removesuffix("/chat/completions"),
            hub=FakeHub(MODELS),
            store=store,
            fleet=fleet,
            gateway=gateway.by_socket,
            replicas=2,
            # Engines, users and the flow share two cores, and the tests have no hour: good news is taken on trust, and
            # only what is many times slower than stable is harm.
            error_percent=20,
            missed_harm_percent=50,
            warm_up_seconds=0,
            first_token_p95_ms=15_000,
            token_p95_ms=None,
            slower_than_stable=2,
            first_token_margin_ms=100,
            minimum_requests=12,
            probes_per_stage=0,
        )
        service._engine = OpenAIEngine(key_of=fleet.key_of)
        stack.enter_context(serving(service))
        stack.enter_context(sleeping_with(lambda seconds: time.sleep(seconds / 5)))
        release_model(**plan())
        yield Live(service, fleet, gateway)
        end([*marked(directory)], grace_seconds=1)


def test_a_harmless_flag_is_promoted_by_all_stages(live: Live) -> None:
    """The same model with another engine is a release; that engine is started later, whatever the block says."""
    before = live.live
    with live.users():
        release = release_model(**plan(engine_flags={"cache-ram": 64}))
    assert release.id != before.id
    assert [stage.verdict for stage in release.stages] == ["promote", "promote"]
    assert differences(before, release) == ("flag --cache-ram: not set → 64",)
    assert all("--cache-ram=64" in command for command in live.commands().values())
    live.service.engine = Engine(name="llama.cpp", flags={"cache-ram": 32})
    assert "--cache-ram=64" in live.scale_up_after_a_loss()


def test_a_flag_that_makes_it_slow_is_rolled_back(live: Live) -> None:
    """By the gate on the time to first token; stable goes on, and comes back as what it was."""
    before, stable = live.live, live.commands()
    live.service.engine = None
    with live.users(), pytest.raises(SkyferryError, match=r"Rolled back at 50 %"):
        release_model(**plan(engine_flags=SLOW))
    refused = live.record.releases[-1]
    assert refused.engine.build is not None
    assert dict(refused.engine.build.flags) == {"ubatch-size": "1"}
    (stage,) = refused.stages
    assert stage.verdict == "roll back"
    assert re.search("first token|first answers", stage.reason)
    assert live.live == before
    live.service.engine = Engine(name="llama.cpp", flags=SLOW)
    (name,) = {*stable} - {*sorted(stable)[1:]}
    assert _without_port(live.scale_up_after_a_loss()) == _without_port(stable[name])


def test_an_engine_that_does_not_start_is_refused_with_its_last_words(live: Live) -> None:
    """What no table of flags knows the engine says itself, and no user has met it."""
    before, stable = live.live, live.commands()
    live.service.engine = None
    broken = {"cache-type-v": "q8_0", "flash-attn": "off"}
    with live.users(), pytest.raises(SkyferryError, match=r"(?s)its last words:.*llama\.cpp did not start"):
        release_model(**plan(engine_flags=broken))
    assert live.live == before
    assert live.record.releases[-1].state == "rolled back"
    live.service.engine = Engine(name="llama.cpp", flags=broken)
    (name,) = {*stable} - {*sorted(stable)[1:]}
    assert _without_port(live.scale_up_after_a_loss()) == _without_port(stable[name])


def _without_port(command: list[str]) -> list[str]:
    return [word for word, before in zip(command, ["", *command], strict=False) if before != "--port"]
