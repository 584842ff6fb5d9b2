"""The verbs that flows are made of: each task is one repeatable act on one port.

Run twice, a task leaves what running it once leaves, so it is retried where trying again may help, and only there.
"""

from functools import partial
from typing import Any

from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import exponential_backoff

from blocks.errors import Unavailable


def _can_pass(_task: Task[Any, Any], _run: TaskRun, state: State[Any]) -> bool:
    return isinstance(state.result(raise_on_failure=False), Unavailable)


act = partial(
    task,
    retries=4,
    retry_delay_seconds=exponential_backoff(backoff_factor=1),
    retry_jitter_factor=0.5,
    retry_condition_fn=_can_pass,
    cache_policy=NO_CACHE,  # what was done an hour ago may have been undone since
)
"""Makes a function a task that is tried again on Unavailable, after about 1, 2, 4 and 8 seconds."""
