"""How a stage is ruled on, by data alone."""

from dataclasses import replace
from math import log
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from flows.policy.gating.alpha import parts_of_alpha
from flows.policy.gating.decide import rule
from flows.policy.gating.evidence import CellCount, Count, Evidence, Timing, Weighed
from flows.policy.gating.judge import allowed_alone
from flows.policy.gating.limits import Limits
from flows.policy.gating.measures import panel_of
from flows.policy.gating.progress import progress_of
from flows.policy.gating.questions import question_of
from flows.policy.gating.sample_size import forecast, requests_needed
from flows.policy.gating.wording import seen_of
from tests.gating import said, subjects
from tests.limits import LIMITS

BESIDE = parts_of_alpha(panel_of("chat", LIMITS).gates, is_alone=False)
ALONE = parts_of_alpha(panel_of("chat", LIMITS).gates, is_alone=True)
GOOD = Evidence(
    weight=0.05,
    alpha=0.6,
    requests=400,
    stable_requests=7600,
    users=200,
    counts={
        "failed": Count(hits=0, all_hits=15, of=400, counted=400),
        "TTFT over limit": Count(hits=1, all_hits=1, of=400, counted=400, counted_hits=1),
        "TTFT slower": Count(hits=20, all_hits=400, of=200),
        "TTFT later than p90": Count(hits=38, all_hits=760, of=400, counted=400, counted_hits=38),
    },
    timings={"TTFT": Timing(edges_ms=(50, 70, 100, 150, 200, 300, 400), recent_ms=(90.0, 280.0, 100.0, 300.0))},
)
NOTHING = Evidence(weight=0.05, alpha=0.6)


def with_count(evidence: Evidence, gate: str, count: Count) -> Evidence:
    return replace(evidence, counts={**evidence.counts, gate: count})


def e_values(count: Count, weight: float, limits: Limits) -> tuple[float, float]:
    """Of failures: on harm, and on more than is excused."""
    numbers = (np.array(float(number)) for number in (count.hits, count.all_hits, count.of))
    harm, beyond = question_of(panel_of("chat", limits), "failed", weight, limits, count.allowed).e_values(*numbers)
    return float(harm), float(beyond)


def harm(count: Count, weight: float, limits: Limits) -> float:
    return e_values(count, weight, limits)[0]


def beyond(count: Count, weight: float, limits: Limits) -> float:
    return e_values(count, weight, limits)[1]


def test_a_candidate_like_stable_is_promoted_after_the_minimum_time() -> None:
    """Good news counts only once the stage was held for its minimum time."""
    assert subjects(rule(GOOD, LIMITS, 5)) == [""]
    assert rule(GOOD, LIMITS, 5).findings[0].kind == "minimum"
    ruling = rule(GOOD, LIMITS, 10)
    assert ruling.verdict == "promote"
    assert not ruling.findings


def test_no_data_is_never_a_pass() -> None:
    """A stage without requests holds, and is rolled back at its deadline, also where it takes a single request."""
    assert rule(NOTHING, LIMITS, 50).verdict == "hold"
    ruling = rule(NOTHING, LIMITS.model_copy(update={"minimum_requests": 1}), 100)
    assert ruling.verdict == "roll back"
    assert ruling.findings[0].kind == "too few"


def test_good_news_needs_evidence_and_says_how_much_is_missing() -> None:
    """A hundred clean requests do not rule out 2 %."""
    few = with_count(GOOD, "failed", Count(counted=100, of=100))
    ruling = rule(few, LIMITS, 50)
    assert ruling.verdict == "hold"
    assert subjects(ruling, "limit") == ["failed"]
    assert "about 72 more good ones (36 s at this pace) will do" in said(few, LIMITS, 50)
    assert rule(with_count(GOOD, "failed", Count(counted=172, of=172)), LIMITS, 50).verdict == "promote"


def test_a_failure_puts_the_pass_off() -> None:
    """Each failure takes the good news of about a hundred requests back."""
    assert rule(with_count(GOOD, "failed", Count(1, 16, 200, 200, 1)), LIMITS, 50).verdict == "hold"
    assert rule(with_count(GOOD, "failed", Count(1, 16, 300, 300, 1)), LIMITS, 50).verdict == "promote"


def test_harm_outranks_too_little_data() -> None:
    """What a bet was worth at its best counts, though better requests came since."""
    ruling = rule(with_count(NOTHING, "failed", Count(4, 4, 8, 8, 4, peak=8.0)), LIMITS, 1)
    assert ruling.verdict == "roll back"
    assert subjects(ruling) == ["failed"]
    assert ruling.findings[0].log_e_value == 8.0 > ruling.findings[0].log_threshold


def test_bets_that_go_on_have_the_budget_of_the_stage_that_they_began_in() -> None:
    """Where this stage by itself is no harm, all stages so far may be; the findings and the board say so."""
    first = -log(0.01 * 0.8 * BESIDE["failed"])
    count = Count(
        2,
        10,
        400,
        400,
        2,
        peak=1.0,
        peak_beyond_margin=1.0,
        cumulative_peak=first + 0.01,
        cumulative_peak_beyond_margin=-log(0.1 * 0.8),
    )
    later = replace(with_count(GOOD, "failed", count), alpha=0.05, cumulative_alpha=0.8)
    ruling = rule(later, LIMITS, 5)
    assert ruling.verdict == "roll back"
    assert subjects(ruling, "cumulative harm") == ["failed"]
    assert ruling.findings[0].log_e_value == pytest.approx(ruling.findings[0].log_threshold + 0.01)
    assert next(gate for gate in progress_of(later, LIMITS) if gate.gate == "failed").to_rollback == pytest.approx(1)
    assert rule(with_count(later, "failed", replace(count, cumulative_peak=first - 0.01)), LIMITS, 5).verdict == "hold"
    assert (
        rule(with_count(later, "failed", replace(count, cumulative_peak_beyond_margin=2.0)), LIMITS, 5).verdict
        == "hold"
    )
    assert rule(replace(later, cumulative_alpha=0.0), LIMITS, 5).verdict == "hold"
    # In the order of the gates, or a replay would not say the same in the same words.
    both = with_count(later, "refused", replace(count, cumulative_peak=20.0))
    assert list(both.counts) == [*later.counts, "refused"]
    assert subjects(rule(both, LIMITS, 5)) == ["failed", "refused"]
    # Where earlier failures were nobody knows, and a single one now is no cell's fault.
    cells = {f"cell {n}": CellCount(40, {"failed": 2 * (n == 0)}) for n in range(10)}
    assert rule(replace(later, cells=cells), LIMITS, 5).verdict == "roll back"


def test_each_gate_has_its_part_of_the_budget() -> None:
    """Just under its bar a bet is no harm: the parts of a stage's budget add up to the whole."""
    with_tokens = LIMITS.model_copy(update={"token_p95_ms": 100})
    for limits in (LIMITS, with_tokens):
        gates = panel_of("chat", limits).gates
        for is_alone in (False, True):
            assert sum(parts_of_alpha(gates, is_alone=is_alone).values()) == pytest.approx(1)
    over, under = (
        with_count(GOOD, "failed", Count(0, 15, 400, 400, peak=-log(0.01 * 0.6 * BESIDE["failed"]) + by))
        for by in (0.01, -0.01)
    )
    assert rule(under, LIMITS, 50).verdict == "promote"
    assert rule(over, LIMITS, 50).verdict == "roll back"
    assert rule(over, LIMITS.model_copy(update={"false_alarm_percent": 0.5}), 50).verdict == "promote"


def test_what_comes_to_both_slots_is_no_harm_and_no_pass() -> None:
    """A tenth of all requests fails in both slots alike: the stage waits for better times."""
    both = with_count(GOOD, "failed", Count(40, 800, 400, 400, 40))
    assert harm(both.count("failed"), 0.05, LIMITS) < 0
    assert rule(both, LIMITS, 50).verdict == "hold"


def test_alone_the_limit_is_the_measure_of_harm() -> None:
    """At 100 % a tenth of failures is harm, whatever stable had."""
    assert harm(Count(10, 10, 100), 1.0, LIMITS) > -log(0.001)
    assert harm(Count(1, 1, 100), 1.0, LIMITS) < 1


def test_much_more_than_stable_that_is_no_harm_yet_is_no_time_to_rise() -> None:
    """Three of the four departures are the candidate's, and all other news is good."""
    suspicious = Count(3, 4, 100, peak=2.5, current=0.1)
    gates = ("failed", "refused", "left", "TTFT hung", "TTFT slower")
    for gate in gates:
        count = replace(suspicious, counted=400) if gate == "failed" else suspicious
        ruling = rule(with_count(GOOD, gate, count), LIMITS, 50)
        assert ruling.verdict == "hold"
        assert subjects(ruling, "suspicious") == [gate]
        assert rule(with_count(GOOD, gate, replace(count, current=0.0)), LIMITS, 50).verdict == "promote"


def test_a_difference_that_does_not_matter_is_no_harm() -> None:
    """Ten failures among 100,000 requests where stable has none in a million: more, and too few to matter."""
    count = Count(10, 10, 100_000)
    assert harm(count, 0.1, LIMITS) > 10
    assert beyond(count, 0.1, LIMITS) < 0
    assert beyond(count, 0.1, LIMITS.model_copy(update={"error_margin_percent": 0.001})) > 10


def test_a_little_more_than_stable_is_excused() -> None:
    """Nearly twice as many as stable's are plainly more, and no harm where twice as many may be."""
    count = Count(655, 1000, 20_000)
    assert harm(count, 0.5, LIMITS) > 10
    assert beyond(count, 0.5, LIMITS.model_copy(update={"more_than_stable": 1.0})) > 10
    assert beyond(count, 0.5, LIMITS.model_copy(update={"more_than_stable": 2.0})) < 0


def test_harm_has_to_be_beyond_bad_luck_and_beyond_the_margins() -> None:
    """Ten coins over the stage's part say that it is more than is excused; where harm takes less, that is enough."""
    for matters, verdict in ((log(9 / 0.6), "promote"), (log(11 / 0.6), "roll back"), (None, "roll back")):
        harm = Count(0, 15, 400, 400, peak=9.0, peak_beyond_margin=matters)
        assert rule(with_count(GOOD, "failed", harm), LIMITS, 50).verdict == verdict
    bold = LIMITS.model_copy(update={"false_alarm_percent": 90})
    assert (
        rule(with_count(GOOD, "failed", Count(0, 15, 400, 400, peak=2.0, peak_beyond_margin=2.0)), bold, 50).verdict
        == "roll back"
    )


def test_errors_within_the_limit_may_still_be_far_more_than_stable_has() -> None:
    """A limit of 20 % does not excuse 10 % where stable has 0.1 %."""
    assert beyond(Count(10, 12, 100), 0.05, LIMITS.model_copy(update={"error_percent": 20})) > 10


def test_where_all_answers_take_the_same_time_a_candidate_can_pass() -> None:
    """Nobody is later than a p90 that all have: 400 answers of which none is late are no slower."""
    same = with_count(GOOD, "TTFT later than p90", Count(0, 0, 400, 400))
    assert rule(same, LIMITS, 50).verdict == "promote"
    assert rule(with_count(GOOD, "TTFT later than p90", Count(0, 0, 5, 5)), LIMITS, 50).verdict == "hold"


def test_at_all_traffic_stable_is_no_measure() -> None:
    """With a share of 100 % every failure is the candidate's, and only limits rule."""
    alone = replace(with_count(GOOD, "failed", Count(1, 1, 400, 400, 1)), weight=1.0, timings={})
    assert rule(alone, LIMITS, 50).verdict == "promote"


def test_edges_of_older_ledgers_are_read_as_they_were() -> None:
    """They had none under the median: the p90 is the third from the end, then as now."""
    old = replace(GOOD, timings={"TTFT": Timing(edges_ms=(100, 150, 200, 300, 400))})
    assert rule(old, LIMITS, 50) == rule(GOOD, LIMITS, 50)
    hung = with_count(old, "TTFT hung", Count(3, 4, 40, all_of=800))
    assert "was more than 600 ms for 3 of 40 (7.5 %) users" in seen_of("TTFT hung", hung, LIMITS)


def test_without_streams_a_promised_first_token_holds() -> None:
    """A promise that nothing was seen of is not kept; a service that promises none is not judged by it."""
    plain = replace(GOOD, counts={"failed": GOOD.count("failed")}, timings={})
    assert rule(plain, LIMITS, 50).verdict == "hold"
    promises_none = LIMITS.model_copy(update={"first_token_p95_ms": None})
    assert rule(plain, promises_none, 50).verdict == "promote"
    assert "TTFT over limit" not in [near.gate for near in progress_of(replace(GOOD, weight=1.0), promises_none)]


@pytest.mark.parametrize("requests", range(1, 40))
def test_at_all_traffic_a_cell_of_any_size_is_judged_by_limits(requests: int) -> None:
    """There is no stable to compare it with, however its part of the requests comes out in floats."""
    cells = {"a": CellCount(requests, {"TTFT slower": 1, "failed": 0}), "b": CellCount(400 - requests)}
    alone = replace(GOOD, weight=1.0, timings={}, cells=cells)
    assert rule(alone, LIMITS, 50).verdict == "promote"


def test_a_cell_is_blamed_only_where_the_rest_is_good() -> None:
    """All eight failures in one of four cells are its own; four and four in two are the model's."""
    harm = with_count(GOOD, "failed", Count(8, 20, 400, 400, 8, peak=9, current=9))
    cells = {name: CellCount(100, {"failed": 8} if name == "c" else {}) for name in "abcd"}
    ruling = rule(replace(harm, cells=cells), LIMITS, 50)
    assert (ruling.verdict, ruling.bad_cells) == ("hold", ("c",))
    cells = {name: CellCount(100, {"failed": 4} if name in "bc" else {}) for name in "abcd"}
    assert rule(replace(harm, cells=cells), LIMITS, 50).verdict == "roll back"


def test_a_bad_cell_is_found_though_the_whole_looks_good() -> None:
    """Six failures are 0.6 % of a thousand requests, and 12 % of those of one cell of twenty."""
    quiet = with_count(GOOD, "failed", Count(6, 30, 1000, 1000, 6))
    cells = {str(number): CellCount(50, {"failed": 6} if number == 7 else {}) for number in range(20)}
    assert rule(quiet, LIMITS, 50).verdict == "promote"
    assert rule(replace(quiet, requests=1000, cells=cells), LIMITS, 50).bad_cells == ("7",)


def test_most_cells_are_the_model() -> None:
    """Once half of the cells were held back, the next bad one rolls the release back."""
    harm = with_count(GOOD, "failed", Count(8, 20, 400, 400, 8, peak=9, current=9))
    cells = {"c": CellCount(200, {"failed": 8}), "d": CellCount(200)}
    assert rule(replace(harm, cells=cells), LIMITS, 50).bad_cells == ("c",)
    assert rule(replace(harm, cells=cells, dropped=("a", "b")), LIMITS, 50).verdict == "roll back"


def test_a_stage_says_beforehand_how_many_requests_it_takes() -> None:
    """172 without a failure rule out 2 % with 95 %; beside stable it takes longer, and a minimum stands."""
    alone = LIMITS.model_copy(update={"first_token_p95_ms": None})
    assert requests_needed(alone, 0.05) == 172
    assert requests_needed(LIMITS, 1.0) == 172
    assert 172 <= requests_needed(LIMITS, 0.05) < 400
    assert requests_needed(alone.model_copy(update={"minimum_requests": 1000}), 0.05) == 1000


def test_a_margin_beside_stable_makes_a_stage_shorter() -> None:
    """Once it is known what it excuses: a candidate like stable is seldom later than the p90 and the margin."""
    lenient = LIMITS.model_copy(update={"error_percent": 10, "minimum_requests": 10})
    wide = lenient.model_copy(update={"slower_than_stable": 2.0})
    lines = {"TTFT": (50, 70, 100, 120, 150, 200, 300)}
    needed = requests_needed(lenient, 0.05)
    assert requests_needed(lenient, 0.05, lines) == requests_needed(wide, 0.05) == needed
    assert requests_needed(wide, 0.05, lines) < needed
    assert forecast(wide, 0.05, 2, lines) != forecast(wide, 0.05, 2, {})


def test_a_promised_pace_needs_its_own_good_news() -> None:
    """As good as the first token's: within its limit, and like stable."""
    limits = LIMITS.model_copy(update={"token_p95_ms": 100})
    assert subjects(rule(GOOD, limits, 50)) == ["TPOT over limit", "TPOT"]
    tokens = replace(
        with_count(
            with_count(GOOD, "TPOT over limit", GOOD.count("TTFT over limit")),
            "TPOT later than p90",
            GOOD.count("TTFT later than p90"),
        ),
        timings={**GOOD.timings, "TPOT": Timing(edges_ms=(6, 8, 10, 12, 15, 18, 22))},
    )
    ruling = rule(tokens, limits, 50)
    assert ruling.verdict == "promote"
    late = with_count(tokens, "TPOT over limit", Count(40, 40, 400, 400, 40))
    assert rule(late, limits, 50).verdict == "hold"


def test_a_stage_says_beforehand_how_long_it_takes() -> None:
    """At the rate of now, never less than its minimum time, and in words where that is too late or nobody knows."""
    alone = LIMITS.model_copy(update={"first_token_p95_ms": None})
    needs = "about 172 requests of the candidate if all goes well"
    assert forecast(alone, 0.5, 20, {}) == f"{needs}: 17 s at the 20 a second that the service has now"
    assert forecast(alone, 0.5, 1000, {}).startswith(f"{needs}: 10 s at")
    assert forecast(alone, 0.05, 2, {}).endswith(
        "29 min at the 2 a second that the service has now, later than its deadline of 100 s"
    )
    assert forecast(alone, 0.5, 0, {}) == f"{needs}; none come now"
    assert forecast(alone, 0.5, None, {}) == f"{needs}; nobody knows how many come now"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"false_alarm_percent": 0}, "false_alarm_percent"),
        ({"false_alarm_percent": 100}, "false_alarm_percent"),
        ({"missed_harm_percent": 0}, "missed_harm_percent"),
        ({"error_percent": 0}, "error_percent"),
        ({"error_percent": float("nan")}, "error_percent"),
        ({"first_token_p95_ms": -1}, "first_token_p95_ms"),
        ({"token_p95_ms": 0}, "token_p95_ms"),
        ({"slower_than_stable": 0.9}, "slower_than_stable"),
        ({"minimum_requests": 0}, "minimum_requests"),
        ({"error_margin_percent": 2}, "would excuse what error_percent 1 forbids"),
        ({"warm_up_seconds": 100}, "has seen nothing by its deadline"),
        ({"tokens_per_joule": 3}, "tokens_per_joule"),
    ],
)
def test_gates_that_cannot_be_are_refused_in_words(change: dict[str, Any], words: str) -> None:
    """Out of range, at odds with each other, or of a measure that nobody knows."""
    with pytest.raises(ValidationError, match=words):
        Limits(**{**LIMITS.model_dump(), **change})


def test_alone_what_nobody_promised_has_a_gate_once_it_is_known() -> None:
    """By what was shown before; a stage of an older ledger has none, and the board does not show what nobody knows."""
    seen = Count(30, 30, 60, allowed=0.1, peak=30.0, current=13.0)
    alone = replace(with_count(GOOD, "refused", seen), weight=1.0, alpha=0.0375, timings={})
    few, known = (LIMITS.model_copy(update={"minimum_requests": of}) for of in (61, 60))
    assert rule(alone, few, 5).verdict == "hold"
    ruling = rule(alone, known, 5)
    assert ruling.verdict == "roll back"
    assert subjects(ruling) == ["refused"]
    words = said(alone, known, 5)
    assert "30 of 60 (50.0 %) requests were refused; 10 % are excused by what earlier stages have shown" in words
    refused = next(near for near in progress_of(alone, known) if near.gate == "refused")
    assert refused.to_rollback is not None
    assert refused.to_rollback == pytest.approx(13.0 / -log(0.01 * 0.0375 * ALONE["refused"]))
    # What was worth so much at its best, in a stranger's minute, is outweighed by now.
    assert rule(with_count(alone, "refused", replace(seen, current=0.0)), known, 5).verdict == "hold"
    old = with_count(alone, "refused", replace(seen, allowed=None, peak=0.0, current=0.0))
    assert rule(old, known, 50).verdict == "promote"
    assert "refused" not in [near.gate for near in progress_of(old, known)]


def test_what_is_excused_alone_is_twice_what_was_shown() -> None:
    """And that is taken for as much as it may be, never for less than a tenth; of nothing nothing is known."""
    assert allowed_alone(0, 0, LIMITS) is allowed_alone(3, 3, LIMITS) is None
    assert allowed_alone(0, 5000, LIMITS) == 0.1
    assert allowed_alone(0, 5000, LIMITS.model_copy(update={"error_percent": 20})) == 0.2
    much, little = allowed_alone(1000, 10_000, LIMITS), allowed_alone(10, 100, LIMITS)
    assert much is not None
    assert little is not None
    assert 0.2 < much < 0.24 < little < 1


def test_evidence_comes_back_from_json_as_it_was() -> None:
    """The ledger keeps it, and what is ruled on it again is the same."""
    harm = replace(
        with_count(
            with_count(GOOD, "failed", Count(8, 20, 400, 400, 8, 9, 9, set_aside=9, set_aside_hits=2)),
            "TTFT later than p90",
            Count(38, 760, 400, weighed=Weighed(1.5, 30.25, 20.125), all_of=8000, allowed=0.1),
        ),
        cells={"a": CellCount(3, {"failed": 1})},
        users=3,
        timings={"TPOT": Timing(3, (6, 8, 10, 12, 15, 18, 22), (1.0, 2.0, None, None))},
        tokens=7,
    )
    adapter = TypeAdapter(Evidence)
    again = adapter.validate_json(adapter.dump_json(harm))
    assert again == harm
    assert rule(again, LIMITS, 50) == rule(harm, LIMITS, 50)


counts = st.builds(
    lambda hits, stables, clean, harm: Count(hits, hits + stables, hits + clean, hits + clean, hits, harm, harm),
    *(st.integers(0, 50), st.integers(0, 500), st.integers(0, 3000), st.floats(0, 20)),
)


@settings(deadline=None)  # tests share their core
@given(
    failed=counts,
    late=counts,
    slow=counts,
    requests=st.integers(0, 3000),
    share=st.sampled_from([0.01, 0.05, 0.5, 1.0]),
    elapsed=st.floats(0, 1000),
)
def test_every_evidence_gets_a_ruling_with_words(
    failed: Count, late: Count, slow: Count, requests: int, share: float, elapsed: float
) -> None:
    """Judging is total; nothing under the minimum or at twice the limit is promoted; more failures never help."""
    evidence = replace(
        GOOD,
        weight=share,
        requests=requests,
        counts={"failed": failed, "TTFT over limit": late, "TTFT later than p90": slow},
    )
    ruling = rule(evidence, LIMITS, elapsed)
    assert ruling.findings or ruling.verdict == "promote"
    assert said(evidence, LIMITS, elapsed)
    assert all(near.seen for near in progress_of(evidence, LIMITS))
    if requests < LIMITS.minimum_requests or failed.hits >= 0.02 * failed.counted or elapsed < LIMITS.minimum_seconds:
        assert ruling.verdict != "promote"
    more = replace(failed, hits=failed.hits + 1, all_hits=failed.all_hits + 1, counted_hits=failed.hits + 1)
    worse = with_count(evidence, "failed", replace(more, counted=failed.counted + 1))
    if rule(worse, LIMITS, elapsed).verdict == "promote":
        assert ruling.verdict == "promote"
