"""What is a measure? Which requests it is about, which of them hit, its part of alpha, its limit, and its words."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from blocks.ports.fleet import ModelKind
from blocks.ports.gateway import Outcome
from flows.policy.gating.e_values import Floats
from flows.policy.gating.limits import Limits
from flows.policy.gating.outcomes import Event

ALL_KINDS: frozenset[ModelKind] = frozenset({"chat", "completion", "embedding", "rerank"})
GENERATING: frozenset[ModelKind] = frozenset({"chat", "completion"})
LATENCY_ALPHA = {"hung": (0.03, 0.0), "slower": (0.34, 0.0), "over limit": (0.0, 0.25), "later than p90": (0.0, 0.0)}
"""What latencies have of alpha together, beside stable and alone."""


@dataclass(frozen=True)
class Gate:
    """One thing that a stage is ruled by: a claim that may be rejected, or that has to be shown."""

    name: str
    family: str
    """Gates of one family share the alpha of one."""
    beside: float
    """Its part of a stage's alpha beside stable, in relation to the other gates'; 0 where it can show no harm."""
    alone: float
    """The same at 100 %, where there is no stable."""


@dataclass(frozen=True)
class EventMeasure:
    """Something that happens to a request or not, such as a failure; of each user the first hit of a stage counts."""

    name: str
    met: str
    """What its users met, after "of the users", such as "who met a failure"."""
    seen: str
    """What its requests did, after "3 of 64 requests", such as "failed"."""
    is_hit: Callable[[Outcome, Event], bool]
    is_trial: Callable[[Outcome, Event], bool]
    beside: float
    alone: float
    lately: tuple[float, float] = (0.0, 0.0)
    """Of alpha, beside stable and alone, for hits that are counted anew every so often; 0 where they are not."""
    limit: Callable[[Limits], float | None] = field(default=lambda _: None)
    """The rate that is promised; None where none is, as of refusals: users ask what is to be refused, in any slot."""
    kinds: frozenset[ModelKind] = ALL_KINDS

    def is_judged(self, limits: Limits) -> bool:  # noqa: ARG002 - as of latencies
        return True

    @property
    def lately_name(self) -> str:
        return f"{self.name} lately"

    @property
    def gates(self) -> tuple[Gate, ...]:
        own = Gate(self.name, self.name, self.beside, self.alone)
        return (own, Gate(self.lately_name, self.lately_name, *self.lately)) if any(self.lately) else (own,)


@dataclass(frozen=True)
class LatencyMeasure:
    """A time of an answer, such as TTFT; it is judged by a promised p95, and by stable's distribution."""

    name: str
    phrase: str
    """What people call it, as a subject: "time to first token"."""
    over: str
    """What an answer did that is over the limit, before the limit: "began after"."""
    ms: Callable[[Outcome], float | None]
    """None where the answer has no such time."""
    limit_ms: Callable[[Limits], float | None]
    """The p95 that is promised; None where nothing is."""
    margin_ms: Callable[[Limits], float]
    """A difference from stable's that is smaller is excused."""
    is_judged: Callable[[Limits], bool] = field(default=lambda _: True)
    digits: int = 0
    """Of a millisecond, how many matter to people."""
    kinds: frozenset[ModelKind] = ALL_KINDS
    answers: str = "answers"
    """Which answers have such a time, as people say it."""

    def gate(self, what: Literal["hung", "slower", "over limit", "later than p90"]) -> str:
        return f"{self.name} {what}"

    @property
    def gates(self) -> tuple[Gate, ...]:
        return tuple(Gate(f"{self.name} {what}", what, *parts) for what, parts in LATENCY_ALPHA.items())

    def allowed_ms(self, stable_ms: Floats, limits: Limits) -> Floats:
        """The times up to which the candidate counts as no slower than stable with these."""
        return np.maximum(stable_ms * limits.slower_than_stable, stable_ms + self.margin_ms(limits))


Measure = EventMeasure | LatencyMeasure
