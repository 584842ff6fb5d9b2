"""What do the gates say of a stage that is over: the same again, or what other gates would have said?"""

from collections.abc import Mapping
from dataclasses import replace

from pydantic import ValidationError

from blocks.errors import Refused
from flows.policy.gating.gates import Ruling, rule
from flows.policy.gating.measures import SLOWNESS, Evidence, Limits, worth_of_harm, worth_that_matters
from flows.policy.releases.ledger import Stage
from flows.policy.releases.rollback import hold_while_blocked

COUNTED_BY = frozenset(
    {
        "first_token_p95_ms",
        "token_p95_ms",
        "slower_than_stable",
        "first_token_margin_ms",
        "token_margin_ms",
        "warm_up_seconds",
    }
)
"""The counts were taken by these; what others would have counted is not kept."""
BET_BY = {False: frozenset({"more_than_stable", "error_margin_percent"}), True: frozenset({"error_percent"})}
"""What a bet was worth at its best depends on these, beside stable and alone.

With others, it is what it would be worth at the stage's end; and what matters of earlier stages nobody knows, so that
bets that went on from there are left out.
"""


def replay(stage: Stage, other_gates: Mapping[str, object]) -> Ruling:
    """Rule again on what the ledger keeps; Refused where it does not keep enough."""
    if stage.evidence is None or stage.limits is None:
        raise Refused(f"the evidence of the stage of {stage.share_percent} % is not kept: it is too long ago")
    limits = _changed(stage.limits, other_gates)
    differ = {name for name in Limits.model_fields if getattr(limits, name) != getattr(stage.limits, name)}
    if unknown := sorted(differ & COUNTED_BY):
        raise Refused(
            f"{', '.join(unknown)} cannot be replayed: requests were counted by it while the stage stood; "
            f"leave it out, and change {', '.join(sorted(set(Limits.model_fields) - COUNTED_BY))} only"
        )
    evidence, probed = stage.evidence, stage.probed
    if differ & BET_BY[evidence.share == 1]:
        evidence = _bet_anew(evidence, limits)
    if probed and differ & BET_BY[False]:
        probed = replace(probed, evidence=_bet_anew(probed.evidence, limits))
    ruling = rule(evidence, limits, stage.seconds, probed)
    return hold_while_blocked(ruling, stage.barred_by, stage.seconds, limits.deadline_seconds)


def _changed(limits: Limits, other_gates: Mapping[str, object]) -> Limits:
    try:
        return Limits.model_validate({**limits.model_dump(), **other_gates})
    except ValidationError as error:
        raise Refused(f"these are no gates: {error}") from error


def _bet_anew(evidence: Evidence, limits: Limits) -> Evidence:
    """But for `failed lately` and the slow ones, which stay: what they were bet on is not all in the evidence."""
    counts = dict(evidence.counts)
    for measure, count in evidence.counts.items():
        if measure not in {"failed lately", *SLOWNESS}:
            harm = worth_of_harm(measure, count, evidence.share, limits) if count.hits else 0.0
            matters = worth_that_matters(measure, count, evidence.share, limits) if count.hits else 0.0
            counts[measure] = replace(count, harm=harm, matters=matters, harm_now=min(harm, matters), whole_matters=0)
    return replace(evidence, counts=counts)
