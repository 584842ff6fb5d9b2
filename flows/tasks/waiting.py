"""Let time pass between two looks at something."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_sleep: ContextVar[Callable[[float], None]] = ContextVar("sleep", default=time.sleep)


def pause(seconds: float) -> None:
    """Before the next look."""
    _sleep.get()(seconds)


@contextmanager
def pausing_with(sleep: Callable[[float], None]) -> Iterator[None]:
    """Have flows wait in another way than by sleeping, as in tests, where time passes by itself."""
    token = _sleep.set(sleep)
    try:
        yield
    finally:
        _sleep.reset(token)
