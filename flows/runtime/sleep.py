"""Let time pass between two looks at something."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_until: ContextVar[float | None] = ContextVar("until", default=None)
_sleep: ContextVar[Callable[[float], None]] = ContextVar("sleep", default=time.sleep)


def sleep(seconds: float) -> None:
    """Before the next look."""
    _sleep.get()(seconds)


def longest_told_seconds(otherwise: float) -> float:
    """How long whoever says so may be left alone here and now, where elsewhere it is `otherwise`."""
    until = _until.get()
    return otherwise if until is None else min(otherwise, until - time.monotonic())


@contextmanager
def done_by(deadline: float) -> Iterator[None]:
    """Have no task wait beyond that time, on the monotonic clock, because a server told it to."""
    token = _until.set(deadline)
    try:
        yield
    finally:
        _until.reset(token)


@contextmanager
def sleeping_with(sleep: Callable[[float], None]) -> Iterator[None]:
    """Have flows wait in another way than by sleeping, as in tests, where time passes by itself."""
    token = _sleep.set(sleep)
    try:
        yield
    finally:
        _sleep.reset(token)
