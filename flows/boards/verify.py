"""What was read back of a mirror."""

from collections.abc import Sequence

from flows.boards.shown import Table
from flows.policy.mirrors.verify import Finding, what_is_unread, what_is_wrong


def findings_table(findings: Sequence[Finding]) -> Table:
    """What is wrong or could not be read comes first."""
    wrong, unread = what_is_wrong(findings), what_is_unread(findings)
    right = [finding for finding in findings if finding.is_right and not finding.is_unread]
    answers = (("wrong", wrong), ("not read", unread), ("right", right))
    return Table(
        f"{len(right)} of {len(findings)} files are what was mirrored; wrong: {len(wrong)}; could not be read: "
        f"{len(unread)}",
        [
            {
                "file": one.store + one.key,
                "is": answer,
                "sha256": one.expected if one.is_right else f"{one.found} where {one.expected} should be",
            }
            for answer, ones in answers
            for one in ones
        ],
    )
