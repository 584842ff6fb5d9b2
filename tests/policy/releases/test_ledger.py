"""The steps that a service's record may take."""

from datetime import UTC, datetime

import pytest

from blocks.errors import Refused
from blocks.ports.fleet import EngineSettings
from flows.policy.placement.plan import PlacementRules
from flows.policy.releases.ledger import (
    ServiceRecord,
    Stage,
    ask_for,
    back_out,
    begin_stopping,
    go_live,
    note_stage,
    note_start,
    open_release,
    owned_by,
    release_id,
    replica_orders,
    retire,
    take_over,
    what_to_back_out,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ENGINE = EngineSettings(context_tokens=1024, parallel_requests=2)
NOTHING = ServiceRecord()


def opened(record: ServiceRecord, commit: str, run_id: str = "run", ended_run_id: str | None = None) -> ServiceRecord:
    return open_release(
        record,
        "chat",
        "a/b",
        commit,
        ENGINE,
        placement=PlacementRules(),
        run_id=run_id,
        ended_run_id=ended_run_id,
        now=NOW,
    )


def with_live(commit: str = "v1", record: ServiceRecord = NOTHING) -> ServiceRecord:
    return go_live(opened(record, commit), "run")


def backed_out(record: ServiceRecord, reason: str = "bad") -> ServiceRecord:
    return back_out(record, what_to_back_out(record).id, reason)


def test_the_id_says_what_a_release_is() -> None:
    """The same model and engine give the same id; another commit or window another."""
    first = release_id("chat", "a/b", "v1", ENGINE)
    assert first == release_id("chat", "a/b", "v1", EngineSettings(1024, 2))
    assert (
        len({first, release_id("chat", "a/b", "v2", ENGINE), release_id("chat", "a/b", "v1", EngineSettings(64, 2))})
        == 3
    )


def test_the_next_release_takes_the_other_slot() -> None:
    """Blue first, then green, then blue again once the old one is gone."""
    first = with_live()
    assert first.live is not None
    assert first.live.slot == "blue"
    second = with_live("v2", first)
    assert second.live is not None
    assert second.live.slot == "green"
    third = opened(retire(begin_stopping(second, first.live.id), first.live.id), "v3")
    assert third.in_progress is not None
    assert third.in_progress.slot == "blue"


def test_a_second_release_of_the_same_service_is_refused() -> None:
    """While one is in progress, another one names it and says how to end it."""
    with pytest.raises(Refused, match=r"in progress.*run-1.*roll-back"):
        opened(opened(NOTHING, "v1", "run-1"), "v2", "run-2", ended_run_id="run-1")


def test_a_fleet_that_is_being_stopped_is_nothing_to_go_back_to() -> None:
    """Once its draining has begun, a roll-back to it is refused; before, it is live again and nobody may stop it."""
    record = with_live("v2", with_live())
    first, second = record.releases
    with pytest.raises(Refused, match="nothing to roll back to"):
        backed_out(begin_stopping(record, first.id))
    back = back_out(record, second.id, "worse answers")
    assert begin_stopping(back, first.id) == back


def test_steps_taken_twice_change_nothing_the_second_time() -> None:
    """As where the answer to a write was lost, and the step is taken again from what stands."""
    live = with_live()
    assert go_live(live, "run") == live
    in_progress = opened(live, "v2")
    back = backed_out(in_progress)
    assert back_out(back, in_progress.releases[-1].id, "again") == back
    stage = Stage(share_percent=5, verdict="promote", reason="good", requests=20, seconds=10)
    noted = note_stage(in_progress, "run", stage)
    assert note_stage(noted, "run", stage) == noted


def test_the_live_release_is_never_forgotten() -> None:
    """However many bad ones come after it."""
    record = with_live()
    for number in range(60):
        record = backed_out(opened(record, f"bad-{number}"))
    assert record.live is not None
    assert len(record.releases) == 50


def test_a_slot_that_still_retires_is_not_free() -> None:
    """Both slots are taken until the old fleet is gone."""
    with pytest.raises(Refused, match="both slots"):
        opened(with_live("v2", with_live()), "v3")


def test_a_retry_goes_on_with_the_release_of_a_dead_run() -> None:
    """The stages that were passed stay; the run is the new one's."""
    stage = Stage(share_percent=5, verdict="promote", reason="good", requests=20, seconds=10)
    record = note_stage(opened(NOTHING, "v1", "run-1"), "run-1", stage)
    again = opened(record, "v1", "run-2", ended_run_id="run-1")
    assert owned_by(again, "run-2").stages == (stage,)


def test_a_living_run_is_not_robbed() -> None:
    """Taking over is refused unless the very run that holds the release is known to have ended."""
    record = opened(NOTHING, "v1", "run-1")
    for ended in (None, "some-other-run"):
        with pytest.raises(Refused, match="has not ended"):
            take_over(record, "run-2", ended)


def test_a_run_that_lost_its_release_may_write_nothing() -> None:
    """A flow that was given up for dead and wakes again is told to stop."""
    record = take_over(opened(NOTHING, "v1", "run-1"), "run-2", "run-1")
    stage = Stage(share_percent=5, verdict="promote", reason="good", requests=20, seconds=10)
    with pytest.raises(Refused, match="no longer acts"):
        note_stage(record, "run-1", stage)
    with pytest.raises(Refused, match="no longer acts"):
        go_live(record, "run-1")


def test_the_same_release_again_changes_nothing() -> None:
    """What is live already needs no release."""
    record = with_live()
    assert opened(record, "v1", "run-2") == record


def test_going_live_retires_the_one_before() -> None:
    """The old one is retiring until its replicas are gone."""
    record = with_live("v2", with_live())
    assert record.live is not None
    assert record.live.commit == "v2"
    assert record.retiring is not None
    assert record.retiring.commit == "v1"


def test_backing_out_ends_the_release_under_way() -> None:
    """The live one stays live."""
    record = backed_out(opened(with_live(), "v2"), "too many errors")
    assert record.in_progress is None
    assert record.live is not None
    assert record.live.commit == "v1"
    assert record.releases[-1].closing_reason == "too many errors"


def test_backing_out_after_promotion_brings_the_warm_one_back() -> None:
    """While the replaced release is still warm, it can be live again."""
    record = backed_out(with_live("v2", with_live()), "a person said so")
    assert record.live is not None
    assert record.live.commit == "v1"
    assert not record.retiring


def test_backing_out_with_nothing_to_go_back_to_is_refused() -> None:
    """The only release of a service cannot be rolled back: there is nothing behind it."""
    with pytest.raises(Refused, match="nothing to roll back to"):
        backed_out(with_live(), "why not")


def test_releases_stand_in_the_order_in_which_they_began() -> None:
    """Whatever becomes of them later; one that is released again begins anew."""
    second = with_live("v2", with_live())
    first = second.releases[0]
    retired = retire(begin_stopping(second, first.id), first.id)
    assert [release.commit for release in retired.releases] == ["v1", "v2"]
    third = backed_out(opened(retired, "v3"))
    assert [release.commit for release in third.releases] == ["v1", "v2", "v3"]
    assert [release.commit for release in opened(third, "v1").releases] == ["v2", "v3", "v1"]


def test_the_record_survives_json_and_keeps_the_latest_starts() -> None:
    """What is written is what is read, and measurements do not pile up."""
    record = opened(with_live(), "v2")
    for seconds in range(30):
        record = note_start(record, seconds)
    assert ServiceRecord.model_validate_json(record.model_dump_json()) == record
    assert record.start_seconds == tuple(range(10, 30))


def test_replicas_have_names_that_a_retry_finds() -> None:
    """The names come from the release and a number."""
    release = with_live().live
    assert release is not None
    assert [order.name for order in replica_orders(release, 2)] == [f"{release.id}-0", f"{release.id}-1"]


def test_a_ledger_of_the_version_before_is_read() -> None:
    """It says nothing of the number asked for, so that is the one by day."""
    old = with_live().model_dump(exclude={"wanted", "shortage"}, mode="json")
    read = ServiceRecord.model_validate(old)
    assert (read.wanted, read.shortage, read.has_users) == (None, None, True)


def test_users_count_on_a_live_release_unless_none_was_asked_for() -> None:
    """Before the first release, and at zero by intent, there is nobody to protect; a new release has users again."""
    assert not NOTHING.has_users
    at_zero = ask_for(with_live(), 0)
    assert not at_zero.has_users
    assert go_live(opened(at_zero, "v2"), "run").has_users
