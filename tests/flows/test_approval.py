"""A person is asked: the run pauses, and goes on as the answer says."""

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateName
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from blocks.errors import Refused, SkyferryError
from blocks.ports.gateway import Split
from flows.promote import promote_canary
from tests.faults import faulty_proxy
from tests.flows.conftest import World
from tests.flows.test_steps import provision

PATIENCE_SECONDS = 60


@contextmanager
def answering(answer: dict[str, str], after_seconds: float = 0) -> Iterator[Future[UUID]]:
    """Somebody who waits until a run pauses and then sends that answer, as the UI does."""
    with ThreadPoolExecutor(1) as person:
        yield person.submit(copy_context().run, _answer, answer, after_seconds)


def _answer(answer: dict[str, str], after_seconds: float) -> UUID:
    paused = FlowRunFilter(state=FlowRunFilterState(name=FlowRunFilterStateName(any_=["Paused"])))
    deadline = time.monotonic() + PATIENCE_SECONDS
    with get_client(sync_client=True) as client:
        while not (runs := client.read_flow_runs(flow_run_filter=paused)):
            assert time.monotonic() < deadline, "no run has paused"
            time.sleep(0.2)
        time.sleep(after_seconds)
        client.resume_flow_run(runs[0].id, run_input=answer)
        return runs[0].id


def plan(**others: Any) -> dict[str, Any]:
    return dict(service="chat", stages_percent=(10, 100), stage_seconds=0, approve_before_percent=(100,), **others)


def test_a_person_who_says_promote_lets_it_go_on(live: World) -> None:
    """The stage before was held by itself; the last one begins after the answer."""
    provision("v2")
    with answering({"decision": "promote"}):
        assert promote_canary(**plan()).state == "live"
    assert live.gateway.splits[-2:] == [1000, 10_000]


def test_a_person_who_says_roll_back_ends_it(live: World) -> None:
    """The ledger says that it was a person."""
    provision("v2")
    with answering({"decision": "roll back"}), pytest.raises(SkyferryError, match="a person said so"):
        promote_canary(**plan())
    assert live.gateway.split("chat") == Split(0)
    assert "a person said so" in live.record.releases[-1].closing_reason


def test_nobody_who_answers_is_no_consent(live: World) -> None:
    """After the time-out the users are back on what they had."""
    provision("v2")
    with pytest.raises(SkyferryError, match="nobody answered within 1 s"):
        promote_canary(**plan(approval_timeout_seconds=1))
    assert live.gateway.split("chat") == Split(0)
    assert live.record.in_progress is None


@contextmanager
def server_away_after(looks: int, times: int) -> Iterator[list[str]]:
    """Prefect's server answers so many looks at a run that waits for a person, and then breaks off the next ones."""
    url = urlsplit(PREFECT_API_URL.value() or "")
    lost: list[str] = []
    asked = False
    seen = 0

    def break_off(method: str, path: str) -> None:
        nonlocal asked, seen
        asked = asked or path.endswith("/input")
        if asked and method == "GET" and "/flow_runs/" in path:
            seen += 1
            if seen > looks and len(lost) < times:
                lost.append(path)
                raise ConnectionError

    with (
        faulty_proxy(url.netloc) as proxy,
        temporary_settings({PREFECT_API_URL: f"http://{proxy.address}/api", PREFECT_CLIENT_MAX_RETRIES: 0}),
    ):
        proxy.on_request = break_off
        yield lost


@pytest.mark.parametrize("looks", [0, 1])
def test_a_server_that_is_away_while_a_person_decides_is_waited_for(live: World, looks: int) -> None:
    """It was a roll-back with «[Errno 111]» for a reason; now the answer counts that comes once it is back."""
    provision("v2")
    with answering({"decision": "promote"}, after_seconds=1), server_away_after(looks, times=3) as lost:
        assert promote_canary(**plan()).state == "live"
    assert len(lost) == 3
    assert live.gateway.splits[-2:] == [1000, 10_000]


def test_a_server_that_stays_away_is_no_consent(live: World) -> None:
    """After the stated time, and not before; the reason says both things."""
    provision("v2")
    with (
        server_away_after(0, times=1_000_000),
        pytest.raises(SkyferryError, match=r"nobody answered within 3 s; Prefect's server could not be asked"),
    ):
        promote_canary(**plan(approval_timeout_seconds=3))
    assert live.gateway.split("chat") == Split(0)


def test_asking_before_a_stage_that_there_is_not_is_refused() -> None:
    """Else nobody would be asked, and nobody would know."""
    with pytest.raises(Refused, match=r"nobody would be asked before \[60\]"):
        promote_canary(service="chat", approve_before_percent=(60,))


@pytest.mark.parametrize("stages", [(), (5, 5, 100), (50, 20, 100), (5, 50), (0, 100), (5, 120)])
def test_stages_that_do_not_rise_to_100_are_refused(stages: tuple[int, ...]) -> None:
    """The message shows what was given and what would do."""
    with pytest.raises(Refused, match="do not rise to 100"):
        promote_canary(service="chat", stages_percent=stages)


def test_a_stage_that_could_never_pass_is_refused() -> None:
    """One that has to last longer than it may."""
    with pytest.raises(Refused, match="never passes"):
        promote_canary(service="chat", stage_seconds=100, stage_deadline_seconds=50)
