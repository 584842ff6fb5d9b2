"""Runs that come when their hour is past."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from flows.policy.releases.hours import hour_meant, why_too_late

TEN = datetime(2026, 1, 1, 21, tzinfo=UTC)
"""Ten in the evening in Berlin."""
MORNING = datetime(2026, 1, 2, 8, tzinfo=ZoneInfo("Europe/Berlin"))
TWO_HOURS = timedelta(hours=2)


@pytest.mark.parametrize(
    ("created_before", "by_schedule", "is_planned"),
    [
        (timedelta(hours=3), True, True),
        # The scheduler was itself late, or has only just been switched on.
        (timedelta(0), True, True),
        # Planned ahead by another run, as scale-up does, or by a person.
        (timedelta(hours=2), False, True),
        # Started to run at once: however long it waits for a worker, nobody meant another hour.
        (timedelta(seconds=2), False, False),
        (timedelta(seconds=-2), False, False),
    ],
)
def test_an_hour_is_meant_by_what_was_planned_ahead(
    created_before: timedelta, *, by_schedule: bool, is_planned: bool
) -> None:
    """By a schedule, or by whoever made the run long before it was to start."""
    assert hour_meant(TEN, TEN - created_before, by_schedule=by_schedule) == (TEN if is_planned else None)


def test_what_prefect_does_not_tell_was_not_planned() -> None:
    """A run without its times is no reason to refuse anything."""
    assert hour_meant(None, TEN, by_schedule=True) is None
    assert hour_meant(TEN, None, by_schedule=True) is None


def test_after_a_night_without_a_worker_the_evening_is_over() -> None:
    """At eight in the morning the scale-down of ten in the evening is refused, and says what to do."""
    assert why_too_late("scale-down", TEN, MORNING, TWO_HOURS) == (
        "scale-down was planned for 2026-01-01 22:00 CET and begins 10.0 h late, where 2.0 h is the most: what was "
        "right at that hour may be wrong now, so nothing was done; start it by hand if it is still wanted"
    )


@pytest.mark.parametrize("late", [timedelta(minutes=-1), timedelta(0), TWO_HOURS])
def test_a_little_late_is_in_time(late: timedelta) -> None:
    """Up to the tolerance, and of course before."""
    assert not why_too_late("scale-down", TEN, TEN + late, TWO_HOURS)


def test_by_hand_is_never_late() -> None:
    """Whoever starts it now wants it now."""
    assert not why_too_late("scale-down", None, MORNING, TWO_HOURS)
