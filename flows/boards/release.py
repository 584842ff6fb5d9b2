"""The report of a release: how it stands, and how it came to that."""

from flows.boards.markdown import code, escaped, lines, link, listed, page, section
from flows.boards.numbers import count
from flows.boards.shown import Page
from flows.boards.stages import stages_so_far
from flows.policy.releases.differences import differences, engine_in_words
from flows.policy.releases.ledger import Release

STANDS: dict[str, str] = {
    "in progress": "It is in progress: users get it stage by stage",
    "live": "It is live: all users get it",
    "retiring": "It is replaced, and stays warm for a roll-back",
    "stopping": "It is replaced, and its replicas stop",
    "retired": "It is retired: another release took its place",
    "rolled back": "Users keep what they had",
}
"""By the ledger's states."""


def what_differs(before: Release | None, release: Release) -> str:
    """Line by line, beside what users have, or had; nothing where it is the first."""
    if before is None:
        return ""
    return section(f"What differs from {before.id}", lines(differences(before, release) or ("nothing",)))


def release_report(release: Release, endpoint: str, before: Release | None = None) -> Page:
    reason = f": {escaped(release.closing_reason)}" if release.closing_reason else "."
    facts = (
        ("users call", link(endpoint)),
        ("model", release.repo),
        ("commit", code(release.commit)),
        ("mirror", code(release.mirror_prefix)),
        ("engine", engine_in_words(release.engine.build)),
        ("context", f"{count(release.engine.context_tokens)} tokens"),
        ("parallel requests", release.engine.parallel_requests),
        ("slot", release.slot),
    )
    return Page(
        f"Release {release.id} is {release.state}",
        page(
            f"# Release {release.id}: {release.state}",
            f"**{STANDS[release.state]}**{reason}",
            section("Stages", stages_so_far(release.stages)),
            what_differs(before, release),
            section("What it is", listed(facts)),
        ),
    )


def endpoint_page(service: str, endpoint: str) -> Page:
    return Page(f"Where users call {escaped(service)}", link(endpoint))
