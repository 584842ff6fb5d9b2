"""What people see in the Prefect UI: data in, markdown out."""

from base64 import b64encode
from collections.abc import Collection, Iterable, Mapping, Sequence

from blocks.ports.hub import Model
from blocks.ports.market import Offer
from blocks.ports.store import MultipartUpload
from flows.boards.markdown import escaped
from flows.policy.gating.decide import Ruling, threshold_of_answers
from flows.policy.gating.e_values import confidence_interval
from flows.policy.gating.engines import Engines
from flows.policy.gating.evidence import Evidence, Probed
from flows.policy.gating.limits import Limits
from flows.policy.gating.measures import MEASURES, Measure, panel_of
from flows.policy.gating.progress import progress_of
from flows.policy.gating.wording import answers_in_words, words_of
from flows.policy.mirrors.collect import Verdict
from flows.policy.mirrors.mirror import Selection
from flows.policy.mirrors.verify import Finding
from flows.policy.placement.plan import Placement
from flows.policy.releases.ledger import Release, Stage
from flows.policy.releases.scale import Decision
from flows.policy.sizing.sizing import Need
from flows.tasks.fleet import Started
from flows.transfer.transfer import Target

BAR_CHARACTERS = 12
WIDTH, LEFT, TOP, BOTTOM = 640, 60, 28, 200
"""Of the picture, in pixels."""


def canary_board(
    release: Release,
    stages: Sequence[int],
    share: int,
    evidence: Evidence,
    limits: Limits,
    ruling: Ruling,
    seconds: float,
    *,
    forecast: str,
    engines: Engines,
    probed: Probed | None,
    measures: tuple[Measure, ...] = MEASURES,
) -> str:
    """Stage, share, what each slot's users saw and its engines did, verdict and reason."""
    words = words_of(ruling, evidence, limits, seconds, probed, measures)
    return f"""# Canary of {release.id}

**{share} %** of the traffic for {seconds:.0f} s; the stages are {_arrows(stages)}.
This one takes {forecast}.

**{escaped(words.first)}**

{escaped(words.second)}

{_picture(evidence, limits)}

{_users_table(evidence, limits, measures)}

{_evidence_table(evidence, limits, measures)}

{_probes_table(probed, limits, measures)}

{_engines_table(engines)}

Model {escaped(release.repo)} at commit `{release.commit[:12]}`.

{stage_table(release.stages)}
"""


def waiting_board(release: Release, stages: Sequence[int], share: int, bars: str) -> str:
    """Before a stage: why it does not begin."""
    return f"""# Canary of {release.id}

**HOLD** before {share} %; the stages are {_arrows(stages)}.

Stable could not take its traffic back now: {escaped(bars)}.

{stage_table(release.stages)}
"""


def _arrows(stages: Sequence[int]) -> str:
    return " → ".join(f"{share} %" for share in stages)


def stage_table(stages: Sequence[Stage]) -> str:
    if not stages:
        return ""
    rows = (
        f"| {s.share_percent} % | {s.verdict} | {s.requests} | {s.seconds:.0f} s | {escaped(s.reason)} |"
        for s in stages
    )
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
            f"| {one.replica.name} | {escaped(one.replica.cell)} | {escaped(one.replica.address)} | {one.seconds:.1f} s"
            f" | {_dollars(one.replica.dollars_per_hour)} |"
            for one in started
        )
        parts.append(_table("| replica | cell | address | ready after | $ an hour |", "|---|---|---|---:|---:|", rows))
    if said_no:
        rows = (f"| {escaped(offer)} | {escaped(reason)} |" for offer, reason in said_no.items())
        parts.append("## Cells that said no\n\n" + _table("| tried | its answer |", "|---|---|", rows))
    parts.append("## What a replica needs\n\n" + "\n".join(f"- {escaped(line)}" for line in need.arithmetic))
    if plan is not None:
        parts.append("## Offers, best first\n\n" + _offers(plan))
    return "\n\n".join(parts) + "\n"


SHOWN_OFFERS = 100


def _offers(plan: Placement) -> str:
    rows = (
        f"| {rank} | {one.taken or ''} | {escaped(one.offer)} | {_dollars(one.offer.dollars_per_hour)}"
        f" | {_dollars(one.dollars_per_hour)} | {one.chance:.0%} | {escaped(one.why)}"
        f" | {one.stock.answer}: {escaped(one.stock.words)} |"
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
| model | {escaped(release.repo)} at commit `{release.commit}` |
| mirror | `{release.mirror_prefix}` |
| engine | context of {release.engine.context_tokens} tokens, {release.engine.parallel_requests} requests in parallel |
| slot | {release.slot} |
{f"| reason | {escaped(release.closing_reason)} |" if release.closing_reason else ""}

{stage_table(release.stages)}
"""


def decision_table(decisions: Sequence[Decision], *, dry_run: bool) -> str:
    rows = (
        f"| {escaped(d.replica.name)} | {escaped(d.replica.cell)} | {'**stop**' if d.stop else 'keep'}"
        f" | {escaped(d.reason)} |"
        for d in decisions
    )
    table = _table("| replica | cell | | why |", "|---|---|---|---|", rows)
    return f"# What to stop{' (dry run: nothing was stopped)' if dry_run else ''}\n\n{table}\n"


def _users_table(evidence: Evidence, limits: Limits, measures: tuple[Measure, ...]) -> str:
    """What the users of each slot saw; of each user the first hit of each measure, such as a failure.

    Five of a hundred requests may be thirty of a hundred tokens, so both shares stand side by side.
    """
    panel = panel_of(evidence.kind, limits, measures)
    requests, tokens = (
        f"{part} ({100 * part / (part + rest):.1f} %)" if part else "0"
        for part, rest in ((evidence.requests, evidence.stable_requests), (evidence.tokens, evidence.stable_tokens))
    )
    counts = [(f"users {one.met}", evidence.count(one.name)) for one in panel.events]
    rows = [
        ("requests", requests, evidence.stable_requests),
        ("tokens", tokens, evidence.stable_tokens),
        *((what, count.hits, count.all_hits - count.hits) for what, count in counts),
    ]
    for one in panel.shown_latencies:
        own_p50, own_p95, its_p50, its_p95 = (
            _milliseconds(ms, one.digits) for ms in evidence.timing(one.name).recent_ms
        )
        rows += [(f"{one.phrase}, median", own_p50, its_p50), (f"{one.phrase}, p95", own_p95, its_p95)]
    return _table("| | candidate | stable |", "|---|---:|---:|", (f"| {' | '.join(map(str, row))} |" for row in rows))


def _milliseconds(ms: float | None, digits: int) -> str:
    return "no data" if ms is None else f"{ms:.{digits}f} ms"


def _evidence_table(evidence: Evidence, limits: Limits, measures: tuple[Measure, ...]) -> str:
    """How near each gate is to its ruling, as bars that every renderer of markdown shows."""
    gates = progress_of(evidence, limits, measures)
    rows = (f"| {one.gate} | {_bar(one.to_rollback)} | {_bar(one.to_pass)} | {one.seen} |" for one in gates)
    return "\n".join(("| gate | to a roll-back | to a pass | seen |", "|---|---|---|---|", *rows))


def _probes_table(probed: Probed | None, limits: Limits, measures: tuple[Measure, ...]) -> str:
    """What golden prompts have shown, apart from users."""
    if probed is None:
        return "No probes were sent."
    sent = f"**Probes**: {probed.evidence.requests} to the candidate and {probed.evidence.stable_requests} to stable."
    # A probe never leaves.
    gates = [
        one
        for one in progress_of(probed.evidence, limits, measures)
        if one.to_rollback is not None and one.gate not in {"left", "left midway"}
    ]
    rows = [f"| {one.gate} | {_bar(one.to_rollback)} | {one.seen} |" for one in gates]
    threshold = threshold_of_answers(probed, limits)
    rows += [f"| {c} | {_bar(n.peak / threshold)} | {answers_in_words(c, n)} |" for c, n in probed.answers.items()]
    return f"{sent}\n\n{_table('| of probes | to a roll-back | seen |', '|---|---|---|', rows)}"


def _engines_table(engines: Engines) -> str:
    """What each slot's engines did in this stage, as they say themselves."""
    rows = (
        f"| {slot} | {work.replicas - work.silent} of {work.replicas} | {_number(work.prompt_tokens)}"
        f" | {_number(work.generated_tokens)} | {_number(work.ms_per_token, '.1f')} | {_number(work.queue_ms)}"
        f" | {_number(work.most_waiting)} | {_number(work.fullest_kv_cache, '.0%')} | {_number(work.preemptions)}"
        f" | {work.restarts} |"
        for slot, work in (("candidate", engines.candidate), ("stable", engines.stable))
    )
    head = "| engines | answer | tokens read | written | ms a token | ms in queue | most waiting | KV cache | preempted"
    return _table(f"{head} | restarts |", "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|", rows)


def _number(value: float | None, form: str = ",.0f") -> str:
    return "no data" if value is None else format(value, form)


def _bar(part: float | None) -> str:
    """Of what a ruling takes, so much is there."""
    if part is None:
        return ""
    full = round(BAR_CHARACTERS * min(max(part, 0.0), 1.0))
    return f"`{'█' * full}{'░' * (BAR_CHARACTERS - full)}` {100 * min(max(part, 0.0), 1.0):.0f} %"


def _picture(evidence: Evidence, limits: Limits) -> str:
    """Where the candidate's rate of failures lies, closing in on its limit or moving away from it.

    As an image in the text itself: Prefect's UI shows those, and takes the tags out of an SVG that is written as such.
    """
    failed = evidence.count("failed")
    points = [*evidence.trail, (failed.of, failed.hits)]
    if not failed.of:
        return ""
    limit, alpha = limits.error_percent / 100, limits.missed_harm_percent / 100
    intervals = [(of, hits / of, *confidence_interval(hits, of, alpha)) for of, hits in points if of]
    top = min(1.0, max(4 * limit, 2 * intervals[-1][1], 1.2 * intervals[-1][3]))

    def at(of: int, rate: float) -> str:
        return (
            f"{LEFT + (WIDTH - LEFT - 10) * of / failed.of:.1f},{TOP + (BOTTOM - TOP) * (1 - min(rate, top) / top):.1f}"
        )

    upper = [at(of, high) for of, _, _, high in intervals]
    lower = [at(of, low) for of, _, low, _ in intervals]
    seen = [at(of, rate) for of, rate, _, _ in intervals]
    height = at(0, limit).partition(",")[2]
    words = (
        f"failures of {failed.of} requests, and where their rate lies: {100 * (1 - alpha):g} % for all looks together"
    )
    svg = f"""<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{BOTTOM + 10}" font-family="sans-serif" \
font-size="12"><rect width="100%" height="100%" fill="#fff"/><text x="{LEFT}" y="16">{words}</text>\
<polygon points="{" ".join([*upper, *reversed(lower)])}" fill="#9bbcf0"/>\
<polyline points="{" ".join(seen)}" fill="none" stroke="#1c4fa0" stroke-width="2"/>\
<line x1="{LEFT}" x2="{WIDTH - 10}" y1="{height}" y2="{height}" stroke="#c22" stroke-dasharray="6 4" stroke-width="2"/>\
<text x="4" y="{height}" fill="#c22">{100 * limit:g} %</text><text x="4" y="{TOP + 10}">{100 * top:.1f} %</text>\
<text x="4" y="{BOTTOM}">0 %</text></svg>"""
    return f"![{words}](data:image/svg+xml;base64,{b64encode(svg.encode()).decode()})"


def mirror_report(model: Model, wanted: Selection, targets: Sequence[Target], *, seconds: float, retries: int) -> str:
    """What each store got and how fast, what was left out, and who dropped out."""
    rows = (
        f"| {escaped(target.name)} | {_megabytes(target.sent_bytes)} | {_megabytes(target.resumed_bytes)} "
        f"| {_megabytes(target.copied_bytes)} | {target.done_bytes / 1e6 / max(seconds, 1e-3):.0f} MB/s "
        f"| {'whole' if target.error is None else f'**dropped out**: {escaped(target.error)}'} |"
        for target in targets
    )
    left_out = "".join(f"- {escaped(path)}: {reason}\n" for path, reason in wanted.left_out)
    code = "".join(f"- {escaped(words)}\n" for words in wanted.code)
    return f"""# Mirror of {escaped(model.repo)}

Commit `{model.commit}`, {len(model.files)} files, {_megabytes(model.size_bytes)}; {seconds:.0f} s, {retries} retries.

| store | sent | there from an earlier run | copied by the provider | speed | |
|---|---:|---:|---:|---:|---|
{chr(10).join(rows)}

{f"Code, which an engine runs if it is told to trust it:{chr(10)}{chr(10)}{code}{chr(10)}" if code else ""}\
{f"Left out:{chr(10)}{chr(10)}{left_out}" if left_out else ""}"""


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


def verification_table(findings: Sequence[Finding]) -> str:
    rows = (
        f"| {escaped(one.store + one.key)} | {'right' if one.is_right else f'**{escaped(one.found)}**'} "
        f"| {escaped(one.expected)} |"
        for one in findings
    )
    return "\n".join(
        ("# What was read back", "", "| object | found | sha256 in the manifest |", "|---|---|---|", *rows)
    )


def uploads_table(
    uploads: Sequence[tuple[str, MultipartUpload]], orphans: Collection[MultipartUpload], *, now: float, dry_run: bool
) -> str:
    """Uploads come with the address of what they are to become."""
    rows = (
        f"| {escaped(url)} | {(now - upload.started_at) / 3600:.1f} | {'**abort**' if upload in orphans else 'keep'} |"
        for url, upload in uploads
    )
    table = _table("| upload | hours old | |", "|---|---:|---|", rows)
    return f"# What to abort{' (dry run: nothing was aborted)' if dry_run else ''}\n\n{table}\n"


def collection_table(
    store: str, verdicts: Sequence[Verdict], orphans: Sequence[MultipartUpload], *, dry_run: bool
) -> str:
    rows = (
        f"| {escaped(one.mirror.prefix)} | {_megabytes(one.mirror.size_bytes)} "
        f"| {'**delete**' if one.delete else 'keep'} | {escaped(one.reason)} |"
        for one in verdicts
    )
    uploads = (
        f"| {escaped(upload.key)} | | **abort** | nobody has been at this upload for long |" for upload in orphans
    )
    head = f"# What nobody needs in {escaped(store)}{' (dry run: nothing was deleted)' if dry_run else ''}"
    return "\n".join((head, "", "| mirror | size | | why |", "|---|---:|---|---|", *rows, *uploads))
