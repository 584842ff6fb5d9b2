"""Stages under real traffic: a real HAProxy, replicas that do as they are told, and the judge that looks at its log."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from blocks.engines.openai import OpenAIEngine
from blocks.errors import SkyferryError, Unavailable
from blocks.ports.gateway import WHOLE, Split
from blocks.service import GoldenPrompt
from flows.policy.releases.ledger import Release
from flows.promote import promote_canary
from flows.release import release_model
from flows.runtime.sleep import sleeping_with
from flows.scale_down import scale_down
from flows.scale_up import scale_up
from tests.flows.conftest import FakeService, World
from tests.flows.test_release import plan
from tests.flows.test_steps import provision
from tests.gateway.crowd import Crowd
from tests.gateway.replica import Replica
from tests.gateway.running import Load, RunningGateway, running_gateway, wait_until


@dataclass
class Live:
    world: World
    gateway: RunningGateway
    replicas: Sequence[Replica]
    """Two of the live release, then two of its candidate."""

    @property
    def candidate(self) -> Release:
        return self.world.record.releases[-1]

    def once_half_is_given(self, act: Callable[[], object]) -> None:
        """As a replica that fails before its release has any traffic is never given some."""
        wait_until(
            "the share is given", lambda: self.gateway.by_socket.split("chat") == Split(WHOLE // 2), timeout_seconds=60
        )
        act()

    def fail(self, *numbers: int) -> None:
        for number in numbers:
            self.replicas[number].fails = True

    def die(self, *numbers: int) -> None:
        """Their machines go as well: the fleet knows them no more."""
        for number in numbers:
            self.replicas[number].stop()
            (name,) = (r.name for r in self.world.fleet.replicas("chat") if r.address == self.replicas[number].address)
            self.world.fleet.kill(name)

    def servers(self) -> set[tuple[str, str]]:
        return {(server.address, server.state) for server in self.gateway.by_socket.servers("chat")}

    def ask(self, times: int) -> None:
        for _ in range(times):
            self.gateway.ask()


@pytest.fixture
def live(world: World, tmp_path: Path) -> Iterator[Live]:
    """v1 is live on a real gateway, with two replicas; nobody calls yet, and no times are promised."""
    with running_gateway(tmp_path / "run") as gateway, ExitStack() as stack:
        replicas = [stack.enter_context(Replica(name)) for name in ("stable-0", "stable-1", "new-0", "new-1")]
        world.fleet._ports = iter([replica.port for replica in replicas])
        service = world.service
        assert isinstance(service, FakeService)
        service._engine = OpenAIEngine()
        service.gateway, service.first_token_p95_ms, service.token_p95_ms = gateway.by_socket, None, None
        # Answers of three milliseconds: what a busy machine adds is no harm.
        service.first_token_margin_ms = 1000
        # A long round, so that a stage is not over after a few looks.
        service.golden_prompts = [GoldenPrompt(prompt="Hello?")] * 60
        # Real traffic takes its time, and between two looks there has to be some.
        stack.enter_context(sleeping_with(lambda seconds: time.sleep(seconds / 5)))
        release_model(**plan("v1"))
        yield Live(world, gateway, replicas)


def released(stages: tuple[int, ...], deadline_seconds: float) -> dict[str, Any]:
    return plan("v2", stages, stage_deadline_seconds=deadline_seconds)


def test_a_candidate_that_is_bad_in_one_cell_goes_on_without_it(live: Live) -> None:
    """One of its two replicas fails every request: it is drained, and users have the other one in the end."""
    with ThreadPoolExecutor(1) as meanwhile, Load(live.gateway.url()):
        meanwhile.submit(live.once_half_is_given, lambda: live.fail(2))
        release = release_model(**released((50, 100), 60))
    assert release.state == "live"
    first = release.stages[0].evidence
    assert first is not None
    # Replicas start side by side, and either may have got the address of the one that fails.
    names = {replica.address: replica.name for replica in live.world.fleet.replicas("chat")}
    assert first.dropped == (names[live.replicas[2].address],)
    states = {server.address: server.state for server in live.gateway.by_socket.servers("chat")}
    assert states == {live.replicas[2].address: "draining", live.replicas[3].address: "up"}


def test_where_nobody_calls_probes_are_sent_and_do_not_promote(live: Live) -> None:
    """They reach both releases past the gateway; the stage is held, and rolled back at its deadline in words."""
    with pytest.raises(SkyferryError, match=r"not passed within 4 s: 0 of the 20 requests of the candidate"):
        release_model(**released((50, 100), 4))
    (stage,) = live.candidate.stages
    assert stage.probed is not None
    assert stage.probed.evidence.requests == stage.probed.evidence.stable_requests > 0
    assert (stage.requests, stage.evidence and stage.evidence.stable_requests) == (0, 0)
    assert live.gateway.by_socket.split("chat") == Split(0)


def test_probes_find_a_bad_candidate_that_nobody_calls(live: Live) -> None:
    """It fails each of them and stable none: it is taken back long before the deadline, and no user was harmed."""
    reason = r"Rolled back at 50 %: (\d+) of \1 \(100.0 %\) requests failed.* \(probes\)"
    with ThreadPoolExecutor(1) as meanwhile:
        meanwhile.submit(live.once_half_is_given, lambda: live.fail(2, 3))
        with pytest.raises(SkyferryError, match=reason):
            release_model(**released((50, 100), 20))


def test_traffic_that_stops_half_way_is_made_up_for_once(live: Live) -> None:
    """Some fifty users of the candidate are no 172: probes are the rest. In the next stage nobody calls at all."""
    with ThreadPoolExecutor(1) as users:
        asked = users.submit(live.once_half_is_given, lambda: live.ask(100))
        with pytest.raises(SkyferryError, match=r"Rolled back at 100 %: not passed within 12 s: 0 of the 20"):
            release_model(**released((50, 100), 12))
        asked.result()
    passed, idle = live.candidate.stages
    assert (passed.verdict, idle.verdict) == ("promote", "roll back")
    assert 20 <= passed.requests < 100
    assert passed.probed is not None
    assert passed.requests + passed.probed.evidence.requests >= 172


def test_a_candidate_answers_in_place_of_a_live_release_that_has_died(live: Live) -> None:
    """Taken back by its guard, it answers all users, at night too, until the live one is up again and it can go."""
    provision("v2")
    stable, candidate = live.world.first.id, live.candidate.id
    told = rf"no replica of {stable} is up, so those of {candidate} go on answering .*: run scale-up, .* scale-down"
    users = Load(live.gateway.url())
    with Replica("again-0") as one, Replica("again-1") as other, ExitStack() as calling:

        def die() -> None:
            live.die(0, 1)
            calling.enter_context(users)

        with ThreadPoolExecutor(1) as meanwhile:
            meanwhile.submit(live.once_half_is_given, die)
            with pytest.raises(Unavailable, match=told):
                promote_canary(service="chat", stages_percent=(50, 100), stage_seconds=0, stage_deadline_seconds=3)
        assert (live.gateway.by_socket.split("chat"), live.candidate.state) == (Split(0), "rolled back")
        scale_down(service="chat")
        left = {(replica.address, "up") for replica in live.replicas[2:]}
        assert left <= live.servers()
        users.goes_on()
        live.world.fleet._ports = iter([one.port, other.port])
        scale_up(service="chat")
        back = {(replica.address, "up") for replica in (one, other)}
        wait_until("the live release is up", lambda: live.servers() == left | back)
        scale_down(service="chat", replicas=2)
        assert live.servers() == back
        users.goes_on()
    assert {replica.release for replica in live.world.fleet.replicas("chat")} == {stable}
    assert Counter(users.answers) == {200: len(users.answers)}


def test_a_good_release_is_promoted_whatever_its_users_send(live: Live) -> None:
    """Embeddings, pictures, pings, preflights, retries and slow uploads among chats: none of it is the release's."""
    with Crowd(live.gateway.url()) as crowd:
        release = release_model(**released((50, 100), 90))
    assert release.state == "live"
    assert [stage.verdict for stage in release.stages] == ["promote", "promote"]
    assert (crowd.of("chat"), crowd.of("ping"), crowd.of("slow upload")) == ({200}, {200}, {200})
    assert (crowd.of("embedding"), crowd.of("image"), crowd.of("retry")) == ({501}, {500}, {500})
    assert (crowd.of("preflight"), crowd.of("nowhere")) == ({405}, {404})


@pytest.mark.parametrize("share", [50, 100])
def test_a_bad_release_is_rolled_back_whatever_its_users_send(live: Live, share: int) -> None:
    """The same crowd does not hide that it fails, and gets its answers again at once."""
    given = Split(WHOLE * share // 100)
    with ThreadPoolExecutor(1) as meanwhile, Crowd(live.gateway.url()) as crowd:

        def fail_once_given() -> None:
            wait_until("it is given", lambda: live.gateway.by_socket.split("chat") == given, timeout_seconds=60)
            live.fail(2, 3)

        failing = meanwhile.submit(fail_once_given)
        with pytest.raises(SkyferryError, match=rf"Rolled back at {share} %"):
            release_model(**released((50, 100), 90))
        failing.result()
        assert live.gateway.by_socket.split("chat") == Split(0)
        crowd.goes_on()
