"""The verbs that flows are made of: each task is one repeatable act on one port.

Run twice, a task leaves what running it once leaves, so it is retried where trying again may help, and only there.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, ParamSpec, TypeVar

from prefect import Task, task
from prefect.assets import Asset
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.logging.loggers import task_run_logger
from prefect.tasks import MaterializingTask, exponential_backoff

from blocks.errors import Unavailable
from flows.runtime.retry_policy import LONGEST_OBEYED_SECONDS
from flows.runtime.sleep import longest_told_seconds, sleep

P = ParamSpec("P")
R = TypeVar("R")


def _can_pass(task: Task[Any, Any], run: TaskRun, state: State[Any]) -> bool:
    """Waits for as long as it was told to; Prefect's own, shorter wait comes on top, so that not all come at once."""
    error = state.result(raise_on_failure=False)
    if not isinstance(error, Unavailable):
        return False
    if error.after_seconds is not None:
        if error.after_seconds > longest_told_seconds(LONGEST_OBEYED_SECONDS):
            return False  # to come back earlier would be worse than not at all; the error says when
        task_run_logger(run, task).info("Waiting for %.0f s, as it was told: %s", error.after_seconds, error)
        sleep(error.after_seconds)
    return True


retried_task = partial(
    task,
    retries=4,
    retry_delay_seconds=exponential_backoff(backoff_factor=1),
    retry_jitter_factor=0.5,
    retry_condition_fn=_can_pass,
    cache_policy=NO_CACHE,  # what was done an hour ago may have been undone since
)
"""Makes a function a task that is tried again on Unavailable, after about 1, 2, 4 and 8 seconds, or as it was told."""


def making(assets: Sequence[Asset], of: Sequence[Asset], act: Task[P, R]) -> Task[P, R]:
    """The task, a `retried_task`, such that Prefect knows what assets it makes, and of which."""
    return MaterializingTask(
        act.fn,
        assets=assets,
        materialized_by="Skyferry",
        asset_deps=[*of],
        task_run_name=act.task_run_name,
        **retried_task.keywords,
    )
