"""Production's own judges on made-up requests, one at a time: for stages that probes are sent in, and for cells."""

from collections.abc import Sequence

import numpy as np

from benchmarks.gates_twin import LOOK_EVERY, Held
from benchmarks.gates_worlds import HASHES, Flags, Floats, Harm, Stream
from blocks.ports.engine import Answer, Prompt
from blocks.ports.fleet import Replica
from blocks.ports.gateway import Outcome
from blocks.service import Service
from flows.policy.gating.gates import rule
from flows.policy.gating.judge import Carried, Judge
from flows.policy.gating.measures import Limits
from flows.policy.gating.probes import PART_OF_THE_BUDGET, Pair, ProbeJudge, probes_missing, seconds_between_rounds

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


def outcomes(stream: Stream, mine: Flags, harm: Harm) -> Sequence[Outcome]:
    """As the gateway logs them."""
    columns = (
        mine,
        stream.failed(mine, harm),
        stream.first_token_ms(mine, harm),
        stream.token_ms(mine, harm),
        stream.user,
    )
    return [outcome(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def outcome(mine: bool, failed: bool, ms: float, token_ms: float, user: int, cell: str = "") -> Outcome:  # noqa: FBT001 - a row
    return Outcome(
        id="",
        at=0,
        slot="green" if mine else "blue",
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
    """Rule on one stage as `gates_twin.hold` does, with probes where production sends them; `budget` is of both."""
    of_probes = PART_OF_THE_BUDGET * budget
    judge = Judge(limits, "green", share=share, budget=budget - of_probes, carried=carried)
    probe_judge = ProbeJudge(limits, "green", budget=of_probes, cells={})
    random, next_round_at = np.random.default_rng(len(stream)), 0.0
    seconds = (stream.seconds - since).tolist()
    for number, one in enumerate(outcomes(stream, stream.user_luck < share, harm), start=1):
        elapsed = seconds[number - 1]
        judge.observe(one, elapsed)
        if number % LOOK_EVERY:
            continue
        evidence, probed = judge.evidence(), probe_judge.probed()
        if elapsed >= next_round_at and (missing := probes_missing(evidence, limits, elapsed, probed, PROBES)):
            recent = stream.between(max(0, number - NEIGHBOURS), number)
            pairs = _pairs(recent, min(missing, len(PROMPTS)), harm, random)
            probe_judge.observe(pairs, elapsed)
            next_round_at = elapsed + seconds_between_rounds(limits, len(pairs), PROBES)
            probed = probe_judge.probed()
        ruling = rule(evidence, limits, elapsed, probed if next_round_at else None)
        if ruling.verdict == "promote":
            return Held("promote", number, "", judge.carried())
        if ruling.verdict == "roll back":
            gate = "deadline" if ruling.reason.startswith("not passed within") else "with probes"
            return Held("roll back", number, gate, None)
    return Held("hold", len(stream), "", None)


def _pairs(recent: Stream, count: int, harm: Harm, random: np.random.Generator) -> list[Pair]:
    """Both slots' answers to some prompts; who sends them is no user who always fails."""
    mine, stables = (_answers(recent, count, harm, random, mine=mine) for mine in (True, False))
    return [
        Pair(prompt, MINE, own, STABLE, its) for prompt, own, its in zip(PROMPTS[:count], mine, stables, strict=True)
    ]


def _answers(recent: Stream, count: int, harm: Harm, random: np.random.Generator, *, mine: bool) -> list[Answer]:
    usual = np.flatnonzero(recent.stable_failing < 1)
    some = recent.some(random.choice(usual, count))
    whose = np.full(count, mine)
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
