"""Flows on fakes: a real Prefect API for the whole session, and a world in memory for each test."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from threading import Lock
from typing import Any, Self

import pytest
from prefect.settings import (
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
    PREFECT_LOGGING_TO_API_ENABLED,
    PREFECT_SERVER_ANALYTICS_ENABLED,
    PREFECT_SERVER_SERVICES_EVENT_PERSISTER_ENABLED,
    PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_ENABLED,
    PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED,
    temporary_settings,
)
from prefect.testing.utilities import prefect_test_harness

from blocks.errors import Refused, SkyferryError
from blocks.ports.engine import Engine
from blocks.ports.gateway import Outcome, Reading, Server, Slot, Split
from blocks.service import Service
from flows.boards.artifacts import wait_until_shown
from flows.plans import ReleasePlan
from flows.policy.releases.installation import INSTALLATION_KEY, Installation
from flows.policy.releases.ledger import Release, ServiceRecord, ledger_key
from flows.release import release_model
from flows.runtime.sleep import sleeping_with
from flows.steps.service import serving
from tests.fakes.fleet import OFFER, FakeEngine, FakeFleet
from tests.fakes.gateway import FakeGateway
from tests.fakes.hub import FakeHub
from tests.fakes.market import FakeMarket
from tests.fakes.store import FakeStore
from tests.tiny_gguf import tiny_gguf

REPO = "maker/model"
WEIGHTS = tiny_gguf()
MODELS = {
    REPO: {
        revision: {"model.gguf": WEIGHTS, "README.md": f"---\nlicense: mit\n---\n{revision}".encode()}
        for revision in ("v1", "v2", "v3")
    }
}
INSTALLATION = Installation(id="0123456789abcdef", made_at=datetime(2026, 1, 1, tzinfo=UTC))
"""Every world's: so what a test launches in its fleet is the service's own."""
FAST_MS, FAST_TOKEN_MS = 50.0, 20.0
GOOD = Outcome(
    id="request",
    at=0,
    slot="blue",
    address="127.0.0.1:9000",
    status=200,
    first_token_ms=FAST_MS,
    tokens=50,
    per_token_ms=FAST_TOKEN_MS,
    total_ms=100,
    user=None,
    retried=False,
    by_fallback=False,
    cut_short=False,
    is_empty=False,
    user_left=False,
)


REQUESTS_A_LOOK = 4000
_random = Random(1)  # noqa: S311 - the same each time, and no secret
FIRST_TOKENS_MS = tuple(40 * _random.lognormvariate(0, 0.5) for _ in range(REQUESTS_A_LOOK))


@dataclass
class Users:
    """What the users of each slot see at each look at the request log."""

    seen: dict[Slot, tuple[Outcome, int | None]] = field(
        default_factory=lambda: {"blue": (GOOD, 0), "green": (GOOD, 0)}
    )

    def see(self, slot: Slot, outcome: Outcome, times: int | None = None) -> None:
        """So many times; without a number, as often as the split says."""
        self.seen[slot] = (replace(outcome, slot=slot), times)

    failing: set[str] = field(default_factory=set)
    """Addresses of replicas that fail a tenth of what comes to them."""

    def requests(self, split: Split, servers: Sequence[Server]) -> Iterator[Outcome]:
        for number, ms in enumerate(FIRST_TOKENS_MS):
            slot: Slot = "green" if number * 7919 % 10_000 < split.green_basis_points else "blue"
            outcome, times = self.seen[slot]
            if times is None:
                took = None if outcome.first_token_ms is None else ms * outcome.first_token_ms / FAST_MS
                up = [server.address for server in servers if server.slot == slot and server.state == "up"]
                address = up[number % len(up)] if up else None
                fails = address in self.failing and number * 7907 % 10 == 0
                status = 500 if fails else outcome.status
                yield replace(outcome, first_token_ms=None if fails else took, address=address, status=status)
        for outcome, times in self.seen.values():
            yield from [outcome] * (times or 0)


class GatewayWithUsers(FakeGateway):
    """Whenever the log is read, more requests have ended meanwhile."""

    def __init__(self, service: str, users: Users) -> None:
        super().__init__(service)
        self.users = users
        self.splits: list[int] = []
        self.on_next_look: list[Callable[[], None]] = []
        """Each happens once, at one of the next looks at the request log."""
        self.says_no = False
        self.log_failures: deque[SkyferryError] = deque()
        """Each is raised once, by the next looks at the request log in turn."""

    def set_split(self, service: str, split: Split) -> None:
        self._answer()
        super().set_split(service, split)
        self.splits.append(split.green_basis_points)

    def requests(self, service: str, after: str | None) -> Reading:
        if after is not None:
            if self.log_failures:
                raise self.log_failures.popleft()
            if self.on_next_look:
                self.on_next_look.pop()()
            self.append(service, *self.users.requests(super().split(service), super().servers(service)))
        return super().requests(service, after)

    def split(self, service: str) -> Split:
        self._answer()
        return super().split(service)

    def _answer(self) -> None:
        if self.says_no:
            raise Refused("the certificates do not fit")


class FakeService(Service):
    """A service whose engine is a fake as well."""

    _block_type_name = "Fake Service"
    _block_type_slug = "fake-service"
    _engine: Engine | None = None

    @property
    def engine_client(self) -> Engine:
        assert self._engine is not None
        return self._engine


@dataclass
class FakeCloud(FakeFleet, FakeMarket):
    """What a fleet's block is: it runs replicas, and says what can be rented."""


@dataclass
class World:
    service: Service
    hub: FakeHub
    store: FakeStore
    fleet: FakeCloud
    engine: FakeEngine
    gateway: GatewayWithUsers
    users: Users

    @property
    def record(self) -> ServiceRecord:
        found = self.store.get(ledger_key("chat"))
        return ServiceRecord() if found is None else ServiceRecord.model_validate_json(found.body)

    @property
    def first(self) -> Release:
        """The oldest release that the ledger knows."""
        return self.record.releases[0]

    @contextmanager
    def in_use(self) -> Iterator[Self]:
        """Flows act in this world, and whenever they wait, time has passed."""
        with serving(self.service), sleeping_with(lambda _: None):
            yield self


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of these need Prefect's server."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.server)


@pytest.fixture(scope="session", autouse=True)
def prefect_api() -> Iterator[None]:
    quiet: dict[Any, Any] = {
        PREFECT_LOGGING_TO_API_ENABLED: False,
        PREFECT_SERVER_ANALYTICS_ENABLED: False,
        # Heartbeats matter to no test here, and the thread that sends them holds up the end of each flow.
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None,
        # No flow and no test here reads task runs or events, and whenever the server writes some it locks SQLite: who
        # comes just then, as most subflows did, is told to come back in two seconds, or waits a minute for the lock.
        PREFECT_SERVER_SERVICES_EVENT_PERSISTER_ENABLED: False,
        PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_ENABLED: False,
        PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED: False,
    }
    with temporary_settings(quiet), prefect_test_harness(server_startup_timeout=120):
        yield
        wait_until_shown()


def new_world() -> World:
    users = Users()
    users.see("blue", GOOD)
    users.see("green", GOOD)
    hub, store, fleet = FakeHub(MODELS), FakeStore(), FakeCloud(listed=[OFFER], installation=INSTALLATION.id)
    store.put(INSTALLATION_KEY, INSTALLATION.model_dump_json().encode(), replacing=None)
    gateway, engine = GatewayWithUsers("chat", users), FakeEngine(fleet)
    # The fields are typed as the real blocks, for the form in the UI; fakes come in unvalidated.
    service = FakeService.model_construct(
        name="chat",
        endpoint="http://127.0.0.1:1/v1",
        hub=hub,
        store=store,
        fleet=fleet,
        gateway=gateway,
        replicas=2,
        night_replicas=1,
        max_dollars_per_hour=None,
        error_percent=1.0,
        first_token_p95_ms=500.0,
        token_p95_ms=100.0,
        slower_than_stable=1.1,
        first_token_margin_ms=0.0,
        token_margin_ms=0.0,
        more_than_stable=1.1,
        error_margin_percent=0.25,
        false_alarm_percent=1.0,
        missed_harm_percent=5.0,
        minimum_requests=20,
        warm_up_seconds=0.0,
    )
    service._engine = engine
    return World(service, hub, store, fleet, engine, gateway, users)


@pytest.fixture
def world() -> Iterator[World]:
    """Nothing is released yet."""
    with new_world().in_use() as world:
        yield world


@pytest.fixture(scope="session")
def world_after_a_release(prefect_api: None) -> World:  # noqa: ARG001 - the flow runs there
    with new_world().in_use() as world:
        release_model(ReleasePlan(service="chat", repo=REPO, revision="v1", stages_percent=(100,), stage_seconds=0))
    return world


@pytest.fixture
def live(world_after_a_release: World) -> Iterator[World]:
    """As the release of v1 has left it; each test gets a copy, for the release takes seconds."""
    lock = world_after_a_release.store._lock  # the one thing in it that cannot be copied
    with deepcopy(world_after_a_release, {id(lock): Lock()}).in_use() as world:
        yield world
