"""What a run shows in the Prefect UI. It decides nothing: not whether the run goes on, and not when.

Everything goes through here, which the linter sees to. What is to be shown is made where it is asked for, and
sent by one thread beside the run: a server that is slow, away, under maintenance or says no holds up no look at users
and no roll-back, and costs a line in the run's log.
"""

import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from threading import Lock
from typing import Any
from uuid import UUID

from prefect import get_run_logger
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.runtime import flow_run
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from flows.boards.shown import Shown

REFRESH_SECONDS = 2.0
TIMEOUT_SECONDS = 10.0
RETRIES = 2
"""Fewer than Prefect's own: a process that has nothing else to do any more waits for what is still to be sent."""
KEY_CHARACTERS = 255

_sender = ThreadPoolExecutor(max_workers=1, thread_name_prefix="shows")
"""Whatever waits in it when the process ends is sent first: Python joins such threads."""
_http: ContextVar[dict[str, Any]] = ContextVar("http", default={"timeout": TIMEOUT_SECONDS})  # noqa: B039 - read only


class Artifact:
    """One artifact of this flow run, written over as things change. Threads may share it."""

    def __init__(self, key: str, *, refresh_seconds: float = REFRESH_SECONDS) -> None:
        """Made in the run that it is of; `refresh_seconds` is the least time between two that are shown."""
        self._key = artifact_key(key)
        self._refresh_seconds = refresh_seconds
        # The sender's thread, and those that carry parts of a mirror, know of no run, no settings and no logger.
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: RETRIES}):
            self._context = copy_context()
        self._logger = get_run_logger()
        self._run_id = UUID(flow_run.id) if flow_run.id else None
        self._lock = Lock()
        self._shown_at = float("-inf")
        self._next: Shown | None = None
        self._client: SyncPrefectClient | None = None
        self._id: UUID | None = None

    def show(self, make: Callable[[], Shown], *, at_once: bool = False) -> None:
        """Show what `make` gives; nothing where something was shown a moment ago, unless `at_once`.

        `make` is called here, so that it may read what changes; an error of its own is logged and no more.
        """
        with self._lock:
            if not at_once and time.monotonic() - self._shown_at < self._refresh_seconds:
                return
            self._shown_at = time.monotonic()
            try:
                made = make()
            except Exception:
                self._logger.warning("%s could not be put into words.", self._key, exc_info=True)
                return
            is_waiting, self._next = self._next is not None, made
        if not is_waiting:  # else what waits is written over: nobody needs what was so before
            _sender.submit(self._context.run, self._send)

    def _send(self) -> None:
        with self._lock:
            shown, self._next = self._next, None
        if shown is None:
            return
        try:
            self._write(shown)
        except Exception:
            self._logger.warning("%s could not be shown in the UI.", self._key, exc_info=True)

    def _write(self, shown: Shown) -> None:
        # Not the run's own client, which Prefect closes with the run.
        self._client = client = self._client or get_client(sync_client=True, httpx_settings=_http.get())
        if self._id is None:
            made = ArtifactCreate(
                key=self._key,
                type=shown.kind,
                description=shown.description,
                data=shown.data,
                flow_run_id=self._run_id,
            )
            self._id = client.create_artifact(made).id
        else:
            client.update_artifact(self._id, ArtifactUpdate(data=shown.data, description=shown.description))


def show(key: str, make: Callable[[], Shown]) -> None:
    """One artifact of this flow run that does not change any more."""
    Artifact(key).show(make)


def artifact_key(words: str) -> str:
    """Prefect's keys are made of lower-case letters, digits and dashes; the same words have the same one each time."""
    return re.sub(r"[^a-z0-9]+", "-", words.lower())[:KEY_CHARACTERS].strip("-")


def wait_until_shown() -> None:
    """Until all that was to be shown so far was sent, or could not be: for whoever reads it in the same process."""
    _sender.submit(lambda: None).result()


@contextmanager
def shown_over(http: dict[str, Any]) -> Iterator[None]:
    """Have artifacts go to the server over other settings of httpx, as tests do."""
    token = _http.set(http)
    try:
        yield
    finally:
        _http.reset(token)
