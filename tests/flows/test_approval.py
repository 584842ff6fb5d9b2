"""A person is asked: the run pauses, and goes on as the answer says."""

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateName
from pydantic import ValidationError

from blocks.errors import SkyferryError
from blocks.ports import Split
from flows.plans import PromotePlan
from flows.promote import promote_canary
from tests.flows.conftest import World
from tests.flows.test_steps import provision

PATIENCE_SECONDS = 60


@contextmanager
def answering(answer: dict[str, str]) -> Iterator[Future[UUID]]:
    """Somebody who waits until a run pauses and then sends that answer, as the UI does."""
    with ThreadPoolExecutor(1) as person:
        yield person.submit(_answer, answer)


def _answer(answer: dict[str, str]) -> UUID:
    paused = FlowRunFilter(state=FlowRunFilterState(name=FlowRunFilterStateName(any_=["Paused"])))
    deadline = time.monotonic() + PATIENCE_SECONDS
    with get_client(sync_client=True) as client:
        while not (runs := client.read_flow_runs(flow_run_filter=paused)):
            assert time.monotonic() < deadline, "no run has paused"
            time.sleep(0.2)
        client.resume_flow_run(runs[0].id, run_input=answer)
        return runs[0].id


def plan(**others: Any) -> PromotePlan:
    return PromotePlan(
        service="chat", stages_percent=(10, 100), stage_seconds=0, approve_before_percent=(100,), **others
    )


def test_a_person_who_says_promote_lets_it_go_on(live: World) -> None:
    """The stage before was held by itself; the last one begins after the answer."""
    provision("v2")
    with answering({"decision": "promote"}):
        assert promote_canary(plan()).state == "live"
    assert live.gateway.splits[-2:] == [1000, 10_000]


def test_a_person_who_says_roll_back_ends_it(live: World) -> None:
    """The ledger says that it was a person."""
    provision("v2")
    with answering({"decision": "roll back"}), pytest.raises(SkyferryError, match="a person said so"):
        promote_canary(plan())
    assert live.gateway.split("chat") == Split(0)
    assert "a person said so" in live.record.releases[-1].closing_reason


def test_nobody_who_answers_is_no_consent(live: World) -> None:
    """After the time-out the users are back on what they had."""
    provision("v2")
    with pytest.raises(SkyferryError, match="nobody answered within 1 s"):
        promote_canary(plan(approval_timeout_seconds=1))
    assert live.gateway.split("chat") == Split(0)
    assert live.record.under_way is None


def test_asking_before_a_stage_that_there_is_not_is_refused() -> None:
    """Else nobody would be asked, and nobody would know."""
    with pytest.raises(ValidationError, match=r"nobody would be asked before \[60\]"):
        PromotePlan(service="chat", approve_before_percent=(60,))


@pytest.mark.parametrize("stages", [(), (5, 5, 100), (50, 20, 100), (5, 50), (0, 100), (5, 120)])
def test_stages_that_do_not_rise_to_100_are_refused(stages: tuple[int, ...]) -> None:
    """The message shows what was given and what would do."""
    with pytest.raises(ValidationError, match="do not rise to 100"):
        PromotePlan(service="chat", stages_percent=stages)


def test_a_stage_that_could_never_pass_is_refused() -> None:
    """One that has to last longer than it may."""
    with pytest.raises(ValidationError, match="never passes"):
        PromotePlan(service="chat", stage_seconds=100, stage_deadline_seconds=50)
