"""How far a transfer is: a bar for each store in the UI, and now and then a line in the run's log."""

import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from prefect import get_run_logger

from blocks.ports.hub import Model
from flows.boards.artifacts import REFRESH_SECONDS, Artifact
from flows.boards.markdown import escaped
from flows.boards.shown import Progress
from flows.transfer.transfer import Target

LOGGED_EACH_SECONDS = 30.0
MIB = 1 << 20


class TransferProgress:
    """One progress artifact for each store of a service's transfer."""

    def __init__(
        self, service: str, model: Model, targets: Sequence[Target], *, refresh_seconds: float = REFRESH_SECONDS
    ) -> None:
        self._service, self._model, self._targets = service, model, targets
        self._refresh_seconds = refresh_seconds
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._begun = self._logged = time.monotonic()
        self._logger = get_run_logger()
        self._artifacts = [
            Artifact(f"mirror-progress-{self._service}-{target.name}", refresh_seconds=self._refresh_seconds)
            for target in self._targets
        ]
        self._show(at_once=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._show(at_once=True)

    def refresh(self) -> None:
        """From time to time; workers, which are threads that belong to no run, call it after each part."""
        self._show()
        with self._lock:
            if (now := time.monotonic()) - self._logged < LOGGED_EACH_SECONDS:
                return
            self._logged = now
        for target in self._targets:
            self._logger.info("%s", self._words(target))

    def _show(self, *, at_once: bool = False) -> None:
        for target, artifact in zip(self._targets, self._artifacts, strict=True):
            artifact.show(lambda target=target: self._progress(target), at_once=at_once)

    def _progress(self, target: Target) -> Progress:
        size_bytes = self._size_bytes(target)
        # A file that is sent again counts again: the bar may then be ahead, and it ends at 100.
        percent = 100.0 if not size_bytes else min(100.0, 100 * target.done_bytes / size_bytes)
        return Progress(escaped(self._words(target)), percent)

    def _words(self, target: Target) -> str:
        done, size_bytes = target.done_bytes, self._size_bytes(target)
        rate = done / max(time.monotonic() - self._begun, 1e-3)
        left = f"{max(0, size_bytes - done) / rate:.0f} s left" if rate else "starting"
        if target.error is not None:
            left = f"dropped out: {target.error}"
        return (
            f"{self._model.repo} at {self._model.commit[:12]} into {target.name}: {done / MIB:.0f} of "
            f"{size_bytes / MIB:.0f} MiB, {target.done_files} of {len(target.lacks)} files, {rate / MIB:.0f} MiB/s, "
            f"{left}"
        )

    def _size_bytes(self, target: Target) -> int:
        return sum(file.size_bytes for file in self._model.files if file.path in target.lacks)
