"""What several folders of tests share, and what begins first, so that all workers end at about the same time."""

from pathlib import Path

import pytest

from tests.live.slurm_lab import running_slurm_lab  # noqa: F401 - the fixture slurm_lab: one for the whole run

LONGEST_FIRST = ("stack", "flows", "transfer")
"""One real stack takes as long as a third of all tests, and begun last, it would be waited for by everyone."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Within a folder the order stays: the tests of the stack follow its life."""
    items.sort(key=_turn)


def _turn(item: pytest.Item) -> int:
    folder = item.path.relative_to(Path(__file__).parent).parts[0]
    return LONGEST_FIRST.index(folder) if folder in LONGEST_FIRST else len(LONGEST_FIRST)
