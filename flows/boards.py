"""What people see in the Prefect UI: data in, markdown out."""

from collections.abc import Sequence

from flows.policy.gates import Ruling, nearness
from flows.policy.ledger import Release, Stage
from flows.policy.measures import Evidence, Limits
from flows.policy.scale import Decision
from flows.tasks.fleet import Started

BAR_CHARACTERS = 20


def canary_board(
    release: Release,
    stages: Sequence[int],
    share: int,
    evidence: Evidence,
    limits: Limits,
    ruling: Ruling,
    seconds: float,
) -> str:
    """Stage, share, what each slot's users saw, verdict and reason."""
    return f"""# Canary of {release.id}

**{share} %** of the traffic for {seconds:.0f} s; the stages are {_arrows(stages)}.

**{ruling.verdict.upper()}**: {ruling.reason}

{_users_table(evidence)}

{_evidence_table(evidence, limits)}

Model {release.repo} at commit `{release.commit[:12]}`.

{stage_table(release.stages)}
"""


def _arrows(stages: Sequence[int]) -> str:
    return " → ".join(f"{share} %" for share in stages)


def stage_table(stages: Sequence[Stage]) -> str:
    if not stages:
        return ""
    rows = (f"| {s.share_percent} % | {s.verdict} | {s.requests} | {s.seconds:.0f} s | {s.reason} |" for s in stages)
    return "\n".join(("| stage | verdict | requests | held | reason |", "|---|---|---:|---:|---|", *rows))


def placement_table(release: Release, started: Sequence[Started]) -> str:
    rows = (f"| {s.replica.name} | {s.replica.cell} | {s.replica.address} | {s.seconds:.1f} s |" for s in started)
    table = "\n".join(("| replica | cell | address | ready after |", "|---|---|---|---:|", *rows))
    traffic = "" if release.state == "live" else ", without traffic yet"
    return f"# Replicas of {release.id}\n\nThey stand in slot **{release.slot}**{traffic}.\n\n{table}\n"


def release_report(release: Release, endpoint: str) -> str:
    return f"""# Release {release.id}: {release.state}

| | |
|---|---|
| endpoint | [{endpoint}]({endpoint}) |
| model | {release.repo} at commit `{release.commit}` |
| mirror | `{release.mirror_prefix}` |
| engine | context of {release.engine.context_tokens} tokens, {release.engine.parallel_requests} requests in parallel |
| slot | {release.slot} |
{f"| reason | {release.closing_reason} |" if release.closing_reason else ""}

{stage_table(release.stages)}
"""


def decision_table(decisions: Sequence[Decision], *, dry_run: bool) -> str:
    rows = (
        f"| {d.replica.name} | {d.replica.cell} | {'**stop**' if d.stop else 'keep'} | {d.reason} |" for d in decisions
    )
    table = "\n".join(("| replica | cell | | why |", "|---|---|---|---|", *rows))
    return f"# What to stop{' (dry run: nothing was stopped)' if dry_run else ''}\n\n{table}\n"


def _users_table(evidence: Evidence) -> str:
    """What the users of each slot saw; of each user the first failure, the first refusal and the first departure."""
    p50, p95, stables_p50, stables_p95 = ("no data" if ms is None else f"{ms:.0f} ms" for ms in evidence.first_token_ms)
    mine = [evidence.count(measure) for measure in ("failed", "refused", "left")]
    hits, stables = (
        " | ".join(map(str, row)) for row in zip(*((c.hits, c.all_hits - c.hits) for c in mine), strict=True)
    )
    return f"""| | requests | users who failed | were refused | gave up | p50 first token | p95 first token |
|---|---:|---:|---:|---:|---:|---:|
| candidate | {evidence.requests} | {hits} | {p50} | {p95} |
| stable | {evidence.stable_requests} | {stables} | {stables_p50} | {stables_p95} |"""


def _evidence_table(evidence: Evidence, limits: Limits) -> str:
    """How near each gate is to its ruling, as bars that every renderer of markdown shows."""
    rows = (f"| {n.gate} | {n.seen} | {_bar(n.harm)} | {_bar(n.good_news)} |" for n in nearness(evidence, limits))
    return "\n".join(("| gate | seen | to a roll-back | to a pass |", "|---|---|---|---|", *rows))


def _bar(part: float | None) -> str:
    """Of what a ruling takes, so much is there."""
    if part is None:
        return ""
    full = round(BAR_CHARACTERS * min(max(part, 0.0), 1.0))
    return f"`{'█' * full}{'░' * (BAR_CHARACTERS - full)}` {100 * min(max(part, 0.0), 1.0):.0f} %"
