"""Is it still the hour for which this was planned?"""

from datetime import datetime, timedelta

AHEAD = timedelta(minutes=1)
"""Whoever starts a run to run at once is not further ahead of it than this."""


def hour_meant(expected: datetime | None, created: datetime | None, *, by_schedule: bool) -> datetime | None:
    """The moment that a run was planned for; None where a person started it to run at once.

    A schedule plans ahead, and so does a run that starts another one for later: that one is `created` before it is
    `expected` to start.
    """
    if expected is None or created is None:
        return None
    return expected if by_schedule or expected - created > AHEAD else None


def why_too_late(what: str, planned_for: datetime | None, now: datetime, tolerance: timedelta) -> str:
    """Why a run that does `what` must not do it now, in words; nothing where it may.

    `planned_for` is the moment that a schedule, or whoever planned the run ahead, had in mind; None for a run that a
    person started to run at once, which is never late, however long it waited for a worker.
    """
    if planned_for is None or now - planned_for <= tolerance:
        return ""
    hour = planned_for.astimezone(now.tzinfo)
    return (
        f"{what} was planned for {hour:%Y-%m-%d %H:%M %Z} and begins {_hours(now - planned_for)} late, where "
        f"{_hours(tolerance)} is the most: what was right at that hour may be wrong now, so nothing was done; start it "
        f"by hand if it is still wanted"
    )


def _hours(span: timedelta) -> str:
    return f"{span / timedelta(hours=1):.1f} h"
