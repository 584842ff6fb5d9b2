"""Ask engines directly, past the gateway."""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from blocks.errors import Unavailable, Unsound
from blocks.ports.engine import Engine, Load, Prompt
from blocks.ports.fleet import ModelKind, Replica
from flows.policy.gating.probes import Pair
from flows.runtime.retries import retried_task

READ_SECONDS = 5.0
READERS = 16


def loads_of(engine: Engine, replicas: Sequence[Replica]) -> dict[str, Load | None]:
    """What each replica says of itself, by its name; side by side, so that one that hangs costs its own time only."""
    with ThreadPoolExecutor(READERS) as readers:
        loads = readers.map(engine.load, replicas)
        return {replica.name: load for replica, load in zip(replicas, loads, strict=True)}


def who_is_healthy(engine: Engine, replicas: Sequence[Replica]) -> frozenset[str]:
    """The addresses of those that say so themselves, now; side by side, for the same reason."""
    with ThreadPoolExecutor(READERS) as askers:
        answers = askers.map(engine.is_healthy, replicas)
        return frozenset(replica.address for replica, says_so in zip(replicas, answers, strict=True) if says_so)


def who_is_silent(engine: Engine, replicas: Sequence[Replica], kind: ModelKind = "chat") -> tuple[Replica, ...]:
    """Those that give no answer of their kind, or none of use, whatever they say of their health; side by side too."""

    def is_silent(replica: Replica) -> bool:
        try:
            engine.complete(replica, kind)
        except (Unavailable, Unsound):
            return True
        return False

    with ThreadPoolExecutor(READERS) as askers:
        answers = askers.map(is_silent, replicas)
        return tuple(replica for replica, silent in zip(replicas, answers, strict=True) if silent)


class LoadReader:
    """Reads the loads of replicas from time to time, aside: nobody who rules on a stage waits for an engine's page."""

    def __init__(self, engine: Engine, replicas: Sequence[Replica]) -> None:
        self._engine, self._replicas = engine, replicas
        self._pool = ThreadPoolExecutor(1)
        self._reading: Future[dict[str, Load | None]] | None = None
        self._read_at = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def news(self) -> Mapping[str, Load | None]:
        """The reading that has come in since the last call; empty where none has."""
        read: dict[str, Load | None] = {}
        if self._reading is not None and self._reading.done():
            read, self._reading = self._reading.result(), None
        if self._reading is None and (now := time.monotonic()) - self._read_at >= READ_SECONDS:
            self._read_at = now
            self._reading = self._pool.submit(loads_of, self._engine, self._replicas)
        return read


@retried_task(task_run_name="probe-{release}-and-stable-{round_number}")
def probe(
    engine: Engine,
    prompts: Sequence[Prompt],
    candidates: Sequence[Replica],
    stables: Sequence[Replica],
    *,
    release: str,  # noqa: ARG001 - it names the task run
    round_number: int,
    is_over: Callable[[], bool],
) -> tuple[Pair, ...]:
    """Put each prompt to a replica of both, one request at a time; the replicas take turns, and so does who is first.

    Ends early once it `is_over`, for nobody will look at the rest.
    """
    pairs: list[Pair] = []
    for number, prompt in enumerate(prompts, round_number * len(prompts)):
        if is_over():
            break
        candidate, stable = candidates[number % len(candidates)], stables[number % len(stables)]
        if (round_number + number) % 2:
            stables_answer = engine.ask(stable, prompt)
            mine = engine.ask(candidate, prompt)
        else:
            mine = engine.ask(candidate, prompt)
            stables_answer = engine.ask(stable, prompt)
        pairs.append(Pair(prompt, candidate, mine, stable, stables_answer))
    return tuple(pairs)
