"""What a mirror run brought into each store."""

from collections.abc import Sequence

from blocks.ports.hub import Model
from flows.boards.markdown import bold, code, escaped, lines, listed, page, section, table
from flows.boards.numbers import seconds, size
from flows.boards.shown import Page
from flows.policy.mirrors.mirror import Selection
from flows.transfer.transfer import Target


def mirror_report(
    model: Model, wanted: Selection, targets: Sequence[Target], *, took_seconds: float, retries: int
) -> Page:
    """What each store got and how fast, what was left out, and which dropped out and why."""
    whole = sum(target.error is None for target in targets)
    rows = (
        (
            target.name,
            "whole" if target.error is None else bold("dropped out"),
            f"{size(target.done_bytes / max(took_seconds, 1e-3))}/s",
        )
        for target in targets
    )
    brought = (
        (
            target.name,
            f"{size(target.sent_bytes)} sent, {size(target.resumed_bytes)} there from an earlier run, "
            f"{size(target.copied_bytes)} copied by the provider"
            + (f"; it dropped out: {target.error}" if target.error is not None else ""),
        )
        for target in targets
    )
    return Page(
        f"Mirror of {escaped(model.repo)}",
        page(
            f"# Mirror of {escaped(model.repo)}",
            f"**{whole} of {len(targets)} stores that lacked files have all of them**: {len(model.files)} files, "
            f"{size(model.size_bytes)}, in {seconds(took_seconds)} with {retries} retries.",
            table(("store", "mirror", "speed"), rows, text_columns=2),
            listed(brought),
            f"Commit {code(model.commit)}.",
            section(
                "Code, which an engine runs if it is told to trust it",
                lines(wanted.code),
            ),
            section("Left out", listed(wanted.left_out)),
        ),
    )
