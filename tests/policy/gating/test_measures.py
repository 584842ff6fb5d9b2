"""A measure more is one file and one line: here it is a plug-in, found by judge, ruling, words, board and replay."""

from dataclasses import replace

import numpy as np
import pytest

from flows.boards.canary import canary_board
from flows.policy.gating.decide import rule
from flows.policy.gating.engines import Engines
from flows.policy.gating.judge import Judge
from flows.policy.gating.limits import Limits
from flows.policy.gating.measures import MEASURES, LatencyMeasure, Measure
from flows.policy.gating.wording import words_of
from flows.policy.releases.ledger import Stage
from flows.policy.releases.replay import replay
from tests import limits
from tests.flows.test_boards import RELEASE
from tests.gating import subjects
from tests.policy.gating.test_judge import OUTCOME

WHOLE = LatencyMeasure(
    name="whole answer",
    phrase="total time of an answer that is not streamed",
    over="took longer than",
    ms=lambda outcome: None if outcome.first_token_ms is not None else outcome.total_ms,
    limit_ms=lambda _: 1000.0,
    margin_ms=lambda _: 10.0,
)
PLUGGED_IN: tuple[Measure, ...] = (*MEASURES, WHOLE)
LIMITS = limits.LIMITS.model_copy(update={"first_token_p95_ms": None, "minimum_seconds": 0})


def judged(times: float, measures: tuple[Measure, ...], weight: float = 0.2) -> Judge:
    """Answers that are not streamed: the candidate's take so many times as long as stable's."""
    judge = Judge(LIMITS, "green", weight=weight, measures=measures)
    outcomes = [
        replace(
            OUTCOME,
            slot="green" if number % 5 == 0 else "blue",
            first_token_ms=None,
            per_token_ms=None,
            total_ms=(100 + number * 37 % 83) * (times if number % 5 == 0 else 1),
        )
        for number in range(1000)
    ]
    judge.take(outcomes, 100)
    return judge


def test_a_measure_that_is_plugged_in_is_found_by_all() -> None:
    """What takes three times as long is taken back by it, is told, shown and replayed; without it nobody sees it."""
    evidence = judged(3, PLUGGED_IN).evidence()
    ruling = rule(evidence, LIMITS, 100, measures=PLUGGED_IN)
    assert (ruling.verdict, subjects(ruling)) == ("roll back", ["whole answer slower"])
    words = words_of(ruling, evidence, LIMITS, 100, measures=PLUGGED_IN)
    assert "total time of an answer that is not streamed is" in words.first
    assert "whole answer slower p ≤ 1/" in words.second
    board = canary_board(
        *(RELEASE, (20, 100), 20, evidence, LIMITS, ruling, 100),
        forecast="",
        engines=Engines(),
        probed=None,
        measures=PLUGGED_IN,
    ).markdown
    assert "| whole answer slower |" in board
    noted = Stage(
        share_percent=20,
        verdict=ruling.verdict,
        reason=words.text,
        requests=evidence.requests,
        seconds=100,
        evidence=evidence,
        limits=LIMITS,
    )
    kept = Stage.model_validate_json(noted.model_dump_json())
    assert replay(kept, {}, PLUGGED_IN).words == words
    assert rule(judged(3, MEASURES).evidence(), LIMITS, 100).verdict == "promote"


def test_a_measure_that_is_plugged_in_holds_a_stage_until_it_is_known() -> None:
    """A promise of which nothing was seen is not kept; one that is kept passes."""
    assert rule(judged(1, PLUGGED_IN).evidence(), LIMITS, 100, measures=PLUGGED_IN).verdict == "promote"
    assert rule(judged(1, MEASURES).evidence(), LIMITS, 90, measures=PLUGGED_IN).verdict == "hold"


@pytest.mark.parametrize(("times", "verdict"), [(1.0, "promote"), (3.0, "roll back")])
def test_an_embedding_model_is_judged_by_the_total_time_of_its_answers(times: float, verdict: str) -> None:
    """It streams nothing: the first token that its service promises by default is asked of no such model."""
    promises = Limits.model_validate({**LIMITS.model_dump(), "first_token_p95_ms": 500, "total_p95_ms": 1000})
    judge = Judge(promises, "green", weight=0.2, kind="embedding")
    outcomes = [
        replace(
            OUTCOME,
            kind="embedding",
            slot="green" if number % 5 == 0 else "blue",
            first_token_ms=None,
            per_token_ms=None,
            total_ms=(20 + number * 37 % 17) * (times if number % 5 == 0 else 1),
        )
        for number in range(1000)
    ]
    judge.take(outcomes, 100)
    evidence = judge.evidence()
    ruling = rule(evidence, promises, 100)
    assert ruling.verdict == verdict
    assert "total time of an answer is" in words_of(ruling, evidence, promises, 100).first
    assert not {"TTFT", "TPOT"} & evidence.timings.keys()


def test_batches_of_any_size_give_the_same_evidence() -> None:
    """One by one, by the second, or all at once."""
    outcomes = [
        replace(OUTCOME, slot="green" if n % 7 == 0 else "blue", user=str(n % 90), first_token_ms=80.0 + n * 31 % 97)
        for n in range(3000)
    ]
    found = []
    for size in (1, 17, 3000):
        judge = Judge(LIMITS, "green", weight=0.2)
        for begin in range(0, len(outcomes), size):
            judge.take(outcomes[begin : begin + size], 10)
        evidence, carried = judge.evidence(), judge.carried()
        numbers = [getattr(count, name) for count in evidence.counts.values() for name in ("of", "all_hits", "counted")]
        e_values = [(count.peak, count.current) for count in evidence.counts.values()]
        found.append((numbers, e_values, evidence.timings, carried.seen))
    for numbers, e_values, timings, seen in found[1:]:
        assert (numbers, timings, seen) == (found[0][0], found[0][2], found[0][3])
        assert np.array(e_values) == pytest.approx(np.array(found[0][1]), abs=1e-6)
