"""Artifacts that the Prefect UI shows, and that are updated in place."""

import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from logging import Logger, LoggerAdapter
from types import TracebackType
from typing import Any, Self, cast
from uuid import UUID

from prefect import get_run_logger
from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate

from blocks.ports.hub import Model
from flows.boards.markdown import escaped
from flows.transfer.transfer import Target

REFRESH_SECONDS = 2.0
LOGGED_EACH_SECONDS = 30.0
MIB = 1 << 20


class Board:
    """One markdown artifact of this flow run, written over from time to time as things change."""

    def __init__(self, key: str, description: str) -> None:
        self._key, self._description = key, description
        self._id: UUID | None = None
        self._shown_at = 0.0

    def show(self, markdown: str, *, at_once: bool = False) -> None:
        """From time to time, unless `at_once`."""
        if not at_once and time.monotonic() - self._shown_at < REFRESH_SECONDS:
            return
        self._shown_at = time.monotonic()
        with only_for_show():
            if self._id is None:
                # In a sync caller these functions return the id itself, and no coroutine, whatever their types say.
                made = create_markdown_artifact(markdown, key=self._key, description=self._description)
                self._id = cast("UUID", made)
                return
            with get_client(sync_client=True) as client:
                client.update_artifact(self._id, ArtifactUpdate(data=markdown))


def show(key: str, description: str, markdown: str) -> None:
    """One markdown artifact of this flow run that does not change any more."""
    with only_for_show():
        create_markdown_artifact(markdown, key=key, description=description)


@contextmanager
def only_for_show(logger: Logger | LoggerAdapter[Any] | None = None) -> Iterator[None]:
    """What people see must not decide what users get: an error in showing it is logged and no more.

    `logger` is for threads that Prefect knows of no run for.
    """
    try:
        yield
    except Exception:  # noqa: BLE001 - whatever it is, see above
        (logger or get_run_logger()).warning("This could not be shown in the UI.", exc_info=True)


class TransferProgress:
    """One progress artifact for each store of a service's transfer, and now and then a line in the run's log."""

    def __init__(
        self, service: str, model: Model, targets: Sequence[Target], *, refresh_seconds: float = REFRESH_SECONDS
    ) -> None:
        self._service, self._model, self._targets = service, model, targets
        self._refresh_seconds = refresh_seconds
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._begun = self._shown = self._logged = time.monotonic()
        self._logger = get_run_logger()
        self._ids: list[UUID] = []
        with only_for_show():
            self._ids = [
                cast("UUID", create_progress_artifact(0.0, key=self._key(target), description=self._words(target)))
                for target in self._targets
            ]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._show()

    def refresh(self) -> None:
        """From time to time; workers call it after each part."""
        with self._lock:
            if (now := time.monotonic()) - self._shown < self._refresh_seconds:
                return
            self._shown = now
            if is_due := now - self._logged >= LOGGED_EACH_SECONDS:
                self._logged = now
        self._show()
        if is_due:
            for target in self._targets:
                self._logger.info("%s", self._words(target))

    def _show(self) -> None:
        for target, artifact in zip(self._targets, self._ids, strict=False):  # none where they could not be made
            size_bytes = self._size_bytes(target)
            # A file that is sent again counts again: the bar may then be ahead, and it ends at 100.
            done = 100.0 if not size_bytes else min(100.0, 100 * target.done_bytes / size_bytes)
            with only_for_show(self._logger):
                update_progress_artifact(artifact, done, description=self._words(target))

    def _key(self, target: Target) -> str:
        """Artifact keys are made of lower-case letters, digits and dashes."""
        store = re.sub(r"[^a-z0-9]+", "-", target.name.lower()).strip("-")
        return f"mirror-progress-{self._service}-{store}"

    def _size_bytes(self, target: Target) -> int:
        return sum(file.size_bytes for file in self._model.files if file.path in target.lacks)

    def _words(self, target: Target) -> str:
        done, size_bytes = target.done_bytes, self._size_bytes(target)
        rate = done / max(time.monotonic() - self._begun, 1e-3)
        left = f"{max(0, size_bytes - done) / rate:.0f} s left" if rate else "starting"
        if target.error is not None:
            left = f"dropped out: {escaped(target.error)}"
        return (
            f"{self._model.repo} at {self._model.commit[:12]} into {target.name}: {done / MIB:.0f} of "
            f"{size_bytes / MIB:.0f} MiB, {target.done_files} of {len(target.lacks)} files, {rate / MIB:.0f} MiB/s, "
            f"{left}"
        )
