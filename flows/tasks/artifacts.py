"""Artifacts that the Prefect UI shows, and that are updated in place."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self, cast
from uuid import UUID

from prefect import get_run_logger
from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate

from blocks.ports import Model

REFRESH_SECONDS = 2.0
MIB = 1 << 20


class Board:
    """One markdown artifact of this flow run, written over from time to time as things change."""

    def __init__(self, key: str, description: str) -> None:
        # In a sync caller these functions return the id itself, and no coroutine, whatever their types say.
        self._id = cast("UUID", create_markdown_artifact("", key=key, description=description))
        self._shown_at = 0.0

    def show(self, markdown: str, *, at_once: bool = False) -> None:
        """From time to time, unless `at_once`."""
        if not at_once and time.monotonic() - self._shown_at < REFRESH_SECONDS:
            return
        self._shown_at = time.monotonic()
        with only_for_show(), get_client(sync_client=True) as client:
            client.update_artifact(self._id, ArtifactUpdate(data=markdown))


@contextmanager
def only_for_show() -> Iterator[None]:
    """What people see must not decide what users get: an error in showing it is logged and no more."""
    try:
        yield
    except Exception:  # noqa: BLE001 - whatever it is, see above
        get_run_logger().warning("This could not be shown in the UI.", exc_info=True)


class TransferProgress:
    """One progress artifact for a transfer of many files at once."""

    def __init__(self, model: Model, size_bytes: int) -> None:
        self._model, self._size_bytes = model, size_bytes
        self._lock = threading.Lock()
        self._sent_bytes = 0

    def __enter__(self) -> Self:
        self._begun = self._shown = time.monotonic()
        self._id = cast("UUID", create_progress_artifact(0.0, key="mirror-progress", description=self._words()))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._show()

    def add(self, count: int) -> None:
        """Count bytes that a worker has passed on, and show them from time to time."""
        with self._lock:
            self._sent_bytes += count
            if (now := time.monotonic()) - self._shown < REFRESH_SECONDS:
                return
            self._shown = now
        self._show()

    def _show(self) -> None:
        # A file that is sent again counts again: the bar may then be ahead, and it ends at 100.
        done = 100.0 if not self._size_bytes else min(100.0, 100 * self._sent_bytes / self._size_bytes)
        with only_for_show():
            update_progress_artifact(self._id, done, description=self._words())

    def _words(self) -> str:
        rate = self._sent_bytes / max(time.monotonic() - self._begun, 1e-3)
        left = f"{max(0, self._size_bytes - self._sent_bytes) / rate:.0f} s left" if rate else "starting"
        return (
            f"{self._model.repo} at {self._model.commit[:12]}: {self._sent_bytes / MIB:.0f} of "
            f"{self._size_bytes / MIB:.0f} MiB, {rate / MIB:.0f} MiB/s, {left}"
        )
