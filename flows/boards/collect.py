"""What nobody needs in a store: mirrors, and uploads that nobody is at."""

from collections.abc import Collection, Sequence

from blocks.ports.store import MultipartUpload
from flows.boards.markdown import escaped
from flows.boards.numbers import size
from flows.boards.shown import Cell, Table
from flows.policy.mirrors.collect import Verdict

SECONDS_AN_HOUR = 3600


def mirrors_table(
    store: str, verdicts: Sequence[Verdict], orphans: Sequence[MultipartUpload], *, dry_run: bool
) -> Table:
    """Each mirror and each upload that belongs to nobody, and what becomes of it; what goes comes first."""
    gone = [verdict for verdict in verdicts if verdict.delete]
    kept = [verdict for verdict in verdicts if not verdict.delete]
    uploads: list[dict[str, Cell]] = [
        {"what": upload.key, "size": "", "decision": "abort", "why": "nobody has been at this upload for long"}
        for upload in orphans
    ]
    freed = size(sum(verdict.mirror.size_bytes for verdict in gone))
    return Table(
        f"Needed by nobody in {escaped(store)}: {len(gone)} of {len(verdicts)} mirrors, {freed}; unfinished uploads: "
        f"{len(orphans)}{' (dry run: nothing was deleted)' if dry_run else ''}",
        [*map(_row, gone), *uploads, *map(_row, kept)],
    )


def _row(verdict: Verdict) -> dict[str, Cell]:
    return {
        "what": verdict.mirror.prefix,
        "size": size(verdict.mirror.size_bytes),
        "decision": "delete" if verdict.delete else "keep",
        "why": verdict.reason,
    }


def uploads_table(
    uploads: Sequence[tuple[str, MultipartUpload]], orphans: Collection[MultipartUpload], *, now: float, dry_run: bool
) -> Table:
    """Uploads come with the address of what they are to become, `now` in Unix seconds."""
    return Table(
        f"{len(orphans)} of {len(uploads)} uploads belong to nobody"
        f"{' (dry run: nothing was aborted)' if dry_run else ''}",
        [
            {
                "upload": url,
                "hours old": round((now - upload.started_at) / SECONDS_AN_HOUR, 1),
                "decision": "abort" if upload in orphans else "keep",
            }
            for url, upload in uploads
        ],
    )
