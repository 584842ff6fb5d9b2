"""Trying again: how often, how soon, and with the story of each try where it was in vain."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import stamina

from blocks.errors import Unavailable

T = TypeVar("T")

LONGEST_OBEYED_SECONDS = 600.0
"""Who wants to be left alone for longer is not asked again: hubs count in windows of five minutes."""


@dataclass(frozen=True)
class RetryPolicy:
    """With backoff and jitter; whoever says how long to wait is obeyed, or not asked again at all."""

    tries: int = 6
    first_wait_seconds: float = 0.5
    longest_wait_seconds: float = 30.0
    longest_obeyed_seconds: float = LONGEST_OBEYED_SECONDS

    def try_to(self, what: str, act: Callable[[], T], on_retry: Callable[[], None] = lambda: None) -> T:
        """Only Unavailable is tried again; where it stays, the error tells of each try."""
        history = list[str]()

        def wait(error: Exception) -> bool | float:
            if not isinstance(error, Unavailable):
                return False
            history.append(f"try {len(history) + 1}: {error}")
            if (error.after_seconds or 0) > self.longest_obeyed_seconds:
                return False
            if len(history) < self.tries:
                on_retry()
            if error.after_seconds is None:
                return True
            # All workers were told the same; they do not come back as one.
            spread = random.uniform(0, self.first_wait_seconds)  # noqa: S311 - no secret
            return error.after_seconds + spread

        try:
            for attempt in stamina.retry_context(
                on=wait,
                attempts=self.tries,
                timeout=None,
                wait_initial=self.first_wait_seconds,
                wait_max=self.longest_wait_seconds,
                wait_jitter=self.first_wait_seconds,
            ):
                with attempt:
                    return act()
        except Unavailable as error:
            said = f"could not {what} in {len(history)} tries: {'; '.join(history)}"
            raise Unavailable(said, after_seconds=error.after_seconds) from error
        raise AssertionError(what)  # stamina returns, or raises what was raised
