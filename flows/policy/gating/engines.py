"""What have the engines of a slot done over a stage? Counters that run since an engine's start in, differences out."""

from dataclasses import dataclass

from blocks.ports.engine import Load

COUNTERS = (
    "prompt_tokens",
    "generated_tokens",
    "timed_tokens",
    "token_seconds",
    "queued_requests",
    "queue_seconds",
    "preemptions",
)
"""The fields of `Load` that only ever rise while an engine runs."""


@dataclass(frozen=True)
class Work:
    """What one slot's engines did since their first reading in this stage; None where none of them counts it."""

    replicas: int = 0
    silent: int = 0
    """Of those, the ones whose last page could not be read."""
    restarts: int = 0
    """How often a counter began again: what an engine did between its last reading and its end is in no sum."""
    prompt_tokens: float | None = None
    generated_tokens: float | None = None
    ms_per_token: float | None = None
    """On average, of the tokens after an answer's first."""
    queue_ms: float | None = None
    """What a request waited for its turn, on average."""
    preemptions: float | None = None
    most_waiting: int | None = None
    """In all queues together, at any reading."""
    fullest_kv_cache: float | None = None
    """Of any engine at any reading, from 0 to 1."""


@dataclass(frozen=True)
class Engines:
    """Both slots' engines over one stage."""

    candidate: Work = Work()
    stable: Work = Work()


class Meter:
    """The engines of one slot, reading by reading."""

    def __init__(self) -> None:
        self._last: dict[str, Load] = {}
        """Silence in between changes nothing: the next difference is from the last page that could be read."""
        self._silent: dict[str, bool] = {}
        self._sums: dict[str, float] = {}
        self._restarts = 0
        self._most_waiting: int | None = None
        self._fullest: float | None = None

    def take(self, loads: dict[str, Load | None]) -> None:
        """The next reading: what each replica said, by its name; None where it said nothing."""
        for name, load in loads.items():
            self._silent[name] = load is None
            if load is None:
                continue
            if (before := self._last.get(name)) is not None:
                self._add(before, load)
            self._last[name] = load
            if load.kv_cache is not None:
                self._fullest = max(self._fullest or 0.0, load.kv_cache)
        said = [load.waiting for load in loads.values() if load is not None]
        if said:
            self._most_waiting = max(self._most_waiting or 0, sum(said))

    def _add(self, before: Load, load: Load) -> None:
        both = [(name, getattr(before, name), getattr(load, name)) for name in COUNTERS]
        # One counter that falls is an engine that began again, and with it all of them.
        has_restarted = any(old is not None and new is not None and new < old for _, old, new in both)
        self._restarts += has_restarted
        for name, old, new in both:
            if new is not None:
                self._sums[name] = self._sums.get(name, 0.0) + new - (0.0 if has_restarted or old is None else old)

    def work(self) -> Work:
        return Work(
            replicas=len(self._silent),
            silent=sum(self._silent.values()),
            restarts=self._restarts,
            prompt_tokens=self._sums.get("prompt_tokens"),
            generated_tokens=self._sums.get("generated_tokens"),
            ms_per_token=self._mean_ms("token_seconds", "timed_tokens"),
            queue_ms=self._mean_ms("queue_seconds", "queued_requests"),
            preemptions=self._sums.get("preemptions"),
            most_waiting=self._most_waiting,
            fullest_kv_cache=self._fullest,
        )

    def _mean_ms(self, seconds: str, count: str) -> float | None:
        of = self._sums.get(count)
        return 1000 * self._sums.get(seconds, 0.0) / of if of else None
