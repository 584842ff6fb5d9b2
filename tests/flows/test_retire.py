"""What was replaced stays warm with nobody waiting for it, and goes when its time is over."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId

from blocks.errors import Refused, SkyferryError
from flows.policy.releases.events import Event
from flows.policy.releases.ledger import Release
from flows.release import release_model
from flows.retire import retire_release
from flows.roll_back import roll_back
from flows.runtime.events import telling
from flows.runtime.sleep import sleeping_with
from flows.scale_down import scale_down
from flows.scale_up import scale_up
from tests.flows.conftest import World
from tests.flows.test_release import FAILED, plan

WARM_SECONDS = 900


@pytest.fixture
def deployed() -> Iterator[SyncPrefectClient]:
    """Prefect knows the deployment that stops what was replaced; nobody works on it here."""
    with get_client(sync_client=True) as client:
        deployment = client.create_deployment(client.create_flow(retire_release), "chat")
        yield client
        client.delete_deployment(deployment)


def never(seconds: float) -> None:
    """Nobody waits in the warm time."""
    assert seconds < WARM_SECONDS


def states(world: World) -> list[str]:
    return [release.state for release in world.record.releases]


def scheduled(client: SyncPrefectClient) -> list[tuple[dict[str, object], datetime | None]]:
    of_it = DeploymentFilter(id=DeploymentFilterId(any_=[client.read_deployment_by_name("retire-release/chat").id]))
    runs = client.read_flow_runs(deployment_filter=of_it)
    return [(run.parameters, run.expected_start_time) for run in runs]


@pytest.fixture
def warm(live: World, deployed: SyncPrefectClient) -> Release:  # noqa: ARG001 - it comes before
    """The first release, replaced by the second one, whose run has ended."""
    with sleeping_with(never):
        assert release_model(**plan("v2", keep_warm_seconds=WARM_SECONDS)).state == "live"
    return live.record.releases[0]


def test_the_run_ends_and_another_one_is_planned(live: World, warm: Release, deployed: SyncPrefectClient) -> None:
    """For the end of the warm time, with what it has to know; until then the old replicas are ready."""
    assert states(live) == ["retiring", "live"]
    ((parameters, at),) = scheduled(deployed)
    assert parameters == {"service": "chat", "release": warm.id}
    assert warm.warm_until == at
    assert at is not None
    assert timedelta(seconds=WARM_SECONDS - 120) < at - datetime.now(UTC) <= timedelta(seconds=WARM_SECONDS)
    assert len([r for r in live.fleet.replicas("chat") if r.release == warm.id]) == 2


def test_the_night_leaves_it_warm(live: World, warm: Release) -> None:
    """Though the run that replaced it has ended."""
    scale_down(service="chat")
    assert len([r for r in live.fleet.replicas("chat") if r.release == warm.id]) == 2
    assert live.record.release(warm.id).state == "retiring"


def test_its_run_stops_it_and_once_more_does_nothing(live: World, warm: Release) -> None:
    """A person may run it before its time, and the planned one finds it done."""
    assert retire_release(service="chat", release=warm.id).state == "retired"
    assert {r.release for r in live.fleet.replicas("chat")} == {live.record.releases[1].id}
    assert retire_release(service="chat", release=warm.id).state == "retired"


def test_what_users_have_gone_back_to_is_not_stopped(live: World, warm: Release) -> None:
    """The planned run says so, and they keep it."""
    roll_back(service="chat", reason="users complain")
    with pytest.raises(Refused, match=rf"{warm.id} is live, so it is not retired"):
        retire_release(service="chat", release=warm.id)
    assert len([r for r in live.fleet.replicas("chat") if r.release == warm.id]) == 2


def test_the_next_release_says_until_when_the_slot_is_taken(live: World, warm: Release) -> None:
    """And what makes it free now."""
    with pytest.raises(Refused, match=rf"{warm.id} is retiring and warm until .*run that flow now"):
        release_model(**plan("v3"))
    assert states(live) == ["retiring", "live"]


def test_without_such_a_deployment_the_run_waits_itself(live: World, caplog: pytest.LogCaptureFixture) -> None:
    """And says why; what was replaced goes all the same."""
    waits: list[float] = []
    with sleeping_with(waits.append):
        release_model(**plan("v2", keep_warm_seconds=WARM_SECONDS))
    assert WARM_SECONDS in waits
    assert states(live) == ["retired", "live"]
    assert "Prefect knows no deployment retire-release/chat; run `prefect deploy --all`" in caplog.text


# --- What is told meanwhile ------------------------------------------------------------------------------------------


@pytest.fixture
def told() -> Iterator[list[Event]]:
    events: list[Event] = []
    with telling(events.append):
        yield events


def names(events: list[Event]) -> list[str]:
    """Each once, in the order in which they happened."""
    return [event.name.removeprefix("skyferry.") for event in {event.id: event for event in events}.values()]


def test_a_promoted_release_tells_its_way(live: World, told: list[Event]) -> None:
    """Once each, though tasks are taken again and links of the chain look at the same ledger."""
    release = release_model(**plan("v2"))
    assert names(told) == [
        "release.opened",
        "mirror.written",
        "release.stage.passed",
        "release.stage.passed",
        "release.replaced",
        "release.promoted",
        "release.retired",
    ]
    promoted = next(event for event in told if event.name == "skyferry.release.promoted")
    assert promoted.resource == f"skyferry.release.{release.id}"
    assert promoted.related["service"] == "skyferry.service.chat"
    assert promoted.payload["weight_percent"] == 100
    assert promoted.payload["ledger_version"] == live.record.release(release.id).version


def test_a_release_that_is_taken_back_tells_why(live: World, told: list[Event]) -> None:
    """With the gate's reason, the weight and how many requests met it."""
    live.users.see("green", FAILED, 30)
    with pytest.raises(SkyferryError, match="Rolled back at 10 %"):
        release_model(**plan("v2"))
    assert names(told) == ["release.opened", "mirror.written", "release.stage.failed", "release.rolled-back"]
    (stage,) = live.record.releases[-1].stages
    assert (told[-1].payload["weight_percent"], told[-1].payload["requests"]) == (10, stage.requests)
    assert stage.requests >= 30
    assert "30 of 30 (100.0 %) requests failed" in str(told[-1].payload["reason"])


def test_the_night_and_the_morning_tell_what_they_changed(live: World, told: list[Event]) -> None:
    """Each replica by its name, and the number that is wanted; what changes nothing tells nothing."""
    (gone,) = scale_down(service="chat")
    scale_down(service="chat")
    scale_up(service="chat")
    scale_up(service="chat")
    assert names(told) == ["fleet.scaled", "fleet.scaled"]
    down, up = told
    assert (down.payload["stopped"], down.payload["wanted"]) == ([gone.name], 1)
    assert (up.payload["started"], up.payload["wanted"]) == ([gone.name], None)
    assert live.record.wanted is None


def test_who_cannot_be_told_keeps_no_release_back(live: World) -> None:
    """Whatever breaks in telling."""

    def tell(_: Event) -> None:
        raise RuntimeError("nobody listens")

    with telling(tell):
        assert release_model(**plan("v2")).state == "live"
    assert states(live) == ["retired", "live"]
