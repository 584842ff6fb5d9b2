"""A wait that was told is kept, by tasks and by whoever tries parts again; if it is too long, nobody comes back."""

import time
from collections.abc import Callable

import pytest
from prefect import flow

from blocks.errors import Refused, SkyferryError, Unavailable
from blocks.ports.gateway import WHOLE, Split
from flows.runtime.retries import retried_task
from flows.runtime.retry_policy import LONGEST_OBEYED_SECONDS, RetryPolicy
from flows.runtime.sleep import done_by, sleeping_with
from flows.steps.undo import rollback_on_error
from tests.flows.conftest import World
from tests.flows.test_steps import provision


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
    patiently = retried_task(task_run_name="ask")(busy.__call__).with_options(retry_delay_seconds=0)

    @flow
    def ask() -> str:
        return patiently()

    with sleeping_with(waits.append):
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


def test_no_told_wait_is_longer_than_the_time_that_is_left() -> None:
    """As where a guard acts before its process is killed: what is shorter is waited for, and no longer one."""
    busy = Busy(Unavailable("busy", after_seconds=25), Unavailable("busy", after_seconds=300))
    with done_by(time.monotonic() + 200), pytest.raises(Unavailable):
        as_task(busy)
    assert busy.asked == 2
    with done_by(time.monotonic() - 1), pytest.raises(Unavailable):
        as_task(Busy(Unavailable("busy", after_seconds=0)))


def test_a_store_that_wants_to_be_left_alone_keeps_no_user_with_a_bad_candidate(live: World) -> None:
    """Neither the guard of a run that failed, nor that of one that is killed, waits for it: traffic goes back first."""
    for error in (RuntimeError("broken"), KeyboardInterrupt()):
        waits: list[float] = []
        live.gateway.set_split("chat", Split.giving(live.first.slot, 0))
        with sleeping_with(waits.append), pytest.raises(Unavailable):
            fail_while_the_store_is_busy(live, error)
        assert (waits, live.gateway.split("chat")) == ([], Split.giving(live.first.slot, WHOLE))


@flow
def fail_while_the_store_is_busy(live: World, error: BaseException) -> None:
    with rollback_on_error(live.service):
        live.store.failures.append(Unavailable("busy", after_seconds=300))
        raise error


def test_traffic_goes_back_before_the_ledger_is_waited_for(live: World) -> None:
    """A store that is busy once the guard knows how the ledger stands keeps nobody with a bad candidate either."""
    waits: list[tuple[float, Split]] = []
    with (
        sleeping_with(lambda seconds: waits.append((seconds, live.gateway.split("chat")))),
        pytest.raises(RuntimeError, match="broken"),
    ):
        fail_with_a_candidate_while_the_store_is_busy(live)
    assert [split for seconds, split in waits if seconds == 300] == [Split.giving(live.first.slot, WHOLE)]
    assert live.record.releases[-1].state == "rolled back"


@flow
def fail_with_a_candidate_while_the_store_is_busy(live: World) -> None:
    provision("v2")
    with rollback_on_error(live.service):
        live.gateway.set_split("chat", Split.giving(live.first.slot, 0))
        live.store.failures.extend([None, Unavailable("busy", after_seconds=300)])
        raise RuntimeError("broken")


def patiently(act: Callable[[], str]) -> str:
    return RetryPolicy(tries=3, first_wait_seconds=0.001, longest_obeyed_seconds=0.01).try_to("ask", act)


def test_patience_waits_as_long_as_it_was_told() -> None:
    """Up to its limit; beyond that it asks no more, and says how long it was told to wait."""
    assert patiently(Busy(Unavailable("busy", after_seconds=0.01))) == "done"
    busy = Busy(Unavailable("gone"), Unavailable("busy", after_seconds=3600))
    with pytest.raises(Unavailable, match="in 2 tries: try 1: gone; try 2: busy") as error:
        patiently(busy)
    assert (busy.asked, error.value.after_seconds) == (2, 3600)
