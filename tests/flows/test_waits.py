"""A wait that was told is kept, by tasks and by whoever tries parts again; if it is too long, nobody comes back."""

from collections.abc import Callable

import pytest
from prefect import flow

from blocks.errors import Refused, SkyferryError, Unavailable
from flows.tasks import LONGEST_OBEYED_SECONDS, act
from flows.tasks.patience import Patience
from flows.tasks.waiting import pausing_with


class Busy:
    """Raises these errors in turn, and then answers."""

    def __init__(self, *errors: SkyferryError) -> None:
        self.errors = list(errors)
        self.asked = 0

    def __call__(self) -> str:
        self.asked += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"


def as_task(busy: Busy) -> tuple[str, list[float]]:
    """What comes of it, and the waits that were told; Prefect's own are none here."""
    waits: list[float] = []
    patiently = act(task_run_name="ask")(busy.__call__).with_options(retry_delay_seconds=0)

    @flow
    def ask() -> str:
        return patiently()

    with pausing_with(waits.append):
        return ask(), waits


def test_a_task_waits_as_long_as_it_was_told() -> None:
    """And no longer where nothing was said."""
    busy = Busy(Unavailable("busy", after_seconds=25), Unavailable("gone"), Unavailable("busy", after_seconds=300))
    assert as_task(busy) == ("done", [25, 300])
    assert busy.asked == 4


@pytest.mark.parametrize("error", [Unavailable("busy", after_seconds=LONGEST_OBEYED_SECONDS + 1), Refused("no")])
def test_a_task_that_would_come_back_too_early_does_not(error: SkyferryError) -> None:
    """It ends with what was said; the next run may ask again."""
    busy = Busy(error)
    with pytest.raises(type(error)):
        as_task(busy)
    assert busy.asked == 1


def patiently(act: Callable[[], str]) -> str:
    return Patience(tries=3, first_wait_seconds=0.001, longest_obeyed_seconds=0.01).try_to("ask", act)


def test_patience_waits_as_long_as_it_was_told() -> None:
    """Up to its limit; beyond that it asks no more, and says how long it was told to wait."""
    assert patiently(Busy(Unavailable("busy", after_seconds=0.01))) == "done"
    busy = Busy(Unavailable("gone"), Unavailable("busy", after_seconds=3600))
    with pytest.raises(Unavailable, match="in 2 tries: try 1: gone; try 2: busy") as error:
        patiently(busy)
    assert (busy.asked, error.value.after_seconds) == (2, 3600)
