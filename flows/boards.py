"""What people see in the Prefect UI: data in, markdown out."""

from collections.abc import Sequence

from blocks.ports import Model, Slot, Unfinished, other
from flows.policy.collect import Verdict
from flows.policy.gates import Ruling, Sample
from flows.policy.ledger import Release, Stage
from flows.policy.mirror import Selection
from flows.policy.scale import Decision
from flows.policy.verify import Finding
from flows.tasks.fleet import Started
from flows.tasks.transfer import Target


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


def _sample_row(name: str, slot: Slot, sample: Sample) -> str:
    times = (sample.first_token_percentile(percent) for percent in (50, 95))
    p50, p95 = ("no data" if ms is None else f"{ms:.0f} ms" for ms in times)
    counts = f"{sample.requests} | {sample.failed} | {sample.refused} | {sample.left}"
    return f"| {name} | {slot} | {counts} | {p50} | {p95} |"


def mirror_report(model: Model, wanted: Selection, targets: Sequence[Target], *, seconds: float, retries: int) -> str:
    """What each store got and how fast, what was left out, and who dropped out."""
    rows = (
        f"| {target.name} | {_megabytes(target.sent_bytes)} | {_megabytes(target.resumed_bytes)} "
        f"| {_megabytes(target.copied_bytes)} | {target.done_bytes / 1e6 / max(seconds, 1e-3):.0f} MB/s "
        f"| {'whole' if target.error is None else f'**dropped out**: {target.error}'} |"
        for target in targets
    )
    left_out = "".join(f"- `{path}`: {reason}\n" for path, reason in wanted.left_out)
    return f"""# Mirror of {model.repo}

Commit `{model.commit}`, {len(model.files)} files, {_megabytes(model.size_bytes)}; {seconds:.0f} s, {retries} retries.

| store | sent | there from an earlier run | copied by the provider | speed | |
|---|---:|---:|---:|---:|---|
{chr(10).join(rows)}

{f"Left out:{chr(10)}{chr(10)}{left_out}" if left_out else ""}"""


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


def verification_table(findings: Sequence[Finding]) -> str:
    rows = (
        f"| {one.store}{one.key} | {'right' if one.is_right else f'**{one.found}**'} | `{one.expected}` |"
        for one in findings
    )
    return "\n".join(
        ("# What was read back", "", "| object | found | sha256 in the manifest |", "|---|---|---|", *rows)
    )


def collection_table(store: str, verdicts: Sequence[Verdict], orphans: Sequence[Unfinished], *, dry_run: bool) -> str:
    rows = (
        f"| {one.mirror.prefix} | {_megabytes(one.mirror.size_bytes)} | {'**delete**' if one.delete else 'keep'} "
        f"| {one.reason} |"
        for one in verdicts
    )
    uploads = (f"| {upload.key} | | **abort** | nobody has been at this upload for long |" for upload in orphans)
    head = f"# What nobody needs in {store}{' (dry run: nothing was deleted)' if dry_run else ''}"
    return "\n".join((head, "", "| mirror | size | | why |", "|---|---:|---|---|", *rows, *uploads))
