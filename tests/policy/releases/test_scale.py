"""Which replicas go at night, and when the others come back."""

from collections.abc import Sequence
from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest

from blocks.errors import Refused
from blocks.ports.fleet import EngineSettings, Replica
from blocks.ports.gateway import Server
from flows.policy.releases.ledger import Release, ServiceRecord, State
from flows.policy.releases.scale import check_keep, next_time, spare_what_alone_answers, what_to_stop, when_to_start


def release(name: str, state: State) -> Release:
    return Release(
        id=name,
        service="chat",
        repo="a/b",
        commit="c",
        engine=EngineSettings(1024, 2),
        slot="blue",
        state=state,
        run_id="run",
        opened_at=datetime(2026, 1, 1, tzinfo=UTC),
    )


RECORD = ServiceRecord(
    releases=(
        release("live", "live"),
        release("old", "retiring"),
        release("bad", "rolled back"),
        release("new", "in progress"),
    )
)


def replica(release: str, number: int) -> Replica:
    return Replica(f"{release}-{number}", "chat", release, "local", f"{release}:{number}")


def up(*replicas: Replica) -> list[Server]:
    return [Server("blue", replica.address, "up", 0) for replica in replicas]


def stopped(
    replicas: list[Replica],
    servers: list[Server],
    wanted: int,
    *keep: str,
    warm: Sequence[str] = (),
    to_zero: bool = False,
    hung: Sequence[Replica] = (),
    is_way_back: bool = False,
) -> list[str]:
    """As scale-down has it: the engines of those that are up say that they are well, unless they are `hung`."""
    healthy = {server.address for server in servers} - {replica.address for replica in hung}
    decisions = what_to_stop(
        replicas, servers, RECORD, wanted, keep, warm, healthy=healthy, to_zero=to_zero, is_way_back=is_way_back
    )
    if not to_zero:
        decisions = spare_what_alone_answers(decisions, servers, healthy)
    assert [decision.replica for decision in decisions] == replicas
    assert all(decision.reason for decision in decisions)
    return [decision.replica.name for decision in decisions if decision.stop]


LIVE = [replica("live", number) for number in range(3)]


def test_the_night_keeps_the_wanted_number() -> None:
    """Three run, one is wanted, two go."""
    assert len(stopped(LIVE, up(*LIVE), 1)) == 2


def test_the_last_healthy_one_stays() -> None:
    """With one healthy replica of three, that one stays and the others go."""
    assert stopped(LIVE, up(LIVE[2]), 1) == ["live-0", "live-1"]


def test_the_one_that_stays_is_well_by_its_own_word() -> None:
    """The gateway sees a death a second late: of two that are up for it, the one whose engine answers stays."""
    assert stopped(LIVE[:2], up(*LIVE[:2]), 1, hung=LIVE[:1]) == ["live-0"]


def test_while_a_candidate_has_a_share_its_stable_is_whole() -> None:
    """Its replicas are the candidate's way back, whatever the night wants; what an ended release left still goes."""
    bad = replica("bad", 0)
    assert stopped([*LIVE, bad], up(*LIVE, bad), 1, is_way_back=True) == ["bad-0"]


def test_what_answers_for_a_dead_release_stays() -> None:
    """Where no replica of the live release is up, one that is rolled back and up answers its users."""
    bad = replica("bad", 0)
    assert stopped([*LIVE, bad], up(bad), 3) == []
    assert stopped([*LIVE, bad], up(LIVE[0], bad), 3) == ["bad-0"]
    assert stopped([*LIVE, bad], [], 3) == ["bad-0"]


def test_zero_has_to_be_said() -> None:
    """Nothing goes below one replica unless told to."""
    assert len(stopped(LIVE, up(*LIVE), 0)) == 2
    assert len(stopped(LIVE, up(*LIVE), 0, to_zero=True)) == 3


def test_the_keep_list_is_kept() -> None:
    """By replica or by release."""
    assert "live-2" not in stopped(LIVE, up(*LIVE), 1, "live-2")
    assert stopped(LIVE, up(*LIVE), 1, "live") == []


def test_what_ended_releases_left_goes_and_the_candidate_stays() -> None:
    """Retiring and rolled back go, in progress stays, and what the ledger does not know is not touched."""
    others = [replica(name, 0) for name in ("old", "bad", "new", "stranger")]
    assert stopped([LIVE[0], *others], up(LIVE[0]), 1) == ["old-0", "bad-0"]


def test_a_fleet_that_its_run_keeps_warm_stays() -> None:
    """Somebody may want it back."""
    old = replica("old", 0)
    assert stopped([LIVE[0], old], up(LIVE[0]), 1, warm=["old"]) == []


def test_without_a_healthy_one_as_many_as_wanted_stay() -> None:
    """Replicas that only start up, or are down for a moment, are not all stopped."""
    assert len(stopped(LIVE, [], 1)) == 2


@pytest.mark.parametrize(("hour", "day"), [(21, 1), (18, 1), (7, 2)])
def test_the_time_that_is_meant_is_the_next_or_one_just_past(hour: int, day: int) -> None:
    """A run that comes an hour too late means today's time; in the time zone that was asked for."""
    now = datetime(2026, 1, 1, 20, tzinfo=ZoneInfo("Europe/Berlin"))
    assert next_time(time(hour), now) == datetime(2026, 1, day, hour, tzinfo=ZoneInfo("Europe/Berlin"))


def test_the_start_is_timed_from_the_slowest_start_before() -> None:
    """Half as long again as the slowest; a quarter of an hour where nothing is known."""
    ready_by = datetime(2026, 1, 1, 7, tzinfo=UTC)
    assert when_to_start(ready_by, (60, 120)) == ready_by - timedelta(seconds=180)
    assert when_to_start(ready_by, ()) == ready_by - timedelta(minutes=15)


def test_a_start_is_timed_by_what_passes_and_not_by_the_clock_on_the_wall() -> None:
    """In the night in which the clock goes from two to three, an hour and a half before half past three is at one."""
    ready_by = datetime(2026, 3, 29, 3, 30, tzinfo=ZoneInfo("Europe/Berlin"))
    assert when_to_start(ready_by, (3600,)).astimezone(UTC) == datetime(2026, 3, 29, 0, 0, tzinfo=UTC)


def test_a_name_to_keep_that_nobody_has_is_refused() -> None:
    """Misspelt, so what was meant would go; one that has died, or a release that has ended, is no mistake."""
    standing = [replica("live", 0), replica("live", 1)]
    check_keep(("live", "live-7", "bad"), standing, RECORD)
    with pytest.raises(Refused, match=r"keep has 'chat-x', .* there are bad, live, live-0"):
        check_keep(("live-0", "chat-x"), standing, RECORD)
