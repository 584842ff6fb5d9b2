"""What has a stage shown? Frozen values that the ledger keeps, and the arrays of them that a ruling goes through."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, inf
from typing import Any, cast

import numpy as np
from pydantic import model_validator

from blocks.ports.fleet import ModelKind
from blocks.ports.gateway import RequestKind
from flows.policy.gating.e_values import Flags, Floats
from flows.policy.gating.measures import Panel

EDGES = (10, 25, 50, 75, 90, 97, 99)
"""Percentiles of both slots' latencies, the edges of the bins that answers lie in."""
P90 = EDGES.index(90) - len(EDGES)
"""From the end: older ledgers have no edge under the median."""


@dataclass(frozen=True)
class Timing:
    """What is known of one latency."""

    learned: int = 0
    """Answers timed so far, where the edges are still to be learned."""
    edges_ms: tuple[float, ...] = ()
    """Baseline quantiles (`EDGES`) before a request is judged by them; empty while they are learned."""
    recent_ms: tuple[float | None, ...] = (None, None, None, None)
    """p50 and p95 of the candidate's last answers, then of stable's: to look at, nothing is judged by them."""
    answers: tuple[int, int] = (0, 0)
    """Of the candidate and of stable, how many were timed in this stage; older ledgers do not say."""


@dataclass(frozen=True)
class Weighed:
    """Answers, where each user of a slot weighs as his answers do that resemble each other."""

    hits: float
    """The candidate's."""
    all_hits: float
    """Both slots'."""
    of: float
    """The candidate's answers."""


@dataclass(frozen=True)
class Count:
    """Of one gate: what was seen in this stage, each user's first hit only. E-values are logarithms."""

    hits: int = 0
    """The candidate's."""
    all_hits: int = 0
    """Both slots'."""
    of: int = 0
    """The candidate's requests of users without a hit before."""
    counted: int = 0
    """Of those, no more than `REQUESTS_A_USER` a user: what non-inferiority evidence stands on."""
    counted_hits: int = 0
    peak: float = 0
    """The most that the e-value on harm ever was."""
    peak_beyond_margin: float | None = None
    """The most that the e-value on more harm than margins excuse was; None where there is none, as in old ledgers."""
    current: float = 0
    """What the two e-values are now, whichever is less."""
    cumulative_peak: float = 0
    """The most that the e-value on harm was that goes on from an earlier stage."""
    cumulative_peak_beyond_margin: float = 0
    all_of: int = 0
    """Requests of both slots of users without a hit before; older ledgers do not know it."""
    weighed: Weighed | None = None
    """What non-inferiority stands on; None where each answer counts as one, as in older ledgers."""
    set_aside: int = 0
    """Of the candidate's requests, those in whose time stable broke the limit as well: no news of the candidate."""
    set_aside_hits: int = 0
    allowed: float | None = None
    """Alone, the rate that is excused by what was shown before; None where it is promised, or nothing was shown."""

    @model_validator(mode="before")
    @classmethod
    def _of_older_ledgers(cls, values: object) -> object:
        return _renamed(values, OLD_COUNT) if isinstance(values, dict) else values


@dataclass(frozen=True)
class CellCount:
    """What the candidate's users saw of one cell."""

    requests: int = 0
    """With those that the user broke off, for a replica that hangs has no others; older ledgers are without."""
    hits: Mapping[str, int] = field(default_factory=dict[str, int])
    """By gate."""

    @model_validator(mode="before")
    @classmethod
    def _of_older_ledgers(cls, values: object) -> object:
        return {**values, "hits": _renamed(values.get("hits", {}), OLD_GATES)} if isinstance(values, dict) else values


@dataclass(frozen=True)
class Evidence:
    """All that a ruling stands on: it can be ruled on again, years later, with the same result."""

    weight: float
    """The candidate's, in the split."""
    alpha: float
    """This stage's part of the release's error budget."""
    cumulative_alpha: float = 0.0
    """The part of the e-processes that go on from an earlier stage; 0 where there are none."""
    requests: int = 0
    """The candidate's, without those that the user broke off."""
    stable_requests: int = 0
    users: int = 0
    """Whom the candidate's answers went to; a request without a user's hash counts as one."""
    counts: Mapping[str, Count] = field(default_factory=dict[str, Count])
    """By gate."""
    cells: Mapping[str, CellCount] = field(default_factory=dict[str, CellCount])
    trail: tuple[tuple[int, int], ...] = ()
    """The candidate's requests and failures on the way, as `failed` counts them; a few dozen however long it was."""
    dropped: tuple[str, ...] = ()
    """Cells that were held back; what was seen of them is in no count."""
    timings: Mapping[str, Timing] = field(default_factory=dict[str, Timing])
    """By latency measure."""
    tokens: int = 0
    """Of the candidate's streamed answers, as far as they were taken in."""
    stable_tokens: int = 0
    answered: tuple[RequestKind, ...] = ()
    """Kinds of requests that somebody was answered well to, in this stage or before; older ledgers know of none."""
    kind: ModelKind = "chat"
    """Of model; older ledgers know of no other."""

    def count(self, gate: str) -> Count:
        return self.counts.get(gate, _NOTHING)

    def timing(self, latency: str) -> Timing:
        return self.timings.get(latency, _UNTIMED)

    @model_validator(mode="before")
    @classmethod
    def _of_older_ledgers(cls, values: object) -> object:
        """Version 0.1 had two latencies, of which the first stood in fields of its own, and words of its own."""
        if not isinstance(values, dict) or "share" not in values:
            return values
        old = dict(cast("dict[str, Any]", values))
        first = {name: old.pop(name) for name in ("learned", "slow_ms", "first_token_ms") if name in old}
        timings = {"TTFT": _renamed(first, OLD_TIMING), "TPOT": _renamed(old.pop("each_token", {}), OLD_TIMING)}
        counts = _renamed(old.pop("counts", {}), OLD_GATES)
        return {**_renamed(old, OLD_EVIDENCE), "counts": counts, "timings": timings}


OLD_EVIDENCE = {"share": "weight", "budget": "alpha", "whole_budget": "cumulative_alpha"}
OLD_COUNT = {
    "harm": "peak",
    "matters": "peak_beyond_margin",
    "harm_now": "current",
    "whole": "cumulative_peak",
    "whole_matters": "cumulative_peak_beyond_margin",
}
OLD_TIMING = {"slow_ms": "edges_ms", "first_token_ms": "recent_ms"}
OLD_GATES = {
    "late": "TTFT over limit",
    "hung": "TTFT hung",
    "slow": "TTFT slower",
    "later than p90": "TTFT later than p90",
    "late tokens": "TPOT over limit",
    "hung tokens": "TPOT hung",
    "slow tokens": "TPOT slower",
    "tokens later than p90": "TPOT later than p90",
}
"""Names of version 0.1, and what they are now."""


def _renamed(values: object, names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(name, name): value for name, value in cast("dict[str, Any]", values).items()}


_NOTHING = Count()
_UNTIMED = Timing()


@dataclass(frozen=True)
class Probed:
    """What golden prompts have shown, apart from users."""

    evidence: Evidence
    """Of their failures and latencies; its alpha is theirs, and as much again is for the answers."""
    answers: Mapping[str, Count] = field(default_factory=dict[str, Count])
    """By check: of the pairs of whole answers, those where one of the two is off and the other is not."""


@dataclass(frozen=True)
class Series:
    """Of one gate, what it is ruled by, at each interim analysis; e-values are logarithms."""

    hits: Floats
    all_hits: Floats
    of: Floats
    counted: Floats
    counted_hits: Floats
    peak: Floats
    peak_beyond_margin: Floats
    """Infinite where no such question is put."""
    current: Floats
    cumulative_peak: Floats
    cumulative_peak_beyond_margin: Floats
    weighed_hits: Floats
    weighed_all_hits: Floats
    weighed_of: Floats
    is_known: Flags
    """False while the edges are learned that a latency is judged by."""


@dataclass(frozen=True)
class Trajectory:
    """A stage at each of its interim analyses."""

    requests: Floats
    """The candidate's."""
    series: Mapping[str, Series]
    """By gate."""


def trajectory_of(evidence: Evidence, panel: Panel) -> Trajectory:
    """The one analysis that this evidence is of."""
    series = {
        gate: _series(count, is_known=latency is None or bool(evidence.timing(latency.name).edges_ms))
        for gate, count in evidence.counts.items()
        for latency in (panel.latency(gate),)
    }
    return Trajectory(np.array([float(evidence.requests)]), series)


def _series(count: Count, *, is_known: bool) -> Series:
    weighed = count.weighed or Weighed(count.hits, count.all_hits, count.counted)
    beyond = inf if count.peak_beyond_margin is None else count.peak_beyond_margin
    counts = (count.hits, count.all_hits, count.of, count.counted, count.counted_hits)
    e_values = (count.peak, beyond, count.current, count.cumulative_peak, count.cumulative_peak_beyond_margin)
    row = np.array([*counts, *e_values, weighed.hits, weighed.all_hits, weighed.of], np.float64)
    return Series(*row[:, None], is_known=np.array([is_known]))


def percentile(sorted_values: Sequence[float], percent: float) -> float | None:
    """Nearest rank; None without data."""
    return sorted_values[ceil(len(sorted_values) * percent / 100) - 1] if sorted_values else None
