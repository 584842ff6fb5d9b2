"""May the candidate have more traffic? Each gate looks at one measure and says promote, hold or roll back, and why."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, comb
from typing import Literal

from blocks.ports import Outcome, Slot

Verdict = Literal["promote", "hold", "roll back"]

BEYOND_CHANCE = 0.001
"""A measure that is over its limit by less than this probability of bad luck is harm; the rest of it is doubt."""

DOUBTFUL = 0.05
"""More of something than stable has, by less than this probability of bad luck, is doubt."""

REFUSED_REQUESTS = frozenset({400, 413, 422})
"""Statuses with which an engine refuses a request that it was sent, such as a prompt that is too long for it."""


@dataclass(frozen=True)
class Limits:
    """What a service promises its users, and how much must be seen before a candidate is said to keep it."""

    error_percent: float
    first_token_p95_ms: float | None
    """None where the service promises nothing, as where nobody streams."""
    slower_than_stable: float
    """How many times stable's p95 time to first token the candidate's may be."""
    first_token_margin_ms: float
    """A difference from stable's that is smaller than this never matters."""
    minimum_requests: int
    """A stage with fewer of the candidate's requests than this never passes."""
    minimum_seconds: float
    deadline_seconds: float
    """A stage that has not passed by then is rolled back."""


@dataclass(frozen=True)
class Sample:
    """What the users of one slot saw."""

    requests: int
    failed: int
    """Server errors, no answer, an answer only from another replica or slot, and answers cut short."""
    refused: int
    """Requests that the engine would not take, see `REFUSED_REQUESTS`."""
    first_token_ms: tuple[float, ...]
    """Sorted; of the streamed answers."""

    def first_token_percentile(self, percent: float) -> float | None:
        """Nearest rank; None without data."""
        if not self.first_token_ms:
            return None
        return self.first_token_ms[ceil(len(self.first_token_ms) * percent / 100) - 1]


@dataclass(frozen=True)
class Ruling:
    verdict: Verdict
    reason: str


def has_failed(outcome: Outcome) -> bool:
    """Whether the slot failed this user, though a retry or a fallback may have hidden it from them."""
    return outcome.status >= 500 or outcome.retried or outcome.by_fallback or outcome.cut_short  # noqa: PLR2004 - HTTP


def tally(outcomes: Iterable[Outcome], slot: Slot) -> Sample:
    """Sum up one slot's requests; those that the user broke off say nothing about the slot, unless it had failed."""
    own = [o for o in outcomes if o.slot == slot and (has_failed(o) or not o.user_left)]
    return Sample(
        requests=len(own),
        failed=sum(map(has_failed, own)),
        refused=sum(o.status in REFUSED_REQUESTS for o in own),
        first_token_ms=tuple(sorted(o.first_token_ms for o in own if o.first_token_ms is not None)),
    )


def judge(candidate: Sample, stable: Sample, limits: Limits, elapsed_seconds: float) -> Ruling:
    """Rule on a stage: harm outranks doubt, doubt outranks good news, and no data is never a pass."""
    rulings = [
        _errors_within_limit(candidate, limits),
        _errors_against_stable(candidate, stable),
        _refusals_against_stable(candidate, stable),
        _first_token_within_limit(candidate, limits),
        _first_token_against_stable(candidate, stable, limits),
    ]
    if harm := [ruling.reason for ruling in rulings if ruling.verdict == "roll back"]:
        return Ruling("roll back", "; ".join(harm))
    doubt = [ruling.reason for ruling in rulings if ruling.verdict == "hold"]
    if candidate.requests < limits.minimum_requests:
        doubt.insert(0, f"{candidate.requests} of the {limits.minimum_requests} requests that this stage needs")
    if doubt and elapsed_seconds >= limits.deadline_seconds:
        return Ruling("roll back", f"not passed within {limits.deadline_seconds:g} s: {'; '.join(doubt)}")
    if doubt or elapsed_seconds < limits.minimum_seconds:
        return Ruling("hold", "; ".join(doubt) or f"held for at least {limits.minimum_seconds:g} s")
    return Ruling("promote", "; ".join(ruling.reason for ruling in rulings if ruling.reason))


def _errors_within_limit(candidate: Sample, limits: Limits) -> Ruling:
    words = (
        f"{candidate.failed} of {candidate.requests} requests failed{_percent(candidate.failed, candidate.requests)}, "
        f"limit {limits.error_percent:g} %"
    )
    return _rule(candidate.failed, candidate.requests, limits.error_percent / 100, words)


def _first_token_within_limit(candidate: Sample, limits: Limits) -> Ruling:
    if limits.first_token_p95_ms is None:
        return Ruling("promote", "")
    p95 = candidate.first_token_percentile(95)
    if p95 is None:
        return Ruling("hold", "no streamed answer yet, so no time to first token")
    words = f"p95 first token {p95:.0f} ms, limit {limits.first_token_p95_ms:g} ms"
    return _rule_p95(candidate.first_token_ms, limits.first_token_p95_ms, words)


def _first_token_against_stable(candidate: Sample, stable: Sample, limits: Limits) -> Ruling:
    p95, stable_p95 = candidate.first_token_percentile(95), stable.first_token_percentile(95)
    if p95 is None or stable_p95 is None or len(stable.first_token_ms) < limits.minimum_requests:
        return Ruling("promote", "")  # nothing to compare with; the absolute limit rules alone
    allowed = max(stable_p95 * limits.slower_than_stable, stable_p95 + limits.first_token_margin_ms)
    words = f"p95 first token {p95:.0f} ms, {allowed:.0f} ms allowed beside stable's {stable_p95:.0f} ms"
    return _rule_p95(candidate.first_token_ms, allowed, words)


def _errors_against_stable(candidate: Sample, stable: Sample) -> Ruling:
    return _more_than_stable(candidate.failed, candidate, stable.failed, stable, "failed")


def _refusals_against_stable(candidate: Sample, stable: Sample) -> Ruling:
    """A user's nonsense is refused by both slots alike, so only the difference speaks against the candidate."""
    return _more_than_stable(candidate.refused, candidate, stable.refused, stable, "were refused by the engine")


def _more_than_stable(hits: int, candidate: Sample, stable_hits: int, stable: Sample, what: str) -> Ruling:
    """Were the two alike, how likely would the candidate's share of all hits be this large? (Fisher's exact test.)"""
    total, all_hits = candidate.requests + stable.requests, hits + stable_hits
    ways = sum(
        comb(candidate.requests, k) * comb(stable.requests, all_hits - k)
        for k in range(hits, min(candidate.requests, all_hits) + 1)
    )
    words = (
        f"{hits} of {candidate.requests} requests {what}{_percent(hits, candidate.requests)}, "
        f"stable's {stable_hits} of {stable.requests}"
    )
    chance = ways / comb(total, all_hits)
    if chance < BEYOND_CHANCE:
        return Ruling("roll back", words)
    return Ruling("hold", words) if chance < DOUBTFUL else Ruling("promote", "")


def _rule_p95(sorted_values: Sequence[float], limit: float, words: str) -> Ruling:
    """A p95 is under a limit where at most 5 % of the values are over it."""
    return _rule(sum(value > limit for value in sorted_values), len(sorted_values), 0.05, words)


def _rule(hits: int, of: int, limit: float, words: str) -> Ruling:
    if of == 0 or hits / of <= limit:
        return Ruling("promote", words)
    return Ruling("roll back" if _chance_of_at_least(hits, of, limit) < BEYOND_CHANCE else "hold", words)


def _chance_of_at_least(hits: int, of: int, rate: float) -> float:
    """The upper tail of the binomial distribution."""
    return 1 - sum(comb(of, k) * rate**k * (1 - rate) ** (of - k) for k in range(hits))


def _percent(part: int, whole: int) -> str:
    return f" ({100 * part / whole:.1f} %)" if whole else ""
