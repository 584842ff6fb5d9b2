"""Ruling again on what the ledger keeps."""

import json
from copy import deepcopy
from dataclasses import replace
from itertools import islice
from math import exp
from pathlib import Path
from typing import Any

import pytest

from blocks.errors import Refused
from flows.policy.gating.alpha import alpha_of_stage
from flows.policy.gating.decide import rule
from flows.policy.gating.judge import Judge
from flows.policy.gating.limits import Limits
from flows.policy.gating.wording import words_of
from flows.policy.releases.ledger import Stage
from flows.policy.releases.replay import replay
from tests.policy.gating.test_judge import LIMITS, OUTCOME, users


def stage(seed: int, rate: float, limits: Limits = LIMITS) -> Stage:
    """As the flow notes it, there and back through the ledger's JSON."""
    judge = Judge(limits, "green", weight=0.05, alpha=0.6)
    ruling = rule(judge.evidence(), limits, 0)
    requests = users(seed, rate=rate)
    while ruling.verdict == "hold":
        judge.take(list(islice(requests, 20)), 10)
        ruling = rule(judge.evidence(), limits, 12.5)
    noted = Stage(
        share_percent=5,
        verdict=ruling.verdict,
        reason=words_of(ruling, judge.evidence(), limits, 12.5).text,
        requests=judge.evidence().requests,
        seconds=12.5,
        evidence=judge.evidence(),
        limits=limits,
    )
    return Stage.model_validate_json(noted.model_dump_json())


@pytest.mark.parametrize(("rate", "verdict"), [(0.002, "promote"), (0.05, "roll back")])
def test_the_same_gates_say_the_same(rate: float, verdict: str) -> None:
    """Word for word."""
    kept = stage(1, rate)
    again = replay(kept, {})
    assert again.ruling.verdict == kept.verdict == verdict
    assert again.words.text == kept.reason


STAGES_OF_0_1 = json.loads((Path(__file__).parent / "stages_of_0_1.json").read_text())


@pytest.mark.parametrize("kept", STAGES_OF_0_1, ids=["promoted", "rolled back"])
def test_a_stage_of_version_0_1_is_ruled_on_as_it_was(kept: dict[str, Any]) -> None:
    """Its ledger calls everything otherwise, and its e-values are the numbers that they were."""
    again = replay(Stage.model_validate(kept), {})
    assert again.ruling.verdict == kept["verdict"]
    harm = [round(exp(finding.log_e_value)) for finding in again.ruling.findings]
    assert [f"1 in {one:,}" in kept["reason"] for one in harm] == [True] * (kept["verdict"] == "roll back")


@pytest.mark.parametrize("kept", STAGES_OF_0_1, ids=["promoted", "rolled back"])
def test_a_stage_from_before_users_had_weights_is_ruled_on_as_it_was(kept: dict[str, Any]) -> None:
    """Each answer counts as one there, nothing was set aside, no token was timed, and nobody left in the middle."""
    kept = deepcopy(kept)
    for name in ("each_token", "tokens", "stable_tokens"):
        del kept["evidence"][name]
    del kept["limits"]["token_p95_ms"]
    counts = {name: count for name, count in kept["evidence"]["counts"].items() if "token" not in name}
    del counts["left midway"]
    for count in counts.values():
        for name in ("all_of", "weighed", "set_aside", "set_aside_hits", "allowed"):
            del count[name]
        count["counted"], count["counted_hits"] = count["of"], count["hits"]
    kept["evidence"]["counts"] = counts
    assert replay(Stage.model_validate(kept), {}).ruling.verdict == kept["verdict"]


def test_other_gates_say_what_they_would_have_said() -> None:
    """A release that failed 5 % would have been let go on where up to 10 % never matters."""
    kept = stage(1, 0.05)
    lax = replay(kept, {"error_percent": 20, "error_margin_percent": 10})
    assert lax.ruling.verdict == "promote"
    assert "the limit is 20 %" in lax.words.text
    assert replay(kept, {"false_alarm_percent": 1e-6}).ruling.verdict == "hold"
    assert replay(stage(1, 0.002), {"minimum_requests": 10_000}).ruling.verdict == "hold"


def test_bets_that_went_on_are_replayed_as_they_were_and_left_out_with_other_rates() -> None:
    """A stage of the same release in which little more was to be seen."""
    before = Judge(LIMITS, "green", weight=0.05, alpha=alpha_of_stage(0, 3))
    judges = [before]
    for number in range(6):
        if number == 3:
            judges.append(Judge(LIMITS, "green", weight=0.3, alpha=alpha_of_stage(1, 3), carried=before.carried()))
        judges[-1].take([replace(OUTCOME, status=500 if number in {1, 2, 4, 5} else 200)], 10)
    evidence = judges[-1].evidence()
    ruling = rule(evidence, LIMITS, 10)
    noted = Stage(
        share_percent=30,
        verdict=ruling.verdict,
        reason=words_of(ruling, evidence, LIMITS, 10).text,
        requests=evidence.requests,
        seconds=10,
        evidence=evidence,
        limits=LIMITS,
    )
    kept = Stage.model_validate_json(noted.model_dump_json())
    assert ruling.verdict == replay(kept, {}).ruling.verdict == "roll back"
    assert kept.reason == replay(kept, {}).words.text
    assert replay(kept, {"error_percent": 1.1}).ruling.verdict == "roll back"
    assert replay(kept, {"more_than_stable": 1.2}).ruling.verdict == "hold"


@pytest.mark.parametrize(
    "gates",
    [{"first_token_p95_ms": 400}, {"token_p95_ms": 50}, {"warm_up_seconds": 3}, {"error_percent": 0}, {"joy": 1}],
)
def test_what_cannot_be_replayed_is_refused_by_name(gates: dict[str, float]) -> None:
    """Gates that requests were counted by, and gates that cannot be."""
    with pytest.raises(Refused, match=next(iter(gates))):
        replay(stage(1, 0.05), gates)


def test_a_stage_whose_evidence_is_gone_is_refused() -> None:
    """Only the last releases keep theirs."""
    with pytest.raises(Refused, match="too long ago"):
        replay(stage(1, 0.05).model_copy(update={"evidence": None}), {})
