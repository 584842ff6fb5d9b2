"""What people see in the Prefect UI: data in, markdown out."""

from collections.abc import Iterable, Mapping, Sequence

from blocks.ports import Offer, Slot, other
from flows.policy.gates import Ruling, Sample
from flows.policy.ledger import Release, Stage
from flows.policy.placement import Placement
from flows.policy.scale import Decision
from flows.policy.sizing import Need
from flows.tasks.fleet import Started


def canary_board(
    release: Release,
    stages: Sequence[int],
    share: int,
    candidate: Sample,
    stable: Sample,
    ruling: Ruling,
    seconds: float,
) -> str:
    """Stage, share, what each slot's users saw, verdict and reason."""
    return f"""# Canary of {release.id}

**{share} %** of the traffic for {seconds:.0f} s; the stages are {_arrows(stages)}.

**{ruling.verdict.upper()}**: {ruling.reason}

| | slot | requests | failed | refused | gave up waiting | p50 first token | p95 first token |
|---|---|---:|---:|---:|---:|---:|---:|
{_sample_row("candidate", release.slot, candidate)}
{_sample_row("stable", other(release.slot), stable)}

Model {release.repo} at commit `{release.commit[:12]}`.

{stage_table(release.stages)}
"""


def _arrows(stages: Sequence[int]) -> str:
    return " → ".join(f"{share} %" for share in stages)


def stage_table(stages: Sequence[Stage]) -> str:
    if not stages:
        return ""
    rows = (f"| {s.share_percent} % | {s.verdict} | {s.requests} | {s.seconds:.0f} s | {s.reason} |" for s in stages)
    return _table("| stage | verdict | requests | held | reason |", "|---|---|---:|---:|---|", rows)


def placement_board(
    title: str,
    need: Need,
    plan: Placement | None,
    started: Sequence[Started] = (),
    said_no: Mapping[Offer, str] | None = None,
) -> str:
    """Where the replicas run and what they cost; why there; and what each other offer would have cost."""
    parts = [f"# {title}"]
    if started:
        bill = sum(one.replica.dollars_per_hour or 0 for one in started)
        parts.append(f"{len(started)} ready, for **{_dollars(bill)} an hour**.")
        rows = (
            f"| {one.replica.name} | {one.replica.cell} | {one.replica.address} | {one.seconds:.1f} s"
            f" | {_dollars(one.replica.dollars_per_hour)} |"
            for one in started
        )
        parts.append(_table("| replica | cell | address | ready after | $ an hour |", "|---|---|---|---:|---:|", rows))
    if said_no:
        rows = (f"| {offer} | {reason} |" for offer, reason in said_no.items())
        parts.append("## Cells that said no\n\n" + _table("| tried | its answer |", "|---|---|", rows))
    parts.append("## What a replica needs\n\n" + "\n".join(f"- {line}" for line in need.arithmetic))
    if plan is not None:
        parts.append("## Offers, best first\n\n" + _offers(plan))
    return "\n\n".join(parts) + "\n"


SHOWN_OFFERS = 100


def _offers(plan: Placement) -> str:
    rows = (
        f"| {rank} | {one.taken or ''} | {one.offer} | {_dollars(one.offer.dollars_per_hour)}"
        f" | {_dollars(one.dollars_per_hour)} | {one.chance:.0%} | {one.why} | {one.stock.answer}: {one.stock.words} |"
        for rank, one in enumerate(plan.considered[:SHOWN_OFFERS], 1)
    )
    head = "| | taken | offer | $ an hour | with starting | chance | why | in stock |"
    more = len(plan.considered) - SHOWN_OFFERS
    return _table(head, "|---:|---:|---|---:|---:|---:|---|---|", rows) + (
        f"\n\n… and {more} more." if more > 0 else ""
    )


def _table(head: str, rule: str, rows: Iterable[str]) -> str:
    return "\n".join((head, rule, *rows))


def _dollars(amount: float | None) -> str:
    return "no price" if amount is None else f"${amount:.2f}"


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
    table = _table("| replica | cell | | why |", "|---|---|---|---|", rows)
    return f"# What to stop{' (dry run: nothing was stopped)' if dry_run else ''}\n\n{table}\n"


def _sample_row(name: str, slot: Slot, sample: Sample) -> str:
    times = (sample.first_token_percentile(percent) for percent in (50, 95))
    p50, p95 = ("no data" if ms is None else f"{ms:.0f} ms" for ms in times)
    counts = f"{sample.requests} | {sample.failed} | {sample.refused} | {sample.left}"
    return f"| {name} | {slot} | {counts} | {p50} | {p95} |"
