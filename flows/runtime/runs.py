"""Ask Prefect about flow runs, and people through it."""

import math
import time
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, TypeVar, cast
from uuid import UUID

from prefect import get_run_logger, pause_flow_run
from prefect.client.orchestration import get_client
from prefect.deployments import run_deployment
from prefect.exceptions import FlowPauseTimeout, ObjectNotFound, PrefectException
from prefect.input import RunInput
from prefect.input.run_input import keyset_from_base_key
from prefect.runtime import flow_run
from pydantic import ValidationError

from blocks.errors import Refused, SkyferryError
from flows.policy.releases.hours import hour_meant, why_too_late
from flows.policy.releases.ledger import Release
from flows.runtime.sleep import sleep

Form = TypeVar("Form", bound=RunInput)

POLL_SECONDS = 2


def own_run_id() -> str:
    """The run that acts: of a chain of flows the outermost, so that each link acts for the same release."""
    return _root_of(flow_run.id)


@lru_cache(maxsize=128)
def _root_of(_run_id: str) -> str:
    """Asked once a run: each answer takes several calls to Prefect."""
    return flow_run.root_flow_run_id


def planned_for() -> datetime | None:
    """The moment that this run was planned for, ahead of it; None for one that was started to run at once."""
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(UUID(own_run_id()))
    return hour_meant(run.expected_start_time, run.created, by_schedule=run.auto_scheduled)


def see_that_it_is_not_late(what: str, late_hours: float) -> None:
    """Refused where this run was planned for an hour that is past by more than that."""
    if words := why_too_late(what, planned_for(), datetime.now(UTC), timedelta(hours=late_hours)):
        raise Refused(words)


def run_later(name: str | UUID, parameters: dict[str, Any], at: datetime, *, key: str) -> str:
    """Have a run of that deployment begin then, one for each `key`; why it will not, in words, or nothing.

    A deployment goes by its id, or by its flow's name and its own: retire-release/chat.
    """
    try:
        run_deployment(name, parameters=parameters, scheduled_time=at, timeout=0, idempotency_key=key, as_subflow=False)
    except ObjectNotFound:
        return f"Prefect knows no deployment {name}; run `prefect deploy --all`"
    except Exception as error:  # noqa: BLE001 - what Prefect's client raises of a server that is away has no name
        return f"Prefect did not take a run of {name}: {type(error).__name__}: {error}"
    return ""


class Unanswered(SkyferryError):
    """A person was asked and did not answer in time."""


def ask_a_person(form: type[Form], key: str, timeout_seconds: float) -> Form:
    """Pause this run until somebody has filled in the form; Unanswered where nobody has in time.

    A server that is away meanwhile is no answer: it is waited for, up to the same time. `key` tells the questions of
    one run apart, so that one asked before the server went away is not asked again.
    """
    deadline = time.monotonic() + timeout_seconds
    away = ""
    while (left := deadline - time.monotonic()) > 0:
        try:
            return _ask_or_go_on(form, key, left)
        except FlowPauseTimeout:
            break
        except (PrefectException, ValidationError, RuntimeError):
            raise  # the server, or the answer, says that it will not be
        except Exception as error:  # noqa: BLE001 - what Prefect's client raises of a server that is away has no name
            away = f"; Prefect's server could not be asked at the end: {type(error).__name__}: {error}"
            get_run_logger().warning(
                "Prefect's server cannot be asked for the answer (%s: %s); the split stays as it is, and this run "
                "waits for the server and for the answer for %.0f s more.",
                type(error).__name__,
                error,
                left,
            )
            sleep(POLL_SECONDS)
    raise Unanswered(f"nobody answered within {timeout_seconds:g} s{away}")


def _ask_or_go_on(form: type[Form], key: str, timeout_seconds: float) -> Form:
    """Ask, unless the run is paused for this question already or was answered while nobody could hear it."""
    deadline = time.monotonic() + timeout_seconds
    run_id = UUID(flow_run.id)
    while True:
        with get_client(sync_client=True) as client:
            run = client.read_flow_run(run_id)
        policy, state = run.empirical_policy, run.state
        if policy is None or key not in (policy.pause_keys or ()):
            left = max(1, math.ceil(deadline - time.monotonic()))
            return cast("Form", pause_flow_run(wait_for_input=form, timeout=left, poll_interval=POLL_SECONDS, key=key))
        if state is not None and state.is_running():
            return cast("Form", form.load(keyset_from_base_key(f"paused-{key}")))
        if state is None or not state.is_paused():
            raise Refused(f"flow run {run_id} is {state and state.name}, so nobody can answer it; start it again")
        if time.monotonic() >= deadline:
            raise FlowPauseTimeout
        sleep(POLL_SECONDS)


def ended_run_of(release: Release | None) -> str | None:
    """The run that acts for the release, if that has ended."""
    return release.run_id if release is not None and has_ended(release.run_id) else None


def has_ended(run_id: str) -> bool:
    """Also where Prefect does not know the run, as after its database was lost."""
    with get_client(sync_client=True) as client:
        try:
            state = client.read_flow_run(UUID(run_id)).state
        except ObjectNotFound:
            return True
    return state is not None and state.is_final()
