"""What is different about a release, beside the one that users have?"""

from collections.abc import Iterator, Mapping, Sequence

from blocks.ports.fleet import EngineBuild
from flows.policy.releases.ledger import Release, ServiceRecord

SHOWN_OF_A_HASH = 12


def release_before(record: ServiceRecord, release: Release) -> Release | None:
    """The one that it is compared with: whose users it is to take over, or took over; None where it was the first."""
    if release.state == "live":
        ever_live = [r for r in record.releases if r.state in {"retiring", "stopping", "retired"}]
        return next((r for r in reversed(ever_live) if r.opened_at < release.opened_at), None)
    return record.live if record.live is not None and record.live.id != release.id else None


def differences(live: Release, candidate: Release) -> tuple[str, ...]:
    """One line each, with what is live first; nothing where the two are made of the same."""
    pairs = (
        ("model", live.repo, candidate.repo),
        ("commit", live.commit, candidate.commit),
        ("context (tokens)", str(live.engine.context_tokens), str(candidate.engine.context_tokens)),
        ("parallel requests", str(live.engine.parallel_requests), str(candidate.engine.parallel_requests)),
        ("kind of model", live.engine.kind, candidate.engine.kind),
    )
    lines = [f"{name}: {before} → {after}" for name, before, after in pairs if before != after]
    return (*lines, *_of_builds(live.engine.build, candidate.engine.build))


def _of_builds(live: EngineBuild | None, candidate: EngineBuild | None) -> Iterator[str]:
    if live == candidate:
        return
    if live is None or candidate is None:
        yield f"engine: {engine_in_words(live)} → {engine_in_words(candidate)}"
        return
    if (live.name, live.version) != (candidate.name, candidate.version):
        yield f"engine: {_name(live)} → {_name(candidate)}"
    yield from _of_items("flag --", live.flags, candidate.flags)
    yield from _of_items("variable ", live.environment, candidate.environment)
    if live.task != candidate.task:
        yield f"task: {_short(live.task)} → {_short(candidate.task)}"
    yield from _of_items("file ", *(tuple((there, _short(sha)) for there, sha in b.files) for b in (live, candidate)))


def _of_items(what: str, live: Sequence[tuple[str, str]], candidate: Sequence[tuple[str, str]]) -> Iterator[str]:
    before: Mapping[str, str] = dict(live)
    after: Mapping[str, str] = dict(candidate)
    for name in sorted({*before, *after}):
        if before.get(name) != after.get(name):
            yield f"{what}{name}: {before.get(name, 'not set')} → {after.get(name, 'not set')}"


def engine_in_words(build: EngineBuild | None) -> str:
    """Its name and version, then flags and variables beside those of its task."""
    if build is None:
        return "not recorded: what the fleet's block says"
    said = [f"--{name} {value}" for name, value in build.flags]
    said += [f"{name}={value}" for name, value in build.environment]
    return " ".join([_name(build), *said])


def _name(build: EngineBuild) -> str:
    return f"{build.name or 'its own task'} {build.version}".strip()


def _short(sha256: str) -> str:
    return sha256[:SHOWN_OF_A_HASH] or "none"
