"""One stage of a made-up release, ruled on by production's own code: whole streams as batches, or with probes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.gates_worlds import HASHES, Flags, Floats, Harm, Ints, Stream
from blocks.ports.engine import Answer, Prompt
from blocks.ports.fleet import Replica
from blocks.ports.gateway import Outcome
from blocks.service import Service
from flows.policy.gating.decide import (
    Doubts,
    Stakes,
    Verdict,
    cumulative_harms,
    doubts,
    harms,
    is_due,
    rule,
    verdicts,
)
from flows.policy.gating.evidence import Trajectory
from flows.policy.gating.judge import Carried, Judge
from flows.policy.gating.limits import Limits
from flows.policy.gating.measures import MEASURES, panel_of
from flows.policy.gating.outcomes import EVENTS, KINDS, Batch
from flows.policy.gating.probes import (
    PART_OF_ALPHA,
    Pair,
    ProbeJudge,
    may_be_thin,
    probes_missing,
    seconds_between_rounds,
)

LOOK_EVERY = 20
"""Requests of both slots between two interim analyses: production has one a second, whatever has come by then."""
CHUNK = 2000
"""Requests that are judged at a time, until a ruling is among them."""
PROBES = int(Service.model_fields["probes_per_stage"].default)
GOLDEN = Service.model_fields["golden_prompts"].get_default(call_default_factory=True)
PROMPTS = tuple(Prompt(one.prompt, one.max_tokens, one.expects) for one in GOLDEN)
MINE = Replica("candidate", "service", "candidate", "here", "candidate")
STABLE = Replica("stable", "service", "stable", "here", "stable")
TOKENS = 100
RIGHT = "1"
"""As a text and as JSON."""
NEIGHBOURS = 200
"""A probe's times are those of one of the last so many requests."""


def outcomes(stream: Stream, is_candidate: Flags, harm: Harm) -> Sequence[Outcome]:
    """As the gateway logs them."""
    columns = (
        is_candidate,
        stream.failed(is_candidate, harm),
        stream.first_token_ms(is_candidate, harm),
        stream.token_ms(is_candidate, harm),
        stream.user,
    )
    return [outcome(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def outcome(is_candidate: bool, failed: bool, ms: float, token_ms: float, user: int, cell: str = "") -> Outcome:  # noqa: FBT001 - a row
    return Outcome(
        id="",
        at=0,
        slot="green" if is_candidate else "blue",
        address=cell,
        status=500 if failed else 200,
        first_token_ms=None if failed else ms,
        tokens=None if failed else TOKENS,
        per_token_ms=None if failed else token_ms,
        total_ms=0,
        user=f"user {user}" if user < HASHES else None,
        retried=False,
        by_fallback=False,
        cut_short=False,
        is_empty=False,
        user_left=False,
    )


@dataclass(frozen=True)
class Held:
    """How a stage ended."""

    verdict: Verdict
    """`hold` where the requests were not enough to rule."""
    at: int
    """After so many requests of both slots."""
    gate: str
    carried: Carried | None
    """Into the next stage."""
    is_thin: bool = False
    """Production may have sent probes."""


def batch_of(stream: Stream, is_candidate: Flags, harm: Harm, since: float, cell: Ints | None = None) -> Batch:
    """As the judge takes it in; each request ends as it begins."""
    failed, number = stream.failed(is_candidate, harm), len(stream)
    zeros, never = np.zeros(number, np.int64), np.zeros(number, bool)
    event = np.where(failed, EVENTS.index("failed"), EVENTS.index("answered"))
    return Batch(
        is_candidate=is_candidate,
        user=np.where(stream.user < HASHES, stream.user, -1),
        began_seconds=stream.seconds - since,
        event=event,
        kind=np.full(number, KINDS.index("chat")),
        cell=zeros - 1 if cell is None else cell,
        tokens=zeros,
        trials={"failed": ~never, "refused": ~never, "left": ~never, "left midway": ~never},
        hits={"failed": failed, "refused": never, "left": never, "left midway": never},
        ms={
            "TTFT": np.where(failed, np.nan, stream.first_token_ms(is_candidate, harm)),
            "TPOT": np.where(failed, np.nan, stream.token_ms(is_candidate, harm)),
        },
    )


def hold(
    stream: Stream, harm: Harm, limits: Limits, *, share: float, budget: float, carried: Carried, since: float
) -> Held:
    """Rule on one stage that begins at `since` with the first of these requests."""
    judge = Judge(limits, "green", weight=share, alpha=budget, carried=carried)
    begun = carried.alpha if share < 1 else 0.0
    stakes = Stakes(panel_of("chat", limits, MEASURES), limits, share, budget, begun)
    batch, is_thin = batch_of(stream, stream.user_luck < share, harm, since), False
    for begin in range(0, len(stream), CHUNK):
        part = batch.some(slice(begin, begin + CHUNK))
        analyses = np.arange(LOOK_EVERY, len(part) + 1, LOOK_EVERY)
        if not len(analyses):
            break
        elapsed = part.began_seconds[analyses - 1]
        trajectory = judge.take_batch(part, analyses)
        harm_by_gate = [*harms(trajectory, stakes).items(), *cumulative_harms(trajectory, stakes).items()]
        found = doubts(trajectory, stakes, elapsed)
        is_harm = np.any([flags for _, flags in harm_by_gate], axis=0)
        in_doubt = np.any([np.broadcast_to(flags, is_harm.shape) for flags in found.values()], axis=0)
        due = _due(found, trajectory, stakes, elapsed)
        ruled = np.array(verdicts(is_harm, in_doubt, due, elapsed, limits))
        ends = np.flatnonzero(ruled != "hold")
        last = int(ends[0]) if len(ends) else len(ruled) - 1
        failed = trajectory.series["failed"]
        thin = may_be_thin(failed.counted, failed.counted_hits, elapsed, share, limits)
        is_thin = is_thin or bool(thin[: last + 1].any())
        if len(ends):
            end = begin + int(analyses[last])
            if ruled[last] == "roll back":
                gate = next((name for name, flags in harm_by_gate if flags[last]), "deadline")
                return Held("roll back", end, gate, None, is_thin)
            again = Judge(limits, "green", weight=share, alpha=budget, carried=carried)
            again.take_batch(batch.some(slice(end)))
            return Held("promote", end, "", again.carried(), is_thin)
    return Held("hold", len(stream), "", None, is_thin)


def _due(found: Doubts, trajectory: Trajectory, stakes: Stakes, elapsed: Floats) -> Flags:
    """It is asked for at the deadline only."""
    if elapsed[-1] < stakes.limits.deadline_seconds:
        return np.ones(len(elapsed), bool)
    return is_due(found, trajectory, stakes, elapsed)


def hold_with_probes(
    stream: Stream,
    harm: Harm,
    limits: Limits,
    *,
    share: float,
    budget: float,
    carried: Carried,
    since: float,
) -> Held:
    """Rule on one stage as `hold` does, with probes where production sends them; `budget` is of both."""
    of_probes = PART_OF_ALPHA * budget
    judge = Judge(limits, "green", weight=share, alpha=budget - of_probes, carried=carried)
    probe_judge = ProbeJudge(limits, "green", alpha=of_probes, cells={})
    random, next_round_at = np.random.default_rng(len(stream)), 0.0
    batch = batch_of(stream, stream.user_luck < share, harm, since)
    for number in range(LOOK_EVERY, len(stream) + 1, LOOK_EVERY):
        part = batch.some(slice(number - LOOK_EVERY, number))
        elapsed = float(part.began_seconds[-1])
        judge.take_batch(part)
        evidence, probed = judge.evidence(), probe_judge.probed()
        if elapsed >= next_round_at and (missing := probes_missing(evidence, limits, elapsed, probed, PROBES)):
            recent = stream.between(max(0, number - NEIGHBOURS), number)
            pairs = _pairs(recent, min(missing, len(PROMPTS)), harm, random)
            probe_judge.take(pairs, elapsed)
            next_round_at = elapsed + seconds_between_rounds(limits, len(pairs), PROBES)
            probed = probe_judge.probed()
        ruling = rule(evidence, limits, elapsed, probed if next_round_at else None)
        if ruling.verdict == "promote":
            return Held("promote", number, "", judge.carried())
        if ruling.verdict == "roll back":
            gate = "with probes" if any(finding.log_threshold for finding in ruling.findings) else "deadline"
            return Held("roll back", number, gate, None)
    return Held("hold", len(stream), "", None)


def _pairs(recent: Stream, count: int, harm: Harm, random: np.random.Generator) -> list[Pair]:
    """Both slots' answers to some prompts; who sends them is no user who always fails."""
    is_candidate, stables = (
        _answers(recent, count, harm, random, is_candidate=is_candidate) for is_candidate in (True, False)
    )
    return [
        Pair(prompt, MINE, own, STABLE, its)
        for prompt, own, its in zip(PROMPTS[:count], is_candidate, stables, strict=True)
    ]


def _answers(
    recent: Stream, count: int, harm: Harm, random: np.random.Generator, *, is_candidate: bool
) -> list[Answer]:
    usual = np.flatnonzero(recent.stable_failing < 1)
    some = recent.some(random.choice(usual, count))
    whose = np.full(count, is_candidate)
    failed = some.failed(whose, harm)
    times: tuple[Floats, Floats] = (some.first_token_ms(whose, harm), some.token_ms(whose, harm))
    return [
        Answer(500)
        if bad
        else Answer(
            200,
            RIGHT,
            tool_arguments="{}",
            first_token_ms=first_ms,
            last_token_ms=first_ms + (TOKENS - 1) * token_ms,
            tokens=TOKENS,
            is_whole=True,
        )
        for bad, first_ms, token_ms in zip(failed.tolist(), *(ms.tolist() for ms in times), strict=True)
    ]
